"""The report: one page that says how good the blend is, how that is known and what it is made of."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape
from numpy.typing import NDArray

from pages.figures import (
    Drawing,
    Estimate,
    bar_figure,
    interval_figure,
    precision_recall_figure,
    roc_figure,
)
from stack.intervals import Interval
from stack.metrics import auc, auc_by_fold, average_precision

_OBJECTIVES = {
    "auc": "AUC",
    "pauc80": "partial AUC",
    "ap": "average precision",
    "logloss": "log loss, negated",
}

# What a column is called on the page, where that differs from its name.
_HEADS = {
    "auc": "AUC",
    "ap": "AP",
    "pauc80": "partial AUC",
    "logloss": "log loss, negated",
    "difference": "less the first method",
    "within_folds": "mean of folds",
    "min_fold": "lowest fold",
    "max_fold": "highest fold",
    "tuned": "tuned, in-sample",
    "gap": "gap (tuned − nested)",
    "auc_of_blend": "AUC of the blend",
}
_FORMATS = {"prevalence": ".2%", "seconds": ",.0f"}  # of columns that are no scores


@dataclass(frozen=True)
class Comparison:
    """What the headline was measured against, on the same rows."""

    label: str
    value: Interval
    difference: Interval  # headline less this one, paired


@dataclass(frozen=True)
class ReportData:
    """All that the page shows, as plain values; columns and facts beyond those named are shown as they come.

    Columns: `runs` run, kind, level, rows, <objective>, low, high, ap, within_folds, min_fold, max_fold, note;
    `methods` method, nested, low, high, tuned, gap, difference (nested less that of the first method),
    difference_low, difference_high, chosen; `weights` run, weight; `folds` fold, rows, groups, positives,
    prevalence. A number that is NaN is shown as a dash.
    """

    experiment: str
    created: str
    objective: str
    headline: Interval
    headline_label: str  # how it was estimated: "nested from level 2 up, given the level-1 out-of-fold predictions"
    chosen: str  # the method
    comparisons: Sequence[Comparison]
    runs: pd.DataFrame
    methods: pd.DataFrame
    weights: pd.DataFrame
    y: NDArray[Any]  # (n,) 0 or 1
    curves: Mapping[str, NDArray[Any]]  # label -> scores (n,), the headline's first
    fold: NDArray[Any]  # (n,)
    folds: pd.DataFrame
    facts: Mapping[str, int | float | str]
    notes: Sequence[str]
    settings: str  # YAML
    versions: Mapping[str, str]


def report_html(data: ReportData) -> str:
    """The page as text: no network, no JavaScript, the same for the same data; text in `data` is escaped."""
    objective = _OBJECTIVES.get(data.objective, data.objective)
    prevalence = float(np.mean(data.y))
    within = auc_by_fold(data.y, next(iter(data.curves.values())), data.fold).rename("auc_of_blend")
    folds = data.folds.merge(within.reset_index(), on="fold", how="left", validate="one_to_one")
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "signed": _signed, "verdict": _verdict, "breakable": _breakable}
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        data=data,
        objective=objective,
        prevalence=prevalence,
        prevalence_loss=prevalence * math.log(prevalence) + (1 - prevalence) * math.log(1 - prevalence),
        within=within,
        tables={
            "runs": _table(data.runs, intervals={data.objective: ("low", "high")}),
            "methods": _table(
                data.methods,
                intervals={"nested": ("low", "high"), "difference": ("difference_low", "difference_high")},
                chosen=data.chosen,
            ),
            "folds": _table(folds),
        },
        figures=_figures(data, objective),
    )


def _figures(data: ReportData, objective: str) -> dict[str, Drawing]:
    """By name; one that has nothing to show is left out."""
    headline = Estimate("this blend", data.headline.value, data.headline.low, data.headline.high, strong=True)
    compared = [Estimate(c.label, c.value.value, c.value.low, c.value.high) for c in data.comparisons]
    runs = [Estimate(*row) for row in _rows(data.runs, "run", data.objective, "low", "high")]
    methods = [
        Estimate(*row)._replace(strong=row[0] == data.chosen)
        for row in _rows(data.methods, "method", "nested", "low", "high", "tuned")
    ]
    weights = dict(_rows(data.weights, "run", "weight"))
    roc = {f"{label}: AUC {auc(data.y, s):.4f}": s for label, s in data.curves.items()}
    recall = {f"{label}: AP {average_precision(data.y, s):.4f}": s for label, s in data.curves.items()}
    drawn = {
        "compared": interval_figure("compared", [headline, *compared], axis=objective, reference=headline.value),
        "roc": roc_figure("roc", data.y, roc),
        "recall": precision_recall_figure("recall", data.y, recall),
    }
    if runs:
        drawn["runs"] = interval_figure("runs", runs, axis=objective, reference=headline.value)
    if methods:
        drawn["methods"] = interval_figure("methods", methods, axis=objective)
    if weights:
        drawn["weights"] = bar_figure("weights", weights, axis="weight in the blend")
    return drawn


class _Table(NamedTuple):
    heads: list[tuple[str, bool]]  # text, whether its cells are numbers
    rows: list[tuple[bool, tuple[str, ...]]]  # whether it is the chosen one, cells
    longest: int  # characters of its first column


def _table(
    frame: pd.DataFrame, *, intervals: Mapping[str, tuple[str, str]] | None = None, chosen: str | None = None
) -> _Table:
    """A frame's cells as text; `intervals` names the low and high of a column, shown as one beside it."""
    intervals = intervals or {}
    bounds = {column for pair in intervals.values() for column in pair}
    heads, columns = [], []
    for name in map(str, frame):
        if name == "chosen" or name in bounds:
            continue
        heads.append((_HEADS.get(name, name.replace("_", " ")), pd.api.types.is_numeric_dtype(frame[name])))
        columns.append([_number(value, _FORMATS.get(name, ".4f")) for value in frame[name]])
        if name in intervals:
            heads.append(("95 % interval", True))
            columns.append([_bounds(low, high) for low, high in _rows(frame, *intervals[name])])
    rows = [(row[0] == chosen, row) for row in zip(*columns, strict=True)]
    return _Table(heads, rows, longest=max((len(row[0]) for _, row in rows), default=0))


def _rows(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    return frame[list(columns)].itertuples(index=False, name=None)


def _number(value: object, form: str = ".4f") -> str:
    """Scores with four digits, counts with commas, what is missing as a dash, text as it is."""
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:{form}}".replace("-", "−") if math.isfinite(value) else "–"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "") + _number(value)


def _bounds(low: float, high: float) -> str:
    return f"{_number(low)} to {_number(high)}" if math.isfinite(low) else "–"


def _breakable(name: str) -> Markup:
    """Escaped, with leave to break a long name at its joints."""
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(name))))


def _verdict(difference: Interval) -> str:
    """Whether a paired difference, this blend less another, stands out of the noise."""
    if difference.low > 0:
        return "better, beyond noise"
    return "worse, beyond noise" if difference.high < 0 else "no difference beyond noise"

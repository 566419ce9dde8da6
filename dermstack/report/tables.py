"""Formats data frames as HTML tables: numbers, intervals beside their values, shades for heat maps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

from dermstack.report.eda_tables import three_quantiles
from dermstack.report.ticks import decimals_of

# Column heads on the page, where they differ from the column's name.
_HEADS = {
    "auc": "AUC",
    "ap": "AP",
    "pauc80": "partial AUC",
    "logloss": "log loss, negated",
    "difference": "difference from the first method",
    "within_folds": "mean of folds",
    "equal_size": "AUC between groups of equal size",
    "min_fold": "lowest fold",
    "max_fold": "highest fold",
    "tuned": "tuned, in-sample",
    "gap": "gap (tuned − nested)",
    "auc_of_blend": "AUC of the blend",
    "ece": "ECE",
    "brier": "Brier",
}
_FORMATS = {"prevalence": ".2%", "seconds": ",.0f", "p": ".2%", "share": ".2%", "threshold": ".2%", "slope": ".2f"}


class HtmlTable(NamedTuple):
    """Text of a table, whose first column is the name of the row, and the numbers that it was made of."""

    heads: list[tuple[str, bool]]  # text, whether its cells are numbers
    rows: list[tuple[str, tuple[str, ...]]]  # tag of a highlighted row, else ""; cells
    longest: int  # characters of its first column
    shades: list[tuple[float, ...]]  # background strength of each cell, 0 (none) to 1; empty if no cell is shaded
    frame: pd.DataFrame  # the numbers, for a file


def table(
    frame: pd.DataFrame,
    *,
    intervals: Mapping[str, tuple[str, str]] | None = None,
    tags: Mapping[str, str] | None = None,
    heads: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> HtmlTable:
    """Formats the cells of a frame as text.

    `intervals` maps a column to its low and high columns, which are shown beside it as one interval. `tags` maps the
    first cell of each highlighted row to a word. `heads` and `formats` override the defaults for the columns they name.
    """
    intervals, heads, formats = intervals or {}, {**_HEADS, **(heads or {})}, {**_FORMATS, **(formats or {})}
    bounds = {column for pair in intervals.values() for column in pair}
    shown: list[tuple[str, bool]] = []
    columns = []
    for name in map(str, frame):
        if name == "chosen" or name in bounds:
            continue
        form = formats.get(name, ".4f")
        shown.append((heads.get(name, name.replace("_", " ")), pd.api.types.is_numeric_dtype(frame[name])))
        columns.append([number(value, form) for value in frame[name]])
        if name in intervals:
            shown.append((heads.get(intervals[name][0], "95 % interval"), True))
            columns.append([_bounds(low, high, form) for low, high in rows_of(frame, *intervals[name])])
    rows = [((tags or {}).get(row[0], ""), row) for row in zip(*columns, strict=True)]
    return HtmlTable(shown, rows, max((len(row[0]) for _, row in rows), default=0), [], frame)


def terminal_table(
    frame: pd.DataFrame,
    *,
    intervals: Mapping[str, tuple[str, str]] | None = None,
    heads: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Returns a frame with the column heads of the pages, for the terminal; ``intervals`` and ``heads`` as in `table`.

    Low and high become one column of text beside their value, and a column "chosen" marks its rows with "yes".
    """
    intervals, heads = intervals or {}, {**_HEADS, **(heads or {})}
    bounds = {column for pair in intervals.values() for column in pair}
    shown: list[tuple[str, pd.Series[Any]]] = []
    for name in map(str, frame):
        if name in bounds:
            continue
        column = frame[name].map({True: "yes", False: ""}) if name == "chosen" else frame[name]
        shown.append((heads.get(name, name.replace("_", " ")), column))
        if name in intervals:
            low, high = intervals[name]
            form = "+.4f" if "difference" in name else ".4f"
            text = [f"{a:{form}} – {b:{form}}" if a == a else "–" for a, b in rows_of(frame, low, high)]
            shown.append((heads.get(low, "95 % interval"), pd.Series(text, frame.index)))
    made = pd.concat([column for _, column in shown], axis=1)
    return made.set_axis([head for head, _ in shown], axis=1)


def heat_table(matrix: pd.DataFrame, *, corner: str, form: str = ".2f") -> HtmlTable:
    """Formats a square matrix of correlations; each cell is shaded by its position between the lowest value and 1."""
    cells = matrix.to_numpy(np.float64)
    lowest = float(np.nanmin(cells))
    rows = [
        ("", (str(name), *(number(float(value), form) for value in line)))
        for name, line in zip(matrix.index, cells, strict=True)
    ]
    shades = [(0.0, *np.nan_to_num((line - lowest) / max(1 - lowest, 1e-9)).tolist()) for line in cells]
    heads = [(corner, False), *((str(name), True) for name in matrix)]
    frame = matrix.rename_axis(index=corner, columns=None).reset_index()
    return HtmlTable(heads, rows, max((len(row[0]) for _, row in rows), default=0), shades, frame)


def subgroup_table(subgroups: pd.DataFrame) -> HtmlTable:
    """Formats the table of `stack.metrics.subgroups.subgroups`."""
    named = subgroups["by"] + ": " + subgroups["subgroup"]
    frame = subgroups.drop(columns=["by", "subgroup", "apart"])
    frame.insert(0, "subgroup", named)
    return table(
        frame,
        intervals={"auc": ("low", "high"), "difference": ("wide_low", "wide_high")},
        tags=dict.fromkeys(named[subgroups["apart"]], "differs"),
        heads={"difference": "difference from the rest", "wide_low": "corrected interval"},
        formats={"auc": ".3f", "difference": "+.3f", "prevalence": ".1%"},
    )._replace(frame=subgroups)


def numbers_table(columns: pd.DataFrame) -> HtmlTable:
    """Formats the table of `dermstack.audit.columns.number_columns`."""
    return table(
        _with_ranges(columns),
        intervals={"auc": ("low", "high")},
        heads={"missing_train": "missing, train", "missing_test": "missing, test", "distance": "distance to test"},
        formats={"auc": ".3f", "missing_train": ".1%", "missing_test": ".1%", "distance": ".2f", "chance": ".2f"},
    )._replace(frame=columns)


def words_table(columns: pd.DataFrame) -> HtmlTable:
    """Formats the table of `dermstack.audit.columns.word_columns`."""
    return table(
        columns.drop(columns="beyond"),
        intervals={"auc": ("low", "high")},
        heads={"missing_train": "missing, train", "missing_test": "missing, test", "distance": "distance to test"},
        formats={"auc": ".3f", "missing_train": ".1%", "missing_test": ".1%", "distance": ".2f", "chance": ".2f"},
    )


def _with_ranges(columns: pd.DataFrame) -> pd.DataFrame:
    """Writes the quantiles of each class into one column: median (5 % to 95 %)."""
    shown = columns.drop(
        columns=["beyond", *(name for name in map(str, columns) if name.startswith(("negative_", "positive_")))]
    )
    for place, of in enumerate(("negative", "positive"), start=1):
        parts = rows_of(columns, f"{of}_middle", f"{of}_low", f"{of}_high")
        shown.insert(place, f"{of}: median (5 % to 95 %)", [quantiles(*three) for three in parts])
    return shown


def quantiles(middle: float, low: float, high: float) -> str:
    """Formats three quantiles: 4.2 (1.1 to 9.8)."""
    shown = three_quantiles(middle, low, high)
    return "–" if shown[0] == "–" else f"{shown[0]} ({shown[1]} to {shown[2]})".replace("-", "−")


def decision_table(curve: pd.DataFrame) -> HtmlTable:
    """Formats the net benefit at round thresholds."""
    frame = pd.DataFrame({
        "threshold": curve["threshold"],
        "called": 1000 * curve["called"],
        "sensitivity": curve["sensitivity"],
        "net_benefit": curve["net_benefit"], "low": curve["low"], "high": curve["high"],
        "treat_all": curve["treat_all"],
        "gain": curve["gain"], "gain_low": curve["gain_low"], "gain_high": curve["gain_high"],
    })  # fmt: skip
    return table(
        frame,
        intervals={"net_benefit": ("low", "high"), "gain": ("gain_low", "gain_high")},
        heads={
            "called": "called positive per 1,000",
            "treat_all": "net benefit of acting on all",
            "gain": "gain over acting on all or none",
        },
        formats={
            "threshold": percent_format(curve["threshold"]), "called": ".0f", "sensitivity": ".1%", "gain": "+.4f",
        },
    )._replace(frame=curve)  # fmt: skip


def percent_format(shares: Iterable[float]) -> str:
    """Returns the format of shares in percent with the fewest decimals that show each of them exactly."""
    return f".{decimals_of(100 * share for share in shares)}%"


def shared_decimals(values: Iterable[float], *, least: int) -> int:
    """Returns the decimals for a column of thresholds: three significant digits of the smallest, at least ``least``."""
    smallest = min((value for value in values if 0 < value < math.inf), default=1.0)
    return min(max(least, 2 - math.floor(math.log10(smallest))), 15)


def rows_of(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Iterates over the rows of a frame, with these columns only."""
    return frame[list(columns)].itertuples(index=False, name=None)


def number(value: object, form: str = ".4f") -> str:
    """Formats floats by `form`, counts with commas, missing values as a dash; text is unchanged."""
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:{form}}".replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%") if math.isfinite(value) else "–"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)


def head_width(head: str) -> str:
    """Returns the least width of a column, in rem, at which its head has two or three lines."""
    return f"{min(max(4.5, 1.4 + 0.28 * len(head)), 11.0):.2g}rem"


def signed(value: float) -> str:
    """Formats a score with its sign, plus included."""
    return ("+" if value >= 0 else "") + number(value)


def breakable(name: str) -> Markup:
    """Escapes a name and allows line breaks after its separators."""
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(name))))


def code_span(text: str) -> str:
    """Returns text of the data as a code span of Markdown, in which nothing is markup, also inside a table."""
    shown = " ".join(text.split()).replace("|", "\\|")
    ticks = "`" * (max((len(run) for run in re.findall("`+", shown)), default=0) + 1)
    space = " " if "`" in shown else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def with_code_spans(text: str) -> Markup:
    """Escapes text; backticks become code, and a hyphen before a digit becomes a minus sign."""
    escaped = re.sub(r"(?<![\w.-])-(?=\d)", "−", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _bounds(low: float, high: float, form: str) -> str:
    return f"{number(low, form)} to {number(high, form)}" if math.isfinite(low) else "–"

"""Frames as tables of a page: numbers as people write them, intervals beside their values, shades for heat maps."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape

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
    "ece": "ECE",
    "brier": "Brier",
}
_FORMATS = {"prevalence": ".2%", "seconds": ",.0f", "p": ".2%", "share": ".2%", "threshold": ".2%", "slope": ".2f"}


class HtmlTable(NamedTuple):
    """The first column names the row."""

    heads: list[tuple[str, bool]]  # text, whether its cells are numbers
    rows: list[tuple[str, tuple[str, ...]]]  # a tag of what stands out, else ""; cells
    longest: int  # characters of its first column
    shades: list[tuple[float, ...]]  # how strong the ground of each cell is, 0 (none) to 1; empty: of none


def table(
    frame: pd.DataFrame,
    *,
    intervals: Mapping[str, tuple[str, str]] | None = None,
    tags: Mapping[str, str] | None = None,
    heads: Mapping[str, str] | None = None,
    formats: Mapping[str, str] | None = None,
) -> HtmlTable:
    """A frame's cells as text; `intervals` names the low and high of a column, shown as one beside it.

    `tags` has a word for each row that stands out, by its first cell; `heads` and `formats` go before what columns have
    by their names.
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
    return HtmlTable(shown, rows, longest=max((len(row[0]) for _, row in rows), default=0), shades=[])


def heat_table(matrix: pd.DataFrame, *, corner: str, form: str = ".2f") -> HtmlTable:
    """A square of correlations by name, each shaded by where it stands between the lowest and 1."""
    cells = matrix.to_numpy(np.float64)
    lowest = float(np.nanmin(cells))
    rows = [
        ("", (str(name), *(number(float(value), form) for value in line)))
        for name, line in zip(matrix.index, cells, strict=True)
    ]
    shades = [(0.0, *np.nan_to_num((line - lowest) / max(1 - lowest, 1e-9)).tolist()) for line in cells]
    heads = [(corner, False), *((str(name), True) for name in matrix)]
    return HtmlTable(heads, rows, max((len(row[0]) for _, row in rows), default=0), shades)


def rows_of(frame: pd.DataFrame, *columns: str) -> Iterator[tuple[Any, ...]]:
    """These columns of each row."""
    return frame[list(columns)].itertuples(index=False, name=None)


def number(value: object, form: str = ".4f") -> str:
    """Scores with four digits, counts with commas, what is missing as a dash, text as it is."""
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:{form}}".replace("-", "−").replace("%", "\N{NO-BREAK SPACE}%") if math.isfinite(value) else "–"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}".replace("-", "−")
    return str(value)


def signed(value: float) -> str:
    """With its sign, also where it is a plus."""
    return ("+" if value >= 0 else "") + number(value)


def breakable(name: str) -> Markup:
    """Escaped, with leave to break a long name at its joints."""
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(name))))


def with_code_spans(text: str) -> Markup:
    """Escaped; what stands in backticks is code, and a minus before a digit is one."""
    escaped = re.sub(r"(?<![\w.-])-(?=\d)", "−", str(escape(text)))
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped))


def _bounds(low: float, high: float, form: str) -> str:
    return f"{number(low, form)} to {number(high, form)}" if math.isfinite(low) else "–"

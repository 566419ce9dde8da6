"""Formats the tables of the EDA page: the frames of `dermstack.audit.drift` as cells, some of them shaded."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup, escape


class Cell(NamedTuple):
    """Text of a cell, and the strength of its background: 0 (none) to 1."""

    text: str | Markup
    shade: float = 0.0


class Grid(NamedTuple):
    """A table: heads are (text, whether numeric); the first column is the name of the row."""

    heads: list[tuple[str, bool]]
    rows: list[list[Cell]]


def level_table(counts: pd.DataFrame, column: str) -> Grid:
    """Formats `level_counts` of `column` as a heat map: the shade is the share of a class that has the level.

    The largest share of the table has the full shade.
    """
    columns = {"negatives": "negative", "positives": "positive"}
    shares = {name: counts[name] / max(int(counts[name].sum()), 1) for name in columns}
    largest = max(float(share.max()) for share in shares.values())
    rows = []
    for number, line in enumerate(counts.to_dict("records")):
        cells = [Cell(_breakable(str(line["level"])))]
        for name in columns:
            share = float(shares[name][number])
            cells.append(Cell(f"{line[name]:,} ({_number(share, '.1%')})", share / largest))
        rows.append([*cells, Cell(_number(line["prevalence"], ".2%"))])
    return Grid([(column, False), *[(head, True) for head in columns.values()], ("share of positives", True)], rows)


def group_size_table(sizes: pd.DataFrame) -> Grid:
    """Formats `group_sizes`."""
    heads = {
        "images": "images per group",
        "groups": "groups",
        "with_positive": "with a positive",
        "rows": "images",
        "positives": "positive",
        "prevalence": "share of positives",
    }
    return _grid(sizes, heads, percent={"prevalence"})


def missing_table(values: pd.DataFrame) -> Grid:
    """Formats `missing_values`; the shade is the missing share."""
    heads = {
        "column": "column",
        "rows": "missing in train",
        "train": "train",
        "negatives": "train, negative",
        "positives": "train, positive",
        "test": "test",
    }
    shares = {"train", "negatives", "positives", "test"}
    return _grid(values, heads, percent=shares, shaded=shares)


def picture_size_table(sizes: pd.DataFrame, *, most: int = 12) -> Grid:
    """Formats `picture_sizes`: the `most` frequent sizes, and all others in one line."""
    shown = sizes.iloc[:most]
    named = [
        f"{width}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}{height}"
        for width, height in zip(shown["width"], shown["height"], strict=True)
    ]
    lines = shown.assign(size=named)[["size", "rows", "positives", "prevalence"]]
    rest = sizes.iloc[most:]
    if len(rest):
        rows, positives = int(rest["rows"].sum()), int(rest["positives"].sum())
        other = pd.DataFrame([[f"{len(rest):,} others", rows, positives, positives / rows]], columns=lines.columns)
        lines = pd.concat([lines, other])
    heads = {
        "size": "width × height",
        "rows": "images",
        "positives": "positive",
        "prevalence": "share of positives",
    }
    return _grid(lines, heads, percent={"prevalence"})


def shortcut_table(shortcuts: pd.DataFrame) -> Grid:
    """Formats `shortcuts`, with the AUC of a relation of any shape if it is known."""
    shapes = "shape_auc" in shortcuts
    rows = []
    for line in shortcuts.to_dict("records"):
        aucs = [_with_interval(line["auc"], line["low"], line["high"])]
        if shapes:
            aucs.append(_with_interval(line["shape_auc"], line["shape_low"], line["shape_high"]))
        medians = [f"{line[label]:,.0f}" for label in ("negatives", "positives")]
        rows.append([Cell(text) for text in (line["fact"], *medians, line["direction"], *aucs)])
    heads = ["fact", "median, negative", "median, positive", "positives are", "AUC (95 % interval)"]
    heads += ["AUC, any shape (95 % interval)"] if shapes else []
    return Grid([(head, head not in {"fact", "positives are"}) for head in heads], rows)


def duplicate_table(pairs: pd.DataFrame) -> Grid:
    """Counts near-duplicates by kind: pairs, and the images in them."""
    rows = [
        (str(kind), len(found), len(set(found["id_1"]) | set(found["id_2"]))) for kind, found in pairs.groupby("kind")
    ]
    frame = pd.DataFrame(rows, columns=["kind", "pairs", "images"]).sort_values(
        ["pairs", "kind"], ascending=[False, True]
    )
    return _grid(frame, {"kind": "kind", "pairs": "pairs", "images": "images in them"})


def number_table(columns: pd.DataFrame) -> Grid:
    """Formats `dermstack.audit.columns.number_columns`; the shade is the distance of the AUC from 0.5."""
    heads = ["column", "AUC (95 % interval)", "negative: median", "5 % to 95 %", "positive: median", "5 % to 95 %"]
    rows = []
    for line in columns.to_dict("records"):
        cells = [Cell(_breakable(line["column"])), _auc_cell(line)]
        for of in ("negative", "positive"):
            middle, low, high = three_quantiles(*(line[f"{of}_{which}"] for which in ("middle", "low", "high")))
            cells += [Cell(middle), Cell(f"{low} to {high}" if low != "–" else "–")]
        rows.append(cells + _missing_and_drift(line))
    return Grid([(head, head != "column") for head in [*heads, *_MISSING_AND_DRIFT]], rows)


def word_table(columns: pd.DataFrame) -> Grid:
    """Formats `dermstack.audit.columns.word_columns`, as `number_table` does."""
    rows = []
    for line in columns.to_dict("records"):
        cells = [Cell(_breakable(line["column"])), _auc_cell(line, any_side=False), Cell(f"{line['words']:,}")]
        rows.append([*cells, Cell(_breakable(line["commonest"])), *_missing_and_drift(line)])
    heads = ["column", "AUC (95 % interval)", "different words", "most frequent", *_MISSING_AND_DRIFT]
    return Grid([(head, head not in {"column", "most frequent"}) for head in heads], rows)


_MISSING_AND_DRIFT = ["missing in train", "missing in test", "distance to test", "limit of chance"]


def _auc_cell(line: dict[Hashable, Any], *, any_side: bool = True) -> Cell:
    if not math.isfinite(line["auc"]):
        return Cell("–")
    is_clear = math.isfinite(line["low"]) and (line["low"] > 0.5 or (any_side and line["high"] < 0.5))
    return Cell(_with_interval(line["auc"], line["low"], line["high"]), 2 * abs(line["auc"] - 0.5) if is_clear else 0.0)


def _missing_and_drift(line: dict[Hashable, Any]) -> list[Cell]:
    missing = [Cell(_number(line[name], ".1%")) for name in ("missing_train", "missing_test")]
    shade = min(line["distance"], 1.0) if line["beyond"] else 0.0
    return [*missing, Cell(_number(line["distance"], ".3f"), shade), Cell(_number(line["chance"], ".3f"))]


def three_quantiles(middle: float, low: float, high: float) -> tuple[str, str, str]:
    """Formats three quantiles with the decimals that give the largest of them three significant digits."""
    known = [abs(value) for value in (low, middle, high) if math.isfinite(value)]
    largest = max(known, default=0.0)
    if largest and not 1e-3 <= largest < 1e7:
        form = ".2e"
    else:
        form = f".{min(max(2 - math.floor(math.log10(largest)), 0), 6) if largest else 0}f"
    return _number(middle, form), _number(low, form), _number(high, form)


def drift_table(drift: pd.DataFrame) -> Grid:
    """Formats `drift`."""
    rows = []
    for line in drift.to_dict("records"):
        rows.append(
            [
                Cell(line["column"]),
                Cell(_number(line["distance"], ".3f"), min(line["distance"], 1.0) if line["beyond"] else 0.0),
                Cell(_number(line["chance"], ".3f")),
                Cell("beyond chance" if line["beyond"] else "within chance"),
                Cell(_number(line["auc"], ".3f")),
                Cell(_number(line["missing_train"], ".1%")),
                Cell(_number(line["missing_test"], ".1%")),
            ]
        )
    heads = ["column", "distance", "limit of chance", "result", "AUC", "missing in train", "missing in test"]
    return Grid([(head, head not in {"column", "result"}) for head in heads], rows)


def fold_summary_table(summary: pd.DataFrame) -> Grid:
    """Formats `Folds.summary` with all its columns."""
    return _grid(summary, {str(name): str(name).replace("_", " ") for name in summary}, percent={"prevalence"})


def _grid(
    frame: pd.DataFrame,
    heads: dict[str, str],
    *,
    percent: set[str] | frozenset[str] = frozenset(),
    shaded: set[str] | frozenset[str] = frozenset(),
) -> Grid:
    rows = []
    for line in frame[list(heads)].to_dict("records"):
        cells = []
        for name in heads:
            value = line[name]
            shade = float(value) if name in shaded and math.isfinite(value) else 0.0
            cells.append(Cell(_number(value, ".2%" if name in percent else ".2f"), shade))
        rows.append([cells[0]._replace(text=_breakable(cells[0].text)), *cells[1:]])
    return Grid([(text, pd.api.types.is_numeric_dtype(frame[name])) for name, text in heads.items()], rows)


def _with_interval(value: float, low: float, high: float) -> str:
    return f"{value:.3f}" + (f" ({low:.3f} to {high:.3f})" if math.isfinite(low) else "")


def _number(value: object, form: str) -> str:
    if value is None or value is pd.NA:
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:{form}}".replace("%", "\N{NO-BREAK SPACE}%") if math.isfinite(value) else "–"
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


def _breakable(text: str) -> Markup:
    """Escapes a name and allows line breaks after its separators."""
    return Markup(re.sub(r"([_./-])(?=\w)", r"\1<wbr>", str(escape(text))))

"""Draws the figures of the EDA page, in the style of the report's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.patches import Rectangle

from dermstack.report.figures import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    Drawing,
    blank_figure,
    label_axes,
    line_grid,
    page_style,
    page_svg,
    row_text,
)
from dermstack.report.report import percent
from dermstack.report.ticks import round_ticks
from stack.metrics.scores import Floats

_MAX_SIZES = 150  # with more distinct image sizes, a figure bins them
_PAGE_COLOURS = {INK: "var(--ink)", ACCENT: "var(--accent)", MUTED: "var(--muted)"}


def age_rows_figure(name: str, ages: pd.DataFrame, *, of: str) -> Drawing:
    """Draws one histogram of ages for each level, in a row of its own: the rows `of` `age_histograms`.

    Each histogram is scaled to its own highest bin; a level without images is left out. Both values of `of` share the
    same age axis.
    """
    bins = [column for column in ages if isinstance(column, int)]
    rows = ages[(ages["of"] == of) & (ages["images"] > 0)]
    last = int(np.flatnonzero(ages[bins].to_numpy().any(axis=0)).max(initial=0))
    with page_style():
        figure = blank_figure(height=0.75 + 0.56 * len(rows))
        axes = label_axes(figure, len(rows), "age in years")
        for row, line in enumerate(rows.to_dict("records")):
            row_text(axes, row, str(line["level"]), f"{line['images']:,}")
            axes.axhline(row + 0.28, color=LINE, linewidth=0.5)
            shares = np.array([line[edge] for edge in bins])
            heights = shares / max(shares.max(), 1e-9) * 0.5
            axes.bar(bins, -heights, width=5, bottom=row + 0.28, align="edge", color=ACCENT, alpha=0.55, linewidth=0)
            if line["known"]:
                axes.plot([line["median"]] * 2, [row + 0.34, row - 0.22], color=INK, linewidth=1.6)
        axes.set_xlim(0, bins[last] + 5)
        alt_text = "; ".join(map(_ages_alt_text, rows.to_dict("records")))
        return Drawing(
            page_svg(figure, name, f"Ages of {'all' if of == 'all' else 'positive'} images. {alt_text}."), []
        )


def histogram_figure(name: str, edges: Sequence[float], shares: dict[str, Floats], *, axis: str) -> Drawing:
    """Draws two histograms (bins,) as outlines over each other, the second one filled; both have the same `edges`."""
    with page_style():
        figure = blank_figure(height=2.6)
        axes = figure.subplots()
        (first, one), (second, other) = shares.items()
        axes.stairs(other, edges, fill=True, color=ACCENT, alpha=0.3, linewidth=0)
        axes.stairs(other, edges, color=ACCENT, linewidth=1.8)
        axes.stairs(one, edges, color=INK, linewidth=1.4, linestyle=(0, (5, 2)))
        axes.set(xlabel=axis, xlim=(edges[0], edges[-1]))
        round_ticks(axes.xaxis)
        round_ticks(axes.yaxis, percent=True, intervals=4)
        axes.grid(True, axis="y")
        axes.set_axisbelow(True)
        axes.set_ylim(bottom=0)
        alt = f"Shares by {axis}. Most {first}: {_mode(edges, one)}; most {second}: {_mode(edges, other)}."
        legend = [(first, _swatch(INK, dashes="6 3")), (second, _swatch(ACCENT, dashes="none"))]
        return Drawing(page_svg(figure, name, alt), legend)


def paired_figure(name: str, levels: Sequence[str], shares: dict[str, Floats], *, axis: str) -> Drawing:
    """Draws two bars for each of `levels` (n,), one for each of the two entries of `shares` (n,)."""
    (first, one), (second, other) = shares.items()
    with page_style():
        figure = blank_figure(height=0.75 + 0.56 * len(levels))
        axes = label_axes(figure, len(levels), axis)
        for row, level in enumerate(levels):
            row_text(axes, row, level, f"{percent(one[row])}\n{percent(other[row])}")
            axes.barh(row - 0.11, one[row], height=0.18, facecolor="none", edgecolor=INK, linewidth=1)
            axes.barh(row + 0.11, other[row], height=0.2, color=ACCENT)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(0, max(float(np.max([one, other])), 1e-3) * 1.02)
        round_ticks(axes.xaxis, percent=True)
        alt_text = "; ".join(f"{level} {a:.1%} and {b:.1%}" for level, a, b in zip(levels, one, other, strict=True))
        legend = [(first, _swatch(INK, dashes="hollow")), (second, _swatch(ACCENT, dashes="bar"))]
        return Drawing(page_svg(figure, name, f"{axis}, {first} and {second}. {alt_text}."), legend)


def count_figure(name: str, labels: Sequence[str], counts: Sequence[int], *, axis: str) -> Drawing:
    """Draws horizontal bars of counts, from the top."""
    return _bars(name, labels, counts, [f"{count:,}" for count in counts], axis=axis, integer=True)


def rate_figure(name: str, labels: Sequence[str], rates: Sequence[float], of: Sequence[int], *, axis: str) -> Drawing:
    """Draws horizontal bars of shares, from the top, each with the number that it is a share of."""
    texts = [f"{percent(rate)}\nof {count:,}" if count else "–" for rate, count in zip(rates, of, strict=True)]
    return _bars(name, labels, np.nan_to_num(rates).tolist(), texts, axis=axis, percent=True)


def _bars(
    name: str,
    labels: Sequence[str],
    values: Sequence[float],
    texts: Sequence[str],
    *,
    axis: str,
    percent: bool = False,
    integer: bool = False,
) -> Drawing:
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(labels))
        axes = label_axes(figure, len(labels), axis)
        for row, (label, text) in enumerate(zip(labels, texts, strict=True)):
            row_text(axes, row, label, text)
        axes.barh(range(len(labels)), values, height=0.28, color=ACCENT)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(0, max(1e-3, *values) * 1.02)
        round_ticks(axes.xaxis, percent=percent, integer=integer, intervals=5)
        alt_text = "; ".join(f"{label}: {text}" for label, text in zip(labels, texts, strict=True)).replace("\n", " ")
        return Drawing(page_svg(figure, name, f"{axis}. {alt_text}."), [])


def sizes_figure(name: str, sizes: pd.DataFrame, *, column: str) -> Drawing:
    """Draws image width against height (`picture_sizes`) with a disc for each size, scaled by the count in `column`."""
    sizes = _binned_sizes(sizes)
    shown = sizes[sizes[column] > 0]
    with page_style():
        figure = blank_figure(height=4.1)
        axes = figure.subplots()
        limit = max(float(sizes[["width", "height"]].to_numpy().max(initial=1)), 1.0) * 1.12
        axes.plot([0, limit], [0, limit], color=LINE, linewidth=1)
        shares = shown[column] / max(int(shown[column].sum()), 1)
        axes.scatter(shown["width"], shown["height"], s=12 + 900 * shares, color=ACCENT, alpha=0.4, linewidth=0)
        axes.scatter(shown["width"], shown["height"], s=4, color=INK, linewidth=0)
        axes.set(xlim=(0, limit), ylim=(0, limit), xlabel="width in pixels", ylabel="height in pixels", aspect="equal")
        round_ticks(axes.xaxis)
        line_grid(axes)
        top = "; ".join(
            f"{w:.0f} × {h:.0f}: {n:,}" for w, h, n in shown[["width", "height", column]].head(5).to_numpy()
        )
        alt = f"Image width and height, {column}. Number of sizes: {len(shown)}; most frequent: {top or 'none'}."
        return Drawing(page_svg(figure, name, alt), [])


def drift_figure(name: str, drift: pd.DataFrame) -> Drawing:
    """Draws each column's distance between train and test as a dot, and the range of chance as a bar (`drift`)."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(drift))
        axes = label_axes(figure, len(drift), "distance between train and test")
        for row, line in enumerate(drift.to_dict("records")):
            row_text(axes, row, line["column"], f"{line['distance']:.3f}", strong=line["beyond"])
            if np.isfinite(line["chance"]):
                axes.add_patch(Rectangle((0, row - 0.14), line["chance"], 0.28, facecolor=LINE, linewidth=0))
            axes.plot(
                line["distance"], row, "o", markersize=6.5, color=ACCENT if line["beyond"] else MUTED, markeredgewidth=0
            )
        axes.set_xlim(0, max(0.1, float(np.nanmax(drift[["distance", "chance"]].to_numpy(), initial=0))) * 1.06)
        alt_text = "; ".join(
            f"{c} {d:.3f}, chance up to {n:.3f}" for c, d, n in _columns(drift, "column", "distance", "chance")
        )
        return Drawing(page_svg(figure, name, f"Distance between train and test. {alt_text}."), [])


def _binned_sizes(sizes: pd.DataFrame) -> pd.DataFrame:
    """Bins sizes on a grid if there are too many to draw: in a data set of crops every image can have its own size."""
    if len(sizes) <= _MAX_SIZES:
        return sizes
    step = float(sizes[["width", "height"]].to_numpy().max()) / 24
    grid = sizes.assign(width=(sizes["width"] / step).round() * step, height=(sizes["height"] / step).round() * step)
    grid = grid.groupby(["width", "height"], as_index=False)[["rows", "negatives", "positives"]].sum()
    return grid.sort_values("rows", ascending=False, ignore_index=True)


def _ages_alt_text(line: dict[Any, Any]) -> str:
    median = f"median {line['median']:.0f}" if line["known"] else "no age known"
    return f"{line['level']} {line['images']:,} images, {median}"


def _mode(edges: Sequence[float], shares: Floats) -> str:
    most = int(np.argmax(shares))
    return f"{edges[most]:g} to {edges[most + 1]:g} ({shares[most]:.0%})"


def _columns(frame: pd.DataFrame, *names: str) -> Any:
    return frame[list(names)].itertuples(index=False, name=None)


def _swatch(colour: str, *, dashes: str) -> Markup:
    """Returns the legend symbol: a line ("none" or a pattern of dashes) or a bar ("bar", "hollow")."""
    shape = {
        "bar": '<path d="M0 1H28V7H0Z" style="fill: {}"/>',
        "hollow": '<path d="M1 1H27V7H1Z" style="fill: none; stroke: {}; stroke-width: 1"/>',
    }.get(
        dashes, '<path d="M0 4H28" style="fill: none; stroke: {}; stroke-width: 2; stroke-dasharray: ' + dashes + '"/>'
    )
    return Markup('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">' + shape + "</svg>").format(
        _PAGE_COLOURS[colour]
    )

"""Figures as SVG that a page takes in: drawn once, in the colours of the page, light, dark or paper."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

Floats = NDArray[np.float64]

CURVE_POINTS = 2_000  # vertices kept of a curve: less than a pixel apart, whatever the number of rows
WIDTH = 4.4  # inches, 317 units: about the pixels of a telephone, where text is shown at its size
_LABEL = 40  # characters of a label that fit above its bar

# Figures are drawn in these stand-ins, each of which then becomes a colour of the page.
_COLOURS = {
    "#00000a": "var(--ink)",
    "#00000b": "var(--muted)",
    "#00000c": "var(--line)",
    "#00000d": "var(--accent)",
}
INK, MUTED, LINE, ACCENT = _COLOURS
_CURVES = (  # colour, width, dashes: curves differ in more than colour
    (ACCENT, 2.4, (None, None)),
    (INK, 1.4, (6, 2)),
    (MUTED, 1.8, (2, 1.2)),
    (MUTED, 1.2, (6, 2, 1.5, 2)),
)


class Drawing(NamedTuple):
    """An SVG element, and a legend that HTML sets: each label with the SVG of its line."""

    svg: Markup
    legend: list[tuple[str, Markup]]


class Estimate(NamedTuple):
    """One line of an interval figure. A `tuned` value is drawn hollow, beside the honest one."""

    label: str
    value: float
    low: float
    high: float
    tuned: float | None = None
    strong: bool = False  # drawn in the accent colour


def roc_figure(name: str, y: ArrayLike, scores: Mapping[str, ArrayLike]) -> Drawing:
    """ROC curves of each of `scores` (n,), the first one stressed."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = _unit_axes(figure, "1 − specificity (false positive rate)", "sensitivity (true positive rate)")
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            axes.plot(*roc_points(y, s), color=colour, linewidth=width, dashes=dashes)
        return Drawing(page_svg(figure, name, f"ROC curves. {'; '.join(scores)}."), _legend(scores))


def precision_recall_figure(name: str, y: ArrayLike, scores: Mapping[str, ArrayLike]) -> Drawing:
    """Precision against recall for each of `scores` (n,), and the prevalence, which chance has."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = _unit_axes(figure, "recall (sensitivity)", "precision (positive predictive value)")
        axes.axhline(float(np.mean(np.asarray(y))), color=LINE, linewidth=1)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            points = precision_recall_points(y, s)
            axes.plot(*points, color=colour, linewidth=width, dashes=dashes, drawstyle="steps-pre")
        return Drawing(page_svg(figure, name, f"Precision-recall curves. {'; '.join(scores)}."), _legend(scores))


def interval_figure(name: str, estimates: Sequence[Estimate], *, axis: str, reference: float | None = None) -> Drawing:
    """Values with their intervals, one line each, top down; `reference` is a line through all of them."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(estimates))
        axes = label_axes(figure, len(estimates), axis)
        if reference is not None:
            axes.axvline(reference, color=ACCENT, linewidth=0.8, dashes=(3, 3))
        for row, entry in enumerate(estimates):
            colour = ACCENT if entry.strong else INK
            row_text(axes, row, entry.label, f"{entry.value:.4f}", strong=entry.strong)
            axes.plot([entry.low, entry.high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
            if entry.tuned is not None:
                axes.plot(entry.tuned, row, "o", markersize=6, markerfacecolor="none", markeredgecolor=MUTED)
            axes.plot(entry.value, row, "o", markersize=6.5, color=colour, markeredgewidth=0)
        axes.margins(x=0.04)
        return Drawing(page_svg(figure, name, f"{axis} with 95 % intervals. {'; '.join(map(_spoken, estimates))}."), [])


def bar_figure(name: str, values: Mapping[str, float], *, axis: str) -> Drawing:
    """Horizontal bars, top down."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(values))
        axes = label_axes(figure, len(values), axis)
        for row, (label, value) in enumerate(values.items()):
            row_text(axes, row, label, f"{value:.3f}")
        axes.barh(range(len(values)), list(values.values()), height=0.28, color=ACCENT)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(min(0.0, *values.values()), max(1e-3, *values.values()) * 1.02)
        return Drawing(
            page_svg(
                figure,
                name,
                f"{axis}. {'; '.join(f'{label} {value:.3f}' for label, value in values.items())}.",
            ),
            [],
        )


def roc_points(y: ArrayLike, s: ArrayLike) -> tuple[Floats, Floats]:
    """False and true positive rates, each (at most CURVE_POINTS,), from (0, 0) to (1, 1)."""
    false_positives, sensitivity, _ = roc_curve(y, s)
    return _thinned(false_positives, sensitivity)


def precision_recall_points(y: ArrayLike, s: ArrayLike) -> tuple[Floats, Floats]:
    """Recall and precision, each (at most CURVE_POINTS,), recall rising from 0: steps whose area is the AP.

    The precision at a point holds for the recall up to it, from the point before.
    """
    precision, recall, _ = precision_recall_curve(y, s)
    precision, recall = precision[::-1], recall[::-1]
    first = np.flatnonzero(np.diff(recall, prepend=-1) > 0)  # of each recall, the highest threshold
    recall, precision = recall[first], precision[first]
    precision[0] = precision[1]  # scikit-learn starts at precision 1, which no threshold has
    return _thinned(recall, precision)


def _thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """At most CURVE_POINTS of the vertices, at even distances along the curve; both ends stay."""
    if x.size > CURVE_POINTS:
        walked = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
        keep = np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], CURVE_POINTS)))
        x, y = x[keep], y[keep]
    return x, y


@contextmanager
def page_style() -> Iterator[None]:
    """Our settings instead of the user's while a figure is drawn: the same page on every machine."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        # The browser sets the text, in a font that has the letters which the one measured here may lack.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def blank_figure(*, height: float) -> Figure:
    """WIDTH × `height` inches, to be drawn on inside `page_style`."""
    return Figure(figsize=(WIDTH, height), layout="constrained")  # not pyplot: it keeps every figure


_STYLE: dict[Any, object] = {
    "svg.hashsalt": "dermstack",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be named "$\\alpha"
    "text.color": INK,
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
}


def page_svg(figure: Figure, name: str, alt: str) -> Markup:
    """The figure as an element of a page: ids of its own, the page's size, font and colours."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", file.getvalue(), flags=re.DOTALL)

    def adopt(tag: re.Match[str]) -> str:  # tags only: a label may hold any text
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])
        text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
        return re.sub("|".join(_COLOURS), lambda colour: _COLOURS[colour[0]], text)

    _, start, body = svg.partition("<svg")
    opening, _, inside = re.sub(r"<[^>]*>", adopt, start + body).partition(">")
    box = opening[opening.index("viewBox") :].split('"')[1]
    return Markup('<svg class="plot" role="img" aria-label="{}" viewBox="{}">').format(alt, box) + Markup(inside)


def _unit_axes(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(True)
    axes.set_axisbelow(True)
    return axes


def label_axes(figure: Figure, rows: int, axis: str) -> Axes:
    """Axes for lines with their labels above: names of any length then leave the width to the values."""
    axes = figure.subplots()
    axes.set(ylim=(rows - 0.65, -0.75), xlabel=axis)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    return axes


def row_text(axes: Axes, row: int, label: str, value: str, *, strong: bool = False) -> None:
    """The label above line `row` of `label_axes`, cut where it is long, and the value right of it."""
    short = label if len(label) <= _LABEL else label[: _LABEL - 1] + "…"
    weight = "bold" if strong else "normal"
    at = axes.get_yaxis_transform()
    axes.text(0, row - 0.27, short, transform=at, ha="left", va="bottom", weight=weight)
    axes.text(1.03, row, value, transform=at, ha="left", va="center_baseline", weight=weight)


def _spoken(entry: Estimate) -> str:
    tuned = "" if entry.tuned is None else f", tuned in-sample {entry.tuned:.4f}"
    return f"{entry.label} {entry.value:.4f}, {entry.low:.4f} to {entry.high:.4f}{tuned}"


def _styled(scores: Any) -> list[tuple[Any, Any]]:
    return [(_CURVES[min(i, len(_CURVES) - 1)], s) for i, s in enumerate(scores)]


def _legend(scores: Mapping[str, ArrayLike]) -> list[tuple[str, Markup]]:
    swatch = Markup(
        '<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">'
        '<path d="M0 4H28" style="fill: none; stroke: {}; stroke-width: {}; stroke-dasharray: {}"/></svg>'
    )
    return [
        (
            label,
            swatch.format(_COLOURS[colour], width, " ".join(str(d * width) for d in dashes if d) or "none"),
        )
        for (colour, width, dashes), label in _styled(scores)
    ]

"""Figures as SVG that a page takes in: drawn once, in the colours of the page, light, dark or paper."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def bar_figure(name: str, values: Mapping[str, float], *, axis: str, marks: Sequence[str] = ()) -> Drawing:
    """Horizontal bars, top down; ``marks`` stand behind the values."""
    with page_style():
        figure = blank_figure(height=0.75 + 0.46 * len(values))
        axes = label_axes(figure, len(values), axis)
        for row, (label, value) in enumerate(values.items()):
            row_text(axes, row, label, f"{value:.3f}{marks[row] if marks else ''}")
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


def swatch(colour: str, *, width: float = 2.0, dashes: Sequence[float] = (), shape: str = "line") -> Markup:
    """What a legend shows of a colour (INK, MUTED, LINE, ACCENT): a line, a "bar", or a "band" around a line."""
    drawn = {
        "line": '<path d="M0 4H28" style="fill: none; stroke: {0}; stroke-width: {1}; stroke-dasharray: {2}"/>',
        "bar": '<path d="M0 1H28V7H0Z" style="fill: {0}"/>',
        "band": '<path d="M0 0H28V8H0Z" style="fill: {0}; opacity: 0.25"/>',
    }[shape]
    dash = " ".join(str(part * width) for part in dashes) or "none"
    opening = Markup('<svg class="swatch" viewBox="0 0 28 8" aria-hidden="true">')
    return opening + Markup(drawn).format(_COLOURS[colour], width, dash) + Markup("</svg>")


def _spoken(entry: Estimate) -> str:
    bounds = f", {entry.low:.4f} to {entry.high:.4f}" if math.isfinite(entry.low) else ""
    tuned = "" if entry.tuned is None else f", tuned in-sample {entry.tuned:.4f}"
    return f"{entry.label} {entry.value:.4f}{bounds}{tuned}"

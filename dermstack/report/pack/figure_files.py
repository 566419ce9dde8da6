"""Writes a figure of the report as files for a paper: SVG, whose text stays text, and PDF with its font inside."""

from __future__ import annotations

import warnings
from pathlib import Path

import matplotlib
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dermstack.report.figures import Drawing, Swatch, page_style

FORMATS = ("svg", "pdf")
_LEGEND_LINE = 0.21  # inches that a line of the legend takes


def write_figure(drawn: Drawing, folder: Path, name: str, title: str) -> list[str]:
    """Writes ``folder``/``name``.svg and .pdf, with the legend inside; returns the characters that the font lacks.

    The page sets its legends as HTML, so here they are drawn below the axes. In the SVG a reader's font may have what
    matplotlib's lacks; in the PDF such a character is an empty box.
    """
    figure, lacking = drawn.figure, set()
    assert figure is not None, f"{name}: drawn for a page only"
    size, legend = figure.get_size_inches(), None
    with page_style(), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        matplotlib.rcParams["pdf.fonttype"] = 42  # TrueType, which journals ask for
        if drawn.legend:
            figure.set_size_inches(size[0], size[1] + _LEGEND_LINE * len(drawn.legend) + 0.1)
            handles = [_symbol(swatch) for _, swatch in drawn.legend]
            labels = [label for label, _ in drawn.legend]
            legend = figure.legend(
                handles, labels, loc="outside lower left", frameon=False, fontsize=9, handlelength=2.6
            )
        try:
            for form in FORMATS:
                # Without dates, so that the same run makes the same bytes.
                about = {"Date": None} if form == "svg" else {"CreationDate": None, "ModDate": None, "Title": title}
                figure.savefig(
                    folder / f"{name}.{form}", format=form, bbox_inches="tight", pad_inches=0.05, metadata=about
                )
        finally:
            if legend is not None:
                legend.remove()
            figure.set_size_inches(size[0], size[1])
    for warning in warned:
        if "missing from font" in str(warning.message):
            lacking.add(str(warning.message).split("(")[0].removeprefix("Glyph").strip())
    return sorted(lacking)


def _symbol(swatch: object) -> Artist:
    assert isinstance(swatch, Swatch), "a legend of the report has swatches"
    if swatch.shape == "line":
        return Line2D(
            [], [], color=swatch.colour, linewidth=swatch.width, alpha=swatch.opacity,
            dashes=swatch.dashes or (None, None),
        )  # fmt: skip
    return Patch(facecolor=swatch.colour, alpha=0.25 if swatch.shape == "band" else swatch.opacity, linewidth=0)

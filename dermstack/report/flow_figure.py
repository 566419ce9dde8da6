"""Draws the flow of the rows as a diagram for a paper; the page shows the same steps as a list."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dermstack.report.figures import INK, MUTED, WIDTH, Drawing, page_style
from dermstack.report.row_flow import Flow

NAME = "row-flow"
_LINE, _PAD, _GAP = 0.155, 0.09, 0.3  # inches: a line of text, the margin inside a box, between two boxes
_MAIN, _SIDE = 2.2, 1.85  # inches: widths of the boxes of steps and of those of excluded rows
_LETTER = 0.068  # inches that a letter takes on average, with a little to spare
_SIZE = 8.5  # points


class _Box(NamedTuple):
    """A text with the inches from the top of the figure where its box begins and ends."""

    text: str
    top: float
    bottom: float
    side: bool = False  # excluded rows, to the right


def flow_figure(flows: Sequence[Flow]) -> Drawing:
    """Draws one column of boxes for each table, the tables below each other; excluded rows leave to the right.

    The drawing is for files only: on the page the same words are text that a reader can select.
    """
    titles, columns, y = [], [], 0.0
    for flow in flows:
        titles.append((flow.name, y))
        boxes, y = _boxes(flow, y + _LINE + _PAD)
        columns.append(boxes)
        y += _GAP
    height = y - _GAP
    with page_style():
        figure = Figure(figsize=(WIDTH, height + 0.04))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(-0.02, WIDTH + 0.02), ylim=(height + 0.02, -0.02))
        axes.set_axis_off()
        for name, top in titles:
            axes.text(0, top, "\n".join(_lines(name, WIDTH)[:1]), weight="bold", va="top", fontsize=_SIZE + 1)
        for boxes in columns:
            _draw(axes, boxes)
    return Drawing(Markup(""), (), NAME, figure)


def _boxes(flow: Flow, y: float) -> tuple[list[_Box], float]:
    """Returns the boxes of one table from ``y`` inches on, and where the last one ends."""
    made = []
    for step in flow.steps:
        lines = _lines(f"{step.rows:,} {step.label}", _MAIN)
        made.append(_Box("\n".join(lines), y, y := y + 2 * _PAD + _LINE * len(lines)))
        if step.excluded:
            lost = [f"{sum(step.excluded.values()):,} excluded:"]
            for reason, number in step.excluded.items():
                lost += _lines(f"{number:,}: {reason}", _SIDE)
            start = y + _GAP / 2
            made.append(_Box("\n".join(lost), start, y := start + 2 * _PAD + _LINE * len(lost), side=True))
            y -= _GAP / 2
        y += _GAP
    return made, y - _GAP


def _lines(text: str, width: float) -> list[str]:
    return textwrap.wrap(text, int((width - 2 * _PAD) / _LETTER)) or [""]


def _draw(axes: Axes, boxes: Sequence[_Box]) -> None:
    middle, left = _MAIN / 2, WIDTH - _SIDE
    steps = [box for box in boxes if not box.side]
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
    for box, following in pairwise(steps):
        axes.annotate("", (middle, following.top), (middle, box.bottom), arrowprops=arrow)
    for box in boxes:
        x, width = (left, _SIDE) if box.side else (0.0, _MAIN)
        if box.side:
            level = (box.top + box.bottom) / 2
            axes.annotate("", (left, level), (middle, level), arrowprops=arrow)
        edge = {"color": MUTED, "linestyle": (0, (3, 2))} if box.side else {"color": INK}
        corners = [(x, box.top), (x + width, box.top), (x + width, box.bottom), (x, box.bottom), (x, box.top)]
        axes.plot(*zip(*corners, strict=True), linewidth=0.9, **edge)
        axes.text(
            x + _PAD, (box.top + box.bottom) / 2, box.text, va="center", fontsize=_SIZE, linespacing=_LINE * 72 / _SIZE
        )

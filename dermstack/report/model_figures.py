"""Figures about the models: what they live on, and how their studies went."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from dermstack.report.figures import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    Drawing,
    bar_figure,
    blank_figure,
    label_axes,
    page_style,
    page_svg,
    row_text,
    swatch,
)
from stack.tune.studies import StudyHistory

TOP = 20  # features that are shown of each stacker
_CLEAR = 0.3  # rank correlation from which a feature is said to raise or lower the logit
_SEEN = 5e-4  # what rounds to 0.001 or more
_AXIS = "mean size of what it adds to the logit"
_BARS = ((ACCENT, 1.0), (INK, 0.75), (MUTED, 0.6), (LINE, 1.0))  # colour, opacity


def block_figure(name: str, importance: pd.DataFrame) -> Drawing:
    """A bar for each stacker in each block of `importance.importance`, blocks by what they add in all."""
    blocks = importance[importance["of"] == "block"]
    sizes = blocks.pivot(index="name", columns="stacker", values="size").fillna(0.0)
    sizes = sizes.loc[sizes.mean(axis=1).sort_values(ascending=False).index, list(dict.fromkeys(blocks["stacker"]))]
    stackers, height = list(map(str, sizes)), 0.42 / len(sizes.columns)
    with page_style():
        figure = blank_figure(height=0.75 + 0.66 * len(sizes))
        axes = label_axes(figure, len(sizes), _AXIS)
        for row, (block, line) in enumerate(sizes.iterrows()):
            row_text(axes, row, str(block), "")
            for number, stacker in enumerate(stackers):
                colour, alpha = _BARS[min(number, len(_BARS) - 1)]
                middle = row - 0.16 + (number + 0.5) * height
                axes.barh(middle, float(line[stacker]), height=0.86 * height, color=colour, alpha=alpha, linewidth=0)
        axes.axvline(0, color=LINE, linewidth=1)
        axes.set_xlim(0, max(1e-3, float(sizes.to_numpy().max())) * 1.02)
        spoken = "; ".join(
            f"{block}: {', '.join(f'{stacker} {value:.3f}' for stacker, value in line.items())}"
            for block, line in sizes.iterrows()
        )
        legend = [(stacker, _bar(*_BARS[min(number, len(_BARS) - 1)])) for number, stacker in enumerate(stackers)]
        return Drawing(page_svg(figure, name, f"{_AXIS}, by kind of feature. {spoken}."), legend)


def feature_figure(name: str, importance: pd.DataFrame, stacker: str) -> Drawing:
    """The TOP features that one stacker uses; an arrow says whether more of a feature goes with a higher logit."""
    rows = importance[(importance["of"] == "feature") & (importance["stacker"] == stacker)]
    rows = rows[rows["size"] >= min(_SEEN, rows["size"].max())].head(TOP)
    marks = [" ↑" if trend > _CLEAR else " ↓" if trend < -_CLEAR else "" for trend in rows["trend"]]
    return bar_figure(name, dict(zip(rows["name"], rows["size"], strict=True)), axis=_AXIS, marks=marks)


def history_figure(name: str, studies: Sequence[StudyHistory], *, axis: str) -> Drawing:
    """The best value so far by trial of each study with a value; the one on all rows is stressed."""
    with page_style():
        figure = blank_figure(height=0.7 * 4.4)
        axes = figure.subplots()
        spoken = []
        for study in studies:
            trials = np.arange(1, len(study.values) + 1)
            whole = study.name.endswith("-without-none")
            colour, width, alpha = (ACCENT, 2.4, 1.0) if whole else (MUTED, 0.9, 0.7)
            axes.plot(trials, study.best_so_far, drawstyle="steps-post", color=colour, linewidth=width, alpha=alpha)
            spoken.append(f"{study.name} {study.best_so_far[-1]:.4f} after {len(trials)} trials")
        axes.set(xlabel="trial", ylabel=f"best {axis} so far")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True)
        axes.set_axisbelow(True)
        legend = [
            ("the study on all rows", swatch(ACCENT, width=2.4)),
            ("one without some folds, each", swatch(MUTED, width=0.9)),
        ]
        names = [study.name.endswith("-without-none") for study in studies]
        shown = [line for line, there in zip(legend, (any(names), not all(names)), strict=True) if there]
        return Drawing(page_svg(figure, name, f"Best {axis} by trial. {'; '.join(spoken)}."), shown)


def _bar(colour: str, alpha: float) -> Markup:
    return Markup('<span style="opacity: {}; display: inline-flex">{}</span>').format(
        alpha, swatch(colour, shape="bar")
    )

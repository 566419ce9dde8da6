"""Curves over a threshold: ROC, precision against recall, and what acting on a probability is worth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from dermstack.report.figures import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    Drawing,
    blank_figure,
    page_style,
    page_svg,
    swatch,
)

Floats = NDArray[np.float64]

CURVE_POINTS = 2_000  # vertices kept of a curve: less than a pixel apart, whatever the number of rows
FOLD_POINTS = 500  # of a curve within a fold, of which there may be many
_CURVES = (  # colour, width, dashes: curves differ in more than colour
    (ACCENT, 2.4, (None, None)),
    (INK, 1.4, (6, 2)),
    (MUTED, 1.8, (2, 1.2)),
    (MUTED, 1.2, (6, 2, 1.5, 2)),
)
_THIN: dict[str, Any] = {"color": ACCENT, "linewidth": 0.7, "alpha": 0.45}


def roc_figure(name: str, y: ArrayLike, scores: Mapping[str, ArrayLike], fold: ArrayLike | None = None) -> Drawing:
    """ROC curves of each of `scores` (n,), the first one stressed, and thin ones of it within each `fold` (n,)."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = _unit_axes(figure, "1 − specificity (false positive rate)", "sensitivity (true positive rate)")
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        for held, s in _by_fold(y, next(iter(scores.values())), fold):
            axes.plot(*roc_points(held, s, most=FOLD_POINTS), **_THIN)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            axes.plot(*roc_points(y, s), color=colour, linewidth=width, dashes=dashes)
        return Drawing(page_svg(figure, name, f"ROC curves. {'; '.join(scores)}."), _legend(scores, fold))


def precision_recall_figure(
    name: str, y: ArrayLike, scores: Mapping[str, ArrayLike], fold: ArrayLike | None = None
) -> Drawing:
    """Precision against recall as `roc_figure` draws it, and the prevalence, which chance has."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = _unit_axes(figure, "recall (sensitivity)", "precision (positive predictive value)")
        axes.axhline(float(np.mean(np.asarray(y))), color=LINE, linewidth=1)
        for held, s in _by_fold(y, next(iter(scores.values())), fold):
            axes.plot(*precision_recall_points(held, s, most=FOLD_POINTS), drawstyle="steps-pre", **_THIN)
        for (colour, width, dashes), s in reversed(_styled(scores.values())):
            points = precision_recall_points(y, s)
            axes.plot(*points, color=colour, linewidth=width, dashes=dashes, drawstyle="steps-pre")
        return Drawing(page_svg(figure, name, f"Precision-recall curves. {'; '.join(scores)}."), _legend(scores, fold))


def decision_figure(name: str, curve: pd.DataFrame) -> Drawing:
    """`net_benefit.decision_curve` with its interval, and the net benefit of acting on all and on nobody."""
    at = curve["threshold"].to_numpy()
    with page_style():
        figure = blank_figure(height=0.8 * WIDTH)
        axes = figure.subplots()
        axes.axhline(0, color=MUTED, linewidth=1.2, dashes=(2, 1.2))
        axes.plot(at, curve["treat_all"], color=INK, linewidth=1.4, dashes=(6, 2))
        axes.fill_between(at, curve["low"], curve["high"], color=ACCENT, alpha=0.2, linewidth=0)
        axes.plot(at, curve["net_benefit"], color=ACCENT, linewidth=2.4)
        top = float(max(curve["high"].max(), curve["treat_all"].max()))
        axes.set(xlim=(0, at[-1]), ylim=(-0.25 * top, 1.05 * top))
        axes.set(xlabel="threshold: the risk from which one acts", ylabel="net benefit")
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.grid(True)
        axes.set_axisbelow(True)
        shown = curve.iloc[np.linspace(0, len(curve) - 1, min(6, len(curve))).astype(int)].to_dict("records")
        spoken = "; ".join(
            f"at {line['threshold']:.1%} {line['net_benefit']:.4f}, acting on all {line['treat_all']:.4f}"
            for line in shown
        )
        legend = [
            ("act on the calibrated p, with its 95 % interval", swatch(ACCENT, width=2.4)),
            ("act on all", swatch(INK, width=1.4, dashes=(6, 2))),
            ("act on nobody", swatch(MUTED, width=1.2, dashes=(2, 1.2))),
        ]
        return Drawing(page_svg(figure, name, f"Net benefit by threshold. {spoken}."), legend)


def reliability_figure(name: str, table: pd.DataFrame, *, axis: str) -> Drawing:
    """`reliability.reliability`: the share of positives against what was told, with intervals, and the diagonal."""
    top = min(1.0, 1.06 * float(table[["p", "high"]].to_numpy().max()))
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = figure.subplots()
        axes.plot([0, top], [0, top], color=LINE, linewidth=1)
        axes.vlines(table["p"], table["low"], table["high"], color=ACCENT, linewidth=1.6)
        axes.plot(table["p"], table["share"], "o-", color=ACCENT, markersize=6, linewidth=1, markeredgewidth=0)
        axes.set(xlim=(0, top), ylim=(0, top), xlabel=axis, ylabel="share that was positive", aspect="equal")
        for scale in (axes.xaxis, axes.yaxis):
            scale.set_major_locator(MaxNLocator(5))
            scale.set_major_formatter(PercentFormatter(1, decimals=0 if top > 0.1 else 1))
        axes.grid(True)
        axes.set_axisbelow(True)
        spoken = "; ".join(
            f"told {line['p']:.1%}, seen {line['share']:.1%}, {line['low']:.1%} to {line['high']:.1%}"
            for line in table.to_dict("records")
        )
        return Drawing(page_svg(figure, name, f"Reliability. {spoken}."), [])


def roc_points(y: ArrayLike, s: ArrayLike, *, most: int = CURVE_POINTS) -> tuple[Floats, Floats]:
    """False and true positive rates, each (at most `most`,), from (0, 0) to (1, 1)."""
    false_positives, sensitivity, _ = roc_curve(y, s)
    return _thinned(false_positives, sensitivity, most)


def precision_recall_points(y: ArrayLike, s: ArrayLike, *, most: int = CURVE_POINTS) -> tuple[Floats, Floats]:
    """Recall and precision, each (at most `most`,), recall rising from 0: steps whose area is the AP.

    The precision at a point holds for the recall up to it, from the point before.
    """
    precision, recall, _ = precision_recall_curve(y, s)
    precision, recall = precision[::-1], recall[::-1]
    first = np.flatnonzero(np.diff(recall, prepend=-1) > 0)  # of each recall, the highest threshold
    recall, precision = recall[first], precision[first]
    precision[0] = precision[1]  # scikit-learn starts at precision 1, which no threshold has
    return _thinned(recall, precision, most)


def _thinned(x: Floats, y: Floats, most: int) -> tuple[Floats, Floats]:
    """At most `most` of the vertices, at even distances along the curve; both ends stay."""
    if x.size > most:
        walked = np.cumsum(np.abs(np.diff(x, prepend=x[0])) + np.abs(np.diff(y, prepend=y[0])))
        keep = np.unique(np.searchsorted(walked, np.linspace(0, walked[-1], most)))
        x, y = x[keep], y[keep]
    return x, y


def _unit_axes(figure: Figure, x: str, y: str) -> Axes:
    axes = figure.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1.005), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.grid(True)
    axes.set_axisbelow(True)
    return axes


def _by_fold(y: ArrayLike, s: ArrayLike, fold: ArrayLike | None) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Targets and scores within each fold that holds both classes."""
    y, s = np.asarray(y), np.asarray(s)
    for k in [] if fold is None else np.unique(np.asarray(fold)):
        held = np.asarray(fold) == k
        if 0 < y[held].sum() < held.sum():
            yield y[held], s[held]


def _styled(scores: Any) -> list[tuple[Any, Any]]:
    return [(_CURVES[min(i, len(_CURVES) - 1)], s) for i, s in enumerate(scores)]


def _legend(scores: Mapping[str, ArrayLike], fold: ArrayLike | None) -> list[tuple[str, Markup]]:
    lines = [
        (label, swatch(colour, width=width, dashes=[dash for dash in dashes if dash]))
        for (colour, width, dashes), label in _styled(scores)
    ]
    return lines if fold is None else [*lines, ("the first, within each fold", swatch(ACCENT, width=0.7))]

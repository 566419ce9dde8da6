"""Figures of external validation: what was found, beside what training promised."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup
from numpy.typing import ArrayLike

from dermstack.report.curves import roc_points
from dermstack.report.figures import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    Drawing,
    Estimate,
    blank_figure,
    interval_figure,
    page_style,
    page_svg,
)
from stack.metrics.validation import PointOutcome, Validation

FOUND, PROMISED = Markup('<span class="dot found"></span>'), Markup('<span class="dot hollow"></span>')


def promise_figure(name: str, found: Validation) -> Drawing:
    """The AUC of these rows under that of training, each with its interval."""
    here, promised = found.found.auc, found.promise.measures.auc
    estimates = [
        Estimate("promised by training", promised.value, promised.low, promised.high),
        Estimate("found on these images", here.value, here.low, here.high, strong=True),
    ]
    return interval_figure(name, estimates, axis="AUC", reference=promised.value)


def threshold_roc_figure(name: str, y: ArrayLike, score: ArrayLike, points: Sequence[PointOutcome]) -> Drawing:
    """The ROC curve of scores (n,) and, joined by a line, where each threshold stood in training and stands here."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = figure.subplots()
        axes.set(xlim=(0, 1), ylim=(0, 1.005), aspect="equal")
        axes.set(xlabel="1 − specificity (false positive rate)", ylabel="sensitivity (true positive rate)")
        axes.grid(True)
        axes.set_axisbelow(True)
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        axes.plot(*roc_points(y, score), color=ACCENT, linewidth=2.4)
        spoken = []
        for point in points:
            (x0, y0), (x1, y1) = (
                (1 - of.specificity.value, of.sensitivity.value) for of in (point.promised, point.found)
            )
            axes.plot([x0, x1], [y0, y1], color=MUTED, linewidth=1)
            axes.plot(x0, y0, "o", markersize=6.5, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
            axes.plot(x1, y1, "o", markersize=6.5, color=ACCENT, markeredgewidth=0, clip_on=False)
            spoken.append(
                f"fixed at {point.promised.aim} {point.promised.level:.0%}: "
                f"sensitivity {y0:.3f} promised, {y1:.3f} found, specificity {1 - x0:.3f} promised, {1 - x1:.3f} found"
            )
        legend = [("in training, at a threshold fixed there", PROMISED), ("here, at the same threshold", FOUND)]
        return Drawing(page_svg(figure, name, f"ROC curve. {'; '.join(spoken)}."), legend)

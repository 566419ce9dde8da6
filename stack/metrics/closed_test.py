"""Chooses by a closed test how to recalibrate risks: not at all, their level, or level and slope (Vergouwe 2017).

Vergouwe et al., "A closed testing procedure to select an appropriate method for updating prediction models", Statistics
in Medicine 36 (2017): the largest update is compared with none first, and only if it is better beyond chance with the
smaller ones. So risks that are right are changed in at most 5 of 100 samples, whatever the number of steps, and few
labels change nothing. Rows come in groups: likelihood ratios are divided by the largest design effect of the scores in
any direction (Rao & Scott 1984; their mean effect rejects too often where level and slope differ in theirs), at least
1, and compared with an F distribution, whose denominator counts the groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, fdtrc, stdtrit

from dermstack.errors import DataError
from stack.metrics.calibration import EDGE, Recalibration, is_separated, recalibration
from stack.metrics.intervals import Interval
from stack.metrics.measures import check_classes
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.metrics.row_values import varies
from stack.metrics.scores import Bools, Floats, checked, losses

NONE, LEVEL, SLOPE = "none", "intercept", "slope"  # slope: intercept and slope together
ALPHA = 0.05


@dataclass(frozen=True)
class ClosedTest:
    """Result of `closed_test`: logit of the new risk = slope · logit of the old one + intercept."""

    chosen: str  # NONE, LEVEL or SLOPE
    slope: float
    intercept: float
    p_any: float  # that the risks are right as they are, against another level and slope
    p_slope: float  # that another level is enough; NaN where the first test does not reject, or no slope can be fitted
    design_effect: float  # of the first test, by groups; at least 1
    level_found: Interval  # constant to add to every logit, whichever is chosen
    slope_found: Interval  # factor of the logits, whichever is chosen; NaN where none can be fitted

    @property
    def reverses(self) -> bool:
        """Whether the update would turn the order of the rows round, as where labels are inverted."""
        return self.slope <= 0


def closed_test(y: ArrayLike, p: ArrayLike, group: ArrayLike, *, alpha: float = ALPHA) -> ClosedTest:
    """Chooses the update of risks ``p`` (n,) for targets ``y`` (n,) of rows in groups (n,).

    Where ``p`` separates the classes or is the same in every row, only the level is tested. Raises DataError as
    `check_classes` does.
    """
    check_classes(y, group, purpose="recalibration")
    positive, risks = checked(y, p)
    x = clipped_logit(risks, clip_limits(risks, EDGE))
    codes = pd.factorize(np.asarray(group, dtype=object))[0]
    found = recalibration(positive, risks, group)
    level = found.in_the_large.value
    loss = [_loss(positive, x), _loss(positive, x + level)]
    has_slope = varies(risks) and not is_separated(x, positive)
    if has_slope:
        loss.append(_loss(positive, found.slope.value * x + found.intercept))
    best = expit(found.slope.value * x + found.intercept if has_slope else x + level)
    design = np.stack([np.ones(len(x)), x])[: 2 if has_slope else 1]
    effect = _design_effect(design, best, positive, codes)
    groups = int(codes.max()) + 1
    intervals = _intervals(found, x, positive, codes)
    p_any = _p_value(2 * (loss[0] - loss[-1]), len(design), effect, groups)
    p_slope = np.nan
    if p_any >= alpha:
        return ClosedTest(NONE, 1.0, 0.0, p_any, p_slope, effect, *intervals)
    if has_slope:
        moved = expit(x + level)
        weight = moved * (1 - moved)
        beside_level = x - (weight @ x) / weight.sum()  # what the slope adds to a fitted level
        of_slope = _design_effect(beside_level[None], best, positive, codes)
        p_slope = _p_value(2 * (loss[1] - loss[2]), 1, of_slope, groups)
        if p_slope < alpha:
            return ClosedTest(SLOPE, found.slope.value, found.intercept, p_any, p_slope, effect, *intervals)
    return ClosedTest(LEVEL, 1.0, level, p_any, p_slope, effect, *intervals)


def _loss(positive: Bools, logits: Floats) -> float:
    return float(losses(positive, expit(logits)).sum())


def _design_effect(design: Floats, p: Floats, positive: Bools, group: NDArray[np.intp]) -> float:
    """Returns by how much groups inflate the variance of the scores of ``design`` (k, n); at least 1.

    ``p`` (n,) are the risks of the largest update: those of a smaller one would count its misfit as clustering.
    """
    groups = int(group.max()) + 1
    if groups == len(group):
        return 1.0
    of_groups = np.stack([np.bincount(group, row * (positive - p), groups) for row in design])
    between = groups / (groups - 1) * of_groups @ of_groups.T
    within = (design * (p * (1 - p))) @ design.T
    return max(1.0, float(np.linalg.eigvals(np.linalg.solve(within, between)).real.max()))


def _intervals(found: Recalibration, x: Floats, positive: Bools, group: NDArray[np.intp]) -> tuple[Interval, Interval]:
    """Returns level and slope with intervals that hold for few groups, too.

    The standard error is the larger of that of estimating equations, which is too small where few groups have a
    positive row, and that of independent rows; the quantile is Student's, for the groups with the rarer class.
    """
    degrees = min(len(np.unique(group[rows])) for rows in (positive, ~positive)) - 1
    quantile = float(stdtrit(degrees, 0.975))

    def wide(of: Interval, variance: float) -> Interval:
        se = max(of.se, float(np.sqrt(variance)))
        return Interval(of.value, of.value - quantile * se, of.value + quantile * se, se)

    p = expit(x + found.in_the_large.value)
    level = wide(found.in_the_large, 1 / float((p * (1 - p)).sum()))
    if not np.isfinite(found.slope.value):
        return level, found.slope
    p = expit(found.slope.value * x + found.intercept)
    design = np.stack([np.ones(len(x)), x])
    return level, wide(found.slope, float(np.linalg.inv((design * (p * (1 - p))) @ design.T)[1, 1]))


def _p_value(ratio: float, df: int, effect: float, groups: int) -> float:
    if groups < 2:
        raise DataError("all rows are of one group: a test needs at least two groups, add rows of other groups")
    return float(fdtrc(df, groups - 1, max(ratio, 0.0) / (df * effect)))

"""How far probabilities lie off what happened: logistic recalibration, with intervals by group."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from stack.errors import DataError
from stack.metrics.curve import Bools, Floats, checked
from stack.metrics.intervals import Interval
from stack.metrics.proportion import Z95

_EDGE = 1e-9  # a probability nearer to 0 or 1 is taken as this near


@dataclass(frozen=True)
class Recalibration:
    """Cox's two questions (1958) to probabilities: are they too high or low on average, and too bold or timid?"""

    in_the_large: Interval  # what must be added to every logit; 0 is right, above 0 the risks were too low
    slope: Interval  # what the logits must be multiplied by; 1 is right, below 1 they were too bold
    intercept: float  # what is added beside the slope


def recalibration(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> Recalibration:
    """Fit targets `y` (n,) on the logits of `p` (n,), by maximum likelihood.

    Intervals are those of estimating equations with independent groups (Liang & Zeger 1986). The slope and its
    intercept are NaN where `p` parts the classes or is the same for every row. Raises DataError for a single class
    and for fewer than two groups.
    """
    positive, p = checked(y, p)
    if positive.all() or not positive.any():
        raise DataError(f"a single class: all {positive.size} rows are {'positive' if positive[0] else 'negative'}")
    codes, _ = pd.factorize(np.asarray(group, dtype=object))
    if codes.max() == 0:
        raise DataError("all rows are of one group: an interval needs two")
    x: Floats = logit(np.clip(p.astype(np.float64), _EDGE, 1 - _EDGE))
    ones = np.ones((1, x.size))
    shift, shift_variance = _fit(ones, x, positive, codes)
    in_the_large = _interval(shift[0], shift_variance[0, 0])
    if _is_parted(x, positive):
        return Recalibration(in_the_large, Interval(np.nan, np.nan, np.nan, np.nan), np.nan)
    centre, spread = x.mean(), x.std()
    line, variance = _fit(np.stack([np.ones(x.size), (x - centre) / spread]), np.zeros(x.size), positive, codes)
    slope = line[1] / spread
    return Recalibration(in_the_large, _interval(slope, variance[1, 1] / spread**2), float(line[0] - slope * centre))


def _fit(design: Floats, offset: Floats, positive: Bools, group: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Coefficients (k,) of a logistic model of ``design`` (k, n), and their covariance under sampling of groups."""

    def loss(at: Floats) -> tuple[float, Floats]:
        z = at @ design + offset
        return float(np.mean(np.logaddexp(0, z) - positive * z)), design @ (expit(z) - positive) / positive.size

    def curvature(at: Floats) -> Floats:
        p = expit(at @ design + offset)
        hessian: Floats = (design * (p * (1 - p))) @ design.T / positive.size
        return hessian

    start = np.zeros(len(design))
    found: Floats = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    groups = int(group.max()) + 1
    residual = positive - expit(found @ design + offset)
    of_groups = np.stack([np.bincount(group, row * residual, groups) for row in design])
    bread = np.linalg.inv(curvature(found) * positive.size)
    return found, groups / (groups - 1) * bread @ of_groups @ of_groups.T @ bread


def _is_parted(x: Floats, positive: Bools) -> bool:
    """Whether no finite slope is the likeliest one, or every one is."""
    above, below = x[positive], x[~positive]
    return bool(above.min() >= below.max() or above.max() <= below.min())


def _interval(value: float, variance: float) -> Interval:
    se = float(np.sqrt(max(variance, 0.0)))
    return Interval(float(value), float(value - Z95 * se), float(value + Z95 * se), se)

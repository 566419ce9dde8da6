"""Calibration metrics of probabilities: reliability table, summary scores and logistic recalibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from dermstack.errors import DataError
from stack.metrics.intervals import GIVE_GROUPS, Interval, normal_interval, proportion
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.metrics.row_values import varies
from stack.metrics.scores import (
    Bools,
    Floats,
    brier,
    check_same_order,
    checked,
    expected_calibration_error,
    log_loss,
    raise_for_rows,
)

EDGE = 1e-9  # probabilities are clipped at least this far from 0 and 1, so that their logits are finite


def reliability(y: ArrayLike, p: ArrayLike, split_group: ArrayLike, *, bins: int = 10) -> pd.DataFrame:
    """Returns the reliability table of `p` (n,): for each bin of similar `p`, the share of positives.

    Columns: p (the bin's mean), share, low, high, rows, positives. The bins have about equal sums of `p`, that is,
    equal expected positives: at a prevalence of 2 %, bins of equal size would put all relevant rows into the last one.
    Rows of equal `p` share a bin, so there may be fewer than `bins`. The interval is that of `proportion` over
    split_groups (n,), which has a width where a bin has no positive.
    """
    positive, p = checked(y, p)
    group, _ = pd.factorize(np.asarray(split_group, dtype=object))
    bin_of = _equal_expected_bins(np.asarray(p, np.float64), bins)
    records = []
    for number in range(int(bin_of.max()) + 1):
        rows = bin_of == number
        share = proportion(positive[rows], group[rows])
        bounds = (share.value, share.low, share.high)
        records.append([float(p[rows].mean()), *bounds, int(rows.sum()), int(positive[rows].sum())])
    return pd.DataFrame(records, columns=["p", "share", "low", "high", "rows", "positives"])


def calibration_scores(y: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """Returns calibration scores of probabilities `p` (n,): mean p, slope, ece (bins of equal mass), brier, log loss.

    The slope of a logistic regression of the targets on logit(p) is 1 where p is calibrated and below 1 where p is
    overconfident (Cox 1958).
    """
    positive, p = checked(y, p)
    x = clipped_logit(p, clip_limits(p, EDGE))[:, None]
    slope = float(LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x, positive).coef_[0, 0])
    return {
        "mean p": float(np.mean(p)),
        "slope": slope,
        "ece": expected_calibration_error(positive, p),
        "brier": brier(positive, p),
        "log loss": log_loss(positive, p),
    }


def _equal_expected_bins(p: Floats, bins: int) -> NDArray[np.intp]:
    """Returns each row's bin (n,), numbered from 0 to at most bins - 1 without gaps."""
    values, value_index = np.unique(p, return_inverse=True)
    expected = np.bincount(value_index, p)
    total = expected.sum()
    # A value is placed by the middle of its share: a value of many rows goes to the bin that covers most of it.
    middle = (np.cumsum(expected) - expected / 2) / total if total > 0 else np.zeros(len(values))
    of_value = np.minimum((middle * bins).astype(np.intp), bins - 1)
    return np.unique(of_value, return_inverse=True)[1][value_index]


@dataclass(frozen=True)
class Recalibration:
    """Logistic recalibration of probabilities (Cox 1958): their bias on average and their over- or underconfidence."""

    in_the_large: Interval  # constant to add to every logit: 0 if calibrated, above 0 if the risks are too low
    slope: Interval  # factor of the logits: 1 if calibrated, below 1 if the risks are too extreme
    intercept: float  # constant to add together with the slope


def recalibration(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> Recalibration:
    """Fits a logistic regression of targets `y` (n,) on the logits of `p` (n,), by maximum likelihood.

    Intervals are those of estimating equations with independent groups (Liang & Zeger 1986). Slope and intercept are
    NaN where `p` separates the classes or is the same for every row. Raises DataError for a single class and for fewer
    than two groups.
    """
    check_same_order(y=y, p=p, group=group)
    positive, p = checked(y, p)
    if positive.all() or not positive.any():
        raise DataError(f"a single class: all {positive.size} rows are {'positive' if positive[0] else 'negative'}")
    codes, _ = pd.factorize(np.asarray(group, dtype=object))
    raise_for_rows(codes < 0, np.asarray(group, dtype=object), "groups are missing", GIVE_GROUPS)
    if codes.max() == 0:
        raise DataError("all rows are of one group: an interval needs at least two groups, add rows of other groups")
    x = clipped_logit(p, clip_limits(p, EDGE))
    ones = np.ones((1, x.size))
    shift, shift_variance = _fit(ones, x, positive, codes)
    in_the_large = normal_interval(shift[0], shift_variance[0, 0])
    if is_separated(x, positive) or not varies(p):
        return Recalibration(in_the_large, Interval(np.nan, np.nan, np.nan, np.nan), np.nan)
    centre, spread = x.mean(), x.std()
    line, variance = _fit(np.stack([np.ones(x.size), (x - centre) / spread]), np.zeros(x.size), positive, codes)
    slope = line[1] / spread
    return Recalibration(
        in_the_large, normal_interval(slope, variance[1, 1] / spread**2), float(line[0] - slope * centre)
    )


def _fit(design: Floats, offset: Floats, positive: Bools, group: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Returns coefficients (k,) of a logistic model of ``design`` (k, n) and their covariance for sampled groups."""

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = theta @ design + offset
        return float(np.mean(np.logaddexp(0, z) - positive * z)), design @ (expit(z) - positive) / positive.size

    def curvature(theta: Floats) -> Floats:
        p = expit(theta @ design + offset)
        hessian: Floats = (design * (p * (1 - p))) @ design.T / positive.size
        return hessian

    start = np.zeros(len(design))
    found: Floats = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10}).x
    groups = int(group.max()) + 1
    residual = positive - expit(found @ design + offset)
    of_groups = np.stack([np.bincount(group, row * residual, groups) for row in design])
    bread = np.linalg.inv(curvature(found) * positive.size)
    return found, groups / (groups - 1) * bread @ of_groups @ of_groups.T @ bread


def is_separated(x: Floats, positive: Bools) -> bool:
    """Returns whether the likelihood has no unique finite maximum in the slope."""
    above, below = x[positive], x[~positive]
    return bool(above.min() >= below.max() or above.max() <= below.min())

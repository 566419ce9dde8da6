"""Tests whether the fold nets of a run differ in scale more than the rows that they predict explain.

Each fold net predicts the rows of its own fold only. Its predictions differ from those of the other nets because the
nets differ in scale, which must be removed, and because the rows differ (a fold with more positives has higher risks),
which must stay: a scale from each net's own rows alone removes both. The rows of folds that are dealt by group differ
by chance, and the groups within each net show by how much. No targets are used.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from stack.metrics.intervals import midranks

Floats = NDArray[np.float64]
_LEAST_VARIANCE = 1e-12  # of an estimate from constant values, so that its weight is finite


def nets_differ(values: ArrayLike, nets: ArrayLike, groups: ArrayLike) -> bool:
    """Returns whether each net needs a scale of its own: values (n,), the net of each (n,), and each row's group (n,).

    The nets differ where the statistic of `scale_differences` exceeds twice its degrees of freedom: then the variance
    between nets exceeds that of the rows, and a common scale loses more than scales of their own. Where fewer than two
    nets can be compared, the answer is True.
    """
    statistic, freedom = scale_differences(values, nets, groups)
    return not freedom or statistic > 2 * freedom


def scale_differences(values: ArrayLike, nets: ArrayLike, groups: ArrayLike) -> tuple[float, int]:
    """Returns how much nets differ in scale beyond their rows, and its degrees of freedom, the mean where none differ.

    Compared are location and spread (log standard deviation) of normal scores, the normal quantiles of the ranks among
    all nets, which a few extreme values do not move. The statistic is the sum of Cochran's Q of both, the sum of
    squared differences in units of their variances for rows in groups. Nets with rows of fewer than two groups are not
    compared; both numbers are 0 where fewer than two nets can be.
    """
    nets, groups = np.asarray(nets), np.unique(np.asarray(groups), return_inverse=True)[1]
    score = ndtri((midranks(np.asarray(values, dtype=np.float64)) - 0.5) / max(len(nets), 1))
    masks = [nets == net for net in np.unique(nets)]
    measured = [_moments(score[rows], groups[rows]) for rows in masks if len(np.unique(groups[rows])) > 1]
    if len(measured) < 2:
        return 0.0, 0
    mean, mean_variance, log_spread, log_spread_variance = np.array(measured).T
    return _q(mean, mean_variance) + _q(log_spread, log_spread_variance), 2 * (len(measured) - 1)


def _moments(score: Floats, group: NDArray[np.intp]) -> tuple[float, float, float, float]:
    """Returns mean and log standard deviation of scores (n,), each followed by its variance for rows in groups."""
    mean, spread = score.mean(), max(float(score.std()), 1e-6)
    deviation = score - mean
    return (
        float(mean),
        _cluster_variance(deviation, group),
        float(np.log(spread)),
        _cluster_variance(((deviation / spread) ** 2 - 1) / 2, group),
    )


def _cluster_variance(influence: Floats, group: NDArray[np.intp]) -> float:
    """Returns the variance of an estimate from the influence (n,) of each row, for rows of two groups or more."""
    _, code = np.unique(group, return_inverse=True)
    sums = np.bincount(code, influence)
    variance = float((sums**2).sum()) / len(influence) ** 2 * len(sums) / (len(sums) - 1)
    return max(variance, _LEAST_VARIANCE)


def _q(estimate: Floats, variance: Floats) -> float:
    centre = (estimate / variance).sum() / (1 / variance).sum()
    return float(((estimate - centre) ** 2 / variance).sum())

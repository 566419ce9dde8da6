"""Standard errors of AUCs and of their differences in closed form, for rows that come in groups."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr
from scipy.stats import rankdata

from stack.errors import DataError
from stack.metrics.intervals import Interval

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class ClusteredAUC:
    """AUCs of c scores on the same rows, and their (c, c) covariance under sampling of whole groups."""

    auc: NDArray[np.float64]  # (c,)
    covariance: NDArray[np.float64]  # (c, c)

    def interval(self, number: int = 0) -> Interval:
        """AUC of one score with its 95 % interval."""
        return _interval(float(self.auc[number]), float(self.covariance[number, number]))

    def difference(self, a: int = 0, b: int = 1) -> tuple[Interval, float]:
        """AUC of `a` less that of `b` with its 95 % interval, and the two-sided p-value of no difference.

        Two scores that order the rows alike differ by nothing, for sure: p is 1.
        """
        variance = self.covariance[a, a] + self.covariance[b, b] - 2 * self.covariance[a, b]
        value = float(self.auc[a] - self.auc[b])
        if variance <= 1e-18:  # what rounding leaves of zero
            return Interval(value, value, value, 0.0), float(value == 0)
        return _interval(value, float(variance)), float(2 * ndtr(-abs(value) / np.sqrt(variance)))


def clustered_auc(y: ArrayLike, scores: ArrayLike, split_group: ArrayLike) -> ClusteredAUC:
    """AUCs of ``scores`` (n,) or (n, c) on targets ``y`` (n,), rows of a ``split_group`` (n,) not independent.

    O(n log n) for each score: the structural components of DeLong, DeLong & Clarke-Pearson (1988) by midranks (Sun & Xu
    2014), summed within groups as Obuchowski (1997) does, whose covariance also holds the term between a group's
    positives and its negatives. Raises DataError where fewer than two groups hold a class.
    """
    positive = np.asarray(y) == 1
    columns = np.asarray(scores, dtype=np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if not np.isfinite(columns).all():
        raise DataError(f"{int((~np.isfinite(columns)).any(axis=1).sum())} rows have a score that is no number")
    group, _ = pd.factorize(np.asarray(split_group, dtype=object))
    n_groups = int(group.max(initial=-1)) + 1
    counts = [np.bincount(group[rows], minlength=n_groups) for rows in (positive, ~positive)]
    holding = [int((count > 0).sum()) for count in counts]
    if min(holding) < 2:
        raise DataError(
            f"{holding[0]} groups hold positives and {holding[1]} negatives: two of each are needed for an interval"
        )
    parts = [components(column, positive) for column in columns.T]
    auc = np.array([above.mean() for above, _ in parts])
    # Sums over a group of how far its rows stand from the mean: (c, groups), for its positives and its negatives.
    of_positives, of_negatives = (
        np.stack([np.bincount(group[rows], part[side], n_groups) for part in parts]) - auc[:, None] * count
        for side, rows, count in ((0, positive, counts[0]), (1, ~positive, counts[1]))
    )
    m, n = positive.sum(), (~positive).sum()
    covariance = (
        holding[0] / (holding[0] - 1) * of_positives @ of_positives.T / m**2
        + holding[1] / (holding[1] - 1) * of_negatives @ of_negatives.T / n**2
    )
    between = n_groups / (n_groups - 1) * of_positives @ of_negatives.T / (m * n)
    return ClusteredAUC(auc, covariance + between + between.T)


def components(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Of scores (n,): for each positive the share of negatives below it, for each negative that of positives above it.

    Ties count half. The variances of both, each by its number of rows, add up to that of the AUC of rows on their own.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    whole = rankdata(score)
    among_positives, among_negatives = rankdata(score[positive]), rankdata(score[~positive])
    return [(whole[positive] - among_positives) / n, 1 - (whole[~positive] - among_negatives) / m]


def _interval(value: float, variance: float) -> Interval:
    se = float(np.sqrt(max(variance, 0.0)))
    return Interval(value, value - _Z95 * se, value + _Z95 * se, se)

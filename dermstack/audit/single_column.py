"""Measures how well one column alone predicts a binary target: AUCs, and p-values that allow for groups."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm, rankdata
from sklearn.tree import DecisionTreeClassifier

from dermstack.errors import DataError
from stack.metrics.intervals import Interval, clustered_auc
from stack.metrics.scores import Floats, auc

FALSE_ALARM_RATE = 0.01  # share of clean data sets with a false alarm of one kind, over all its comparisons
BINS = 10  # quantile bins of a number, for associations of any shape
_MAX_LEVELS = 20  # the most frequent levels of a text column are kept; all others are one level
_MIN_ROWS = 10  # minimum rows of a kept level, and of a leaf of the tree
_PRIOR_ROWS = 2  # pseudo-rows with the average rate that are added to each level


@dataclass(frozen=True)
class _Scores:
    """Scores of rows with their targets and groups."""

    y: NDArray[np.generic]
    s: Floats
    group: NDArray[np.object_]

    @cached_property
    def auc(self) -> float:
        return auc(self.y, self.s)

    @cached_property
    def interval(self) -> Interval:
        return column_auc(self.y, self.s, self.group)


@dataclass(frozen=True)
class ColumnAssociation:
    """Association of one column with a binary target: AUCs with intervals by group, p-value of no association.

    Intervals are computed when they are asked for, since of hundreds of columns few are shown.
    """

    name: str
    of_ranks: _Scores | None  # the values themselves; None for words
    fitted: _Scores  # the rate of positives at this value in the other folds
    p: float  # corrected for both tests; multiply it by the number of columns tested

    @property
    def rank_auc(self) -> Interval | None:
        """AUC of the values themselves; None for words."""
        return self.of_ranks.interval if self.of_ranks else None

    @property
    def fitted_auc(self) -> Interval:
        """AUC of the rate of positives at this value in the other folds: any shape."""
        return self.fitted.interval

    @property
    def strength(self) -> float:
        """The larger AUC; for the values themselves the larger of AUC and 1 − AUC."""
        return max(self._rank_strength, self.fitted.auc)

    @property
    def _rank_strength(self) -> float:
        return max(self.of_ranks.auc, 1 - self.of_ranks.auc) if self.of_ranks else 0.5

    def __str__(self) -> str:
        if self.rank_auc is None or self.fitted.auc > self._rank_strength:
            return f"AUC {self.fitted_auc}, out of fold"
        if self.rank_auc.value < 0.5:
            return f"AUC {mirrored(self.rank_auc)}, positives are smaller"
        return f"AUC {self.rank_auc}"


def column_auc(y: ArrayLike, s: ArrayLike, group: ArrayLike) -> Interval:
    """Returns the AUC of one column's scores (n,) with its 95 % interval over groups, for audit and EDA alike.

    The interval is that of `clustered_auc`, without what lies beyond 0 and 1; NaN where fewer than two groups have a
    class.
    """
    value = auc(y, s)
    try:
        found = clustered_auc(y, s, group).interval()
    except DataError:
        return Interval(value, np.nan, np.nan, np.nan)
    return Interval(value, max(found.low, 0.0), min(found.high, 1.0), found.se)


def mirrored(found: Interval) -> Interval:
    """Returns the AUC and interval of the negated scores."""
    return Interval(1 - found.value, 1 - found.high, 1 - found.low, found.se)


def column_association(
    name: str, values: pd.Series, y: ArrayLike, fold: ArrayLike, group: ArrayLike
) -> ColumnAssociation:
    """Measures how well ``values`` (n,), numbers or words, rank ``y`` (n,) of 0 and 1; ``fold`` and ``group`` (n,).

    Whole groups must be in one fold, so that a value which identifies a group does not predict rows of other groups.
    Missing values count as a value in `fitted_auc` and are left out of `rank_auc`. Raises DataError if fewer than two
    groups have a 1.
    """
    y, fold, group = np.asarray(y), np.asarray(fold), np.asarray(group, dtype=object)
    values = values.reset_index(drop=True)
    if (holding := len(np.unique(group[y == 1]))) < 2:
        raise DataError(f"{name}: {holding} groups hold positives: an interval needs two, so add positive rows")
    fitted = _Scores(y, out_of_fold_rates(values, y, fold), group)
    p_values = [association_p(y, one_hot(values), group)]
    of_ranks = None
    if pd.api.types.is_numeric_dtype(values):
        known = values.notna().to_numpy()
        number = values.to_numpy(np.float64, na_value=np.nan)
        p_values.append(association_p(y[known], rankdata(number[known]), group[known]))
        if len(np.unique(group[known & (y == 1)])) > 1 and (known & (y == 0)).any():
            of_ranks = _Scores(y[known], number[known], group[known])
    return ColumnAssociation(name, of_ranks, fitted, min(1.0, len(p_values) * min(p_values)))


def association_p(y: ArrayLike, x: ArrayLike, group: ArrayLike) -> float:
    """Returns the p-value of no association of ``y`` (n,) of 0 and 1 with any column of ``x`` (n,) or (n, k).

    The score test of a logistic regression, with the covariance of the groups' scores under the null hypothesis (Boos
    1992, Rotnitzky & Jewell 1990), so that rows of a group may depend on each other. It needs no variance within a
    class, which would be zero for a few similar positives. Its statistic is at most the number of groups: with few
    groups the test is conservative.
    """
    by_group = _score_contributions(y, x, group)
    total = by_group.sum(axis=0)
    spread, eigenvectors = np.linalg.eigh(by_group.T @ by_group)
    kept = spread > 1e-9 * max(spread.max(initial=0.0), 1e-300)
    if not kept.any():
        return 1.0
    return float(chi2.sf(np.sum((total @ eigenvectors[:, kept]) ** 2 / spread[kept]), int(kept.sum())))


def one_sided_rank_p(y: ArrayLike, s: ArrayLike, group: ArrayLike) -> float:
    """Returns the one-sided p-value for scores ``s`` (n,) that are larger where ``y`` (n,) is 1.

    The test of `association_p`, on the ranks of the scores.
    """
    by_group = _score_contributions(y, rankdata(np.asarray(s)), group)[:, 0]
    spread = float(np.sqrt(np.sum(by_group**2)))
    return float(norm.sf(by_group.sum() / spread)) if spread else 1.0


def one_hot(values: pd.Series) -> Floats:
    """Returns indicators (n, k) of the levels of a column, or of the tenths of a number; missing values are a level."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > BINS:
        values = pd.qcut(values, BINS, labels=False, duplicates="drop")
    words = values.astype("object").where(values.notna(), "").astype("str")
    counts = words.value_counts()
    kept_levels = counts.index[: _MAX_LEVELS - 1][counts.iloc[: _MAX_LEVELS - 1] >= _MIN_ROWS]
    codes = pd.Index(kept_levels).get_indexer(pd.Index(words))
    made: Floats = (codes[:, None] == np.arange(-1, len(kept_levels))).astype(np.float64)
    return made


def _score_contributions(y: ArrayLike, x: ArrayLike, group: ArrayLike) -> Floats:
    """Returns the contribution of each group to the covariance of y and each column of x: (groups, k)."""
    target = np.asarray(y, np.float64)
    columns = np.asarray(x, np.float64).reshape(len(target), -1)
    codes, names = pd.factorize(np.asarray(group, dtype=object))
    of_rows = (target - target.mean())[:, None] * (columns - columns.mean(axis=0))
    return np.stack([np.bincount(codes, column, len(names)) for column in of_rows.T], axis=1)


def out_of_fold_rates(values: pd.Series, y: NDArray[np.generic], fold: NDArray[np.generic]) -> Floats:
    """Returns for each row the rate of positives at its value in the other folds (n,)."""
    rate = np.empty(len(y))
    numeric = pd.api.types.is_numeric_dtype(values)
    column: pd.Series = values if numeric else values.astype("object").where(values.notna(), "").astype("str")
    for k in np.unique(fold):
        held, rest = fold == k, fold != k
        if numeric:
            tree = DecisionTreeClassifier(max_leaf_nodes=8, min_samples_leaf=_MIN_ROWS, random_state=0)
            tree.fit(column[rest].to_numpy(np.float64)[:, None], y[rest])
            rate[held] = tree.predict_proba(column[held].to_numpy(np.float64)[:, None])[:, -1]
        else:
            prior = float(y[rest].mean())
            of_level = pd.Series(y[rest]).groupby(column[rest].to_numpy()).agg(["sum", "size"])
            smooth = (of_level["sum"] + _PRIOR_ROWS * prior) / (of_level["size"] + _PRIOR_ROWS)
            rate[held] = column[held].map(smooth).fillna(prior).to_numpy(np.float64)
    return rate

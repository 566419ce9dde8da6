"""What one column alone says of a 0/1 of the rows: how well it orders them, and whether chance could do as much."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, norm, rankdata
from sklearn.tree import DecisionTreeClassifier

from stack.metrics.intervals import Interval, interval

FALSE_ALARM_RATE = 0.01  # share of clean data sets that raise any alarm of a kind, all its comparisons together
BINS = 10  # of a number, where its shape is looked at
_MAX_LEVELS = 20  # of words that are told apart, the commonest; the others are one
_MIN_ROWS = 10  # rows of a level that is told apart, and of a leaf
_PRIOR_ROWS = 2  # rows of average rate that stand beside a level's own

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ColumnAssociation:
    """One column against a 0/1: AUCs with their intervals by group, and the p-value of no association at all."""

    name: str
    rank_auc: Interval | None  # of the values as they are; None of words
    fitted_auc: Interval  # of the rate that the rows of the other folds have where the value is like this: any shape
    p: float  # both looks counted; to be taken times the number of columns that are looked at

    @property
    def strength(self) -> float:
        """The larger AUC, turned to 0.5 or more where it is of the values as they are."""
        rank_auc = max(self.rank_auc.value, 1 - self.rank_auc.value) if self.rank_auc else 0.5
        return max(rank_auc, self.fitted_auc.value)

    def __str__(self) -> str:
        if self.rank_auc is None or self.fitted_auc.value > max(self.rank_auc.value, 1 - self.rank_auc.value):
            return f"AUC {self.fitted_auc}, out of fold"
        return f"AUC {self.rank_auc}"


def column_association(
    name: str, values: pd.Series, y: ArrayLike, fold: ArrayLike, group: ArrayLike
) -> ColumnAssociation:
    """How well ``values`` (n,), numbers or words, order ``y`` (n,) of 0 and 1; ``fold`` and ``group`` (n,).

    Whole groups are in one fold, so that a value which marks a group tells nothing of the others' rows. A missing value
    is one like others to `learned`, and left out of `rank_auc`. Raises DataError where fewer than two groups hold a 1.
    """
    y, fold, group = np.asarray(y), np.asarray(fold), np.asarray(group, dtype=object)
    values = values.reset_index(drop=True)
    fitted_auc = interval("auc", y, _out_of_fold_rates(values, y, fold), group)
    p_values = [association_p(y, one_hot(values), group)]
    rank_auc = None
    if pd.api.types.is_numeric_dtype(values):
        known = values.notna().to_numpy()
        number = values.to_numpy(np.float64, na_value=np.nan)
        p_values.append(association_p(y[known], rankdata(number[known]), group[known]))
        if len(np.unique(group[known & (y == 1)])) > 1 and (known & (y == 0)).any():
            rank_auc = interval("auc", y[known], number[known], group[known])
    return ColumnAssociation(name, rank_auc, fitted_auc, min(1.0, len(p_values) * min(p_values)))


def association_p(y: ArrayLike, x: ArrayLike, group: ArrayLike) -> float:
    """p-value of ``y`` (n,) of 0 and 1 not going with any column of ``x`` (n,) or (n, k); rows of a group depend.

    The score test of a logistic regression with the covariance of whole groups' scores under the null (Boos 1992,
    Rotnitzky & Jewell 1990). It rests on no variance within a class, which a handful of alike positives would have at
    zero, and its statistic is at most the number of groups: where there are few it keeps silent, not the contrary.
    """
    by_group = _score_contributions(y, x, group)
    total = by_group.sum(axis=0)
    spread, eigenvectors = np.linalg.eigh(by_group.T @ by_group)
    kept = spread > 1e-9 * max(spread.max(initial=0.0), 1e-300)
    if not kept.any():
        return 1.0
    return float(chi2.sf(np.sum((total @ eigenvectors[:, kept]) ** 2 / spread[kept]), int(kept.sum())))


def one_sided_rank_p(y: ArrayLike, s: ArrayLike, group: ArrayLike) -> float:
    """p-value of scores ``s`` (n,) not standing higher where ``y`` (n,) is 1: the same test, of ranks and one-sided."""
    by_group = _score_contributions(y, rankdata(np.asarray(s)), group)[:, 0]
    spread = float(np.sqrt(np.sum(by_group**2)))
    return float(norm.sf(by_group.sum() / spread)) if spread else 1.0


def one_hot(values: pd.Series) -> Floats:
    """(n, k): in which tenth a number lies, or which level it is where there are few; a missing value is a level."""
    if pd.api.types.is_numeric_dtype(values) and values.nunique() > BINS:
        values = pd.qcut(values, BINS, labels=False, duplicates="drop")
    words = values.astype("object").where(values.notna(), "").astype("str")
    counts = words.value_counts()
    kept_levels = counts.index[: _MAX_LEVELS - 1][counts.iloc[: _MAX_LEVELS - 1] >= _MIN_ROWS]
    codes = pd.Index(kept_levels).get_indexer(pd.Index(words))
    made: Floats = (codes[:, None] == np.arange(-1, len(kept_levels))).astype(np.float64)
    return made


def _score_contributions(y: ArrayLike, x: ArrayLike, group: ArrayLike) -> Floats:
    """What each group adds to the covariance of y and each column of x: (groups, k)."""
    target = np.asarray(y, np.float64)
    columns = np.asarray(x, np.float64).reshape(len(target), -1)
    codes, names = pd.factorize(np.asarray(group, dtype=object))
    of_rows = (target - target.mean())[:, None] * (columns - columns.mean(axis=0))
    return np.stack([np.bincount(codes, column, len(names)) for column in of_rows.T], axis=1)


def _out_of_fold_rates(values: pd.Series, y: NDArray[np.generic], fold: NDArray[np.generic]) -> Floats:
    """Of each row the rate of positives that rows of other folds have at its value."""
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

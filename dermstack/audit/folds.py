"""Whether fold models have held out the folds that they claim: their AUC there, against siblings on the same rows.

A model that has seen a row ranks it better than one that has not, by as much as it overfits: the gap on which
membership inference rests (Yeom et al. 2018). One that hardly overfits shows no gap, whatever it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from dermstack.audit.partitions import known_folds, renumbered, residuals, unknown_folds
from stack.errors import DataError
from stack.metrics.curve import checked, one_a_row, refuse
from stack.metrics.delong import clustered_auc

Verdict = Literal["held out", "cannot tell", "another partition"]
Floats = NDArray[np.float64]

LEVEL = 0.01  # at which a true claim is called false, all tests together; and no gap is called one
RENUMBERED, UNKNOWN = "the claimed folds under other numbers", "unknown folds of whole groups"
_DRAWS = 2000  # p down to 0.0005: room for twenty tests at LEVEL


@dataclass(frozen=True)
class Gap:
    """AUC of models on the rows they claim not to have seen, less that of their siblings; 98 % interval by group.

    An interval of 98 % lies below zero by chance as often as an alarm may be false: in 1 % of runs without a gap.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class HeldOut:
    """What the fold models of a run show of the folds that they claim to have held out."""

    verdict: Verdict
    gap: Gap  # mean over folds
    by_fold: pd.DataFrame  # fold, rows, positives, auc, siblings, gap, low, high, unlike (the other models)
    against: dict[str, float]  # p of every other explanation that was tried, by its name
    better: str  # the explanation that took the verdict away from the claim, or ""
    numbers: tuple[int, ...]  # the model that each claimed fold fits best: 0, 1, 2 … where the claim does


def held_out(
    scores: ArrayLike,
    fold: ArrayLike,
    y: ArrayLike,
    split_group: ArrayLike,
    *,
    other_folds: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
) -> HeldOut:
    """Verdict on fold models whose ``scores`` (n, K) of every row are at hand; model k claims not to have seen fold k.

    The gap is the mean over folds of [AUC of model k less the mean AUC of the others, on the rows of fold k]. Every
    model and every fold stands in it once, with equal weight: what makes a model better or a fold harder cancels.
    Standard errors are DeLong's by ``split_group`` (n,) (Obuchowski 1997), added over folds, with Student's t on
    Satterthwaite's (1946) degrees of freedom.

    "another partition" where a test of `dermstack.audit.partitions` rejects the claim, at `LEVEL` for all together (Bonferroni):
    other numbers of the models; each of ``other_folds`` (n,); and, only where the claim shows no gap, unknown folds,
    whose trace is also left by models that are weak on other kinds of patients: that is no proof.
    Else "held out" where the interval lies below zero, else "cannot tell".

    Raises DataError unless ``fold`` (n,) is 0 … K - 1, no group sits in two folds and two groups of each fold hold
    each class.
    """
    positive, columns, fold, group = _checked(scores, fold, y, split_group)
    k = columns.shape[1]
    auc, covariance, freedom = np.empty((k, k)), np.empty((k, k, k)), np.empty(k)
    for number in range(k):
        rows = fold == number
        try:
            found = clustered_auc(positive[rows], columns[rows], group[rows])
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        auc[:, number], covariance[number] = found.auc, found.covariance
        freedom[number] = min(len(np.unique(group[rows & side])) for side in (positive, ~positive)) - 1
    claimed = np.stack([_contrast(k, number) for number in range(k)])
    gap = _gap(claimed.mean(axis=0), auc, covariance, freedom, level=LEVEL)
    rng = np.random.default_rng(seed)
    against: dict[str, float] = {}
    against[RENUMBERED], numbers = renumbered(auc, covariance, freedom, draws=_DRAWS, rng=rng)
    apart = residuals(columns, positive, fold)
    for name, other in (other_folds or {}).items():
        codes = _codes(other, group, name)
        against[name] = known_folds(apart, positive, group, fold, codes, draws=_DRAWS, rng=rng)
    if gap.high >= 0 and (p := unknown_folds(columns, positive, group, fold, draws=_DRAWS, rng=rng)) is not None:
        against[UNKNOWN] = p
    better = min(against, key=lambda name: against[name])
    if against[better] >= LEVEL / len(against):
        better = ""
    verdict: Verdict = "another partition" if better else "held out" if gap.high < 0 else "cannot tell"
    by_fold = _by_fold(claimed, auc, covariance, freedom)
    by_fold.insert(1, "rows", np.bincount(fold, minlength=k))
    by_fold.insert(2, "positives", np.bincount(fold, positive, minlength=k).astype(int))
    return HeldOut(verdict, gap, by_fold, against, better, tuple(map(int, numbers)))


def _by_fold(claimed: Floats, auc: Floats, covariance: Floats, freedom: Floats) -> pd.DataFrame:
    """Each model's gap, less what it is better or worse by on rows that neither side held out (from three models on).

    ``unlike``: its interval holds zero and it lies above the other models' mean gap, at `LEVEL` for all together.
    """
    k = len(auc)
    records = []
    for number in range(k):
        gap = _gap(claimed[number], auc, covariance, freedom, level=LEVEL / k)
        others = claimed[np.arange(k) != number].mean(axis=0)
        apart = _gap(claimed[number] - others, auc, covariance, freedom, level=LEVEL / k)
        siblings = float(np.delete(auc[:, number], number).mean())
        unlike = k > 2 and gap.high >= 0 and apart.low > 0  # of two models either may be the better one
        records.append([number, float(auc[number, number]), siblings, gap.value, gap.low, gap.high, unlike])
    return pd.DataFrame(records, columns=["fold", "auc", "siblings", "gap", "low", "high", "unlike"])


def _contrast(k: int, number: int) -> Floats:
    """Weights of AUCs (models, folds) that add up to one model's gap; their mean over models has claimed folds only."""
    weights = np.zeros((k, k))
    weights[:, number] = -1 / (k - 1)
    weights[number, number] = 1
    for other in range(k):
        for seen in range(k):
            if other != number and seen not in (number, other):
                weights[[number, other], seen] += np.array([-1, 1]) / ((k - 1) * (k - 2))
    return weights


def _gap(weights: Floats, auc: Floats, covariance: Floats, freedom: Floats, *, level: float) -> Gap:
    """Of ``weights`` (models, folds), with an interval that either side of which holds ``level``."""
    value = float((weights * auc).sum())
    parts = np.maximum(np.einsum("kf,fkl,lf->f", weights, covariance, weights), 0)
    if not parts.sum():
        return Gap(value, value, value)
    reach = student.ppf(1 - level, parts.sum() ** 2 / (parts**2 / freedom).sum()) * np.sqrt(parts.sum())
    return Gap(value, float(value - reach), float(value + reach))


def _checked(
    scores: ArrayLike, fold: ArrayLike, y: ArrayLike, split_group: ArrayLike
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.intp], NDArray[np.intp]]:
    columns = np.asarray(scores, np.float64)
    if columns.ndim != 2 or columns.shape[1] < 2:
        raise DataError(f"scores of shape {columns.shape}: give a column for each of two or more fold models")
    positive, _ = checked(y, columns[:, 0])
    claimed = one_a_row(fold, positive, "folds")
    k = columns.shape[1]
    if set(np.unique(claimed)) != set(range(k)):
        raise DataError(f"{k} fold models, and folds {sorted(set(np.unique(claimed)))}: they must be 0 to {k - 1}")
    group, names = pd.factorize(one_a_row(split_group, positive, "split_groups"))
    refuse(group < 0, group, "split_groups are missing", "give each row its group, or one of its own")
    numbers = claimed.astype(np.intp)
    torn = pd.Series(numbers).groupby(group).nunique() > 1
    if torn.any():
        raise DataError(
            f"the claimed folds split {int(torn.sum())} groups, first {names[int(np.argmax(torn))]!r}: a model has "
            "seen other rows of the groups that it claims to have held out"
        )
    return positive, columns, numbers, group


def _codes(other: ArrayLike, group: NDArray[np.intp], name: str) -> NDArray[np.intp]:
    codes, _ = pd.factorize(np.asarray(other))
    if len(codes) != len(group) or (codes < 0).any() or (pd.Series(codes).groupby(group).nunique() > 1).any():
        raise DataError(f"{name}: not one fold for each of the {group.max() + 1} groups")
    return codes

"""Tests whether fold models held out the folds they claim, by comparing their AUC with the other models' on these rows.

A model ranks rows that it was trained on better than other rows, by as much as it overfits: the gap that membership
inference uses (Yeom et al. 2018). A model that hardly overfits shows no gap, whatever rows it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment
from scipy.stats import t as student

from dermstack.errors import DataError
from stack.metrics.intervals import auc_components, clustered_auc
from stack.metrics.scores import Floats, check_one_per_row, checked, raise_for_rows

Ints = NDArray[np.intp]

FEWEST_GROUPS = 20  # groups with two rows of each class that the test of halves of a group needs
_SPLITS = 20  # random splits of each group's rows into halves; results are averaged


def renumbering_p(
    auc: Floats, covariance: Floats, dof: Floats, *, draws: int, rng: np.random.Generator
) -> tuple[float, Ints]:
    """Tests whether the folds fit better with the models in another order: p-value, and the best model of each fold.

    ``auc`` (K, K) is that of model k on fold f; ``covariance`` (K, K, K) is that of the models' AUCs on each fold, with
    ``dof`` (K,) degrees of freedom. The statistic is how much wider the gap is under the best numbering (Kuhn 1955)
    than under the claimed one. Reference draws have the noise of these AUCs and no gap, the case in which another
    numbering looks better most often.
    """
    k = len(auc)
    spread = np.stack([_matrix_root(part) for part in covariance])
    noise = np.einsum("fij,dfj->dif", spread, rng.standard_normal((draws, k, k)))
    noise *= np.sqrt(dof / rng.chisquare(dof, (draws, k)))[:, None, :]  # Student's t: few groups give heavier tails
    found, numbers = _renumbering_gain(auc)
    chance = np.array([_renumbering_gain(drawn)[0] for drawn in noise])
    return _permutation_p(found, chance), numbers


def known_folds_p(
    residual: Floats,
    y: NDArray[np.bool_],
    group: Ints,
    fold: Ints,
    other: Ints,
    *,
    draws: int,
    rng: np.random.Generator,
) -> float:
    """Tests whether another known partition ``other`` (n,) explains which model is worst on which rows: p-value.

    Only what the claimed folds do not explain is tested: ``residual`` (n, K) comes from `rank_residuals`. Reference:
    the labels of the other partition permuted over whole groups, within the claimed fold and separately for groups with
    and without positives, so that the test is valid for any models.
    """
    n_groups = int(group.max()) + 1
    weight = np.where(y, 1 / y.sum(), 1 / (~y).sum())
    sums = np.stack([np.bincount(group, weight * column, n_groups) for column in residual.T], axis=1)
    first = np.unique(group, return_index=True)[1]
    held = np.bincount(group, y, n_groups) > 0
    label, stratum = other[first], fold[first] * 2 + held
    n_labels = int(label.max()) + 1
    order = np.argsort(stratum, kind="stable")
    sums, label = sums[order], label[order]
    strata = np.split(label, np.flatnonzero(np.diff(stratum[order])) + 1)

    def deficit(label: Ints) -> float:
        by_label = [np.bincount(label, column, n_labels) for column in sums.T]
        return float(-np.min(by_label, axis=0).sum())

    chance = [deficit(np.concatenate([rng.permutation(part) for part in strata])) for _ in range(draws)]
    return _permutation_p(deficit(label), np.array(chance))


def unknown_folds_p(
    scores: Floats, y: NDArray[np.bool_], group: Ints, fold: Ints, *, draws: int, rng: np.random.Generator
) -> float | None:
    """Tests whether an unknown partition of whole groups explains which model is worst on which rows: p-value.

    Only what the claimed folds do not explain is tested. A model that has not seen a group is worse than the others on
    any half of its rows, so both halves agree on which model is worst. The performance on a half is the share of its
    pairs of a positive and a negative that ``scores`` (n, K) order correctly. Pairs are within one group, because a
    model that scores all images of a patient higher would otherwise be consistently better or worse there. Reference:
    models exchanged at random within one half of each group. None if fewer than `FEWEST_GROUPS` groups have two rows of
    each class.
    """
    counts = [np.bincount(group[rows], minlength=int(group.max()) + 1) for rows in (y, ~y)]
    usable_groups = np.flatnonzero((counts[0] > 1) & (counts[1] > 1))
    if len(usable_groups) < FEWEST_GROUPS:
        return None
    members = [np.flatnonzero(group == number) for number in usable_groups]
    crossed = [np.meshgrid(rows[y[rows]], rows[~y[rows]], indexing="ij") for rows in members]
    above, below = (np.concatenate([sides[side].ravel() for sides in crossed]) for side in (0, 1))
    of = np.repeat(np.arange(len(usable_groups)), [sides[0].size for sides in crossed])
    won = (np.sign(scores[above] - scores[below]) + 1) / 2
    won -= won.mean(axis=1, keepdims=True)
    for number in np.unique(fold):
        won[fold[above] == number] -= won[fold[above] == number].mean(axis=0)
    n, k = len(usable_groups), scores.shape[1]
    agree = np.zeros((n, k, k))  # per group: models in one half times models in the other
    for _ in range(_SPLITS):
        half = _random_half(group * 2 + y, rng)
        one, two = (_mean_by(of, won, n, (half[above] == side) & (half[below] == side)) for side in (False, True))
        agree += one[:, :, None] * two[:, None, :]
    agree += agree.transpose(0, 2, 1)
    places, models = np.arange(n)[:, None], np.arange(k)
    exchanged = np.tile(models, (n, 1))
    chance = np.array([agree[places, models, rng.permuted(exchanged, axis=1)].sum() for _ in range(draws)])
    return _permutation_p(float(agree[:, models, models].sum()), chance)


def rank_residuals(scores: Floats, y: NDArray[np.bool_], fold: Ints) -> Floats:
    """Returns how much better each model ranks each row than the other models, beyond the claimed folds: (n, K).

    The rank of a row is its structural component within its claimed fold (DeLong et al. 1988): the share of rows of the
    other class that it is ranked correctly against. Means by model, claimed fold and class are subtracted, then the
    means by row.
    """
    made = np.empty_like(scores)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        for side, ranked in enumerate(
            zip(*(auc_components(column, y[rows]) for column in scores[rows].T), strict=True)
        ):
            ranks = np.stack(ranked, axis=1)
            made[rows[y[rows] == (side == 0)]] = ranks - ranks.mean(axis=0)
    return np.asarray(made - made.mean(axis=1, keepdims=True))


def _renumbering_gain(auc: Floats) -> tuple[float, Ints]:
    """Returns the mean AUC under the claimed numbering minus that under the best one, and the best model of each fold.

    Up to a constant factor this is how much wider the gap is: the AUCs of all models on a fold sum to the same value
    under every numbering.
    """
    folds, models = linear_sum_assignment(auc.T)
    return float(np.diag(auc).mean() - auc[models, folds].mean()), models


def _matrix_root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _random_half(cell: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Splits the rows of each cell at random into two halves whose sizes differ by at most one."""
    order = np.lexsort((rng.random(len(cell)), cell))
    first = np.searchsorted(cell[order], cell[order])
    place = np.arange(len(cell)) - first
    half = np.empty(len(cell), bool)
    half[order] = (place + rng.integers(2, size=int(cell.max()) + 1)[cell[order]]) % 2 == 0
    return half


def _mean_by(of: Ints, values: Floats, n: int, among: NDArray[np.bool_]) -> Floats:
    """Returns the means (n, K) of ``values`` (pairs, K) by the group ``of`` each pair, over the pairs ``among``."""
    sums = np.stack([np.bincount(of[among], column, n) for column in values[among].T], axis=1)
    return np.asarray(sums / np.bincount(of[among], minlength=n)[:, None])


def _permutation_p(found: float, chance: Floats) -> float:
    """Returns the share of values that are at least ``found``, which counts as one of them (Phipson & Smyth 2010)."""
    return float((1 + (chance >= found - 1e-12).sum()) / (1 + len(chance)))


Verdict = Literal["held out", "cannot tell", "another partition"]

SIGNIFICANCE_LEVEL = 0.01  # rate of rejected true claims, over all tests together, and of gaps found where none is
RENUMBERED_FOLDS, UNKNOWN_FOLDS = "the claimed folds in another order", "unknown folds of whole groups"
_DRAWS = 2000  # the smallest p is 0.0005, enough for twenty tests at SIGNIFICANCE_LEVEL


@dataclass(frozen=True)
class Gap:
    """AUC of models on the rows they claim not to have seen, minus that of the other models; 98 % interval by group.

    A 98 % interval lies below zero by chance in 1 % of runs without a gap, the rate of false alarms that is allowed.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"


@dataclass(frozen=True)
class HeldOutVerdict:
    """Result of `held_out_verdict`: whether the fold models of a run held out the folds they claim."""

    verdict: Verdict
    gap: Gap  # mean over folds
    by_fold: pd.DataFrame  # fold, rows, positives, auc, siblings (mean AUC of the others), gap, low, high, unlike
    p_values: dict[str, float]  # p-value of each other explanation that was tested, by name
    better_explanation: str  # the explanation that is better than the claim, or ""
    best_numbering: tuple[int, ...]  # the model that fits each claimed fold best: 0, 1, 2 … if the claim does


def held_out_verdict(
    scores: ArrayLike,
    fold: ArrayLike,
    y: ArrayLike,
    split_group: ArrayLike,
    *,
    other_folds: Mapping[str, ArrayLike] | None = None,
    seed: int = 0,
) -> HeldOutVerdict:
    """Tests whether model k has not seen the rows of fold k, from the ``scores`` (n, K) of all models for all rows.

    The gap is the mean over folds of [AUC of model k minus the mean AUC of the others, on the rows of fold k]. Every
    model and every fold has equal weight, so that a better model or a harder fold cancels out. Standard errors are
    DeLong's by ``split_group`` (n,) (Obuchowski 1997), added over folds, with Student's t on Satterthwaite's (1946)
    degrees of freedom.

    The verdict is "another partition" if a test of this module rejects the claim, at `SIGNIFICANCE_LEVEL` for all tests
    together (Bonferroni): another order of the models; each of ``other_folds`` (n,); and, only if the claim shows no
    gap, unknown folds, which is no proof, as models that are weak on different patients give the same result. Otherwise
    it is "held out" if the interval of the gap lies below zero, else "cannot tell".

    Raises DataError unless ``fold`` (n,) has the values 0 … K - 1, no group is in two folds, and each fold has two
    groups with each class.
    """
    positive, columns, fold, group = _checked(scores, fold, y, split_group)
    k = columns.shape[1]
    auc, covariance, dof = np.empty((k, k)), np.empty((k, k, k)), np.empty(k)
    for number in range(k):
        rows = fold == number
        try:
            found = clustered_auc(positive[rows], columns[rows], group[rows])
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error
        auc[:, number], covariance[number] = found.auc, found.covariance
        dof[number] = min(len(np.unique(group[rows & side])) for side in (positive, ~positive)) - 1
    claimed = np.stack([_contrast(k, number) for number in range(k)])
    gap = _gap(claimed.mean(axis=0), auc, covariance, dof, level=SIGNIFICANCE_LEVEL)
    rng = np.random.default_rng(seed)
    p_values: dict[str, float] = {}
    p_values[RENUMBERED_FOLDS], numbers = renumbering_p(auc, covariance, dof, draws=_DRAWS, rng=rng)
    apart = rank_residuals(columns, positive, fold)
    for name, other in (other_folds or {}).items():
        codes = _codes(other, group, name)
        p_values[name] = known_folds_p(apart, positive, group, fold, codes, draws=_DRAWS, rng=rng)
    if gap.high >= 0 and (p := unknown_folds_p(columns, positive, group, fold, draws=_DRAWS, rng=rng)) is not None:
        p_values[UNKNOWN_FOLDS] = p
    better_explanation = min(p_values, key=lambda name: p_values[name])
    if p_values[better_explanation] >= SIGNIFICANCE_LEVEL / len(p_values):
        better_explanation = ""
    verdict: Verdict = "another partition" if better_explanation else "held out" if gap.high < 0 else "cannot tell"
    by_fold = _by_fold(claimed, auc, covariance, dof)
    by_fold.insert(1, "rows", np.bincount(fold, minlength=k))
    by_fold.insert(2, "positives", np.bincount(fold, positive, minlength=k).astype(int))
    return HeldOutVerdict(verdict, gap, by_fold, p_values, better_explanation, tuple(map(int, numbers)))


def _by_fold(claimed: Floats, auc: Floats, covariance: Floats, dof: Floats) -> pd.DataFrame:
    """Returns each model's gap, corrected (from three models on) by its difference on rows that neither side held out.

    ``unlike``: the model shows no gap (its interval reaches zero) and its value is significantly above the mean gap of
    the other models, at `SIGNIFICANCE_LEVEL` for all models together.
    """
    k = len(auc)
    records = []
    for number in range(k):
        gap = _gap(claimed[number], auc, covariance, dof, level=SIGNIFICANCE_LEVEL / k)
        others = claimed[np.arange(k) != number].mean(axis=0)
        apart = _gap(claimed[number] - others, auc, covariance, dof, level=SIGNIFICANCE_LEVEL / k)
        siblings = float(np.delete(auc[:, number], number).mean())
        unlike = k > 2 and gap.high >= 0 and apart.low > 0  # with two models, either may simply be better
        records.append([number, float(auc[number, number]), siblings, gap.value, gap.low, gap.high, unlike])
    return pd.DataFrame(records, columns=["fold", "auc", "siblings", "gap", "low", "high", "unlike"])


def _contrast(k: int, number: int) -> Floats:
    """Returns the weights (models, folds) of the AUCs in one model's gap; the corrections cancel in the mean."""
    weights = np.zeros((k, k))
    weights[:, number] = -1 / (k - 1)
    weights[number, number] = 1
    for other in range(k):
        for seen in range(k):
            if other != number and seen not in (number, other):
                weights[[number, other], seen] += np.array([-1, 1]) / ((k - 1) * (k - 2))
    return weights


def _gap(weights: Floats, auc: Floats, covariance: Floats, dof: Floats, *, level: float) -> Gap:
    """Returns the weighted sum of the AUCs, with an interval that leaves a probability of ``level`` on either side."""
    value = float((weights * auc).sum())
    parts = np.maximum(np.einsum("kf,fkl,lf->f", weights, covariance, weights), 0)
    if not parts.sum():
        return Gap(value, value, value)
    reach = student.ppf(1 - level, parts.sum() ** 2 / (parts**2 / dof).sum()) * np.sqrt(parts.sum())
    return Gap(value, float(value - reach), float(value + reach))


def _checked(
    scores: ArrayLike, fold: ArrayLike, y: ArrayLike, split_group: ArrayLike
) -> tuple[NDArray[np.bool_], Floats, NDArray[np.intp], NDArray[np.intp]]:
    columns = np.asarray(scores, np.float64)
    if columns.ndim != 2 or columns.shape[1] < 2:
        raise DataError(f"scores have shape {columns.shape}: give one column for each of two or more fold models")
    positive, _ = checked(y, columns[:, 0])
    claimed = check_one_per_row(fold, positive, "folds")
    k = columns.shape[1]
    if set(np.unique(claimed)) != set(range(k)):
        raise DataError(f"{k} fold models, but folds are {sorted(set(np.unique(claimed)))}: they must be 0 to {k - 1}")
    group, names = pd.factorize(check_one_per_row(split_group, positive, "split_groups"))
    raise_for_rows(group < 0, group, "split_groups are missing", "give each row its group, or a group of its own")
    numbers = claimed.astype(np.intp)
    torn = pd.Series(numbers).groupby(group).nunique() > 1
    if torn.any():
        raise DataError(
            f"the claimed folds split {int(torn.sum())} groups, first {names[int(np.argmax(torn))]!r}: give folds that "
            "keep the rows of each group together"
        )
    return positive, columns, numbers, group


def _codes(other: ArrayLike, group: NDArray[np.intp], name: str) -> NDArray[np.intp]:
    codes, _ = pd.factorize(np.asarray(other))
    if len(codes) != len(group) or (codes < 0).any() or (pd.Series(codes).groupby(group).nunique() > 1).any():
        raise DataError(f"{name}: these folds must give each of the {group.max() + 1} groups exactly one fold")
    return codes

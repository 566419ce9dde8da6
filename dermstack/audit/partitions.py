"""Other explanations of who has seen what: fold models numbered otherwise, folds known from elsewhere, unknown ones.

Each test asks whether something besides the claim says on which rows a fold model does worse than its siblings. Where
the claim alone is true those of named folds err at their level or less often; that of unknown ones also needs models
that are alike in which groups they do well on.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from stack.metrics.delong import components

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]

FEWEST_GROUPS = 20  # with two rows of each class: fewer can't show that halves of a group agree
_SPLITS = 20  # of the rows of a group into halves, averaged


def renumbered(
    auc: Floats, covariance: Floats, freedom: Floats, *, draws: int, rng: np.random.Generator
) -> tuple[float, Ints]:
    """Whether the claimed folds fit better when the models are numbered otherwise: p, and the model of each fold.

    ``auc`` (K, K) of model k on fold f, ``covariance`` (K, K, K) of the models' on each fold, with ``freedom`` (K,).
    What is tested is by how much the best numbering (Kuhn 1955) makes the gap wider than the claimed one. Reference
    draws have the noise of these AUCs and no gap at all, where other numbers look better most often.
    """
    k = len(auc)
    spread = np.stack([_root(part) for part in covariance])
    noise = np.einsum("fij,dfj->dif", spread, rng.standard_normal((draws, k, k)))
    noise *= np.sqrt(freedom / rng.chisquare(freedom, (draws, k)))[:, None, :]  # few groups: heavier tails
    found, numbers = _gain(auc)
    chance = np.array([_gain(drawn)[0] for drawn in noise])
    return _p(found, chance), numbers


def known_folds(
    residual: Floats,
    y: NDArray[np.bool_],
    group: Ints,
    fold: Ints,
    other: Ints,
    *,
    draws: int,
    rng: np.random.Generator,
) -> float:
    """Whether folds known from elsewhere, ``other`` (n,), say where a model does worst, beyond the claimed: p.

    ``residual`` (n, K) is of `residuals`. Reference: the other folds dealt again to whole groups, within the claimed
    fold and among groups with positives and those without, so that the test holds whatever the models are like.
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
    return _p(deficit(label), np.array(chance))


def unknown_folds(
    scores: Floats, y: NDArray[np.bool_], group: Ints, fold: Ints, *, draws: int, rng: np.random.Generator
) -> float | None:
    """Whether some unknown partition of whole groups says where a model does worst, beyond the claimed: p.

    A model that has not seen a group does worse than its siblings on any half of its rows, so the halves agree on who
    is worst. How well a model does on a half is the share of its pairs of a positive and a negative that ``scores``
    (n, K) order rightly: within one group, as a model that scores all pictures of a patient higher would otherwise do
    consistently better or worse there. Reference: models exchanged at random within one half of each group. None where
    fewer than `FEWEST_GROUPS` groups have two rows of either class.
    """
    counts = [np.bincount(group[rows], minlength=int(group.max()) + 1) for rows in (y, ~y)]
    telling = np.flatnonzero((counts[0] > 1) & (counts[1] > 1))
    if len(telling) < FEWEST_GROUPS:
        return None
    members = [np.flatnonzero(group == number) for number in telling]
    crossed = [np.meshgrid(rows[y[rows]], rows[~y[rows]], indexing="ij") for rows in members]
    above, below = (np.concatenate([sides[side].ravel() for sides in crossed]) for side in (0, 1))
    of = np.repeat(np.arange(len(telling)), [sides[0].size for sides in crossed])
    won = (np.sign(scores[above] - scores[below]) + 1) / 2
    won -= won.mean(axis=1, keepdims=True)
    for number in np.unique(fold):
        won[fold[above] == number] -= won[fold[above] == number].mean(axis=0)
    n, k = len(telling), scores.shape[1]
    agree = np.zeros((n, k, k))  # of a group: models in one half times models in the other
    for _ in range(_SPLITS):
        half = _half(group * 2 + y, rng)
        one, two = (_mean_by(of, won, n, (half[above] == side) & (half[below] == side)) for side in (False, True))
        agree += one[:, :, None] * two[:, None, :]
    agree += agree.transpose(0, 2, 1)
    places, models = np.arange(n)[:, None], np.arange(k)
    exchanged = np.tile(models, (n, 1))
    chance = np.array([agree[places, models, rng.permuted(exchanged, axis=1)].sum() for _ in range(draws)])
    return _p(float(agree[:, models, models].sum()), chance)


def residuals(scores: Floats, y: NDArray[np.bool_], fold: Ints) -> Floats:
    """How much better than its siblings each model ranks each row, less what the claimed folds explain: (n, K).

    The rank of a row is its structural component within its claimed fold (DeLong et al. 1988): the share of the other
    class that it is on the right side of. Means by model, claimed fold and class are taken away, then those by row.
    """
    made = np.empty_like(scores)
    for number in np.unique(fold):
        rows = np.flatnonzero(fold == number)
        for side, ranked in enumerate(zip(*(components(column, y[rows]) for column in scores[rows].T), strict=True)):
            ranks = np.stack(ranked, axis=1)
            made[rows[y[rows] == (side == 0)]] = ranks - ranks.mean(axis=0)
    return np.asarray(made - made.mean(axis=1, keepdims=True))


def _gain(auc: Floats) -> tuple[float, Ints]:
    """By how much the mean AUC of claimed models is above that of the best numbering, and its model of each fold.

    That is how much wider the gap is, but for a factor: the siblings' mean is that of all models, and theirs cancels.
    """
    folds, models = linear_sum_assignment(auc.T)
    return float(np.diag(auc).mean() - auc[models, folds].mean()), models


def _root(covariance: Floats) -> Floats:
    values, vectors = np.linalg.eigh(covariance)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)))


def _half(cell: Ints, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Rows of each cell dealt to two halves, of equal size or one more, in chance order."""
    order = np.lexsort((rng.random(len(cell)), cell))
    first = np.searchsorted(cell[order], cell[order])
    place = np.arange(len(cell)) - first
    half = np.empty(len(cell), bool)
    half[order] = (place + rng.integers(2, size=int(cell.max()) + 1)[cell[order]]) % 2 == 0
    return half


def _mean_by(of: Ints, values: Floats, n: int, among: NDArray[np.bool_]) -> Floats:
    """Means (n, K) of ``values`` (pairs, K) by what each pair is ``of``, ``among`` these pairs."""
    sums = np.stack([np.bincount(of[among], column, n) for column in values[among].T], axis=1)
    return np.asarray(sums / np.bincount(of[among], minlength=n)[:, None])


def _p(found: float, chance: Floats) -> float:
    """Share of draws that reach what was found, itself among them (Phipson & Smyth 2010)."""
    return float((1 + (chance >= found - 1e-12).sum()) / (1 + len(chance)))

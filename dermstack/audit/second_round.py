"""Tests whether a run was trained on predictions for the test rows (pseudo-labels) that knew its held-out targets.

Labels that were made with all folds, such as a blend's, know the targets of fold k, and the nets of fold k learn them
from the test rows that resemble rows of fold k: the run's out-of-fold score is then too good. Two facts tell it.

**Disagreement.** Nobody has trained on the targets of test rows, and the nets of fold k have not trained on those of
fold k. So a run disagrees with other runs, net k with net k, as much on the one as on the other. A net that was trained
on predictions for the test rows disagrees less there: the ratio of both residual variances is below one. It is taken at
equal scores of the other runs, and relative to the same ratio among the other runs, so that test rows that are easier,
or other patients, do not count.

**Share of the own fold.** On the test rows net k is regressed on the other runs' nets of fold k and on the mean of
their other nets. A net that learned labels of their fold k follows the first. One that learned labels of all folds
follows the second; but so does one whose labels of each fold came from models that are not among the other runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from stack.predictions.plausibility import COPY_CORRELATION

Floats = NDArray[np.float64]
Labels = Literal["none seen", "not of each fold", "of each fold", "cannot tell"]

MAX_RATIO = 0.75  # upper bound of the ratio of disagreement below which a run has learned the test rows
# Share above which labels are those of each fold. Labels of all folds give about 1 / k, and up to 0.6 beside a run of
# the same network and seeds, whose nets of a fold start from the same weights.
OWN_SHARE = 0.75
FEWEST_GROUPS = 20  # of test rows and of each fold, for the intervals
_DRAWS = 200
_BINS = 10  # of the other runs' scores, at which disagreements are compared
_MAX_OTHERS = 6  # runs to compare with: more take time and tell no more
_MAX_CONTROLS = 4  # of them, each compared with the rest
_MAX_ROWS = 8_000  # of training rows and of test rows


@dataclass(frozen=True)
class NetScores:
    """Logits of one run: (n,) out-of-fold, of the net of each row's fold, and (k, m) of each net for the test rows.

    NaN where the run does not cover a row.
    """

    oof: Floats
    test: Floats


@dataclass(frozen=True)
class Estimate:
    """An estimate with its interval; without one, both bounds are NaN."""

    value: float
    low: float
    high: float

    @classmethod
    def alone(cls, value: float) -> Estimate:
        """Returns an estimate without an interval."""
        return cls(float(value), np.nan, np.nan)

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class SecondRound:
    """What a run's predictions say of labels for test rows that it may have learned, with intervals."""

    labels: Labels
    # residual variance on test rows over that on held-out rows, relative to the other runs'; without an interval where
    # it is no sign of labels
    disagreement: Estimate
    own_share: Estimate  # weight of the other runs' nets of the same fold, of 1 for these and the other folds' together


def second_round(
    run: NetScores,
    others: Sequence[NetScores],
    fold: NDArray[np.integer],
    split_group: NDArray[np.intp],
    test_group: NDArray[np.intp],
    *,
    level: float = 0.01,
    seed: int = 0,
) -> SecondRound | None:
    """Compares a run with ``others``, whose nets were not trained on test rows; copies among them count once.

    ``fold`` (n,), ``split_group`` (n,) and ``test_group`` (m,) are of the rows. Intervals are by bootstrap over groups
    of both kinds, each of whose ends is exceeded with probability ``level``. Returns None for fewer than
    `FEWEST_GROUPS` groups of test rows or of a fold, for a net whose predictions are all equal, and for fewer than two
    others that are no copies of the run or of each other.
    """
    rng = np.random.default_rng(seed)
    together = [run, *others[:_MAX_OTHERS]]
    rows = _sample(np.all([np.isfinite(one.oof) for one in together], axis=0), split_group, rng)
    tests = _sample(np.all([np.isfinite(one.test).all(axis=0) for one in together], axis=0), test_group, rng)
    fold, groups = fold[rows], (_codes(split_group[rows]), _codes(test_group[tests]))
    k = len(run.test)
    sizes = [len(np.unique(groups[0][fold == number])) for number in range(k)]
    if min([len(np.unique(groups[1])), *sizes]) < FEWEST_GROUPS:
        return None
    nets = [NetScores(one.oof[rows], one.test[:, tests]) for one in together]
    if any(np.ptp(net) == 0 for one in nets for net in one.test):
        return None
    held = [np.flatnonzero(fold == number) for number in range(k)]
    normal = _without_copies([_NormalScores.of(one, held) for one in nets])
    if len(normal) < 3:
        return None
    pairs = [_Pair.of(normal[0], normal[1:], held)]
    for number in range(1, min(len(normal), _MAX_CONTROLS + 1)):
        pairs.append(_Pair.of(normal[number], [*normal[1:number], *normal[number + 1 :]], held))
    found = _ratio_and_share(pairs, *(np.ones(len(codes)) for codes in groups))
    if np.exp(found[0]) >= MAX_RATIO:  # its upper bound is, too
        return SecondRound("none seen", Estimate.alone(np.exp(found[0])), Estimate.alone(found[1]))
    drawn = []
    for _ in range(_DRAWS):
        weights = []
        for codes in groups:
            n = int(codes.max()) + 1
            weights.append(rng.multinomial(n, np.full(n, 1 / n))[codes].astype(float))
        drawn.append(_ratio_and_share(pairs, *weights))
    spread = np.std(np.array(drawn), axis=0) * norm.isf(level)
    ratio = Estimate(*(float(np.exp(found[0] + sign * spread[0])) for sign in (0, -1, 1)))
    share = Estimate(*(float(found[1] + sign * spread[1]) for sign in (0, -1, 1)))
    return SecondRound(_labels(ratio, share), ratio, share)


def _without_copies(normal: Sequence[_NormalScores]) -> list[_NormalScores]:
    """Returns the first of runs that order the rows alike: a run does not disagree with its copy on any rows.

    The quotient of two such disagreements is that of rounding errors, or no number.
    """
    kept: list[_NormalScores] = []
    flat: list[Floats] = []
    for one in normal:
        values = np.concatenate([*one.held, *one.test])
        if all(np.corrcoef(values, other)[0, 1] < COPY_CORRELATION for other in flat):
            kept.append(one)
            flat.append(values)
    return kept


def _codes(group: NDArray[np.intp]) -> NDArray[np.intp]:
    return np.unique(group, return_inverse=True)[1].astype(np.intp)


def _sample(known: NDArray[np.bool_], group: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.intp]:
    """Returns the rows that are known; of more than `_MAX_ROWS` only those of groups drawn at random."""
    codes = _codes(group)
    order = rng.permutation(int(codes.max(initial=-1)) + 1)
    sizes = np.bincount(codes[known], minlength=len(order))[order]
    chosen = np.zeros(len(order), bool)
    chosen[order[np.cumsum(sizes) <= max(_MAX_ROWS, int(sizes[0]) if len(sizes) else 0)]] = True
    return np.flatnonzero(known & chosen[codes])


def _labels(ratio: Estimate, share: Estimate) -> Labels:
    if ratio.high >= MAX_RATIO:
        return "none seen"
    if share.high < OWN_SHARE:
        return "not of each fold"
    return "of each fold" if share.low > OWN_SHARE else "cannot tell"


@dataclass(frozen=True)
class _NormalScores:
    """A run's scores of each fold as normal scores: of held-out rows and test rows together, on one scale."""

    held: list[Floats]
    test: list[Floats]
    nets: Floats  # (k, m) of the test rows alone

    @classmethod
    def of(cls, run: NetScores, held: Sequence[NDArray[np.intp]]) -> _NormalScores:
        both = [_normal(np.concatenate([run.oof[rows], net])) for rows, net in zip(held, run.test, strict=True)]
        sizes = [len(rows) for rows in held]
        return cls(
            [one[:n] for one, n in zip(both, sizes, strict=True)],
            [one[n:] for one, n in zip(both, sizes, strict=True)],
            np.array([_normal(net) for net in run.test]),
        )


@dataclass(frozen=True)
class _Pair:
    """A run beside others: normal scores of each fold's held-out rows and of the test rows."""

    held: Sequence[NDArray[np.intp]]  # rows of each fold
    run: list[tuple[Floats, Floats]]  # of each fold: held-out rows, test rows
    others: list[tuple[Floats, Floats]]  # their mean
    bins: list[tuple[NDArray[np.intp], NDArray[np.intp]]]  # of the others' mean
    elsewhere: list[Floats]  # (m,) of each fold: the mean of the others' other nets on the test rows

    @classmethod
    def of(cls, run: _NormalScores, others: Sequence[_NormalScores], held: Sequence[NDArray[np.intp]]) -> _Pair:
        folds = range(len(held))
        mean = [
            (np.mean([one.held[fold] for one in others], axis=0), np.mean([one.test[fold] for one in others], axis=0))
            for fold in folds
        ]
        bins = []
        for on_held, on_test in mean:
            edges = np.quantile(on_test, np.linspace(0, 1, _BINS + 1)[1:-1])
            bins.append((np.asarray(np.searchsorted(edges, on_held)), np.asarray(np.searchsorted(edges, on_test))))
        nets = np.mean([one.nets for one in others], axis=0)  # (k, m)
        elsewhere = [_normal(np.delete(nets, fold, axis=0).mean(axis=0)) for fold in folds]
        return cls(held, list(zip(run.held, run.test, strict=True)), mean, bins, elsewhere)


def _normal(values: Floats) -> Floats:
    return np.asarray(norm.ppf((rankdata(values) - 0.5) / len(values)), np.float64)


def _ratio_and_share(pairs: Sequence[_Pair], weight: Floats, test_weight: Floats) -> tuple[float, float]:
    """Returns the logarithm of the run's ratio of disagreement over that of the controls, and the own fold's share."""
    logs = [_log_ratio(pair, weight, test_weight) for pair in pairs]
    return logs[0] - float(np.mean(logs[1:])), _own_share(pairs[0], test_weight)


def _log_ratio(pair: _Pair, weight: Floats, test_weight: Floats) -> float:
    """Returns the mean over folds of the logarithm of residual variance on test rows over that on held-out rows."""
    made = []
    for rows, run, others, bins in zip(pair.held, pair.run, pair.others, pair.bins, strict=True):
        weights = (weight[rows], test_weight)
        squares = [_residual(a, b, w) ** 2 for a, b, w in zip(run, others, weights, strict=True)]
        sums = [np.bincount(codes, w, _BINS) for codes, w in zip(bins, weights, strict=True)]
        of_bins = [
            np.bincount(codes, w * square, _BINS) for codes, w, square in zip(bins, weights, squares, strict=True)
        ]
        known = (sums[0] > 0) & (sums[1] > 0)
        held, test = (part[known] / total[known] for part, total in zip(of_bins, sums, strict=True))
        share = sums[1][known]  # held-out rows count as often as test rows of the same scores
        made.append(np.log(np.sum(share * test) / np.sum(share * held)))
    return float(np.mean(made))


def _residual(values: Floats, on: Floats, weight: Floats) -> Floats:
    """Returns what a weighted regression of ``values`` on a straight line in ``on`` leaves."""
    total = weight.sum()
    x, y = on - weight @ on / total, values - weight @ values / total
    slope = float(weight @ (x * y) / (weight @ (x * x)))
    return np.asarray(y - slope * x)


def _own_share(pair: _Pair, weight: Floats) -> float:
    """Returns the weight of the nets of the same fold in the regression on these and on the other folds' nets."""
    columns, values, weights = [], [], []
    for (_, own), (_, run), elsewhere in zip(pair.others, pair.run, pair.elsewhere, strict=True):
        columns.append(np.column_stack([_standard(own, weight), _standard(elsewhere, weight)]))
        values.append(_standard(run, weight))
        weights.append(weight)
    root = np.sqrt(np.concatenate(weights))
    own, other = np.linalg.lstsq(np.concatenate(columns) * root[:, None], np.concatenate(values) * root, rcond=None)[0]
    return float(own / (own + other))


def _standard(values: Floats, weight: Floats) -> Floats:
    total = weight.sum()
    centred = values - weight @ values / total
    return np.asarray(centred / np.sqrt(weight @ centred**2 / total))

"""What a score is worth: metrics exact with ties, and their intervals over groups of rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stack.errors import ConfigError, DataError

OBJECTIVES = ("auc", "pauc80", "ap", "logloss")
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_CHUNK_BYTES = 200e6  # about what one chunk of bootstrap draws holds at a time


@dataclass(frozen=True)
class Interval:
    """A value, its 95 % interval and its standard error, all on the scale of the objective."""

    value: float
    low: float
    high: float
    se: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def auc(y: ArrayLike, s: ArrayLike) -> float:
    """Area under the ROC curve of scores `s` (n,) for targets `y` (n,) of 0 and 1; a tied pair counts half.

    Raises DataError where a score is NaN, a target is not 0 or 1, or one class is missing.
    """
    return score("auc", y, s)


def pauc80(y: ArrayLike, s: ArrayLike) -> float:
    """Area between the ROC curve and a true positive rate of 80 %, in 0 to 0.2, as scored in ISIC 2024.

    The competition's metric flips labels and scores, has scikit-learn integrate up to a false positive rate
    of 0.2 and undoes its standardisation; this is the same area, also where the cut goes through a tie.
    """
    return score("pauc80", y, s)


def average_precision(y: ArrayLike, s: ArrayLike) -> float:
    """Precision averaged over the steps of recall, without interpolation (scikit-learn's definition)."""
    return score("ap", y, s)


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log-likelihood of probabilities `p` (n,), lower is better; `p` is kept off 0 and 1."""
    return -score("logloss", y, p)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of probabilities `p` (n,) to the targets, lower is better."""
    positive, p = _checked(y, p)
    _refuse((p < 0) | (p > 1), p, "scores are no probabilities", "calibrate them")
    return float(np.mean((p - positive) ** 2))


def accuracy(y: ArrayLike, p: ArrayLike, *, threshold: float = 0.5) -> float:
    """Share of rows on the right side of `threshold`; what equals it counts as called positive."""
    positive, p = _checked(y, p)
    return float(np.mean((p >= threshold) == positive))


def score(objective: str, y: ArrayLike, s: ArrayLike) -> float:
    """`objective` (one of OBJECTIVES) of scores `s` (n,); higher is better: log loss comes negated."""
    positive, s = _checked(y, s)
    return scorer(objective, positive)(s)


def scorer(objective: str, y: ArrayLike) -> Callable[[NDArray[Any]], float]:
    """`score` for targets that stay: a function of scores (n,) alone, called hundreds of times by a study.

    It sorts the negatives once and searches the positives, which are few. It does not look for NaN.
    """
    positive = _positive(y)
    if objective == "logloss":
        return lambda s: float(-np.mean(_losses(positive, s)))
    value_of = _curve_value(objective)
    rows, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    if not rows.size or not others.size:
        only = "positive" if rows.size else "negative"
        raise DataError(f"a single class: all {positive.size} rows are {only}, and {objective} needs both")

    def value(s: NDArray[Any]) -> float:
        negatives = np.sort(s[others])
        steps, count = np.unique(s[rows], return_counts=True)
        below = np.searchsorted(negatives, steps, "left").astype(np.float64)
        at = np.searchsorted(negatives, steps, "right") - below
        return float(value_of(_Curve(count.astype(np.float64), below, at, np.asarray(float(others.size)))))

    return value


def auc_by_fold(y: ArrayLike, s: ArrayLike, fold: ArrayLike) -> pd.Series[float]:
    """The AUC within each fold, indexed by fold; NaN, on the record, for a fold of a single class."""
    positive, s = _checked(y, s)
    fold = _one_a_row(fold, positive, "folds")
    value = {}
    for k in np.unique(fold):
        held = positive[fold == k]
        value[k] = auc(held, s[fold == k]) if 0 < held.sum() < held.size else np.nan
    return pd.Series(value, name="auc", dtype=np.float64).rename_axis("fold")


def interval(
    objective: str, y: ArrayLike, s: ArrayLike, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """`score` with its percentile interval over split_groups (see `bootstrap_scores`)."""
    drawn = bootstrap_scores(objective, y, s, split_group, draws=draws, seed=seed)[:, 0]
    return _interval(score(objective, y, s), drawn)


def paired_difference(
    objective: str,
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """`score` of `a` (n,) less that of `b` (n,), with its interval from draws that both share."""
    drawn = bootstrap_scores(objective, y, np.column_stack([a, b]), split_group, draws=draws, seed=seed)
    return _interval(score(objective, y, a) - score(objective, y, b), drawn[:, 0] - drawn[:, 1])


def bootstrap_scores(
    objective: str, y: ArrayLike, s: ArrayLike, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Floats:
    """`score` of each column of `s` (n,) or (n, c) on resamples of whole split_groups: (draws, c).

    Groups with a positive row and groups without are drawn apart, each as often as there are, so that every
    draw has positives; all columns meet the same draws. A draw without a negative (possible where hardly a
    group is free of positives) is NaN. Raises DataError where fewer than two groups hold a positive.
    """
    positive = _positive(y)
    columns = np.atleast_2d(np.asarray(s).T)
    group = _group_codes(split_group, positive)
    tallies = [_tally(objective, *_checked(positive, column), group) for column in columns]
    floats_a_draw = 2 * (group.max() + 1) + 4 * max(tally.shape[0] for tally, _ in tallies)
    chunk = max(1, int(_CHUNK_BYTES / 8 / floats_a_draw))
    drawn = _drawn_groups(positive, group, np.random.default_rng(seed))
    values = np.empty((draws, len(tallies)))
    for start in range(0, draws, chunk):
        stop = min(start + chunk, draws)
        times = np.stack([next(drawn) for _ in range(start, stop)], axis=1)
        for c, (tally, value_of) in enumerate(tallies):
            values[start:stop, c] = value_of(tally @ times)
    return values


class _Curve(NamedTuple):
    """The ROC curve at each distinct score of a positive, lowest first: that is where its area lies."""

    positives: Floats  # (steps,) or (steps, draws): positives with this score
    below: Floats  # negatives with a lower score
    at: Floats  # negatives with this very score
    negatives: Floats  # () or (draws,): all of them


def _auc(curve: _Curve) -> Floats:
    # Halves and whole numbers up to the division: exact while there are fewer than 2^52 pairs.
    won: Floats = np.sum(curve.positives * (curve.below + curve.at / 2), axis=0)
    pairs: Floats = np.sum(curve.positives, axis=0) * curve.negatives
    return won / pairs


def _pauc80(curve: _Curve) -> Floats:
    width: Floats = curve.positives / np.sum(curve.positives, axis=0)
    left = np.cumsum(width, axis=0) - width
    used = np.clip(0.2 - left, 0, width)  # the tie that the cut goes through counts up to the cut
    share = np.divide(used, width, out=np.zeros_like(width), where=width > 0)
    area: Floats = np.sum(used * (curve.below + curve.at * share / 2), axis=0)
    return area / curve.negatives


def _average_precision(curve: _Curve) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    called = found + curve.negatives - curve.below
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    average: Floats = np.sum(curve.positives * precision, axis=0) / found[0]
    return average


_CURVE_VALUES = {"auc": _auc, "pauc80": _pauc80, "ap": _average_precision}


def _curve_value(objective: str) -> Callable[[_Curve], Floats]:
    if objective not in _CURVE_VALUES:
        raise ConfigError(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    return _CURVE_VALUES[objective]


def _tally(
    objective: str, positive: Bools, s: NDArray[Any], group: NDArray[np.intp]
) -> tuple[sparse.csr_array, Callable[[Floats], Floats]]:
    """What each group adds to the score (k, groups), and the function that makes values of weighted sums.

    Its product with how often each group was drawn (groups, draws) is every draw's curve without another look
    at the rows, so that the cost is the number of different (step, group), times draws.
    """
    if objective == "logloss":
        sums = np.stack([np.bincount(group, _losses(positive, s)), np.bincount(group)])
        return sparse.csr_array(sums), lambda drawn: -drawn[0] / drawn[1]
    value_of = _curve_value(objective)
    steps, step = np.unique(s[positive], return_inverse=True)
    n = steps.size
    # The place of a negative: 2 i is below step i (and above the one before), 2 i + 1 is at step i.
    place = np.searchsorted(steps, s[~positive], "left") + np.searchsorted(steps, s[~positive], "right")
    at = (np.concatenate([step, n + place]), np.concatenate([group[positive], group[~positive]]))
    tally = sparse.coo_array((np.ones(s.size), at), shape=(3 * n + 1, group.max() + 1)).tocsr()

    def values(drawn: Floats) -> Floats:
        negatives = np.cumsum(drawn[n:], axis=0)
        below, through = negatives[:-1:2], negatives[1::2]
        with np.errstate(invalid="ignore"):  # 0 / 0 where a draw has no negative
            value = value_of(_Curve(drawn[:n], below, through - below, negatives[-1]))
        return np.where(negatives[-1] > 0, value, np.nan)

    return tally, values


def _drawn_groups(positive: Bools, group: NDArray[np.intp], rng: np.random.Generator) -> Iterator[Floats]:
    """How often each group was drawn (groups,), draw after draw."""
    held = np.bincount(group, positive) > 0
    if held.sum() < 2:
        raise DataError(f"{held.sum()} of {held.size} split_groups hold positives: an interval needs two")
    strata = [np.flatnonzero(held), np.flatnonzero(~held)]
    while True:
        times = np.zeros(held.size)
        for members in strata:
            n = members.size
            times[members] = np.bincount(rng.integers(n, size=n), minlength=n) if n else 0
        yield times


def _interval(value: float, drawn: Floats) -> Interval:
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        raise DataError("no draw of split_groups holds both classes: too few groups for an interval")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high), float(np.std(drawn)))


def _losses(positive: Bools, p: NDArray[Any]) -> Floats:
    eps = np.finfo(np.float64).eps
    _refuse((p < 0) | (p > 1), p, "scores are no probabilities", "calibrate them")
    p = p.astype(np.float64)
    losses: Floats = -np.log(np.clip(np.where(positive, p, 1 - p), eps, 1 - eps))
    return losses


def _checked(y: ArrayLike, s: ArrayLike) -> tuple[Bools, NDArray[Any]]:
    positive = _positive(y)
    s = _one_a_row(s, positive, "scores")
    _refuse(np.isnan(s), s, "scores are NaN", "leave no row unscored")
    return positive, s


def _positive(y: ArrayLike) -> Bools:
    y = np.asarray(y)
    if y.ndim != 1 or not y.size:
        raise DataError(f"targets have shape {y.shape}: give one 0 or 1 a row")
    positive: Bools = y == 1
    _refuse(~(positive | (y == 0)), y, "targets are not 0 or 1", "mend or drop these rows")
    return positive


def _group_codes(split_group: ArrayLike, positive: Bools) -> NDArray[np.intp]:
    group = _one_a_row(split_group, positive, "split_groups")
    codes, _ = pd.factorize(group, sort=True)  # sorted: the draws don't hang on the order of the rows
    _refuse(codes < 0, group, "split_groups are missing", "give each row its group, or one of its own")
    return codes


def _one_a_row(values: ArrayLike, positive: Bools, what: str) -> NDArray[Any]:
    values = np.asarray(values)
    if values.shape != positive.shape:
        raise DataError(f"{what} have shape {values.shape}, targets {positive.shape}: give one a row")
    return values


def _refuse(bad: Bools, values: NDArray[Any], why: str, next_step: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        named = f"row {rows[0]}: {values[rows[0]]}"
        raise DataError(f"{rows.size} of {bad.size} {why} ({named}): {next_step}")

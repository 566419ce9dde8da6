"""What a score would be on other groups: intervals by bootstrap over whole groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from stack.errors import DataError
from stack.metrics.curve import Bools, Curve, Floats, checked, curve_value, losses, one_a_row, positives_of, refuse
from stack.metrics.scores import score

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


def interval(
    objective: str, y: ArrayLike, s: ArrayLike, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Interval:
    """`objective` of scores `s` (n,) for targets `y` (n,) of 0 and 1, with its 95 % interval by bootstrap.

    `objective` is "auc", "pauc80", "ap" or "logloss", which comes negated: higher is better. What is drawn again,
    `draws` times, is whole split_groups (n,), those with a positive row apart from those without. Raises DataError
    where fewer than two of them hold a positive, and for what the objective refuses.
    """
    drawn = bootstrap_scores(objective, y, s, split_group, draws=draws, seed=seed)[:, 0]
    return interval_of(score(objective, y, s), drawn)


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
    """`objective` of scores `a` (n,) less that of `b` (n,), with its interval from draws that both share.

    Above zero `a` is better; by more than noise where the interval leaves zero out. Otherwise as `interval`.
    """
    drawn = bootstrap_scores(objective, y, np.column_stack([a, b]), split_group, draws=draws, seed=seed)
    return interval_of(score(objective, y, a) - score(objective, y, b), drawn[:, 0] - drawn[:, 1])


def bootstrap_scores(
    objective: str, y: ArrayLike, s: ArrayLike, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Floats:
    """`score` of each column of `s` (n,) or (n, c) on resamples of whole split_groups: (draws, c).

    Groups with a positive row and groups without are drawn apart, each as often as there are, so that every
    draw has positives; all columns meet the same draws. A draw without a negative (possible where hardly a
    group is free of positives) is NaN. Raises DataError where fewer than two groups hold a positive.
    """
    positive = positives_of(y)
    columns = np.atleast_2d(np.asarray(s).T)
    group = _group_codes(split_group, positive)
    tallies = [_tally(objective, *checked(positive, column), group) for column in columns]
    return _drawn_values(tallies, positive, group, draws=draws, seed=seed)


def bootstrap_sums(
    y: ArrayLike, values: sparse.csr_array, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Floats:
    """Column sums of `values` (n, c) over the rows that `bootstrap_scores` draws: (draws, c)."""
    positive = positives_of(y)
    group = _group_codes(split_group, positive)
    members = sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group)))))
    tally = (members @ values).T.tocsr()
    return _drawn_values([(tally, np.transpose)], positive, group, draws=draws, seed=seed, width=tally.shape[0])


Tally = tuple[Any, Callable[[Floats], Floats]]  # what times the draws of groups is what values are made of


def _drawn_values(
    tallies: Sequence[Tally], positive: Bools, group: NDArray[np.intp], *, draws: int, seed: int, width: int = 1
) -> Floats:
    """Of each draw of groups what each tally makes of it: (draws, tallies · width)."""
    floats_a_draw = 2 * (group.max() + 1) + 4 * max(tally.shape[0] for tally, _ in tallies)
    chunk = max(1, int(_CHUNK_BYTES / 8 / floats_a_draw))
    drawn = _drawn_groups(positive, group, np.random.default_rng(seed))
    values = np.empty((draws, len(tallies), width))
    for start in range(0, draws, chunk):
        stop = min(start + chunk, draws)
        times = np.stack([next(drawn) for _ in range(start, stop)], axis=1)
        for c, (tally, value_of) in enumerate(tallies):
            values[start:stop, c] = value_of(tally @ times).reshape(-1, width)
    return values.reshape(draws, -1)


def _tally(objective: str, positive: Bools, s: NDArray[Any], group: NDArray[np.intp]) -> Tally:
    """What each group adds to the score (k, groups), and the function that makes values of weighted sums.

    Its product with how often each group was drawn (groups, draws) is every draw's curve without another look
    at the rows, so that the cost is the number of different (step, group), times draws.
    """
    if objective == "logloss":
        sums = np.stack([np.bincount(group, losses(positive, s)), np.bincount(group)])
        return sparse.csr_array(sums), lambda drawn: -drawn[0] / drawn[1]
    value_of = curve_value(objective)
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
            value = value_of(Curve(drawn[:n], below, through - below, negatives[-1]))
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


def interval_of(value: float, drawn: Floats) -> Interval:
    """A value with the 2.5th and 97.5th percentile and the standard deviation of its draws (draws,), NaN left out."""
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        raise DataError("no draw of split_groups holds both classes: too few groups for an interval")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high), float(np.std(drawn)))


def _group_codes(split_group: ArrayLike, positive: Bools) -> NDArray[np.intp]:
    group = one_a_row(split_group, positive, "split_groups")
    codes, _ = pd.factorize(group, sort=True)  # sorted: the draws don't hang on the order of the rows
    refuse(codes < 0, group, "split_groups are missing", "give each row its group, or one of its own")
    return codes

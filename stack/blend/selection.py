"""Greedy selection of runs: hill climbing (with repetition), forward and backward selection (equal weights)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.metrics.scores import Floats, scorer

PATIENCE = 20  # steps without a new best score after which a climb ends; more steps allow finer weights
MAX_STEPS = 200
MIN_GAIN = 1e-9  # smaller differences between two scores are rounding errors

LARGE_ROWS = 5_000  # from so many rows on, a step scores only the promising runs, and an AUC of ranks is that of bins
BINS = 1 << 12  # of the mean rank: the AUC is off by about 1e-5 at 10,000 rows, far less than its noise
REFRESH = 8  # steps after which every run is scored again
MIN_TRIED, SHARE_TRIED = 8, 6  # between these, a step scores the best sixth of the runs, and eight at least
MAX_OF_CLASS = 50_000  # rows of each class that a selection uses: more hardly change an AUC's noise, only the time

_LEVELS = 1 << 15  # a rank is rounded to so many levels, so that sums of ranks are exact in float32
_EXACT_INTEGERS = 1 << 24  # integers up to this are exact in float32

Ints = NDArray[np.intp]


def hill_climb(
    V: Floats,
    y: NDArray[Any],
    *,
    objective: str = "auc",
    replacement: bool = True,
    bags: int = 5,
    steps: int = MAX_STEPS,
    seed: int = 0,
    are_ranks: bool = False,
) -> Floats:
    """Returns weights (runs,), none negative, with sum 1, by ensemble selection.

    Forward selection over the columns of `V` (n, runs) for targets `y` (n,), from the best single run on; the best
    prefix of the steps is kept (Caruana, Niculescu-Mizil, Crew & Ksikes 2004). With ``replacement`` a run can be added
    again, so that weights are shares of steps; without it the selected runs have equal weights. ``bags`` > 1 adds
    climbs on random halves of each class's rows and averages the weights, which limits the weight of a run that fits by
    chance (Bühlmann & Yu 2002; Caruana draws halves of hundreds of models instead, which would leave only noise in some
    bags of a blend of five).

    From `LARGE_ROWS` rows on, all but every `REFRESH`-th step score only the runs that were nearest to the best when
    they were last scored. With ``are_ranks``, for columns of ranks in (0, 1), the AUC is then that of the mean rank in
    `BINS` bins, and each climb uses at most `MAX_OF_CLASS` random rows of each class.
    """
    y, rng = np.asarray(y), np.random.default_rng(seed)
    climb = _selection(V, y, objective, are_ranks, rng)
    weights = climb(None, replacement, steps)
    for _ in range(bags - 1 if V.shape[1] > 1 else 0):
        halves = [
            rng.choice(rows, size=(len(rows) + 1) // 2, replace=False) for rows in map(np.flatnonzero, (y, y == 0))
        ]
        weights = weights + climb(np.sort(np.concatenate(halves)), replacement, steps)
    return weights / bags if V.shape[1] > 1 else weights


def select_forward(
    V: Floats, y: NDArray[Any], *, objective: str = "auc", seed: int = 0, are_ranks: bool = False
) -> Floats:
    """Returns equal weights (runs,) of the runs that forward selection keeps, and 0 for the others.

    Each step adds the column of `V` (n, runs) that improves the mean of those selected most; the best prefix is kept.
    It ends `PATIENCE` steps after the last new best.
    """
    return _selection(V, y, objective, are_ranks, np.random.default_rng(seed))(None, False, V.shape[1])


def select_backward(
    V: Floats, y: NDArray[Any], *, objective: str = "auc", seed: int = 0, are_ranks: bool = False
) -> Floats:
    """Returns equal weights (runs,) of the runs that backward elimination keeps, and 0 for the others.

    It starts from the mean of all columns of `V` (n, runs). Each step leaves out the one without which the mean scores
    best; of all sets the best is kept, of equally good ones the largest. It ends `PATIENCE` steps after the last new
    best.
    """
    y = np.asarray(y)
    sums = _sums_of(V, y, objective, are_ranks, np.random.default_rng(seed))(None)
    left: Ints = np.arange(V.shape[1])
    for run in left:
        sums.add(run)
    race, best_left, best, since = _Race(V.shape[1], len(y)), left, sums.value(), 0
    while len(left) > 1 and since < PATIENCE:
        removed, value = race.best(left, sums.without)
        sums.remove(removed)
        left = left[left != removed]
        since += 1
        if value > best + MIN_GAIN:
            best, best_left, since = value, left, 0
    weights = np.zeros(V.shape[1])
    weights[best_left] = 1 / len(best_left)
    return weights


def _selection(
    V: Floats, y: NDArray[Any], objective: str, are_ranks: bool, rng: np.random.Generator
) -> Callable[[Ints | None, bool, int], Floats]:
    """Returns a function of rows (None: all), replacement and steps: each run's share of the best prefix's steps."""
    sums_of, runs = _sums_of(V, np.asarray(y), objective, are_ranks, rng), V.shape[1]

    def climb(rows: Ints | None, replacement: bool, steps: int) -> Floats:
        sums, race = sums_of(rows), _Race(runs, len(y))
        counts, best_counts, best, since = np.zeros(runs), np.zeros(runs), -np.inf, 0
        remaining: Ints = np.arange(runs)
        for _ in range(steps):
            added, value = race.best(remaining, sums.with_one_more)
            sums.add(added)
            counts[added] += 1
            if value > best + MIN_GAIN:
                best, best_counts, since = value, counts.copy(), 0
            else:
                since += 1
            if not replacement:
                remaining = remaining[remaining != added]
            if since == PATIENCE or not len(remaining):
                break
        share: Floats = best_counts / best_counts.sum()
        return share

    return climb


class _Race:
    """Finds the best of many candidates in each step of a selection.

    With few rows every candidate is scored in every step. With many, all are scored in the first steps and in every
    `REFRESH`-th, in the others those that were nearest to the best when they were last scored: runs far behind do not
    catch up within a few steps, since one more step moves the mean by 1 / steps.
    """

    def __init__(self, runs: int, rows: int) -> None:
        self._gap = np.zeros(runs)  # to the best, when last scored
        self._scores_all, self._step = rows < LARGE_ROWS, 0

    def best(self, candidates: Ints, value_of: Callable[[int], float]) -> tuple[int, float]:
        """Returns the candidate with the highest value, of equal ones the first, and its value."""
        tried, number = candidates, max(MIN_TRIED, -(-len(candidates) // SHARE_TRIED))
        if not self._scores_all and self._step >= 3 and self._step % REFRESH and len(candidates) > number:
            tried = np.sort(candidates[np.argsort(self._gap[candidates], kind="stable")[:number]])
        self._step += 1
        values = np.array([value_of(int(run)) for run in tried])
        best = int(np.argmax(values))
        self._gap[tried] = values[best] - values
        return int(tried[best]), float(values[best])


class _ExactSums:
    """The sum of selected columns, and the exact value of the objective with one column more or less."""

    def __init__(self, V: Floats, y: NDArray[Any], objective: str) -> None:
        self._columns = [np.ascontiguousarray(column) for column in V.T]
        self._value_of, self._is_mean = scorer(objective, y), objective == "logloss"
        self._total, self._size = np.zeros_like(self._columns[0]), 0

    def add(self, run: int) -> None:
        self._total, self._size = self._total + self._columns[run], self._size + 1

    def remove(self, run: int) -> None:
        self._total, self._size = self._total - self._columns[run], self._size - 1

    def value(self) -> float:
        return self._value(self._total, self._size)

    def with_one_more(self, run: int) -> float:
        return self._value(self._total + self._columns[run], self._size + 1)

    def without(self, run: int) -> float:
        return self._value(self._total - self._columns[run], self._size - 1)

    def _value(self, total: Floats, size: int) -> float:
        # Metrics of a curve do not depend on the scale, so the sum serves; log loss needs the mean.
        return self._value_of(total * (1 / size) if self._is_mean and size > 1 else total)


class _BinnedSums:
    """The sum of selected columns of ranks, rounded to integers, and the AUC of their mean in `BINS` bins.

    An AUC of bins counts a pair within one bin as half won. It takes one pass over the rows instead of a sort.
    """

    def __init__(self, rounded: NDArray[np.float32], positive: NDArray[np.bool_], levels: int) -> None:
        """Takes the ranks (runs, n) as whole numbers below `levels`."""
        n, self._levels, self._positives = len(positive), levels, int(np.count_nonzero(positive))
        self._columns = np.ascontiguousarray(rounded[:, np.argsort(~positive, kind="stable")])  # positives first
        self._total, self._size = np.zeros(n, np.float32), 0
        # Arrays of many rows that were made anew for each AUC would cost more than what is computed in them.
        self._spare, self._bins = np.empty(n, np.float32), np.empty(n, np.intp)
        self._won = np.empty(n - self._positives, np.intp)

    def add(self, run: int) -> None:
        self._total += self._columns[run]
        self._size += 1

    def remove(self, run: int) -> None:
        self._total -= self._columns[run]
        self._size -= 1

    def value(self) -> float:
        self._spare[:] = self._total
        return self._auc_of_spare(self._size)

    def with_one_more(self, run: int) -> float:
        np.add(self._total, self._columns[run], out=self._spare)
        return self._auc_of_spare(self._size + 1)

    def without(self, run: int) -> float:
        np.subtract(self._total, self._columns[run], out=self._spare)
        return self._auc_of_spare(self._size - 1)

    def _auc_of_spare(self, size: int) -> float:
        self._spare *= np.float32(BINS / (self._levels * size))
        self._bins[:] = self._spare
        positives, negatives = self._bins[: self._positives], self._bins[self._positives :]
        _twice_won(positives).take(negatives, out=self._won, mode="clip")  # "raise" would copy `out`
        return float(self._won.sum()) / (2 * len(positives) * len(negatives))


def _twice_won(bins: Ints) -> Ints:
    """Returns for each bin how many of `bins` (n,) are higher, counted twice, and how many are the same."""
    n = len(bins)
    if n > BINS // 8:
        held = np.bincount(bins, minlength=BINS)
        return 2 * n - 2 * np.cumsum(held) + held
    edges = np.empty(2 * n + 2, np.intp)  # where the number falls by one: a sort of few is faster than a sum over bins
    edges[0], edges[-1] = 0, BINS
    edges[1 : n + 1] = bins
    np.add(bins, 1, out=edges[n + 1 : -1])
    edges.sort()
    return np.arange(2 * n, -1, -1).repeat(edges[1:] - edges[:-1])


def _sums_of(
    V: Floats, y: NDArray[Any], objective: str, are_ranks: bool, rng: np.random.Generator
) -> Callable[[Ints | None], _ExactSums | _BinnedSums]:
    """Returns a function that makes the sums for some rows (None: all)."""
    if objective != "auc" or not are_ranks or len(y) < LARGE_ROWS:
        return lambda rows: _ExactSums(V, y, objective) if rows is None else _ExactSums(V[rows], y[rows], objective)
    levels = min(_LEVELS, _EXACT_INTEGERS // (max(MAX_STEPS, V.shape[1]) + 1))
    rounded = np.empty(V.shape[::-1], np.float32)
    for run, column in enumerate(V.T):
        np.floor(column * levels, out=rounded[run], casting="same_kind")

    def binned(rows: Ints | None) -> _BinnedSums:
        kept = _at_most(np.arange(len(y)) if rows is None else rows, y, rng)
        part = rounded if len(kept) == len(y) else rounded[:, kept]
        return _BinnedSums(part, y[kept] == 1, levels)

    return binned


def _at_most(rows: Ints, y: NDArray[Any], rng: np.random.Generator) -> Ints:
    """Returns `rows` (n,), or a random part of them with `MAX_OF_CLASS` rows of each class at most."""
    classes: Sequence[Ints] = [rows[y[rows] == label] for label in (1, 0)]
    if max(map(len, classes)) <= MAX_OF_CLASS:
        return rows
    kept = [rng.choice(part, size=min(len(part), MAX_OF_CLASS), replace=False) for part in classes]
    return np.sort(np.concatenate(kept))

"""95 % intervals of scores and proportions for rows in groups: bootstrap, Wilson, clustered DeLong."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from scipy.special import ndtr

from dermstack.errors import ConfigError, DataError
from stack.metrics.decision_metrics import decision_metric, ratio, row_parts
from stack.metrics.own_metric import is_own_metric, own_value
from stack.metrics.row_values import checked_seed, row_values
from stack.metrics.scores import (
    Bools,
    Floats,
    RocCurve,
    check_one_per_row,
    check_one_type,
    check_same_order,
    checked,
    curve_metric,
    losses,
    positive_mask,
    raise_for_rows,
    score,
)

_CHUNK_BYTES = 16e6  # approximate memory of one chunk of bootstrap draws: more does not fit into a processor's cache
_KEPT_BYTES = 1 << 24  # of draws that are kept, for each of the last calls: 1000 draws of 8,000 groups
_DRAWN_AT_ONCE = 1 << 14  # random numbers of one call; with more than half as many groups, each draw is a call


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
    objective: str,
    y: ArrayLike,
    s: ArrayLike,
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    patient: ArrayLike | None = None,
) -> Interval:
    """Returns `objective` of scores `s` (n,) for targets `y` (n,) of 0 and 1, with its 95 % bootstrap interval.

    `objective` is "auc", "pauc80", "ap", "logloss" or a decision metric (`stack.metrics.decision_metrics`); log loss,
    reviews and biopsies are negated, so that higher is better. ``patient`` (n,) is needed for a metric within patients,
    whose rows must be in one split_group. Each of `draws` resamples draws whole split_groups (n,), stratified by groups
    with and without a positive row. Raises DataError where fewer than two groups have a positive, and for scores that
    are invalid for the objective.
    """
    drawn = bootstrap_scores(objective, y, s, split_group, draws=draws, seed=seed, patient=patient)[:, 0]
    return percentile_interval(score(objective, y, s, patient=patient), drawn)


def paired_difference(
    objective: str,
    y: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    patient: ArrayLike | None = None,
) -> Interval:
    """Returns `objective` of scores `a` (n,) minus that of `b` (n,), with its interval from shared bootstrap draws.

    Above zero `a` is better; the difference exceeds noise where the interval excludes zero. Otherwise like `interval`.
    """
    check_same_order(targets=y, a=a, b=b, split_groups=split_group)
    positive = positive_mask(y)
    a, b = (checked(positive, scores)[1] for scores in (a, b))
    both = np.column_stack([a, b])
    drawn = bootstrap_scores(objective, y, both, split_group, draws=draws, seed=seed, patient=patient)
    of_a, of_b = (score(objective, y, scores, patient=patient) for scores in (a, b))
    return percentile_interval(of_a - of_b, drawn[:, 0] - drawn[:, 1])


def bootstrap_scores(
    objective: str,
    y: ArrayLike,
    s: ArrayLike,
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    patient: ArrayLike | None = None,
) -> Floats:
    """Returns `score` of each column of `s` (n,) or (n, c) on resamples of whole split_groups: (draws, c).

    Groups with a positive row and groups without are drawn separately, as many of each as the data has, so that every
    draw has positives. All columns share the same draws. A draw without a negative (possible where nearly every group
    has a positive) is NaN, and so is one on which a decision metric is undefined. Raises DataError where fewer than two
    groups have a positive.
    """
    check_same_order(targets=y, scores=s, split_groups=split_group)
    positive = positive_mask(y)
    columns = np.atleast_2d(row_values(s, "scores").T)
    group = _group_codes(split_group, positive)
    if is_own_metric(objective):
        patients = group if patient is None else pd.factorize(np.asarray(patient, dtype=object))[0]
        return _resampled_values(objective, positive, columns, group, patients, draws=draws, seed=seed)
    tallies = [_tally(objective, *checked(positive, column), group, patient) for column in columns]
    return _drawn_values(tallies, positive, group, draws=draws, seed=seed)


def bootstrap_sums(
    y: ArrayLike, values: sparse.csr_array, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0
) -> Floats:
    """Returns the column sums of `values` (n, c) over the rows that `bootstrap_scores` draws: (draws, c)."""
    positive = positive_mask(y)
    group = _group_codes(split_group, positive)
    members = sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group)))))
    tally = (members @ values).T.tocsr()
    return _drawn_values([(tally, np.transpose)], positive, group, draws=draws, seed=seed, width=tally.shape[0])


def _resampled_values(
    objective: str,
    positive: Bools,
    columns: NDArray[Any],
    group: NDArray[np.intp],
    patient: NDArray[np.intp],
    *,
    draws: int,
    seed: int,
) -> Floats:
    """Returns a user's own metric of each column (c, n) on the rows of each draw: (draws, c); NaN without a negative.

    A group that is drawn twice becomes two groups, and so do its patients.
    """
    _check_draws(draws)
    drawn = _drawn_groups(positive, group, np.random.default_rng(checked_seed(seed)))
    values = np.full((draws, len(columns)), np.nan)
    for number in range(draws):
        times = next(drawn).astype(np.intp)[group]
        rows = np.repeat(np.arange(len(group)), times)
        if positive[rows].all():
            continue
        copy = np.arange(len(rows)) - np.repeat(np.cumsum(times) - times, times)
        copies_of = patient[rows] * (int(times.max()) + 1) + copy
        values[number] = [own_value(objective, positive[rows], column[rows], copies_of) for column in columns]
    return values


def _check_draws(draws: int) -> None:
    if not isinstance(draws, int | np.integer) or draws < 2:
        raise ConfigError(f"draws={draws!r}: give a whole number of at least 2, such as 1000")


# A matrix (k, groups), and the function that computes scores from its product with the draw counts (groups, draws).
Tally = tuple[Any, Callable[[Floats], Floats]]


def _drawn_values(
    tallies: Sequence[Tally], positive: Bools, group: NDArray[np.intp], *, draws: int, seed: int, width: int = 1
) -> Floats:
    """Returns the values of each tally on each draw of groups: (draws, tallies · width)."""
    _check_draws(draws)
    floats_a_draw = 2 * (group.max() + 1) + 4 * max(tally.shape[0] for tally, _ in tallies)
    chunk = max(1, int(_CHUNK_BYTES / 8 / floats_a_draw))
    values = np.empty((draws, len(tallies), width))
    drawn = _draw_counts(positive, group, draws, checked_seed(seed), chunk)
    for start, draw_counts in zip(range(0, draws, chunk), drawn, strict=True):
        stop = start + draw_counts.shape[1]
        for c, (tally, value_of) in enumerate(tallies):
            values[start:stop, c] = value_of(tally @ draw_counts).reshape(-1, width)
    return values.reshape(draws, -1)


def _tally(
    objective: str, positive: Bools, s: NDArray[Any], group: NDArray[np.intp], patient: ArrayLike | None = None
) -> Tally:
    """Returns each group's contribution to the score (k, groups), and the function that scores weighted sums of it.

    Its product with the draw counts (groups, draws) gives the curves of all draws without reading the rows again: the
    cost is the number of distinct (step, group) pairs times the number of draws.
    """
    if objective == "logloss":
        sums = np.stack([np.bincount(group, losses(positive, s)), np.bincount(group)])
        return sparse.csr_array(sums), lambda drawn: -drawn[0] / drawn[1]
    metric = decision_metric(objective)
    if metric is not None and metric.kind != "reviews":
        parts = row_parts(metric, positive, s, patient)
        return sparse.csr_array(np.stack([np.bincount(group, part) for part in parts.T])), partial(ratio, metric)
    value_of = curve_metric(objective)
    steps, step = np.unique(s[positive], return_inverse=True)
    n = steps.size
    # Place of a negative: 2 i lies below step i (and above step i - 1), 2 i + 1 equals step i.
    place = np.searchsorted(steps, s[~positive], "left") + np.searchsorted(steps, s[~positive], "right")
    at = (np.concatenate([step, n + place]), np.concatenate([group[positive], group[~positive]]))
    tally = sparse.coo_array((np.ones(s.size), at), shape=(3 * n + 1, group.max() + 1)).tocsr()

    def values(drawn: Floats) -> Floats:
        negatives = np.cumsum(drawn[n:], axis=0)
        below, through = negatives[:-1:2], negatives[1::2]
        with np.errstate(invalid="ignore"):  # 0 / 0 where a draw has no negative
            value = value_of(RocCurve(drawn[:n], below, through - below, negatives[-1]))
        return np.where(negatives[-1] > 0, value, np.nan)

    return tally, values


def _draw_counts(positive: Bools, group: NDArray[np.intp], draws: int, seed: int, chunk: int) -> Iterator[Floats]:
    """Yields how often each group is drawn (groups, draws), for at most ``chunk`` draws at once, ``draws`` in all.

    Making the draws takes as long as scoring them, and they depend on nothing but which groups have a positive: where
    they fit into `_KEPT_BYTES`, those of the last few calls are kept for other scores of the same rows.
    """
    has_positive = np.bincount(group, positive) > 0
    if 2 * has_positive.size * draws > _KEPT_BYTES or has_positive.size > np.iinfo(np.uint16).max:
        drawn = _drawn_groups(positive, group, np.random.default_rng(seed))
        for start in range(0, draws, chunk):
            yield np.stack([next(drawn) for _ in range(start, min(start + chunk, draws))], axis=1)
        return
    counts = _kept_draws(has_positive.tobytes(), int(draws), seed)
    for start in range(0, draws, chunk):
        yield counts[:, start : start + chunk].astype(np.float64)


@lru_cache(maxsize=4)
def _kept_draws(has_positive: bytes, draws: int, seed: int) -> NDArray[np.uint16]:
    held = np.frombuffer(has_positive, bool)
    drawn = _drawn_groups(held, np.arange(held.size), np.random.default_rng(seed))
    counts = np.empty((draws, held.size), np.uint16)
    for number in range(draws):
        counts[number] = next(drawn)
    return np.ascontiguousarray(counts.T)


def _drawn_groups(positive: Bools, group: NDArray[np.intp], rng: np.random.Generator) -> Iterator[Floats]:
    """Yields, for each draw, how often each group was drawn (groups,)."""
    has_positive = np.bincount(group, positive) > 0
    if has_positive.sum() < 2:
        raise DataError(
            f"{has_positive.sum()} of {has_positive.size} split_groups hold positives: an interval needs at least two"
        )
    strata = [np.flatnonzero(has_positive), np.flatnonzero(~has_positive)]
    n = has_positive.size
    block = _DRAWN_AT_ONCE // n
    if block < 2:
        while True:
            draw_counts = np.zeros(n)
            for members in strata:
                size = members.size
                draw_counts[members] = np.bincount(rng.integers(size, size=size), minlength=size) if size else 0
            yield draw_counts
    # Few groups: the same random numbers, drawn for many resamples in one call, which costs most otherwise.
    members = np.concatenate(strata)
    sizes = np.repeat([stratum.size for stratum in strata], [stratum.size for stratum in strata])
    first = np.where(np.arange(n) < strata[0].size, 0, strata[0].size)
    of_draw = n * np.arange(block)[:, None]
    while True:
        drawn = members[first + rng.integers(np.broadcast_to(sizes, (block, n)))] + of_draw
        yield from np.bincount(drawn.ravel(), minlength=block * n).reshape(block, n).astype(float)


def percentile_interval(value: float, drawn: Floats) -> Interval:
    """Returns `value` with the 2.5th and 97.5th percentile and the standard deviation of its draws (draws,).

    Draws that are NaN are left out; raises DataError where all are.
    """
    drawn = drawn[~np.isnan(drawn)]
    if not drawn.size:
        raise DataError("no draw of split_groups holds both classes: add groups with the rarer class")
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(value, float(low), float(high), float(np.std(drawn)))


GIVE_GROUPS = "give each row its group, or one of its own"


def _group_codes(split_group: ArrayLike, positive: Bools) -> NDArray[np.intp]:
    group = check_one_per_row(split_group, positive, "split_groups")
    codes, names = pd.factorize(group, sort=True)  # sorted, so that the draws do not depend on the order of the rows
    raise_for_rows(codes < 0, group, "split_groups are missing", GIVE_GROUPS)
    check_one_type(names, "split_groups")
    return codes


Z95 = 1.959963984540054


def normal_interval(value: float, variance: float) -> Interval:
    """Returns a value with its 95 % interval, if its error is normal with this variance; one below 0 counts as 0."""
    se = math.sqrt(max(variance, 0.0))
    return Interval(float(value), float(value - Z95 * se), float(value + Z95 * se), se)


def proportion(hit: ArrayLike, group: ArrayLike, *, z: float = Z95) -> Interval:
    """Returns the share of rows with `hit` (n,), with a 95 % interval for rows clustered in `group` (n,).

    Wilson's interval (1927) on the effective number of rows: n divided by the design effect of the groups (Rao & Scott
    1992), which is at least 1. Where all rows are hits, or none, the effect cannot be estimated and each group counts
    as one row. Unlike a bootstrap interval it does not shrink to a point there: for 20 of 20 it is 0.84 to 1. ``se`` is
    half the interval divided by 1.96. All values are NaN without rows. ``z`` is another quantile of the normal
    distribution than that of 95 %, for several intervals together.
    """
    check_same_order(hit=hit, group=group)
    hit = row_values(hit, "hits").astype(np.float64)
    raise_for_rows(np.isnan(hit), hit, "hits are missing", "leave these rows out")
    if not hit.size:
        return Interval(np.nan, np.nan, np.nan, np.nan)
    share, rows = float(hit.mean()), _effective_sample_size(hit, group)
    centre = (share + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(share * (1 - share) / rows + z**2 / (4 * rows**2))
    low, high = min(float(centre - half), share), max(float(centre + half), share)  # rounding at 0 and 1
    return Interval(share, max(low, 0.0), min(high, 1.0), float(half / z))


def _effective_sample_size(hit: np.ndarray, group: ArrayLike) -> float:
    codes, _ = pd.factorize(np.asarray(group, dtype=object))
    raise_for_rows(codes < 0, np.asarray(group, dtype=object), "groups are missing", GIVE_GROUPS)
    n, share = hit.size, hit.mean()
    groups = int(codes.max()) + 1
    if share in (0, 1) or groups == 1:
        return float(groups)
    group_sums = np.bincount(codes, hit - share)
    variance = groups / (groups - 1) * float(group_sums @ group_sums) / n**2
    independent = share * (1 - share) / (n - 1)  # variance if each row were its own group
    return float(n / max(1.0, variance / independent))


@dataclass(frozen=True)
class ClusteredAUC:
    """AUCs of c scores on the same rows, and their (c, c) covariance for sampled groups."""

    auc: NDArray[np.float64]  # (c,)
    covariance: NDArray[np.float64]  # (c, c)

    def interval(self, number: int = 0) -> Interval:
        """Returns the AUC of one score with its 95 % interval."""
        return normal_interval(float(self.auc[number]), float(self.covariance[number, number]))

    def difference(self, a: int = 0, b: int = 1) -> tuple[Interval, float]:
        """Returns the AUC of `a` minus that of `b` with its 95 % interval, and the two-sided p-value of no difference.

        Two scores with the same order of rows have difference 0 and p-value 1.
        """
        variance = self.covariance[a, a] + self.covariance[b, b] - 2 * self.covariance[a, b]
        value = float(self.auc[a] - self.auc[b])
        if variance <= 1e-18:  # zero up to rounding
            return Interval(value, value, value, 0.0), float(value == 0)
        return normal_interval(value, float(variance)), float(2 * ndtr(-abs(value) / np.sqrt(variance)))


def clustered_auc(y: ArrayLike, scores: ArrayLike, split_group: ArrayLike) -> ClusteredAUC:
    """Returns the AUCs of ``scores`` (n,) or (n, c) on targets ``y`` (n,), with a covariance for clustered rows.

    Rows of one ``split_group`` (n,) may be dependent. O(n log n) for each score: the structural components of DeLong,
    DeLong & Clarke-Pearson (1988) by midranks (Sun & Xu 2014), summed within groups as by Obuchowski (1997), whose
    covariance has a term for a group's positives with its negatives. Raises DataError for scores that are not finite
    or missing, for targets other than 0 and 1, and where fewer than two groups have a class.
    """
    check_same_order(targets=y, scores=scores, split_groups=split_group)
    positive = positive_mask(y)
    columns = row_values(scores, "scores").astype(np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    if not np.isfinite(columns).all():
        raise DataError(
            f"{int((~np.isfinite(columns)).any(axis=1).sum())} rows have a score that is NaN or inf: drop these rows"
        )
    given = np.asarray(split_group)
    given = given if given.dtype.kind in "iu" else np.asarray(split_group, dtype=object)
    given = check_one_per_row(given, positive, "split_groups")
    group, _ = pd.factorize(given)
    raise_for_rows(group < 0, given, "split_groups are missing", GIVE_GROUPS)
    n_groups = int(group.max(initial=-1)) + 1
    counts = [np.bincount(group[rows], minlength=n_groups) for rows in (positive, ~positive)]
    holding = [int((count > 0).sum()) for count in counts]
    if min(holding) < 2:
        raise DataError(
            f"{holding[0]} groups hold positives and {holding[1]} hold negatives: an interval needs two of each"
        )
    parts = [auc_components(column, positive) for column in columns.T]
    auc = np.array([above.mean() for above, _ in parts])
    # For positives and for negatives: each group's sum of deviations from the AUC, (c, groups).
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


def midranks(values: NDArray[Any]) -> Floats:
    """Returns the ranks (n,) of ``values`` (n,) from 1 on; equal values share the mean of theirs.

    As `scipy.stats.rankdata`, whose import takes longer than most commands.
    """
    order = np.argsort(values)  # the order of equal values does not matter
    in_order = values[order]
    starts = np.flatnonzero(np.concatenate([[True], in_order[1:] != in_order[:-1]])[: len(values)])
    ends = np.append(starts[1:], len(values))
    ranks = np.empty(len(values))
    ranks[order] = np.repeat((starts + ends + 1) / 2, ends - starts)
    return ranks


def auc_components(score: NDArray[np.float64], positive: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """Returns, for scores (n,), each positive's share of negatives below it and each negative's of positives above it.

    Ties count half. The variance of the AUC of independent rows is the sum of the variances of both arrays, each
    divided by its length.
    """
    m, n = int(positive.sum()), int((~positive).sum())
    all_ranks = midranks(score)
    among_positives, among_negatives = midranks(score[positive]), midranks(score[~positive])
    return [(all_ranks[positive] - among_positives) / n, 1 - (all_ranks[~positive] - among_negatives) / m]

"""Ranks of new scores: interpolated, strictly increasing empirical distributions, one for each run and fold net."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from stack.predictions.net_scale import nets_differ

_LARGEST = float(np.finfo(np.float64).max)
AVERAGED = -1  # instead of a net's fold: the prediction is an average over all nets of its run


class Ecdf:
    """Empirical distribution of a column, as a strictly increasing function from finite numbers to (0, 1).

    A training value gets its mid-rank, (rows below + half of the rows tied with it) / rows; values between two
    training values are interpolated, since a step function has no more ranks than there are training rows, and
    test scores would tie. Outside, the tails fall off as 1 / (1 + distance / range of the training values): an
    exponential tail is constant in float64 after about thirty ranges, and scores there would tie. The only
    value of a constant column has rank 0.5.

    >>> Ecdf().fit([1.0, 2.0, 2.0, 4.0])([1.0, 2.0, 3.0, 4.0, 7.0])
    array([0.125 , 0.5   , 0.6875, 0.875 , 0.9375])
    """

    values_: NDArray[np.float64]  # distinct, ascending
    ranks_: NDArray[np.float64]  # ranks of values_

    def fit(self, values: ArrayLike) -> Ecdf:
        """Fits the distribution of `values` (n,). Raises DataError if there are none or one is not finite."""
        values = _finite(values)
        if not values.size:
            raise DataError("no values to rank against: give at least one")
        self.values_, count = np.unique(values, return_counts=True)
        self.ranks_ = (np.cumsum(count) - count / 2) / values.size
        return self

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        """Returns the ranks (n,) of `values` (n,). Raises DataError if one is not finite."""
        values, knots = _finite(values), self.values_
        first, last = float(knots[0]), float(knots[-1])
        reach = float(values.max(initial=last)) - float(values.min(initial=first))
        scale = 1.0 if math.isfinite(reach) else 0.25  # exact, and then no difference overflows
        extent = (last * scale - first * scale) or scale
        ranks = self._between(np.clip(values, first, last), scale)
        below, above = values < first, values > last
        furthest = extent * (_LARGEST / 2)  # so that a distance in ranges of the training values does not overflow
        left_of = np.minimum(first * scale - values[below] * scale, furthest)
        right_of = np.minimum(values[above] * scale - last * scale, furthest)
        ranks[below] = self.ranks_[0] / (1 + left_of / extent)
        ranks[above] = 1 - (1 - self.ranks_[-1]) / (1 + right_of / extent)
        return np.clip(ranks, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))

    def _between(self, values: NDArray[np.float64], scale: float) -> NDArray[np.float64]:
        # Not np.interp: its product with the slope can exceed the next rank by a rounding error, or overflow.
        knots = self.values_ * scale
        left = np.searchsorted(self.values_, values, side="right") - 1
        right = np.minimum(left + 1, knots.size - 1)
        gap = knots[right] - knots[left]
        share = np.divide(values * scale - knots[left], gap, out=np.zeros_like(values), where=gap > 0)
        step = self.ranks_[right] - self.ranks_[left]
        return np.minimum(self.ranks_[left] + share * step, self.ranks_[right])


def mid_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Returns `Ecdf().fit(values)(values)`, the mid-rank of each value (n,) among all, with one sort."""
    values = _finite(values)
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = ((np.cumsum(count) - count / 2) / values.size)[place]
    return ranks


class NetRanks:
    """One `Ecdf` for each run and each of its fold nets, since every net has a scale of its own.

    Given the groups of the rows, the nets of a run that differ no more than their rows do share one distribution
    (`stack.predictions.net_scale.nets_differ`). Averaged predictions (net AVERAGED) are ranked against those of all
    nets of the run, unless averaged predictions were among those fitted on.
    """

    ecdfs_: list[dict[int, Ecdf]]  # for each run: net -> its distribution

    def fit(self, P: ArrayLike, nets: ArrayLike, groups: ArrayLike | None = None) -> NetRanks:
        """Fits the distributions of predictions `P` (n, r), made by `nets` (n,) or (n, r), of rows in `groups` (n,).

        Without groups every net has its own distribution.
        """
        P, nets = _with_nets(P, nets)
        self.ecdfs_ = []
        for column, made_by in zip(P.T, nets.T, strict=True):
            pooled = Ecdf().fit(column)
            own = groups is None or nets_differ(column, made_by, groups)
            ecdfs = {int(net): Ecdf().fit(column[made_by == net]) if own else pooled for net in np.unique(made_by)}
            self.ecdfs_.append({AVERAGED: pooled, **ecdfs})
        return self

    def transform(self, P: ArrayLike, nets: ArrayLike) -> NDArray[np.float64]:
        """Returns the ranks (n, r) in (0, 1) of `P` (n, r), made by `nets`.

        Raises DataError for another number of runs and for a net that was not in fit.
        """
        P, nets = _with_nets(P, nets)
        if P.shape[1] != len(self.ecdfs_):
            raise DataError(
                f"predictions are of {P.shape[1]} runs, but ranks were fitted on {len(self.ecdfs_)}: give the same runs"
            )
        ranks = np.empty_like(P)
        for run in range(P.shape[1]):
            ranks[:, run] = self.transform_run(P[:, run], nets[:, run], run)
        return ranks

    def transform_run(self, values: NDArray[np.float64], nets: NDArray[np.integer], run: int) -> NDArray[np.float64]:
        """Returns the ranks (n,) of a run's predictions (n,), made by `nets` (n,); raises as `transform` does."""
        ecdfs, ranks = self.ecdfs_[run], np.empty(len(values))
        for net in np.unique(nets):
            if net not in ecdfs:
                known = ", ".join(str(k) for k in ecdfs)
                raise DataError(f"run {run}: no ranks for net {net} (known: {known}): fit them on its rows")
            made_by = nets == net
            ranks[made_by] = ecdfs[net](values[made_by])
        return ranks

    def extents(self) -> NDArray[np.float64]:
        """Returns the lowest and the highest fitted value of each run, (2, r)."""
        low = [min(ecdf.values_[0] for ecdf in ecdfs.values()) for ecdfs in self.ecdfs_]
        high = [max(ecdf.values_[-1] for ecdf in ecdfs.values()) for ecdfs in self.ecdfs_]
        return np.array([low, high])

    def fit_transform(self, P: ArrayLike, nets: ArrayLike) -> NDArray[np.float64]:
        """Fits on predictions `P` (n, r) and returns their ranks (n, r)."""
        return self.fit(P, nets).transform(P, nets)


def net_moments(values: ArrayLike, nets: ArrayLike, groups: ArrayLike | None = None) -> dict[int, tuple[float, float]]:
    """Returns (mean, standard deviation) of each net's ``values`` (n,); AVERAGED has the means of these over nets.

    Given the ``groups`` (n,) of the rows, nets that differ no more than their rows do have the moments of all values
    (`stack.predictions.net_scale.nets_differ`). AVERAGED is for averaged predictions and unknown nets; where ``nets``
    (n,) contain it, it has its own moments.
    """
    values, nets = np.asarray(values, dtype=np.float64), np.asarray(nets)
    own = {}
    for net in np.unique(nets):
        of_net = values[nets == net]
        own[int(net)] = float(of_net.mean()), max(float(of_net.std()), 1e-6)
    mean, spread = np.mean(list(own.values()), axis=0).tolist()
    if groups is not None and not nets_differ(values, nets, groups):
        mean, spread = float(values.mean()), max(float(values.std()), 1e-6)
        own = dict.fromkeys(own, (mean, spread))
    return {AVERAGED: (mean, spread), **own}


def whole_numbers(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Returns fold or net numbers as int64. Raises DataError, naming the first, for strings, fractions and NaN."""
    given = np.asarray(values)
    if given.dtype.kind in "biu":
        return given.astype(np.int64)
    numbers = np.full(given.shape, np.nan)
    if given.dtype.kind == "f":
        numbers = given
    elif given.dtype.kind == "O":  # such as whole numbers of a DataFrame with other columns
        is_number = np.array([isinstance(value, int | float | np.number) for value in given.ravel()], bool)
        numbers[is_number.reshape(given.shape)] = given.ravel()[is_number].astype(np.float64)
    whole = np.isfinite(numbers) & (numbers == np.round(numbers))
    if not whole.all():
        first = given[~whole].ravel()[:1].tolist()[0]
        raise DataError(
            f"{name} holds {first!r}: give whole numbers, for example with "
            f"`{name}, names = pandas.factorize({name}, sort=True)`"
        )
    return given.astype(np.int64)


def _finite(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, dtype=np.float64)
    other = np.flatnonzero(~np.isfinite(values))
    if other.size:
        raise DataError(f"{other.size} values are NaN or inf (first in row {other[0]}): ranks need finite numbers")
    return values


def _with_nets(P: ArrayLike, nets: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    P, nets = np.asarray(P, dtype=np.float64), np.asarray(nets)
    if P.ndim != 2:
        raise DataError(f"predictions have shape {P.shape}: give (rows, runs)")
    nets = nets[:, None] if nets.ndim == 1 else nets
    if nets.shape not in (P.shape, (len(P), 1)):
        raise DataError(f"nets have shape {nets.shape}, predictions {P.shape}: give one a row or one a prediction")
    return P, np.broadcast_to(whole_numbers(nets, "nets"), P.shape)

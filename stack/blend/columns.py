"""Weights and transforms of the runs in a blend (`Weighting`), and the columns they apply to (`NetScaler`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from stack.metrics.resolution import Limits, clip_limits, clipped_logit
from stack.metrics.scores import Bools, Floats
from stack.predictions.ranks import AVERAGED, NetRanks, net_moments

LeftOutFolds = frozenset[int]  # folds that are left out when weights or a method are chosen
TRANSFORMS = ("probability", "logit", "rank")

FINEST_EDGE = 1e-12  # probabilities are clipped at least this far from 0 and 1, so that their logits are finite
FINEST_LIMITS: Limits = (FINEST_EDGE, 1 - FINEST_EDGE)


@dataclass(frozen=True)
class Weighting:
    """Transform and weight of each run in a blend; also an exponent of its ranks, or a part of its logits."""

    transforms: tuple[str, ...]
    weights: tuple[float, ...]  # none negative, with sum 1
    powers: tuple[float, ...] = ()  # empty: all 1
    logit_shares: tuple[float, ...] = ()  # share of a run's weight that goes to its standard logit; empty: none

    @classmethod
    def of(cls, transforms: Iterable[str], weights: ArrayLike) -> Weighting:
        """Returns a weighting with `weights` (runs,) divided by their sum, or equal weights where all are zero."""
        given = np.asarray(weights, dtype=np.float64)
        share = given / given.sum() if given.any() else np.full(given.shape, 1 / given.size)
        return cls(tuple(map(str, transforms)), tuple(map(float, share)))

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Weighting:
        """Returns the weighting that `dataclasses.asdict` stored."""
        transforms, weights, powers = (tuple(state[name]) for name in ("transforms", "weights", "powers"))
        return cls(transforms, weights, powers, tuple(state.get("logit_shares", ())))  # absent in earlier versions

    def in_words(self) -> tuple[str, ...]:
        """Returns as what each run enters the blend: its transform, or the percentages of rank and logit."""
        shares = self.logit_shares or (0.0,) * len(self.transforms)
        return tuple(
            f"{1 - share:.0%} {kind}, {share:.0%} logit" if share else kind
            for kind, share in zip(self.transforms, shares, strict=True)
        )

    def spread_over(self, used: Bools) -> Weighting:
        """Returns the weighting of all runs (runs,) where this one has only those `used`; the others weigh nothing."""

        def spread(values: tuple[Any, ...], other: Any) -> tuple[Any, ...]:
            found = iter(values)
            return tuple(next(found) if one else other for one in used) if values else ()

        return Weighting(
            spread(self.transforms, "rank"), spread(self.weights, 0.0), spread(self.powers, 1.0),
            spread(self.logit_shares, 0.0),
        )  # fmt: skip

    def checked(self, runs: int) -> Weighting:
        """Returns itself; raises DataError unless it has `runs` weights, none negative, with sum 1."""
        weights = np.asarray(self.weights, dtype=np.float64)
        right_shape = weights.shape == (runs,) and len(self.transforms) == runs
        right_shape &= all(len(values) in (0, runs) for values in (self.powers, self.logit_shares))
        if not right_shape or not (weights >= 0).all() or not np.isclose(weights.sum(), 1, atol=1e-6):
            raise DataError(f"weights {weights}: give {runs} weights, one for each run, none negative, with sum 1")
        if unknown := set(self.transforms) - {*TRANSFORMS}:
            raise DataError(f"unknown transforms {', '.join(unknown)}: choose from {', '.join(TRANSFORMS)}")
        if not all(0 <= share <= 1 for share in self.logit_shares):
            raise DataError(f"logit_shares {self.logit_shares}: give shares between 0 and 1")
        return self


class NetScaler:
    """Ranks and scales with which `TransformedRuns` transforms predictions, of each fold net where the nets differ.

    Fitted: `ranks_`; `is_probability_` (runs,), whether a run's predictions lie in [0, 1] (other runs are used by rank
    only); `moments_`, mean and standard deviation of each run's probabilities; `limits_`, at which a run's
    probabilities are clipped before they become logits (half of their resolution); `logit_moments_`, mean and standard
    deviation of the logits of each of its nets.
    """

    def fit(self, P: ArrayLike, nets: ArrayLike, groups: ArrayLike | None = None) -> NetScaler:
        """Fits to predictions `P` (n, runs) made by `nets` (n,) or (n, runs), without targets.

        Given the `groups` (n,) of the rows, nets that differ no more than their rows do share one scale
        (`stack.predictions.net_scale`); without them each net has its own.
        """
        self.ranks_ = NetRanks().fit(P, nets, groups)
        low, high = self.ranks_.extents()
        self.is_probability_: Bools = (low >= 0) & (high <= 1)
        p = np.asarray(P, dtype=np.float64)
        nets = np.broadcast_to(np.asarray(nets).reshape(len(p), -1), p.shape)
        self.moments_ = [(float(column.mean()), _spread(float(column.std()))) for column in p.T]
        self.limits_: list[Limits] = [
            clip_limits(column, FINEST_EDGE) if is_probability else FINEST_LIMITS
            for column, is_probability in zip(p.T, self.is_probability_, strict=True)
        ]
        self.logit_moments_ = [
            net_moments(clipped_logit(column, limits), made_by, groups) if is_probability else {}
            for column, limits, made_by, is_probability in zip(
                p.T, self.limits_, nets.T, self.is_probability_, strict=True
            )
        ]
        return self

    def share_inside(self, run: int) -> float:
        """Returns the share of a run's fitted predictions that lie in [0, 1]."""
        low, high = self.ranks_.ecdfs_[run][AVERAGED](np.array([0.0, 1.0]))
        return float(high - low)

    def standard_logit(self, p: Floats, nets: NDArray[Any], run: int) -> Floats:
        """Returns the logits of a run's probabilities (n,) made by `nets` (n,), each net's standardised."""
        values, by_net = clipped_logit(p, self.limits_[run]), self.logit_moments_[run]
        made = np.empty(len(values))
        for net in np.unique(nets):
            rows = nets == net
            mean, spread = by_net.get(int(net), by_net[AVERAGED])
            made[rows] = (values[rows] - mean) / spread
        return made


def standard_rank(rank: Floats, power: float = 1.0) -> Floats:
    """Returns `rank` (n,) in (0, 1) raised to `power`, standardised by the moments of a uniform variable so raised."""
    mean = 1 / (power + 1)
    spread = np.sqrt(1 / (2 * power + 1) - mean**2)
    standard: Floats = ((rank if power == 1 else rank**power) - mean) / spread
    return standard


def weighted_sum(V: Floats, weights: ArrayLike) -> Floats:
    """Returns `V @ weights`, (n,), with exactly equal results for equal rows.

    BLAS rounds the last rows of a block differently: of 8,022 equal rows, some would no longer tie.
    """
    total = np.zeros(len(V))
    for column, weight in zip(V.T, np.asarray(weights), strict=True):
        total += weight * column
    return total


def _spread(value: float) -> float:
    return value if value > 1e-12 else 1.0  # a constant run has no information, so its scale does not matter

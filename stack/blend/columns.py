"""How runs are weighed: a transform and a weight for each, on columns that are fitted without targets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit

from stack.errors import DataError
from stack.metrics.scores import Bools, Floats
from stack.ranks import AVERAGED, NetRanks, net_moments

LeftOutFolds = frozenset[int]  # the folds whose rows a choice has not seen
TRANSFORMS = ("probability", "logit", "rank")

_EDGE = 1e-12  # a probability nearer to 0 or 1 is taken as this near, so that its logit is finite


@dataclass(frozen=True)
class Weighting:
    """What a blend does with each run: how it enters, to which power (of ranks), and with what weight."""

    transforms: tuple[str, ...]
    weights: tuple[float, ...]  # none negative, with sum 1
    powers: tuple[float, ...] = ()  # empty: all 1

    @classmethod
    def of(cls, transforms: Iterable[str], weights: ArrayLike) -> Weighting:
        """Weights (runs,) divided by their sum; equal ones where all are zero."""
        given = np.asarray(weights, dtype=np.float64)
        share = given / given.sum() if given.any() else np.full(given.shape, 1 / given.size)
        return cls(tuple(map(str, transforms)), tuple(map(float, share)))

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Weighting:
        """Read what `dataclasses.asdict` gave."""
        return cls(*(tuple(state[name]) for name in ("transforms", "weights", "powers")))

    def checked(self, runs: int) -> Weighting:
        """Itself; DataError unless it weighs this many runs, on the simplex."""
        weights = np.asarray(self.weights, dtype=np.float64)
        right_shape = weights.shape == (runs,) and len(self.transforms) == runs and len(self.powers) in (0, runs)
        if not right_shape or not (weights >= 0).all() or not np.isclose(weights.sum(), 1, atol=1e-6):
            raise DataError(f"weights {weights}: give {runs}, one a run, none negative, with sum 1")
        if unknown := set(self.transforms) - {*TRANSFORMS}:
            raise DataError(f"transforms {', '.join(unknown)}: choose from {', '.join(TRANSFORMS)}")
        return self


class NetScaler:
    """What predictions are before they are weighed, each run within its fold nets, since every net has its own scale.

    Fitted: `ranks_`; `is_probability_` (runs,), whether a run's predictions lie in [0, 1], without which it enters by
    its rank only; mean and spread of each run's probabilities, and of the logits of each of its nets.
    """

    def fit(self, P: ArrayLike, nets: ArrayLike) -> NetScaler:
        """Learn from predictions `P` (n, runs) made by `nets` (n,) or (n, runs), without targets."""
        self.ranks_ = NetRanks().fit(P, nets)
        low, high = self.ranks_.extents()
        self.is_probability_: Bools = (low >= 0) & (high <= 1)
        p = np.asarray(P, dtype=np.float64)
        nets = np.broadcast_to(np.asarray(nets).reshape(len(p), -1), p.shape)
        self.moments_ = [(float(column.mean()), _spread(float(column.std()))) for column in p.T]
        self.logit_moments_ = [
            net_moments(_logit(column), made_by) if is_probability else {}
            for column, made_by, is_probability in zip(p.T, nets.T, self.is_probability_, strict=True)
        ]
        return self

    def unscaled(self, P: Floats, nets: NDArray[Any], transforms: Sequence[str]) -> Floats:
        """Probabilities as they are and ranks in (0, 1): (n, runs), each run by its own of the two."""
        return np.where(np.array(transforms) == "probability", P, self.ranks_.transform(P, nets))

    def standardised(
        self, P: Floats, nets: NDArray[Any], transforms: Sequence[str], powers: Sequence[float] = ()
    ) -> Floats:
        """Each run by its own transform, with mean 0 and spread 1 on the rows of the fit: (n, runs).

        Ranks are raised to their power and take the moments of a uniform variable.
        """
        ranks = self.ranks_.transform(P, nets) if "rank" in transforms else None
        nets = np.broadcast_to(nets.reshape(len(P), -1), P.shape)
        made = np.empty(P.shape, order="F")
        for run, kind in enumerate(transforms):
            if kind == "rank" and ranks is not None:
                made[:, run] = standard_rank(ranks[:, run], powers[run] if powers else 1.0)
            elif kind == "probability":
                mean, spread = self.moments_[run]
                made[:, run] = (P[:, run] - mean) / spread
            else:
                made[:, run] = self._standard_logit(_logit(P[:, run]), nets[:, run], run)
        return made

    def _standard_logit(self, values: Floats, nets: NDArray[Any], run: int) -> Floats:
        by_net = self.logit_moments_[run]
        made = np.empty(len(values))
        for net in np.unique(nets):
            rows = nets == net
            mean, spread = by_net.get(int(net), by_net[AVERAGED])
            made[rows] = (values[rows] - mean) / spread
        return made


def standard_rank(rank: Floats, power: float = 1.0) -> Floats:
    """`rank` (n,) in (0, 1) to a power, by mean and spread of such a power of a uniform variable."""
    mean = 1 / (power + 1)
    spread = np.sqrt(1 / (2 * power + 1) - mean**2)
    standard: Floats = ((rank if power == 1 else rank**power) - mean) / spread
    return standard


def weighted_sum(V: Floats, weights: ArrayLike) -> Floats:
    """`V @ weights`, (n,), in which equal rows stay equal.

    BLAS rounds the last rows of a block differently, and of 8,022 equal rows some would no longer tie.
    """
    total = np.zeros(len(V))
    for column, weight in zip(V.T, np.asarray(weights), strict=True):
        total += weight * column
    return total


def _logit(p: Floats) -> Floats:
    values: Floats = logit(np.clip(p, _EDGE, 1 - _EDGE))
    return values


def _spread(value: float) -> float:
    return value if value > 1e-12 else 1.0  # a constant run says nothing, at any scale

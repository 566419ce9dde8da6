"""Combines estimates of few sources: their mean with its interval, their spread, and a prediction for the next one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.stats import chi2, t

from dermstack.errors import DataError

MIN_FOR_PREDICTION = 3  # sources; two say nothing of how much sources vary
_DRAWS, _GRID = 20_000, 1000  # of the prediction interval; points at which the Q profile is computed

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class RandomEffects:
    """Mean of the estimates of k sources with its 95 % interval, and where the value of a further source may lie.

    All values are on the scale of the estimates. ``next_low`` and ``next_high`` are NaN for fewer than three sources.
    """

    sources: int
    mean: float
    low: float
    high: float
    between: float  # standard deviation between sources, beyond what the sizes of the sources explain
    between_low: float  # its 95 % interval
    between_high: float
    next_low: float
    next_high: float
    p_same: float  # p-value of Cochran's test that all sources have one value


def random_effects(estimates: ArrayLike, variances: ArrayLike, *, seed: int = 0) -> RandomEffects:
    """Combines ``estimates`` (k,) of independent sources with known sampling ``variances`` (k,).

    The variance between sources is that of Paule and Mandel (1982). The mean has the interval of Hartung, Knapp, Sidik
    and Jonkman with k - 1 degrees of freedom, whose standard error is not allowed below that of the usual
    random-effects mean (Röver, Knapp & Friede 2015): with few sources it would otherwise be too small by chance. The
    interval of the spread between sources is by the Q profile (Viechtbauer 2007).

    The prediction interval is that of Nagashima, Noma and Furukawa (2019): the variance between sources is not fixed at
    its estimate, but drawn from its confidence distribution, here by the Q profile; ``seed`` is that of the draws. The
    better known interval with k - 2 degrees of freedom (Higgins, Thompson & Spiegelhalter 2009) held in 85 to 90 % of
    simulations with 5 or 8 sources that vary little, this one in 94 to 100 % (benchmarks/promises/leave_source_out.py).

    Raises DataError for fewer than two sources and for variances that are not above 0.
    """
    values, own = np.asarray(estimates, np.float64), np.asarray(variances, np.float64)
    if values.ndim != 1 or values.shape != own.shape or len(values) < 2:
        raise DataError(f"{values.size} estimates and {own.size} variances: give two sources or more, one of each")
    if not (np.isfinite(values).all() and np.isfinite(own).all() and (own > 0).all()):
        raise DataError("an estimate or its variance is not a number, or a variance is not above 0: leave it out")
    k = len(values)
    squared = _between(values, own, k - 1.0)
    weights = 1 / (own + squared)
    mean, q = _mean_and_q(values, weights)
    half = float(t.ppf(0.975, k - 1)) * float(np.sqrt(max(1.0, q / (k - 1)) / weights.sum()))
    low, high = (float(np.sqrt(_between(values, own, chi2.ppf(level, k - 1)))) for level in (0.975, 0.025))
    following = _next_source(values, own, seed) if k >= MIN_FOR_PREDICTION else (np.nan, np.nan)
    same = float(chi2.sf(_mean_and_q(values, 1 / own)[1], k - 1))
    return RandomEffects(k, mean, mean - half, mean + half, float(np.sqrt(squared)), low, high, *following, same)


def _next_source(values: Floats, own: Floats, seed: int) -> tuple[float, float]:
    """Returns the 95 % prediction interval for the value of a further source."""
    k, rng = len(values), np.random.default_rng(seed)
    level = chi2.ppf((np.arange(_DRAWS) + 0.5) / _DRAWS, k - 1)
    top = max(_between(values, own, level[0]), float(own.min()) * 1e-6)
    grid = np.concatenate([[0.0], np.geomspace(top * 1e-8, top, _GRID)])
    weights = 1 / (own[:, None] + grid)
    means = (weights * values[:, None]).sum(axis=0) / weights.sum(axis=0)
    q = (weights * (values[:, None] - means) ** 2).sum(axis=0)  # falls along the grid
    squared = np.interp(level, q[::-1], grid[::-1])
    centre = np.interp(squared, grid, means)
    se = np.sqrt(1 / np.interp(squared, grid, weights.sum(axis=0)))
    drawn = centre + se * rng.standard_t(k - 1, _DRAWS) + np.sqrt(squared) * rng.standard_normal(_DRAWS)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _mean_and_q(values: Floats, weights: Floats) -> tuple[float, float]:
    """Returns the weighted mean and the weighted sum of squares around it."""
    mean = float(weights @ values / weights.sum())
    return mean, float(weights @ (values - mean) ** 2)


def _between(values: Floats, own: Floats, level: float) -> float:
    """Returns the variance between sources at which the weighted sum of squares is ``level``; 0 where it is less."""

    def excess(squared: float) -> float:
        return _mean_and_q(values, 1 / (own + squared))[1] - level

    if excess(0.0) <= 0:
        return 0.0
    top = float(np.ptp(values)) ** 2 + float(own.max())
    while excess(top) > 0:
        top *= 4
    return float(brentq(excess, 0.0, top, xtol=1e-12))

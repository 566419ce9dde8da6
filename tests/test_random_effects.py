from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import chi2, t

from dermstack.errors import DataError
from stack.metrics.random_effects import random_effects


def q_of(values: np.ndarray, own: np.ndarray, between: float) -> float:
    weights = 1 / (own + between)
    return float(weights @ (values - np.average(values, weights=weights)) ** 2)


def test_with_equal_variances_it_is_the_mean_of_a_normal_sample() -> None:
    values = np.array([0.1, 0.9, 1.4, 2.2, 0.4])
    found = random_effects(values, np.full(5, 0.1))
    assert found.mean == pytest.approx(values.mean())
    assert found.between**2 == pytest.approx(values.var(ddof=1) - 0.1, abs=1e-6)
    half = t.ppf(0.975, 4) * values.std(ddof=1) / np.sqrt(5)
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half))


def test_the_mean_is_no_surer_than_the_sizes_of_the_sources_allow() -> None:
    """Sources that agree by chance must not make the interval shrink to a point (Röver et al. 2015)."""
    found = random_effects([1.0, 1.0, 1.0], [0.04, 0.04, 0.04])
    assert found.between == 0
    assert found.high - found.low == pytest.approx(2 * t.ppf(0.975, 2) * 0.2 / np.sqrt(3))
    assert found.p_same == pytest.approx(1.0)


def test_the_spread_between_sources_has_the_interval_of_the_q_profile() -> None:
    rng = np.random.default_rng(2)
    own = rng.uniform(0.01, 0.2, 7)
    values = rng.normal(0, np.sqrt(own + 0.5))
    found = random_effects(values, own)
    for end, level in ((found.between_low, 0.975), (found.between_high, 0.025)):
        assert q_of(values, own, end**2) == pytest.approx(chi2.ppf(level, 6), rel=1e-4)
    assert q_of(values, own, found.between**2) == pytest.approx(6, rel=1e-4)


def test_the_prediction_is_that_of_draws_from_the_confidence_distribution() -> None:
    rng = np.random.default_rng(4)
    own = np.array([0.02, 0.3, 0.05, 0.1, 0.08, 0.04])
    values = np.array([1.2, 2.6, 1.0, 1.9, 2.0, 0.6])
    drawn = []
    for level in rng.chisquare(5, 6000):
        between = 0.0
        if q_of(values, own, 0) > level:
            between = brentq(lambda at, level=level: q_of(values, own, at) - level, 0, 1e4)
        weights = 1 / (own + between)
        centre = np.average(values, weights=weights) + rng.standard_t(5) / np.sqrt(weights.sum())
        drawn.append(centre + np.sqrt(between) * rng.standard_normal())
    found = random_effects(values, own)
    assert (found.next_low, found.next_high) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.12)
    assert found.next_low < found.low
    assert found.next_high > found.high


def test_two_sources_tell_nothing_of_the_next() -> None:
    found = random_effects([1.0, 2.0], [0.1, 0.1])
    assert np.isnan([found.next_low, found.next_high]).all()
    assert np.isfinite([found.mean, found.low, found.high]).all()


@pytest.mark.parametrize(
    ("values", "own"), [([1.0], [0.1]), ([1.0, 2.0], [0.1, 0.0]), ([1.0, np.nan], [0.1, 0.1]), ([1.0, 2.0], [0.1])]
)
def test_what_has_no_answer_is_refused(values: list[float], own: list[float]) -> None:
    with pytest.raises(DataError):
        random_effects(values, own)

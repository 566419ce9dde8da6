import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from dermstack.errors import DataError
from stack.metrics.calibration import calibration_scores, recalibration


def simulated_rows(
    rng: np.random.Generator, n: int = 600, groups: int = 150
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets in groups with a risk of their own, and a p that is too bold and too low."""
    group = rng.integers(0, groups, n)
    x = rng.normal(-1.5, 1.2, n) + rng.normal(0, 0.8, groups)[group]
    return (rng.random(n) < expit(0.5 + 0.7 * x)).astype(int), expit(x), group


def fitted(y: np.ndarray, p: np.ndarray) -> tuple[float, float, float]:
    """In the large, slope and intercept by other hands."""
    x = logit(p)
    line = LogisticRegression(C=np.inf, tol=1e-10, max_iter=2000).fit(x[:, None], y)
    large = brentq(lambda shift: np.sum(y - expit(x + shift)), -20, 20)
    return large, line.coef_[0, 0], line.intercept_[0]


def test_slope_and_intercept_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    y, p, group = simulated_rows(rng)
    made = recalibration(y, p, group)
    assert (made.in_the_large.value, made.slope.value, made.intercept) == pytest.approx(fitted(y, p), abs=1e-4)


def test_standard_errors_are_those_of_a_jackknife_over_groups(rng: np.random.Generator) -> None:
    y, p, group = simulated_rows(rng)
    without = np.array([fitted(y[group != g], p[group != g])[:2] for g in np.unique(group)])
    jackknife = np.sqrt((len(without) - 1) * without.var(axis=0))
    made = recalibration(y, p, group)
    assert (made.in_the_large.se, made.slope.se) == pytest.approx(tuple(jackknife), rel=0.06)
    assert made.slope.high - made.slope.low == pytest.approx(2 * 1.96 * made.slope.se, rel=1e-3)


def test_the_covariance_is_the_sandwich_of_sums_within_groups(rng: np.random.Generator) -> None:
    """Liang & Zeger, group by group, on logits that are skewed: there intercept and slope vary together."""
    group = rng.integers(0, 60, 600)
    p = expit(rng.exponential(1.0, 600) - 3 + rng.normal(0, 0.7, 60)[group])
    y = (rng.random(600) < p).astype(int)
    _, slope, intercept = fitted(y, p)
    design = np.column_stack([np.ones(600), logit(p)])
    told = expit(intercept + slope * design[:, 1])
    bread = np.linalg.inv((design * (told * (1 - told))[:, None]).T @ design)
    sums = [((y - told)[group == g, None] * design[group == g]).sum(axis=0) for g in np.unique(group)]
    filling = len(sums) / (len(sums) - 1) * sum(np.outer(of, of) for of in sums)
    assert recalibration(y, p, group).slope.se == pytest.approx(np.sqrt((bread @ filling @ bread)[1, 1]), rel=1e-4)


def test_rows_that_a_group_repeats_count_once(rng: np.random.Generator) -> None:
    y, p, _ = simulated_rows(rng)
    alone = recalibration(y, p, np.arange(600))
    repeated = recalibration(*(np.repeat(values, 3) for values in (y, p, np.arange(600))))
    assert repeated.slope.se == pytest.approx(alone.slope.se, rel=1e-3)
    assert repeated.in_the_large.se == pytest.approx(alone.in_the_large.se, rel=1e-3)


def test_a_p_that_parts_the_classes_or_is_the_same_for_all_has_no_slope() -> None:
    y, group = np.array([0, 0, 0, 1, 1]), np.arange(5)
    for p in ([0.1, 0.2, 0.3, 0.3, 0.9], [0.9, 0.8, 0.7, 0.2, 0.1], [0.4] * 5):
        made = recalibration(y, p, group)
        assert np.isnan([made.slope.value, made.intercept]).all()
        assert np.isfinite(made.in_the_large.se)


def test_rounding_does_not_flatten_the_slope(rng: np.random.Generator) -> None:
    """Half of the p are 0 among three digits; as certain negatives they would flatten the slope."""
    x = rng.normal(-7, 2.5, 6000)
    y = (rng.random(6000) < expit(x)).astype(int)
    y[:5], x[:5] = 1, -8.0  # five positives with p 0
    rounded = expit(x).round(3)
    assert (rounded == 0).mean() > 0.3
    for slope in (
        lambda p: recalibration(y, p, np.arange(6000)).slope.value,
        lambda p: calibration_scores(y, p)["slope"],
    ):
        assert slope(rounded) == pytest.approx(slope(expit(x)), abs=0.15)
        assert slope(np.clip(rounded, 1e-9, 1 - 1e-9)) < slope(rounded) - 0.2


def test_a_single_class_or_group_is_refused() -> None:
    with pytest.raises(DataError, match="all 3 rows are negative"):
        recalibration([0, 0, 0], [0.1, 0.2, 0.3], [1, 2, 3])
    with pytest.raises(DataError, match="one group"):
        recalibration([0, 1, 0], [0.1, 0.2, 0.3], [1, 1, 1])

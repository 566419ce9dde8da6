"""The joint test against closed forms: one value, independent values, copies; and its draws against refits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from stack.metrics.calibration import recalibration
from stack.metrics.joint import correlation_of, joint_test, paired_draws


@pytest.mark.parametrize("m", [1, 2, 10, 16])
def test_independent_values_have_the_critical_value_of_sidak(m: int) -> None:
    found = joint_test(np.zeros(m), np.eye(m))
    assert found.critical == pytest.approx(norm.isf((1 - 0.95 ** (1 / m)) / 2), abs=0.03)
    assert found.p == 1


@pytest.mark.parametrize("m", [2, 10])
def test_copies_of_one_value_cost_nothing(m: int) -> None:
    found = joint_test(np.full(m, 2.5), np.ones((m, m)))
    assert found.critical == pytest.approx(1.96, abs=0.03)
    assert found.p == pytest.approx(2 * norm.sf(2.5), rel=0.15)


@pytest.mark.parametrize("z", [1.5, 2.2, 3.0])
def test_p_is_below_the_level_where_a_value_is_beyond_the_critical_one(z: float) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 3))
    covariance = root @ root.T + 0.1 * np.eye(8)
    scale = np.sqrt(np.diag(covariance))
    found = joint_test([z, *[0.1] * 7], covariance / np.outer(scale, scale))
    assert (found.p < 0.05) == (z > found.critical)


def test_nothing_to_test_has_no_p() -> None:
    found = joint_test([], np.empty((0, 0)))
    assert found.values == 0
    assert np.isnan(found.p)


def test_a_value_that_never_varies_is_independent_of_the_others(rng: np.random.Generator) -> None:
    x = rng.normal(size=100)
    assert np.allclose(correlation_of([x, np.ones(100), -x]), [[1, 0, -1], [0, 1, 0], [-1, 0, 1]])


def test_linearised_draws_of_calibration_have_the_spread_of_the_robust_errors(rng: np.random.Generator) -> None:
    n = 4000
    x = rng.normal(-1.5, 1.2, n)
    p, y = expit(x), rng.random(n) < expit(0.3 + 0.8 * x)
    line = recalibration(y, p, np.arange(n))
    drawn = paired_draws(
        y, p, p, np.arange(n), thresholds=[0.2], in_the_large=line.in_the_large.value,
        line=(line.intercept, line.slope.value), draws=800,
    )  # fmt: skip
    assert drawn["slope"].std() == pytest.approx(line.slope.se, rel=0.1)
    assert drawn["sensitivity 0"].mean() == pytest.approx(np.mean(p[y] >= 0.2), abs=0.005)
    assert drawn["specificity 0"].mean() == pytest.approx(np.mean(p[~y] < 0.2), abs=0.005)
    assert correlation_of([drawn["sensitivity 0"], drawn["specificity 0"]])[0, 1] == pytest.approx(0, abs=0.1)
    assert correlation_of([drawn["auc"], drawn["pauc80"]])[0, 1] > 0.5


def test_linearised_draws_of_rounded_risks_vary_around_the_estimate(rng: np.random.Generator) -> None:
    n = 2000
    risk = expit(rng.normal(-2, 1.5, n))
    p, y = np.round(risk, 1), rng.random(n) < risk
    assert (p == 0).mean() > 0.2
    line = recalibration(y, p, np.arange(n))
    drawn = paired_draws(
        y, p, p, np.arange(n), thresholds=[], in_the_large=line.in_the_large.value,
        line=(line.intercept, line.slope.value), draws=200,
    )  # fmt: skip
    for name, se in (("in_the_large", drawn["in_the_large"].std()), ("slope", line.slope.se)):
        assert abs(drawn[name].mean()) < 0.3 * se

"""The closed test of risks: against statsmodels-free oracles, its choices, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import chi2, f
from sklearn.linear_model import LogisticRegression

from dermstack.errors import DataError
from stack.metrics.closed_test import LEVEL, NONE, SLOPE, closed_test
from stack.metrics.scores import log_loss


def rows(rng: np.random.Generator, n: int = 4000, *, slope: float = 1.0, level: float = 0.0) -> tuple[np.ndarray, ...]:
    x = rng.normal(-1.5, 1.5, n)
    return (rng.random(n) < expit(slope * x + level)).astype(int), expit(x), np.arange(n)


@pytest.mark.parametrize(("slope", "level", "chosen"), [(1.0, 0.0, NONE), (1.0, -0.8, LEVEL), (0.6, -0.5, SLOPE)])
def test_with_many_labels_the_right_update_is_chosen(
    rng: np.random.Generator, slope: float, level: float, chosen: str
) -> None:
    y, p, group = rows(rng, slope=slope, level=level)
    found = closed_test(y, p, group)
    assert found.chosen == chosen
    if chosen == SLOPE:
        oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], y)
        assert found.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-4)
        assert found.intercept == pytest.approx(oracle.intercept_[0], abs=1e-4)
    else:
        assert found.slope == 1
    if chosen == LEVEL:
        assert expit(logit(p) + found.intercept).sum() == pytest.approx(y.sum()), "a fitted level expects what there is"
    assert (found.slope, found.intercept) == (1, 0) or chosen != NONE


def test_for_single_images_the_statistic_is_the_likelihood_ratio(rng: np.random.Generator) -> None:
    y, p, group = rows(rng, 800, level=0.25)
    found = closed_test(y, p, group)
    line = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p)[:, None], y).predict_proba(logit(p)[:, None])[:, 1]
    ratio = 2 * len(y) * (log_loss(y, p) - log_loss(y, line))
    assert found.p_any == pytest.approx(f.sf(ratio / 2 / found.design_effect, 2, len(y) - 1), rel=1e-4)
    assert found.design_effect == 1, "rows without groups are independent"
    assert found.p_any == pytest.approx(chi2.sf(ratio, 2), rel=0.1)


def test_copies_of_each_image_within_a_patient_are_no_new_evidence(rng: np.random.Generator) -> None:
    y, p, group = rows(rng, 600, level=-0.4)
    once, tenfold = (closed_test(*(np.repeat(of, k) for of in (y, p, group))) for k in (1, 10))
    assert 10 <= tenfold.design_effect < 13
    assert once.p_any < tenfold.p_any < 10 * once.p_any
    assert closed_test(np.repeat(y, 10), np.repeat(p, 10), np.arange(6000)).p_any < once.p_any / 100


def test_few_labels_change_nothing_and_separated_classes_get_no_slope() -> None:
    few = closed_test([0, 1, 0, 1, 0, 0], [0.2, 0.3, 0.1, 0.4, 0.2, 0.1], np.arange(6))
    assert (few.chosen, few.slope, few.intercept) == (NONE, 1, 0)
    apart = closed_test(np.repeat([0, 1], 50), np.repeat([0.001, 0.002], 50), np.arange(100))
    assert apart.chosen == LEVEL
    assert np.isnan(apart.slope_found.value)
    same = closed_test(np.repeat([0, 1], 50), np.full(100, 0.01), np.arange(100))
    assert same.intercept == pytest.approx(-logit(0.01))


def test_inverted_labels_are_seen(rng: np.random.Generator) -> None:
    y, p, group = rows(rng)
    assert closed_test(1 - y, p, group).reverses
    assert not closed_test(y, p, group).reverses


def test_a_class_in_one_patient_is_refused() -> None:
    with pytest.raises(DataError, match="two groups"):
        closed_test([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], ["a", "b", "c", "c"])

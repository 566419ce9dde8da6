"""Numbers of labels: the precision and the power that they promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from stack.metrics.calibration import recalibration
from stack.metrics.closed_test import NONE, closed_test
from stack.metrics.labels_needed import labels_needed


def test_as_many_labels_give_the_precision_of_slope_and_number(rng: np.random.Generator) -> None:
    p = expit(rng.normal(-1.5, 1.2, 100_000))
    needed = {of.purpose: of for of in labels_needed(p)}
    slope = next(of for purpose, of in needed.items() if "the slope within" in purpose)
    some = rng.choice(p, slope.images)
    found = recalibration(rng.random(len(some)) < some, some, np.arange(len(some))).slope
    assert 1.96 * found.se == pytest.approx(0.2, rel=0.2)
    ratio = next(of for purpose, of in needed.items() if "observed / expected" in purpose)
    drawn = [(rng.random(ratio.images) < some).sum() / some.sum() for some in rng.choice(p, (300, ratio.images))]
    assert np.log(1.2) / np.std(np.log(drawn)) == pytest.approx(1.96, rel=0.15)
    assert ratio.positives == pytest.approx(ratio.images * p.mean(), abs=2)


def test_as_many_labels_find_risks_that_are_twice_too_high(rng: np.random.Generator) -> None:
    p = expit(rng.normal(-2.5, 1.2, 50_000))
    needed = next(of for of in labels_needed(p) if "twice" in of.purpose)
    found = 0
    for _ in range(30):
        some = rng.choice(p, needed.images)
        y = rng.random(len(some)) < expit(logit(some) - np.log(2))
        found += closed_test(y.astype(int), some, np.arange(len(some))).chosen != NONE
    assert 0.55 < found / 30 <= 0.97


def test_groups_need_more_and_equal_risks_have_no_slope() -> None:
    p = np.linspace(0.01, 0.4, 100)
    for alone, grouped in zip(labels_needed(p), labels_needed(p, design_effect=2.0), strict=True):
        assert grouped.images == pytest.approx(2 * alone.images, abs=2)
    assert not [of for of in labels_needed(np.full(50, 0.1)) if "slope" in of.purpose]


def test_a_rounded_zero_is_half_a_step_everywhere() -> None:
    p = np.array([0.0, 0.0, 0.1, 0.2, 0.4, 0.7])
    assert labels_needed(p) == labels_needed(np.where(p == 0, 0.05, p))

"""The choice of a method stays with the simplest unless a paired gain is real."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from stack.blend.choice import FALSE_GAIN, choose_method, required_errors
from stack.metrics.intervals import clustered_auc, paired_difference
from stack.metrics.scores import auc


@pytest.mark.parametrize("objective", ["auc", "ap"])
def test_each_choice_gains_over_the_one_before_beyond_noise(objective: str) -> None:
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(40):
        y = (rng.random(200) < 0.3).astype(int)
        group = np.arange(200) // 2
        base = y + rng.normal(0, 1, 200)
        scores = {name: base + rng.normal(0, spread, 200) for name, spread in (("a", 1.2), ("b", 0.6), ("c", 0.3))}
        expected = "a"
        for name in ("b", "c"):
            if objective == "auc":
                gain, _ = clustered_auc(y, np.column_stack([scores[name], scores[expected]]), group).difference()
            else:
                gain = paired_difference(objective, y, scores[name], scores[expected], group, draws=100)
            if gain.value > norm.isf(0.2 / 2) * gain.se:
                expected = name
        assert choose_method(objective, y, scores, group, draws=100) == expected
        chosen.add(expected)
    assert chosen == {"a", "b", "c"}


def test_of_equal_methods_the_simplest_is_chosen() -> None:
    y, s = np.arange(40) % 2, np.random.default_rng(0).random(40)
    assert choose_method("auc", y, {"simple": s, "same": s.copy()}, np.arange(40)) == "simple"


def test_one_method_is_chosen_without_a_test() -> None:
    assert choose_method("auc", [0, 0, 1], {"only": [0.1, 0.2, 0.3]}, [0, 1, 2]) == "only"


def test_equally_good_methods_are_seldom_left_for_a_more_complex_one() -> None:
    """Rows come in groups of four alike: as single rows, they would seem to show gains four times as often."""
    rng = np.random.default_rng(0)
    left = 0
    for _ in range(200):
        y = np.repeat((rng.random(100) < 0.3).astype(int), 4)
        base = np.repeat(rng.normal(size=100), 4) + y
        scores = {name: base + np.repeat(rng.normal(0, 0.5, 100), 4) for name in "abcde"}
        left += choose_method("auc", y, scores, np.arange(400) // 4) != "a"
    assert left <= 200 * FALSE_GAIN + 2 * np.sqrt(200 * FALSE_GAIN * (1 - FALSE_GAIN))


def test_a_clear_gain_is_taken() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(1000) % 2
    simple, better = y + rng.normal(0, 1.5, 1000), y + rng.normal(0, 1, 1000)
    assert auc(y, better) > auc(y, simple)
    assert choose_method("auc", y, {"simple": simple, "better": better}, np.arange(1000)) == "better"


def test_more_methods_need_a_larger_gain() -> None:
    needed = [required_errors(methods) for methods in range(2, 8)]
    assert needed == sorted(needed)
    np.testing.assert_allclose(1 - norm.cdf(needed), FALSE_GAIN / np.arange(1, 7))

"""The choice of a method stays with the simplest unless a paired gain over it is real."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.choice import ON_ONE_SCALE, WITH_SEARCH, check, outcome
from benchmarks.choice_data import FOLDS, simulated_rows
from stack.blend.choice import REAL_GAIN, choose_method, highest_bound
from stack.metrics.intervals import clustered_auc, paired_difference


@pytest.mark.parametrize("objective", ["auc", "ap"])
def test_the_gain_over_the_simplest_with_the_highest_lower_bound_is_chosen(objective: str) -> None:
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(60):
        y = (rng.random(200) < 0.3).astype(int)
        group = np.arange(200) // 2
        base = y + rng.normal(0, 1, 200)
        scores = {name: base + rng.normal(0, spread, 200) for name, spread in (("a", 1.0), ("b", 0.6), ("c", 0.55))}
        bounds = {"a": 0.0}
        for name in ("b", "c"):
            if objective == "auc":
                gain, _ = clustered_auc(y, np.column_stack([scores[name], scores["a"]]), group).difference()
            else:
                gain = paired_difference(objective, y, scores[name], scores["a"], group, draws=100)
            bounds[name] = gain.value - norm.isf(0.1) * gain.se
        expected = max(bounds, key=lambda name: bounds[name])
        assert choose_method(objective, y, scores, group, draws=100) == expected
        chosen.add(expected)
    assert chosen == {"a", "b", "c"}


def test_the_better_of_two_gains_need_not_differ_from_the_other_beyond_noise() -> None:
    values, error = np.array([0.80, 0.85, 0.86]), 0.01
    covariance = np.diag([0.0, error**2, error**2])
    assert highest_bound(values, covariance) == 2
    assert values[2] - values[1] < REAL_GAIN * np.sqrt(2) * error


def test_a_larger_gain_that_is_less_certain_is_not_chosen() -> None:
    values = np.array([0.80, 0.84, 0.86])
    assert highest_bound(values, np.diag([0, 0.01, 0.03]) ** 2) == 1
    assert highest_bound(values, np.diag([0, 0.04, 0.06]) ** 2) == 0


def test_of_methods_alike_up_to_rounding_the_simplest_is_chosen() -> None:
    """Also where rounding leaves a difference between equal values, or makes a variance negative."""
    values = np.array([0.8, 0.8 + 1e-16, 0.8, 0.9, 0.9 + 1e-16])
    covariance = np.full((5, 5), 1e-4)
    covariance[2, 2] -= 1e-19
    assert highest_bound(values[:3], covariance[:3, :3]) == 0
    assert highest_bound(values, covariance) == 3


def test_of_equal_methods_the_simplest_is_chosen() -> None:
    y, s = np.arange(40) % 2, np.random.default_rng(0).random(40)
    assert choose_method("auc", y, {"simple": s, "same": s.copy()}, np.arange(40)) == "simple"


def test_one_method_is_chosen_without_a_test() -> None:
    assert choose_method("auc", [0, 0, 1], {"only": [0.1, 0.2, 0.3]}, [0, 1, 2]) == "only"


def test_equally_good_methods_are_seldom_left_for_a_more_complex_one() -> None:
    """Rows come in groups of four alike: as single rows, they would seem to show gains four times as often."""
    rng = np.random.default_rng(0)
    left = dict.fromkeys(("ab", "abcde"), 0)
    for _ in range(200):
        y = np.repeat((rng.random(100) < 0.3).astype(int), 4)
        base = np.repeat(rng.normal(size=100), 4) + y
        scores = {name: base + np.repeat(rng.normal(0, 0.5, 100), 4) for name in "abcde"}
        for names in left:
            left[names] += choose_method("auc", y, {name: scores[name] for name in names}, np.arange(400) // 4) != "a"
    for names, times in left.items():
        most = 0.1 * (len(names) - 1)  # one-sided 10 % for each other method, at most together
        assert times <= 200 * most + 2 * np.sqrt(200 * most * (1 - most))


def test_a_clear_gain_is_taken() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(4000) % 2
    simple, better = y + rng.normal(0, 1.5, 4000), y + rng.normal(0, 1, 4000)
    gain, _ = clustered_auc(y, np.column_stack([better, simple]), np.arange(4000)).difference()
    assert gain.value > 4 * gain.se
    assert choose_method("auc", y, {"simple": simple, "better": better}, np.arange(4000)) == "better"


def test_the_bound_is_the_conventional_one() -> None:
    assert pytest.approx(norm.isf(0.1), abs=1e-4) == REAL_GAIN


def test_the_benchmark_of_the_choice_blends_as_the_product_does(rng: np.random.Generator) -> None:
    """Its tables are about `blend_nested`, whose fits it makes for many rules at once; `check` compares the two."""
    for strengths in (np.full(3, 1.2), np.linspace(0.4, 1.6, 4)):
        scale = rng.uniform(0.9, 1.1, (FOLDS, strengths.size))
        rows, new = (simulated_rows(300, 40, strengths, scale, rng) for _ in range(2))
        check(rows, outcome(rows, new, (*WITH_SEARCH, *ON_ONE_SCALE)))


@pytest.mark.parametrize("objective", ["auc", "ap"])
def test_others_must_beat_averaged_logistic_where_it_is_among_them(objective: str) -> None:
    rng = np.random.default_rng(1)
    y = np.arange(600) % 2
    base = y + rng.normal(0, 1, 600)
    alike, same, better = (base + rng.normal(0, spread, 600) for spread in (0.05, 0.05, 0.0))
    far_better = y + rng.normal(0, 0.5, 600)
    groups = np.arange(600)

    def chosen(**scores: np.ndarray) -> str:
        return choose_method(objective, y, scores, groups, draws=100)

    assert chosen(rank_mean=better, logistic=same, averaged_logistic=alike) == "averaged_logistic"
    assert chosen(rank_mean=better, logistic=same) == "rank_mean"
    assert chosen(rank_mean=far_better, averaged_logistic=alike) == "rank_mean"
    pooled = {"mean/rank_mean": better, "mean/averaged_logistic": alike, "maximum/averaged_logistic": same}
    assert chosen(**pooled) == "mean/averaged_logistic", "the first of its variants"

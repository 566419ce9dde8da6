"""Weights by logistic regression are as unequal as the rows show the runs to be, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logsumexp

from benchmarks.choice_data import FOLDS, Rows, simulated_rows
from stack.blend import logistic
from stack.blend.blender import Blender
from stack.blend.logistic import logistic_weights
from stack.metrics.scores import auc

Floats = NDArray[np.float64]


def columns(strengths: list[float], rows: int, rng: np.random.Generator) -> tuple[Floats, NDArray[np.bool_]]:
    y = rng.random(rows) < 0.3
    V = np.outer(y, strengths) + rng.normal(size=(rows, len(strengths)))
    return (V - V.mean(axis=0)) / V.std(axis=0), y


@pytest.mark.parametrize("strengths", [[1.0, 1.0], [0.5, 1.5]])
def test_the_ridge_is_weighed_by_the_likelihood_of_the_targets(
    strengths: list[float], monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    """The oracle integrates the likelihood over intercept, mean and difference of two coefficients, on a grid."""
    monkeypatch.setattr(logistic, "RIDGES", np.logspace(0, 3, 7))
    V, y = columns(strengths, 120, rng)
    coefficients, intercept = logistic_weights(V, y)
    centre = np.array([intercept, coefficients.mean()])
    steps = np.linspace(-2, 2, 17)
    differences = np.linspace(-4, 4, 81)
    inside = np.array([
        logsumexp([
            np.where(y, log_expit(z), log_expit(-z)).sum(axis=1)
            for b in centre[0] + steps
            for z in [b + (centre[1] + steps)[:, None] * V.sum(axis=1) + d / np.sqrt(2) * (V[:, 0] - V[:, 1])]
        ])
        for d in differences
    ])  # fmt: skip
    log_likelihood = [
        logsumexp(inside - ridge * differences**2 / 2) + np.log(ridge) / 2 for ridge in logistic.RIDGES.tolist()
    ]
    weights = np.exp(log_likelihood - logsumexp(log_likelihood))
    theta = np.append(coefficients, intercept)
    found = logistic._likely_ridge(V, y, theta)
    assert np.log(found) == pytest.approx(weights @ np.log(logistic.RIDGES), abs=0.1)


def test_few_rows_leave_equal_runs_nearly_equal_and_many_rows_part_unequal_ones(rng: np.random.Generator) -> None:
    equal, _ = logistic_weights(*columns([1.0] * 6, 300, rng))
    assert equal.max() < 1.5 * equal.min()
    unequal, _ = logistic_weights(*columns([0.2, 0.2, 0.2, 1.0, 1.0, 2.0], 20_000, rng))
    assert unequal[5] > 1.5 * unequal[3:5].max() > 3 * unequal[:3].max()


def test_the_order_of_the_runs_does_not_matter(rng: np.random.Generator) -> None:
    V, y = columns([0.3, 0.8, 1.2, 0.8], 600, rng)
    order = rng.permutation(4)
    shuffled, intercept = logistic_weights(V[:, order], y)
    coefficients, same = logistic_weights(V, y)
    np.testing.assert_allclose([*shuffled, intercept], [*coefficients[order], same], atol=1e-4)


def test_regression_on_ranks_reads_only_the_order_of_a_run(rng: np.random.Generator) -> None:
    V, y = columns([0.5, 1.0, 1.5], 400, rng)
    P = expit(V)
    other = np.column_stack([P[:, 0] ** 3, P[:, 1], P[:, 2]])
    scores = [Blender("rank_logistic").fit(p, y).predict_proba(p) for p in (P, other)]
    np.testing.assert_array_equal(*scores)


def mean_gains(strengths: Floats, methods: tuple[str, ...], repetitions: int) -> dict[str, float]:
    """Returns the mean over data sets of 300 rows of each method's AUC on new rows, minus that of the rank mean."""
    values = []
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, 99])
        scale = np.ones((FOLDS, strengths.size))
        rows: Rows = simulated_rows(300, 30, strengths, scale, rng)
        new: Rows = simulated_rows(5000, 500, strengths, scale, rng)
        blends = [Blender(method, bags=1).fit(rows.P, rows.y) for method in ("rank_mean", *methods)]
        values.append([auc(new.y, blend.predict_proba(new.P)[:, 1]) for blend in blends])
    gains = np.mean(np.array(values) - np.array(values)[:, :1], axis=0)
    return dict(zip(methods, gains[1:].tolist(), strict=True))


def test_weights_by_regression_cost_nothing_where_runs_are_equal_unlike_a_search() -> None:
    gains = mean_gains(np.full(10, 1.2), ("rank_logistic", "logistic", "hill_climb"), 12)
    assert gains["rank_logistic"] > -0.001
    assert gains["logistic"] > -0.001
    assert gains["hill_climb"] < -0.005


def test_weights_by_regression_gain_as_much_as_a_search_where_runs_differ() -> None:
    gains = mean_gains(np.linspace(0.4, 1.6, 6), ("rank_logistic", "hill_climb"), 8)
    assert gains["rank_logistic"] > 0.03
    assert gains["rank_logistic"] > gains["hill_climb"]

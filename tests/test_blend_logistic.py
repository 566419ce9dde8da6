"""Weights by logistic regression are as unequal as the rows show the runs to be, and no more."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, log_expit, logit, logsumexp
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression

from benchmarks.choice_data import FOLDS, Rows, simulated_rows
from stack.blend import logistic
from stack.blend.blender import Blender
from stack.blend.logistic import logistic_weights
from stack.blend.weights import BY_REGRESSION
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


def score_on(scale: str, P: Floats, y: NDArray[np.bool_]) -> Floats:
    """Returns what a regression on one scale makes of new rows before the link, with spread 1 on the fitted rows."""
    fitted, new = (logit(Blender(scale).fit(P[:500], y[:500]).predict_proba(p)[:, 1]) for p in (P[:500], P[500:]))
    return (new - fitted.mean()) / fitted.std()


@pytest.mark.parametrize("tails", [1.0, 3.0])
def test_the_average_is_made_of_both_regressions_by_what_their_orders_say(tails: float) -> None:
    """The oracle has both regressions' own scores, and the probability of each order of the fitted rows."""
    rng = np.random.default_rng(5)
    V, y = columns([0.5, 1.0, 1.5], 900, rng)
    P = expit(np.sign(V) * np.abs(V) ** tails)
    found = Blender("averaged_logistic").fit(P[:500], y[:500])
    by_rank, by_logit = score_on("rank_logistic", P, y), score_on("logistic", P, y)
    fitted = {scale: Blender(scale).fit(P[:500], y[:500]) for scale in ("rank_logistic", "logistic")}
    likelihoods = {}
    for scale, blend in fitted.items():
        rank = (rankdata(blend.predict_proba(P[:500])[:, 1]) - 0.5) / 500
        design = np.column_stack([np.log(rank), -np.log1p(-rank)])
        of_order = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(design, y[:500])
        assert (of_order.coef_ >= 0).all(), "as beta calibration demands"
        p = of_order.predict_proba(design)[:, 1]
        likelihoods[scale] = np.log(np.where(y[:500], p, 1 - p)).sum()
    share = expit(likelihoods["logistic"] - likelihoods["rank_logistic"] - logistic.RANKS_FIRST)
    expected = (1 - share) * by_rank + share * by_logit
    made = logit(found.predict_proba(P[500:])[:, 1])
    slope, intercept = np.polyfit(expected, made, 1)
    np.testing.assert_allclose(made, slope * expected + intercept, atol=0.02)
    assert slope > 0
    assert share < 0.01 if tails > 1 else 0.05 < share < 0.95


def test_an_order_is_judged_whatever_its_scale(rng: np.random.Generator) -> None:
    V, y = columns([0.8, 1.6], 400, rng)
    score, better = V[:, 0], V[:, 1]
    same = logistic.logit_share(y, by_rank=score, by_logit=np.exp(3 * score))
    assert same == pytest.approx(expit(-logistic.RANKS_FIRST))
    assert logistic.logit_share(y, by_rank=score, by_logit=better) > 0.99
    assert logistic.logit_share(y, by_rank=better, by_logit=score) < 0.01


def test_a_run_of_any_numbers_is_averaged_by_its_rank_alone(rng: np.random.Generator) -> None:
    V, y = columns([0.5, 1.0], 400, rng)
    P = np.column_stack([expit(V[:, 0]), V[:, 1]])
    found = Blender("averaged_logistic").fit(P, y)
    assert found.weighting_.logit_shares[0] > 0
    assert found.weighting_.logit_shares[1] == 0
    share = found.weighting_.logit_shares[0]
    assert found.weighting_.in_words() == (f"{1 - share:.0%} rank, {share:.0%} logit", "rank")
    changed = np.column_stack([P[:, 0], np.exp(V[:, 1])])
    again = Blender("averaged_logistic").fit(changed, y)
    np.testing.assert_allclose(found.predict_proba(P), again.predict_proba(changed), atol=1e-9)


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
    gains = mean_gains(np.full(10, 1.2), (*BY_REGRESSION, "hill_climb"), 12)
    assert min(gains[method] for method in BY_REGRESSION) > -0.001
    assert gains["hill_climb"] < -0.005


def test_weights_by_regression_gain_as_much_as_a_search_where_runs_differ() -> None:
    gains = mean_gains(np.linspace(0.4, 1.6, 6), (*BY_REGRESSION, "hill_climb"), 8)
    assert min(gains[method] for method in BY_REGRESSION) > max(0.03, gains["hill_climb"])

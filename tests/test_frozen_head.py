from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from image_models.frozen_head import STRENGTHS, fit_head


def features(rng: np.random.Generator, n: int, d: int = 12) -> np.ndarray:
    """Float16 features of unlike means and scales."""
    return (rng.normal(size=(n, d)) * np.geomspace(0.01, 10, d) + np.linspace(-2, 5, d)).astype(np.float16)


def made_target(z: np.ndarray, rng: np.random.Generator, *, signal: float, prevalence: float = 0.2) -> np.ndarray:
    x = StandardScaler().fit_transform(z.astype(np.float64))
    score = signal * x[:, :3].sum(axis=1) + rng.logistic(size=len(z))
    target: np.ndarray = (score > np.quantile(score, 1 - prevalence)).astype(np.int8)
    return target


def oracle(z: np.ndarray, target: np.ndarray, strength: float) -> Pipeline:
    """scikit-learn's own pipeline in float64, to a tighter tolerance."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8, max_iter=5000))
    return model.fit(z.astype(np.float64), target)


@pytest.mark.parametrize("signal", [0.0, 0.3, 2.0])
def test_the_head_is_the_logistic_regression_of_standardised_features(rng: np.random.Generator, signal: float) -> None:
    z, new = features(rng, 600), features(rng, 100)
    target = made_target(z, rng, signal=signal)
    head = fit_head(z, target, np.arange(600) % 5 == 0)
    expected = oracle(z, target, head.strength).decision_function(new.astype(np.float64))
    np.testing.assert_allclose(head.logit(new), expected, atol=2e-3)
    assert head.logit(new).dtype == np.float32


@pytest.mark.parametrize(("signal", "n"), [(0.0, 200), (0.15, 600), (2.0, 600)])
def test_the_inner_rows_choose_the_strength(rng: np.random.Generator, signal: float, n: int) -> None:
    z = features(rng, n)
    target, inner = made_target(z, rng, signal=signal), rng.random(n) < 0.25
    x = StandardScaler().fit_transform(z.astype(np.float64))
    losses = {}
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, tol=1e-8, max_iter=5000).fit(x[~inner], target[~inner])
        losses[strength] = log_loss(target[inner], model.predict_proba(x[inner])[:, 1])
    assert fit_head(z, target, inner).strength == min(losses, key=losses.__getitem__)


def test_noise_is_shrunk_harder_than_signal(rng: np.random.Generator) -> None:
    z, inner = features(rng, 600), np.arange(600) % 5 == 0
    noise, signal = (fit_head(z, made_target(z, rng, signal=s), inner).strength for s in (0.0, 2.0))
    assert noise < signal == max(STRENGTHS)


def test_the_inner_rows_choose_nothing_but_the_strength(rng: np.random.Generator) -> None:
    z = features(rng, 400)
    target = made_target(z, rng, signal=2.0)
    heads = [fit_head(z, target, np.arange(400) % 5 == part) for part in range(5)]
    assert {head.strength for head in heads} == {max(STRENGTHS)}
    assert len({(head.weight.tobytes(), head.bias.tobytes()) for head in heads}) == 1


def test_the_head_starts_at_the_prevalence(rng: np.random.Generator) -> None:
    z = features(rng, 2000)
    target = made_target(z, rng, signal=1.0, prevalence=0.02)
    p = 1 / (1 + np.exp(-fit_head(z, target, np.arange(2000) % 5 == 0).logit(z).astype(np.float64)))
    assert p.mean() == pytest.approx(target.mean(), rel=0.01), "the intercept is not shrunk"


@pytest.mark.parametrize("constant", [0.0, 0.1, 1.3, 1000.0])
def test_a_feature_that_never_moves_says_nothing(rng: np.random.Generator, constant: float) -> None:
    n = 20_000  # float32 sums of more than 8,192 equal float16 values round, and the constant seems to move
    z = features(rng, n, d=4)
    target, inner = made_target(z, rng, signal=1.0), np.arange(n) % 5 == 0
    still = np.full((n, 1), constant, np.float16)
    without, with_it = fit_head(z, target, inner), fit_head(np.hstack([still, z]), target, inner)
    assert abs(with_it.weight[0]) < 1e-3
    np.testing.assert_allclose(with_it.logit(np.hstack([still + np.float16(1), z])), without.logit(z), atol=0.02)


def test_the_unit_of_a_feature_changes_no_logit(rng: np.random.Generator) -> None:
    z = features(rng, 400)
    target, inner = made_target(z, rng, signal=1.0), np.arange(400) % 5 == 0
    other = z * np.where(np.arange(12) % 2, 16, 1).astype(np.float16)  # a power of two is exact
    np.testing.assert_allclose(
        fit_head(other, target, inner).logit(other), fit_head(z, target, inner).logit(z), atol=2e-3
    )

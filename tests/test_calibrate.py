"""Platt scaling against scikit-learn's logistic regression."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from stack.calibrate import Platt, fit_platt
from stack.errors import DataError
from stack.metrics import log_loss
from stack.ranks import Ecdf


@given(
    rows=st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=3, max_size=40),
    exponent=st.integers(1, 10),
)
@settings(deadline=None, max_examples=60)
def test_platt_equals_a_logistic_regression_on_smoothed_targets(rows: list[tuple[float, int]], exponent: int) -> None:
    score, y = np.array([score for score, _ in rows]) ** exponent, np.array([target for _, target in rows])
    y[:2] = [0, 1]
    smooth = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    x = np.tile(logit(np.clip(score, 1e-9, 1 - 1e-9)), 2)[:, None]
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
    oracle.fit(x, np.repeat([1, 0], len(y)), sample_weight=np.concatenate([smooth, 1 - smooth]))
    np.testing.assert_allclose(fit_platt(score, y)(score), oracle.predict_proba(x)[: len(y), 1], atol=1e-4)


def test_ranks_become_probabilities(rng: np.random.Generator) -> None:
    risk = 1 / (1 + np.exp(-rng.normal(-3, 1.5, size=20_000)))
    y = (rng.random(20_000) < risk).astype(int)
    p = fit_platt(Ecdf().fit(risk)(risk), y)(Ecdf().fit(risk)(risk))
    assert p.mean() == pytest.approx(y.mean(), rel=0.01)
    assert log_loss(y, p) == pytest.approx(log_loss(y, risk), rel=0.02)


def test_the_order_of_scores_stays(rng: np.random.Generator) -> None:
    score = rng.random(500)
    p = fit_platt(score, rng.random(500) < score)(score)
    np.testing.assert_array_equal(np.argsort(p), np.argsort(score))


def test_extremes_stay_finite() -> None:
    parted = fit_platt([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    assert 0 < parted([0.0])[0] < 0.5 < parted([1.0])[0] < 1
    constant = fit_platt([0.3] * 10, [0, 1] * 5)
    assert (constant.slope, constant([0.9])[0]) == (0, pytest.approx(0.5))


def test_platt_goes_through_json() -> None:
    platt = fit_platt([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1])
    assert Platt(**json.loads(json.dumps(asdict(platt)))) == platt


def test_what_cannot_be_calibrated_is_refused_by_name() -> None:
    for score in ([0.1, 2.0], [0.1, -3.0]):
        with pytest.raises(DataError, match=r"1 scores are not in \[0, 1\] \(row 1"):
            fit_platt(score, [0, 1])
    with pytest.raises(DataError, match="NaN"):
        fit_platt([0.1, np.nan], [0, 1])
    with pytest.raises(DataError, match="not in"):
        Platt(1.0, 0.0)([np.nan])
    with pytest.raises(DataError, match="single class"):
        fit_platt([0.1, 0.2], [1, 1])


def test_equal_scores_get_the_smoothed_prevalence_whatever_their_mean_rounds_to() -> None:
    """Found by hypothesis: the mean of three 0.75 ** 7 isn't 0.75 ** 7, and its rounding passed for a spread."""
    for score in (0.75**7, 0.1, 0.3, 0.9):
        scores, y = np.full(3, score), np.array([0, 1, 0])
        np.testing.assert_allclose(fit_platt(scores, y)(scores), np.mean([1 / 4, 2 / 3, 1 / 4]), atol=1e-6)

"""Maps from scores to probabilities against scikit-learn, and the nested choice among them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from dermstack.errors import DataError
from stack.blend.calibration import (
    CALIBRATOR_FITS,
    Beta,
    Calibrator,
    Isotonic,
    Platt,
    calibrate_nested,
    calibrator_from_state,
    calibrator_state,
    fit_beta,
    fit_isotonic,
    fit_platt,
    score_at,
)
from stack.metrics.scores import log_loss
from stack.predictions.ranks import Ecdf


@given(
    rows=st.lists(st.tuples(st.floats(0.01, 0.99), st.integers(0, 1)), min_size=3, max_size=40),
    exponent=st.integers(1, 10),
)
@settings(max_examples=60)
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


def test_beta_is_a_logistic_regression_on_two_logarithms(rng: np.random.Generator) -> None:
    risk = rng.beta(1, 8, 4000)
    score, y = risk**0.4, (rng.random(4000) < risk).astype(int)
    beta = fit_beta(score, y)
    design = np.column_stack([np.log(score), -np.log1p(-score)])
    smooth = np.where(y == 1, (y.sum() + 1) / (y.sum() + 2), 1 / ((1 - y).sum() + 2))
    oracle = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000).fit(
        np.tile(design, (2, 1)), np.repeat([1, 0], len(y)), sample_weight=np.concatenate([smooth, 1 - smooth])
    )
    np.testing.assert_allclose([beta.a, beta.b, beta.c], [*oracle.coef_[0], oracle.intercept_[0]], atol=2e-3)
    assert log_loss(y, beta(score)) <= log_loss(y, fit_platt(score, y)(score)) + 1e-6


def test_beta_of_scores_that_point_the_wrong_way_is_flat(rng: np.random.Generator) -> None:
    score = rng.random(500)
    beta = fit_beta(score, rng.random(500) > score)
    assert (beta.a, beta.b) == pytest.approx((0, 0), abs=1e-6)


def test_isotonic_is_scikit_learns_off_0_and_1(rng: np.random.Generator) -> None:
    score = rng.random(300)
    y = (rng.random(300) < score).astype(int)
    expected = IsotonicRegression(out_of_bounds="clip").fit(score, y).predict(score)
    np.testing.assert_allclose(fit_isotonic(score, y)(score), np.clip(expected, 0.5 / 300, 1 - 0.5 / 300), atol=1e-12)


@pytest.mark.parametrize("kind", CALIBRATOR_FITS)
def test_every_map_goes_through_json_and_keeps_the_order(kind: str, rng: np.random.Generator) -> None:
    score = np.sort(rng.random(200))
    found = CALIBRATOR_FITS[kind](score, rng.random(200) < score)
    again = calibrator_from_state(json.loads(json.dumps(calibrator_state(found))))
    assert again == found
    new = np.linspace(0, 1, 1001)
    assert (np.diff(again(new)) >= 0).all()
    assert ((again(new) > 0) & (again(new) < 1)).all()
    with pytest.raises(DataError, match="not in"):
        again([1.5])


def test_no_row_is_calibrated_by_its_own_target(rng: np.random.Generator) -> None:
    score, fold = rng.random(400), np.arange(400) % 4
    y = (rng.random(400) < score**2).astype(int)
    turned = np.where(fold == 2, 1 - y, y)
    before, after = (calibrate_nested(score, target, fold, np.arange(400)) for target in (y, turned))
    held = fold == 2
    np.testing.assert_array_equal(before.p[held], after.p[held])
    assert before.chosen_by_fold[2] == after.chosen_by_fold[2]
    assert (before.p[~held] != after.p[~held]).all()


def test_the_kind_that_fits_is_chosen_and_the_simple_one_where_it_does(rng: np.random.Generator) -> None:
    n, fold = 6000, np.arange(6000) % 3
    score = rng.random(n)
    straight = 1 / (1 + np.exp(-(2 * logit(np.clip(score, 1e-9, 1 - 1e-9)) - 1)))
    stepped = np.where(score > 0.5, 0.9, 0.1)
    chosen = [
        calibrate_nested(score, (rng.random(n) < risk).astype(int), fold, np.arange(n)).chosen
        for risk in (straight, stepped)
    ]
    assert chosen == ["platt", "isotonic"]


def test_the_summary_compares_each_map_with_platts(rng: np.random.Generator) -> None:
    score, fold = rng.random(600), np.arange(600) % 3
    y = (rng.random(600) < score).astype(int)
    found = calibrate_nested(score, y, fold, np.arange(600))
    table = found.summary(y, np.arange(600)).set_index("map")
    assert table.loc["platt", "less platt"] == 0
    gain = log_loss(y, found.by_kind["isotonic"]) - log_loss(y, found.by_kind["platt"])
    assert table.loc["isotonic", "less platt"] == pytest.approx(gain)
    assert table["chosen"].sum() == 1


def test_of_two_folds_each_is_calibrated_by_the_other_and_nothing_is_chosen(rng: np.random.Generator) -> None:
    fold = np.arange(400) % 2
    y = (rng.random(400) < 0.3).astype(int)
    score = np.clip(0.3 + 0.2 * y + 0.15 * rng.normal(size=400), 0.01, 0.99)
    found = calibrate_nested(score, y, fold, np.arange(400))
    assert found.chosen_by_fold == {0: "platt", 1: "platt"}
    for k in (0, 1):
        expected = fit_platt(score[fold != k], y[fold != k])(score[fold == k])
        np.testing.assert_array_equal(found.p[fold == k], expected)


@pytest.mark.parametrize("fit", [fit_platt, fit_beta])
@pytest.mark.parametrize("value", [0.3, 0.1, 0.7, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1e-16])
def test_equal_scores_say_nothing_about_others(fit: Callable[..., Calibrator], value: float, noise: float) -> None:
    """The std of equal scores may be 1e-16 instead of 0: divided by it, rounding errors would look like evidence."""
    y = np.arange(200) % 4 == 0
    score = np.clip(np.full(200, value) + noise * np.arange(-100, 100) * y, 0, 1)
    p = fit(score, y)(np.array([0.01, value, 0.99]))
    np.testing.assert_allclose(p, y.mean(), atol=0.01)
    below_the_edge = np.where(y, 1e-12, 1e-11)  # equal once they are clipped
    np.testing.assert_allclose(fit_platt(below_the_edge, y)([0.01, 0.99]), y.mean(), atol=0.01)


_MAPS = [
    Platt(0.8, -2.0),
    Platt(-0.5, 1.0),
    Beta(0.4, 1.7, -1.0),
    Isotonic((0.1, 0.3, 0.6, 0.9), (0.02, 0.2, 0.2, 0.7)),
]


@pytest.mark.parametrize("calibrator", _MAPS, ids=lambda of: type(of).__name__)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_score_at_a_probability_is_calibrated_to_it(calibrator: Calibrator, p: list[float]) -> None:
    score = score_at(calibrator, p)
    ends = np.sort(calibrator([0.0, 1.0]))
    assert ((score >= 0) & (score <= 1)).all()
    np.testing.assert_allclose(calibrator(score), np.clip(p, *ends), rtol=1e-6, atol=1e-9)


def test_where_many_scores_have_a_probability_the_middle_of_them_is_taken() -> None:
    isotonic = Isotonic((0.1, 0.3, 0.6, 0.9), (0.02, 0.2, 0.2, 0.7))
    assert score_at(isotonic, [0.2]) == pytest.approx([0.45])
    assert score_at(isotonic, [0.02]) == pytest.approx([0.05])
    assert score_at(Platt(0.0, -1.0), [0.1, 0.9]) == pytest.approx([0.0, 1.0])


@pytest.mark.parametrize("fit", [fit_platt, fit_beta], ids=["platt", "beta"])
def test_scores_rounded_to_zero_count_as_half_of_their_resolution(fit: Callable[..., Calibrator]) -> None:
    """Clipped at 1e-9, a 0 of a file with three digits is a logit of -21 and flattens the map of all others."""
    rng = np.random.default_rng(0)
    z = rng.normal(-5, 2.5, 6000)
    y = (rng.random(6000) < expit(0.8 * z)).astype(int)
    exact, rounded = expit(z), np.round(expit(z), 3)
    assert (rounded == 0).mean() > 0.1
    by_rounded, by_exact = fit(rounded, y), fit(exact, y)
    assert (by_rounded.low, by_rounded.high) == (0.0005, 0.9995)
    assert (by_exact.low, by_exact.high) == (1e-9, 1 - 1e-9)
    assert log_loss(y, by_rounded(rounded)) < log_loss(y, by_exact(exact)) + 0.001
    again = calibrator_from_state(json.loads(json.dumps(calibrator_state(by_rounded))))
    assert again == by_rounded
    assert "low" not in calibrator_state(by_exact), "a state as it was before"


@pytest.mark.parametrize("limits", [{"low": 0.0, "high": 1.0}, {"low": 0.9, "high": 0.1}, {"low": 0.1}])
def test_stored_limits_that_make_infinite_logits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises((ValueError, LookupError)):
        calibrator_from_state({"kind": "platt", "slope": 1.0, "intercept": 0.0, **limits})

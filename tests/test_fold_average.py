"""Calibration of averaged scores, without labels, against a logistic regression that sees the labels."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from stack.blend.calibration import CALIBRATOR_FITS, Platt, Rescaled, calibrator_from_state, calibrator_state
from stack.blend.fold_average import MIN_ROWS, average_scores, calibrate_average

FOLDS = 5


def nets(rng: np.random.Generator, n: int, *, shared: float, own: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets (n,), the risk (n,) and scores (folds, n) of nets: logits of the risk, with shared noise and own."""
    truth = rng.normal(-2.5, 1.5, n)
    logits = truth + shared * rng.normal(size=n) + own * rng.normal(size=(FOLDS, n))
    risk = expit(truth)
    return (rng.random(n) < risk).astype(int), risk, expit(0.7 * logits - 0.5)


def slope_and_excess(p: np.ndarray, risk: np.ndarray) -> tuple[float, float]:
    """The calibration slope of p against the true risk, and expected over true positives, minus 1."""
    twice = np.tile(logit(p), 2)[:, None]
    weight = np.concatenate([risk, 1 - risk])
    line = LogisticRegression(C=np.inf, tol=1e-8).fit(twice, np.repeat([1, 0], len(p)), sample_weight=weight)
    return float(line.coef_[0, 0]), float(p.sum() / risk.sum() - 1)


@pytest.mark.parametrize(("shared", "own"), [(0.0, 1.0), (0.8, 0.8), (0.5, 2.0)])
def test_without_labels_it_finds_the_line_of_a_regression_that_has_them(
    rng: np.random.Generator, shared: float, own: float
) -> None:
    """The law: the map of the averages is that of Platt scaling on averages, however nets share their noise."""
    n = 100_000
    y, _, scores = nets(rng, n, shared=shared, own=own)
    single = CALIBRATOR_FITS["platt"](scores[np.arange(n) % FOLDS, np.arange(n)], y)  # one net a row: out-of-fold
    labels, risk, new = nets(rng, n, shared=shared, own=own)
    found = calibrate_average(single, new)
    assert isinstance(found.final, Rescaled)
    averaged = average_scores(new)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(averaged)[:, None], labels)
    np.testing.assert_allclose(found.final(averaged), oracle.predict_proba(logit(averaged)[:, None])[:, 1], rtol=0.1)
    slope, excess = slope_and_excess(found.final(averaged), risk)
    assert slope == pytest.approx(1, abs=0.03)
    assert excess == pytest.approx(0, abs=0.02)
    of_single, too_few = slope_and_excess(single(averaged), risk)
    assert of_single > slope + 0.05, "the case would not show the fault"
    assert too_few < -0.02


@pytest.mark.parametrize("kind", CALIBRATOR_FITS)
def test_both_sums_are_those_of_single_nets(rng: np.random.Generator, kind: str) -> None:
    y, _, scores = nets(rng, 5_000, shared=0.5, own=1.0)
    single = CALIBRATOR_FITS[kind](scores[0], y)
    found = calibrate_average(single, scores)
    assert not found.kept
    p, each = found.final(average_scores(scores)), np.array([single(of_fold) for of_fold in scores])
    assert p.sum() == pytest.approx(each.mean(axis=0).sum())
    assert p @ logit(average_scores(scores)) == pytest.approx((each * logit(scores)).mean(axis=0).sum())
    assert (np.diff(p[np.argsort(average_scores(scores))]) >= 0).all(), "the order of the scores stays"


def test_nearly_equal_nets_keep_the_map_of_single_nets(rng: np.random.Generator) -> None:
    _, _, scores = nets(rng, 2_000, shared=0.0, own=1e-4)
    single = Platt(1.3, 0.4)
    found = calibrate_average(single, scores)
    np.testing.assert_allclose(found.final(scores[0]), single(scores[0]), rtol=1e-3)


def test_where_nothing_can_be_found_out_the_map_of_single_nets_stays_and_the_reason_is_named(
    rng: np.random.Generator,
) -> None:
    _, _, scores = nets(rng, MIN_ROWS, shared=0.0, own=1.0)
    single = Platt(1.3, 0.4)
    opposite = expit(
        np.where(np.arange(FOLDS)[:, None] % 2, -1.0, 1.0) * logit(scores[0])
    )  # their average has a fifth of the spread
    cases = {
        f"only {MIN_ROWS - 1} test predictions, and it needs {MIN_ROWS}": scores[:, 1:],
        "no run has predictions of each fold net": np.repeat(scores[:1], FOLDS, axis=0),
        "do not vary": np.repeat(np.linspace(0.2, 0.3, FOLDS)[:, None], MIN_ROWS, axis=1),
        "it cannot be fitted to them": opposite,
    }
    for reason, given in cases.items():
        found = calibrate_average(single, given)
        assert found.final is single
        assert reason in found.kept
        assert found.record() == {"rows": given.shape[1], "kept": found.kept}
    assert not calibrate_average(single, scores).kept


def test_a_line_goes_through_json_and_two_become_one(rng: np.random.Generator) -> None:
    _, _, scores = nets(rng, 1_000, shared=0.0, own=1.0)
    line = calibrate_average(Platt(1.3, 0.4), scores).final
    state = calibrator_state(line)
    assert calibrator_from_state(state) == line
    for change in ({"slope": -1.0}, {"slope": 0.0}, {"slope": float("inf")}, {"intercept": float("nan")}):
        with pytest.raises(ValueError, match="does not rise"):
            calibrator_from_state(state | change)
    with pytest.raises(ValueError, match="a line after a line"):
        calibrator_from_state(state | {"of": state})
    with pytest.raises(KeyError):
        calibrator_from_state(state | {"of": {"kind": "code"}})

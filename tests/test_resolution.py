"""Resolution of probabilities, and the logits of exact 0 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from dermstack.errors import StoreError
from stack.blend.blender import Blender
from stack.blend.state import blender_from_state, blender_state
from stack.metrics.resolution import clip_limits, clipped_logit, resolution


def rounded_by_text(p: np.ndarray, digits: int) -> np.ndarray:
    return np.array([float(f"{value:.{digits}f}") for value in p])


@pytest.mark.parametrize("digits", range(1, 13))
def test_the_digits_of_a_text_file_are_found(digits: int) -> None:
    p = np.random.default_rng(digits).random(2000)
    assert resolution(rounded_by_text(p, digits)) == pytest.approx(10.0**-digits)
    assert resolution(p) is None


@pytest.mark.parametrize("digits", range(1, 7))
def test_the_digits_survive_a_way_through_float32_logits(digits: int) -> None:
    p = rounded_by_text(np.random.default_rng(digits).beta(0.3, 3, 2000), digits)
    p = p[(p > 0) & (p < 1)]
    assert resolution(expit(logit(p).astype(np.float32).astype(np.float64))) == pytest.approx(10.0**-digits)


def test_values_below_the_tolerance_are_on_no_coarser_grid_than_they_show() -> None:
    assert resolution([1e-8, 2e-8, 0.5]) != 0.1
    assert resolution(np.random.default_rng(0).random(100) * 1e-9) is None


def test_zeros_lie_half_a_step_inside() -> None:
    assert clip_limits([0.0, 0.001, 0.25, 1.0], 1e-12) == pytest.approx((0.0005, 0.9995))
    saturated = np.append(np.float32(1) - np.float32(2) ** -24 * np.arange(4, dtype=np.float32), 0.123456789)
    low, high = clip_limits(saturated, 1e-12)
    assert low == 1e-12  # no zero, so that nothing below is cut off
    assert 1 - high == pytest.approx(2**-25, rel=1e-3)  # halfway between 1 and the float32 below it


def test_full_precision_without_zeros_is_clipped_as_before() -> None:
    p = np.random.default_rng(0).random(500)
    assert clip_limits(p, 1e-12) == (1e-12, 1 - 1e-12)


@given(st.lists(st.floats(0, 1, width=32), min_size=1, max_size=40), st.sampled_from([None, 1, 2, 3, 6]))
def test_clipping_keeps_the_order_of_different_values(values: list[float], digits: int | None) -> None:
    p = np.array(values, np.float64)
    p = p[(p == 0) | (p > 1e-9)] if digits is None else rounded_by_text(p, digits)
    distinct = np.unique(p)
    made = clipped_logit(distinct, clip_limits(distinct, 1e-12))
    assert np.isfinite(made).all()
    assert (np.diff(made) > 0).all()


def rounded_runs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two runs of 20,000 rows, 2 % positive, most p below 0.001: targets, p, p with three digits."""
    rng = np.random.default_rng(seed)
    y = (rng.random(20_000) < 0.02).astype(int)
    shared = 2.2 * y + rng.normal(0, 1, len(y))
    logits = np.column_stack([2 * (shared + rng.normal(0, 1, len(y))) - centre for centre in (8, 4)])
    p = expit(logits)
    return y, p, p.round(3)


def test_three_digits_cost_a_logistic_blend_only_their_ties() -> None:
    aucs = []
    for seed in range(3):
        y, p, coarse = rounded_runs(seed)
        half = np.arange(len(y)) < len(y) // 2
        full, rounded = (Blender("logistic").fit(P[half], y[half]).predict_proba(P[~half])[:, 1] for P in (p, coarse))
        certain = logit(np.clip(coarse, 1e-12, 1 - 1e-12))  # what a 0 meant before
        before = LogisticRegression(C=np.inf).fit(certain[half], y[half]).predict_proba(certain[~half])[:, 1]
        aucs.append([roc_auc_score(y[~half], score) for score in (full, rounded, before)])
        assert (coarse == 0).mean() > 0.2
    full, rounded, before = np.mean(aucs, axis=0)
    assert rounded > full - 0.004
    assert rounded > before + 0.003


def test_a_stored_blend_keeps_its_limits() -> None:
    y, _, coarse = rounded_runs(1)
    blend = Blender("logistic").fit(coarse, y)
    settings, arrays = blender_state(blend)
    assert settings["limits"] == [pytest.approx((0.0005, 0.9995))] * 2
    restored = blender_from_state(settings, arrays)
    assert np.array_equal(restored.predict_proba(coarse), blend.predict_proba(coarse))


def test_a_blend_stored_by_an_earlier_version_predicts_as_before() -> None:
    y, p, _ = rounded_runs(2)
    blend = Blender("logistic").fit(p, y)
    settings, arrays = blender_state(blend)
    del settings["limits"]
    assert np.array_equal(blender_from_state(settings, arrays).predict_proba(p), blend.predict_proba(p))


@pytest.mark.parametrize("pair", [[0, 1], [0.5, 0.5], ["a", 1], [float("nan"), 1], [0.1]])
def test_damaged_limits_are_refused(pair: list) -> None:
    y, p, _ = rounded_runs(3)
    settings, arrays = blender_state(Blender("logistic").fit(p, y))
    for limits in ([pair, pair], [[0.1, 0.9]], [[0.1, 0.9]] * 3):
        with pytest.raises(StoreError, match="cannot be read"):
            blender_from_state({**settings, "limits": limits}, arrays)

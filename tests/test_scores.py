"""Metrics against scikit-learn, intervals against a bootstrap that repeats rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from dermstack.errors import ConfigError, DataError
from stack.metrics.scores import (
    OBJECTIVES,
    accuracy,
    auc,
    auc_by_fold,
    average_precision,
    brier,
    expected_calibration_error,
    log_loss,
    pauc80,
    score,
)


def isic_2024(y: NDArray[np.int64], s: NDArray[np.float64]) -> float:
    """The metric as published with the competition, at a true positive rate above 80 %."""
    max_fpr = 1 - 0.8
    scaled = sk.roc_auc_score(np.abs(y - 1), -1.0 * s, max_fpr=max_fpr)
    return 0.5 * max_fpr**2 + (max_fpr - 0.5 * max_fpr**2) / (1.0 - 0.5) * (scaled - 0.5)


ORACLES: dict[str, Callable[..., float]] = {
    "auc": sk.roc_auc_score,
    "pauc80": isic_2024,
    "ap": sk.average_precision_score,
    "logloss": lambda y, s: -sk.log_loss(y, s, labels=[0, 1]),
}


@st.composite
def targets_and_scores(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Both classes, and scores in [0, 1] on a grid coarse enough to tie."""
    steps = draw(st.sampled_from([1, 3, 10, 1000]))
    rows = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, steps)), min_size=2, max_size=40))
    y, s = np.array(rows).T
    y[:2] = [0, 1]
    return y, s / steps


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(rows=targets_and_scores())
@settings(max_examples=150)
def test_objectives_equal_scikit_learn_on_tied_scores(objective: str, rows: tuple[NDArray, NDArray]) -> None:
    assert score(objective, *rows) == pytest.approx(ORACLES[objective](*rows), abs=1e-12)


def test_auc_is_exact_on_a_tie_across_the_classes() -> None:
    assert auc([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]) == 3.5 / 4
    assert auc([0, 1, 1], [7, 7, 7]) == 0.5


def test_pauc80_spans_zero_to_a_fifth() -> None:
    assert pauc80([0, 0, 1, 1], [1, 2, 3, 4]) == pytest.approx(0.2, abs=1e-15)
    assert pauc80([0, 0, 1, 1], [4, 3, 2, 1]) == 0
    assert pauc80([0, 1], [5, 5]) == pytest.approx(0.02)  # the triangle that chance leaves


def test_proper_scores_and_accuracy_equal_scikit_learn(rng: np.random.Generator) -> None:
    y, p = rng.integers(0, 2, 200), rng.random(200)
    assert brier(y, p) == pytest.approx(sk.brier_score_loss(y, p))
    assert log_loss(y, p) == pytest.approx(sk.log_loss(y, p))
    assert average_precision(y, p) == pytest.approx(sk.average_precision_score(y, p))
    assert accuracy(y, p, threshold=0.3) == sk.accuracy_score(y, p >= 0.3)


@given(rows=targets_and_scores(), given_rate=st.sampled_from([0.0, 0.5, 0.8, 0.95, 1.0]))
@settings(max_examples=150)
def test_sensitivity_and_specificity_are_those_of_the_best_allowed_threshold(
    rows: tuple[NDArray, NDArray], given_rate: float
) -> None:
    y, s = rows
    thresholds = [*np.unique(s), np.inf]
    sensitivity = np.array([np.mean(s[y == 1] >= t) for t in thresholds])
    specificity = np.array([np.mean(s[y == 0] < t) for t in thresholds])
    expected = sensitivity[specificity >= given_rate - 1e-9].max()
    assert score(f"sensitivity@{given_rate}", y, s) == pytest.approx(expected)
    expected = specificity[sensitivity >= given_rate - 1e-9].max()
    assert score(f"specificity@{given_rate}", y, s) == pytest.approx(expected)


def test_calibration_error_is_the_gap_of_each_bin() -> None:
    p = np.array([0.1, 0.1, 0.3, 0.3, 0.6, 0.6, 0.9, 0.9])
    y = np.array([0, 0, 0, 1, 1, 1, 1, 1])
    gaps = [abs(0 - 0.1), abs(0.5 - 0.3), abs(1 - 0.6), abs(1 - 0.9)]
    assert expected_calibration_error(y, p, bins=4) == pytest.approx(np.mean(gaps))
    assert expected_calibration_error(y, p, bins=10, equal="width") == pytest.approx(np.mean(gaps))
    assert expected_calibration_error(y, p, bins=1) == pytest.approx(abs(y.mean() - p.mean()))
    assert expected_calibration_error([0, 1], [1.0, 1.0], equal="width") == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="bins of equal 'size'"):
        expected_calibration_error(y, p, equal="size")


def test_calibrated_probabilities_have_hardly_an_error(rng: np.random.Generator) -> None:
    p = rng.beta(1, 20, 200_000)
    y = rng.random(len(p)) < p
    assert expected_calibration_error(y, p) < 0.002
    assert expected_calibration_error(y, p**0.5) > 0.1


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_better_score_is_the_higher_one(objective: str) -> None:
    y = [0, 0, 0, 1, 1]
    assert score(objective, y, [0.1, 0.2, 0.3, 0.8, 0.9]) > score(objective, y, [0.9, 0.8, 0.7, 0.2, 0.1])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_targets_and_scores_of_any_number_type_are_taken(dtype: type) -> None:
    y = np.array([0, 1, 0, 1])
    assert auc(y.astype(dtype), np.float32([0.1, 0.4, 0.3, 0.9])) == 1
    assert auc(pd.Series(y.astype(dtype)), pd.Series([1, 4, 3, 9])) == 1


@pytest.mark.parametrize(
    ("y", "s", "names"),
    [
        ([0, 1, 1], [0.1, np.nan, 0.2], "1 of 3 scores are NaN .row 1"),
        ([1, 1], [0.1, 0.2], "single class: all 2 rows are positive"),
        ([0, 0], [0.1, 0.2], "single class: all 2 rows are negative"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "1 of 3 targets are not 0 or 1 .row 2: 2"),
        ([0, np.nan], [0.1, 0.2], "row 1: nan"),
        ([0, 1], [0.1, 0.2, 0.3], "scores have shape .3,., targets .2,."),
        ([], [], "shape .0,."),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(y: list[float], s: list[float], names: str) -> None:
    with pytest.raises(DataError, match=names):
        auc(y, s)


def test_unknown_objectives_and_improbable_probabilities_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'f1': choose one of auc"):
        score("f1", [0, 1], [0, 1])
    for metric in (log_loss, brier):
        with pytest.raises(DataError, match=r"1 of 2 scores are not probabilities in \[0, 1\] \(row 1: 1\.5\)"):
            metric([0, 1], [0.5, 1.5])


def test_a_fold_of_a_single_class_has_nan_on_the_record() -> None:
    y, s, fold = [0, 1, 0, 1, 0, 0], [0.1, 0.2, 0.9, 0.3, 0.5, 0.6], [0, 0, 1, 1, 4, 4]
    values = auc_by_fold(y, s, fold)
    assert values.index.tolist() == [0, 1, 4]
    assert values.tolist()[:2] == [1, 0]
    assert np.isnan(values[4])

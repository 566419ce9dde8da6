"""Expected positives of new rows: the sum of risks, and an interval that is as wide as repeated data sets differ."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from stack.metrics.expected_positives import CalibrationNoise, calibration_noise, expected_positives, noise_of
from stack.metrics.measures import measure


def drawn(rng: np.random.Generator, patients: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets, calibrated risks and patients of five rows each, whose positives come together."""
    patient = np.repeat(np.arange(patients), 5)
    effect = rng.normal(0, 1.2, patients)[patient]
    x = rng.normal(-2.5, 1, patients * 5)
    return (rng.random(len(x)) < expit(x + effect)).astype(int), x, patient


def test_the_error_of_repeated_data_sets_is_the_standard_error(rng: np.random.Generator) -> None:
    """The constant of the calibration is fitted on one set of patients and applied to another, again and again."""
    errors, errors_told = [], []
    for _ in range(120):
        y, x, patient = drawn(rng, 100)
        shift = 0.0
        for _ in range(20):  # Newton steps to the constant with as many positives expected as there are
            p = expit(x + shift)
            shift += (y.sum() - p.sum()) / (p * (1 - p)).sum()
        labels, new, _ = drawn(rng, 150)
        number = expected_positives(expit(new + shift), calibration_noise(y, expit(x + shift), patient))
        assert number.value == pytest.approx(expit(new + shift).sum())
        assert number.low < number.value < number.high
        errors.append(labels.sum() - number.value)
        errors_told.append(number.se)
    assert np.mean(errors_told) == pytest.approx(np.std(errors), rel=0.2)


def test_grouped_rows_widen_it_and_a_large_training_set_leaves_the_noise_of_the_new_rows(
    rng: np.random.Generator,
) -> None:
    y, x, patient = drawn(rng, 200)
    p = expit(x + logit(y.mean()) - logit(expit(x).mean()))
    grouped, single = calibration_noise(y, p, patient), calibration_noise(y, p, np.arange(len(y)))
    assert expected_positives(p, grouped).se > 1.1 * expected_positives(p, single).se
    weight = float((p * (1 - p)).sum())
    exact = CalibrationNoise(se=0.0, effect=1.0)  # independent rows, and endless labels
    assert expected_positives(p, exact).se == pytest.approx(np.sqrt(weight), rel=1e-9)
    measures = measure(y, p, p, patient, draws=50)
    assert noise_of(measures).se == grouped.se
    assert noise_of(measures).effect == pytest.approx(grouped.se**2 * ((y - p) ** 2).sum())


def test_the_ends_stay_between_none_and_all() -> None:
    noise = CalibrationNoise(se=2.0, effect=4.0)
    few = expected_positives(np.full(3, 0.01), noise)
    assert 0 <= few.low < few.value < few.high <= 3
    assert expected_positives(np.empty(0), noise).value == 0

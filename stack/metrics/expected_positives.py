"""Number of positives to expect among new rows, from their calibrated risks, with a prediction interval."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stack.metrics.calibration import recalibration
from stack.metrics.intervals import Z95, Interval
from stack.metrics.measures import Measures
from stack.metrics.scores import Floats


@dataclass(frozen=True)
class CalibrationNoise:
    """How exactly calibrated risks were known in training, which limits what can be expected of new rows."""

    se: float  # standard error of the constant to add to every logit, for rows in groups
    weight: float  # sum of p (1 - p) over the training rows


def calibration_noise(y: ArrayLike, p: ArrayLike, split_group: ArrayLike) -> CalibrationNoise:
    """Measures the noise on training rows (n,) whose ``p`` were not fitted on their own targets ``y``.

    Raises DataError as `recalibration` does.
    """
    values: Floats = np.asarray(p, np.float64)
    return CalibrationNoise(recalibration(y, values, split_group).in_the_large.se, float((values * (1 - values)).sum()))


def noise_of(measures: Measures) -> CalibrationNoise:
    """Returns the noise behind metrics of training rows: of calibrated p, the Brier score is the mean of p (1 - p)."""
    return CalibrationNoise(measures.in_the_large.se, measures.rows * measures.brier)


def expected_positives(p: ArrayLike, noise: CalibrationNoise) -> Interval:
    """Returns the sum of calibrated risks ``p`` (n,) of new rows, with a 95 % prediction interval of their positives.

    Two errors add up: that of the calibration, which moves all risks together, and that of the new rows, whose
    positives come in groups as they did in training. With V the variance of observed minus expected positives in
    training and r the new rows' Σ p (1 - p) relative to that of training, the variance is V (r² + r). The interval is
    symmetrical for the square root of the number, whose variance hardly depends on its mean. It holds for new rows of
    the population of training, with groups of the same kind.
    """
    risks: Floats = np.asarray(p, np.float64)
    expected, weight = float(risks.sum()), float((risks * (1 - risks)).sum())
    se = noise.se * math.sqrt(weight * (weight + noise.weight))  # V is (se · weight in training)²
    if expected <= 0:
        return Interval(expected, expected, expected, se)
    root, half = math.sqrt(expected), Z95 * se / (2 * math.sqrt(expected))
    return Interval(expected, max(root - half, 0.0) ** 2, min((root + half) ** 2, float(risks.size)), se)

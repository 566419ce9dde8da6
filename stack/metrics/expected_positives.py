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
    """What limits the agreement of calibrated risks with the positives of new rows of the same population."""

    se: float  # standard error of the calibration: of the constant that would have to be added to every logit
    effect: float  # variance of the number of positives, relative to that of rows without groups


def calibration_noise(y: ArrayLike, p: ArrayLike, split_group: ArrayLike) -> CalibrationNoise:
    """Measures the noise on rows (n,) whose ``p`` were not fitted on their own targets ``y``.

    Raises DataError as `recalibration` does.
    """
    values: Floats = np.asarray(p, np.float64)
    return _noise(recalibration(y, values, split_group).in_the_large.se, float((values * (1 - values)).sum()))


def noise_of(measures: Measures) -> CalibrationNoise:
    """Returns the noise behind the metrics of rows: of calibrated p, the Brier score is the mean of p (1 - p)."""
    return _noise(measures.in_the_large.se, measures.rows * measures.brier)


def _noise(se: float, weight: float) -> CalibrationNoise:
    """Returns the noise where the constant was estimated on rows whose sum of p (1 - p) is ``weight``."""
    return CalibrationNoise(se, se**2 * weight)


def expected_positives(p: ArrayLike, noise: CalibrationNoise) -> Interval:
    """Returns the sum of calibrated risks ``p`` (n,) of new rows, with a 95 % prediction interval of their positives.

    Two errors add up: that of the calibration, which moves all risks together, and that of the new rows, whose
    positives come in groups as they did where the noise was measured. With w the sum of p (1 - p), the variance is
    se² w² + effect · w. The interval is symmetrical for the square root of the number, whose variance hardly depends on
    its mean. It holds for new rows of the population of training, with groups of the same kind.
    """
    risks: Floats = np.asarray(p, np.float64)
    expected, weight = float(risks.sum()), float((risks * (1 - risks)).sum())
    se = math.sqrt(noise.se**2 * weight**2 + noise.effect * weight)
    if expected <= 0:
        return Interval(expected, expected, expected, se)
    root, half = math.sqrt(expected), Z95 * se / (2 * math.sqrt(expected))
    return Interval(expected, max(root - half, 0.0) ** 2, min((root + half) ** 2, float(risks.size)), se)

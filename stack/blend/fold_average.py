"""Calibration of scores averaged over fold nets, from the calibration of single nets and rows without labels.

A calibration map g is fitted on out-of-fold scores, each made by a single fold net, but new rows get the average s̄ of
the K nets' logits s_k. What the nets do not share cancels in the average. Averaged logits are therefore less spread
and more informative: g reads them too far in the middle, so that its risks have a slope above 1 and, where positives
are rare, sum to too few positives. On generated data with 100 to 500 positives, sums are low by 0.3 to 1.7 % and slopes
high by 1 to 7 %, more where nets differ more (docs/log.md).

Logistic regression of y on s̄ needs only the sums of y and of y · s̄, and both can be estimated without labels. The
net of a random fold is one that g was fitted for, so E[y] = E[g(s_k)] and E[y s_k] = E[g(s_k) s_k], and as s̄ is the
mean of the s_k, E[y s̄] is the mean of E[y s_k] over the nets. Neither equation asks how nets depend on one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import root
from scipy.special import expit

from stack.blend.calibration import RISK_LIMITS, Calibrator, Rescaled, rescaled
from stack.metrics.resolution import clipped_logit
from stack.metrics.row_values import varies
from stack.metrics.scores import Floats

MIN_ROWS = 200  # rows without labels below which a single net's map is kept: the line would be noise
_SCORE_LIMITS = 1e-12, 1 - 1e-12  # between which scores are clipped, so that their logits are finite
_TOLERANCE = 1e-6  # within which both equations must hold


def average_scores(scores: Floats) -> Floats:
    """Returns the scores (rows,) whose logits are the means of those of each fold net's scores (folds, rows)."""
    if not scores.shape[1]:
        return np.empty(0)
    made: Floats = expit(np.mean(clipped_logit(scores, _SCORE_LIMITS), axis=0))
    return made


@dataclass(frozen=True)
class AverageCalibration:
    """The map of averaged scores, and why it is that of single nets where it is."""

    final: Calibrator
    rows: int  # without labels, that the line was fitted to
    kept: str = ""  # why the map of single nets is kept, as the end of a sentence; empty where it got a line

    def record(self) -> dict[str, Any]:
        """Returns the line, or why there is none, for run.json."""
        if self.kept or not isinstance(self.final, Rescaled):
            return {"rows": self.rows, "kept": self.kept}
        return {"rows": self.rows, "slope": self.final.slope, "intercept": self.final.intercept}


def calibrate_average(single: Calibrator, scores: Floats) -> AverageCalibration:
    """Returns the map of averaged scores: ``single``, fitted to scores of single nets, followed by a line on logits.

    ``scores`` (folds, rows) are those of each fold net for rows without labels. The line makes the sums of p and of
    p · s̄ over these rows equal to their estimates from single nets. ``single`` is kept where there are fewer than
    `MIN_ROWS` rows, where every net gives the same scores, where scores do not vary, and where no rising line solves
    both equations.
    """
    rows = scores.shape[1]
    if rows < MIN_ROWS:
        return AverageCalibration(single, rows, f"there are only {rows:,} test predictions, and it needs {MIN_ROWS}")
    if not np.ptp(scores, axis=0).any():
        return AverageCalibration(single, rows, "no run has predictions of each fold net for test rows")
    each, average = clipped_logit(scores, _SCORE_LIMITS), average_scores(scores)
    of_average, x = single(average), clipped_logit(average, _SCORE_LIMITS)
    if not varies(average) or not varies(of_average):
        return AverageCalibration(single, rows, "the scores of the test rows do not vary")
    p = np.stack([single(of_fold) for of_fold in scores])
    # In standard units: of s̄ the weights of the sums, of the map's logits what the line is applied to.
    centre, spread = x.mean(), x.std()
    weights = np.stack([np.ones(len(x)), (x - centre) / spread])
    wanted = np.array([p.mean(), (p * (each - centre)).mean() / spread])
    start = clipped_logit(of_average, RISK_LIMITS)
    middle, width = start.mean(), start.std()
    z = (start - middle) / width

    def gap(line: Floats) -> Floats:
        made: Floats = weights @ expit(line[0] + line[1] * z) / len(z) - wanted
        return made

    found = root(gap, np.array([middle, width]))
    slope, intercept = float(found.x[1] / width), float(found.x[0] - found.x[1] * middle / width)
    if not (np.isfinite(found.x).all() and np.abs(gap(found.x)).max() < _TOLERANCE * wanted[0] and slope > 0):
        return AverageCalibration(single, rows, "it cannot be fitted to them (no slope above 0 solves its equations)")
    return AverageCalibration(rescaled(single, slope, intercept), rows)

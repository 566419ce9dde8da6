"""Estimates the prevalence among rows without labels from their calibrated risks (Saerens et al. 2002).

The assumption is that of label shift: positive rows look like the positive rows of training, and negative rows like
its negative ones; only the share of positives differs. It does not hold where cameras, referral or the mix of diseases
differ, and no number computed without labels can show that it does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit, logit

from dermstack.errors import DataError
from stack.metrics.calibration import EDGE
from stack.metrics.intervals import Z95, Interval
from stack.metrics.scores import Floats

_HALVINGS = 60  # of the interval in which the prevalence is searched


@dataclass(frozen=True)
class PrevalenceShift:
    """Another prevalence, and what it means for risks: logit of the new risk = logit of the old one + intercept."""

    reference: float  # the prevalence that the risks were calibrated for
    interval: Interval  # the prevalence here; without width where it was given
    se_logit: float  # standard error of its log odds; 0 where it was given

    @property
    def intercept(self) -> float:
        """Constant to add to every logit."""
        return float(logit(self.interval.value) - logit(self.reference))

    @property
    def is_shown(self) -> bool:
        """Whether the prevalence differs from that of training beyond noise."""
        return not self.interval.low <= self.reference <= self.interval.high


def given_prevalence(prevalence: float, reference: float) -> PrevalenceShift:
    """Returns the shift to a prevalence that is known."""
    return PrevalenceShift(reference, Interval(prevalence, prevalence, prevalence, 0.0), 0.0)


def estimate_prevalence(p: ArrayLike, reference: float, group: ArrayLike) -> PrevalenceShift:
    """Estimates the prevalence among rows with risks ``p`` (n,), calibrated for the prevalence ``reference``.

    Maximum likelihood, where the expectation-maximisation of Saerens et al. converges: a share q is sought with which
    the risks, moved from ``reference`` to q, have the mean q. The 95 % interval is that of the log odds of q, for rows
    in groups (n,). Raises DataError where the rows fit best to no positive or to no negative at all, and for one group.
    """
    risks: Floats = np.clip(np.asarray(p, np.float64), EDGE, 1 - EDGE)
    codes = pd.factorize(np.asarray(group, dtype=object))[0]
    groups = int(codes.max(initial=-1)) + 1
    if groups < 2:
        raise DataError(f"rows of {groups} groups: the prevalence needs rows of at least two, give more rows")
    ratio = np.exp(logit(risks) - logit(reference))  # of the densities of positive and negative rows

    def slopes(share: float) -> Floats:
        made: Floats = (ratio - 1) / (share * (ratio - 1) + 1)
        return made

    low, high = EDGE, 1 - EDGE
    if slopes(low).sum() <= 0 or slopes(high).sum() >= 0:
        none = "positive" if slopes(low).sum() <= 0 else "negative"
        raise DataError(
            f"without labels, these {len(risks):,} rows fit best to no {none} one at all, which says that the "
            "assumption does not hold here (rows of each class look as in training) or that they are too few: give "
            "the prevalence as a number, or labels"
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slopes(middle).sum() > 0 else (low, middle)
    share = (low + high) / 2
    each = slopes(share) * share * (1 - share)  # derivatives by the log odds
    of_groups = np.bincount(codes, each)
    variance = groups / (groups - 1) * float(of_groups @ of_groups) / float(each @ each) ** 2
    se = float(np.sqrt(max(variance, 1 / float(each @ each))))
    centre = float(logit(share))
    bounds = expit(np.array([centre - Z95 * se, centre + Z95 * se]))
    return PrevalenceShift(reference, Interval(share, float(bounds[0]), float(bounds[1]), se * share * (1 - share)), se)

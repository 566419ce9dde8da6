"""Operating points: thresholds that a training set fixes, and what they find and miss on any rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stack.errors import DataError
from stack.metrics.curve import checked
from stack.metrics.intervals import Interval
from stack.metrics.proportion import proportion

AIMS = (
    ("sensitivity", 0.90),
    ("sensitivity", 0.95),
    ("specificity", 0.80),
    ("specificity", 0.90),
    ("specificity", 0.95),
)


@dataclass(frozen=True)
class Point:
    """A threshold of p, which calls what equals it positive, and its shares with 95 % intervals by group."""

    aim: str  # sensitivity or specificity
    level: float  # which the threshold reaches on the rows that it was fixed on
    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: Interval  # positive predictive value, at these rows' prevalence; NaN where nothing is called positive
    npv: Interval


def fixed_points(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> tuple[Point, ...]:
    """For each of AIMS the threshold of `p` (n,) that reaches it on targets `y` (n,) and gives least of the other up.

    Raises DataError where a class is missing.
    """
    return tuple(point_at(y, p, group, aim, level, _threshold(y, p, aim, level)) for aim, level in AIMS)


def point_at(y: ArrayLike, p: ArrayLike, group: ArrayLike, aim: str, level: float, threshold: float) -> Point:
    """What a threshold fixed elsewhere does to these rows."""
    positive, p = checked(y, p)
    group, called = np.asarray(group, dtype=object), p >= threshold
    shares = {
        "sensitivity": (called, positive), "specificity": (~called, ~positive),
        "ppv": (positive, called), "npv": (~positive, ~called),
    }  # fmt: skip
    made = {name: proportion(hit[of], group[of]) for name, (hit, of) in shares.items()}
    return Point(aim, level, float(threshold), **made)


def _threshold(y: ArrayLike, p: ArrayLike, aim: str, level: float) -> float:
    positive, p = checked(y, p)
    if positive.all() or not positive.any():
        raise DataError("a single class: a threshold needs both")
    steps = np.unique(p[positive])  # only there does a threshold find more
    negatives, found = np.sort(p[~positive]), np.sort(p[positive])
    if aim == "sensitivity":
        reached = found.size - np.searchsorted(found, steps, "left") >= level * found.size * (1 - 1e-12)
        return float(steps[reached][-1])
    reached = np.searchsorted(negatives, steps, "left") >= level * negatives.size * (1 - 1e-12)
    # Where even the highest positive lies among too many negatives, nothing is called.
    return float(steps[reached][0]) if reached.any() else float(np.nextafter(p.max(), np.inf))

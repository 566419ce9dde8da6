"""The ROC curve as counts at each score of a positive, what lies under it, and what a score must be to have one."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stack.errors import ConfigError, DataError

OBJECTIVES = ("auc", "pauc80", "ap", "logloss")
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Curve(NamedTuple):
    """The ROC curve at each distinct score of a positive, lowest first: that is where its area lies."""

    positives: Floats  # (steps,) or (steps, draws): positives with this score
    below: Floats  # negatives with a lower score
    at: Floats  # negatives with this very score
    negatives: Floats  # () or (draws,): all of them


def _auc(curve: Curve) -> Floats:
    # Halves and whole numbers up to the division: exact while there are fewer than 2^52 pairs.
    won: Floats = np.sum(curve.positives * (curve.below + curve.at / 2), axis=0)
    pairs: Floats = np.sum(curve.positives, axis=0) * curve.negatives
    return won / pairs


def _pauc80(curve: Curve) -> Floats:
    width: Floats = curve.positives / np.sum(curve.positives, axis=0)
    left = np.cumsum(width, axis=0) - width
    used = np.clip(0.2 - left, 0, width)  # the tie that the cut goes through counts up to the cut
    share = np.divide(used, width, out=np.zeros_like(width), where=width > 0)
    area: Floats = np.sum(used * (curve.below + curve.at * share / 2), axis=0)
    return area / curve.negatives


def _average_precision(curve: Curve) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    called = found + curve.negatives - curve.below
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    average: Floats = np.sum(curve.positives * precision, axis=0) / found[0]
    return average


def _sensitivity(curve: Curve, specificity: float) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    allowed = curve.below >= specificity * curve.negatives * (1 - 1e-12)
    best: Floats = np.max(np.where(allowed, found, 0), axis=0) / found[0]
    return best


def _specificity(curve: Curve, sensitivity: float) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    enough = found >= sensitivity * found[0] * (1 - 1e-12)
    best: Floats = np.max(np.where(enough, curve.below, 0), axis=0) / curve.negatives
    return best if sensitivity > 0 else np.ones_like(best)  # a threshold above every score finds nothing


_CURVE_VALUES = {"auc": _auc, "pauc80": _pauc80, "ap": _average_precision}
_AT = {"sensitivity": _sensitivity, "specificity": _specificity}


def curve_value(objective: str) -> Callable[[Curve], Floats]:
    """What makes the objective of a curve: one of OBJECTIVES but log loss, `sensitivity@0.9` (at a specificity of 0.9)
    or `specificity@0.9` (at such a sensitivity). Raises ConfigError for another name."""
    name, _, at = objective.partition("@")
    if name in _AT and re.fullmatch(r"0?\.\d+|0|1|1\.0*", at):
        value, given = _AT[name], float(at)
        return lambda curve: value(curve, given)
    if objective not in _CURVE_VALUES:
        raise ConfigError(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    return _CURVE_VALUES[objective]


def losses(positive: Bools, p: NDArray[Any]) -> Floats:
    """Negative log-likelihood of each probability (n,), kept off 0 and 1; DataError for what is none."""
    eps = np.finfo(np.float64).eps
    refuse((p < 0) | (p > 1), p, "scores are no probabilities", "calibrate them")
    p = p.astype(np.float64)
    losses: Floats = -np.log(np.clip(np.where(positive, p, 1 - p), eps, 1 - eps))
    return losses


def checked(y: ArrayLike, s: ArrayLike) -> tuple[Bools, NDArray[Any]]:
    """Targets (n,) as booleans and their scores; DataError where one is NaN or no target."""
    positive = positives_of(y)
    s = one_a_row(s, positive, "scores")
    refuse(np.isnan(s), s, "scores are NaN", "leave no row unscored")
    return positive, s


def positives_of(y: ArrayLike) -> Bools:
    """Targets (n,) as booleans; DataError where one is not 0 or 1."""
    y = np.asarray(y)
    if y.ndim != 1 or not y.size:
        raise DataError(f"targets have shape {y.shape}: give one 0 or 1 a row")
    positive: Bools = y == 1
    refuse(~(positive | (y == 0)), y, "targets are not 0 or 1", "mend or drop these rows")
    return positive


def one_a_row(values: ArrayLike, positive: Bools, what: str) -> NDArray[Any]:
    """An array with a value for each target; DataError for another shape."""
    values = np.asarray(values)
    if values.shape != positive.shape:
        raise DataError(f"{what} have shape {values.shape}, targets {positive.shape}: give one a row")
    return values


def refuse(bad: Bools, values: NDArray[Any], why: str, next_step: str) -> None:
    """Raise DataError where a row is bad, naming the first."""
    rows = np.flatnonzero(bad)
    if rows.size:
        named = f"row {rows[0]}: {values[rows[0]]}"
        raise DataError(f"{rows.size} of {bad.size} {why} ({named}): {next_step}")

"""Metrics of scores for targets (n,) of 0 and 1, exact with ties."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError, DataError
from stack.metrics.decision_metrics import EXAMPLES, decision_metric, ratio, row_parts
from stack.metrics.objective import OBJECTIVE_LABELS as OBJECTIVE_LABELS
from stack.metrics.objective import OBJECTIVES as OBJECTIVES
from stack.metrics.objective import Objective as Objective
from stack.metrics.own_metric import is_own_metric, own_label, own_value
from stack.metrics.row_values import row_values

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class RocCurve(NamedTuple):
    """ROC curve at each distinct score of a positive, lowest first; its area changes only there."""

    positives: Floats  # (steps,) or (steps, draws): positives with this score
    below: Floats  # negatives with a lower score
    tied: Floats  # negatives with the same score
    negatives: Floats  # () or (draws,): number of all negatives


def _auc(curve: RocCurve) -> Floats:
    # Only halves and whole numbers before the division: exact for fewer than 2^52 pairs.
    won: Floats = np.sum(curve.positives * (curve.below + curve.tied / 2), axis=0)
    pairs: Floats = np.sum(curve.positives, axis=0) * curve.negatives
    return won / pairs


def _pauc80(curve: RocCurve) -> Floats:
    width: Floats = curve.positives / np.sum(curve.positives, axis=0)
    left = np.cumsum(width, axis=0) - width
    used = np.clip(0.2 - left, 0, width)  # a tie that spans the cut counts up to the cut
    share = np.divide(used, width, out=np.zeros_like(width), where=width > 0)
    area: Floats = np.sum(used * (curve.below + curve.tied * share / 2), axis=0)
    return area / curve.negatives


def _average_precision(curve: RocCurve) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    called = found + curve.negatives - curve.below
    precision = np.divide(found, called, out=np.zeros_like(found), where=called > 0)
    average: Floats = np.sum(curve.positives * precision, axis=0) / found[0]
    return average


def _sensitivity(curve: RocCurve, specificity: float) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    allowed = curve.below >= specificity * curve.negatives * (1 - 1e-12)
    best: Floats = np.max(np.where(allowed, found, 0), axis=0) / found[0]
    return best


def _specificity(curve: RocCurve, sensitivity: float) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    enough = found >= sensitivity * found[0] * (1 - 1e-12)
    best: Floats = np.max(np.where(enough, curve.below, 0), axis=0) / curve.negatives
    return best if sensitivity > 0 else np.ones_like(best)  # a threshold above every score finds nothing


def _reviews(curve: RocCurve, sensitivity: float) -> Floats:
    found = np.cumsum(curve.positives[::-1], axis=0)[::-1]
    enough = found >= sensitivity * found[0] * (1 - 1e-12)
    last = np.sum(enough, axis=0, keepdims=True) - 1  # the highest score at which enough positives are reached
    at_last = np.take_along_axis(found, last, axis=0)[0]
    called = at_last + curve.negatives - np.take_along_axis(curve.below, last, axis=0)[0]
    return np.asarray(-called / at_last, np.float64)


_CURVE_METRICS = {"auc": _auc, "pauc80": _pauc80, "ap": _average_precision}
_AT_OPERATING_POINT = {"sensitivity": _sensitivity, "specificity": _specificity, "reviews": _reviews}


def curve_metric(objective: str) -> Callable[[RocCurve], Floats]:
    """Returns the function that computes an objective from a `RocCurve`.

    `objective` is one of OBJECTIVES except "logloss", `sensitivity@0.9` (at specificity 0.9), `specificity@0.9` or
    `reviews@0.9` (both at sensitivity 0.9). Raises ConfigError for another name.
    """
    name, _, at = objective.partition("@")
    if name in _AT_OPERATING_POINT and re.fullmatch(r"0?\.\d+|0|1|1\.0*", at):
        value, given = _AT_OPERATING_POINT[name], float(at)
        return lambda curve: value(curve, given)
    if objective not in _CURVE_METRICS:
        raise ConfigError(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    return _CURVE_METRICS[objective]


def losses(positive: Bools, p: NDArray[Any]) -> Floats:
    """Returns the negative log-likelihood of each probability (n,), clipped away from 0 and 1.

    Raises DataError for values outside [0, 1].
    """
    eps = np.finfo(np.float64).eps
    raise_for_rows((p < 0) | (p > 1), p, "scores are not probabilities in [0, 1]", "calibrate them")
    p = p.astype(np.float64)
    losses: Floats = -np.log(np.clip(np.where(positive, p, 1 - p), eps, 1 - eps))
    return losses


def checked(y: ArrayLike, s: ArrayLike) -> tuple[Bools, NDArray[Any]]:
    """Returns targets (n,) as booleans, and their scores.

    Raises DataError where a score is NaN, a target is not 0 or 1, or both label the same rows in another order, and as
    `row_values` does.
    """
    check_same_order(targets=y, scores=s)
    positive = positive_mask(y)
    s = check_one_per_row(row_values(s, "scores"), positive, "scores")
    s = s.astype(np.float64) if s.dtype.kind == "b" else s  # NumPy subtracts no booleans
    raise_for_rows(np.isnan(s), s, "scores are NaN", "give every row a score")
    return positive, s


def positive_mask(y: ArrayLike) -> Bools:
    """Returns targets (n,) as booleans; raises DataError where one is not 0 or 1."""
    y = row_values(y, "targets")
    if y.ndim != 1 or not y.size:
        raise DataError(f"targets have shape {y.shape}: give one 0 or 1 for each row")
    positive: Bools = y == 1
    raise_for_rows(~(positive | (y == 0)), y, "targets are not 0 or 1", "correct or drop these rows")
    return positive


def check_same_order(**rows: object) -> None:
    """Raises DataError where two of ``rows`` are of pandas and label the same rows, in another order.

    All are used by position, so that every row would get the values of another. Labels that pandas numbers by itself
    (a RangeIndex), those that are not unique and different sets of labels say nothing about the order.
    """
    labelled = {
        name: values.index
        for name, values in rows.items()
        if isinstance(values, pd.Series | pd.DataFrame) and not isinstance(values.index, pd.RangeIndex)
    }
    (first, labels), *others = labelled.items() or [("", pd.Index([]))]
    for name, other in others:
        if labels.equals(other) or len(labels) != len(other) or not (labels.is_unique and other.is_unique):
            continue
        if labels.isin(other).all():
            row = int(np.argmax(labels != other))
            raise DataError(
                f"{name} and {first} label the same rows in another order (row {row}: {other[row]!r} and "
                f"{labels[row]!r}), but rows are used by position: join them first, for example with "
                f"{name}.loc[{first}.index]"
            )


def check_one_type(names: NDArray[Any], what: str) -> None:
    """Raises DataError where distinct ``names`` (n,) of groups hold one group as a number and as text: 7 and "7"."""
    if names.dtype != object:
        return
    as_text: dict[str, object] = {}
    for name in names:
        if (other := as_text.setdefault(str(name), name)) is not name:
            raise DataError(
                f"{what} hold {other!r} ({type(other).__name__}) and {name!r} ({type(name).__name__}), which would "
                "count as two groups: give all groups one type, for example with .astype(str)"
            )


def check_one_per_row(values: ArrayLike, positive: Bools, what: str) -> NDArray[Any]:
    """Returns `values` as an array; raises DataError unless it has one value for each target."""
    values = np.asarray(values)
    if values.shape != positive.shape:
        raise DataError(f"{what} have shape {values.shape}, targets {positive.shape}: give one for each row")
    return values


def raise_for_rows(bad: Bools, values: NDArray[Any], why: str, next_step: str) -> None:
    """Raises DataError where a row is bad, with their number and the first row and value."""
    rows = np.flatnonzero(bad)
    if rows.size:
        named = f"row {rows[0]}: {values[rows[0]]}"
        raise DataError(f"{rows.size} of {bad.size} {why} ({named}): {next_step}")


def is_objective(name: object) -> bool:
    """Whether a blend can have this objective: one of OBJECTIVES, or a user's own metric with the hash of its code."""
    return isinstance(name, str) and (name in OBJECTIVES or is_own_metric(name))


def objective_label(objective: str) -> str:
    """Returns how pages name an objective or decision metric; raises ConfigError for an unknown one."""
    if objective in OBJECTIVE_LABELS:
        return OBJECTIVE_LABELS[objective]
    if is_own_metric(objective):
        return own_label(objective)
    if (metric := decision_metric(objective)) is None:
        raise ConfigError(
            f"unknown objective {objective!r}: choose {', '.join(OBJECTIVE_LABELS)}, or a metric of decisions such as "
            f"{', '.join(EXAMPLES)}"
        )
    return metric.label


def auc(y: ArrayLike, s: ArrayLike) -> float:
    """Returns the area under the ROC curve of scores `s` (n,) for targets `y` (n,) of 0 and 1; a tied pair counts half.

    Raises DataError where a score is NaN, a target is not 0 or 1, or one class is missing.
    """
    return score("auc", y, s)


def pauc80(y: ArrayLike, s: ArrayLike) -> float:
    """Returns the area between the ROC curve and a true positive rate of 80 %, from 0 to 0.2, as scored in ISIC 2024.

    The competition's metric flips labels and scores, integrates with scikit-learn up to a false positive rate of 0.2
    and undoes its standardisation. This is the same area, also where a tie spans the cut.
    """
    return score("pauc80", y, s)


def average_precision(y: ArrayLike, s: ArrayLike) -> float:
    """Returns the mean precision over the steps of recall, without interpolation (scikit-learn's definition)."""
    return score("ap", y, s)


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Returns the mean negative log-likelihood of probabilities `p` (n,), clipped off 0 and 1; lower is better."""
    return -score("logloss", y, p)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Returns the mean squared difference of probabilities `p` (n,) and targets; lower is better."""
    positive, p = checked(y, p)
    raise_for_rows((p < 0) | (p > 1), p, "scores are not probabilities in [0, 1]", "calibrate them")
    return float(np.mean((p - positive) ** 2))


def accuracy(y: ArrayLike, p: ArrayLike, *, threshold: float = 0.5) -> float:
    """Returns the share of correctly classified rows; rows with p ≥ `threshold` are called positive."""
    positive, p = checked(y, p)
    return float(np.mean((p >= threshold) == positive))


def expected_calibration_error(y: ArrayLike, p: ArrayLike, *, bins: int = 10, equal: str = "mass") -> float:
    """Returns the mean absolute difference of mean `p` and share of positives over bins of `p` (n,), weighted by rows.

    Bins have equal ``mass`` (Nixon et al. 2019; rows of equal `p` share a bin) or equal ``width`` (Guo et al. 2017),
    which puts nearly every row into the first bin at a prevalence of 2 %.
    """
    positive, p = checked(y, p)
    raise_for_rows((p < 0) | (p > 1), p, "scores are not probabilities in [0, 1]", "calibrate them")
    if equal == "width":
        held = np.minimum((p * bins).astype(np.intp), bins - 1)
    elif equal == "mass":
        ordered = np.sort(p)
        held = np.searchsorted(ordered, p, "left") * bins // len(p)
    else:
        raise ConfigError(f"bins of equal {equal!r}: choose mass or width")
    gaps = np.bincount(held, p - positive, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def score(objective: str, y: ArrayLike, s: ArrayLike, *, patient: ArrayLike | None = None) -> float:
    """Returns `objective`, as for `scorer`, of scores `s` (n,); log loss is negated, so higher is better.

    ``patient`` (n,) is needed for a metric within patients. Raises DataError where a decision metric is undefined.
    """
    positive, s = checked(y, s)
    if is_own_metric(objective):
        return own_value(objective, positive, s, patient)
    metric = decision_metric(objective)
    if metric is None or metric.kind == "reviews":
        return scorer(objective, positive)(s)
    value = float(ratio(metric, row_parts(metric, positive, s, patient).sum(axis=0)))
    if np.isnan(value):
        why = "no patient with a positive has more images" if metric.needs_patients else "no positive has such a risk"
        raise DataError(f"{metric.name} is undefined on these rows: {why}; choose a smaller number")
    return value


def scorer(objective: str, y: ArrayLike) -> Callable[[NDArray[Any]], float]:
    """Returns `score` as a function of scores (n,) for fixed targets; a study calls it hundreds of times.

    `objective` is "logloss", a user's own metric or a name for `curve_metric`. For the latter, the function sorts the
    negatives and searches the positives, which are few. It does not check for NaN.
    """
    positive = positive_mask(y)
    if is_own_metric(objective):
        return lambda s: own_value(objective, positive, s)
    if objective == "logloss":
        return lambda s: float(-np.mean(losses(positive, s)))
    value_of = curve_metric(objective)
    rows, negative_rows = np.flatnonzero(positive), np.flatnonzero(~positive)
    if not rows.size or not negative_rows.size:
        only = "positive" if rows.size else "negative"
        raise DataError(f"a single class: all {positive.size} rows are {only}, and {objective} needs both classes")

    def area(s: NDArray[Any]) -> float:
        negatives, positives = np.sort(s[negative_rows]), np.sort(s[rows])
        twice_won = sum(np.searchsorted(negatives, positives, side).sum() for side in ("left", "right"))
        return float(twice_won / 2 / (rows.size * negative_rows.size))

    def value(s: NDArray[Any]) -> float:
        negatives = np.sort(s[negative_rows])
        steps, count = np.unique(s[rows], return_counts=True)
        below = np.searchsorted(negatives, steps, "left").astype(np.float64)
        at = np.searchsorted(negatives, steps, "right") - below
        return float(value_of(RocCurve(count.astype(np.float64), below, at, np.asarray(float(negative_rows.size)))))

    return area if objective == "auc" else value


def auc_by_fold(y: ArrayLike, s: ArrayLike, fold: ArrayLike) -> pd.Series[float]:
    """Returns the AUC within each fold, indexed by fold; NaN for a fold with a single class."""
    check_same_order(scores=s, folds=fold)
    positive, s = checked(y, s)
    fold = check_one_per_row(fold, positive, "folds")
    value = {}
    for k in np.unique(fold):
        held = positive[fold == k]
        value[k] = auc(held, s[fold == k]) if 0 < held.sum() < held.size else np.nan
    return pd.Series(value, name="auc", dtype=np.float64).rename_axis("fold")

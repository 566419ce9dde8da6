"""What a score is worth: metrics exact with ties, of targets (n,) of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stack.errors import ConfigError, DataError
from stack.metrics.curve import Curve, checked, curve_value, losses, one_a_row, positives_of, refuse


def auc(y: ArrayLike, s: ArrayLike) -> float:
    """Area under the ROC curve of scores `s` (n,) for targets `y` (n,) of 0 and 1; a tied pair counts half.

    Raises DataError where a score is NaN, a target is not 0 or 1, or one class is missing.
    """
    return score("auc", y, s)


def pauc80(y: ArrayLike, s: ArrayLike) -> float:
    """Area between the ROC curve and a true positive rate of 80 %, in 0 to 0.2, as scored in ISIC 2024.

    The competition's metric flips labels and scores, has scikit-learn integrate up to a false positive rate
    of 0.2 and undoes its standardisation; this is the same area, also where the cut goes through a tie.
    """
    return score("pauc80", y, s)


def average_precision(y: ArrayLike, s: ArrayLike) -> float:
    """Precision averaged over the steps of recall, without interpolation (scikit-learn's definition)."""
    return score("ap", y, s)


def log_loss(y: ArrayLike, p: ArrayLike) -> float:
    """Mean negative log-likelihood of probabilities `p` (n,), lower is better; `p` is kept off 0 and 1."""
    return -score("logloss", y, p)


def brier(y: ArrayLike, p: ArrayLike) -> float:
    """Mean squared distance of probabilities `p` (n,) to the targets, lower is better."""
    positive, p = checked(y, p)
    refuse((p < 0) | (p > 1), p, "scores are no probabilities", "calibrate them")
    return float(np.mean((p - positive) ** 2))


def accuracy(y: ArrayLike, p: ArrayLike, *, threshold: float = 0.5) -> float:
    """Share of rows on the right side of `threshold`; what equals it counts as called positive."""
    positive, p = checked(y, p)
    return float(np.mean((p >= threshold) == positive))


def expected_calibration_error(y: ArrayLike, p: ArrayLike, *, bins: int = 10, equal: str = "mass") -> float:
    """Mean distance of probabilities `p` (n,) to the share of positives in their bin, weighted by rows.

    Bins of equal ``mass`` (Nixon et al. 2019; equal values stay together) or, as Guo et al. 2017, of equal ``width``,
    which at a prevalence of 2 % puts nearly every row into the first.
    """
    positive, p = checked(y, p)
    refuse((p < 0) | (p > 1), p, "scores are no probabilities", "calibrate them")
    if equal == "width":
        held = np.minimum((p * bins).astype(np.intp), bins - 1)
    elif equal == "mass":
        ordered = np.sort(p)
        held = np.searchsorted(ordered, p, "left") * bins // len(p)
    else:
        raise ConfigError(f"bins of equal {equal!r}: choose mass or width")
    gaps = np.bincount(held, p - positive, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def sensitivity_at(y: ArrayLike, s: ArrayLike, *, specificity: float) -> float:
    """The highest share of positives found by a threshold that calls at most 1 - `specificity` of the negatives.

    What equals a threshold is called positive; nothing is interpolated.
    """
    return score(f"sensitivity@{specificity:.6f}", y, s)


def specificity_at(y: ArrayLike, s: ArrayLike, *, sensitivity: float) -> float:
    """The highest share of negatives left alone by a threshold that finds at least `sensitivity` of the positives."""
    return score(f"specificity@{sensitivity:.6f}", y, s)


def score(objective: str, y: ArrayLike, s: ArrayLike) -> float:
    """`objective` (one of OBJECTIVES) of scores `s` (n,); higher is better: log loss comes negated."""
    positive, s = checked(y, s)
    return scorer(objective, positive)(s)


def scorer(objective: str, y: ArrayLike) -> Callable[[NDArray[Any]], float]:
    """`score` for targets that stay: a function of scores (n,) alone, called hundreds of times by a study.

    It sorts the negatives once and searches the positives, which are few. It does not look for NaN.
    """
    positive = positives_of(y)
    if objective == "logloss":
        return lambda s: float(-np.mean(losses(positive, s)))
    value_of = curve_value(objective)
    rows, others = np.flatnonzero(positive), np.flatnonzero(~positive)
    if not rows.size or not others.size:
        only = "positive" if rows.size else "negative"
        raise DataError(f"a single class: all {positive.size} rows are {only}, and {objective} needs both")

    def value(s: NDArray[Any]) -> float:
        negatives = np.sort(s[others])
        steps, count = np.unique(s[rows], return_counts=True)
        below = np.searchsorted(negatives, steps, "left").astype(np.float64)
        at = np.searchsorted(negatives, steps, "right") - below
        return float(value_of(Curve(count.astype(np.float64), below, at, np.asarray(float(others.size)))))

    return value


def auc_by_fold(y: ArrayLike, s: ArrayLike, fold: ArrayLike) -> pd.Series[float]:
    """The AUC within each fold, indexed by fold; NaN, on the record, for a fold of a single class."""
    positive, s = checked(y, s)
    fold = one_a_row(fold, positive, "folds")
    value = {}
    for k in np.unique(fold):
        held = positive[fold == k]
        value[k] = auc(held, s[fold == k]) if 0 < held.sum() < held.size else np.nan
    return pd.Series(value, name="auc", dtype=np.float64).rename_axis("fold")

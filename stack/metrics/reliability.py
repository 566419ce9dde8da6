"""Whether a probability means what it says: shares of positives where it says so, and what it is worth in all."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from stack.metrics.curve import Floats, checked
from stack.metrics.proportion import proportion
from stack.metrics.scores import brier, expected_calibration_error, log_loss

_EDGE = 1e-9  # a probability nearer to 0 or 1 is taken as this near, so that its logit is finite


def reliability(y: ArrayLike, p: ArrayLike, split_group: ArrayLike, *, bins: int = 10) -> pd.DataFrame:
    """The share of positives among rows that were told about the same `p` (n,): p, share, low, high, rows, positives.

    Rows are cut by `p` so that each bin is told to hold as many positives as the others: at a prevalence of 2 % bins
    of as many rows would put all that matters into the last one. Equal values stay together, so there may be fewer.
    The interval is that of `proportion` by split_groups (n,), which has a width where a bin holds no positive.
    """
    positive, p = checked(y, p)
    group, _ = pd.factorize(np.asarray(split_group, dtype=object))
    bin_of = _equal_promise(np.asarray(p, np.float64), bins)
    records = []
    for number in range(int(bin_of.max()) + 1):
        rows = bin_of == number
        share = proportion(positive[rows], group[rows])
        bounds = (share.value, share.low, share.high)
        records.append([float(p[rows].mean()), *bounds, int(rows.sum()), int(positive[rows].sum())])
    return pd.DataFrame(records, columns=["p", "share", "low", "high", "rows", "positives"])


def calibration_scores(y: ArrayLike, p: ArrayLike) -> dict[str, float]:
    """What probabilities `p` (n,) are worth: mean p, slope, ece (bins of equal mass), brier, log loss.

    The slope of the targets on logit(p) is 1 where p is right, and below 1 where it is too sure of itself (Cox 1958).
    """
    positive, p = checked(y, p)
    x = logit(np.clip(np.asarray(p, np.float64), _EDGE, 1 - _EDGE))[:, None]
    slope = float(LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(x, positive).coef_[0, 0])
    return {
        "mean p": float(np.mean(p)),
        "slope": slope,
        "ece": expected_calibration_error(positive, p),
        "brier": brier(positive, p),
        "log loss": log_loss(positive, p),
    }


def _equal_promise(p: Floats, bins: int) -> NDArray[np.intp]:
    """Each row's bin, 0 to at most bins - 1, without gaps."""
    values, place = np.unique(p, return_inverse=True)
    promised = np.bincount(place, p)
    total = promised.sum()
    # By the middle of what a value adds: one that holds many rows goes where most of it belongs.
    middle = (np.cumsum(promised) - promised / 2) / total if total > 0 else np.zeros(len(values))
    of_value = np.minimum((middle * bins).astype(np.intp), bins - 1)
    return np.unique(of_value, return_inverse=True)[1][place]

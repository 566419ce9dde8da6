"""How often each class is among the rows of a training, as they are and as they are drawn."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from image_models.settings import Training


def class_weights(allowed: NDArray[np.bool_], balance: str) -> NDArray[np.float64] | None:
    """How often each row (n,) is drawn: by 1/rows of its class or the root of it; None where all are drawn once."""
    if balance == "none":
        return None
    # A row of unknown diagnosis stands among the rows that allow the same classes.
    _, kind, rows = np.unique(allowed, axis=0, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = (1 / rows if balance == "full" else 1 / np.sqrt(rows))[kind.ravel()]
    return weights


def training_prior(allowed: NDArray[np.bool_], training: Training) -> NDArray[np.float64]:
    """Share (c,) of each class among the rows as they are drawn, half a row added to each; weights of loss not in.

    Rows that may be of several classes are shared out as the known rows of these are: where pictures say nothing, that
    is what makes such rows likeliest. Sets of classes don't overlap: those of one target each.
    """
    weights = class_weights(allowed, training.balance)
    drawn = np.ones(len(allowed)) if weights is None else weights * (len(allowed) / weights.sum())
    known = allowed.sum(axis=1) == 1
    counts = drawn[known] @ allowed[known] + 0.5
    shared = counts.copy()
    for several in np.unique(allowed[~known], axis=0):
        rows = ~known & (allowed == several).all(axis=1)
        shared[several] += drawn[rows].sum() * counts[several] / counts[several].sum()
    shares: NDArray[np.float64] = shared / shared.sum()
    return shares


def prior_shift(allowed: NDArray[np.bool_], positive: NDArray[np.bool_], training: Training) -> NDArray[np.float64]:
    """By how much (c,) drawing and weighting raised each class's log probability; taking it away restores the prior."""
    plain = training_prior(allowed, Training())
    weighted = np.where(positive, np.log(training.positive_weight), 0.0)
    shift: NDArray[np.float64] = np.log(training_prior(allowed, training)) - np.log(plain) + weighted
    return shift

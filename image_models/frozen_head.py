"""Fits the head of a frozen backbone: L2-regularised logistic regression, stored as one linear layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2)  # inverse L2 strengths (scikit-learn's C), on standardised features


@dataclass(frozen=True)
class LinearHead:
    """A linear layer: logit = z · weight + bias, on raw features z (n, d)."""

    weight: NDArray[np.float32]  # (d,)
    bias: np.float32
    strength: float  # the C chosen on the inner split

    def logit(self, z: NDArray[np.floating]) -> NDArray[np.float32]:
        """Returns the logits of features (n, d): float32 (n,)."""
        logit: NDArray[np.float32] = z.astype(np.float32) @ self.weight + self.bias
        return logit


def fit_head(
    z: NDArray[np.floating],
    target: NDArray[np.int8],
    inner: NDArray[np.bool_],
    *,
    strengths: tuple[float, ...] = STRENGTHS,
) -> LinearHead:
    """Chooses the strength by log loss on the rows of ``inner`` (a grouped part of the training rows), refits on all.

    ``z`` (n, d), ``target`` (n,) and ``inner`` (n,) hold the fold's training rows only.
    """
    x = z.astype(np.float32)
    mean, std = x.mean(axis=0), x.std(axis=0)
    # A constant feature carries no information. Its std is not exactly zero: float32 sums of more than 8,192 equal
    # float16 values round, and dividing by that rounding error gave a constant feature the largest weight of all.
    varies = (z.max(axis=0) > z.min(axis=0)) & (std > 1e-6)
    scale = np.where(varies, std, 1.0)
    x = (x - mean) / scale

    def fit(rows: NDArray[np.bool_], strength: float) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=300).fit(x[rows], target[rows])

    losses = [
        log_loss(target[inner], fit(~inner, strength).predict_proba(x[inner])[:, 1], labels=[0, 1])
        for strength in (strengths if len(strengths) > 1 else ())
    ]
    strength = strengths[int(np.argmin(losses)) if losses else 0]
    model = fit(np.ones(len(x), bool), strength)
    weight = (model.coef_[0] / scale).astype(np.float32)
    return LinearHead(weight, np.float32(model.intercept_[0] - mean @ weight), strength)

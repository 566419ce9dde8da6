"""The loss of one row: cross-entropy of the classes that it may be of, smoothed, focused and weighted."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def log_probabilities(outputs: torch.Tensor) -> torch.Tensor:
    """Of each class (n, c), from the head's outputs (n, c); one output is the log odds of the second of two classes."""
    if outputs.shape[1] == 1:
        return torch.cat([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=1)
    return F.log_softmax(outputs, dim=1)


def risk_logit(outputs: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Log odds (n,) that a row is of one of the ``positive`` (c,) classes."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return torch.logsumexp(outputs[:, positive], dim=1) - torch.logsumexp(outputs[:, ~positive], dim=1)


def row_losses(
    outputs: torch.Tensor, allowed: torch.Tensor, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0
) -> torch.Tensor:
    """Loss (n,) of ``outputs`` (n, c or 1) where row i is of one of the classes ``allowed[i]`` (n, c) bool.

    A row whose diagnosis is unknown, but not its target, allows all classes of that target: minus the log of their
    summed probability (partial labels; Cour et al. 2011). Label smoothing (Szegedy et al. 2016) mixes in the mean over
    all classes, the focal factor (1 - p)^gamma is that of Lin et al. 2017.
    """
    log_p = log_probabilities(outputs)
    loss = -torch.logsumexp(log_p.masked_fill(~allowed, -torch.inf), dim=1)
    if focal_gamma:
        # 1 - p of a row that is already right can round below zero, where a power has no gradient.
        loss = loss * (1 - torch.exp(-loss)).clamp_min(1e-6) ** focal_gamma
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=1)
    return loss

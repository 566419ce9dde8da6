"""Losses of rows whose class may be known only in part, mixup and cutmix, class weights and the prior's correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from image_models.dataset import Batch
from image_models.settings import Training


def log_probabilities(outputs: torch.Tensor) -> torch.Tensor:
    """Returns log probabilities (n, c) of outputs (n, c); one output is the log odds of the second of two classes."""
    if outputs.shape[1] == 1:
        return torch.cat([F.logsigmoid(-outputs), F.logsigmoid(outputs)], dim=1)
    return F.log_softmax(outputs, dim=1)


def risk_logit(outputs: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Returns the log odds (n,) that a row belongs to one of the ``positive`` (c,) classes."""
    if outputs.shape[1] == 1:
        return outputs[:, 0]
    return torch.logsumexp(outputs[:, positive], dim=1) - torch.logsumexp(outputs[:, ~positive], dim=1)


def row_losses(
    outputs: torch.Tensor, allowed: torch.Tensor, *, label_smoothing: float = 0.0, focal_gamma: float = 0.0
) -> torch.Tensor:
    """Returns losses (n,) of ``outputs`` (n, c or 1) where row i has one of the classes ``allowed[i]`` (n, c) bool.

    A row with a known target but unknown diagnosis allows all classes of that target; its loss is minus the log of
    their summed probability (partial labels; Cour et al. 2011). Label smoothing (Szegedy et al. 2016) mixes in the mean
    over all classes; the focal factor is (1 - p)^gamma (Lin et al. 2017).
    """
    log_p = log_probabilities(outputs)
    loss = -torch.logsumexp(log_p.masked_fill(~allowed, -torch.inf), dim=1)
    if focal_gamma:
        # 1 - p of a row that is predicted correctly can round below zero, where a power has no gradient.
        loss = loss * (1 - torch.exp(-loss)).clamp_min(1e-6) ** focal_gamma
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=1)
    return loss


def soft_losses(
    outputs: torch.Tensor,
    p: torch.Tensor,
    positive: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    focal_gamma: float = 0.0,
) -> torch.Tensor:
    """Returns the cross-entropy (n,) between probabilities ``p`` (n,) of target 1 and those of ``outputs`` (n, c or 1).

    For p of 0 or 1 it is `row_losses` of a row that allows all classes of that target; ``positive`` (c,) marks those of
    target 1. The focal factor is |p - predicted p|^gamma (quality focal loss, Li et al. 2020).
    """
    logit = risk_logit(outputs, positive)
    loss = -(p * F.logsigmoid(logit) + (1 - p) * F.logsigmoid(-logit))
    if focal_gamma:
        loss = loss * (p - torch.sigmoid(logit)).abs().clamp_min(1e-6) ** focal_gamma
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_probabilities(outputs).mean(dim=1)
    return loss


@dataclass(frozen=True)
class MixedBatch:
    """A batch whose rows are mixed: ``share`` of the row itself, the rest from row ``partner``."""

    images: torch.Tensor  # (n, h, w, 3), float where pixels were averaged
    metadata: torch.Tensor  # (n, m)
    partner: torch.Tensor  # (n,)
    share: float

    def loss(self, own: torch.Tensor, of_partner: torch.Tensor) -> torch.Tensor:
        """Mixes the rows' losses (n,) against their own labels with those against their partners' labels."""
        return self.share * own + (1 - self.share) * of_partner


def mix_batch(batch: Batch, *, mixup: float, cutmix: float, rng: np.random.Generator) -> MixedBatch:
    """Applies mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019), at random if both alphas are above 0.

    Cutmix replaces the same box in every image of the batch; ``share`` is then the share of the area outside the box.
    """
    n, height, width = batch.images.shape[:3]
    partner = torch.from_numpy(rng.permutation(n)).to(batch.images.device)
    cut = cutmix > 0 and (mixup == 0 or rng.random() < 0.5)
    alpha = cutmix if cut else mixup
    share = float(rng.beta(alpha, alpha))
    other = batch.images[partner]
    if cut:
        side = np.sqrt(1 - share)
        middle = rng.random(2)
        top, left = (int(np.clip((m - side / 2) * s, 0, s)) for m, s in zip(middle, (height, width), strict=True))
        bottom, right = (int(np.clip((m + side / 2) * s, 0, s)) for m, s in zip(middle, (height, width), strict=True))
        images = batch.images.clone()
        images[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (height * width)
    else:
        images = torch.lerp(other.float(), batch.images.float(), share)
    metadata = torch.lerp(batch.metadata[partner], batch.metadata, share)
    return MixedBatch(images, metadata, partner, share)


def class_weights(allowed: NDArray[np.bool_], balance: str) -> NDArray[np.float64] | None:
    """Returns weights (n,) for drawing rows, 1/n or 1/√n of a class of n rows; None where each row is drawn once."""
    if balance == "none":
        return None
    # Rows of unknown diagnosis form a class with the rows that allow the same classes.
    _, kind, rows = np.unique(allowed, axis=0, return_inverse=True, return_counts=True)
    weights: NDArray[np.float64] = (1 / rows if balance == "full" else 1 / np.sqrt(rows))[kind.ravel()]
    return weights


def training_prior(allowed: NDArray[np.bool_], training: Training) -> NDArray[np.float64]:
    """Returns each class's share (c,) of the rows as drawn, with half a row added per class, without loss weights.

    Rows that allow several classes are divided among these in proportion to their known rows: the maximum-likelihood
    solution where images carry no information. Sets of classes must not overlap: each holds the classes of one target.
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
    """Returns how much (c,) sampling and loss weights raised each class's log probability, to be subtracted again."""
    plain = training_prior(allowed, Training())
    weighted = np.where(positive, np.log(training.positive_weight), 0.0)
    shift: NDArray[np.float64] = np.log(training_prior(allowed, training)) - np.log(plain) + weighted
    return shift

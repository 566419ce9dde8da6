"""Mixup and cutmix: a batch is mixed with itself in another order; the loss is mixed in the same proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from image_models.dataset import Batch
from image_models.settings import Training


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


@dataclass(frozen=True)
class MixedBatch:
    """A batch of which each row is ``share`` of itself and the rest of row ``partner``."""

    images: torch.Tensor  # (n, h, w, 3), float where pixels were averaged
    metadata: torch.Tensor  # (n, m)
    partner: torch.Tensor  # (n,)
    share: float

    def loss(self, own: torch.Tensor, of_partner: torch.Tensor) -> torch.Tensor:
        """The rows' losses (n,) against their own labels and against their partners'."""
        return self.share * own + (1 - self.share) * of_partner


def mix_batch(batch: Batch, *, mixup: float, cutmix: float, rng: np.random.Generator) -> MixedBatch:
    """Mixup (Zhang et al. 2018) or cutmix (Yun et al. 2019); the two are alphas, and 0 switches one off.

    With cutmix one box of the same place is cut for the whole batch, and ``share`` is what of the picture is left.
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

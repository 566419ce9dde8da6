"""Mixup and cutmix: a batch is mixed with itself in another order; the loss is mixed in the same proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from image_models.dataset import Batch


@dataclass(frozen=True)
class Mixed:
    """A batch of which each row is ``share`` of itself and the rest of row ``partner``."""

    images: torch.Tensor  # (n, h, w, 3), float where pixels were averaged
    metadata: torch.Tensor  # (n, m)
    partner: torch.Tensor  # (n,)
    share: float

    def loss(self, own: torch.Tensor, of_partner: torch.Tensor) -> torch.Tensor:
        """The rows' losses (n,) against their own labels and against their partners'."""
        return self.share * own + (1 - self.share) * of_partner


def mix_batch(batch: Batch, *, mixup: float, cutmix: float, rng: np.random.Generator) -> Mixed:
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
    return Mixed(images, metadata, partner, share)

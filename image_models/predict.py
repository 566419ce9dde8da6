"""The one inference path: `predict` serves validation, out-of-fold, test and new images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from dermstack.errors import ImageError
from image_models.dataset import Batch, CachedImages, eval_batches, load_batches
from image_models.device import explain_oom, retry_on_oom
from image_models.net import Net

VIEW_COUNTS = {"none": 1, "flips": 4, "d4": 8}


def passes_per_image(tta: str, *, frozen: bool, folds: int, seeds: int) -> int:
    """Returns how often an image goes through a model: once a view and, unless it is frozen, a net of ``folds``."""
    return VIEW_COUNTS[tta] * (1 if frozen else folds * seeds)


def views(images: torch.Tensor, kind: str) -> Iterator[torch.Tensor]:
    """Yields views of images (n, h, w, 3): themselves, four flips, or the square's eight symmetries (needs h = w)."""
    for transposed in (False, True) if kind == "d4" else (False,):
        turned = images.transpose(1, 2) if transposed else images
        for axes in ((), (1,), (2,), (1, 2)) if kind != "none" else ((),):
            # contiguous: the network's channels_last layout needs pixels in one piece, and copying bytes is cheap.
            yield turned.flip(axes).contiguous()


@dataclass(frozen=True)
class NetOutput:
    """A net's logits and features, one row per image."""

    logit: NDArray[np.float32]  # (n,)
    z: NDArray[np.float16]  # (n, d)

    def take(self, rows: NDArray[np.intp]) -> NetOutput:
        """Returns the output for these rows only."""
        return NetOutput(self.logit[rows], self.z[rows])


def mean_over_seeds(by_seed: Sequence[NetOutput]) -> NetOutput:
    """Combines the outputs of a fold's nets: the mean of their logits, and z of the first net."""
    logit = np.stack([made.logit for made in by_seed], axis=1).mean(axis=1, dtype=np.float32)
    return NetOutput(logit, by_seed[0].z)


@explain_oom
def predict(
    net: Net,
    images: CachedImages,
    *,
    batch_size: int,
    device: torch.device,
    tta: str = "none",
    workers: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> NetOutput:
    """Predicts logit and pooled features of each of ``images``, in order, as means over the views that ``tta`` names.

    Raises ImageError where a logit or a feature is not finite or does not fit float16.
    """
    assert images.augment is None, "predictions are made on images without augmentation"
    net = net.to(device).eval()
    logits, features, parts = [], [], 1
    with torch.inference_mode():
        for batch in load_batches(
            images,
            eval_batches(len(images), batch_size=batch_size),
            workers=workers,
            pin=device.type == "cuda",
        ):
            (logit, z), parts = retry_on_oom(
                partial(_mean_over_views, net, batch.to(device), tta), parts, max_parts=len(batch.rows)
            )
            logits.append(logit.cpu().numpy())
            features.append(z.half().cpu().numpy())
            progress(VIEW_COUNTS[tta] * len(batch.rows))
    if not logits:
        return NetOutput(np.empty(0, np.float32), np.empty((0, net.features), np.float16))
    predictions = NetOutput(np.concatenate(logits), np.concatenate(features))
    broken = ~(np.isfinite(predictions.logit) & np.isfinite(predictions.z).all(axis=1))
    if broken.any():
        raise ImageError(
            f"the network's output is not finite, or beyond float16, for {broken.sum()} of {len(images)} images: "
            "lower `lr`, or check the pretrained weights"
        )
    return predictions


def _mean_over_views(net: Net, batch: Batch, tta: str, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns logits (n,) and features (n, d), means over the views, computed in ``parts`` parts of the batch."""
    logits, features, parts = [], [], min(parts, len(batch.rows))
    for images, metadata in zip(batch.images.tensor_split(parts), batch.metadata.tensor_split(parts), strict=True):
        made = [net(view, metadata) for view in views(images, tta)]
        logits.append(torch.stack([logit for logit, _ in made]).mean(dim=0))
        features.append(torch.stack([z for _, z in made]).mean(dim=0))
    return torch.cat(logits), torch.cat(features)

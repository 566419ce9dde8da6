"""The one inference path: validation, out-of-fold, test and new images all come through `predict`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from image_models.dataset import CachedImages, eval_batches, load
from image_models.errors import ImageError
from image_models.net import Net
from image_models.views import views


@dataclass(frozen=True)
class Predictions:
    """Of one net, one row an image."""

    logit: NDArray[np.float32]  # (n,)
    z: NDArray[np.float16]  # (n, d)

    def take(self, rows: NDArray[np.intp]) -> Predictions:
        """Of these rows only."""
        return Predictions(self.logit[rows], self.z[rows])


def predict(
    net: Net,
    images: CachedImages,
    *,
    batch_size: int,
    device: torch.device,
    tta: str = "none",
    workers: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Predictions:
    """Logit and pooled features of each image, in the order of ``images``: the mean over the views that ``tta`` names.

    Raises ImageError where a logit or a feature isn't finite or doesn't fit float16.
    """
    assert images.augment is None, "predictions are made on images as they are"
    net = net.to(device).eval()
    logits, features = [], []
    with torch.inference_mode():
        for batch in load(
            images,
            eval_batches(len(images), batch_size=batch_size),
            workers=workers,
            pin=device.type == "cuda",
        ):
            here = batch.to(device)
            made = [net(view, here.metadata) for view in views(here.images, tta)]
            logits.append(torch.stack([logit for logit, _ in made]).mean(dim=0).cpu().numpy())
            features.append(torch.stack([z for _, z in made]).mean(dim=0).half().cpu().numpy())
            progress(len(made) * len(batch.rows))
    if not logits:
        return Predictions(np.empty(0, np.float32), np.empty((0, net.features), np.float16))
    predictions = Predictions(np.concatenate(logits), np.concatenate(features))
    broken = ~(np.isfinite(predictions.logit) & np.isfinite(predictions.z).all(axis=1))
    if broken.any():
        raise ImageError(
            f"the network's output is not finite, or beyond float16, for {broken.sum()} of {len(images)} images: "
            "lower `lr`, or look at the pretrained weights"
        )
    return predictions


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def visible_gpus() -> int:
    """How many GPUs this process may use."""
    return torch.cuda.device_count()

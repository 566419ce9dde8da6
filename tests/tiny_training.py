"""A net of a few thousand weights and two dozen pictures, for tests of the training loop."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd
import torch

from image_models.dataset import CachedImages
from image_models.net import Net, build_net
from image_models.settings import Training
from image_models.train import train_net

N = 24
CPU = torch.device("cpu")


def toy_pictures(rng: np.random.Generator, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Noise (n, 32, 32, 3) that is less red where the target (n,) is 1: every second picture."""
    pixels = rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    target = (np.arange(n) % 2).astype(np.int8)
    pixels[target == 1, :, :, 0] //= 2
    return pixels, target


def tiny_net(backbone: str = "test_resnet", **changes: Any) -> Net:
    """A new net for them; ``changes`` are of `build_net`."""
    settings: dict[str, Any] = {
        "pretrained": False, "frozen": False, "timm_args": {}, "size": 32, "mean": None, "std": None,
        "prior": (0.5, 0.5), "seed": 0,
    }  # fmt: skip
    return build_net(backbone, **(settings | changes))


def train(net: Net, images: CachedImages, **changes: Any) -> pd.DataFrame:
    """The history of two epochs in batches of eight; ``changes`` are of `Training` or of `train_net`."""
    names = {field.name for field in fields(Training)}
    training = {"epochs": 2, "batch_size": 8, "lr": 0.01} | {k: v for k, v in changes.items() if k in names}
    others: dict[str, Any] = {"seed": 0} | {k: v for k, v in changes.items() if k not in names}
    return train_net(net, images, device=CPU, training=Training(**training), **others)


def state(net: Net) -> dict[str, bytes]:
    """Every byte of the weights, by name."""
    return {key: tensor.numpy().tobytes() for key, tensor in net.state_dict().items()}


class MeanColour(torch.nn.Module):
    """A backbone without weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))

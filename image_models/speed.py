"""Measures how fast a network trains and predicts on this machine, with a few batches of random images."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

import numpy as np
import torch

from image_models.dataset import CachedImages
from image_models.device import explain_oom, pick_device, use_threads
from image_models.fit import augmentations
from image_models.net import build_net
from image_models.predict import predict
from image_models.settings import Compute, Network, Training
from image_models.train import train_net

BATCHES = 3  # of an epoch that is measured, after one that warms up


@dataclass(frozen=True)
class Speed:
    """What was measured of one network."""

    train: float  # images a second; 0 for a frozen network
    predict: float  # images a second, one view each
    features: int  # width of its embedding
    weights_bytes: int
    memory_bytes: int  # most memory that this process, or its GPU, has used so far


@explain_oom
def measure_speed(
    network: Network,
    training: Training,
    *,
    size: int,
    classes: int,
    metadata: int,
    frozen: bool,
    compute: Compute,
) -> Speed:
    """Builds a network with random weights and measures it; downloads and writes nothing.

    ``classes`` is the number of classes that it learns, ``metadata`` that of encoded columns beside the image. Raises
    ImageError for a backbone, timm_args or size that cannot be used.
    """
    use_threads(compute.threads)
    device, rng = pick_device(compute.device), np.random.default_rng(0)
    net = build_net(
        network.backbone, pretrained=False, frozen=frozen, timm_args=network.timm_args, size=size, mean=network.mean,
        std=network.std, prior=[1 / classes] * classes, seed=0, positive=[False] * (classes - 1) + [True],
        dropout=training.dropout, dropout_samples=training.dropout_samples, metadata=metadata,
    )  # fmt: skip
    n = training.batch_size * BATCHES
    pictures = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    allowed = np.eye(classes, dtype=bool)[np.arange(n) % classes]
    columns = rng.normal(size=(n, metadata)).astype(np.float32) if metadata else None

    def images(augmented: bool) -> CachedImages:
        row_augment = augmentations(training, 0)[0] if augmented else None
        return CachedImages(pictures, np.arange(n), allowed, metadata=columns, augment=row_augment)

    trained = 0.0
    if not frozen:
        short = replace(training, epochs=2, lr=1e-6, select="last", compile=False)
        history = train_net(
            net, images(True), training=short, seed=0, device=device, batch_augment=augmentations(training, 0)[1]
        )
        trained = float(history["images_per_s"].iloc[-1])
    for _ in range(2):  # the first one warms up
        started = time.perf_counter()
        predict(net, images(False), batch_size=training.batch_size, device=device)
        seconds = time.perf_counter() - started
    weights = sum(tensor.numel() * tensor.element_size() for tensor in net.state_dict().values())
    return Speed(trained, n / seconds, net.features, weights, _peak_memory(device))


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows has none
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

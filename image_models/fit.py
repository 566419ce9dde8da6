"""One fold of one image model: train on its rows, predict every set asked for, leave the weights in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from image_models.cache import ImageCache
from image_models.dataset import CachedImages
from image_models.head import fit_head
from image_models.net import build_net, write_weights
from image_models.predict import Predictions, pick_device, predict
from image_models.train import train_net
from image_models.transforms import Augment


@dataclass(frozen=True)
class FoldFit:
    """What a fold model says of each set of rows, and how it was trained."""

    predictions: dict[str, Predictions]  # by set: logits averaged over the seeds, z of the first seed
    seed_logits: dict[str, NDArray[np.float32]]  # by set: (n, seeds)
    history: pd.DataFrame


def fit_fold(
    cache: ImageCache,
    train: NDArray[np.intp],
    target: NDArray[np.int8],
    sets: Mapping[str, NDArray[np.intp]],
    *,
    backbone: str,
    pretrained: bool | Path,
    timm_args: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: str,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seeds: Sequence[int],
    weights: Path,
    device: str,
    threads: int,
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> FoldFit:
    """Fine-tune one net a seed on the cache rows ``train`` and predict the cache rows of each of ``sets``.

    ``weights`` is the folder for ``weights.safetensors`` (``weights_<seed>.safetensors`` from the second seed on).
    Raises ImageError for a backbone, weights or settings that can't be used, and for collapsed training.
    """
    torch.set_num_threads(threads)
    where = pick_device(device)
    by_seed: list[dict[str, Predictions]] = []
    histories = []
    for number, seed in enumerate(seeds):
        net = build_net(
            backbone, pretrained=pretrained, frozen=False, timm_args=timm_args, size=cache.size, mean=mean,
            std=std, prevalence=float(target.mean()), seed=seed,
        )  # fmt: skip
        images = CachedImages(cache, train, target, augment=Augment(augment, seed=seed))
        history = train_net(
            net, images, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, seed=seed,
            device=where, workers=workers, progress=progress,
        )  # fmt: skip
        histories.append(history.assign(seed=seed))
        by_seed.append({
            name: predict(
                net, CachedImages(cache, rows), batch_size=batch_size, device=where, workers=workers,
                progress=progress,
            )
            for name, rows in sets.items()
        })  # fmt: skip
        write_weights(net, weights / ("weights.safetensors" if number == 0 else f"weights_{seed}.safetensors"))
    seed_logits = {name: np.stack([made[name].logit for made in by_seed], axis=1) for name in sets}
    predictions = {
        name: Predictions(seed_logits[name].mean(axis=1, dtype=np.float32), by_seed[0][name].z) for name in sets
    }
    return FoldFit(predictions, seed_logits, pd.concat(histories, ignore_index=True))


def embed(
    cache: ImageCache,
    rows: NDArray[np.intp],
    *,
    backbone: str,
    pretrained: bool | Path,
    timm_args: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    batch_size: int,
    seed: int,
    weights: Path,
    device: str,
    threads: int,
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float16]:
    """Features z (n, d) of an untrained backbone for the cache rows ``rows``; its weights go to ``weights``."""
    torch.set_num_threads(threads)
    net = build_net(
        backbone, pretrained=pretrained, frozen=True, timm_args=timm_args, size=cache.size, mean=mean, std=std,
        prevalence=0.5, seed=seed,
    )  # fmt: skip
    write_weights(net.backbone, weights / "backbone.safetensors")
    images = CachedImages(cache, rows)
    return predict(net, images, batch_size=batch_size, device=pick_device(device), workers=workers, progress=progress).z


def fit_frozen_fold(
    z: NDArray[np.float16],
    target: NDArray[np.int8],
    inner: NDArray[np.bool_],
    sets: Mapping[str, NDArray[np.float16]],
    *,
    weights: Path,
    threads: int,
    progress: Callable[[int], object] = lambda done: None,
) -> FoldFit:
    """The frozen counterpart of `fit_fold`: a logistic head on the training rows' features, applied to each set's."""
    with threadpool_limits(threads):
        head = fit_head(z, target, inner)
    progress(len(z))
    save_file({"head.weight": head.weight[None], "head.bias": np.array([head.bias])}, weights / "weights.safetensors")
    predictions = {name: Predictions(head.logit(features), features) for name, features in sets.items()}
    history = pd.DataFrame({"strength": [head.strength]})
    return FoldFit(predictions, {name: p.logit[:, None] for name, p in predictions.items()}, history)

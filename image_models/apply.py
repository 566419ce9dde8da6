"""A finished run on pictures that come later: each fold's nets as they predicted the test rows of their training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from image_models.cache import ImageCache
from image_models.dataset import CachedImages
from image_models.device import pick_device, use_threads
from image_models.errors import ImageError
from image_models.frozen_head import LinearHead
from image_models.loss import risk_logit
from image_models.predict import Predictions, predict
from image_models.saved import NetStore, read_fold_net


def apply_trained(
    fold: Path,
    settings: Mapping[str, Any],
    cache: ImageCache,
    rows: NDArray[np.intp],
    metadata: NDArray[np.float32],
    *,
    positive: Sequence[bool],
    store: NetStore,
    device: str,
    threads: int,
    workers: int,
    progress: Callable[[int], object],
) -> Predictions:
    """The nets in the folder ``fold`` on rows of a cache: logits averaged over the seeds, z of the first seed.

    ``settings`` are those of the run's run.json, ``metadata`` (n, m) is as its nets see it, and ``store`` reads these.
    Raises ImageError.
    """
    use_threads(threads)
    images, where = CachedImages(cache, rows, metadata=metadata), pick_device(device)
    nets = store.read(fold, settings, positive=positive, metadata=metadata.shape[1], device=where.type)
    by_seed = [
        predict(
            net, images, batch_size=settings["batch_size"], device=where, tta=settings["tta"], workers=workers,
            progress=progress,
        )
        for net in nets
    ]  # fmt: skip
    logit = np.stack([one.logit for one in by_seed], axis=1).mean(axis=1, dtype=np.float32)
    return Predictions(logit, by_seed[0].z)


def apply_frozen(
    folds: Sequence[Path],
    settings: Mapping[str, Any],
    cache: ImageCache,
    rows: NDArray[np.intp],
    *,
    store: NetStore,
    device: str,
    threads: int,
    workers: int,
    progress: Callable[[int], object],
) -> Iterator[Predictions]:
    """A frozen backbone on rows of a cache, once, and then the head in each of the folders ``folds`` on its z."""
    use_threads(threads)
    where, weights = pick_device(device), [fold / "weights.safetensors" for fold in folds]
    (net,) = store.read(folds[0], settings, positive=(False, True), metadata=0, device=where.type)
    z = predict(
        net, CachedImages(cache, rows), batch_size=settings["batch_size"], device=where, tta=settings["tta"],
        workers=workers, progress=progress,
    ).z  # fmt: skip
    for path in weights:
        try:
            tensors = load_file(path)
            head = LinearHead(tensors["head.weight"][0], tensors["head.bias"][0], np.nan)
        except (SafetensorError, OSError, LookupError, ValueError) as error:
            raise ImageError(f"{path} holds no head that can be read ({error}): make the run again") from error
        yield Predictions(head.logit(z), z)


def head_logits(
    weights: Path,
    settings: Mapping[str, Any],
    z: NDArray[np.float16],
    metadata: Sequence[NDArray[np.float32]],
    *,
    positive: Sequence[bool],
) -> list[NDArray[np.float32]]:
    """Logits (n,) of stored embeddings (n, d) beside each of ``metadata`` (n, m), through the head of a net alone."""
    net = read_fold_net(weights, settings, positive=positive, metadata=metadata[0].shape[1])
    assert net.fusion is not None, "it sees metadata"
    images, made = torch.from_numpy(z.astype(np.float32)), []
    with torch.inference_mode():
        for known in metadata:
            joined = torch.cat([images, net.fusion(torch.from_numpy(known))], dim=1)
            made.append(risk_logit(net.head(joined), net.positive).numpy())
    return made

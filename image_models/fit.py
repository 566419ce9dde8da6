"""One fold of one image model: train on its rows, predict every set asked for, leave the weights in a folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from image_models.cache import ImageCache
from image_models.dataset import CachedImages, allowed_classes
from image_models.device import names_out_of_memory, pick_device, pick_precision, use_threads
from image_models.errors import ImageError
from image_models.files import as_any_file, whole
from image_models.frozen_head import fit_head
from image_models.losses import prior_shift, training_prior
from image_models.net import build_net, read_weights, write_weights
from image_models.predict import NetOutput, predict
from image_models.settings import Training
from image_models.train import train_net
from image_models.transforms import Augment

if TYPE_CHECKING:
    from image_models.device_augment import DeviceAugment

SAME = 1e-4  # logits that differ by less are rounding, or a net that weight decay has emptied


@dataclass(frozen=True)
class TrainedNet:
    """A net of one seed that was trained before, with the settings and rows of the fit that takes it over."""

    weights: Path
    history: pd.DataFrame


@dataclass(frozen=True)
class FoldFit:
    """What a fold model says of each set of rows, and how it was trained."""

    predictions: dict[str, NetOutput]  # by set: logits averaged over the seeds, z of the first seed
    seed_logits: dict[str, NDArray[np.float32]]  # by set: (n, seeds)
    history: pd.DataFrame
    seconds_before: float = 0.0  # of its epochs that were not run now: in a process that was killed, or for another run


@names_out_of_memory
def fit_fold(
    cache: ImageCache,
    train: NDArray[np.intp],
    target: NDArray[np.int8] | NDArray[np.bool_],
    sets: Mapping[str, NDArray[np.intp]],
    *,
    backbone: str,
    pretrained: bool | Path,
    timm_args: Mapping[str, Any],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Sequence[str],
    training: Training,
    tta: str,
    seeds: Sequence[int],
    weights: Path,
    device: str,
    threads: int,
    workers: int,
    positive: Sequence[bool] = (False, True),
    metadata: Mapping[str, NDArray[np.float32]] | None = None,
    choose: NDArray[np.bool_] | None = None,
    identity: str = "",
    trained: Mapping[int, TrainedNet] = {},
    report: Callable[[int, float], object] = lambda epoch, auc: None,
    progress: Callable[[int], object] = lambda done: None,
    say: Callable[[str], object] = lambda line: None,
) -> FoldFit:
    """Fine-tune one net a seed on the cache rows ``train`` and predict the cache rows of each of ``sets``.

    ``target`` is 0/1 (n,) or the classes that each row may be of, bool (n, c), of which ``positive`` (c,) make up p.
    ``metadata`` holds the encoded columns of ``train`` and of each set, by name. ``choose`` (n,) marks the training
    rows that choose the epoch under `select: best` and are not trained on; ``report`` is told of each epoch
    and its AUC on them. ``weights`` is the folder for
    ``weights.safetensors`` (``weights_<seed>.safetensors`` from the second seed on) and, until the fold is complete,
    for the state after each epoch, which a fit of the same ``identity`` takes up again. Seeds in ``trained`` only
    predict.

    Raises ImageError for a backbone, weights or settings that can't be used, and for collapsed training.
    """
    use_threads(threads)
    where = pick_device(device)
    metadata = metadata or {}
    allowed = allowed_classes(target)
    learn = np.ones(len(train), bool) if choose is None else ~choose

    def images(name: str, rows: NDArray[np.intp]) -> CachedImages:
        return CachedImages(cache, rows, metadata=metadata.get(name))

    def of_train(part: NDArray[np.bool_], augmented: Augment | None) -> CachedImages:
        columns = metadata["train"][part] if metadata else None
        return CachedImages(cache, train[part], allowed[part], metadata=columns, augment=augmented)

    by_seed: list[dict[str, NetOutput]] = []
    histories, seconds_before = [], 0.0
    shares = training_prior(allowed[learn], Training())
    start = shares * np.exp(prior_shift(allowed[learn], np.array(positive), training))
    for number, seed in enumerate(seeds):
        net = build_net(
            backbone, pretrained=pretrained, frozen=False, timm_args=timm_args, size=cache.size, mean=mean, std=std,
            prior=start.tolist(), seed=seed, positive=positive, dropout=training.dropout,
            dropout_samples=training.dropout_samples, metadata=metadata["train"].shape[1] if metadata else 0,
        )  # fmt: skip
        started = time.perf_counter()
        if before := trained.get(seed):
            read_weights(net, before.weights)
            net.precision = pick_precision(training.precision, where)
            progress(training.epochs * int(learn.sum()))
            history = before.history
        else:
            of_row, of_batch = _augmentations(augment, seed, on_device=training.augment_on == "device")
            history = train_net(
                net, of_train(learn, of_row), training=training, seed=seed, device=where, augment=of_batch,
                choose=None if choose is None else of_train(choose, None), state=weights / f"state_{seed}.pt",
                identity=f"{identity} {seed}", workers=workers, report=report, progress=progress, say=say,
            )  # fmt: skip
        epochs_took = float((learn.sum() / history["images_per_s"]).sum())
        seconds_before += max(0.0, epochs_took - (time.perf_counter() - started))
        histories.append(history.assign(seed=seed))
        by_seed.append({
            name: predict(
                net, images(name, rows), batch_size=training.batch_size, device=where, tta=tta, workers=workers,
                progress=progress,
            )
            for name, rows in sets.items()
        })  # fmt: skip
        _refuse_collapsed(by_seed[-1], remedy=f"lower `lr`, now {training.lr}, or look at the weights and the pictures")
        write_weights(net, weights / ("weights.safetensors" if number == 0 else f"weights_{seed}.safetensors"))
    seed_logits = {name: np.stack([made[name].logit for made in by_seed], axis=1) for name in sets}
    predictions = {
        name: NetOutput(seed_logits[name].mean(axis=1, dtype=np.float32), by_seed[0][name].z) for name in sets
    }
    return FoldFit(predictions, seed_logits, pd.concat(histories, ignore_index=True), seconds_before)


def _refuse_collapsed(made: Mapping[str, NetOutput], *, remedy: str) -> None:
    """Held-out rows are many and differ; a few test pictures may well be the same. A study predicts none of them."""
    logit = made["oof"].logit if "oof" in made else np.empty(0, np.float32)
    if len(logit) > 1 and np.ptp(logit) < SAME:
        raise ImageError(f"the network collapsed: it says the same of all {len(logit)} held-out images: {remedy}")


def _augmentations(
    recipes: Sequence[str], seed: int, *, on_device: bool
) -> tuple[Augment | None, DeviceAugment | None]:
    """Of each row as it is loaded, or of each batch where it is trained on."""
    if not on_device:
        return Augment(*recipes, seed=seed), None
    from image_models.device_augment import DeviceAugment  # kornia takes its time to import

    return None, DeviceAugment(*recipes, seed=seed)


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
    tta: str,
    seed: int,
    weights: Path,
    device: str,
    threads: int,
    workers: int,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.float16]:
    """Features z (n, d) of an untrained backbone for the cache rows ``rows``; its weights go to ``weights``."""
    use_threads(threads)
    net = build_net(
        backbone, pretrained=pretrained, frozen=True, timm_args=timm_args, size=cache.size, mean=mean, std=std,
        prior=(0.5, 0.5), seed=seed,
    )  # fmt: skip
    write_weights(net.backbone, weights / "backbone.safetensors")
    images = CachedImages(cache, rows)
    return predict(
        net, images, batch_size=batch_size, device=pick_device(device), tta=tta, workers=workers, progress=progress
    ).z


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
        logits = {name: head.logit(features) for name, features in sets.items()}
    progress(len(z))
    with whole(weights / "weights.safetensors") as partial:
        save_file({"head.weight": head.weight[None], "head.bias": np.array([head.bias])}, partial)
        as_any_file(partial)
    predictions = {name: NetOutput(logits[name], features) for name, features in sets.items()}
    _refuse_collapsed(predictions, remedy="look at the weights and the pictures")
    history = pd.DataFrame({"strength": [head.strength]})
    return FoldFit(predictions, {name: p.logit[:, None] for name, p in predictions.items()}, history)

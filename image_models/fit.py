"""Fits one fold of an image model: trains a net and predicts with a fold's nets, or fits a head on frozen features."""

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

from dermstack.errors import ImageError
from dermstack.files import apply_umask, atomic_write
from dermstack.threads import limit_threads
from image_models.cache import ImageCache
from image_models.dataset import CachedImages, ColumnDropout, allowed_classes
from image_models.device import explain_oom, pick_device, use_threads
from image_models.frozen_head import fit_head
from image_models.losses import prior_shift, training_prior
from image_models.net import build_net, write_weights
from image_models.net_files import BACKBONE, HISTORY, STATE, WEIGHTS
from image_models.predict import NetOutput, mean_over_seeds, predict
from image_models.saved import predict_by_seed, read_fold_nets
from image_models.settings import SILENT, Callbacks, Compute, Network, Training
from image_models.train import train_net
from image_models.transforms import Augment

if TYPE_CHECKING:
    from image_models.device_augment import DeviceAugment

MIN_LOGIT_RANGE = 1e-4  # a smaller range is rounding, or weight decay has shrunk all weights to zero


@dataclass(frozen=True)
class TrainingRows:
    """Training rows of one fold's nets."""

    rows: NDArray[np.intp]  # (n,) of the cache
    target: NDArray[np.int8] | NDArray[np.bool_]  # 0/1 (n,), or (n, c): the classes that each row may be of
    positive: Sequence[bool] = (False, True)  # (c,) the classes whose probabilities add up to p
    metadata: NDArray[np.float32] | None = None  # (n, m) encoded columns, the nets' input beside the image
    column_dropout: ColumnDropout | None = None  # of the metadata
    inner_val: NDArray[np.bool_] | None = None  # (n,) rows on which `select: best` chooses the epoch; not trained on
    soft: NDArray[np.float32] | None = None  # (n,) probability of target 1 in place of the target; NaN: none

    @property
    def learned(self) -> int:
        """Number of rows that the nets are trained on."""
        return len(self.rows) - (0 if self.inner_val is None else int(self.inner_val.sum()))


@dataclass(frozen=True)
class FoldPredictions:
    """Predictions of a fold's model for each set of rows."""

    predictions: dict[str, NetOutput]  # by set: logits averaged over the seeds, z of the first seed
    seed_logits: dict[str, NDArray[np.float32]]  # by set: (n, seeds)


@explain_oom
def train_fold_net(
    cache: ImageCache,
    data: TrainingRows,
    network: Network,
    training: Training,
    *,
    seed: int,
    folder: Path,
    compute: Compute,
    identity: str = "",
    callbacks: Callbacks = SILENT,
) -> float:
    """Fine-tunes one net on the rows of ``data`` and writes its weights and history to ``folder``.

    Until training ends, ``folder`` also holds the state after each epoch, from which a later call with the same
    ``identity`` resumes. Returns the seconds of all epochs, including those before an interruption.
    Raises ImageError for a backbone, weights or settings that cannot be used, and for training that diverged.
    """
    started = time.perf_counter()
    use_threads(compute.threads)
    allowed, metadata = allowed_classes(data.target), data.metadata
    train_mask = np.ones(len(data.rows), bool) if data.inner_val is None else ~data.inner_val

    def images(part: NDArray[np.bool_], augmented: Augment | None) -> CachedImages:
        columns = None if metadata is None else metadata[part]
        soft = None if data.soft is None else data.soft[part]
        return CachedImages(cache, data.rows[part], allowed[part], metadata=columns, soft=soft, augment=augmented)

    shares = training_prior(allowed[train_mask], Training())
    prior = shares * np.exp(prior_shift(allowed[train_mask], np.array(data.positive), training))
    net = build_net(
        network.backbone, pretrained=network.pretrained, frozen=False, timm_args=network.timm_args, size=cache.size,
        mean=network.mean, std=network.std, prior=prior.tolist(), seed=seed, positive=data.positive,
        dropout=training.dropout, dropout_samples=training.dropout_samples,
        metadata=0 if metadata is None else metadata.shape[1],
    )  # fmt: skip
    row_augment, batch_augment = augmentations(training, seed)
    history = train_net(
        net, images(train_mask, row_augment), training=training, seed=seed, device=pick_device(compute.device),
        batch_augment=batch_augment, column_dropout=data.column_dropout,
        inner_val=None if data.inner_val is None else images(data.inner_val, None),
        state=folder / STATE, identity=identity, workers=compute.workers, report=callbacks.report,
        progress=callbacks.progress, say=callbacks.say,
    )  # fmt: skip
    write_weights(net, folder / WEIGHTS)
    _write_history(folder, history)
    epochs = float((data.learned / history["images_per_s"]).sum())
    return max(epochs, time.perf_counter() - started)


@explain_oom
def predict_fold(
    fold: Path,
    settings: Mapping[str, Any],
    cache: ImageCache,
    sets: Mapping[str, NDArray[np.intp]],
    metadata: Mapping[str, NDArray[np.float32]],
    *,
    positive: Sequence[bool],
    compute: Compute,
    progress: Callable[[int], object] = lambda images: None,
) -> FoldPredictions:
    """Predicts the cache rows of each of ``sets`` with the trained nets in the folder ``fold``.

    ``settings`` are those in the run's run.json; ``metadata`` has the encoded columns (n, m) of each set, and is empty
    where the nets use none. Raises ImageError where a net gives all held-out rows the same logit.
    """
    use_threads(compute.threads)
    width = next(iter(metadata.values())).shape[1] if metadata else 0
    nets = read_fold_nets(fold, settings, positive=positive, metadata=width, device=compute.device)
    by_set = {
        name: predict_by_seed(
            nets, settings, cache, rows, metadata.get(name, np.empty((len(rows), 0), np.float32)),
            compute=compute, progress=progress,
        )
        for name, rows in sets.items()
    }  # fmt: skip
    for by_seed in by_set.get("oof", []):
        _refuse_collapsed(by_seed, remedy=f"lower `lr`, now {settings['lr']}, or check the weights and the images")
    return FoldPredictions(
        {name: mean_over_seeds(by_seed) for name, by_seed in by_set.items()},
        {name: np.stack([made.logit for made in by_seed], axis=1) for name, by_seed in by_set.items()},
    )


def _refuse_collapsed(held_out: NetOutput, *, remedy: str) -> None:
    """Raises ImageError where all held-out rows get the same logit. Not for test rows: few may be identical."""
    if len(held_out.logit) > 1 and np.ptp(held_out.logit) < MIN_LOGIT_RANGE:
        raise ImageError(
            f"the network collapsed: it predicts the same logit for all {len(held_out.logit)} held-out images: {remedy}"
        )


def _write_history(folder: Path, history: pd.DataFrame) -> None:
    with atomic_write(folder / HISTORY) as partial:
        history.to_csv(partial, index=False)
        apply_umask(partial)


def augmentations(training: Training, seed: int) -> tuple[Augment | None, DeviceAugment | None]:
    """Returns an augmentation of each row as it is loaded, or of each batch on the device; the other is None."""
    if training.augment_on == "cpu":
        return Augment(*training.augment, seed=seed), None
    from image_models.device_augment import DeviceAugment  # kornia is slow to import

    return None, DeviceAugment(*training.augment, seed=seed)


def embed(
    cache: ImageCache,
    rows: NDArray[np.intp],
    network: Network,
    *,
    batch_size: int,
    tta: str,
    seed: int,
    folder: Path,
    compute: Compute,
    progress: Callable[[int], object] = lambda images: None,
) -> NDArray[np.float16]:
    """Computes features z (n, d) of the cache rows ``rows`` with a frozen backbone; its weights go to ``folder``."""
    use_threads(compute.threads)
    net = build_net(
        network.backbone, pretrained=network.pretrained, frozen=True, timm_args=network.timm_args, size=cache.size,
        mean=network.mean, std=network.std, prior=(0.5, 0.5), seed=seed,
    )  # fmt: skip
    write_weights(net.backbone, folder / BACKBONE)
    return predict(
        net, CachedImages(cache, rows), batch_size=batch_size, device=pick_device(compute.device), tta=tta,
        workers=compute.workers, progress=progress,
    ).z  # fmt: skip


def fit_frozen_fold(
    z: NDArray[np.float16],
    target: NDArray[np.int8],
    inner: NDArray[np.bool_],
    sets: Mapping[str, NDArray[np.float16]],
    *,
    folder: Path,
    threads: int,
    progress: Callable[[int], object] = lambda images: None,
) -> FoldPredictions:
    """Fits a logistic head on the training rows' features z (n, d) of a frozen backbone and predicts each set.

    ``inner`` (n,) marks the rows on which the regularisation strength is chosen. The head's weights and its
    strength are written to ``folder``. Raises ImageError where all held-out rows get the same logit.
    """
    with limit_threads(threads):
        head = fit_head(z, target, inner)
        logits = {name: head.logit(features) for name, features in sets.items()}
    progress(len(z))
    with atomic_write(folder / WEIGHTS) as partial:
        save_file({"head.weight": head.weight[None], "head.bias": np.array([head.bias])}, partial)
        apply_umask(partial)
    predictions = {name: NetOutput(logits[name], features) for name, features in sets.items()}
    _refuse_collapsed(predictions["oof"], remedy="check the weights and the images")
    _write_history(folder, pd.DataFrame({"strength": [head.strength]}))
    return FoldPredictions(predictions, {name: made.logit[:, None] for name, made in predictions.items()})

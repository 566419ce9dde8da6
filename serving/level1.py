"""What a bundle's nets say of pictures: each run's logit and embedding by each fold net, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from image_models.cache import ImageCache
from image_models.dataset import CachedImages
from image_models.head import LinearHead
from image_models.predict import Predictions, pick_device, predict
from image_models.stored import read_fold_net, read_fold_nets
from image_models.views import VIEWS
from serving.bundle import Bundle, ImageRun
from serving.fitted import Level1, alignments
from tabular.dense import DenseMetadata

ENCODER = "metadata.json"  # beside the weights of a net that sees metadata


def looks_at(bundle: Bundle) -> int:
    """How many times each picture goes through a network."""
    return sum(
        VIEWS[run.settings["tta"]] * (1 if run.kind == "frozen" else bundle.folds * len(run.settings["seeds"]))
        for run in bundle.image_runs
    )


def read_level1(
    bundle: Bundle,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    device: str = "auto",
    workers: int = 0,
    see: Callable[[ImageRun, int, Predictions], object] = lambda run, fold, made: None,
    progress: Callable[[int], object] = lambda done: None,
) -> Level1:
    """Every run and net on the pictures of ``frame``'s rows (id, age, sex, site), which ``caches`` hold by size.

    ``see`` is shown each net's raw predictions (a frozen backbone's once, as fold 0), ``progress`` is told how many
    images have gone through a network. Raises ImageError.
    """
    torch.set_num_threads(int(bundle.manifest["threads"]))
    aligned, kinds = alignments(bundle), bundle.manifest["embeddings"]
    where = pick_device(device)
    logits = np.empty((bundle.folds, len(frame), len(bundle.image_runs)), np.float32)
    z: dict[str, NDArray[np.floating]] = {}
    for place, run in enumerate(bundle.image_runs):
        cache = caches[int(run.settings["size"])]
        images = cache.rows_for(frame["id"])
        make = _frozen if run.kind == "frozen" else _trained
        for fold, made in enumerate(make(bundle, run, cache, images, frame, where, workers, progress)):
            logits[fold, :, place] = made.logit
            if fold == 0 or run.kind != "frozen":
                see(run, fold, made)
            if kinds.get(run.name) == "frozen":
                z[run.name] = made.z
            elif run.name in aligned:
                components = aligned[run.name].transform(made.z, fold)
                z.setdefault(run.name, np.empty((bundle.folds, *components.shape), np.float32))[fold] = components
    return Level1(logits, {name: z[name] for name in kinds})


def fold_folder(bundle: Bundle, run: ImageRun, fold: int) -> Path:
    """Where the weights of a fold net lie."""
    return bundle.folder / "image_models" / run.name / f"fold_{fold}"


def encoded_metadata(bundle: Bundle, run: ImageRun, fold: int, frame: pd.DataFrame) -> NDArray[np.float32]:
    """(n, m) as the fold's net sees age, sex and site; m = 0 for a net that sees none."""
    path = fold_folder(bundle, run, fold) / ENCODER
    if not path.is_file():
        return np.empty((len(frame), 0), np.float32)
    return DenseMetadata.from_json(path.read_text(encoding="utf-8")).transform(frame)


def _trained(
    bundle: Bundle,
    run: ImageRun,
    cache: ImageCache,
    rows: NDArray[np.intp],
    frame: pd.DataFrame,
    device: torch.device,
    workers: int,
    progress: Callable[[int], object],
) -> Iterator[Predictions]:
    """Of each fold: logits averaged over the seeds' nets, z of the first seed."""
    for fold in range(bundle.folds):
        metadata = encoded_metadata(bundle, run, fold, frame)
        images = CachedImages(cache, rows, metadata=metadata)
        by_seed = [
            predict(
                net, images, batch_size=run.settings["batch_size"], device=device, tta=run.settings["tta"],
                workers=workers, progress=progress,
            )
            for net in read_fold_nets(
                fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1],
                device=device.type,
            )
        ]  # fmt: skip
        logit = np.stack([one.logit for one in by_seed], axis=1).mean(axis=1, dtype=np.float32)
        yield Predictions(logit, by_seed[0].z)


def _frozen(
    bundle: Bundle,
    run: ImageRun,
    cache: ImageCache,
    rows: NDArray[np.intp],
    frame: pd.DataFrame,
    device: torch.device,
    workers: int,
    progress: Callable[[int], object],
) -> Iterator[Predictions]:
    """One z for all folds, under the head of each."""
    weights = [fold_folder(bundle, run, fold) / "weights.safetensors" for fold in range(bundle.folds)]
    net = read_fold_net(weights[0], run.settings, device=device.type)
    z = predict(
        net, CachedImages(cache, rows), batch_size=run.settings["batch_size"], device=device, tta=run.settings["tta"],
        workers=workers, progress=progress,
    ).z  # fmt: skip
    for path in weights:
        tensors = load_file(path)
        head = LinearHead(tensors["head.weight"][0], tensors["head.bias"][0], np.nan)
        yield Predictions(head.logit(z), z)

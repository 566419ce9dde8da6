"""What a bundle's nets say of pictures: each run's logit and embedding by each fold net, as in training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.ensemble import Level1, alignments
from image_models.apply import apply_frozen, apply_trained
from image_models.cache import ImageCache
from image_models.predict import Predictions
from image_models.saved import NetStore
from image_models.views import VIEWS
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
    store: NetStore | None = None,
    device: str = "auto",
    workers: int = 0,
    see: Callable[[ImageRun, int, Predictions], object] = lambda run, fold, made: None,
    progress: Callable[[int], object] = lambda done: None,
) -> Level1:
    """Every run and net on the pictures of ``frame``'s rows (id, age, sex, site), which ``caches`` hold by size.

    ``see`` is shown each net's raw predictions (a frozen backbone's once, as fold 0), ``progress`` is told how many
    images have gone through a network. ``store`` may keep the nets for the next call. Raises ImageError.
    """
    how = {
        "store": store or NetStore(room=0), "device": device, "threads": int(bundle.manifest["threads"]),
        "workers": workers, "progress": progress,
    }  # fmt: skip
    aligned, kinds = alignments(bundle), bundle.manifest["embeddings"]
    logits = np.empty((bundle.folds, len(frame), len(bundle.image_runs)), np.float32)
    z: dict[str, NDArray[np.floating]] = {}
    for place, run in enumerate(bundle.image_runs):
        cache = caches[int(run.settings["size"])]
        for fold, made in enumerate(_by_fold(bundle, run, cache, frame, **how)):
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


def _by_fold(
    bundle: Bundle, run: ImageRun, cache: ImageCache, frame: pd.DataFrame, **how: Any
) -> Iterator[Predictions]:
    rows = cache.rows_for(frame["id"])
    folds = [fold_folder(bundle, run, fold) for fold in range(bundle.folds)]
    if run.kind == "frozen":
        yield from apply_frozen(folds, run.settings, cache, rows, **how)
        return
    for number, fold in enumerate(folds):
        metadata = encoded_metadata(bundle, run, number, frame)
        yield apply_trained(fold, run.settings, cache, rows, metadata, positive=run.positive, **how)

"""Estimates what steps cost: time from measured batches of each network, disk, memory and number of features."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dermstack.errors import ImageError
from image_models.settings import Compute
from stack.experiment import Experiment
from stack.images import sources_of
from stack.level1.folds import draw_anchors, labels_of
from stack.level1.pseudo_labels import awaits_teachers, labels_unlabelled, rows_to_label, teachers_of
from stack.level2.features import FoldFeatures, view_columns
from stack.net_metadata import metadata_encoder
from stack.predictions.joined import ALIGNED_COMPONENTS
from stack.settings.config import Config
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker
from stack.store import read_run
from stack.views import with_all_features

if TYPE_CHECKING:
    from image_models.speed import Speed

_DECODED = 12  # images that are decoded to learn how long it takes
_SAMPLE_ROWS = 2_000  # rows on which the features are made to count them
_LOGIT_BYTES = 16  # bytes of a row of predictions: id, fold, logit and p, compressed
_COPIES = 4  # of a fold's matrix that are in memory at once: training, held-out and test rows, and a library's own
_WIDTH = 512  # of a frozen embedding where its network was not measured


@dataclass(frozen=True)
class Cost:
    """What a step takes; None where it is not known."""

    seconds: float | None = None
    disk_bytes: int | None = None
    memory_bytes: int | None = None


def image_cost(experiment: Experiment, missing: Sequence[str], size: int) -> Cost:
    """Estimates the decoding of the ``missing`` images for a cache of ``size``, after decoding some of them."""
    from image_models.cache import resize_image

    config = experiment.config
    wanted = set(missing[:: max(1, len(missing) // _DECODED)][:_DECODED])
    ids, sources = sources_of(experiment)
    sample = [source for row_id, source in zip(ids, sources, strict=True) if row_id in wanted]
    started = time.perf_counter()
    for source in sample:
        try:
            resize_image(source.read(min_side=size).image, size, config.data.resize)
        except ImageError:
            continue  # `oof` tells of all of them, or drops them
    each = (time.perf_counter() - started) / max(1, len(sample))
    pixels = size * size * 3 * (0.1 if config.data.cache_format == "jpeg" else 1)
    return Cost(each * len(missing) / config.n_jobs, int(pixels * len(missing)))


def measured(experiment: Experiment, model: ImageModel) -> Speed:
    """Measures the network of an image model with a few batches, on the device and threads of the config."""
    from image_models.speed import measure_speed

    config, table = experiment.config, experiment.table
    columns = metadata_encoder(experiment, model).fit(table.train).width if model.metadata else 0
    classes = 2 if model.frozen else len(labels_of(model, table.train, experiment.external).names)
    return measure_speed(
        model.network, model.training, size=model.size, classes=classes, metadata=columns, frozen=model.frozen,
        compute=Compute(config.device, config.threads, config.workers),
    )  # fmt: skip


def images_through(experiment: Experiment, model: ImageModel, nets: int, folds: int) -> tuple[float, float]:
    """Returns how many images go through the network in the training of ``nets`` nets and in predictions of ``folds``.

    In predictions each view counts. Of rows with pseudo-labels all count, as is known only later how many are certain
    enough; their predictions by the model's teachers count too, unless they are made.
    """
    from image_models.predict import VIEW_COUNTS

    n_train, n_test, n_external = map(len, (experiment.table.train, experiment.table.test, experiment.external))
    k, views = experiment.folds.k, VIEW_COUNTS[model.tta]
    if model.frozen:
        embedded_once = n_external if experiment.copy_of is not None else n_train + n_test + n_external
        return 0.0, float(embedded_once * views if folds else 0)  # a copy takes the experiment's own features
    part, anchors = draw_anchors(n_train, n_test, seed=0)
    embedded = n_train / k + n_test + (len(anchors) if part == "train" else 0)
    learned = n_train * (k - 1) / k + n_external + len(rows_to_label(experiment, model))
    predicted = folds * len(model.seeds) * embedded * views
    return nets * learned * model.epochs, predicted + _labelled_by_teachers(experiment, model)


def _labelled_by_teachers(experiment: Experiment, model: ImageModel) -> float:
    """Returns how many unlabelled images go through the teachers' nets before the model is trained."""
    from image_models.predict import passes_per_image

    if not labels_unlabelled(model) or not awaits_teachers(experiment, model):
        return 0.0
    teachers = [one for one in experiment.config.image_models if one.name in teachers_of(model)]
    passes = sum(
        passes_per_image(one.tta, frozen=one.frozen, folds=experiment.folds.k, seeds=len(one.seeds)) for one in teachers
    )
    return float(passes * len(experiment.unlabelled))


def network_cost(experiment: Experiment, model: ImageModel, speed: Speed, nets: int, folds: int) -> Cost:
    """Estimates the training of ``nets`` nets and the predictions of ``folds`` folds, in ``n_jobs`` tasks at a time."""
    n_train, n_test, k = len(experiment.table.train), len(experiment.table.test), experiment.folds.k
    trained, predicted = images_through(experiment, model, nets, folds)
    predictions = _LOGIT_BYTES * (n_train + k * n_test)
    if model.frozen:
        z = 2 * speed.features * (2 * (n_train + n_test) + len(experiment.external))
        return Cost(predicted / speed.predict, z + speed.weights_bytes + predictions, speed.memory_bytes)
    parallel = min(experiment.config.n_jobs, max(1, folds))
    _, anchors = draw_anchors(n_train, n_test, seed=0)
    z = 2 * speed.features * (n_train + k * (n_test + len(anchors)))
    return Cost(
        (trained / speed.train + predicted / speed.predict) / parallel,
        k * len(model.seeds) * speed.weights_bytes + z + predictions,
        parallel * speed.memory_bytes,
    )


def head_cost(experiment: Experiment, width: int) -> Cost:
    """Returns the disk that heads of a frozen backbone and a copy of its features, of this ``width``, take."""
    return Cost(None, (4 * width + _LOGIT_BYTES) * len(experiment.table.train))


def prediction_seconds(experiment: Experiment, model: ImageModel) -> float:
    """Measures how long the nets of all folds and seeds take for a new image, with all views."""
    from image_models.predict import passes_per_image

    passes = passes_per_image(model.tta, frozen=model.frozen, folds=experiment.folds.k, seeds=len(model.seeds))
    return passes / measured(experiment, model).predict


def feature_counts(
    experiment: Experiment, kinds: Mapping[str, str], widths: Mapping[str, int], stackers: Sequence[Stacker]
) -> dict[str, int]:
    """Returns the number of features of each stacker, from the features of some rows.

    ``kinds`` is the kind of each run that stackers see (image, frozen, imported, or a stacker's), ``widths`` that of
    its embedding. Words that none of the rows has may add a column, so the numbers are about right.
    """
    experiment = with_all_features(experiment)
    settings = experiment.config.features
    frame = experiment.table.train.iloc[:_SAMPLE_ROWS]
    rng = np.random.default_rng(0)
    z = {}
    for name, kind in kinds.items():
        width = widths.get(name, _WIDTH)
        if kind == "image" and (settings.aligned_z or settings.neighbours):
            width = min(settings.aligned_z or ALIGNED_COMPONENTS, width)
        elif kind != "frozen" or not (settings.frozen_z or settings.neighbours):
            continue
        z[name] = rng.normal(size=(len(frame), width)).astype(np.float32)
    if settings.shortcuts and not {"width", "height", "bytes"} <= set(frame.columns):
        frame = frame.assign(width=1.0, height=1.0, bytes=1.0)  # known once the images are decoded
    logits = rng.normal(size=(len(frame), len(kinds))).astype(np.float32)
    features = FoldFeatures(
        settings, tuple(kinds), frozen={name for name, kind in kinds.items() if kind == "frozen"},
        seed=experiment.config.seed, columns=experiment.table.columns,
    ).fit(frame, logits, z)  # fmt: skip
    features.transform(frame, logits, z)
    counts = {stacker.name: len(view_columns(experiment.config, stacker, features)) for stacker in stackers}
    return {one.name: min(counts[one.name], one.select or counts[one.name]) for one in stackers}


def level2_memory(experiment: Experiment, features: int) -> int:
    """Estimates the memory of level 2: float32 matrices of the folds that are fitted at the same time."""
    rows = len(experiment.table.train) + len(experiment.table.test)
    return 4 * rows * features * _COPIES * min(experiment.config.n_jobs, experiment.folds.k)


def free_disk(config: Config) -> int:
    """Returns the free bytes of the disk of `runs`."""
    folder = config.runs
    while not folder.exists() and folder != Path(folder.anchor):
        folder = folder.parent
    return shutil.disk_usage(folder).free


def stored_width(folder: Path) -> int:
    """Returns the width of the embedding that a run keeps; 0 where it keeps none."""
    path = folder / "oof_z.npy"
    return int(np.load(path, mmap_mode="r", allow_pickle=False).shape[1]) if path.exists() else 0


def is_whole(fold: Path) -> bool:
    """Whether the run of one fold is complete."""
    return None not in (read_run(fold), read_run(fold / "parts"))

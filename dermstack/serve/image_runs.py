"""Predicts rows with the image runs of a bundle: logits and embeddings of every fold net, not yet averaged."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import BundleError, TabularError
from dermstack.serve.bundle import Bundle
from dermstack.serve.imported_runs import imported_logits
from dermstack.serve.manifest import ImageRun
from image_models.cache import ImageCache
from image_models.net_files import ENCODER
from image_models.predict import NetOutput, passes_per_image
from image_models.saved import NetCache, predict_frozen, predict_trained
from image_models.settings import Compute
from tabular.embeddings import Alignment
from tabular.encode import DenseMetadata, MetadataEncoder

MAX_ENCODED_COLUMNS = 10_000  # of age, sex and site: each row takes four bytes for each


@dataclass(frozen=True)
class Level1:
    """Predictions of level 1 for n rows, not yet averaged over the fold networks."""

    logits: NDArray[np.float32]  # (folds, n, runs)
    z: dict[str, NDArray[np.floating]]  # by run: (folds, n, r) aligned components, or (n, d) of a frozen backbone
    nets: NDArray[np.int8]  # (folds, runs) fold net that made the logits, or AVERAGED

    def fold_embeddings(self, fold: int, frozen: Collection[str]) -> dict[str, NDArray[np.floating]]:
        """Returns the embeddings of one fold's networks by run: (n, r), or (n, d) for a run in ``frozen``."""
        return {name: values if name in frozen else values[fold] for name, values in self.z.items()}


def bundle_passes(bundle: Bundle) -> int:
    """Returns how many forward passes an image needs: over runs, folds, seeds and test-time augmentation views."""
    return sum(
        passes_per_image(
            run.settings["tta"], frozen=run.kind == "frozen", folds=bundle.folds, seeds=len(run.settings["seeds"])
        )
        for run in bundle.image_runs
    )


def read_level1(
    bundle: Bundle,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    store: NetCache | None = None,
    device: str = "auto",
    workers: int = 0,
    see: Callable[[ImageRun, int, NetOutput], object] = lambda run, fold, made: None,
    progress: Callable[[int], object] = lambda done: None,
) -> Level1:
    """Predicts the rows of ``frame`` (id, age, sex, site) with every image run; ``caches`` hold their images by size.

    Logits of imported runs are those of ``frame``.

    ``see`` is called with the raw predictions of each run and fold (of a frozen backbone once, as fold 0), ``progress``
    with the number of images that went through a network. ``store`` may keep networks for the next call. Raises
    ImageError.
    """
    store, compute = store or net_cache(bundle), Compute(device, int(bundle.manifest["threads"]), workers)
    aligned, kinds = alignments(bundle), bundle.manifest["embeddings"]
    logits = np.empty((bundle.folds, len(frame), len(bundle.image_runs)), np.float32)
    z: dict[str, NDArray[np.floating]] = {}
    for place, run in enumerate(bundle.image_runs):
        cache = caches[int(run.settings["size"])]
        of_folds = _predict_folds(bundle, run, cache, frame, store=store, compute=compute, progress=progress)
        for fold, made in enumerate(of_folds):
            _check_output(bundle, run, fold, made, aligned)
            logits[fold, :, place] = made.logit
            if fold == 0 or run.kind != "frozen":
                see(run, fold, made)
            if kinds.get(run.name) == "frozen":
                z[run.name] = made.z
            elif run.name in aligned:
                components = aligned[run.name].transform(made.z, fold)
                z.setdefault(run.name, np.empty((bundle.folds, *components.shape), np.float32))[fold] = components
    given, given_nets = imported_logits(bundle, frame)
    return Level1(
        np.concatenate([logits, given], axis=2), {name: z[name] for name in kinds},
        np.concatenate([own_nets(bundle.folds, len(bundle.image_runs)), given_nets], axis=1),
    )  # fmt: skip


def own_nets(folds: int, runs: int) -> NDArray[np.int8]:
    """Returns the nets (folds, runs) of runs whose networks of each fold predict for that fold."""
    return np.repeat(np.arange(folds, dtype=np.int8)[:, None], runs, axis=1)


def net_cache(bundle: Bundle, max_bytes: int = 0) -> NetCache:
    """Returns a cache for the bundle's networks, which checks the hash of the bytes that it reads."""
    return NetCache(max_bytes, read=bundle.read_path)


def _check_output(bundle: Bundle, run: ImageRun, fold: int, made: NetOutput, aligned: Mapping[str, Alignment]) -> None:
    """Raises BundleError for predictions that are not finite or do not have the width of the stored alignment."""
    used = run.name in bundle.manifest["embeddings"]
    if not np.isfinite(made.logit).all() or (used and not np.isfinite(made.z).all()):
        raise BundleError(f"{bundle.place}: {run.name}, fold {fold}, gives predictions that are not finite")
    if run.name in aligned and made.z.shape[1] != aligned[run.name].mean.shape[1]:
        raise BundleError(
            f"{bundle.place}: {run.name} has {made.z.shape[1]} features, its alignment "
            f"{aligned[run.name].mean.shape[1]}: bundle again"
        )


def fold_folder(bundle: Bundle, run: ImageRun, fold: int) -> Path:
    """Returns the folder with the weights of a fold's networks."""
    return bundle.folder / "image_models" / run.name / f"fold_{fold}"


def encoded_metadata(bundle: Bundle, run: ImageRun, fold: int, frame: pd.DataFrame) -> NDArray[np.float32]:
    """Returns the metadata encoded for the fold's networks, (n, m); m = 0 if they take none."""
    encoder = net_encoder(bundle, run, fold)
    return np.empty((len(frame), 0), np.float32) if encoder is None else encoder.transform(frame)


def net_encoder(bundle: Bundle, run: ImageRun, fold: int) -> DenseMetadata | None:
    """Returns the encoder of the metadata of a fold's networks; None if they take none."""
    name = f"image_models/{run.name}/fold_{fold}/{ENCODER}"
    if name not in bundle:
        return None
    try:
        encoder = DenseMetadata.from_json(json.dumps(bundle.json(name)))
    except (TabularError, RecursionError) as error:
        raise BundleError(f"{bundle.place}: {name} cannot be read ({short_text(error)}): bundle again") from error
    for part in encoder.encoders_:
        check_encoder(bundle, part, name)
    return encoder


def _predict_folds(
    bundle: Bundle,
    run: ImageRun,
    cache: ImageCache,
    frame: pd.DataFrame,
    *,
    store: NetCache,
    compute: Compute,
    progress: Callable[[int], object],
) -> Iterator[NetOutput]:
    """Yields what the networks of each fold predict for the rows of ``frame``, of a frozen backbone its heads."""
    rows = cache.rows_for(frame["id"])
    folds = [fold_folder(bundle, run, fold) for fold in range(bundle.folds)]
    if run.kind == "frozen":
        yield from predict_frozen(folds, run.settings, cache, rows, store=store, compute=compute, progress=progress)
        return
    for number, fold in enumerate(folds):
        metadata = encoded_metadata(bundle, run, number, frame)
        yield predict_trained(
            fold, run.settings, cache, rows, metadata, positive=run.positive, store=store, compute=compute,
            progress=progress,
        )  # fmt: skip


def alignments(bundle: Bundle) -> dict[str, Alignment]:
    """Returns, by trained run whose embedding enters level 2, the map of its networks' z onto shared axes."""
    kept = bundle.arrays("alignment")
    made = {}
    for name in (name for name, kind in bundle.manifest["embeddings"].items() if kind == "aligned"):
        mean, turn = (kept.get(f"{name}_{part}", np.empty(0)) for part in ("mean", "turn"))
        if mean.ndim != 2 or turn.ndim != 3 or mean.shape != turn.shape[:2] or len(mean) != bundle.folds:
            raise BundleError(
                f"{bundle.place}: alignment/{name}_mean.npy and {name}_turn.npy are of shapes {mean.shape} and "
                f"{turn.shape}, not of {bundle.folds} networks: bundle again"
            )
        made[name] = Alignment(mean, turn, np.nan, np.nan)
    return made


def check_encoder(bundle: Bundle, encoder: MetadataEncoder, name: str) -> None:
    """Raises BundleError for an encoder that would make more columns of a row than any table has."""
    if len(encoder.columns_) > MAX_ENCODED_COLUMNS:
        raise BundleError(
            f"{bundle.place}: {name} encodes the columns of the table in {len(encoder.columns_):,} columns, more than "
            f"{MAX_ENCODED_COLUMNS:,}: bundle again"
        )


def short_text(error: BaseException) -> str:
    """Returns the start of an error's message on one line, or the name of its class."""
    return " ".join(str(error).split())[:400] or type(error).__name__

"""Applies a bundle's models to rows: level-1 predictions of the image runs, level 2, blend and calibration.

Every transform is the one that `dermstack stack` applied to the test rows, so the same row gets the same score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dermstack.errors import BundleError, DermstackError, TabularError
from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.local_map import local_map
from image_models.cache import ImageCache
from image_models.predict import VIEW_COUNTS, NetOutput
from image_models.saved import NetCache, predict_frozen, predict_trained
from stack.blend.blender import Blender
from stack.blend.calibration import Calibrator, Rescaled, calibrator_from_state
from stack.blend.state import blender_from_state
from stack.columns import empty_values
from stack.fallback import FOLDER, STATE_FILE, Fallback, read_fallback
from stack.features import CATEGORICAL, NUMERIC, FoldFeatures
from stack.group_models import read_group_net
from stack.level2_config import Features
from stack.predictions import Predictions, Scales, standardised
from stack.submission import score_unseen
from stack.table import ACQUISITION
from tabular.embeddings import Alignment
from tabular.encode import DenseMetadata, MetadataEncoder
from tabular.gbdt import check_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.gbdt_trial import ModelFile, try_models
from tabular.models import ENCODING_FILE, Bag, bag_from_contents, model_names

FEATURES, SECOND_FEATURES = "features", "features_second_stage"  # folders of the fitted transforms of each matrix
MAX_ENCODED_COLUMNS = 10_000  # of age, sex and site: each row takes four bytes for each
# What reading and applying the parts of a bundle raises where they are not what dermstack writes.
CONTENT_ERRORS: tuple[type[Exception], ...] = (DermstackError, LookupError, TypeError, ValueError, AttributeError)
CONTENT_ERRORS += (ArithmeticError, OSError, RecursionError, MemoryError)


@dataclass(frozen=True)
class Level1:
    """Predictions of the image runs for n rows, not yet averaged over the fold networks."""

    logits: NDArray[np.float32]  # (folds, n, runs)
    z: dict[str, NDArray[np.floating]]  # by run: (folds, n, r) aligned components, or (n, d) of a frozen backbone

    def fold_embeddings(self, fold: int, frozen: Collection[str]) -> dict[str, NDArray[np.floating]]:
        """Returns the embeddings of one fold's networks by run: (n, r), or (n, d) for a run in ``frozen``."""
        return {name: values if name in frozen else values[fold] for name, values in self.z.items()}


@dataclass(frozen=True)
class SecondStage:
    """The stackers that see others, models of the table alone, and what their matrix is made with."""

    stackers: frozenset[str]
    sees: tuple[str, ...]  # the stackers that they see, in the order of the matrix
    scales: Scales
    features: tuple[FoldFeatures, ...]  # one for each fold


@dataclass(frozen=True)
class FittedEnsemble:
    """Level 2 and the blend, read from a bundle."""

    names: tuple[str, ...]  # the image runs
    scales: Scales
    features: tuple[FoldFeatures, ...]  # one for each fold; empty without stackers
    bags: dict[str, tuple[Bag, ...]]  # by stacker: one for each fold
    blender: Blender
    calibrator: Calibrator
    threads: int
    blended: tuple[int, ...]  # which of the image runs and stackers, in this order, the blend weights
    second: SecondStage | None = None
    local: Rescaled | None = None  # the recalibration that `calibrator` ends with

    def score(self, frame: pd.DataFrame, level1: Level1) -> pd.DataFrame:
        """Returns score and p_calibrated for n rows of whole groups; ``frame`` has id, group, age, sex and site."""
        logits = self.all_logits(frame, level1)[:, :, list(self.blended)]
        folds, rows, runs = logits.shape
        nets = np.repeat(np.arange(folds, dtype=np.int8)[:, None], runs, axis=1)
        score = score_unseen(self.blender, _as_test_predictions(self._blended_names, logits, nets))
        assert len(score) == rows
        return pd.DataFrame({"score": score, "p_calibrated": self.calibrator(score)}, index=frame.index)

    def all_logits(self, frame: pd.DataFrame, level1: Level1) -> NDArray[np.float32]:
        """Returns logits (folds, n, runs) of the image runs, then the stackers; fold k's are made by its own models."""
        made = [
            self.fold_logits(fold, frame, level1.logits[fold], level1.fold_embeddings(fold, self._frozen))
            for fold in range(len(level1.logits))
        ]
        return np.stack(made)

    def fold_logits(
        self, fold: int, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> NDArray[np.float32]:
        """Returns one fold's logits (n, runs) from its networks' ``logits`` (n, image runs) and ``z`` (n, r)."""
        if not self.bags:
            return logits
        second = self.second.stackers if self.second else frozenset()
        x = _matrix(self.names, logits, self.scales, self.features, fold, frame, z)
        made = {
            name: bags[fold].logit(_of(x, bags[fold]), groups=frame["group"], threads=self.threads)
            for name, bags in self.bags.items()
            if name not in second
        }
        if self.second:
            seen = np.column_stack([logits, *(made[name] for name in self.second.sees)])
            names = (*self.names, *self.second.sees)
            x = _matrix(names, seen, self.second.scales, self.second.features, fold, frame, z)
            made |= {
                name: bags[fold].logit(_of(x, bags[fold]), groups=frame["group"], threads=self.threads)
                for name, bags in self.bags.items()
                if name in second
            }
        return np.column_stack([logits, *(made[name] for name in self.bags)])

    def embeddings(self, level1: Level1) -> list[dict[str, NDArray[np.floating]]]:
        """Returns, for each fold by run, the centred components (n, r) for level-2 distances; [] without stackers."""
        return [
            {name: features.components(name, z) for name, z in level1.fold_embeddings(fold, self._frozen).items()}
            for fold, features in enumerate(self.features)
        ]

    @property
    def _blended_names(self) -> tuple[str, ...]:
        every = (*self.names, *self.bags)
        return tuple(every[run] for run in self.blended)

    @property
    def _frozen(self) -> frozenset[str]:
        return frozenset(self.features[0].frozen) if self.features else frozenset()


def _matrix(
    names: tuple[str, ...],
    logits: NDArray[np.float32],
    scales: Scales,
    features: tuple[FoldFeatures, ...],
    fold: int,
    frame: pd.DataFrame,
    z: Mapping[str, NDArray[np.floating]],
) -> pd.DataFrame:
    """Returns one fold's level-2 matrix of rows whose runs ``names`` have these ``logits`` (n, runs)."""
    nets = np.full((1, logits.shape[1]), fold, np.int8)
    scaled = standardised(_as_test_predictions(names, logits[None], nets), scales).test[0]
    return features[fold].transform(frame, scaled, z)


def read_fitted(bundle: Bundle) -> FittedEnsemble:
    """Reads the fitted level 2, blend and calibration of a bundle. Raises BundleError if a part cannot be read."""
    manifest = bundle.manifest
    names = tuple(run.name for run in bundle.image_runs)
    try:
        folds = range(bundle.folds)
        features = tuple(_features(bundle, fold, FEATURES, names) for fold in folds) if manifest["stackers"] else ()
        bags = _bags(bundle)
        scales = _scales(manifest["scales"])
        second = None
        if later := manifest.get("second_stage"):
            sees = tuple(later["sees"])
            second = SecondStage(
                frozenset(later["stackers"]), sees, _scales(later["scales"]),
                tuple(_features(bundle, fold, SECOND_FEATURES, (*names, *sees)) for fold in folds),
            )  # fmt: skip
        settings = bundle.json("blend/blend.json")
        blender = blender_from_state(settings, bundle.arrays("blend"))
        every = [*names, *bags]
        blended = tuple(every.index(name) for name in settings.get("runs", every))  # ValueError for an unknown name
        calibrator = calibrator_from_state(bundle.json("blend/calibration.json"))
        threads = int(manifest["threads"])
        local = local_map(bundle, calibrator)
        fitted = FittedEnsemble(names, scales, features, bags, blender, calibrator, threads, blended, second, local)
        with threadpool_limits(1):
            _try_rows(bundle, fitted)
    except BundleError:
        raise
    except CONTENT_ERRORS as error:
        raise BundleError(
            f"{bundle.folder}: level 2 or the blend cannot be read ({short_text(error)}): bundle again"
        ) from error
    return fitted


def _scales(entry: Mapping[str, Mapping[str, Any]]) -> Scales:
    """Returns the scales of a manifest's entry, with nets as numbers."""
    return {
        run: {int(net): (float(mean), float(spread)) for net, (mean, spread) in of_nets.items()}
        for run, of_nets in entry.items()
    }


def _bags(bundle: Bundle) -> dict[str, tuple[Bag, ...]]:
    """Reads the stackers' models; GBDT libraries parse them in a child process first (`tabular.gbdt_trial`)."""
    contents: dict[tuple[str, int], dict[str, bytes]] = {}
    tried = []
    for entry in bundle.manifest["stackers"]:
        name, kind = entry["name"], entry["kind"]
        for fold in range(bundle.folds):
            folder = _stacker_folder(name, fold)
            files = bundle.names_in(folder)
            models = model_names(kind, files)
            wanted = [*models, *(file for file in files if file == ENCODING_FILE)]
            contents[name, fold] = {file: bundle.read(f"{folder}/{file}") for file in wanted}
            if kind in LIBRARIES:
                tried += [ModelFile(f"{folder}/{file}", kind, contents[name, fold][file]) for file in models]
    for model in tried:
        check_gbdt(model.kind, model.content, model.name)
    try_models(tried)
    return {
        entry["name"]: tuple(
            bag_from_contents(
                entry["kind"], contents[entry["name"], fold], _stacker_folder(entry["name"], fold), shift=shift,
                checked=True, read_groups=read_group_net,
            )
            for fold, shift in enumerate(entry["shifts"])
        )
        for entry in bundle.manifest["stackers"]
    }  # fmt: skip


def _stacker_folder(name: str, fold: int) -> str:
    return f"stackers/{name}/fold_{fold}"


def _try_rows(bundle: Bundle, fitted: FittedEnsemble) -> None:
    """Applies level 2, blend and calibration to two rows of zeros, which shows parts that do not fit each other.

    Raises the errors that such parts cause, and ValueError for scores that are no finite numbers.
    """
    ids = pd.Series(["0", "1"], dtype="str")
    frame = pd.DataFrame({"id": ids, "group": ids, "age": np.full(2, np.nan, np.float32)})
    frame = frame.assign(**{name: pd.Series(np.nan, index=frame.index, dtype="str") for name in ("sex", "site")})
    frame = frame.assign(**dict.fromkeys(ACQUISITION, np.float32(0)))
    frame = pd.concat([frame, empty_values(bundle.table_columns, len(frame))], axis=1)
    z: dict[str, NDArray[np.floating]] = {}
    aligned = alignments(bundle)
    for name, kind in bundle.manifest["embeddings"].items():
        if kind == "aligned":
            z[name] = np.zeros((bundle.folds, 2, aligned[name].components), np.float32)
        elif fitted.features:
            z[name] = np.zeros((2, len(fitted.features[0].axes_[name][0])), np.float16)
    made = fitted.score(frame, Level1(np.zeros((bundle.folds, 2, len(fitted.names)), np.float32), z))
    if not np.isfinite(made.to_numpy()).all():
        raise ValueError("its scores are not finite")


def read_bundled_fallback(bundle: Bundle) -> Fallback:
    """Reads the model that predicts from the table alone. Raises BundleError where the bundle has none or a bad one."""
    if not bundle.manifest.get("fallback"):
        raise BundleError(
            f"{bundle.folder} cannot predict from the table alone: set `data.on_unreadable_test: table` in the config "
            "of its experiment, run `dermstack stack` and bundle again; or drop the rows (--on-unreadable drop)"
        )
    try:
        state = bundle.json(f"{FOLDER}/{STATE_FILE}")["state"]
        settings = Features(**bundle.manifest["features"])
        made = read_fallback(
            lambda name: bundle.read(f"{FOLDER}/{name}"), state, settings, columns=bundle.table_columns,
            threads=int(bundle.manifest["threads"]),
        )  # fmt: skip
        if len(made.models) != bundle.folds:
            raise ValueError(f"{len(made.models)} models for {bundle.folds} folds")
    except BundleError:
        raise
    except CONTENT_ERRORS as error:
        raise BundleError(
            f"{bundle.folder}: the fallback cannot be read ({short_text(error)}): bundle again"
        ) from error
    return made


def alignments(bundle: Bundle) -> dict[str, Alignment]:
    """Returns, by trained run whose embedding enters level 2, the map of its networks' z onto shared axes."""
    kept = bundle.arrays("alignment")
    made = {}
    for name in (name for name, kind in bundle.manifest["embeddings"].items() if kind == "aligned"):
        mean, turn = (kept.get(f"{name}_{part}", np.empty(0)) for part in ("mean", "turn"))
        if mean.ndim != 2 or turn.ndim != 3 or mean.shape != turn.shape[:2] or len(mean) != bundle.folds:
            raise BundleError(
                f"{bundle.folder}: alignment/{name}_mean.npy and {name}_turn.npy are of shapes {mean.shape} and "
                f"{turn.shape}, not of {bundle.folds} networks: bundle again"
            )
        made[name] = Alignment(mean, turn, np.nan, np.nan)
    return made


def _of(x: pd.DataFrame, bag: Bag) -> pd.DataFrame:
    """Returns the columns of the matrix that a stacker was fitted on. Raises BundleError where one is absent."""
    if absent := sorted(set(bag.columns) - set(x)):
        raise BundleError(f"a stacker was fitted on {absent[0]!r}, which the bundle's features lack: bundle again")
    return x[list(bag.columns)]


def _features(bundle: Bundle, fold: int, folder: str, names: tuple[str, ...]) -> FoldFeatures:
    manifest = bundle.manifest
    frozen = {name for name, kind in manifest["embeddings"].items() if kind == "frozen"}
    features = FoldFeatures(
        Features(**manifest["features"]), names, frozen=frozen, seed=0, columns=bundle.table_columns
    )
    place = f"{folder}/fold_{fold}"
    features.restore(json.dumps(bundle.json(f"{place}/features.json")), bundle.arrays(place))
    for encoder in filter(None, (features.encoder_, features.table_)):
        _check_encoder(bundle, encoder, f"{place}/features.json")
    if tuple(features.encoder_.numeric) != NUMERIC or tuple(features.encoder_.categorical) != CATEGORICAL:
        raise BundleError(f"{bundle.folder}: {place}/features.json encodes other columns than age, sex and site")
    for name, (mean, turn) in features.axes_.items():
        if mean.ndim != 1 or turn.ndim != 2 or len(mean) != len(turn):
            raise BundleError(
                f"{bundle.folder}: {place}/{name}_mean.npy and {name}_turn.npy are of shapes {mean.shape} and "
                f"{turn.shape}: bundle again"
            )
    return features


def _check_encoder(bundle: Bundle, encoder: MetadataEncoder, name: str) -> None:
    """Raises BundleError for an encoder that would make more columns of a row than any table has."""
    if len(encoder.columns_) > MAX_ENCODED_COLUMNS:
        raise BundleError(
            f"{bundle.folder}: {name} encodes the columns of the table in {len(encoder.columns_):,} columns, more than "
            f"{MAX_ENCODED_COLUMNS:,}: bundle again"
        )


def _as_test_predictions(names: tuple[str, ...], logits: NDArray[np.float32], nets: NDArray[np.int8]) -> Predictions:
    """Returns logits of new rows in the form in which level 2 and the blend take test rows."""
    runs = len(names)
    nothing = np.empty((0, runs), np.float32)
    return Predictions(names, np.empty(0, np.intp), nothing, nothing.astype(np.int8), logits, nets)


def short_text(error: BaseException) -> str:
    """Returns the start of an error's message on one line, or the name of its class."""
    return " ".join(str(error).split())[:400] or type(error).__name__


ENCODER = "metadata.json"  # beside the weights of a network that takes metadata


def passes_per_image(bundle: Bundle) -> int:
    """Returns how many forward passes an image needs: over runs, folds, seeds and test-time augmentation views."""
    return sum(
        VIEW_COUNTS[run.settings["tta"]] * (1 if run.kind == "frozen" else bundle.folds * len(run.settings["seeds"]))
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

    ``see`` is called with the raw predictions of each run and fold (of a frozen backbone once, as fold 0), ``progress``
    with the number of images that went through a network. ``store`` may keep networks for the next call. Raises
    ImageError.
    """
    options = {
        "store": store or net_cache(bundle), "device": device, "threads": int(bundle.manifest["threads"]),
        "workers": workers, "progress": progress,
    }  # fmt: skip
    aligned, kinds = alignments(bundle), bundle.manifest["embeddings"]
    logits = np.empty((bundle.folds, len(frame), len(bundle.image_runs)), np.float32)
    z: dict[str, NDArray[np.floating]] = {}
    for place, run in enumerate(bundle.image_runs):
        cache = caches[int(run.settings["size"])]
        for fold, made in enumerate(_predict_folds(bundle, run, cache, frame, **options)):
            _check_output(bundle, run, fold, made, aligned)
            logits[fold, :, place] = made.logit
            if fold == 0 or run.kind != "frozen":
                see(run, fold, made)
            if kinds.get(run.name) == "frozen":
                z[run.name] = made.z
            elif run.name in aligned:
                components = aligned[run.name].transform(made.z, fold)
                z.setdefault(run.name, np.empty((bundle.folds, *components.shape), np.float32))[fold] = components
    return Level1(logits, {name: z[name] for name in kinds})


def net_cache(bundle: Bundle, max_bytes: int = 0) -> NetCache:
    """Returns a cache for the bundle's networks, which checks the hash of the bytes that it reads."""
    return NetCache(max_bytes, read=bundle.read_path)


def _check_output(bundle: Bundle, run: ImageRun, fold: int, made: NetOutput, aligned: Mapping[str, Alignment]) -> None:
    """Raises BundleError for predictions that are not finite or do not have the width of the stored alignment."""
    used = run.name in bundle.manifest["embeddings"]
    if not np.isfinite(made.logit).all() or (used and not np.isfinite(made.z).all()):
        raise BundleError(f"{bundle.folder}: {run.name}, fold {fold}, gives predictions that are not finite")
    if run.name in aligned and made.z.shape[1] != aligned[run.name].mean.shape[1]:
        raise BundleError(
            f"{bundle.folder}: {run.name} has {made.z.shape[1]} features, its alignment "
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
        raise BundleError(f"{bundle.folder}: {name} cannot be read ({short_text(error)}): bundle again") from error
    for part in encoder.encoders_:
        _check_encoder(bundle, part, name)
    return encoder


def _predict_folds(
    bundle: Bundle, run: ImageRun, cache: ImageCache, frame: pd.DataFrame, **options: Any
) -> Iterator[NetOutput]:
    rows = cache.rows_for(frame["id"])
    folds = [fold_folder(bundle, run, fold) for fold in range(bundle.folds)]
    if run.kind == "frozen":
        yield from predict_frozen(folds, run.settings, cache, rows, **options)
        return
    for number, fold in enumerate(folds):
        metadata = encoded_metadata(bundle, run, number, frame)
        yield predict_trained(fold, run.settings, cache, rows, metadata, positive=run.positive, **options)

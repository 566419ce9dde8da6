"""Applies a bundle's level 2, blend and calibration to the predictions of its image runs, and pools those of units.

Every transform is the one that `dermstack stack` applied to the test rows, so the same row gets the same score.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import BundleError, DermstackError
from dermstack.serve.bundle import Bundle
from dermstack.serve.image_runs import Level1, alignments, check_encoder, short_text
from dermstack.serve.local_map import local_map
from dermstack.threads import limit_threads
from stack.blend.blender import Blender
from stack.blend.calibration import Calibrator, Rescaled, calibrator_from_state
from stack.blend.pooling import pool_logits, pool_unseen
from stack.blend.state import blender_from_state
from stack.columns import empty_values
from stack.fallback import FOLDER, STATE_FILE, Fallback, read_fallback
from stack.features import CATEGORICAL, NUMERIC, FoldFeatures
from stack.group_models import read_group_net
from stack.level2_config import Features
from stack.predictions import Predictions, Scales, standardised
from stack.submission import score_unseen
from stack.table import ACQUISITION
from stack.units import UNIT
from tabular.gbdt import check_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.gbdt_trial import ModelFile, try_models
from tabular.models import ENCODING_FILE, Bag, bag_from_contents, model_names

FEATURES, SECOND_FEATURES = "features", "features_second_stage"  # folders of the fitted transforms of each matrix
# What reading and applying the parts of a bundle raises where they are not what dermstack writes.
CONTENT_ERRORS: tuple[type[Exception], ...] = (DermstackError, LookupError, TypeError, ValueError, AttributeError)
CONTENT_ERRORS += (ArithmeticError, OSError, RecursionError, MemoryError)


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
    pooling: str | None = None  # of the images of a unit, where predictions are for units; None: for images

    def score(self, frame: pd.DataFrame, level1: Level1) -> pd.DataFrame:
        """Returns id, score and p_calibrated for n rows of whole groups; ``frame`` has id, group, age, sex and site.

        Where predictions are for units, ``frame`` has whole units (column `UNIT`) and there is a row for each of these,
        in the order of their first image, with the number of its ``images``.
        """
        logits = self.all_logits(frame, level1)[:, :, list(self.blended)]
        folds, _, runs = logits.shape
        nets = np.repeat(np.arange(folds, dtype=np.int8)[:, None], runs, axis=1)
        predictions, scored = _as_test_predictions(self._blended_names, logits, nets), frame[["id"]]
        if self.pooling is not None:
            code, names = pd.factorize(frame[UNIT])
            predictions = pool_unseen(predictions, code, self.pooling)
            scored = pd.DataFrame({"id": pd.Series(names, dtype="str"), "images": np.bincount(code)})
        score = score_unseen(self.blender, predictions)
        assert len(score) == len(scored)
        return scored.assign(score=score, p_calibrated=self.calibrator(score))

    def blend_fold(
        self, fold: int, logits: NDArray[np.float32], unit: NDArray[np.intp] | None = None
    ) -> NDArray[np.float64]:
        """Returns scores of rows with one fold's ``logits`` (n, runs), or of their units 0, 1, … (``unit``, (n,))."""
        chosen = logits[:, list(self.blended)]
        if self.pooling is not None:
            assert unit is not None, "rows of a blend of units"
            chosen = pool_logits(chosen, unit, self.pooling).astype(np.float32)
        p = expit(chosen.astype(np.float64))
        scores: NDArray[np.float64] = self.blender.predict_proba(p, nets=np.full(len(p), fold))[:, 1]
        return scores

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
        calibrator = read_calibrator(bundle)
        threads = int(manifest["threads"])
        local = local_map(bundle, calibrator)
        fitted = FittedEnsemble(
            names, scales, features, bags, blender, calibrator, threads, blended, second, local, bundle.pooling
        )
        with limit_threads(1):
            _try_rows(bundle, fitted)
    except BundleError:
        raise
    except CONTENT_ERRORS as error:
        raise BundleError(
            f"{bundle.place}: level 2 or the blend cannot be read ({short_text(error)}): bundle again"
        ) from error
    return fitted


def read_calibrator(bundle: Bundle) -> Calibrator:
    """Reads what turns a score into a risk. Raises BundleError if it cannot be read."""
    try:
        return calibrator_from_state(bundle.json("blend/calibration.json"))
    except BundleError:
        raise
    except CONTENT_ERRORS as error:
        raise BundleError(
            f"{bundle.place}: blend/calibration.json cannot be read ({short_text(error)}): bundle again"
        ) from error


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
    frame = pd.concat([frame, empty_values(bundle.table_columns, len(frame))], axis=1).assign(**{UNIT: ids})
    z: dict[str, NDArray[np.floating]] = {}
    aligned = alignments(bundle)
    for name, kind in bundle.manifest["embeddings"].items():
        if kind == "aligned":
            z[name] = np.zeros((bundle.folds, 2, aligned[name].components), np.float32)
        elif fitted.features:
            z[name] = np.zeros((2, len(fitted.features[0].axes_[name][0])), np.float16)
    made = fitted.score(frame, Level1(np.zeros((bundle.folds, 2, len(fitted.names)), np.float32), z))
    if not np.isfinite(made[["score", "p_calibrated"]].to_numpy()).all():
        raise ValueError("its scores are not finite")


def read_bundled_fallback(bundle: Bundle) -> Fallback:
    """Reads the model that predicts from the table alone. Raises BundleError where the bundle has none or a bad one."""
    if not bundle.takes_images:
        raise BundleError(
            f"{bundle.place} has no image model: it predicts every row from the table alone, so leave out "
            "--on-unreadable"
        )
    if bundle.predict_per is not None:
        raise BundleError(
            f"{bundle.place} predicts {bundle.per_text}, which cannot be predicted from the table alone: drop images "
            "that cannot be read (--on-unreadable drop); the others of their unit are pooled"
        )
    if not bundle.manifest.get("fallback"):
        raise BundleError(
            f"{bundle.place} cannot predict from the table alone: set `data.on_unreadable_test: table` in the config "
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
        raise BundleError(f"{bundle.place}: the fallback cannot be read ({short_text(error)}): bundle again") from error
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
        check_encoder(bundle, encoder, f"{place}/features.json")
    if tuple(features.encoder_.numeric) != NUMERIC or tuple(features.encoder_.categorical) != CATEGORICAL:
        raise BundleError(f"{bundle.place}: {place}/features.json encodes other columns than age, sex and site")
    for name, (mean, turn) in features.axes_.items():
        if mean.ndim != 1 or turn.ndim != 2 or len(mean) != len(turn):
            raise BundleError(
                f"{bundle.place}: {place}/{name}_mean.npy and {name}_turn.npy are of shapes {mean.shape} and "
                f"{turn.shape}: bundle again"
            )
    return features


def _as_test_predictions(names: tuple[str, ...], logits: NDArray[np.float32], nets: NDArray[np.int8]) -> Predictions:
    """Returns logits of new rows in the form in which level 2 and the blend take test rows."""
    runs = len(names)
    nothing = np.empty((0, runs), np.float32)
    return Predictions(names, np.empty(0, np.intp), nothing, nothing.astype(np.int8), logits, nets)

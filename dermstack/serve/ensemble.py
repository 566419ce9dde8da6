"""Applies a bundle's level 2, blend and calibration to the predictions of level 1, and pools those of units.

Every transform is the one that `dermstack stack` applied to the test rows, so the same row gets the same score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import BundleError, DermstackError
from dermstack.serve.bundle import Bundle
from dermstack.serve.image_runs import Level1, alignments, own_nets, short_text
from dermstack.serve.imported_runs import imported_nets
from dermstack.serve.local_map import local_map
from dermstack.serve.stages import SeenRows, Stage, read_stages
from dermstack.threads import limit_threads
from stack.blend.blender import Blender
from stack.blend.calibration import Calibrator, Rescaled, calibrator_from_state
from stack.blend.pooling import nets_of_units, pool_logits, pool_unseen
from stack.blend.state import blender_from_state
from stack.fallback import FOLDER, STATE_FILE, Fallback, read_fallback
from stack.level2.features import FoldFeatures
from stack.predictions.joined import Predictions
from stack.settings.level2 import Features
from stack.submission import score_unseen
from stack.tables.columns import empty_values
from stack.tables.table import ACQUISITION
from stack.tables.units import UNIT

# What reading and applying the parts of a bundle raises where they are not what dermstack writes.
CONTENT_ERRORS: tuple[type[Exception], ...] = (DermstackError, LookupError, TypeError, ValueError, AttributeError)
CONTENT_ERRORS += (ArithmeticError, OSError, RecursionError, MemoryError)


@dataclass(frozen=True)
class FittedEnsemble:
    """Level 2 and the blend, read from a bundle."""

    names: tuple[str, ...]  # the runs of level 1
    stages: tuple[Stage, ...]  # none without stackers
    stackers: tuple[str, ...]  # in the order of the blend's columns
    blender: Blender
    calibrator: Calibrator
    threads: int
    blended: tuple[int, ...]  # which of the runs of level 1 and stackers, in this order, the blend weights
    local: Rescaled | None = None  # the recalibration that `calibrator` ends with
    pooling: str | None = None  # of the images of a unit, where predictions are for units; None: for images

    def score(self, frame: pd.DataFrame, level1: Level1) -> pd.DataFrame:
        """Returns id, score and p_calibrated for n rows of whole groups; ``frame`` has id, group, age, sex and site.

        Where predictions are for units, ``frame`` has whole units (column `UNIT`) and there is a row for each of these,
        in the order of their first image, with the number of its ``images``.
        """
        logits = self.all_logits(frame, level1)[:, :, list(self.blended)]
        folds, _, runs = logits.shape
        nets = np.concatenate([level1.nets, own_nets(folds, len(self.stackers))], axis=1)
        names = (*self.names, *self.stackers)
        nothing = np.empty((0, runs), np.float32)
        predictions = Predictions(
            tuple(names[run] for run in self.blended), np.empty(0, np.intp), nothing, nothing.astype(np.int8), logits,
            nets[:, list(self.blended)],
        )  # fmt: skip
        scored = frame[["id"]]
        if self.pooling is not None:
            code, units = pd.factorize(frame[UNIT])
            predictions = pool_unseen(predictions, code, self.pooling)
            scored = pd.DataFrame({"id": pd.Series(units, dtype="str"), "images": np.bincount(code)})
        score = score_unseen(self.blender, predictions)
        assert len(score) == len(scored)
        return scored.assign(score=score, p_calibrated=self.calibrator(score))

    def score_held_out(
        self,
        logits: NDArray[np.float32],
        nets: NDArray[np.int8],
        unit: NDArray[np.intp] | None = None,
    ) -> NDArray[np.float64]:
        """Returns scores of rows whose ``logits`` (n, runs) the ``nets`` made that held them out.

        With their units 0, 1, … (``unit``, (n,)) the scores are those of the units.
        """
        chosen, nets = logits[:, list(self.blended)], nets[:, list(self.blended)]
        if self.pooling is not None:
            assert unit is not None, "rows of a blend of units"
            chosen = pool_logits(chosen, unit, self.pooling).astype(np.float32)
            nets = nets_of_units(nets, unit, self.pooling)
        scores: NDArray[np.float64] = self.blender.predict_proba(expit(chosen.astype(np.float64)), nets=nets)[:, 1]
        return scores

    def all_logits(self, frame: pd.DataFrame, level1: Level1) -> NDArray[np.float32]:
        """Returns logits (folds, n, runs) of level 1, then the stackers; fold k's are made by its own models."""
        made = [
            self.logits(
                SeenRows(
                    frame, logits, np.broadcast_to(nets, logits.shape), level1.fold_embeddings(fold, self._frozen)
                ),
                np.full((self.repeats, len(frame)), fold),
            )
            for fold, (logits, nets) in enumerate(zip(level1.logits, level1.nets, strict=True))
        ]  # fmt: skip
        return np.stack(made)

    def logits(self, rows: SeenRows, folds: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Returns the logits (n, runs) of level 1 and of the stackers for n ``rows``.

        ``folds`` (repeats, n) names the fold whose stackers predict each row, in each repeat.
        """
        made: dict[str, NDArray[np.float32]] = {}
        for stage in self.stages:
            seen = stage.sees[len(self.names) :]
            logits = np.column_stack([rows.logits, *(made[name] for name in seen)])
            nets = np.column_stack([rows.nets, *(folds[0] for _ in seen)]).astype(np.int8)
            made |= stage.logits(rows._replace(logits=logits, nets=nets), folds, self.threads)
        return np.column_stack([rows.logits, *(made[name] for name in self.stackers)])

    @property
    def repeats(self) -> int:
        """The most repeats that a stacker has; 1 without stackers."""
        return max((len(stage.features) for stage in self.stages), default=1)

    def embeddings(self, level1: Level1) -> list[dict[str, NDArray[np.floating]]]:
        """Returns, for each fold by run, the centred components (n, r) for level-2 distances; [] without stackers."""
        return [
            {name: features.components(name, z) for name, z in level1.fold_embeddings(fold, self._frozen).items()}
            for fold, features in enumerate(self._features)
        ]

    @property
    def _features(self) -> tuple[FoldFeatures, ...]:
        """The features of each fold of the first repeat of the first stage; none without stackers."""
        return self.stages[0].features[0] if self.stages else ()

    @property
    def _frozen(self) -> frozenset[str]:
        return frozenset(self._features[0].frozen) if self._features else frozenset()


def read_fitted(bundle: Bundle) -> FittedEnsemble:
    """Reads the fitted level 2, blend and calibration of a bundle. Raises BundleError if a part cannot be read."""
    manifest, names = bundle.manifest, bundle.level1_names
    stackers = tuple(entry["name"] for entry in manifest["stackers"])
    try:
        stages = read_stages(bundle)
        settings = bundle.json("blend/blend.json")
        blender = blender_from_state(settings, bundle.arrays("blend"))
        every = [*names, *stackers]
        blended = tuple(every.index(name) for name in settings.get("runs", every))  # ValueError for an unknown name
        calibrator = read_calibrator(bundle)
        fitted = FittedEnsemble(
            names, stages, stackers, blender, calibrator, int(manifest["threads"]), blended,
            local_map(bundle, calibrator), bundle.pooling,
        )  # fmt: skip
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
        elif fitted.stages:
            z[name] = np.zeros((2, len(fitted.stages[0].features[0][0].axes_[name][0])), np.float16)
    given_nets = imported_nets(bundle)
    made = fitted.score(
        frame,
        Level1(
            np.zeros((bundle.folds, 2, len(fitted.names)), np.float32), z,
            np.concatenate([own_nets(bundle.folds, len(bundle.image_runs)), given_nets], axis=1),
        ),
    )  # fmt: skip
    if not np.isfinite(made[["score", "p_calibrated"]].to_numpy()).all():
        raise ValueError("its scores are not finite")


def read_bundled_fallback(bundle: Bundle) -> Fallback:
    """Reads the model that predicts from the table alone. Raises BundleError where the bundle has none or a bad one."""
    if not bundle.takes_images:
        raise BundleError(
            f"{bundle.place} has no image model, so no image can be unreadable: leave out --on-unreadable"
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

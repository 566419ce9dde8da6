"""What it costs not to know a column: the ensemble on its own out-of-fold rows, with and without it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.ensemble import Fitted, read_fitted
from dermstack.serve.level1 import encoded_metadata, fold_folder
from image_models.apply import head_logits
from stack.errors import BundleError
from stack.experiment import Experiment
from stack.features import predictions_of
from stack.join import places
from stack.metrics.intervals import paired_difference
from stack.predictions import read_embeddings
from stack.store import Run

FILE = "costs.json"
KNOWN = ("age", "sex", "site", "group")  # what a new image may come without


def measure_costs(experiment: Experiment, bundle: Bundle, runs: list[Run]) -> list[dict[str, Any]]:
    """Of each column alone and of all together: the objective without it less that with it, with interval by group.

    Every row is judged by the fold models that did not see it, under the blend of the bundle. A net with metadata is
    asked again through its head, on the stored embedding (a mean over views and rounded to float16, which moves its
    logit a little with or without the column: both sides have that). ``group`` missing: each image its own group.
    """
    fitted = read_fitted(bundle)
    predictions = predictions_of(experiment, runs)
    frame = experiment.table.train.iloc[predictions.rows].reset_index(drop=True)
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    z = {name: embedding.oof[predictions.rows] for name, embedding in read_embeddings(experiment, runs).items()}
    columns = [name for name in KNOWN if name == "group" or frame[name].notna().any()]

    wanting = [*((name,) for name in columns), tuple(columns)]
    frames = [frame, *(_without(frame, names) for names in wanting)]
    changes = _changes_of_heads(bundle, runs, predictions.nets, frames)
    full, *poorer = [
        _out_of_fold(fitted, poor, predictions.oof + change, predictions.nets, z)
        for poor, change in zip(frames, changes, strict=True)
    ]
    costs = []
    for names, score in zip(wanting, poorer, strict=True):
        cost = paired_difference(experiment.config.objective, y, score, full, groups)
        costs.append({"without": list(names), "cost": cost.value, "low": cost.low, "high": cost.high})
    return costs


def cost_notes(bundle: Bundle, missing: Sequence[str]) -> list[str]:
    """What a user who lacks these columns should know; nothing where nothing is missing."""
    lacking = [name for name in KNOWN if name in missing]
    if not lacking or not (bundle.folder / FILE).is_file():
        return []
    objective = bundle.manifest["objective"]
    try:
        costs = {
            tuple(map(str, entry["without"])): {name: float(entry[name]) for name in ("cost", "low", "high")}
            for entry in bundle.json(FILE)
        }
        everything = max(costs, key=len)
    except (LookupError, TypeError, ValueError) as error:
        raise BundleError(f"{bundle.folder}: {FILE} can't be read ({error}): bundle again") from error
    asked = [everything] if set(lacking) >= set(everything) else [(name,) for name in lacking if (name,) in costs]
    return [
        f"no {' and no '.join(names)}{_known_as(bundle, names)}: on the training rows that changes {objective} by "
        f"{costs[names]['cost']:+.4f} [{costs[names]['low']:+.4f}, {costs[names]['high']:+.4f}]"
        for names in asked
    ]


def _known_as(bundle: Bundle, names: Sequence[str]) -> str:
    """How a csv would name the columns."""
    called = [bundle.columns[name] for name in names if name in bundle.columns]
    return f" (column {', '.join(called)})" if called else ""


def _without(frame: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    poor = frame.copy()
    for name in names:
        if name == "group":
            poor["group"] = poor["id"]
        else:
            poor[name] = pd.Series(np.nan, index=poor.index, dtype=poor[name].dtype)
    return poor


def _changes_of_heads(
    bundle: Bundle, runs: list[Run], nets: NDArray[np.int8], frames: Sequence[pd.DataFrame]
) -> list[NDArray[np.float32]]:
    """(n, runs) for each of ``frames``: by how much its metadata changes each net's logit from that of the first."""
    changes = [np.zeros(nets.shape, np.float32) for _ in frames]
    for place, (run, stored) in enumerate(zip(bundle.image_runs, runs, strict=True)):
        if not run.settings["metadata"]:
            continue
        oof_z = stored.array("oof_z")[places(frames[0]["id"], stored.frame("oof")["id"], f"the rows of {run.name}")]
        for fold in range(bundle.folds):
            rows = np.flatnonzero(nets[:, place] == fold)
            known, *others = _heads(bundle, run, fold, oof_z[rows], [frame.iloc[rows] for frame in frames])
            for change, logit in zip(changes[1:], others, strict=True):
                change[rows, place] = logit - known
    return changes


def _heads(
    bundle: Bundle, run: ImageRun, fold: int, z: NDArray[np.float16], frames: Sequence[pd.DataFrame]
) -> list[NDArray[np.float32]]:
    """Logits (n,) of stored embeddings (n, d) beside the metadata of each frame, through the net's head alone."""
    metadata = [encoded_metadata(bundle, run, fold, frame) for frame in frames]
    weights = fold_folder(bundle, run, fold) / "weights.safetensors"
    return head_logits(weights, run.settings, z, metadata, positive=run.positive)


def _out_of_fold(
    fitted: Fitted,
    frame: pd.DataFrame,
    logits: NDArray[np.float32],
    nets: NDArray[np.int8],
    z: dict[str, NDArray[np.floating]],
) -> NDArray[np.float64]:
    """Scores (n,) of training rows, each by the models of its own fold, groups whole within it."""
    score = np.empty(len(frame))
    for fold in np.unique(nets[:, 0]):
        rows = np.flatnonzero(nets[:, 0] == fold)
        made = fitted.fold_logits(
            int(fold), frame.iloc[rows], logits[rows], {name: own[rows] for name, own in z.items()}
        )
        p = expit(made.astype(np.float64))
        score[rows] = fitted.blender.predict_proba(p, nets=np.full(len(rows), fold))[:, 1]
    return score

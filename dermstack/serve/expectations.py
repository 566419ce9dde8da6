"""What a bundle keeps of its training rows: the nested estimate, the cost of missing columns and a novelty model."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter
from scipy.special import expit

from dermstack.errors import BundleError, DermstackError, TabularError
from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.ensemble import FittedEnsemble, encoded_metadata, fold_folder, read_fitted
from image_models.predict import NetOutput
from image_models.saved import head_logits
from stack.experiment import Experiment
from stack.features import metadata_of_models
from stack.history import auc_of
from stack.metrics.intervals import Z95, Interval, paired_difference
from stack.metrics.validation import InternalValidation, internal_validation, internal_validation_from_json, jsonable
from stack.predictions import predictions_of, read_embeddings
from stack.store import Run, row_positions, write_json
from tabular.embeddings import N_QUANTILES, Density, fit_density

PROMISE_FILE = "promise.json"


def measure_promise(experiment: Experiment, blend: Run) -> InternalValidation:
    """Returns the training estimate, measured on the nested scores and the nested calibrated p.

    For each row, these were chosen and fitted without the row's fold.
    """
    oof = blend.frame("oof")
    row_positions = experiment.rows_of(oof["id"])
    return internal_validation(
        experiment.config.objective,
        experiment.target[row_positions],
        oof["score"].to_numpy(np.float64),
        oof["p_calibrated"].to_numpy(np.float64),
        experiment.split_group[row_positions],
        experiment.table.train.iloc[row_positions].reset_index(drop=True),
    )


def write_promise(promise: InternalValidation, bundle: Path) -> None:
    """Writes the training estimate into the folder of an unfinished bundle."""
    (bundle / PROMISE_FILE).write_text(json.dumps(jsonable(promise), indent=1), encoding="utf-8")


def read_promise(bundle: Bundle) -> InternalValidation:
    """Reads the training estimate. Raises BundleError for a bundle of an earlier dermstack, which has none."""
    if PROMISE_FILE not in bundle:
        raise BundleError(
            f"{bundle.folder} has no {PROMISE_FILE} to compare with, because an earlier dermstack made it: bundle the "
            "experiment again with `dermstack bundle`"
        )
    content = bundle.json(PROMISE_FILE)
    try:
        promise = internal_validation_from_json(content)
        _PROMISE_TYPE.validate_python(asdict(promise))
        for entry in promise.subgroups:
            _SUBGROUP_TYPE.validate_python(entry)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        fault = " ".join(str(error).split())[:300]
        raise BundleError(f"{bundle.folder}: {PROMISE_FILE} cannot be read ({fault}): bundle again") from error
    return promise


# The types of what promise.json holds; JSON gives none of them by itself.
_PROMISE_TYPE = TypeAdapter(InternalValidation)
_SUBGROUP_TYPE = TypeAdapter(dict[str, bool | float | Annotated[str, Field(max_length=1000)] | None])


COSTS_FILE = "costs.json"
OPTIONAL_COLUMNS = ("age", "sex", "site", "group")  # columns that new images may lack


def measure_costs(experiment: Experiment, bundle: Bundle, runs: list[Run]) -> list[dict[str, Any]]:
    """Measures the objective without each column, and without all, minus the objective with all; interval by group.

    Every row is scored by the fold models that did not see it, with the blend of the bundle. For a network that takes
    metadata, the head is applied again to the stored embedding (a mean over views, rounded to float16: this changes
    its logit a little, equally with and without the column). Without ``group``, each image is its own group.
    """
    fitted = read_fitted(bundle)
    predictions = predictions_of(experiment, runs)
    frame = experiment.table.train.iloc[predictions.rows].reset_index(drop=True)
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    z = {name: embedding.oof[predictions.rows] for name, embedding in read_embeddings(experiment, runs).items()}
    used = metadata_of_models(experiment.config)
    columns = [name for name in OPTIONAL_COLUMNS if name == "group" or (name in used and frame[name].notna().any())]

    column_sets = [*((name,) for name in columns), tuple(columns)]
    frames = [frame, *(_drop_columns(frame, names) for names in column_sets)]
    changes = _logit_changes(bundle, runs, predictions.nets, frames)
    full, *reduced_scores = [
        _out_of_fold_scores(fitted, reduced, predictions.oof + change, predictions.nets, z)
        for reduced, change in zip(frames, changes, strict=True)
    ]
    costs = []
    for names, score in zip(column_sets, reduced_scores, strict=True):
        cost = paired_difference(experiment.config.objective, y, score, full, groups)
        costs.append({"without": list(names), "cost": cost.value, "low": cost.low, "high": cost.high})
    return costs


def lacking_columns(bundle: Bundle, frame: pd.DataFrame, missing: Sequence[str]) -> tuple[list[str], Interval | None]:
    """Returns the columns that the expectation was made with and no row has, and the measured cost of being without.

    ``missing`` names the columns that the table lacks; a column without a value in any row counts too. A column whose
    measured cost is exactly 0 is used by no model and does not count. The cost is None where it was not measured for
    these columns together.
    """
    lacking = [name for name in OPTIONAL_COLUMNS if name in missing or (name in frame and frame[name].isna().all())]
    if COSTS_FILE not in bundle:
        return [name for name in lacking if name != "group" and name in bundle.columns], None
    try:
        costs = {frozenset(map(str, entry["without"])): _cost(entry) for entry in bundle.json(COSTS_FILE)}
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{bundle.folder}: {COSTS_FILE} cannot be read ({error}): bundle again") from error
    unused = {name for name in lacking if (one := costs.get(frozenset([name]))) and one.low == one.high == 0}
    lacking = [name for name in lacking if any(name in names for names in costs) and name not in unused]
    everything = max(costs, key=len)
    matters = frozenset(lacking)
    return lacking, costs.get(matters, costs[everything] if matters and matters >= everything - unused else None)


def _cost(entry: dict[str, Any]) -> Interval:
    value, low, high = (float(entry[name]) for name in ("cost", "low", "high"))
    if not np.isfinite([value, low, high]).all():
        raise ValueError(f"a cost of {value} [{low}, {high}]")
    return Interval(value, low, high, (high - low) / (2 * Z95))


def cost_notes(bundle: Bundle, missing: Sequence[str]) -> list[str]:
    """Returns a sentence on the measured cost of ``missing`` columns; [] if none is missing or no cost is stored."""
    lacking = [name for name in OPTIONAL_COLUMNS if name in missing]
    if not lacking or COSTS_FILE not in bundle:
        return []
    objective = bundle.manifest["objective"]
    try:
        costs = {tuple(map(str, entry["without"])): _cost(entry) for entry in bundle.json(COSTS_FILE)}
        everything = max(costs, key=len)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BundleError(f"{bundle.folder}: {COSTS_FILE} cannot be read ({error}): bundle again") from error
    reported = [everything] if set(lacking) >= set(everything) else [(name,) for name in lacking if (name,) in costs]
    return [
        f"no {' and no '.join(names)}{_csv_names(bundle, names)}: on the training rows, this changes {objective} by "
        f"{costs[names].value:+.4f} [{costs[names].low:+.4f}, {costs[names].high:+.4f}]"
        for names in reported
    ]


def _csv_names(bundle: Bundle, names: Sequence[str]) -> str:
    """Returns the columns' names in a csv, in brackets; an empty text if they have none."""
    called = [bundle.columns[name] for name in names if name in bundle.columns]
    return f" (column {', '.join(called)})" if called else ""


def _drop_columns(frame: pd.DataFrame, names: Collection[str]) -> pd.DataFrame:
    reduced = frame.copy()
    for name in names:
        if name == "group":
            reduced["group"] = reduced["id"]
        else:
            reduced[name] = pd.Series(np.nan, index=reduced.index, dtype=reduced[name].dtype)
    return reduced


def _logit_changes(
    bundle: Bundle, runs: list[Run], nets: NDArray[np.int8], frames: Sequence[pd.DataFrame]
) -> list[NDArray[np.float32]]:
    """Returns (n, runs) for each of ``frames``: logits with its metadata minus logits with the first frame's."""
    changes = [np.zeros(nets.shape, np.float32) for _ in frames]
    for place, (run, stored) in enumerate(zip(bundle.image_runs, runs, strict=True)):
        if not run.settings["metadata"]:
            continue
        oof_z = stored.array("oof_z")[
            row_positions(frames[0]["id"], stored.frame("oof")["id"], f"the rows of {run.name}")
        ]
        for fold in range(bundle.folds):
            rows = np.flatnonzero(nets[:, place] == fold)
            known, *others = _head_logits(bundle, run, fold, oof_z[rows], [frame.iloc[rows] for frame in frames])
            for change, logit in zip(changes[1:], others, strict=True):
                change[rows, place] = logit - known
    return changes


def _head_logits(
    bundle: Bundle, run: ImageRun, fold: int, z: NDArray[np.float16], frames: Sequence[pd.DataFrame]
) -> list[NDArray[np.float32]]:
    """Returns the logits (n,) for each frame's metadata: the network's head applied to stored embeddings (n, d)."""
    metadata = [encoded_metadata(bundle, run, fold, frame) for frame in frames]
    weights = fold_folder(bundle, run, fold) / "weights.safetensors"
    return head_logits(weights, run.settings, z, metadata, positive=run.positive, read=bundle.read_path)


def _out_of_fold_scores(
    fitted: FittedEnsemble,
    frame: pd.DataFrame,
    logits: NDArray[np.float32],
    nets: NDArray[np.int8],
    z: dict[str, NDArray[np.floating]],
) -> NDArray[np.float64]:
    """Returns scores (n,) of training rows, each by the models of its own fold; no group extends over two folds."""
    score = np.empty(len(frame))
    for fold in np.unique(nets[:, 0]):
        rows = np.flatnonzero(nets[:, 0] == fold)
        made = fitted.fold_logits(
            int(fold), frame.iloc[rows], logits[rows], {name: own[rows] for name, own in z.items()}
        )
        p = expit(made.astype(np.float64))
        score[rows] = fitted.blender.predict_proba(p, nets=np.full(len(rows), fold))[:, 1]
    return score


FAR_QUANTILE = 0.99  # about one training image in a hundred lies further out
NOVELTY_FOLDER = "novelty"


@dataclass(frozen=True)
class Novelty:
    """Novelty model: a density of embeddings for each fold of one run, or a single one for a frozen backbone."""

    run: str
    densities: tuple[Density, ...]

    def scorer(self) -> NoveltyScorer:
        """Returns a collector for the networks' raw predictions."""
        return NoveltyScorer(self)


@dataclass
class NoveltyScorer:
    """Measures novelty while predictions are made, so that embeddings need not be kept."""

    model: Novelty
    shares: list[NDArray[np.float64]] = field(default_factory=list)

    def see(self, run: ImageRun, fold: int, made: NetOutput) -> None:
        """Adds one fold's predictions for all rows; those of other runs are ignored."""
        if run.name == self.model.run:
            if made.z.shape[1] != (features := len(self.model.densities[fold].mean)):
                raise BundleError(
                    f"{run.name} has {made.z.shape[1]} features, its novelty model {features}: bundle again"
                )
            self.shares.append(self.model.densities[fold].share_nearer(made.z))

    def novelty(self) -> NDArray[np.float64]:
        """Returns (n,) in 0..1: the share of training images nearer to the others than this one, mean over folds."""
        mean: NDArray[np.float64] = np.mean(self.shares, axis=0)
        return mean

    def far(self) -> NDArray[np.bool_]:
        """Returns (n,): whether an image is so unusual that it should be checked before its prediction is trusted."""
        return self.novelty() > FAR_QUANTILE


def fit_novelty(experiment: Experiment, runs: list[Run]) -> Novelty | None:
    """Fits the novelty model to the out-of-fold embeddings of the best trained run (else the best frozen run).

    Returns None if a fold has too few rows for a density.
    """
    run = max(runs, key=lambda run: (run.meta["kind"] == "image", auc_of(experiment, run)))
    oof, z = run.frame("oof"), run.array("oof_z")
    groups = experiment.split_group[experiment.rows_of(oof["id"])]
    nets = oof["fold"].to_numpy() if run.meta["kind"] == "image" else np.zeros(len(oof), np.int8)
    try:
        densities = [fit_density(z[nets == net], groups[nets == net]) for net in np.unique(nets)]
    except TabularError:
        return None
    return Novelty(run.name, tuple(densities))


def write_novelty(novelty: Novelty, bundle: Path) -> None:
    """Writes the novelty model into the folder of an unfinished bundle."""
    for fold, density in enumerate(novelty.densities):
        folder = bundle / NOVELTY_FOLDER / f"fold_{fold}"
        folder.mkdir(parents=True)
        for name in ("mean", "axes", "reference"):
            np.save(folder / f"{name}.npy", getattr(density, name), allow_pickle=False)
        write_json(folder / "noise.json", {"noise": density.noise})
    write_json(bundle / NOVELTY_FOLDER / "novelty.json", {"run": novelty.run, "nets": len(novelty.densities)})


def read_novelty(bundle: Bundle) -> Novelty | None:
    """Reads the novelty model; None if the bundle has none. Raises BundleError if it cannot be read."""
    if f"{NOVELTY_FOLDER}/novelty.json" not in bundle:
        return None
    about = bundle.json(f"{NOVELTY_FOLDER}/novelty.json")
    try:
        run = next(run for run in bundle.image_runs if run.name == about["run"])
        densities = []
        nets = 1 if run.kind == "frozen" else bundle.folds
        if about["nets"] != nets:
            raise ValueError(f"it is of {str(about['nets'])[:20]} networks, not of {nets}")
        for fold in range(nets):
            noise = float(bundle.json(f"{NOVELTY_FOLDER}/fold_{fold}/noise.json")["noise"])
            density = Density(**bundle.arrays(f"{NOVELTY_FOLDER}/fold_{fold}"), noise=noise)
            shapes = [density.mean.shape, density.axes.shape[:1], density.reference.shape]
            if density.axes.ndim != 2 or shapes[0] != shapes[1] or shapes[2] != (N_QUANTILES,):
                raise ValueError(f"fold {fold} has arrays of shapes {shapes}, which do not fit each other")
            if not 0 < noise < np.inf or (np.diff(density.reference) < 0).any() or not density.axes.any(axis=0).all():
                raise ValueError(f"fold {fold} has distances or deviations that are out of range")
            densities.append(density)
    except BundleError:
        raise
    except (DermstackError, LookupError, StopIteration, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"{bundle.folder}: the novelty model cannot be read ({error}): bundle again") from error
    return Novelty(run.name, tuple(densities))

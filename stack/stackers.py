"""Level 2: GBDTs on the matrix, over the same folds; the test rows are predicted as each fold net sees them."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from typing import Any

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.config import Stacker
from stack.console import Out
from stack.errors import StoreError
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.matrix import FeatureSettings, FoldFeatures, Predictions, predictions_of
from stack.oof import check_fresh, level1_inputs
from stack.store import Run, fingerprint, prediction_frame, read_run, set_aside, write_run
from stack.tuned import tuned_fingerprint, tuned_params
from tabular.gbdt import fit_gbdt, predict_logit, write_gbdt

SUFFIX = {"lightgbm": "model.txt", "xgboost": "model.ubj"}


def level1_runs(experiment: Experiment) -> list[Run]:
    """The enabled image models, which must be complete and fresh, then the imported runs.

    Raises StoreError naming the command that makes what is missing.
    """
    runs = []
    for model in experiment.config.image_models:
        if not model.enabled:
            continue
        folder = experiment.models / model.name
        check_fresh(experiment, folder, level1_inputs(experiment, model))
        run = read_run(folder)
        if run is None:
            raise StoreError(
                f"image model {model.name} is not complete: run `dermstack oof --config {experiment.config_path}` "
                f"first, or set `enabled: false`"
            )
        runs.append(run)
    imported = [run for run in experiment.finished(level=1) if run.meta["kind"] == "imported"]
    for run in imported:
        check_imported(experiment, run)
    if not runs and not imported:
        raise StoreError(
            f"{experiment.folder} has no level-1 run: run `dermstack oof --config {experiment.config_path}`, "
            "or bring predictions in with `dermstack import-oof`"
        )
    return runs + imported


def check_imported(experiment: Experiment, run: Run) -> None:
    """Raise StoreError where an imported run was checked against other rows or folds than today's, or lost its name."""
    if run.name in experiment.config.model_names:
        raise StoreError(
            f"{run.folder} is an imported run, and {experiment.config_path} has a model of that name: rename the model"
        )
    if run.meta["inputs"]["rows or folds"] != experiment.rows_fingerprint:
        raise StoreError(
            f"{run.folder} was imported for other rows or folds: run `dermstack import-oof {run.name} --replace` again"
        )


def run_stackers(experiment: Experiment, sources: list[Run], out: Out) -> list[Run]:
    """Make every enabled stacker complete on the level-1 runs ``sources``; a stale one is set aside and made again."""
    stackers = [stacker for stacker in experiment.config.stackers if stacker.enabled]
    inputs = {stacker.name: _inputs(experiment, stacker, sources) for stacker in stackers}
    todo = []
    for stacker in stackers:
        folder = experiment.models / stacker.name
        run = read_run(folder)
        if run and run.meta["inputs"] == inputs[stacker.name]:
            out.say(f"{stacker.name}: complete, skipped")
            continue
        if run and (aside := set_aside(folder, experiment.old)):
            out.say(f"{stacker.name}: its inputs changed; the old run is kept as {aside}")
        todo.append(stacker)
    if todo:
        _fit_all(experiment, todo, inputs, sources, out)
    return [run for stacker in stackers if (run := read_run(experiment.models / stacker.name))]


@dataclass(frozen=True)
class FoldMatrix:
    """One fold's fitted transforms, its training and held-out features, and the table rows of both."""

    features: FoldFeatures
    train: pd.DataFrame
    held: pd.DataFrame
    train_rows: NDArray[np.intp]
    held_rows: NDArray[np.intp]


def fold_matrix(
    experiment: Experiment,
    sources: list[Run],
    predictions: Predictions,
    fold: int,
    *,
    without: int | None = None,
) -> FoldMatrix:
    """Transforms fitted on the training rows, applied to these and to the held-out rows of ``fold``.

    A study for fold ``without`` has no row of it on either side.
    """
    train = experiment.table.train
    fold_of = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    parts = [np.flatnonzero((fold_of != fold) & (fold_of != without)), np.flatnonzero(fold_of == fold)]
    train_rows, held_rows = (predictions.rows[part] for part in parts)
    frozen = _frozen(experiment, sources)
    z = [{run.name: run.array("oof_z")[rows] for run in frozen} for rows in (train_rows, held_rows)]
    settings = FeatureSettings(**experiment.config.features.model_dump())
    features = FoldFeatures(settings, predictions.names, seed=experiment.config.seed).fit(train.iloc[train_rows], z[0])
    x_train, x_held = (
        features.transform(train.iloc[predictions.rows[part]], predictions.oof[part], values)
        for part, values in zip(parts, z, strict=True)
    )
    return FoldMatrix(features, x_train, x_held, train_rows, held_rows)


def inner_rows(experiment: Experiment, places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """A grouped part of these training rows, for early stopping."""
    return inner_split(
        experiment.target[places],
        experiment.split_group[places],
        seed=experiment.config.seed,
    )


def _fit_all(
    experiment: Experiment,
    stackers: list[Stacker],
    inputs: dict[str, dict[str, str]],
    sources: list[Run],
    out: Out,
) -> None:
    started = time.monotonic()
    predictions = predictions_of(experiment, sources)
    left_out = len(experiment.target) - len(predictions.rows)
    if left_out:
        out.say(f"level 2: {left_out} training rows are left out, as declared by {_declarers(sources)}")
    jobs = joblib.Parallel(n_jobs=experiment.config.n_jobs, return_as="generator")(
        joblib.delayed(_fit_fold)(experiment, stackers, sources, predictions, fold)
        for fold in range(experiment.folds.k)
    )
    made = []
    with out.bar("level 2", experiment.folds.k, "folds") as progress:
        for fold in jobs:
            made.append(fold)
            progress(1)
    for number, stacker in enumerate(stackers):
        parts = [fold[number] for fold in made]
        oof = pd.concat([part["oof"] for part in parts], ignore_index=True)
        order = pd.Index(oof["id"]).get_indexer(experiment.table.train["id"].iloc[predictions.rows])
        meta = {
            "fingerprint": fingerprint(inputs[stacker.name]),
            "level": 2,
            "kind": stacker.kind,
            "inputs": inputs[stacker.name],
            "settings": stacker.model_dump(mode="json", exclude={"enabled"}),
            "features": parts[0]["features"],
            "rounds": [part["rounds"] for part in parts],
            "excluded": left_out,
            "seconds": round(time.monotonic() - started, 1),
        }
        frames = {
            "oof": oof.iloc[order],
            "test": pd.concat([part["test"] for part in parts], ignore_index=True),
        }
        write_run(experiment.models / stacker.name, meta, frames=frames)


def _fit_fold(
    experiment: Experiment, stackers: list[Stacker], sources: list[Run], predictions: Predictions, fold: int
) -> list[dict[str, Any]]:
    """Every stacker on one fold's matrix, which is built once."""
    matrix = fold_matrix(experiment, sources, predictions, fold)
    target, inner = experiment.target[matrix.train_rows], inner_rows(experiment, matrix.train_rows)
    seed, threads = experiment.config.seed, experiment.config.threads
    test_z = {run.name: run.array("test_z") for run in _frozen(experiment, sources)}
    x_test = matrix.features.transform(experiment.table.test, predictions.test[fold], test_z)
    made = []
    for stacker in stackers:
        folder = experiment.models / stacker.name / f"fold_{fold}"
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        folder.mkdir(parents=True)
        model = fit_gbdt(
            stacker.kind,
            matrix.train[~inner],
            target[~inner],
            stop=(matrix.train[inner], target[inner]),
            params={**stacker.params, **tuned_params(experiment, stacker.name, fold)},
            seed=seed,
            threads=threads,
        )
        write_gbdt(model, folder / SUFFIX[stacker.kind])
        write_run(folder, {"fold": fold, "rounds": model.rounds}, frames={}, beside=[folder / SUFFIX[stacker.kind]])
        oof, test = (predict_logit(model, x, threads=threads) for x in (matrix.held, x_test))
        made.append({
            "oof": prediction_frame(experiment.table.train["id"].iloc[matrix.held_rows], fold, oof),
            "test": prediction_frame(experiment.table.test["id"], fold, test),
            "features": list(matrix.train.columns),
            "rounds": model.rounds,
        })  # fmt: skip
    return made


def _frozen(experiment: Experiment, sources: list[Run]) -> list[Run]:
    """The runs whose embedding enters the matrix."""
    return [run for run in sources if run.meta["kind"] == "frozen"] if experiment.config.features.frozen_z else []


def _inputs(experiment: Experiment, stacker: Stacker, sources: list[Run]) -> dict[str, str]:
    config = experiment.config
    return {
        "settings": fingerprint({
            "stacker": stacker.model_dump(exclude={"enabled"}),
            "features": config.features.model_dump(),
            "seed": config.seed,
            "tuned": tuned_fingerprint(config.tuned.gbdt.get(stacker.name)),
        }),
        "level-1 runs": fingerprint({run.name: run.meta["files"] for run in sources}),
        "metadata": experiment.metadata_fingerprint,
        "rows or folds": experiment.rows_fingerprint,
    }  # fmt: skip


def _declarers(runs: list[Run]) -> str:
    return ", ".join(f"{run.name} ({run.meta['excluded']})" for run in runs if run.meta.get("excluded"))

"""Level 2: fits the stackers on the level-2 matrix over the same folds, and probes them for acquisition shortcuts."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.experiment import Experiment
from stack.features import FoldFeatures, FoldMatrix, early_stopping_rows, encoding_parts, fold_matrix, view_columns
from stack.fold_needs import check_fold_needs
from stack.images import require_acquisition, with_acquisition
from stack.level2_config import Stacker, is_second_stage, source_names
from stack.level2_inputs import is_complete, made_with, stacker_inputs
from stack.metrics.intervals import interval, paired_difference
from stack.parallel import run_folds, run_with_threads
from stack.predictions import (
    ALONE,
    Embedding,
    Predictions,
    alignment_notes,
    net_scales,
    predictions_of,
    read_embeddings,
    standardised,
    stored_scales,
    with_rows_alone,
)
from stack.repeats import mean_of_repeats, repeated
from stack.store import (
    Run,
    atomic,
    error_with_path,
    fingerprint,
    prediction_frame,
    read_run,
    read_verified_run,
    row_positions,
    set_aside,
    write_run,
)
from stack.tuned import check_tuned_gbdt, tuned_params
from stack.views import check_seen, with_all_features
from tabular.estimators import make_estimator
from tabular.models import Bag, fit_bag, write_bag


@dataclass(frozen=True)
class Probe:
    """Out-of-fold logits (n,) of a stacker under a changed condition, which is its name."""

    name: str
    logit: NDArray[np.float32]


def probe_experiments(experiment: Experiment) -> dict[str, Experiment]:
    """Returns a copy of the experiment for each shortcut that is off but available, switched on, by name."""
    features = experiment.config.features
    found = {}
    if not features.context_counts:
        found["context_counts"] = _with_features(experiment, context_counts=True)
    if not features.shortcuts and (known := with_acquisition(experiment)) is not None:
        found["shortcuts"] = _with_features(known, shortcuts=True)
    return found


def probe_table(
    experiment: Experiment, predictions: Predictions, logit: NDArray[np.float32], probes: list[Probe]
) -> pd.DataFrame:
    """Returns the AUC of each probe and its difference to the stacker's ``logit`` (n,) on the same rows.

    Columns: what, rows, auc with its interval low, high, and difference with difference_low, difference_high. The probe
    `alone` predicts every image without the other rows of its group. `groups of one` and `other groups` are the stacker
    itself on these rows only; their difference is to the mean of its level-1 runs on the same rows.
    """
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    true_group = experiment.table.train["group"].iloc[predictions.rows]
    size = true_group.map(true_group.value_counts()).to_numpy()
    table = []
    for probe in probes:
        table.append(_row(probe.name, y, probe.logit, logit, groups))
    if not predictions.names:  # a model of the table alone has no level-1 runs to compare with
        return pd.DataFrame(table)
    plain = predictions.oof.mean(axis=1)
    for name, rows in (("groups of one", size == 1), ("other groups", size > 1)):
        if len(np.unique(y[rows])) == 2:
            table.append(_row(name, y[rows], logit[rows], plain[rows], groups[rows]))
    return pd.DataFrame(table)


def _row(
    name: str, y: NDArray[np.int8], s: NDArray[np.floating], base: NDArray[np.floating], groups: NDArray[np.object_]
) -> dict[str, object]:
    value, difference = interval("auc", y, s, groups), paired_difference("auc", y, s, base, groups)
    return {
        "what": name, "rows": len(y), "auc": value.value, "low": value.low, "high": value.high,
        "difference": difference.value, "difference_low": difference.low, "difference_high": difference.high,
    }  # fmt: skip


def _with_features(experiment: Experiment, **features: bool) -> Experiment:
    config = experiment.config
    return replace(
        experiment, config=config.model_copy(update={"features": config.features.model_copy(update=features)})
    )


def run_stackers(experiment: Experiment, sources: list[Run], out: Out) -> list[Run]:
    """Completes every enabled stacker on the level-1 runs ``sources``; sets a stale one aside and fits it again.

    Stackers that see models of the table alone are fitted after all others, on a matrix with these as further runs.
    """
    config = experiment.config
    if config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    stackers, tables = [stacker for stacker in config.stackers if stacker.enabled], source_names(config.stackers)
    for stacker in stackers:
        check_seen(config, stacker, [*(run.name for run in sources), *tables])
        if stacker.kind == "sklearn":
            make_estimator(stacker.estimator, stacker.params, seed=config.seed, threads=1)
    second = [stacker for stacker in stackers if is_second_stage(stacker, stackers)]
    made = _complete(experiment, [stacker for stacker in stackers if stacker not in second], sources, out)
    if second:
        made |= _complete(experiment, second, [*sources, *(made[name] for name in tables)], out)
    return [made[stacker.name] for stacker in stackers]


def _complete(experiment: Experiment, stackers: list[Stacker], sources: list[Run], out: Out) -> dict[str, Run]:
    """Completes the stackers of one stage, which share a matrix of the runs ``sources``, and returns their runs."""
    inputs = {stacker.name: stacker_inputs(experiment, stacker, sources) for stacker in stackers}
    kept = {stacker.name: read_run(experiment.models / stacker.name) for stacker in stackers}
    complete = {name for name, run in kept.items() if is_complete(experiment.config, run, inputs[name])}
    for stacker in stackers:  # check all of them before the first run is set aside
        check_tuned_gbdt(experiment, stacker, sources, complete=stacker.name in complete)
    todo = []
    for stacker in stackers:
        folder = experiment.models / stacker.name
        run = kept[stacker.name]
        if stacker.name in complete:
            read_verified_run(folder)
            out.say(f"{stacker.name}: complete, skipped")
            continue
        if run and (aside := set_aside(folder, experiment.old)):
            lacks = "it lacks what stackers that see it need" if run.meta["inputs"] == inputs[run.name] else ""
            out.say(f"{stacker.name}: {lacks or 'its inputs changed'}; the old run is kept as {aside}")
        todo.append(stacker)
    if todo and len(todo) < len(stackers):
        todo = _with_same_scales(experiment, stackers, todo, sources, out)
    if todo:
        run_with_threads(experiment.config.threads, _fit_all, experiment, todo, inputs, sources, out)
    return {stacker.name: run for stacker in stackers if (run := read_run(experiment.models / stacker.name))}


def _with_same_scales(
    experiment: Experiment, stackers: list[Stacker], todo: list[Stacker], sources: list[Run], out: Out
) -> list[Stacker]:
    """Returns ``todo`` with the complete stackers whose level-1 logits had other scales; these are set aside.

    All stackers share one matrix, also in a bundle, and an earlier version standardised the logits otherwise.
    """
    scales = net_scales(predictions_of(experiment, sources))
    again = {stacker.name for stacker in todo}
    for stacker in stackers:
        run = None if stacker.name in again else read_run(experiment.models / stacker.name)
        if run and stored_scales(run) != scales:
            aside = set_aside(run.folder, experiment.old)
            out.say(f"{stacker.name}: fitted by an earlier version on other scales; the old run is kept as {aside}")
            again.add(stacker.name)
    return [stacker for stacker in stackers if stacker.name in again]


def _fit_all(
    experiment: Experiment,
    stackers: list[Stacker],
    inputs: dict[str, dict[str, str]],
    sources: list[Run],
    out: Out,
) -> None:
    predictions = predictions_of(experiment, sources)
    scales = net_scales(predictions)
    predictions = standardised(with_rows_alone(predictions, sources, experiment.table.train["id"]), scales)
    left_out = len(experiment.target) - len(predictions.rows)
    if left_out:
        check_fold_needs(experiment, predictions.rows)
        out.say(f"level 2: {left_out} training rows are left out, as declared by {_runs_with_exclusions(sources)}")
    embeddings = read_embeddings(experiment, sources)
    notes = alignment_notes(embeddings, sources)
    for note, fits in notes:
        (out.say if fits else out.warn)(note)
    folds = range(experiment.folds.k)
    probed = probe_experiments(experiment)
    tasks: list[Callable[[], Any]] = [
        partial(_fit_fold, experiment, stackers, embeddings, predictions, fold) for fold in folds
    ]
    tasks += [
        partial(_probe_logits, changed, stackers[0], embeddings, predictions, fold)
        for changed in probed.values()
        for fold in folds
    ]
    repeats = range(1, max(stacker.repeats for stacker in stackers))
    tasks += [
        partial(_fit_fold, repeated(experiment, repeat), stackers, embeddings, predictions, fold, repeat)
        for repeat in repeats
        for fold in folds
    ]
    made = run_folds(tasks, "level 2", experiment.config, out)
    _warn_of_unseen([fold[0]["unseen"] for fold in made[: len(folds)]], out)
    fitted, answers = made[: len(folds)], made[len(folds) : len(tasks) - len(repeats) * len(folds)]
    others = made[len(folds) + len(answers) :]
    for number, stacker in enumerate(stackers):
        parts = [fold[number] for fold in fitted]
        oof = pd.concat([part["oof"] for part in parts], ignore_index=True)
        order = row_positions(
            experiment.table.train["id"].iloc[predictions.rows], oof["id"], f"the rows of {stacker.name}"
        )
        own = {"oof": oof.iloc[order], "test": pd.concat([part["test"] for part in parts], ignore_index=True)}
        by_repeat = [
            [fold[number] for fold in others[start : start + len(folds)]]
            for start in range(0, len(others), len(folds))[: stacker.repeats - 1]
        ]
        frames = {
            name: mean_of_repeats(
                [frame, *(pd.concat([part[name] for part in one]) for one in by_repeat)], by_fold=name == "test"
            )
            for name, frame in own.items()
        }
        alone = np.concatenate([part["alone"] for part in parts])[order]
        if stacker.runs == ():  # for the probes of stackers that see it
            frames[ALONE] = prediction_frame(own["oof"]["id"], own["oof"]["fold"].to_numpy(), alone)
        if number == 0:
            logits = [alone]
            logits += [
                np.concatenate(answers[first : first + len(folds)])[order]
                for first in range(0, len(answers), len(folds))
            ]
            probes = [Probe(name, logit) for name, logit in zip(["alone", *probed], logits, strict=True)]
            frames["probes"] = probe_table(experiment, predictions, own["oof"]["logit"].to_numpy(), probes)
        meta = {
            "fingerprint": fingerprint(inputs[stacker.name]),
            "level": 2,
            "kind": stacker.kind,
            "inputs": inputs[stacker.name],
            "settings": stacker.model_dump(mode="json", exclude={"enabled"}),
            "made_with": made_with(stacker, experiment.config),
            "features": parts[0]["features"],
            "chosen": [part["chosen"] for part in parts],  # number of rounds, or the ridge strength
            "alignment": [note for note, _ in notes],
            "scales": scales,  # means and spreads that standardised its level-1 logits
            "excluded": left_out,
            "selected": [run.name for run in sources if run.meta["level"] == 1 and run.meta.get("selected")],
            # without the matrix, which all stackers share
            "seconds": round(sum(part["seconds"] for one in (parts, *by_repeat) for part in one), 1),
        }
        write_run(experiment.models / stacker.name, meta, frames=frames, arrays=_rotations(embeddings))


def _fit_fold(
    experiment: Experiment,
    stackers: list[Stacker],
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
    repeat: int = 0,
) -> list[dict[str, Any]]:
    """Fits every stacker on one fold's matrix and returns their predictions, one dict a stacker.

    Models of later repeats are not written, as their stackers cannot be bundled.
    """
    matrix = fold_matrix(with_all_features(experiment), embeddings, predictions, fold, ungrouped=not repeat)
    threads, ids = experiment.config.threads, experiment.table.train["id"].iloc[matrix.held_rows]
    test_z = {name: embedding.test_of(fold) for name, embedding in embeddings.items()}
    x_test = matrix.features.transform(experiment.table.test, predictions.test[fold], test_z)
    made, alone = list[dict[str, Any]](), matrix.held_ungrouped
    for stacker in stackers:
        if stacker.repeats <= repeat:
            made.append({})
            continue
        started = time.monotonic()
        bag = kept = _fit(experiment, stacker, matrix, fold)
        if stacker.name in experiment.config.tuned.gbdt:  # out-of-fold rows: nested parameters; test rows: final ones
            kept = _fit(experiment, stacker, matrix, None)
        if not repeat:
            _write_models(kept, matrix.features, experiment.models / stacker.name / f"fold_{fold}", fold)
        made.append({
            "oof": prediction_frame(ids, fold, bag.logit(matrix.held[list(bag.columns)], threads=threads)),
            "test": prediction_frame(
                experiment.table.test["id"], fold, kept.logit(x_test[list(kept.columns)], threads=threads)
            ),
            "alone": None if alone is None else bag.logit(alone[list(bag.columns)], threads=threads),
            "features": list(kept.columns),
            "chosen": kept.chosen,
            "unseen": matrix.features.unseen,
            "seconds": time.monotonic() - started,
        })  # fmt: skip
    return made


def _write_models(bag: Bag, features: FoldFeatures, folder: Path, fold: int) -> None:
    """Writes one fold's models and the features' fitted transforms to ``folder``, as a run."""
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir(parents=True)
    try:
        files = write_bag(bag, folder)
    except OSError as error:
        raise error_with_path(error, folder / "model") from error
    files.append(folder / "features.json")
    with atomic(files[-1]) as temporary:
        temporary.write_text(features.to_json(), encoding="utf-8")
    meta = {"fold": fold, "chosen": bag.chosen, "shift": bag.shift}
    write_run(folder, meta, frames={}, arrays=features.arrays(), existing_files=files)


def _probe_logits(
    experiment: Experiment,
    stacker: Stacker,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
) -> NDArray[np.float32]:
    """Returns the logits of the fold's held-out rows from a model that is not stored."""
    matrix = fold_matrix(with_all_features(experiment), embeddings, predictions, fold)
    bag = _fit(experiment, stacker, matrix, fold)
    return bag.logit(matrix.held[list(bag.columns)], threads=experiment.config.threads)


def _fit(experiment: Experiment, stacker: Stacker, matrix: FoldMatrix, excluded_fold: int | None) -> Bag:
    """Fits a stacker with the tuned parameters that were chosen without ``excluded_fold``, or on all rows if None."""
    params = tuned_params(experiment, stacker.name, excluded_fold)
    return fit_stacker(experiment, stacker, matrix, params=params, bags=stacker.bags)


def fit_stacker(
    experiment: Experiment, stacker: Stacker, matrix: FoldMatrix, *, params: Mapping[str, Any], bags: int
) -> Bag:
    """Fits ``bags`` models with the stacker's settings, and ``params`` over its own, to a fold's training rows."""
    own, inner = stacker.features_with(experiment.config.features), early_stopping_rows(experiment, matrix.train_rows)
    codes = matrix.features.categories
    return fit_bag(
        stacker.kind,
        matrix.train[view_columns(experiment.config, stacker, matrix.features)],
        experiment.target[matrix.train_rows],
        inner,
        params={**stacker.params, **params},
        seed=experiment.config.seed,
        threads=experiment.config.threads,
        bags=bags,
        negatives=stacker.negatives,
        positives=stacker.positives,
        positive_weight=stacker.positive_weight,
        increasing=matrix.features.names if stacker.monotone else (),
        gpu=stacker.device == "gpu",
        categorical=() if own.target_encoding else codes,
        estimator=stacker.estimator,
        encoded=codes if own.target_encoding else (),
        parts=encoding_parts(experiment, matrix.train_rows, inner) if own.target_encoding and codes else None,
        select=stacker.select,
    )


def _warn_of_unseen(by_fold: list[dict[str, dict[str, int]]], out: Out) -> None:
    """Warns of categories in the test rows that are absent from a fold's training rows; their indicators are all 0."""
    row_counts: dict[str, int] = {}
    for unseen in by_fold:
        for column, values in unseen.items():
            for value, rows in values.items():
                row_counts[f"{column} {value!r}"] = max(rows, row_counts.get(f"{column} {value!r}", 0))
    if row_counts:
        listed = ", ".join(f"{name} in {rows:,} rows" for name, rows in sorted(row_counts.items()))
        out.warn(
            "test rows hold categories that are absent from the training rows of some fold, where they are encoded "
            f"as no known category: {listed}"
        )


def _rotations(embeddings: Mapping[str, Embedding]) -> dict[str, NDArray[np.float32]]:
    """Returns mean and turn of each aligned run, which map the z of each fold net to shared axes: (z - mean) @ turn."""
    kept = {}
    for name, embedding in embeddings.items():
        if (alignment := embedding.alignment) is not None:
            kept[f"{name}_mean"] = alignment.mean
            kept[f"{name}_turn"] = alignment.projection
    return kept


def _runs_with_exclusions(runs: list[Run]) -> str:
    excluding = (run for run in runs if run.meta["level"] == 1 and run.meta.get("excluded"))
    return ", ".join(f"{run.name} ({run.meta['excluded']})" for run in excluding)

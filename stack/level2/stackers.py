"""Level 2: fits the stackers on the level-2 matrix over the same folds."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.listing import first_of
from stack.console import Out
from stack.experiment import Experiment
from stack.fold_needs import check_fold_needs
from stack.images import require_acquisition
from stack.level2.features import FoldMatrix, early_stopping_rows, encoding_parts, view_columns
from stack.level2.group_models import fit_group_net, require_torch
from stack.level2.inputs import made_with, stacker_inputs
from stack.level2.matrices import FiledMatrix, filed_matrices, remove_matrices
from stack.level2.stored_features import write_fold
from stack.parallel import run_with_threads, stream_folds
from stack.predictions.joined import (
    Embedding,
    Predictions,
    alignment_notes,
    net_scales,
    predictions_of,
    read_embeddings,
    standardised,
    stored_scales,
)
from stack.predictions.repeats import fold_name, mean_of_repeats, repeated
from stack.settings.level2 import Stacker, is_second_stage, source_names
from stack.store import (
    Run,
    fingerprint,
    prediction_frame,
    read_run,
    read_verified_run,
    row_positions,
    set_aside,
    write_run,
)
from stack.tuned import check_tuned_gbdt, tuned_params
from stack.views import check_seen
from tabular.estimators import make_estimator
from tabular.fit_bag import BagSettings, ColumnRoles, Sampling, fit_bag
from tabular.models import GROUP_KIND, Bag


def run_stackers(
    experiment: Experiment,
    sources: list[Run],
    out: Out,
    *,
    on_run: Callable[[Run], object] = lambda run: None,
) -> list[Run]:
    """Completes every enabled stacker on the level-1 runs ``sources``; sets a stale one aside and fits it again.

    ``on_run`` is called with each stacker as soon as it is complete. A stacker is written when its last fold is fitted,
    so that a command that is killed later finds it complete. Stackers that see models of the table alone are fitted
    after all others, on a matrix with these as further runs.
    """
    config = experiment.config
    remove_matrices(experiment)
    if config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    seen_stackers = source_names(config.stackers)
    for stacker in stackers:
        check_seen(config, stacker, [*(run.name for run in sources), *seen_stackers])
        if stacker.kind == "sklearn":
            make_estimator(stacker.estimator, stacker.params, seed=config.seed, threads=1)
        if stacker.kind == GROUP_KIND:
            require_torch(stacker.name)
    second = [stacker for stacker in stackers if is_second_stage(stacker, stackers)]
    made = _complete(experiment, [stacker for stacker in stackers if stacker not in second], sources, out, on_run)
    if second:
        made |= _complete(experiment, second, [*sources, *(made[name] for name in seen_stackers)], out, on_run)
    return [made[stacker.name] for stacker in stackers]


def _complete(
    experiment: Experiment, stackers: list[Stacker], sources: list[Run], out: Out, on_run: Callable[[Run], object]
) -> dict[str, Run]:
    """Completes the stackers of one stage, which share a matrix of the runs ``sources``, and returns their runs."""
    inputs = {stacker.name: stacker_inputs(experiment, stacker, sources) for stacker in stackers}
    kept = {stacker.name: read_run(experiment.models / stacker.name) for stacker in stackers}
    for stacker in stackers:  # check all of them before the first run is set aside
        run = kept[stacker.name]
        complete = run is not None and run.meta["inputs"] == inputs[stacker.name]
        check_tuned_gbdt(experiment, stacker, sources, complete=complete)
    todo, complete_runs = [], []
    for stacker in stackers:
        folder = experiment.models / stacker.name
        run = kept[stacker.name]
        if run and run.meta["inputs"] == inputs[stacker.name]:
            read_verified_run(folder)
            out.say(f"{stacker.name}: complete, skipped")
            complete_runs.append(run)
            continue
        if run and (aside := set_aside(folder, experiment.old)):
            out.say(f"{stacker.name}: its inputs changed; the old run is kept as {aside}")
        todo.append(stacker)
    if todo and len(todo) < len(stackers):
        todo = _with_same_scales(experiment, stackers, todo, sources, out)
    again = {stacker.name for stacker in todo}
    for run in complete_runs:
        if run.name not in again:
            on_run(run)
    if todo:
        run_with_threads(experiment.config.threads, _fit_all, experiment, todo, inputs, sources, out, on_run)
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
    on_run: Callable[[Run], object],
) -> None:
    """Fits the stackers and writes each when its last fold is fitted; the folds of the next are being fitted then."""
    predictions = predictions_of(experiment, sources)
    scales = net_scales(predictions)
    predictions = standardised(predictions, scales)
    left_out = len(experiment.target) - len(predictions.rows)
    if left_out:
        check_fold_needs(experiment, predictions.rows)
        out.say(f"level 2: {left_out} training rows are left out{_runs_with_exclusions(sources)}")
    embeddings = read_embeddings(experiment, sources)
    notes = alignment_notes(embeddings, sources)
    for note, fits in notes:
        (out.say if fits else out.warn)(note)
    repeats, k = max(stacker.repeats for stacker in stackers), experiment.folds.k
    with (
        filed_matrices(experiment, embeddings, predictions, out, repeats=repeats) as matrices,
        closing(_stream_fits(experiment, stackers, matrices, out)) as results,
    ):
        _warn_of_unseen([made.matrix.features.unseen for made in matrices[0]], out)
        for stacker in stackers:
            by_repeat = [list(islice(results, k)) for _ in range(stacker.repeats)]
            shared = {
                "alignment": [note for note, _ in notes],
                "scales": scales,  # means and spreads that standardised its level-1 logits
                "excluded": left_out,
                "selected": [run.name for run in sources if run.meta["level"] == 1 and run.meta.get("selected")],
            }
            frames, chosen = _frames(experiment, predictions, stacker, by_repeat), by_repeat[0]
            meta = {
                "fingerprint": fingerprint(inputs[stacker.name]),
                "level": 2,
                "kind": stacker.kind,
                "inputs": inputs[stacker.name],
                "settings": stacker.model_dump(mode="json", exclude={"enabled"}),
                "made_with": made_with(stacker, experiment.config),
                "features": chosen[0]["features"],
                "chosen": [part["chosen"] for part in chosen],  # number of rounds or epochs, or the ridge strength
                **shared,
                # without the matrix, which all stackers share
                "seconds": round(sum(part["seconds"] for parts in by_repeat for part in parts), 1),
            }
            folder = experiment.models / stacker.name
            on_run(write_run(folder, meta, frames=frames, arrays=_rotations(embeddings)))
        list(results)  # ends the progress bar


def _stream_fits(
    experiment: Experiment, stackers: list[Stacker], matrices: Sequence[Sequence[FiledMatrix]], out: Out
) -> Generator[dict[str, Any]]:
    """Yields what each fit made, in the order of stackers, repeats and folds."""
    tasks = [
        partial(_fit_and_predict, repeated(experiment, repeat), stacker, matrix, fold, repeat)
        for stacker in stackers
        for repeat in range(stacker.repeats)
        for fold, matrix in enumerate(matrices[repeat])
    ]
    return stream_folds(tasks, "level 2", experiment.config, out, unit="fits")


def _frames(
    experiment: Experiment, predictions: Predictions, stacker: Stacker, by_repeat: list[list[dict[str, Any]]]
) -> dict[str, pd.DataFrame]:
    """Returns the stacker's out-of-fold rows in the order of the table and its test rows, as means over repeats."""
    first = pd.concat([part["oof"] for part in by_repeat[0]], ignore_index=True)
    ids = experiment.table.train["id"].iloc[predictions.rows]
    own = {
        "oof": first.iloc[row_positions(ids, first["id"], f"the rows of {stacker.name}")],
        "test": pd.concat([part["test"] for part in by_repeat[0]], ignore_index=True),
    }
    return {
        name: mean_of_repeats(
            [frame, *(pd.concat([part[name] for part in parts]) for parts in by_repeat[1:])], by_fold=name == "test"
        )
        for name, frame in own.items()
    }


def _fit_and_predict(
    experiment: Experiment,
    stacker: Stacker,
    filed: FiledMatrix,
    fold: int,
    repeat: int,
) -> dict[str, Any]:
    """Fits a stacker on one fold's training rows and predicts its held-out rows and the test rows."""
    matrix, x_test = filed.read()
    threads = experiment.config.threads
    held, test = experiment.table.train.iloc[matrix.held_rows], experiment.table.test
    started = time.monotonic()
    bag = kept = fit_fold(experiment, stacker, matrix, fold)
    if stacker.name in experiment.config.tuned.gbdt:  # out-of-fold rows: nested parameters; test rows: final ones
        kept = fit_fold(experiment, stacker, matrix, None)
    folder = experiment.models / stacker.name / fold_name(repeat, fold)
    write_fold(folder, kept, matrix.features, {"fold": fold, "chosen": kept.chosen, "shift": kept.shift})
    return {
        "oof": prediction_frame(
            held["id"], fold, bag.logit(matrix.held[list(bag.columns)], groups=held["group"], threads=threads)
        ),
        "test": prediction_frame(
            test["id"], fold, kept.logit(x_test[list(kept.columns)], groups=test["group"], threads=threads)
        ),
        "features": list(kept.columns),
        "chosen": kept.chosen,
        "seconds": time.monotonic() - started,
    }


_MAX_UNSEEN = 5  # columns, and words of each, that a warning lists


def fit_fold(
    experiment: Experiment,
    stacker: Stacker,
    matrix: FoldMatrix,
    excluded_fold: int | None,
    *,
    bags: int | None = None,
    rounds: int | None = None,
) -> Bag:
    """Fits a stacker with the tuned parameters that were chosen without ``excluded_fold``, or on all rows if None.

    ``bags`` is the number of models, by default the stacker's own; ``rounds`` as for `fit_bag`.
    """
    params, bags = tuned_params(experiment, stacker.name, excluded_fold), stacker.bags if bags is None else bags
    return fit_stacker(experiment, stacker, matrix, params=params, bags=bags, rounds=rounds)


def fit_stacker(
    experiment: Experiment,
    stacker: Stacker,
    matrix: FoldMatrix,
    *,
    params: Mapping[str, Any],
    bags: int,
    rounds: int | None = None,
) -> Bag:
    """Fits ``bags`` models with the stacker's settings, and ``params`` over its own, to a fold's training rows."""
    own, inner = stacker.features_with(experiment.config.features), early_stopping_rows(experiment, matrix.train_rows)
    codes = matrix.features.categories
    return fit_bag(
        BagSettings(
            stacker.kind,
            {**stacker.params, **params},
            bags=bags,
            select=stacker.select,
            estimator=stacker.estimator,
            gpu=stacker.device == "gpu",
            sampling=Sampling(
                negatives=stacker.negatives, positives=stacker.positives, positive_weight=stacker.positive_weight
            ),
            columns=ColumnRoles(
                increasing=matrix.features.names if stacker.monotone else (),
                categorical=() if own.target_encoding else codes,
                encoded=codes if own.target_encoding else (),
            ),
        ),
        matrix.train[view_columns(experiment.config, stacker, matrix.features)],
        experiment.target[matrix.train_rows],
        inner,
        seed=experiment.config.seed,
        threads=experiment.config.threads,
        parts=encoding_parts(experiment, matrix.train_rows, inner) if own.target_encoding and codes else None,
        rounds=rounds,
        fit_groups=partial(fit_group_net, experiment.table.train["group"].iloc[matrix.train_rows]),
    )


def _warn_of_unseen(by_fold: list[dict[str, dict[str, int]]], out: Out) -> None:
    """Warns of categories in the test rows that are absent from a fold's training rows; their indicators are all 0."""
    row_counts: dict[str, dict[str, int]] = {}
    for unseen in by_fold:
        for column, values in unseen.items():
            of_column = row_counts.setdefault(column, {})
            for value, rows in values.items():
                of_column[value] = max(rows, of_column.get(value, 0))
    listed = []
    for column, values in sorted(row_counts.items()):
        first = sorted(values.items(), key=lambda pair: (-pair[1], pair[0]))[:_MAX_UNSEEN]
        more = f", … {len(values):,} values in all" if len(values) > len(first) else ""
        listed.append(f"{column} " + ", ".join(f"{value!r} ({rows:,})" for value, rows in first) + more)
    if listed:
        out.warn(
            "test rows hold categories that are absent from the training rows of some fold, where they are encoded "
            f"as no known category (rows in parentheses): {first_of(listed, _MAX_UNSEEN, separator='; ')}"
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
    excluding = [run for run in runs if run.meta["level"] == 1 and run.meta.get("excluded")]
    named = ", ".join(f"{run.name} ({run.meta['excluded']})" for run in excluding)
    return f", as declared by {named}" if named else ""

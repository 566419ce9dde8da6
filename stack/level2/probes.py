"""Probes of level 2: what a stacker gains from acquisition shortcuts, and loses without the rows of the image's group.

They belong to the report and change no prediction, so they are made for it, after the blend.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.experiment import Experiment
from stack.images import require_acquisition, with_acquisition
from stack.level2.features import FoldMatrix, fold_matrix
from stack.level2.group_models import read_group_net
from stack.level2.inputs import stacker_inputs
from stack.level2.stackers import fit_fold
from stack.level2.stored_features import stored_fold, stored_matrix
from stack.metrics.intervals import interval, paired_difference
from stack.parallel import Pending, ready, run_with_threads, start_together
from stack.predictions.joined import (
    Embedding,
    Predictions,
    Scales,
    predictions_of,
    read_embeddings,
    standardised,
    stored_scales,
)
from stack.settings.level2 import Stacker, is_second_stage, source_names
from stack.store import Run, fingerprint, frame_fingerprint, read_run, row_positions, write_run
from stack.tables.table import ACQUISITION
from stack.views import with_all_features
from tabular.models import GROUP_KIND, Bag, read_bag

ALONE = "alone"
_FRAME = "probes"
_VERSION = 1  # increase it when this module's results change


@dataclass(frozen=True)
class Probe:
    """Out-of-fold logits (n,) under a changed condition, which is the name, and those without the change."""

    name: str
    logit: NDArray[np.float32]
    base: NDArray[np.float32]


def make_probes(
    experiment: Experiment, stackers: Sequence[Run], sources: list[Run], out: Out
) -> tuple[Run, pd.DataFrame] | None:
    """Probes the first stacker of the config and returns its run and `probe_table`; None where there is none to probe.

    Each shortcut that is off but available is switched on, and the first model of each fold's bag is fitted again with
    it, a GBDT or set transformer with as many rounds as it has; it is compared with that model of the stacker. The
    table is kept in ``report/probes`` until the stacker changes.
    """
    return start_probes(experiment, stackers, sources).shown("probes", out)


def start_probes(
    experiment: Experiment, stackers: Sequence[Run], sources: list[Run]
) -> Pending[tuple[Run, pd.DataFrame] | None]:
    """Starts what `make_probes` makes."""
    named = {stacker.name: stacker for stacker in experiment.config.stackers if stacker.enabled}
    run = next((run for name in named for run in stackers if run.name == name), None)
    if run is None:
        return ready(None)
    if (kept := stored_probes(experiment, run)) is not None:
        return ready((run, kept))
    stacker = named[run.name]
    tables = list[Run]()
    if is_second_stage(stacker, named.values()):
        names = source_names(named.values())
        tables = [one for name in names if (one := read_run(experiment.models / name)) is not None]
        sources = [*sources, *tables]
    if experiment.config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    if run.meta["inputs"] != stacker_inputs(experiment, stacker, sources):
        return ready(None)  # the config has changed since it was fitted
    changed = _changed_experiments(experiment)
    return run_with_threads(
        experiment.config.threads, _start_probes, experiment, changed, stacker, run, sources, tables
    )


def stored_probes(experiment: Experiment, run: Run) -> pd.DataFrame | None:
    """Returns the probes of this stacker as they were last made; None where it has none, or has changed since."""
    if run.has(_FRAME):  # made by dermstack 0.2, together with the stacker
        return run.frame(_FRAME)
    kept = read_run(experiment.folder / "report" / _FRAME)
    if kept is None or kept.meta["stacker"] != run.name or kept.meta["fingerprint"] != _inputs(experiment, run):
        return None
    return kept.frame(_FRAME)


def probe_table(experiment: Experiment, predictions: Predictions, probes: Sequence[Probe]) -> pd.DataFrame:
    """Returns the AUC of each probe and its difference to the same without the change, on the same rows.

    Columns: what, rows, auc with its interval low, high, and difference with difference_low, difference_high. The probe
    `alone`, the first, predicts every image without the other rows of its group. `groups of one` and `other groups` are
    the stacker itself on these rows only; their difference is to the mean of its level-1 runs on the same rows. A part
    is left out where fewer than two of its groups hold a positive row.
    """
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    true_group = experiment.table.train["group"].iloc[predictions.rows]
    size = true_group.map(true_group.value_counts()).to_numpy()
    table = [_row(probe.name, y, probe.logit, probe.base, groups) for probe in probes]
    if not predictions.names:  # a model of the table alone has no level-1 runs to compare with
        return pd.DataFrame(table)
    plain, logit = predictions.oof.mean(axis=1), probes[0].base
    for name, rows in (("groups of one", size == 1), ("other groups", size > 1)):
        if len(np.unique(groups[rows & (y == 1)])) > 1 and (y[rows] == 0).any():  # else there is no interval
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


def _inputs(experiment: Experiment, run: Run) -> str:
    """Returns a fingerprint of what the probes depend on: the stacker and the sizes of the images, if these are known.

    The stacker's own covers its settings, level-1 runs, rows, folds and the columns of the table.
    """
    known = with_acquisition(experiment)
    sizes = "" if known is None else frame_fingerprint(known.table.train[list(ACQUISITION)])
    return fingerprint({"version": _VERSION, "stacker": run.meta["fingerprint"], "acquisition": sizes})


def _changed_experiments(experiment: Experiment) -> dict[str, Experiment]:
    """Returns a copy of the experiment for each shortcut that is off but available, switched on, by name."""
    features, found = experiment.config.features, {}
    if not features.context_counts:
        found["context_counts"] = _with_features(experiment, context_counts=True)
    if not features.shortcuts and (known := with_acquisition(experiment)) is not None:
        found["shortcuts"] = _with_features(known, shortcuts=True)
    return found


def _with_features(experiment: Experiment, **features: bool) -> Experiment:
    config = experiment.config
    return replace(
        experiment, config=config.model_copy(update={"features": config.features.model_copy(update=features)})
    )


def _start_probes(
    experiment: Experiment,
    changed: dict[str, Experiment],
    stacker: Stacker,
    run: Run,
    sources: list[Run],
    tables: list[Run],
) -> Pending[tuple[Run, pd.DataFrame] | None]:
    predictions = standardised(predictions_of(experiment, sources), stored_scales(run))
    embeddings = read_embeddings(experiment, sources)
    probed = Probed(experiment, stacker, run, tables, embeddings, predictions)
    tasks = [partial(_probe_fold, probed, changed, fold) for fold in range(experiment.folds.k)]
    return start_together(tasks, experiment.config, partial(_written_probes, experiment, run, predictions))


def _written_probes(
    experiment: Experiment, run: Run, predictions: Predictions, made: list[_ProbedFold]
) -> tuple[Run, pd.DataFrame]:
    """Returns the stacker's run and the table of its probes, from those of each fold, and keeps the table on disk."""
    fold_of = experiment.folds.frame["fold"].to_numpy()[predictions.rows]

    def joined(parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        logit = np.empty(len(fold_of), np.float32)
        for fold, part in enumerate(parts):
            logit[fold_of == fold] = part
        return logit

    plain = [fold.plain for fold in made]
    first = joined([part.first for part in plain])
    probes = [Probe(ALONE, joined([part.alone for part in plain]), joined([part.bag for part in plain]))]
    probes += [Probe(name, joined([fold.changed[name] for fold in made]), first) for name in made[0].changed]
    frame = probe_table(experiment, predictions, probes)
    folder = experiment.folder / "report" / _FRAME
    shutil.rmtree(folder, ignore_errors=True)  # stale; it can be computed again, so it is not set aside
    write_run(folder, {"fingerprint": _inputs(experiment, run), "stacker": run.name}, frames={_FRAME: frame})
    return run, frame


class Probed(NamedTuple):
    """A complete stacker that is probed, and what its features are made of."""

    experiment: Experiment
    stacker: Stacker
    run: Run
    tables: list[Run]  # stackers of the table alone that it sees
    embeddings: dict[str, Embedding]
    predictions: Predictions  # standardised as for its fit


class _PlainFold(NamedTuple):
    """Logits of a fold's held-out rows by the stacker: of its bag, of the bag without the group, of its first model."""

    bag: NDArray[np.float32]
    alone: NDArray[np.float32]
    first: NDArray[np.float32]


class _ProbedFold(NamedTuple):
    """Logits of a fold's held-out rows by the stacker, and by one model for each changed condition."""

    plain: _PlainFold
    changed: dict[str, NDArray[np.float32]]


def _probe_fold(probed: Probed, changed: dict[str, Experiment], fold: int) -> _ProbedFold:
    plain = _plain_fold(probed, fold)
    if not changed:
        return _ProbedFold(plain, {})
    experiment, stacker, run, _, embeddings, predictions = probed
    # One matrix with the columns of all changes, of which each model sees its own.
    *_, widest = changed.values()  # the last one has the columns of image files too, where these are known
    features = stacker.features_with(experiment.config.features).model_copy(update=dict.fromkeys(changed, True))
    matrix = stored_matrix(widest, features, run, embeddings, predictions, fold)
    logits = {name: _changed_logit(one, stacker, run, matrix, fold) for name, one in changed.items()}
    return _ProbedFold(plain, logits)


def _plain_fold(probed: Probed, fold: int) -> _PlainFold:
    experiment, stacker, run, tables, embeddings, predictions = probed
    if tables:
        predictions = _with_rows_alone(experiment, tables, stored_scales(run), embeddings, predictions, fold)
    features, refits = stacker.features_with(experiment.config.features), not _is_stored(experiment, stacker)
    matrix = stored_matrix(experiment, features, run, embeddings, predictions, fold, ungrouped=True, train_too=refits)
    assert matrix.held_ungrouped is not None
    bag = _bag(experiment, stacker, run, matrix, fold)
    columns, threads, groups = list(bag.columns), experiment.config.threads, _groups(experiment, matrix)
    held, alone = matrix.held[columns], matrix.held_ungrouped[columns]
    first = replace(bag, models=bag.models[:1])
    if _is_stored(experiment, stacker) and stacker.repeats == 1:  # the models on disk made the stacker's predictions
        logit = _predicted(experiment, run, matrix)
    else:
        logit = bag.logit(held, groups=groups, threads=threads)
    return _PlainFold(
        logit,
        bag.logit(alone, threads=threads),
        first.logit(held, groups=groups, threads=threads) if len(bag.models) > 1 else logit,
    )


def _predicted(experiment: Experiment, run: Run, matrix: FoldMatrix) -> NDArray[np.float32]:
    """Returns the out-of-fold logits of the matrix's held-out rows."""
    oof, ids = run.frame("oof"), experiment.table.train["id"].iloc[matrix.held_rows]
    place = row_positions(ids, oof["id"], f"the rows of {run.name}")
    return oof["logit"].to_numpy(np.float32)[place]


def _with_rows_alone(
    experiment: Experiment,
    tables: list[Run],
    scales: Scales,
    embeddings: dict[str, Embedding],
    predictions: Predictions,
    fold: int,
) -> Predictions:
    """Adds the logits of the fold's held-out rows by models of the table, each row without the others of its group.

    A level-1 run predicts each image by itself, so that its logits are the same. What the rows of the group change is
    taken from the models on disk, which are those of the first repeat. Columns of the table depend on no logits.
    """
    matrix = fold_matrix(with_all_features(experiment), embeddings, predictions, fold, ungrouped=True)
    assert matrix.held_ungrouped is not None
    held = np.isin(predictions.rows, matrix.held_rows)
    alone, threads = predictions.oof.copy(), experiment.config.threads
    by_name = {stacker.name: stacker for stacker in experiment.config.stackers}
    for run in tables:
        bag, column = _bag(experiment, by_name[run.name], run, matrix, fold), predictions.names.index(run.name)
        columns, groups = list(bag.columns), _groups(experiment, matrix)
        together = bag.logit(matrix.held[columns], groups=groups, threads=threads)
        single = bag.logit(matrix.held_ungrouped[columns], threads=threads)
        alone[held, column] += (single - together) / scales[run.name][fold][1]
    return replace(predictions, alone=alone)


def _bag(experiment: Experiment, stacker: Stacker, run: Run, matrix: FoldMatrix, fold: int) -> Bag:
    """Returns the stacker's models of a fold, or one model that is fitted like them where they are not on disk."""
    if _is_stored(experiment, stacker):
        return _stored_bag(run, fold)
    return fit_fold(experiment, stacker, matrix, fold, bags=1)


def _stored_bag(run: Run, fold: int) -> Bag:
    kept = stored_fold(run, fold)
    return read_bag(str(run.meta["kind"]), kept.folder, shift=float(kept.meta["shift"]), read_groups=read_group_net)


def _changed_logit(
    experiment: Experiment, stacker: Stacker, run: Run, matrix: FoldMatrix, fold: int
) -> NDArray[np.float32]:
    """Returns the logits of the fold's held-out rows from one model with the changed features, which is not stored."""
    has_rounds = stacker.is_gbdt or stacker.kind == GROUP_KIND
    rounds = int(run.meta["chosen"][fold][0]) if has_rounds and _is_stored(experiment, stacker) else None
    bag = fit_fold(experiment, stacker, matrix, fold, bags=1, rounds=rounds)
    groups = _groups(experiment, matrix)
    return bag.logit(matrix.held[list(bag.columns)], groups=groups, threads=experiment.config.threads)


def _groups(experiment: Experiment, matrix: FoldMatrix) -> pd.Series:
    """Returns the group of each held-out row of the matrix."""
    return experiment.table.train["group"].iloc[matrix.held_rows]


def _is_stored(experiment: Experiment, stacker: Stacker) -> bool:
    """Whether the models on disk are those that predicted the out-of-fold rows.

    Classifiers of scikit-learn are not kept; with a study, the stored models have parameters that were chosen on the
    held-out rows too.
    """
    return stacker.kind != "sklearn" and stacker.name not in experiment.config.tuned.gbdt

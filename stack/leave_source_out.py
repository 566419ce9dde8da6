"""Leave-source-out: fits level 2 and the blend again with folds of whole sources, beside the estimate by groups."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from dermstack.errors import DataError
from stack.config import Tuned
from stack.console import Out
from stack.experiment import Experiment
from stack.fold_needs import check_fold_needs
from stack.images import require_acquisition, with_acquisition
from stack.ledger import flat_settings, ledger_settings
from stack.level2 import run_stackers
from stack.metrics.by_source import auc_over_sources, difference_over_sources
from stack.metrics.intervals import Interval, paired_difference
from stack.run_settings import by_name, differing_settings, settings_of
from stack.source_estimates import (
    HELD_OUT,
    LEVEL_2_ONLY,
    OWN,
    REFITTED,
    RESULT,
    SEEN,
    STRICTEST_FIRST,
    TRAINED_AGAIN,
    LeaveSourceOut,
    SourceEstimate,
    source_facts,
    write_leave_source_out,
)
from stack.source_folds import folds_by_source, source_units, torn_units
from stack.store import Run, read_frame, read_run, read_runs
from stack.submission import run_blend
from stack.views import all_runs, blends_run, sees_run

FOLDER = "leave_source_out"  # in the experiment's folder: runs of level 2 and the blend with folds of sources
_OTHER_SETTINGS = ("folds.", "runs", "cache", "threads", "n_jobs", "tracking", "estimate.", "experiment")
_MAX_LISTED = 5

Scored = tuple[SourceEstimate, pd.DataFrame]  # with the out-of-fold rows of its blend


def run_leave_source_out(experiment: Experiment, level1: Sequence[Run], blend: Run, out: Out) -> LeaveSourceOut | None:
    """Makes the estimates with sources held out and writes them; None where no source is known or they are off.

    With folds of groups, stackers and blend are fitted again on the level-1 runs with folds of sources, under
    leave_source_out/ in the experiment's folder; complete runs are kept. The experiment `Config.name_by_source`, whose
    image models were trained with folds of sources, is a further estimate. Nothing is made for shuffled targets.
    Warns, and returns None, where sources are too few or rows have no source.
    """
    config, path = experiment.config, experiment.folder / RESULT
    if not config.estimate.leave_source_out or not config.data.has_sources or experiment.shuffled:
        path.unlink(missing_ok=True)
        return None
    ids, used = experiment.table.train["id"], _used(experiment, level1)
    try:
        units = source_units(experiment.table.train["source"], experiment.split_group)
        unit = pd.Series(units.unit, index=ids)
        made = [_scored(experiment, blend, OWN, used, unit, None)]
        if made[0][0].held_out == SEEN:
            refitted = _fitted_again(experiment, level1, out)
            made.append(_scored(experiment, refitted, REFITTED, used, unit, made[0][1]))
            if made[-1][0].held_out != HELD_OUT and (again := _trained_again(experiment, unit, made[0][1], out)):
                made.append(again)
    except DataError as error:
        out.warn(f"no leave-source-out estimate: {error}")
        path.unlink(missing_ok=True)
        return None
    _, oof = min(made, key=lambda one: STRICTEST_FIRST.index(one[0].held_out))
    shown = with_acquisition(experiment) or experiment
    facts = source_facts(
        shown, experiment.rows_of(oof["id"]), unit.loc[oof["id"]].to_numpy(object), oof["p_calibrated"].to_numpy()
    )
    result = LeaveSourceOut(
        config.objective, blend.meta["fingerprint"], tuple(one for one, _ in made), facts, units.joined,
        units.shared_groups, untuned=len(made) > 1 and (bool(config.tuned.gbdt) or config.tuned.blend is not None),
    )  # fmt: skip
    write_leave_source_out(experiment.folder, result)
    return result


def _used(experiment: Experiment, level1: Sequence[Run]) -> list[Run]:
    """Returns the level-1 runs that the blend or an enabled stacker sees."""
    config = experiment.config
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    return [
        run
        for run in level1
        if blends_run(config, run.name) or any(sees_run(config, stacker, run.name) for stacker in stackers)
    ]


def _fitted_again(experiment: Experiment, level1: Sequence[Run], out: Out) -> Run:
    """Returns the blend of stackers that were fitted with folds of sources on the same level-1 runs."""
    config, table = experiment.config, experiment.table
    if config.all_features.shortcuts:
        table = require_acquisition(experiment).table
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        settings = config.folds
        folds = folds_by_source(
            experiment.folds, table.train, k=experiment.folds.k, seed=settings.seed, stratify=settings.stratify
        )
    for warning in caught:
        out.warn(f"leave-source-out: {warning.message}")
    settings = settings.model_copy(update={"by": "source", "file": None})
    name, columns = f"{experiment.name}/{FOLDER}", config.data.columns.model_copy(update={"fold": None})
    config = config.model_copy(update={
        "experiment": name, "folds": settings, "data": config.data.model_copy(update={"columns": columns}),
        "tuned": Tuned(image=config.tuned.image),
    })  # fmt: skip
    table = replace(table, test=table.test.iloc[:0])  # nothing but its score on the training rows is wanted
    by_source = replace(experiment, name=name, config=config, folds=folds, table=table, as_read=table)
    check_fold_needs(by_source)
    out.say(f"leave-source-out: level 2 and blend again, with {folds.k} folds of whole sources …")
    runs = list(level1) + run_stackers(by_source, list(level1), out)
    blend = run_blend(by_source, runs, out)
    shutil.rmtree(by_source.old, ignore_errors=True)  # the experiment's own stale runs are kept; these follow from them
    return blend


def _trained_again(experiment: Experiment, unit: pd.Series, own: pd.DataFrame, out: Out) -> Scored | None:
    """Returns the estimate of the experiment by source, if it is complete and has the same rows and targets."""
    name = experiment.config.name_by_source
    folder = experiment.config.runs / name
    if not (folder / "blend" / "run.json").is_file():
        return None
    blend = read_run(folder / "blend")
    assert blend is not None
    table = read_frame(folder / "table.parquet", remedy="dermstack stack")
    theirs = table[table["part"] == "train"].set_index("id")["target"].reindex(unit.index)
    if len(lost := unit.index[theirs.isna()]):
        out.warn(f"{name} is left out: it lacks {len(lost):,} training rows, first {lost[0]}; make it again")
        return None
    if (theirs.to_numpy() != experiment.target).any():
        out.warn(f"{name} is left out: its targets differ; make it again")
        return None
    runs = [run for run in read_runs(folder / "models") if run.meta["level"] == 1 and run.name in all_runs(blend)]
    made = _scored(experiment, blend, TRAINED_AGAIN, runs, unit, own)
    if made[0].held_out != HELD_OUT:
        out.warn(f"{name} is left out: sources as they are named now are in more than one of its folds; make it again")
        return None
    if other := _other_settings(experiment, name, blend):
        note = f"made with other settings: {', '.join(other[:_MAX_LISTED])}{', …' if len(other) > _MAX_LISTED else ''}"
        out.warn(f"{name}: {note}")
        made = replace(made[0], note=note), made[1]
    return made


def _other_settings(experiment: Experiment, name: str, blend: Run) -> list[str]:
    """Returns the keys in which the experiment by source differs, apart from its folds; [] without a record of them."""
    theirs = settings_of(experiment.config.runs, name, blend)
    if theirs is None:
        return []
    ours = by_name(flat_settings(ledger_settings(experiment.config)))
    found = differing_settings({"ours": ours, "theirs": theirs})
    return [key for key in map(str, found.index) if not key.startswith(_OTHER_SETTINGS)]


def _scored(
    experiment: Experiment, blend: Run, origin: str, level1: Sequence[Run], unit: pd.Series, own: pd.DataFrame | None
) -> Scored:
    """Returns the estimate of a ``blend`` of ``level1`` runs, compared with that of the rows ``own``."""
    oof = blend.frame("oof")
    rows = experiment.rows_of(oof["id"])
    y, group, source = experiment.target[rows], experiment.split_group[rows], unit.loc[oof["id"]].to_numpy(object)
    score = oof["score"].to_numpy(np.float64)
    seen_by = tuple(run.name for run in level1 if _has_seen(run, unit))
    held_out = SEEN if torn_units(source, oof["fold"]) else LEVEL_2_ONLY if seen_by else HELD_OUT
    estimate = SourceEstimate(
        origin, held_out, seen_by, int(oof["fold"].nunique()), len(oof), Interval(**blend.meta["headline"]),
        auc_over_sources(y, score, group, source),
    )  # fmt: skip
    if own is None:
        return estimate, oof
    other = own.set_index("id")["score"].reindex(oof["id"]).to_numpy(np.float64)
    if np.isnan(other).any():
        raise DataError(f"{int(np.isnan(other).sum())} rows of {blend.folder} are not in the blend: make it again")
    change = difference_over_sources(y, score, other, group, source)
    difference = None if change is None else Interval(change.mean, change.low, change.high, np.nan)
    pooled = paired_difference(str(blend.meta["objective"]), y, score, other, group)
    return replace(estimate, pooled_difference=pooled, difference=difference), oof


def _has_seen(run: Run, unit: pd.Series) -> bool:
    """Whether nets of a run had seen other rows of the sources that they score, or may have: its folds are not known."""
    oof = run.frame("oof")
    known = oof[oof["id"].isin(unit.index)]
    if known["fold"].nunique() < 2:  # imported without folds
        return True
    return bool(torn_units(unit.loc[known["id"]].to_numpy(object), known["fold"]))

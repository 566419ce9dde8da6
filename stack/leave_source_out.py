"""Leave-source-out: fits level 2 and the blend again with folds of whole sources, beside the estimate by groups."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dermstack.errors import DataError
from stack.config import Tuned
from stack.console import Out
from stack.experiment import Experiment
from stack.fold_needs import check_fold_needs
from stack.folds import Folds
from stack.images import require_acquisition, with_acquisition
from stack.ledger import flat_settings, ledger_settings
from stack.level2 import run_stackers
from stack.level2_config import Features
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
from stack.source_folds import folds_by_source, main_sources, source_units, torn_units
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
    used = _used(experiment, level1)
    try:
        sources = _sources_of(experiment, blend)
        made = [_scored(experiment, sources, blend, OWN, used, None)]
        if made[0][0].held_out == SEEN:
            refitted = _fitted_again(experiment, sources, level1, out)
            made.append(_scored(experiment, sources, refitted, REFITTED, used, made[0][1]))
            if made[-1][0].held_out != HELD_OUT and (again := _trained_again(experiment, sources, made[0][1], out)):
                made.append(again)
    except DataError as error:
        out.warn(f"no leave-source-out estimate: {error}")
        path.unlink(missing_ok=True)
        return None
    _, oof = min(made, key=lambda one: STRICTEST_FIRST.index(one[0].held_out))
    oof = oof[sources.kept.loc[oof["id"]].to_numpy()]
    facts = source_facts(
        with_acquisition(experiment) or experiment,
        experiment.rows_of(oof["id"]),
        sources.unit.loc[oof["id"]].to_numpy(object),
        oof["p_calibrated"].to_numpy(np.float64),
    )
    result = LeaveSourceOut(
        config.objective, blend.meta["fingerprint"], tuple(one for one, _ in made), facts, sources.joined,
        sources.shared_groups, int((~sources.kept).sum()),
        untuned=len(made) > 1 and (bool(config.tuned.gbdt) or config.tuned.blend is not None),
    )  # fmt: skip
    write_leave_source_out(experiment.folder, result)
    return result


@dataclass(frozen=True)
class _Sources:
    """The sources of the training rows, by id."""

    named: pd.Series  # as the table names them
    unit: pd.Series  # what is held out as a whole
    kept: pd.Series  # whether a row is used: False for rows of another source than their group's main one
    joined: tuple[str, ...]
    shared_groups: int


def _sources_of(experiment: Experiment, blend: Run) -> _Sources:
    """Returns the units: joined sources where the experiment's folds hold these out, else each group's main source."""
    train, group = experiment.table.train, experiment.split_group
    units = source_units(train["source"], group)
    named = train["source"].astype(str)
    oof, by_id = blend.frame("oof"), pd.Index(train["id"])
    if not torn_units(named.to_numpy()[experiment.rows_of(oof["id"])], oof["fold"]):
        every = np.ones(len(named), bool)
        unit, kept, joined, shared = units.unit, every, units.joined, units.shared_groups
    else:
        main = main_sources(train["source"], group)
        unit, kept, joined, shared = main.unit, ~main.left_out, (), main.groups
    return _Sources(
        pd.Series(named.to_numpy(object), index=by_id), pd.Series(unit, index=by_id), pd.Series(kept, index=by_id),
        joined, shared,
    )  # fmt: skip


def _used(experiment: Experiment, level1: Sequence[Run]) -> list[Run]:
    """Returns the level-1 runs whose predictions the blend or an enabled stacker uses.

    Of a frozen run, the embeddings alone do not count: its backbone was trained on no row of the experiment, only its
    head was, and that is in its logits.
    """
    config = experiment.config
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    return [
        run
        for run in level1
        if blends_run(config, run.name)
        or any(
            sees_run(config, stacker, run.name)
            and (run.meta["kind"] != "frozen" or _uses_logits(stacker.features_with(config.features)))
            for stacker in stackers
        )
    ]


def _uses_logits(features: Features) -> bool:
    return features.logits or features.aggregates or features.cohort or features.probability_ratio


def _fitted_again(experiment: Experiment, sources: _Sources, level1: Sequence[Run], out: Out) -> Run:
    """Returns the blend of stackers that were fitted with folds of sources on the same level-1 runs.

    Rows of a group outside its main source are left out, so that each fold holds out whole sources and whole groups.
    """
    config, table = experiment.config, experiment.table
    if config.all_features.shortcuts:
        table = require_acquisition(experiment).table
    train = table.train.assign(source=sources.unit.to_numpy(object))
    kept, settings = sources.kept.to_numpy(bool), config.folds
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        some = folds_by_source(
            Folds(experiment.folds.frame[kept]), train[kept], k=experiment.folds.k, seed=settings.seed,
            stratify=settings.stratify,
        )  # fmt: skip
    for warning in caught:
        out.warn(f"leave-source-out: {warning.message}")
    number = some.frame["fold"].groupby(train["source"].to_numpy()[kept]).first()
    folds = Folds(experiment.folds.frame.assign(fold=train["source"].map(number).to_numpy(np.int8)))
    settings = settings.model_copy(update={"by": "source", "file": None})
    name, columns = f"{experiment.name}/{FOLDER}", config.data.columns.model_copy(update={"fold": None})
    config = config.model_copy(update={
        "experiment": name, "folds": settings, "data": config.data.model_copy(update={"columns": columns}),
        "tuned": Tuned(image=config.tuned.image), "review": None,
    })  # fmt: skip
    table = replace(table, train=train, test=table.test.iloc[:0])  # only its score on the training rows is wanted
    by_source = replace(
        experiment, name=name, config=config, folds=folds, table=table, as_read=table,
        left_out=None if kept.all() else ~kept,
    )  # fmt: skip
    check_fold_needs(by_source, np.flatnonzero(kept))
    out.say(f"leave-source-out: level 2 and blend again, with {folds.k} folds of whole sources …")
    runs = list(level1) + run_stackers(by_source, list(level1), out)
    blend = run_blend(by_source, runs, out)
    shutil.rmtree(by_source.old, ignore_errors=True)  # the experiment's own stale runs are kept; these follow from them
    return blend


def _trained_again(experiment: Experiment, sources: _Sources, own: pd.DataFrame, out: Out) -> Scored | None:
    """Returns the estimate of the experiment by source, if it is complete and has the same rows and targets."""
    name = experiment.config.name_by_source
    folder = experiment.config.runs / name
    if not (folder / "blend" / "run.json").is_file():
        return None
    blend = read_run(folder / "blend")
    assert blend is not None
    table = read_frame(folder / "table.parquet", remedy="dermstack stack")
    theirs = table[table["part"] == "train"].set_index("id")["target"]
    kept = sources.kept.to_numpy()
    theirs = theirs.reindex(sources.kept.index[kept])
    if len(lost := theirs.index[theirs.isna()]):
        out.warn(f"{name} is left out: it lacks {len(lost):,} training rows, first {lost[0]}; make it again")
        return None
    if (theirs.to_numpy() != experiment.target[kept]).any():
        out.warn(f"{name} is left out: its targets differ; make it again")
        return None
    runs = [run for run in read_runs(folder / "models") if run.meta["level"] == 1 and run.name in all_runs(blend)]
    made = _scored(experiment, sources, blend, TRAINED_AGAIN, runs, own)
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
    experiment: Experiment,
    sources: _Sources,
    blend: Run,
    origin: str,
    level1: Sequence[Run],
    own: pd.DataFrame | None,
) -> Scored:
    """Returns the estimate of a ``blend`` of ``level1`` runs, compared with that of the rows ``own``."""
    oof = blend.frame("oof")
    seen_by = tuple(run.name for run in level1 if _has_seen(run, sources.named))
    named = sources.named.loc[oof["id"]].to_numpy(object)
    kept = sources.kept.loc[oof["id"]].to_numpy(bool)
    is_torn = torn_units(named[kept], oof["fold"].to_numpy()[kept])
    held_out = SEEN if is_torn else LEVEL_2_ONLY if seen_by else HELD_OUT
    used = oof[kept]  # within sources, every estimate has the same rows
    rows, score = experiment.rows_of(used["id"]), used["score"].to_numpy(np.float64)
    y, group, source = (
        experiment.target[rows],
        experiment.split_group[rows],
        sources.unit.loc[used["id"]].to_numpy(object),
    )
    estimate = SourceEstimate(
        origin, held_out, seen_by, int(oof["fold"].nunique()), len(oof), Interval(**blend.meta["headline"]),
        auc_over_sources(y, score, group, source),
    )  # fmt: skip
    if own is None:
        return estimate, oof
    other = own.set_index("id")["score"].reindex(used["id"]).to_numpy(np.float64)
    if np.isnan(other).any():
        raise DataError(f"{int(np.isnan(other).sum())} rows of {blend.folder} are not in the blend: make it again")
    change = difference_over_sources(y, score, other, group, source)
    difference = None if change is None else Interval(change.mean, change.low, change.high, np.nan)
    pooled = paired_difference(str(blend.meta["objective"]), y, score, other, group)
    return replace(estimate, pooled_difference=pooled, difference=difference), oof


def _has_seen(run: Run, named: pd.Series) -> bool:
    """Whether nets of a run had seen other rows of the sources that they score, or may have, without known folds."""
    oof = run.frame("oof")
    known = oof[oof["id"].isin(named.index)]
    if known["fold"].nunique() < 2:  # imported without folds
        return True
    return bool(torn_units(named.loc[known["id"]].to_numpy(object), known["fold"]))

"""Leave-source-out: fits level 2 and the blend again with folds of whole sources, beside the estimate by groups."""

from __future__ import annotations

import shutil
from collections.abc import Container, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import DataError
from dermstack.listing import first_of
from stack.console import Out
from stack.experiment import BY_SOURCE, Experiment
from stack.images import require_acquisition, with_acquisition
from stack.ledger import flat_settings, ledger_settings
from stack.level2.stackers import run_stackers
from stack.metrics.by_source import auc_over_sources, difference_over_sources
from stack.metrics.intervals import Interval, interval, paired_difference
from stack.predictions.one_share import at_one_share, compares_images, moves_scores, refits_level2, shift_to_one_share
from stack.run_settings import by_name, differing_settings, settings_of
from stack.settings.level2 import Features
from stack.source_experiment import Sources, experiment_by_source, sources_of_rows, units_of_sources
from stack.source_folds import torn_units
from stack.sources.estimates import (
    HELD_OUT,
    LEVEL_2_ONLY,
    OWN,
    REFITTED,
    RESULT,
    SEEN,
    STRICTEST_FIRST,
    TRAINED_AGAIN,
    LeaveSourceOut,
    RunBySource,
    SourceEstimate,
    source_facts,
    write_leave_source_out,
)
from stack.store import Run, read_frame, read_run, read_runs
from stack.submission import run_blend
from stack.unit_rows import scored_experiment
from stack.views import all_runs, blends_run, sees_run

FOLDER = BY_SOURCE  # in the experiment's folder: runs of level 2 and the blend with folds of sources
_OTHER_SETTINGS = ("folds.", "runs", "cache", "threads", "n_jobs", "tracking", "estimate.", "experiment")

Scored = tuple[SourceEstimate, pd.DataFrame]  # with the out-of-fold rows of its blend


def run_leave_source_out(
    experiment: Experiment, level1: Sequence[Run], blend: Run, out: Out, *, again: Sequence[Run] | None = None
) -> LeaveSourceOut | None:
    """Makes the estimates with sources held out and writes them; None where no source is known or they are off.

    With folds of groups, stackers and blend are fitted again with folds of sources, under leave_source_out/ in the
    experiment's folder; complete runs are kept. They are fitted on the runs ``again`` of the image models that were
    trained with folds of sources (`stack.sources.training`) and else on ``level1``. The experiment
    `Config.name_by_source`, all of whose folds are of sources, is a further estimate where these have seen sources.
    Nothing is made for shuffled targets. Warns, and returns None, where sources are too few or rows have no source.
    """
    config, path = experiment.config, experiment.folder / RESULT
    if not config.estimate.leave_source_out or not config.data.has_sources or experiment.shuffled:
        path.unlink(missing_ok=True)
        return None
    used, trained = _used(experiment, level1), {run.name: run for run in again or ()}
    compared: tuple[RunBySource, ...] = ()
    try:
        sources = units_of_sources(experiment, _scored_images(experiment, blend))
        made = [_scored(experiment, sources, blend, OWN, used)]
        if made[0][0].held_out == SEEN:
            copy = experiment_by_source(
                require_acquisition(experiment) if config.all_features.shortcuts else experiment, sources, out
            )
            for run in trained.values():
                assert run.meta["inputs"]["rows or folds"] == copy.rows_fingerprint, f"{run.folder} has these folds"
            of_sources = [trained.get(run.name, run) for run in level1]
            again_blended, at_one = _fitted_again(copy, of_sources, out)
            made.append(_scored(
                experiment, sources, again_blended, TRAINED_AGAIN if trained else REFITTED,
                _used(experiment, of_sources), own=made[0][1], trained=set(trained), at_one=at_one,
            ))  # fmt: skip
            compared = tuple(
                _compared(experiment, sources, run, trained[run.name], copy) for run in level1 if run.name in trained
            )
            if made[-1][0].held_out != HELD_OUT and (other := _trained_again(experiment, sources, made[0][1], out)):
                made.append(other)
    except DataError as error:
        out.warn(f"no leave-source-out estimate: {error}")
        path.unlink(missing_ok=True)
        return None
    _, oof = min(made, key=lambda one: STRICTEST_FIRST.index(one[0].held_out))
    of_rows = sources_of_rows(experiment, sources)
    scored = scored_experiment(with_acquisition(experiment) or experiment)
    oof = oof[of_rows.kept.loc[oof["id"]].to_numpy(bool)]
    facts = source_facts(
        scored,
        scored.rows_of(oof["id"]),
        of_rows.unit.loc[oof["id"]].to_numpy(object),
        oof["p_calibrated"].to_numpy(np.float64),
    )
    nets = any(run.meta["kind"] in ("image", "frozen") for run in used)
    result = LeaveSourceOut(
        config.objective, blend.meta["fingerprint"], tuple(one for one, _ in made), facts, sources.joined,
        sources.shared_groups, int((~sources.kept).sum()),
        untuned=len(made) > 1 and (bool(config.tuned.gbdt) or config.tuned.blend is not None),
        runs=compared, external=tuple(sorted(experiment.external["source"].unique())) if nets else (),
    )  # fmt: skip
    write_leave_source_out(experiment.folder, result)
    return result


def _scored_images(experiment: Experiment, blend: Run) -> NDArray[np.intp]:
    """Returns the training rows that a blend scores, as images or as parts of its units."""
    ids = blend.frame("oof")["id"]
    if experiment.table.units is None:
        return experiment.rows_of(ids)
    of_images = experiment.table.units.loc[experiment.table.train["id"]]
    return np.flatnonzero(of_images.isin(ids).to_numpy())


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


def _fitted_again(copy: Experiment, level1: Sequence[Run], out: Out) -> tuple[Run, Run | None]:
    """Returns the blend of stackers that were fitted on these level-1 runs with the folds of the ``copy`` by source.

    Within a source it is read as it is. To compare images of several sources there is the second one, of the same runs
    with scores at one share of positives; None where none can be moved, or a loss is of each image by itself.
    """
    out.say(f"leave-source-out: level 2 and blend again, with {copy.folds.k} folds of whole sources …")
    runs, moved = list(level1) + run_stackers(copy, list(level1), out), at_one_share(copy)
    blend, at_one = run_blend(copy, runs, out), None
    if compares_images(copy.config.objective) and moves_scores(copy, runs):
        out.say("leave-source-out: the blend once more, of scores at one share of positives …")
        if refits_level2(copy, moves_level1=moves_scores(copy, level1)):
            runs = list(level1) + run_stackers(moved, list(level1), out)
        at_one = run_blend(moved, runs, out)
    elif moved.folder.exists():
        shutil.rmtree(moved.folder)
    for folder in [*copy.old.glob("*"), *moved.old.glob("*")]:
        # stale fits of the experiment itself are kept, and these follow from them
        if (run := read_run(folder)) is not None and run.meta["level"] > 1:  # a rebuild can take back trained nets
            shutil.rmtree(folder)
    return blend, at_one


def _compared(experiment: Experiment, sources: Sources, run: Run, again: Run, copy: Experiment) -> RunBySource:
    """Returns the scores of an image model with folds of groups and, trained ``again``, of sources, on equal rows.

    Over all images, those by source are compared at one share of positives.
    """
    kept = sources.kept.index[sources.kept.to_numpy()]
    rows, unit = experiment.rows_of(kept), sources.unit.loc[kept].to_numpy(object)
    y, group, objective = experiment.target[rows], experiment.split_group[rows], experiment.config.objective
    groups, held = (one.frame("oof").set_index("id")["p"].loc[kept].to_numpy(np.float64) for one in (run, again))
    pooled, shift = held, shift_to_one_share(copy, again)
    if compares_images(objective) and shift is not None:
        pooled = expit(again.frame("oof").set_index("id")["logit"].loc[kept].to_numpy(np.float64) + shift[rows])
    change = difference_over_sources(y, held, groups, group, unit)
    return RunBySource(
        run.name, str(run.meta["kind"]), bool(again.meta.get("selected")), len(rows),
        interval(objective, y, groups, group), interval(objective, y, pooled, group),
        paired_difference(objective, y, pooled, groups, group),
        auc_over_sources(y, groups, group, unit), auc_over_sources(y, held, group, unit),
        None if change is None else Interval(change.mean, change.low, change.high, np.nan),
    )  # fmt: skip


def _trained_again(experiment: Experiment, sources: Sources, own: pd.DataFrame, out: Out) -> Scored | None:
    """Returns the estimate of the experiment by source, if it is complete and has the same rows and targets."""
    name = experiment.config.name_by_source
    folder = experiment.config.runs / name
    if not (folder / "blend" / "run.json").is_file():
        return None
    blend = read_run(folder / "blend")
    assert blend is not None
    if (blend.meta.get("units") is None) != (experiment.table.units is None):
        out.warn(f"{name} is left out: one of the two experiments predicts images, the other units; make it again")
        return None
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
    made = _scored(experiment, sources, blend, TRAINED_AGAIN, runs, own=own)
    if made[0].held_out != HELD_OUT:
        out.warn(f"{name} is left out: sources as they are named now are in more than one of its folds; make it again")
        return None
    if other := _other_settings(experiment, name, blend):
        note = f"made with other settings: {first_of(other)}"
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
    sources: Sources,
    blend: Run,
    origin: str,
    level1: Sequence[Run],
    *,
    own: pd.DataFrame | None = None,
    trained: Container[str] = (),
    at_one: Run | None = None,
) -> Scored:
    """Returns the estimate of a ``blend`` of ``level1`` runs, compared with that of the rows ``own``.

    The runs ``trained`` are those of the copy by source: rows of a group outside its main source trained none of their
    nets, so these rows do not make a net one that has seen the source. The blend ``at_one``, of scores at one share of
    positives, gives what compares images of several sources: the pooled value and the calibration.
    """
    oof = blend.frame("oof")
    kept_of = {run.name: sources.kept.to_numpy() if run.name in trained else slice(None) for run in level1}
    seen = [run for run in level1 if _has_seen(run, sources.named[kept_of[run.name]])]
    scored, of_rows = scored_experiment(experiment), sources_of_rows(experiment, sources)
    named = of_rows.named.loc[oof["id"]].to_numpy(object)
    kept = of_rows.kept.loc[oof["id"]].to_numpy(bool)
    is_torn = torn_units(named[kept], oof["fold"].to_numpy()[kept])
    held_out = SEEN if is_torn else LEVEL_2_ONLY if seen else HELD_OUT
    used = oof[kept]  # within sources, every estimate has the same rows
    rows, score = scored.rows_of(used["id"]), used["score"].to_numpy(np.float64)
    y, group, source = scored.target[rows], scored.split_group[rows], of_rows.unit.loc[used["id"]].to_numpy(object)
    estimate = SourceEstimate(
        origin,
        held_out,
        tuple(run.name for run in seen),
        int(oof["fold"].nunique()),
        len(oof),
        Interval(**(at_one or blend).meta["headline"]),
        auc_over_sources(y, score, group, source),
        imported=tuple(run.name for run in seen if run.meta["kind"] == "imported"),
    )
    if at_one is not None:
        imported = (run.name for run in level1 if run.meta["kind"] == "imported" and run.name not in estimate.seen_by)
        estimate = replace(estimate, as_fitted=Interval(**blend.meta["headline"]), unknown_share=tuple(imported))
    if own is None:
        return estimate, oof
    other = own.set_index("id")["score"].reindex(used["id"]).to_numpy(np.float64)
    if np.isnan(other).any():
        raise DataError(f"{int(np.isnan(other).sum())} rows of {blend.folder} are not in the blend: make it again")
    change = difference_over_sources(y, score, other, group, source)
    difference = None if change is None else Interval(change.mean, change.low, change.high, np.nan)
    if at_one is not None:
        oof = at_one.frame("oof")
        score = oof.set_index("id")["score"].loc[used["id"]].to_numpy(np.float64)
    pooled = paired_difference(str(blend.meta["objective"]), y, score, other, group)
    return replace(estimate, pooled_difference=pooled, difference=difference), oof


def _has_seen(run: Run, named: pd.Series) -> bool:
    """Whether nets of a run had seen other rows of the sources that they score, or may have, without known folds."""
    oof = run.frame("oof")
    known = oof[oof["id"].isin(named.index)]
    if known["fold"].nunique() < 2:  # imported without folds
        return True
    return bool(torn_units(named.loc[known["id"]].to_numpy(object), known["fold"]))

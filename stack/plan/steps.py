"""Plans an experiment without writing: what `oof` and `stack` would make, skip or find stale, and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dermstack.errors import ConfigError, DataError
from stack.console import Out
from stack.experiment import ONE_SHARE, Experiment
from stack.images import existing_cache, sources_of, with_acquisition
from stack.level1.folds import net_metas
from stack.level1.image_runs import advice_without_models, all_level1_inputs, check_image_models, level1_inputs
from stack.level1.nets import stored_nets
from stack.level1.pseudo_labels import PSEUDO_LABELS, awaits_teachers, labels_unlabelled, teachers_of
from stack.level2.inputs import stacker_inputs
from stack.plan.changes import Change, blend_changes, image_changes, row_changes, stacker_changes
from stack.plan.costs import (
    Cost,
    feature_counts,
    free_disk,
    head_cost,
    image_cost,
    images_through,
    is_whole,
    level2_memory,
    measured,
    network_cost,
    stored_width,
)
from stack.predictions.one_share import at_one_share, compares_images, refits_level2, shares_differ
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker, is_second_stage, source_names
from stack.source_experiment import experiment_by_source, rebuild_name, trains_by_source, units_of_sources
from stack.store import Run, read_run
from stack.study_inputs import FILE_INPUTS
from stack.submission import blend_inputs, check_sample
from stack.tuned import enabled_models
from stack.views import blended_runs, blends_run, check_names_of_runs, is_table_alone, sees_run

if TYPE_CHECKING:  # imports torch
    from image_models.speed import Speed

SpeedOf = Callable[[ImageModel], "Speed"]
State = Literal["skip", "make", "resume", "stale", "remake"]
WHAT = {
    "skip": "complete, skipped",
    "make": "to be made",
    "resume": "begun, continued",
    "stale": "made with other inputs: refused until it is rebuilt",
    "remake": "made with other inputs: made again, the old one is kept in old/",
}


@dataclass(frozen=True)
class Step:
    """One step of `oof` or `stack`, with what it would do."""

    command: Literal["oof", "import-oof", "stack"]
    kind: str  # images, image, frozen, imported, the kind of a stacker, blend or submission
    name: str
    state: State
    why: str = ""
    changes: tuple[Change, ...] = ()
    images: int | None = None  # to decode, or that go through the network
    rows: int | None = None
    nets: int | None = None  # to train
    features: int | None = None
    cost: Cost = field(default_factory=Cost)
    remedy: str = ""  # the command that makes a stale run again


@dataclass(frozen=True)
class Plan:
    """All steps of an experiment and its rows."""

    experiment: str
    train_rows: int
    positive: int
    groups: int
    test_rows: int
    folds: int
    steps: tuple[Step, ...]
    problems: tuple[str, ...]  # what would stop `oof` or `stack`
    free_disk_bytes: int
    next: str  # the command to run

    @property
    def total(self) -> Cost:
        """Time and disk of all steps that are known, and the memory of the largest."""
        costs = [step.cost for step in self.steps if step.state != "skip"]
        return Cost(
            sum(cost.seconds or 0.0 for cost in costs),
            sum(cost.disk_bytes or 0 for cost in costs),
            max((cost.memory_bytes or 0 for cost in costs), default=0),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as values that JSON can hold."""
        values = asdict(self)
        values["steps"] = [
            {**asdict(step), "changes": [change._asdict() for change in step.changes]} for step in self.steps
        ]
        return {**values, "total": asdict(self.total)}


def make_plan(experiment: Experiment, *, measure: bool = True) -> Plan:
    """Plans every step of the experiment; writes nothing and changes nothing.

    ``measure`` trains each network that is to be made for a few batches of random images, to estimate its time. Raises
    what `oof` would raise before it computes: for folds that leave too few groups, and for unknown backbones.
    """
    check_image_models(experiment)
    models = enabled_models(experiment)
    steps, problems = [_images_step(experiment, size) for size in sorted({model.size for model in models})], []
    widths: dict[str, int] = {}
    speed_of = _measured_once(experiment) if measure else None
    for model in models:
        steps.append(image_step(experiment, model, speed_of=speed_of, widths=widths, before=steps))
    level1 = {step.name: step for step in steps if step.kind != "images"}
    for run in experiment.finished(level=1):
        if run.meta["kind"] == "imported":
            level1[run.name] = _imported_step(experiment, run)
            steps.append(level1[run.name])
    if not level1 and not is_table_alone(experiment.config):
        problems.append(f"`stack` finds no level-1 run: {advice_without_models(experiment)}")
    else:
        check_names_of_runs(experiment.config, list(level1))
        stackers = [stacker for stacker in experiment.config.stackers if stacker.enabled]
        level2 = _stacker_steps(experiment, stackers, level1, widths)
        steps += level2
        steps += _blend_steps(experiment, [*level1.values(), *level2])
        by_source, fault = _steps_by_source(experiment, stackers, level1, widths, speed_of=speed_of)
        steps += by_source
        problems += [fault] if fault else []
    try:
        check_sample(experiment)
    except DataError as error:
        problems.append(str(error))
    problems += [
        f"{step.name} was made with other inputs: undo the change, or run `{step.remedy}`"
        for step in steps
        if step.state == "stale"
    ]
    plan = Plan(
        experiment.name, len(experiment.table.train), int(experiment.target.sum()),
        int(experiment.table.train["group"].nunique()), len(experiment.table.test), experiment.folds.k, tuple(steps),
        tuple(problems), free_disk(experiment.config), _next(experiment, steps),
    )  # fmt: skip
    if (needed := plan.total.disk_bytes or 0) > plan.free_disk_bytes:
        problem = f"{needed / 2**30:.1f} GiB are needed, {plan.free_disk_bytes / 2**30:.1f} GiB are free on its disk"
        return replace(plan, problems=(*plan.problems, problem))
    return plan


def _next(experiment: Experiment, steps: Sequence[Step]) -> str:
    stale = [step.name for step in steps if step.state == "stale" and step.command == "oof"]
    for step in steps:
        if step.state == "stale":  # a net that a rebuilt one labels rows for is rebuilt with it
            rebuilt = [part for name in stale for part in ("--rebuild", name)]
            return experiment.command("oof", *rebuilt) if stale else step.remedy
        if step.command == "oof" and step.state != "skip" and step.kind != "images":
            return experiment.command("oof")
    return experiment.command("stack")


def _images_step(experiment: Experiment, size: int) -> Step:
    """Plans the cache of one size; the images of ids that it lacks are decoded, changed ones are noticed by `oof`."""
    parts = (
        experiment.as_read.train,
        experiment.as_read.test,
        experiment.external_as_read,
        experiment.unlabelled_as_read,
    )
    ids = [row_id for part in parts for row_id in part["id"]]
    cached = set(existing_cache(experiment, size).index["id"]) | set(experiment.curation.dropped["id"])
    missing = [row_id for row_id in ids if row_id not in cached]
    name = f"images at {size} px"
    if not missing:
        sources_of(experiment)  # raises for images that are no longer there
        return Step("oof", "images", name, "skip", images=0, rows=len(ids))
    cost = image_cost(experiment, missing, size)
    state: State = "make" if len(missing) == len(ids) else "resume"
    return Step("oof", "images", name, state, f"{len(missing):,} of {len(ids):,} are not in the cache",
                images=len(missing), rows=len(ids), cost=cost)  # fmt: skip


def _measured_once(experiment: Experiment) -> SpeedOf:
    """Returns a function that measures the network of an image model when it is first asked for it."""
    known: dict[str, Speed] = {}

    def speed_of(model: ImageModel) -> Speed:
        if model.name not in known:
            known[model.name] = measured(experiment, model)
        return known[model.name]

    return speed_of


def image_step(
    experiment: Experiment,
    model: ImageModel,
    *,
    speed_of: SpeedOf | None,
    widths: dict[str, int] | None = None,
    before: Sequence[Step] = (),
) -> Step:
    """Plans one image model: complete, stale, begun or to be made; notes the width of its embedding in ``widths``.

    It is stale where a teacher among the steps ``before`` is. Without ``speed_of``, its time is not known.
    """
    widths = {} if widths is None else widths
    folder, k = experiment.models / model.name, experiment.folds.k
    inputs, checked = _known_inputs(experiment, model)
    changes: list[Change] = []
    parts = [part for part in (folder, *sorted(folder.glob("fold_*"))) if read_run(part) is not None]
    for part in parts:
        run = read_run(part)
        assert run is not None
        of_run = replace(run, meta={**run.meta, "inputs": {**run.meta["inputs"]}})
        # Inputs that are files, or predictions of runs that are not complete, are not known yet: they are not compared.
        unknown = set() if checked else set(FILE_INPUTS)
        unknown |= {PSEUDO_LABELS} if awaits_teachers(experiment, model) else set()
        of_run.meta["inputs"] = {key: value for key, value in of_run.meta["inputs"].items() if key not in unknown}
        if of_run.meta["inputs"] != {key: value for key, value in inputs.items() if key not in unknown}:
            changes = image_changes(of_run, model, inputs, experiment)
            break
    taught = [step.name for step in before if step.state == "stale" and step.name in teachers_of(model)]
    if parts and taught:
        changes.append(Change(PSEUDO_LABELS, f"of {', '.join(taught)} as it was", "of what it will be"))
    kind = "frozen" if model.frozen else "image"
    wanted = {} if model.frozen else net_metas(experiment, model, inputs)
    if changes:
        reusable = 0 if model.frozen or not checked or taught else _reusable(experiment, model, wanted)
        nets = 0 if model.frozen else len(wanted) - reusable
        why = f"{reusable} of {len(wanted)} nets can be reused" if reusable else ""
        cost = _network(experiment, model, speed_of=speed_of, widths=widths, nets=nets, folds=k)
        return Step(
            "oof", kind, model.name, "stale", why, tuple(changes), rows=len(experiment.table.train), nets=nets,
            images=round(sum(images_through(experiment, model, nets, k))), cost=cost,
            remedy=experiment.command("oof", "--rebuild", rebuild_name(experiment, model.name)),
        )  # fmt: skip
    if read_run(folder) is not None:
        width = stored_width(folder)
        widths |= {model.name: width} if width else {}
        return Step("oof", kind, model.name, "skip", rows=len(experiment.table.train), nets=0, images=0)
    done = [fold for fold in range(k) if is_whole(folder / f"fold_{fold}")]
    nets_done = [net for net in wanted if net[0] in done or read_run(folder / f"fold_{net[0]}" / f"seed_{net[1]}")]
    nets = len(wanted) - len(nets_done)
    begun = bool(done or nets_done or list(folder.glob("fold_*/seed_*/state.pt")) or (folder / "features").exists())
    cost = _network(experiment, model, speed_of=speed_of, widths=widths, nets=nets, folds=k - len(done))
    why = f"{len(done)} of {k} folds" + ("" if model.frozen else f" and {len(nets_done)} of {len(wanted)} nets")
    return Step(
        "oof", kind, model.name, "resume" if begun else "make", f"{why} are complete" if begun else "",
        rows=len(experiment.table.train), nets=nets, cost=cost,
        images=round(sum(images_through(experiment, model, nets, k - len(done)))),
    )  # fmt: skip


def _known_inputs(experiment: Experiment, model: ImageModel) -> tuple[dict[str, str], bool]:
    """Returns the inputs of an image run; those of files only where all images are in the cache (True)."""
    cache = existing_cache(experiment, model.size)
    ids = [*experiment.table.train["id"], *experiment.table.test["id"], *experiment.external["id"]]
    ids += experiment.unlabelled["id"].tolist() if labels_unlabelled(model) else []
    if not set(ids) <= set(cache.index["id"]):
        return level1_inputs(experiment, model), False
    return all_level1_inputs(experiment, model, cache), True


def _reusable(experiment: Experiment, model: ImageModel, wanted: Mapping[tuple[int, int], Mapping[str, Any]]) -> int:
    """Returns how many nets a rebuild would take from the stale run and from those set aside before."""
    folders = [experiment.models / model.name, *sorted(experiment.old.glob(f"{model.name}-*"))]
    found = 0
    for fold in sorted({fold for fold, _ in wanted}):
        stored = {key for folder in folders for key in stored_nets(folder / f"fold_{fold}", fold)}
        found += sum(meta["fingerprint"] in stored for (of_fold, _), meta in wanted.items() if of_fold == fold)
    return found


def _network(
    experiment: Experiment,
    model: ImageModel,
    *,
    speed_of: SpeedOf | None,
    widths: dict[str, int],
    nets: int,
    folds: int,
) -> Cost:
    if model.frozen and experiment.copy_of is not None and not len(experiment.external):
        width = stored_width(experiment.copy_of / model.name)  # no image goes through the network again
        return head_cost(experiment, width) if width else Cost()
    if speed_of is None:
        return Cost()
    speed = speed_of(model)
    widths[model.name] = speed.features
    return network_cost(experiment, model, speed, nets, folds)


def _imported_step(experiment: Experiment, run: Run) -> Step:
    rows = len(experiment.table.train)
    if run.meta["inputs"]["rows or folds"] == experiment.rows_fingerprint:
        return Step("import-oof", "imported", run.name, "skip", rows=rows)
    return Step(
        "import-oof", "imported", run.name, "stale", "", tuple(row_changes(run, experiment)), rows=rows,
        remedy=f"dermstack import-oof {run.name} --replace",
    )  # fmt: skip


def _steps_by_source(
    experiment: Experiment,
    stackers: Sequence[Stacker],
    level1: Mapping[str, Step],
    widths: Mapping[str, int],
    *,
    speed_of: SpeedOf | None,
) -> tuple[list[Step], str]:
    """Plans the second estimate, whose folds hold out whole sources, and says what is in its way ("": nothing).

    Image models are trained again for it where `estimate.train_by_source` is on; level 2 and the blend are fitted again
    wherever sources are known and the experiment's own folds do not keep them apart, and what compares images of
    several sources is fitted once more on scores at one share of positives (`stack.predictions.one_share`).
    """
    config = experiment.config
    if not config.estimate.leave_source_out or not config.data.has_sources or experiment.shuffled:
        return [], ""
    try:
        sources = units_of_sources(experiment)
        if sources.held_out:
            return [], ""
        whole = with_acquisition(experiment) if config.all_features.shortcuts else None
        copy = experiment_by_source(whole or experiment, sources, Out(quiet=True))
    except DataError as error:
        if trains_by_source(experiment):
            return [], f"estimate.train_by_source: {error}"
        return [], f"there will be no leave-source-out estimate: {error}"
    again: dict[str, Step] = {}
    if trains_by_source(experiment):
        for model in enabled_models(copy):
            again[model.name] = image_step(copy, model, speed_of=speed_of, before=list(again.values()))
    seen, places = {**level1, **again}, {name: copy.models if name in again else experiment.models for name in level1}
    level2 = _stacker_steps(copy, stackers, seen, widths, places=places)
    steps = [*again.values(), *level2, *_blend_steps(copy, [*seen.values(), *level2], places=places)]
    if compares_images(config.objective) and (again or stackers) and shares_differ(copy):
        moved, made = at_one_share(copy), list[Step]()
        if refits_level2(copy, moves_level1=bool(again)):
            made = level2 = _stacker_steps(moved, stackers, seen, widths, places=places)
        places |= {step.name: (moved if made else copy).models for step in level2}
        made = [*made, *_blend_steps(moved, [*seen.values(), *level2], places=places)]
        steps += [replace(step, name=f"{ONE_SHARE}/{step.name}") for step in made]
    return [replace(step, name=rebuild_name(copy, step.name)) for step in steps], ""


def _stacker_steps(
    experiment: Experiment,
    stackers: Sequence[Stacker],
    level1: Mapping[str, Step],
    widths: Mapping[str, int],
    *,
    places: Mapping[str, Path] | None = None,
) -> list[Step]:
    """Plans level 2: a stacker is made again where its settings, its rows or a run that it sees change.

    The steps are in the order in which `stack` makes them: stackers that see another one come last. ``places`` are the
    folders of level-1 runs that do not lie in the experiment's own.
    """
    config, tables, places = experiment.config, source_names(stackers), places or {}
    kinds = {name: step.kind for name, step in level1.items()} | {
        stacker.name: stacker.kind for stacker in stackers if stacker.name in tables
    }
    found = [read_run(places.get(name, experiment.models) / name) for name in kinds]
    sources = [run for run in found if run is not None]
    counts = feature_counts(experiment, kinds, widths, stackers)
    seeable = dict(level1)
    comparable = experiment
    if experiment.config.all_features.shortcuts:
        comparable = with_acquisition(experiment) or experiment
    steps = []
    for stacker in sorted(stackers, key=lambda stacker: is_second_stage(stacker, stackers)):  # stable
        awaited = [name for name, step in seeable.items() if step.state != "skip" and sees_run(config, stacker, name)]
        run = read_run(experiment.models / stacker.name)
        changes: list[Change] = []
        if run is not None:
            try:
                known = [source for source in sources if sees_run(config, stacker, source.name)]
                inputs = stacker_inputs(comparable, stacker, known)
            except (KeyError, ConfigError):  # sizes of the images are not known yet
                inputs = {}
            if inputs and not awaited and run.meta["inputs"] == inputs:
                steps.append(Step(
                    "stack", stacker.kind, stacker.name, "skip", rows=len(experiment.table.train),
                    features=len(run.meta["features"]),
                ))  # fmt: skip
                seeable[stacker.name] = steps[-1]
                continue
            if inputs:
                changes = stacker_changes(run, stacker, inputs, comparable)
                changed_runs = run.meta["inputs"].get("level-1 runs") != inputs["level-1 runs"]
                if changed_runs and not awaited:
                    before = sorted(run.meta.get("scales", {}))
                    now = sorted(source.name for source in known)
                    changes.append(Change(
                        "level-1 runs", ", ".join(before) or "none",
                        ", ".join(now) + ("" if before != now else " (made again since)"),
                    ))  # fmt: skip
        why = f"it sees {', '.join(awaited)}, made before it" if awaited and run is not None else ""
        memory = level2_memory(experiment, counts[stacker.name])
        seconds = None  # of level 2 nothing is measured: as long as the last time, in parallel folds
        if run is not None and "seconds" in run.meta:
            seconds = float(run.meta["seconds"]) / min(experiment.config.n_jobs, experiment.folds.k)
        steps.append(Step(
            "stack", stacker.kind, stacker.name, "make" if run is None else "remake", why, tuple(changes),
            rows=len(experiment.table.train), features=counts[stacker.name], cost=Cost(seconds, None, memory),
        ))  # fmt: skip
        seeable[stacker.name] = steps[-1]
    return steps


def _blend_steps(
    experiment: Experiment, parts: Sequence[Step], *, places: Mapping[str, Path] | None = None
) -> list[Step]:
    """Plans the blend and the submission; ``places`` as for `_stacker_steps`."""
    places = places or {}
    awaited = [step.name for step in parts if step.state != "skip" and blends_run(experiment.config, step.name)]
    folder, rows, test_rows = experiment.folder / "blend", len(experiment.table.train), len(experiment.table.test)
    if (units := experiment.table.units) is not None:  # one prediction for each unit
        rows, test_rows = (
            int(units.loc[frame["id"]].nunique()) for frame in (experiment.table.train, experiment.table.test)
        )
    run = read_run(folder)
    read = [read_run(places.get(step.name, experiment.models) / step.name) for step in parts]
    runs = [found for found in read if found is not None]
    state: State = "make"
    changes: list[Change] = []
    if run is not None:
        inputs, blended = blend_inputs(experiment, runs), blended_runs(experiment.config, runs)
        state = "skip" if not awaited and run.meta["inputs"] == inputs else "remake"
        if state == "remake":
            changes = blend_changes(run, inputs, experiment.config, experiment)
            if not awaited and run.meta["inputs"].get("runs") != inputs["runs"]:
                before, now = ", ".join(run.meta["runs"]), ", ".join(one.name for one in blended)
                changes.append(Change("runs", before, now + ("" if before != now else " (made again since)")))
    why = f"it blends {', '.join(awaited)}, made before it" if awaited and run is not None else ""
    steps = [Step("stack", "blend", "blend", state, why, tuple(changes), rows=rows)]
    if test_rows:
        there = (experiment.folder / "submission.csv").exists()
        again: State = "skip" if there and state == "skip" else ("remake" if there else "make")
        steps.append(Step("stack", "submission", "submission.csv", again, rows=test_rows))
    return steps

"""Trains the image models again with folds of whole sources, for the estimate by source of `train_by_source`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dermstack.errors import DataError, StoreError
from stack.console import Out
from stack.experiment import BY_SOURCE, Experiment
from stack.level1.image_runs import all_level1_inputs, check_fresh, check_runs, level1_inputs, run_image_models
from stack.plan.costs import free_disk, measured
from stack.plan.steps import image_step
from stack.plan.text import duration, size
from stack.source_experiment import experiment_by_source, trains_by_source, units_of_sources
from stack.store import Run, read_run
from stack.tuned import enabled_models

if TYPE_CHECKING:
    from image_models.cache import ImageCache

_PREFIX = f"{BY_SOURCE}/"  # of names in --rebuild


@dataclass(frozen=True)
class Retraining:
    """The copy of an experiment by source whose image models are to be trained, after all checks."""

    experiment: Experiment
    caches: Mapping[int, ImageCache]
    rebuild: tuple[str, ...]  # runs of the copy that are set aside and made again

    def run(self, out: Out) -> list[Run]:
        """Completes the runs of the copy as `run_image_models` does; returns them."""
        return run_image_models(self.experiment, self.caches, out, rebuild=self.rebuild)


def rebuilt_here(rebuild: Sequence[str]) -> list[str]:
    """Returns the names in ``rebuild`` that are runs of the experiment itself, not of its copy by source."""
    return [name for name in rebuild if not name.startswith(_PREFIX)]


def plan_retraining(
    experiment: Experiment, caches: Mapping[int, ImageCache], out: Out, *, rebuild: Sequence[str] = ()
) -> Retraining | None:
    """Checks what `estimate.train_by_source` asks for and says what it costs, before anything is trained.

    None where it is off, the targets are shuffled or the folds hold out sources already. ``rebuild`` has names of runs:
    those of the copy are written leave_source_out/NAME, and with NAME that of the copy is rebuilt too if it is stale.
    Raises DataError where sources are too few, and StoreError for stale runs and for unknown names in ``rebuild``.
    """
    named = [name.removeprefix(_PREFIX) for name in rebuild if name.startswith(_PREFIX)]
    if not trains_by_source(experiment):
        if named:
            raise StoreError(
                f"--rebuild {_PREFIX}{named[0]}: no image model is trained again by source: set "
                "estimate.train_by_source: true"
            )
        return None
    models = enabled_models(experiment)
    if unknown := sorted(set(named) - {model.name for model in models}):
        raise StoreError(f"--rebuild {_PREFIX}{unknown[0]}: no enabled image model of {experiment.config_path}")
    try:
        sources = units_of_sources(experiment)
        if sources.held_out:
            out.say("leave-source-out: the folds hold out whole sources, so no image model is trained again")
            return None
        copy = experiment_by_source(experiment, sources, out)
    except DataError as error:
        raise DataError(f"estimate.train_by_source: {error}; or set estimate.train_by_source: false") from error
    for model in models:
        if model.name in rebuild and model.name not in named:
            try:
                inputs = all_level1_inputs(copy, model, caches[model.size])
                check_fresh(copy, copy.models / model.name, inputs)
            except StoreError:
                named.append(model.name)
    check_runs(copy, caches, rebuild=named)
    _say_costs(copy, named, out)
    return Retraining(copy, caches, tuple(named))


def _say_costs(copy: Experiment, rebuild: Sequence[str], out: Out) -> None:
    """Says how long the training takes that is still to be done, and how much disk; warns where the disk is too small.

    Of a run that is rebuilt, nets that can be reused are not counted as to be trained.
    """
    steps = [image_step(copy, model, speed_of=partial(measured, copy)) for model in enabled_models(copy)]
    steps = [step for step in steps if step.state != "skip"]
    if not steps:
        return
    seconds, needed = (sum(getattr(step.cost, name) or 0 for step in steps) for name in ("seconds", "disk_bytes"))
    what = ", ".join(f"{step.nets} nets of {step.name}" if step.nets else f"the head of {step.name}" for step in steps)
    out.say(
        f"leave-source-out: with {copy.folds.k} folds of whole sources are trained again, after those of the "
        f"experiment itself: {what}; {f'about {duration(seconds)}, ' if seconds else ''}{size(needed)} of disk"
    )
    if needed > (free := free_disk(copy.config)):
        out.warn(f"leave-source-out: {size(needed)} are needed, {size(free)} are free on the disk of {copy.folder}")


def runs_by_source(experiment: Experiment) -> list[Run] | None:
    """Returns the runs that were trained again with folds of sources, which must be complete and fresh.

    None where none are asked for (`plan_retraining`), or sources are too few. Raises StoreError for a missing or stale
    run and names the command that makes it.
    """
    if not trains_by_source(experiment):
        return None
    try:
        sources = units_of_sources(experiment)
        copy = None if sources.held_out else experiment_by_source(experiment, sources, Out(quiet=True))
    except DataError:
        return None  # `run_leave_source_out` tells why there is no such estimate
    if copy is None:
        return None
    found = []
    for model in enabled_models(copy):
        check_fresh(copy, copy.models / model.name, level1_inputs(copy, model))
        if (run := read_run(copy.models / model.name)) is None:
            raise StoreError(
                f"image model {model.name} is not trained by source yet: run `{experiment.command('oof')}` first, or "
                "set estimate.train_by_source: false"
            )
        found.append(run)
    return found

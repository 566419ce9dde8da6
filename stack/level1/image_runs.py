"""Level 1: runs every image model over every fold, and checks that level-1 runs are complete and fresh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dermstack.errors import StoreError
from stack.console import Out
from stack.experiment import BY_SOURCE, Experiment, rows_are_written, write_rows
from stack.fold_needs import check_fold_needs, warn_of_two_folds
from stack.level1.folds import FoldTask, frozen_tasks, labels_of, net_metas, trained_tasks
from stack.level1.jobs import assemble_run, is_complete, remove_intermediates, run_tasks
from stack.level1.nets import finish_set_aside, set_aside_for
from stack.level1.pseudo_labels import (
    awaits_teachers,
    check_teachers,
    label_rows,
    pseudo_label_inputs,
    rounds_of,
    teachers_of,
    unlabelled_images,
)
from stack.net_metadata import metadata_inputs
from stack.settings.image_models import ImageModel
from stack.source_experiment import rebuild_name
from stack.store import Run, fingerprint, frame_fingerprint, locked, read_run, read_verified_run
from stack.study_inputs import FILE_INPUTS, image_file_inputs
from stack.tables.net_columns import net_columns
from stack.tuned import check_tuned_files, enabled_models
from stack.views import is_table_alone

if TYPE_CHECKING:
    from image_models.cache import ImageCache


ROWS_WAIT_S = 60.0  # for another process to end its work on the experiment


def run_image_models(
    experiment: Experiment, caches: Mapping[int, ImageCache], out: Out, *, rebuild: Sequence[str] = ()
) -> list[Run]:
    """Completes the run of every enabled image model; skips complete runs and folds. Returns the runs.

    Models with pseudo-labels come after the runs that label rows for them (`stack.level1.pseudo_labels`). Each row is
    predicted by the net that was not trained on its split_group. ``caches`` holds the images at each size that
    `check_image_models` returns. Runs named in ``rebuild`` are set aside and made again.

    Raises StoreError for a run made with other settings or rows (it names what changed and the command that rebuilds
    the run), ImageError for missing or unreadable images, unknown backbones and weights that do not fit.
    """
    if experiment.copy_of is None:
        warn_of_two_folds(experiment, out)
    models = check_runs(experiment, caches, rebuild=rebuild)
    for models_of_round in rounds_of(models):
        _complete(experiment, models_of_round, caches, out, rebuild=rebuild)
    return [run for model in models if (run := read_run(experiment.models / model.name))]


def check_runs(
    experiment: Experiment, caches: Mapping[int, ImageCache], *, rebuild: Sequence[str] = ()
) -> list[ImageModel]:
    """Checks folds, studies and the freshness of all runs before the first is set aside; returns the enabled models.

    Raises as `run_image_models` does.
    """
    check_fold_needs(experiment)
    models = enabled_models(experiment)
    for model in models:
        if model.name in experiment.config.tuned.image:
            check_tuned_files(experiment, model, images_checksum(experiment, caches[model.size]))
    for model in models:
        if model.name not in rebuild and not awaits_teachers(experiment, model, rebuild):
            inputs = all_level1_inputs(experiment, model, caches[model.size])
            check_fresh(experiment, experiment.models / model.name, inputs)
    return models


def _complete(
    experiment: Experiment,
    models: Sequence[ImageModel],
    caches: Mapping[int, ImageCache],
    out: Out,
    *,
    rebuild: Sequence[str],
) -> None:
    """Completes the runs of ``models``, all of whose teachers are complete."""
    with ExitStack() as locks:
        tasks: list[FoldTask] = []
        for model in models:
            folder, cache = experiment.models / model.name, caches[model.size]
            label_rows(experiment, model, caches, out)
            inputs = all_level1_inputs(experiment, model, cache)
            if teachers_of(model) and model.name not in rebuild:
                check_fresh(experiment, folder, inputs)  # the teachers may have been made since the first check
            finish_set_aside(folder)
            if model.name in rebuild and folder.exists():
                with locked(folder):  # not while another process writes to it
                    aside = set_aside_for(folder, experiment.old, inputs, net_metas(experiment, model, inputs))
                out.say(f"{rebuild_name(experiment, model.name)}: {_of_rebuilding(aside)}")
            if read_verified_run(folder):
                remove_intermediates(folder)  # left by a process that was killed before it removed them
                out.say(f"{rebuild_name(experiment, model.name)}: complete, skipped")
                continue
            locks.enter_context(locked(folder))
            make = frozen_tasks if model.frozen else trained_tasks
            tasks += make(experiment, model, cache, inputs, out)
        if not rows_are_written(experiment):
            with locked(experiment.folder, wait=ROWS_WAIT_S):  # `stack` and others read and write these files too
                write_rows(experiment)
        missing = [task for task in tasks if not is_complete(task)]
        if len(missing) < len(tasks):
            out.say(f"{len(tasks) - len(missing)} of {len(tasks)} folds: complete, skipped")
        last = {task.folder.parent: task for task in tasks}  # the last task of each run: its folds are complete then
        for task in run_tasks(missing, experiment.config, out):
            if task is last[task.folder.parent]:
                assemble_run(experiment, last.pop(task.folder.parent))
        for task in last.values():  # all folds were complete, but a kill prevented the assembly
            assemble_run(experiment, task)


def _of_rebuilding(aside: tuple[Path, int] | None) -> str:
    if aside is None:
        return "continues the interrupted rebuild"
    kept, taken = aside
    nets = f"; {taken} trained nets are reused without training" if taken else ""
    return f"the old run is kept as {kept}{nets}"


def check_image_models(experiment: Experiment, *, rebuild: Sequence[str] = ()) -> list[int]:
    """Checks folds, names and files of the enabled image models before any computing; returns their sizes in pixels.

    Raises StoreError for a model in ``rebuild`` that is not enabled, ImageError for a bad backbone, weights or recipe,
    ConfigError for a metadata column that the table lacks or a teacher that is no run, and DataError where the folds
    leave too few groups for what is fitted on them (`check_fold_needs`).
    """
    from image_models.net import check_backbone
    from image_models.transforms import check_recipe

    models = enabled_models(experiment)
    if unknown := set(rebuild) - {model.name for model in models}:
        raise StoreError(f"--rebuild {', '.join(sorted(unknown))}: no enabled image model of {experiment.config_path}")
    for model in models:
        check_backbone(model.backbone, model.pretrained)
        check_recipe(model.augment)
        net_columns(model, experiment.config.data.columns, experiment.table.columns)
    check_teachers(experiment, models)
    check_fold_needs(experiment)
    return [model.size for model in models]


def check_fresh(experiment: Experiment, folder: Path, inputs: dict[str, str]) -> None:
    """Raises StoreError where the run in ``folder``, or a fold of it, was made from inputs other than these."""
    for part in (folder, *sorted(folder.glob("fold_*"))):
        run = read_run(part)
        made_of = run.meta["inputs"] if run else inputs
        changed = [
            name
            for name in {**inputs, **made_of}
            if made_of.get(name) != inputs.get(name) and (name in inputs or name not in FILE_INPUTS)
        ]
        if changed:
            raise StoreError(
                f"{part} was made with other {' and '.join(changed)}: undo the change, or rebuild the run with "
                f"`{experiment.command('oof', '--rebuild', rebuild_name(experiment, folder.name))}`"
            )


def level1_inputs(experiment: Experiment, model: ImageModel) -> dict[str, str]:
    """Returns the inputs of an image run, by name, that can be checked without its images and weights."""
    learned = {}
    if model.target == "diagnosis":
        labels = labels_of(model, experiment.table.train, experiment.external)
        learned["diagnoses"] = frame_fingerprint(
            pd.DataFrame(np.concatenate([labels.train, labels.external]), columns=labels.names)
        )
    return {
        "settings": fingerprint(model.settings(without={"name", "enabled", "pretrained", "selected"} | model.unused)),
        "rows or folds": experiment.rows_fingerprint,
        # Left out at their defaults, so that runs made before these inputs existed stay fresh.
        **({"seed": str(seed)} if (seed := experiment.config.seed) else {}),
        **({"selection": "on these rows"} if model.selected else {}),
        **metadata_inputs(experiment, model),
        **learned,
        **pseudo_label_inputs(experiment, model),
    }


def all_level1_inputs(experiment: Experiment, model: ImageModel, cache: ImageCache) -> dict[str, str]:
    """Returns everything the run depends on, by name, so that the error for a stale run can say what changed."""
    files = image_file_inputs(model, images_checksum(experiment, cache))
    return level1_inputs(experiment, model) | files | unlabelled_images(experiment, model, cache)


@contextmanager
def level1_locked(experiment: Experiment) -> Iterator[None]:
    """Locks the runs of the enabled image models and the imported runs, so that `oof --rebuild` moves none away.

    Raises StoreError where another process works on one of them.
    """
    names = {model.name for model in enabled_models(experiment)} | {run.name for run in experiment.finished(level=1)}
    with ExitStack() as locks:
        places = [experiment.models, experiment.folder / BY_SOURCE / "models"]
        for folder in sorted(place / name for place in places for name in names):
            if folder.is_dir():
                locks.enter_context(locked(folder))
        yield


def images_checksum(experiment: Experiment, cache: ImageCache) -> str:
    """Returns a checksum of the images of all rows: train, test and external."""
    return cache.checksum([*experiment.table.train["id"], *experiment.table.test["id"], *experiment.external["id"]])


def level1_runs(experiment: Experiment) -> list[Run]:
    """Returns the runs of the enabled image models, which must be complete and fresh, then the imported runs.

    Raises StoreError for a missing or stale run and names the command that makes it, and DataError where the folds
    leave too few groups for what is fitted on them (`check_fold_needs`).
    """
    check_fold_needs(experiment)
    runs = []
    for model in enabled_models(experiment):
        folder = experiment.models / model.name
        check_fresh(experiment, folder, level1_inputs(experiment, model))
        run = read_run(folder)
        if run is None:
            raise StoreError(
                f"image model {model.name} is not complete: run `{experiment.command('oof')}` first, or set "
                "`enabled: false`"
            )
        runs.append(run)
    imported = [run for run in experiment.finished(level=1) if run.meta["kind"] == "imported"]
    for run in imported:
        check_imported(experiment, run)
    if not runs and not imported and not is_table_alone(experiment.config):
        raise StoreError(f"{experiment.folder} has no level-1 run: {advice_without_models(experiment)}")
    return runs + imported


def advice_without_models(experiment: Experiment) -> str:
    """Returns what to do in an experiment that has no level-1 run and no enabled image model, so `oof` makes none."""
    listed = experiment.config.image_models
    how = "set `enabled: true` for one of its image_models" if listed else "add a model to its image_models"
    imported = experiment.command("import-oof", "NAME", "--oof", "FILE")
    return (
        f"{experiment.config_path} enables no image model, so import predictions made elsewhere with `{imported}`, or "
        f"{how} and run `{experiment.command('oof')}`, or set `runs: []` in every stacker for models of the table alone"
    )


def check_imported(experiment: Experiment, run: Run) -> None:
    """Raises StoreError where an imported run was made for other rows or folds, or where a model has its name."""
    if run.name in experiment.config.model_names:
        raise StoreError(
            f"{run.folder} is an imported run, but {experiment.config_path} has a model of that name: rename the model"
        )
    if run.meta["inputs"]["rows or folds"] != experiment.rows_fingerprint:
        raise StoreError(
            f"{run.folder} was imported for other rows or folds: import it again with "
            f"`dermstack import-oof {run.name} --replace`"
        )

"""The level-1 runs that level 2 is built on: complete, fresh, checked against today's rows and folds."""

from __future__ import annotations

from stack.errors import StoreError
from stack.experiment import Experiment
from stack.level1 import check_fresh, level1_inputs
from stack.store import Run, read_run
from stack.tuned import enabled_models


def level1_runs(experiment: Experiment) -> list[Run]:
    """The enabled image models, which must be complete and fresh, then the imported runs.

    Raises StoreError naming the command that makes what is missing.
    """
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
    if not runs and not imported:
        raise StoreError(
            f"{experiment.folder} has no level-1 run: run `{experiment.command('oof')}`, "
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

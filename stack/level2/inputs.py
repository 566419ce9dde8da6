"""What a stacker's run depends on, and the runs that stackers see: level-1 runs and models of the table alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.settings.config import Config
from stack.settings.level2 import Stacker, source_names
from stack.store import Run, fingerprint, frame_fingerprint, read_run
from stack.study_inputs import cohort_inputs
from stack.tables.table import ACQUISITION
from stack.tuned import tuned_fingerprint
from stack.views import seen_runs
from tabular.gbdt_params import FIT_VERSION


def stacker_inputs(experiment: Experiment, stacker: Stacker, sources: Sequence[Run]) -> dict[str, str]:
    """Returns everything that a stacker depends on, by name; a run made from other inputs is stale."""
    config = experiment.config
    return {
        "settings": fingerprint({
            "stacker": stacker.inputs(),
            "features": stacker.features_with(config.features).inputs(),
            "seed": config.seed,
            "tuned": tuned_fingerprint(config.tuned.gbdt.get(stacker.name)),
            **({"fit": FIT_VERSION} if stacker.is_gbdt else {}),
        }),
        "level-1 runs": fingerprint({run.name: run.meta["files"] for run in seen_runs(config, stacker, sources)}),
        "metadata": experiment.metadata_fingerprint,
        "rows or folds": experiment.rows_fingerprint,
        **cohort_inputs(experiment, stacker),
        **_acquisition_inputs(experiment),
        **scale_inputs(experiment),
    }  # fmt: skip


def made_with(stacker: Stacker, config: Config) -> dict[str, Any]:
    """Returns the settings beside a stacker's own that its run depends on, as they are noted in run.json."""
    return {
        "features": stacker.features_with(config.features).model_dump(mode="json"),
        "seed": config.seed,
        "tuned": tuned_fingerprint(config.tuned.gbdt.get(stacker.name)),
    }


def scale_inputs(experiment: Experiment) -> dict[str, str]:
    """Returns the inputs, by name, of what is fitted by source: nets that hold out whole sources share one scale."""
    if experiment.copy_of is None:
        return {}
    moved = {"shares": "moved to that of all rows"} if experiment.at_one_share else {}
    return {"scales": "one for the nets of all sources", **moved}


def _acquisition_inputs(experiment: Experiment) -> dict[str, str]:
    if not experiment.config.all_features.shortcuts:
        return {}
    columns = list(ACQUISITION)
    parts = (experiment.table.train[columns], experiment.table.test[columns])
    return {"acquisition": " ".join(map(frame_fingerprint, parts))}


def with_source_stackers(experiment: Experiment, level1: Sequence[Run]) -> list[Run]:
    """Returns the level-1 runs, then the runs of the stackers that another one sees, which must be complete.

    Raises StoreError that names the command for one that is not.
    """
    stackers, runs = experiment.config.stackers, list(level1)
    for name in source_names(stackers):
        run = read_run(experiment.models / name)
        stacker = next(one for one in stackers if one.name == name)
        if run is None or run.meta["inputs"] != stacker_inputs(experiment, stacker, level1):
            raise StoreError(
                f"stacker {name}, which other stackers see, is {'stale' if run else 'not complete'}: run "
                f"`{experiment.command('stack')}` first"
            )
        runs.append(run)
    return runs

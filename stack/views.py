"""The runs that each stacker sees and that the blend weights, and the features of all stackers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from dermstack.errors import ConfigError
from stack.experiment import Experiment
from stack.settings.config import Config
from stack.settings.level2 import Stacker, source_names
from stack.store import Run


def sees_run(config: Config, stacker: Stacker, run: str) -> bool:
    """Returns whether the predictions (and embeddings) of this run are features of the stacker.

    Level-1 runs fit a name or a pattern of its `runs`, or all are seen; a stacker must be named in full, so that a
    config in which none is named means what it meant before stackers could be seen.
    """
    if any(run == one.name for one in config.stackers):
        return run in (stacker.runs or ())
    return stacker.runs is None or any(fnmatchcase(run, name) for name in stacker.runs)


def seen_runs(config: Config, stacker: Stacker, sources: Sequence[Run]) -> list[Run]:
    """Returns the runs among ``sources`` that the stacker sees. Raises ConfigError as `check_seen` does."""
    check_seen(config, stacker, [run.name for run in sources])
    return [run for run in sources if sees_run(config, stacker, run.name)]


def check_seen(config: Config, stacker: Stacker, runs: Sequence[str]) -> None:
    """Raises ConfigError for a name or pattern in the stacker's `runs` that fits none of ``runs``."""
    stackers = {one.name for one in config.stackers}
    level1 = [run for run in runs if run not in stackers]
    for name in stacker.runs or ():
        if name in runs if name in stackers else any(fnmatchcase(run, name) for run in level1):
            continue
        full = [one for one in sorted(stackers - {stacker.name}) if fnmatchcase(one, name)]
        raise ConfigError(
            f"stacker {stacker.name}: no level-1 run fits {name!r} (runs): name one of {', '.join(level1) or 'none'}, "
            "or write `runs: []` for a model of the table alone"
            + (f"; a pattern fits no stacker, so write {', '.join(full)} in full" if full else "")
        )


def blends_run(config: Config, run: str) -> bool:
    """Returns whether the blend weights this run, of either level (`blend.runs`)."""
    return config.blend.runs is None or any(fnmatchcase(run, name) for name in config.blend.runs)


def blended_runs(config: Config, runs: Sequence[Run]) -> list[Run]:
    """Returns those of the runs that the blend weights."""
    return [run for run in runs if blends_run(config, run.name)]


def check_names_of_runs(config: Config, level1: Sequence[str]) -> None:
    """Raises ConfigError for a name of a run in the stackers' `runs` or in `blend.runs` that fits none.

    ``level1`` are the level-1 runs that exist; those of level 2 are the enabled stackers, which are fitted after this.
    """
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    for stacker in stackers:
        check_seen(config, stacker, [*level1, *source_names(config.stackers)])
    check_blended_runs(config, [*level1, *(stacker.name for stacker in stackers)])


def check_blended_runs(config: Config, names: Sequence[str]) -> None:
    """Raises ConfigError for a name or pattern of `blend.runs` that fits none of the experiment's runs, ``names``."""
    for name in config.blend.runs or ():
        if not any(fnmatchcase(run, name) for run in names):
            raise ConfigError(
                f"blend.runs: no run fits {name!r}: name one of {', '.join(names)}, or remove `runs` to blend all"
            )


def all_runs(blend: Run) -> list[str]:
    """Returns the names of all runs of the experiment when it was blended, also of those that are not blended."""
    names: list[str] = blend.meta.get("all_runs", blend.meta["runs"])
    return names


def is_table_alone(config: Config) -> bool:
    """Whether there are stackers and none of them sees a level-1 run."""
    stackers = [stacker for stacker in config.stackers if stacker.enabled]
    names = {stacker.name for stacker in stackers}
    return bool(stackers) and all(stacker.runs is not None and names.issuperset(stacker.runs) for stacker in stackers)


def with_all_features(experiment: Experiment) -> Experiment:
    """Returns the experiment with the features of all stackers (`Config.all_features`)."""
    config = experiment.config
    return replace(experiment, config=config.model_copy(update={"features": config.all_features}))


def alone(experiment: Experiment, name: str) -> Experiment:
    """Returns the experiment with one image model alone: no other run, no level 2, and a blend of this run only."""
    config = experiment.config
    blocks = {block: False for block, value in config.features if isinstance(value, bool)}
    off = {**blocks, "frozen_z": 0, "aligned_z": 0, "relative": (), "relative_site": ()}
    changes = {
        "image_models": tuple(model for model in config.image_models if model.name == name),
        "stackers": (),
        "features": config.features.model_copy(update=off),
        "blend": config.blend.model_copy(update={"methods": ("mean",), "runs": None, "preselect": False}),
        "tuned": config.tuned.model_copy(update={"blend": None, "gbdt": {}}),
    }
    return replace(experiment, config=config.model_copy(update=changes))

"""The runs that each stacker sees and that the blend weights, and the features of all stackers together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

from dermstack.errors import ConfigError
from stack.config import Config
from stack.experiment import Experiment
from stack.level2_config import Stacker
from stack.store import Run


def sees_run(stacker: Stacker, run: str) -> bool:
    """Returns whether the predictions and embeddings of this level-1 run are features of the stacker."""
    return stacker.runs is None or any(fnmatchcase(run, name) for name in stacker.runs)


def seen_runs(stacker: Stacker, sources: Sequence[Run]) -> list[Run]:
    """Returns the level-1 runs that the stacker sees. Raises ConfigError for a name or pattern that fits none."""
    names = [run.name for run in sources]
    for name in stacker.runs or ():
        if not any(fnmatchcase(run, name) for run in names):
            raise ConfigError(
                f"stacker {stacker.name}: no level-1 run fits {name!r} (runs): name one of "
                f"{', '.join(names) or 'none'}, or write `runs: []` for a model of the table alone"
            )
    return [run for run in sources if sees_run(stacker, run.name)]


def blends_run(config: Config, run: str) -> bool:
    """Returns whether the blend weights this run, of either level (`blend.runs`)."""
    return config.blend.runs is None or any(fnmatchcase(run, name) for name in config.blend.runs)


def blended_runs(config: Config, runs: Sequence[Run]) -> list[Run]:
    """Returns those of the runs that the blend weights."""
    return [run for run in runs if blends_run(config, run.name)]


def check_blended_runs(config: Config, runs: Sequence[Run]) -> None:
    """Raises ConfigError for a name or pattern of `blend.runs` that fits none of the experiment's runs."""
    names = [run.name for run in runs]
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
    return bool(stackers) and all(stacker.runs == () for stacker in stackers)


def with_all_features(experiment: Experiment) -> Experiment:
    """Returns the experiment with the features of all stackers (`Config.all_features`)."""
    config = experiment.config
    return replace(experiment, config=config.model_copy(update={"features": config.all_features}))

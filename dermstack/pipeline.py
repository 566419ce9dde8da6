"""Runs level 1 and level 2 of an experiment from Python, as the commands `oof` and `stack` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermstack.audit.finding import Finding
from dermstack.errors import ConfigError
from stack.cells import read_cells
from stack.config import Config, config_of, read_config
from stack.console import Out
from stack.experiment import IN_MEMORY, Experiment, open_experiment, print_overview, write_rows
from stack.history import append_ledger, run_table
from stack.metrics.intervals import Interval
from stack.store import Run, locked


@dataclass(frozen=True)
class OofResult:
    """What `run_oof` made; each run's files are on disk too."""

    experiment: Experiment
    runs: dict[str, Run]  # the enabled image models, by name

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a run: the objective with its interval by group, and other measures."""
        return run_table(self.experiment, list(self.runs.values()))

    @property
    def oof(self) -> pd.DataFrame:
        """Training rows: id, target, split_group, fold, and the out-of-fold p of each run (NaN where it has none)."""
        return _oof(self.experiment, list(self.runs.values()))


@dataclass(frozen=True)
class StackResult:
    """What `run_stack` made; the submission, the report and each run's files are on disk too."""

    experiment: Experiment
    runs: dict[str, Run]  # level-1 runs, then the stackers, by name
    blend: Run
    findings: list[Finding]  # of the audit; [] where the targets are shuffled
    report: Path

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a run: the objective with its interval by group, and other measures."""
        return run_table(self.experiment, list(self.runs.values()))

    @property
    def headline(self) -> Interval:
        """The nested estimate of the objective, with its 95 % interval by group."""
        return Interval(**self.blend.meta["headline"])

    @property
    def oof(self) -> pd.DataFrame:
        """Training rows: id, target, split_group, fold, p of each run, and the blend's nested score and p_calibrated.

        Missing values where a run or the blend does not cover a row.
        """
        blend = self.blend.frame("oof").set_index("id")[["score", "p_calibrated"]]
        return _oof(self.experiment, list(self.runs.values())).join(blend, on="id")

    @property
    def submission(self) -> pd.DataFrame | None:
        """The submission as it was written: ids as text, and one score; None without test rows."""
        path = self.experiment.folder / "submission.csv"
        if not len(self.experiment.table.test) or not path.exists():
            return None
        frame = read_cells(path)
        return frame.assign(**{frame.columns[1]: frame.iloc[:, 1].astype(np.float64)})


def open_config(
    config: Config | Mapping[str, Any] | Path | str,
    out: Out,
    *,
    overrides: Sequence[str] = (),
    shuffle_target: bool = False,
) -> Experiment:
    """Opens the experiment of a config: a YAML file, a mapping with the same keys, or the result of `read_config`.

    Relative paths in a mapping start at the current folder. Raises ConfigError, DataError and StoreError.
    """
    given = tuple(overrides)
    if isinstance(config, Path | str):
        path = Path(config)
        settings = read_config(path, given)
    elif isinstance(config, Config):
        path, settings = IN_MEMORY, config
        if given:
            raise ConfigError(f"overrides {', '.join(given)}: a Config is complete, so pass them to read_config")
    else:
        path, settings = IN_MEMORY, config_of(config, given)
    return open_experiment(settings, path, out, overrides=given, shuffle_target=shuffle_target)


def run_oof(
    config: Config | Mapping[str, Any] | Path | str,
    *,
    overrides: Sequence[str] = (),
    rebuild: Sequence[str] = (),
    shuffle_target: bool = False,
    out: Out | None = None,
) -> OofResult:
    """Trains the image models fold by fold, as `dermstack oof` does; complete runs and folds are read, not made again.

    ``config`` is a YAML file, a mapping with the same keys (relative paths start at the current folder), or the result
    of `read_config`; ``overrides`` are such as "image_models.0.epochs=3". Runs named in ``rebuild`` are set aside and
    made again. With ``shuffle_target`` the targets are exchanged, in an experiment of its own. ``out`` prints progress
    (default: nothing). Raises the subclasses of DermstackError; the messages name the next step.
    """
    from dermstack.tracking import check_tracking, track
    from stack.images import caches_in_use, with_images, write_acquisition
    from stack.level1 import check_image_models, run_image_models

    out = out or Out(quiet=True)
    experiment = open_config(config, out, overrides=overrides, shuffle_target=shuffle_target)
    check_tracking(experiment.config)
    sizes = check_image_models(experiment, rebuild=rebuild)
    with caches_in_use(experiment.config):
        experiment, caches = with_images(experiment, sizes, out)
        print_overview(experiment, out)
        runs = run_image_models(experiment, caches, out, rebuild=rebuild)
        if caches:
            write_acquisition(experiment, caches[min(caches)])
        track(experiment, runs, out, command="oof")
    return OofResult(experiment, {run.name: run for run in runs})


def run_stack(
    config: Config | Mapping[str, Any] | Path | str,
    *,
    overrides: Sequence[str] = (),
    shuffle_target: bool = False,
    out: Out | None = None,
    on_findings: Callable[[list[Finding]], object] = lambda findings: None,
) -> StackResult:
    """Audits the level-1 runs, fits level 2 and the blend, and writes submission and report, as `dermstack stack` does.

    The level-1 runs are those that `run_oof` and `dermstack import-oof` made. ``on_findings`` is called with the
    findings of the audit before level 2 is fitted. Other arguments and errors as for `run_oof`.
    """
    from dermstack.audit.run import audit_for_stack
    from dermstack.report.evidence import write_report
    from dermstack.tracking import check_tracking, track
    from stack.fallback import run_fallback
    from stack.images import caches_in_use
    from stack.level1 import level1_locked, level1_runs
    from stack.level2 import run_stackers
    from stack.submission import run_blend

    out, findings = out or Out(quiet=True), list[Finding]()
    experiment = open_config(config, out, overrides=overrides, shuffle_target=shuffle_target)
    check_tracking(experiment.config)
    print_overview(experiment, out)
    with locked(experiment.folder), level1_locked(experiment), caches_in_use(experiment.config):
        runs = level1_runs(experiment)
        write_rows(experiment)
        if not experiment.shuffled:
            findings = audit_for_stack(experiment, runs, out)
            on_findings(findings)
        runs += run_stackers(experiment, runs, out)
        run_fallback(experiment, out)
        blend = run_blend(experiment, runs, out)
        report = write_report(experiment, out)
        append_ledger(experiment, blend)
        track(experiment, runs, out, command="stack", blend=blend, report=report)
    return StackResult(experiment, {run.name: run for run in runs}, blend, findings, report)


def _oof(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    rows = experiment.folds.frame[["id", "split_group", "fold"]].reset_index(drop=True)
    rows.insert(1, "target", experiment.target)
    made = {run.name: run.frame("oof").set_index("id")["p"].reindex(rows["id"]).to_numpy(np.float64) for run in runs}
    return rows.assign(**made)

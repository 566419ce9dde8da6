"""Runs level 1 and level 2 of an experiment from Python, as the commands `oof` and `stack` do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermstack.audit.finding import Finding, read_findings
from dermstack.errors import ConfigError
from stack.console import Out
from stack.experiment import IN_MEMORY, Experiment, open_experiment, print_overview, write_rows
from stack.history import append_ledger, run_table
from stack.images import caches_in_use
from stack.level1.image_runs import level1_locked, level1_runs
from stack.level2.probes import stored_probes
from stack.metrics.intervals import Interval
from stack.parallel import run_with_threads
from stack.settings.config import Config, config_of, read_config
from stack.sources.estimates import LeaveSourceOut, stored_leave_source_out
from stack.store import Run, locked, read_runs
from stack.tables.cells import read_cells
from stack.up_to_date import (
    REPORT_FILES,
    TRACKING,
    Digests,
    Finished,
    files_in,
    finished,
    given_to_stack,
    report_is_current,
    write_record,
)


@dataclass(frozen=True)
class OofResult:
    """What `run_oof` made; each run's files are on disk too."""

    experiment: Experiment
    runs: dict[str, Run]  # the enabled image models, by name
    by_source: dict[str, Run] = field(default_factory=dict)  # the same, trained again with folds of whole sources

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
    report: Path | None  # None where it was not wanted and none of this state was written before

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a run: the objective with its interval by group, and other measures; of images, not of units."""
        return run_table(self.experiment, list(self.runs.values()))

    @property
    def headline(self) -> Interval:
        """The nested estimate of the objective, with its 95 % interval by group."""
        return Interval(**self.blend.meta["headline"])

    @property
    def by_source(self) -> LeaveSourceOut | None:
        """The estimates with sources held out beside the headline; None where no source is known or they are off."""
        return stored_leave_source_out(self.experiment.folder, self.blend.meta["fingerprint"])

    @property
    def oof(self) -> pd.DataFrame:
        """Training rows: id, target, split_group, fold, p of each run, and the blend's nested score and p_calibrated.

        Missing values where a run or the blend does not cover a row. With `predict_per` a column `unit` follows, and
        the blend's columns are those of the image's unit.
        """
        blend = self.blend.frame("oof").set_index("id")[["score", "p_calibrated"]]
        frame = _oof(self.experiment, list(self.runs.values()))
        if "units" not in self.blend.meta or (units := self.experiment.table.units) is None:
            return frame.join(blend, on="id")
        return frame.assign(unit=units.loc[frame["id"]].to_numpy()).join(blend, on="unit")

    @property
    def submission(self) -> pd.DataFrame | None:
        """The submission as it was written: ids as text, and one score; None without test rows."""
        path = self.experiment.folder / "submission.csv"
        if not len(self.experiment.table.test) or not path.exists():
            return None
        frame = read_cells(path)
        return frame.assign(**{frame.columns[1]: frame.iloc[:, 1].astype(np.float64)})


@dataclass(frozen=True)
class StackSteps:
    """Functions that `run_stack` calls as soon as a part is complete, in this order."""

    level1: Callable[[Experiment, list[Run]], object] = lambda experiment, runs: None
    findings: Callable[[list[Finding]], object] = lambda findings: None  # of the audit
    stacker: Callable[[Experiment, Run], object] = lambda experiment, run: None  # for each stacker, as it ends
    stackers: Callable[[Experiment, list[Run]], object] = lambda experiment, runs: None  # runs of level 1 and 2
    blend: Callable[[Experiment, Run], object] = lambda experiment, blend: None
    sources: Callable[[LeaveSourceOut], object] = lambda found: None  # where sources are known
    probes: Callable[[Run, pd.DataFrame], object] = lambda run, probes: None  # of the stacker that was probed


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
    settings, path = _read(config, overrides)
    return open_experiment(settings, path, out, overrides=tuple(overrides), shuffle_target=shuffle_target)


def _read(config: Config | Mapping[str, Any] | Path | str, overrides: Sequence[str]) -> tuple[Config, Path]:
    given = tuple(overrides)
    if isinstance(config, Path | str):
        return read_config(Path(config), given), Path(config)
    if not isinstance(config, Config):
        return config_of(config, given), IN_MEMORY
    if given:
        raise ConfigError(f"overrides {', '.join(given)}: a Config is complete, so pass them to read_config")
    return config, IN_MEMORY


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
    made again; those by source (`estimate.train_by_source`) are named leave_source_out/NAME. With ``shuffle_target``
    the targets are exchanged, in an experiment of its own. ``out`` prints progress (default: nothing). Raises the
    subclasses of DermstackError; the messages name the next step.
    """
    from dermstack.tracking import check_tracking, track
    from stack.images import caches_in_use, with_images, write_acquisition
    from stack.level1.image_runs import check_image_models, run_image_models
    from stack.sources.training import plan_retraining, rebuilt_here
    from stack.submission import check_sample

    out = out or Out(quiet=True)
    experiment = open_config(config, out, overrides=overrides, shuffle_target=shuffle_target)
    check_tracking(experiment.config)
    check_sample(experiment)
    here = rebuilt_here(rebuild)
    sizes = check_image_models(experiment, rebuild=here)
    with caches_in_use(experiment.config):
        experiment, caches = with_images(experiment, sizes, out)
        print_overview(experiment, out)
        again = plan_retraining(experiment, caches, out, rebuild=rebuild)  # its checks come before hours of training
        runs = run_image_models(experiment, caches, out, rebuild=here)
        by_source = again.run(out) if again is not None else []
        if caches:
            write_acquisition(experiment, caches[min(caches)])
        track(experiment, runs, out, command="oof")
    return OofResult(experiment, {run.name: run for run in runs}, {run.name: run for run in by_source})


def run_stack(
    config: Config | Mapping[str, Any] | Path | str,
    *,
    overrides: Sequence[str] = (),
    shuffle_target: bool = False,
    report: bool = True,
    out: Out | None = None,
    steps: StackSteps = StackSteps(),
) -> StackResult:
    """Audits the level-1 runs, fits level 2 and the blend, and writes submission and report, as `dermstack stack` does.

    The level-1 runs are those that `run_oof` and `dermstack import-oof` made. Where nothing has changed since the last
    call, nothing is computed or written but the ledger's line. Without ``report`` neither the report nor the probes
    that it shows are made. ``steps`` are called as each part is complete. Other arguments and errors as for `run_oof`.
    """
    from dermstack.tracking import check_tracking

    out = out or Out(quiet=True)
    settings, path = _read(config, overrides)
    check_tracking(settings)
    given = given_to_stack(settings, path)  # before any of these files is read
    experiment = open_experiment(settings, path, out, overrides=tuple(overrides), shuffle_target=shuffle_target)
    with locked(experiment.folder), level1_locked(experiment), caches_in_use(experiment.config):
        if done := finished(settings, experiment.folder, given, report=report):
            return _result_as_it_is(experiment, done)
        return _stack(experiment, given, out, steps, report=report)


def _stack(experiment: Experiment, given: Digests, out: Out, steps: StackSteps, *, report: bool) -> StackResult:
    from dermstack.audit.run import audit_for_stack, audit_sources
    from dermstack.tracking import track
    from stack.fallback import run_fallback
    from stack.level2.stackers import run_stackers
    from stack.predictions.joined import fit_alignments
    from stack.sources.leave_source_out import run_leave_source_out
    from stack.sources.training import runs_by_source
    from stack.submission import check_sample, run_blend
    from stack.tuned import check_tuned_before_level2
    from stack.views import check_names_of_runs

    check_sample(experiment)
    findings = list[Finding]()
    print_overview(experiment, out)
    runs = level1 = level1_runs(experiment)
    check_names_of_runs(experiment.config, [run.name for run in level1])
    check_tuned_before_level2(experiment, level1)
    by_source = runs_by_source(experiment)
    write_rows(experiment)
    steps.level1(experiment, runs)
    if not experiment.shuffled:
        align = partial(run_with_threads, experiment.config.threads, fit_alignments, experiment, level1)
        findings = audit_for_stack(experiment, runs, out, meanwhile=align)
        steps.findings(findings)
    runs = runs + run_stackers(experiment, runs, out, on_run=partial(steps.stacker, experiment))
    steps.stackers(experiment, runs)
    run_fallback(experiment, out)
    blend = run_blend(experiment, runs, out)
    steps.blend(experiment, blend)
    if (found := run_leave_source_out(experiment, level1, blend, out, again=by_source)) is not None:
        steps.sources(found)
    findings = audit_sources(experiment, found, findings)
    files = files_in(experiment.folder)
    current = report_is_current(experiment.config, experiment.folder, given, files)
    if report and current:
        out.say("report: complete, skipped")
    elif report:
        from dermstack.report.evidence import write_report

        write_report(experiment, out)
        for run in runs:
            if (probes := stored_probes(experiment, run)) is not None:
                steps.probes(run, probes)
    append_ledger(experiment, blend)
    page = experiment.folder / REPORT_FILES[0] if report or current else None
    if not track(experiment, runs, out, command="stack", blend=blend, report=page):
        given = given | {TRACKING: "incomplete"}  # the next `stack` logs what is missing
    write_record(experiment.folder, given, files, report=report or current)
    return StackResult(experiment, {run.name: run for run in runs}, blend, findings, page)


def _result_as_it_is(experiment: Experiment, done: Finished) -> StackResult:
    """Returns what a complete `stack` made, as `_stack` would if it made it again."""
    blend = Run(done.folder / "blend", dict(done.blend))
    kept = {run.name: run for run in read_runs(experiment.models)}
    runs = {name: kept[name] for name in blend.meta.get("all_runs", blend.meta["runs"])}
    findings = [] if experiment.shuffled else read_findings(experiment) or []
    append_ledger(experiment, blend)
    return StackResult(experiment, runs, blend, findings, done.report)


def _oof(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    rows = experiment.folds.frame[["id", "split_group", "fold"]].reset_index(drop=True)
    rows.insert(1, "target", experiment.target)
    made = {run.name: run.frame("oof").set_index("id")["p"].reindex(rows["id"]).to_numpy(np.float64) for run in runs}
    return rows.assign(**made)

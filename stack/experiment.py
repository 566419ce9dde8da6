"""An experiment opened: its config, its folder, its checked table and its folds, on disk and in hand."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.config import Config
from stack.console import Out
from stack.errors import DataError
from stack.folds import Folds, make_folds
from stack.store import Run, atomic, fingerprint, frame_fingerprint, read_runs, write_json
from stack.table import Table, read_table, shuffle_targets


@dataclass(frozen=True)
class Experiment:
    """What every step starts from. ``name`` is the config's, or that of its shuffled twin."""

    config: Config
    config_path: Path
    name: str
    table: Table
    folds: Folds

    @property
    def folder(self) -> Path:
        """runs/<experiment>."""
        return self.config.runs / self.name

    @property
    def shuffled(self) -> bool:
        """Whether this is a twin with shuffled targets."""
        return self.name != self.config.experiment

    @property
    def models(self) -> Path:
        """One folder a run."""
        return self.folder / "models"

    @property
    def old(self) -> Path:
        """Stale runs, kept for comparison."""
        return self.folder / "old"

    @property
    def target(self) -> NDArray[np.int8]:
        """0/1, in table order."""
        return self.table.train["target"].to_numpy(np.int8)

    @property
    def split_group(self) -> NDArray[np.object_]:
        """What folds, bootstrap and intervals run over, in table order."""
        return self.folds.frame["split_group"].to_numpy(object)

    @cached_property
    def rows_fingerprint(self) -> str:
        """Of what level 1 is fitted on: training ids, targets, folds; the test ids are predicted, not learned from."""
        frame = self.folds.frame[["id", "split_group", "fold"]].assign(target=self.target)
        return fingerprint({"train": frame_fingerprint(frame), "test": frame_fingerprint(self.table.test[["id"]])})

    @cached_property
    def metadata_fingerprint(self) -> str:
        """Of the columns that only level 2 reads."""
        columns = ["id", "group", "age", "sex", "site"]
        return fingerprint({part: frame_fingerprint(frame[columns]) for part, frame in self._parts()})

    def _parts(self) -> list[tuple[Literal["train", "test"], pd.DataFrame]]:
        return [("train", self.table.train), ("test", self.table.test)]

    def finished(self, level: int) -> list[Run]:
        """Complete runs of this level, by name."""
        return [run for run in read_runs(self.models) if run.meta["level"] == level]


def open_experiment(config: Config, config_path: Path, out: Out, *, shuffle_target: bool = False) -> Experiment:
    """Read and check the rows and deal the folds; says what it found, writes nothing. Raises DataError, ConfigError.

    With ``shuffle_target`` the experiment is ``<name>-shuffled-<seed>``: the same in all but the targets, which are
    exchanged between split_groups of equal size (what it must score is in `stack.null`).
    """
    data = config.data
    columns = data.columns.model_dump(exclude_none=True)
    table = read_table(data.train, data.test, columns=columns)
    folds = _folds(config, table, out)
    name = config.experiment
    if shuffle_target:
        name = f"{name}-shuffled-{config.seed}"
        shuffled = shuffle_targets(table.train, folds.frame["split_group"], seed=config.seed)
        table = Table(shuffled, table.test)
    experiment = Experiment(config, config_path, name, table, folds)
    _introduce(experiment, out)
    return experiment


def write_rows(experiment: Experiment) -> None:
    """table.parquet and folds.parquet, each with its fingerprint in fingerprints.json.

    Called by a step when it has refused nothing, so that what lies on disk agrees with the runs beside it.
    """
    table = pd.concat([frame.assign(part=part) for part, frame in experiment._parts()], ignore_index=True)
    frames = {"table": table, "folds": experiment.folds.frame}
    for name, frame in frames.items():
        with atomic(experiment.folder / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    write_json(
        experiment.folder / "fingerprints.json",
        {name: frame_fingerprint(frame) for name, frame in frames.items()},
    )


def _folds(config: Config, table: Table, out: Out) -> Folds:
    duplicates = None
    if path := config.data.duplicates:
        if not path.is_file():
            raise DataError(f"data.duplicates {path} is not there: give a csv of two id columns, or drop the key")
        try:
            duplicates = pd.read_csv(path, dtype=str, keep_default_na=False)
        except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
            raise DataError(f"data.duplicates {path} is no readable csv ({error}): give two id columns") from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folds = make_folds(
            table.train,
            k=config.folds.k,
            seed=config.folds.seed,
            duplicates=duplicates,
            own=table.train["fold"] if config.data.columns.fold else None,
        )
    for warning in caught:
        out.warn(str(warning.message))
    if duplicates is not None:
        known = len(duplicates) - folds.unknown_pairs
        out.say(f"duplicates: {known} pairs merge groups, {folds.unknown_pairs} name an id outside the training rows")
    return folds


def _introduce(experiment: Experiment, out: Out) -> None:
    train, test = experiment.table.train, experiment.table.test
    out.say(
        f"{experiment.name}: {len(train):,} training rows ({int(experiment.target.sum()):,} positive, "
        f"{experiment.target.mean():.2%}) in {train['group'].nunique():,} groups, {len(test):,} test rows"
    )
    if experiment.table.shared_groups:
        out.warn(f"{experiment.table.shared_groups} groups have rows in both train and test")
    out.table(experiment.folds.summary(experiment.target), "Folds")

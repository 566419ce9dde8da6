"""Opens an experiment: reads and checks its tables, makes its folds and writes both under runs/<experiment>/."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import StoreError
from dermstack.masking import mask_secrets
from stack.console import Out
from stack.folds import NO_SHARES, Folds, make_folds, read_duplicate_pairs, read_folds
from stack.metrics.shuffle import shuffle_targets
from stack.settings.config import Config
from stack.source_folds import folds_of_config, read_sources
from stack.store import (
    Run,
    atomic,
    fingerprint,
    frame_fingerprint,
    read_json,
    read_runs,
    row_positions,
    sha256,
    with_digest,
    write_frame,
    write_json,
)
from stack.tables.columns import described_choices, number_warnings
from stack.tables.external import listed_copies, read_external_tables
from stack.tables.keys import contained, similar_keys
from stack.tables.missing_codes import missing_code_warnings
from stack.tables.python_features import with_python_features
from stack.tables.table import Table, read_table
from stack.tables.units import check_units
from stack.tables.unlabelled import no_unlabelled, read_unlabelled_tables

IN_MEMORY = Path("config.yaml of these settings")  # stands for the path of a config that was given as an object
DROPPED_COLUMNS = ["id", "source", "reason"]
PAIR_COLUMNS = ["id_1", "id_2", "turn", "distance"]
BY_SOURCE = "leave_source_out"  # in the experiment's folder: its copy whose folds hold out whole sources
ONE_SHARE = "at_one_share"  # in the folder of that copy: its level 2 and blend of scores at one share of positives


@dataclass(frozen=True)
class Curation:
    """Rows dropped from the tables (id, source, reason) and near-duplicates (id_1, id_2, turn, distance).

    The folds depend on both, so `dermstack oof` decides them once and keeps them while the images stay the same.
    ``images_fingerprint`` is a fingerprint of the images that were checked; "" where no images were checked yet.
    """

    dropped: pd.DataFrame
    pairs: pd.DataFrame
    images_fingerprint: str = ""
    unmerged: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=PAIR_COLUMNS))  # see `data.on_chain`


NO_CURATION = Curation(
    pd.DataFrame(columns=DROPPED_COLUMNS, dtype="str"), pd.DataFrame(columns=PAIR_COLUMNS).astype({"id_1": "str"})
)


def read_curation(folder: Path) -> Curation:
    """Reads the curation in the experiment's ``folder``; `NO_CURATION` where its images were never checked.

    Raises StoreError for damaged files.
    """
    path = folder / "pictures.json"
    if not path.exists():
        return NO_CURATION
    try:
        noted = read_json(path)
        images_fingerprint = noted["looked_at"]
        for file, digest in noted.get("files", {}).items():  # {}: written by an earlier version of dermstack
            if sha256(folder / file) != digest:
                raise ValueError(f"{file} has changed")
        dropped, pairs = (
            pd.read_csv(folder / file, dtype={"id": str, "id_1": str, "id_2": str}, keep_default_na=False)
            for file in ("dropped.csv", "near_duplicates.csv")
        )
        return Curation(dropped[DROPPED_COLUMNS], pairs[PAIR_COLUMNS], str(images_fingerprint))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} or a csv beside it is damaged ({error}): remove {path} and run `dermstack oof`"
        ) from error


def write_curation(folder: Path, curation: Curation) -> None:
    """Writes dropped.csv and near_duplicates.csv, then pictures.json with their hashes."""
    files = {}
    for name, frame in (("dropped", curation.dropped), ("near_duplicates", curation.pairs)):
        with atomic(path := folder / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False)
        files[path.name] = sha256(path)
    summary = {"looked_at": curation.images_fingerprint, "dropped": len(curation.dropped), "pairs": len(curation.pairs)}
    write_json(folder / "pictures.json", with_digest(summary | {"files": files}))


@dataclass(frozen=True)
class Experiment:
    """The input of every step: config, tables and folds.

    ``name`` is the config's experiment, or that of its copy with shuffled targets.
    """

    config: Config
    config_path: Path
    name: str
    table: Table
    folds: Folds
    curation: Curation  # dropped rows and near-duplicates, found by checking the images
    as_read: Table  # the tables before rows were dropped
    external_as_read: pd.DataFrame  # id, source, group, target, …: rows that are only used to train level 1
    overrides: tuple[str, ...] = ()  # overrides of the config, as given with `--set`, with secrets masked
    unlabelled_as_read: pd.DataFrame = field(default_factory=no_unlabelled)  # id, source, group, …: rows without target
    collided: Mapping[str, int] = field(default_factory=dict)  # by further table: rows dropped as another has their id
    # external rows that `data.duplicates` joins to a row of train or test: id, source, reason
    listed_copies: pd.DataFrame = field(default_factory=lambda: NO_CURATION.dropped)
    # (n,) training rows on which nothing is fitted and which are not scored, although all runs cover them; None: no row
    left_out: NDArray[np.bool_] | None = None
    copy_of: Path | None = None  # of a copy with folds of sources: the models of the experiment itself
    at_one_share: bool = False  # of such a copy: scores of its models are moved to one share of positives

    @property
    def folder(self) -> Path:
        """The experiment's folder, runs/<experiment>."""
        return self.config.runs / self.name

    @property
    def shuffled(self) -> bool:
        """Whether this is the copy with shuffled targets."""
        return self.name != self.config.experiment

    def command(self, step: str, *options: str) -> str:
        """Returns the command of a step (`oof`, `tune blend`), for messages; without a file, the call in Python."""
        if self.config_path == IN_MEMORY and step in ("oof", "stack"):
            shuffled = ", shuffle_target=True" if self.shuffled else ""
            rebuilt = f", rebuild={list(options[1::2])}" if options[:1] == ("--rebuild",) else ""
            return f"dermstack.run_{step}(config{shuffled}{rebuilt})"
        words = [
            "dermstack",
            *step.split(),
            "--config",
            str(self.config_path),
            *(f"--set={given}" for given in self.overrides),
        ]
        if self.shuffled:
            words.append("--shuffle-target")
        return shlex.join([*words, *options])

    @property
    def models(self) -> Path:
        """Folder that holds one folder for each run."""
        return self.folder / "models"

    @property
    def old(self) -> Path:
        """Folder of stale runs, kept for comparison."""
        return self.folder / "old"

    @property
    def target(self) -> NDArray[np.int8]:
        """Targets 0/1 (n,) of the training rows, in table order."""
        return self.table.train["target"].to_numpy(np.int8)

    @property
    def split_group(self) -> NDArray[np.object_]:
        """Split groups (n,) of the training rows, in table order: the unit of folds, bootstrap and intervals."""
        return self.folds.frame["split_group"].to_numpy(object)

    def rows_of(self, ids: Iterable[str]) -> NDArray[np.intp]:
        """Returns the table rows (n,) of training ids (n,). Raises StoreError for an id that is not in the table."""
        return row_positions(ids, self.table.train["id"], f"the training rows of {self.name}")

    @cached_property
    def external(self) -> pd.DataFrame:
        """External rows without the dropped ones and those that show a row of train or test."""
        dropped = {*self.curation.dropped["id"], *self.listed_copies["id"]}
        return self.external_as_read[~self.external_as_read["id"].isin(dropped)].reset_index(drop=True)

    @cached_property
    def unlabelled(self) -> pd.DataFrame:
        """Unlabelled rows without the dropped ones."""
        lost = self.unlabelled_as_read["id"].isin(self.curation.dropped["id"])
        return self.unlabelled_as_read[~lost].reset_index(drop=True)

    @cached_property
    def unreadable_test(self) -> pd.DataFrame:
        """Test rows that are no rows of ``table`` since their image cannot be read: id, reason."""
        dropped = self.curation.dropped[["id", "reason"]]
        lost = contained(dropped["id"], self.as_read.test["id"]) & ~contained(dropped["id"], self.table.test["id"])
        return dropped[lost].reset_index(drop=True)

    @property
    def unreadable_train(self) -> int:
        """Number of training rows that are dropped, since their image cannot be read."""
        return int(self.as_read.train["id"].isin(self.curation.dropped["id"]).sum())

    @cached_property
    def rows_fingerprint(self) -> str:
        """Fingerprint of the rows of level 1: training ids, split groups, folds and targets, and the test ids."""
        frame = self.folds.frame[["id", "split_group", "fold"]].assign(target=self.target)
        if self.left_out is not None:
            frame = frame.assign(left_out=self.left_out)
        return fingerprint({"train": frame_fingerprint(frame), "test": frame_fingerprint(self.table.test[["id"]])})

    @cached_property
    def metadata_fingerprint(self) -> str:
        """Fingerprint of id, group, age, sex, site and all further columns of the training and test rows."""
        return self.columns_fingerprint(self.table.columns.names)

    def columns_fingerprint(self, names: Iterable[str]) -> str:
        """Fingerprint of id, group, age, sex, site and the further columns ``names`` of the training and test rows."""
        columns = ["id", "group", "age", "sex", "site", *names]
        return fingerprint({part: frame_fingerprint(frame[columns]) for part, frame in self._parts()})

    def _parts(self) -> list[tuple[Literal["train", "test"], pd.DataFrame]]:
        return [("train", self.table.train), ("test", self.table.test)]

    @cached_property
    def listed_duplicates(self) -> pd.DataFrame | None:
        """The pairs of `data.duplicates` (id_1, id_2), see `read_duplicate_pairs`; None where there is no such file."""
        ids = _all_ids(self.as_read, self.external_as_read, self.unlabelled_as_read)
        return read_duplicate_pairs(self.config.data.duplicates, ids)

    def finished(self, level: int) -> list[Run]:
        """Returns the complete runs of this level, sorted by name."""
        return [run for run in read_runs(self.models) if run.meta["level"] == level]


def open_experiment(
    config: Config,
    config_path: Path,
    out: Out,
    *,
    overrides: tuple[str, ...] = (),
    shuffle_target: bool = False,
    curation: Curation | None = None,
) -> Experiment:
    """Reads and checks the tables and makes the folds; writes nothing. Raises DataError, ConfigError, StoreError.

    ``curation`` has the dropped rows and near-duplicates; by default it is read from the experiment's folder. With
    ``shuffle_target`` the experiment is ``<name>-shuffled-<seed>``, a copy whose targets are exchanged between
    split_groups of equal size (see `stack.metrics.shuffle`, also for the expected score). ``overrides`` are those with
    which ``config`` was read; commands quoted in messages repeat them.
    """
    if shuffle_target and config.predict_per is not None:  # targets are exchanged between groups of as many images
        out.say("shuffled targets are scored for single images, without `predict_per`")
        config = config.model_copy(update={"predict_per": None})
    data = config.data
    name = config.experiment_name(shuffled=shuffle_target)
    curation = read_curation(config.runs / name) if curation is None else curation
    as_read = read_table(
        data.train,
        data.test,
        columns=data.columns.roles,
        group_features=_group_features(config),
        rules=replace(data.column_rules, derived=config.features.derived),
        per=() if config.predict_per is None else config.predict_per.columns,
    )
    table = replace(as_read, train=as_read.train[~as_read.train["id"].isin(curation.dropped["id"])])
    table = replace(table, train=table.train.reset_index(drop=True))
    if config.features.python is not None:
        table = with_python_features(table, config.features.python)
        as_read = replace(as_read, test=table.test, columns=table.columns)
    if data.sources is not None:
        sources = read_sources(data.sources, data.columns.id, table.train["id"])
        table = replace(table, train=table.train.assign(source=sources))
    external, collided_external = read_external_tables(config, as_read, out)
    unlabelled, collided_unlabelled = read_unlabelled_tables(config, as_read, external, out)
    listed = read_duplicate_pairs(data.duplicates, _all_ids(as_read, external, unlabelled))
    copies = listed_copies(external, listed, as_read, {one.name: one.on_collision for one in data.external})
    if len(copies):
        out.say(f"{len(copies):,} external rows are dropped: data.duplicates names each as an image of train or test")
    kept, test = table.train, table.test
    if data.on_unreadable_test == "table":
        test = test[~test["id"].isin(curation.dropped["id"])].reset_index(drop=True)
    folds, kept = _make_folds(config, kept, curation, listed, out)
    if config.predict_per is not None and table.units is not None:
        check_units(
            config.predict_per, table.units, train=kept, split_group=folds.frame["split_group"],
            test=test if table.test_groups_known else None, group_column=data.columns.group,
        )  # fmt: skip
    if shuffle_target:
        kept = shuffle_targets(kept, folds.frame["split_group"], seed=config.seed)
    return Experiment(
        config=config,
        config_path=config_path,
        name=name,
        table=replace(table, train=kept, test=test),
        folds=folds,
        curation=curation,
        as_read=as_read,
        external_as_read=external,
        overrides=tuple(map(mask_secrets, overrides)),
        unlabelled_as_read=unlabelled,
        collided=collided_external | collided_unlabelled,
        listed_copies=copies,
    )


def write_rows(experiment: Experiment) -> None:
    """Writes table.parquet, folds.parquet, their fingerprints (fingerprints.json) and the curation.

    A step calls this after all its checks have passed, so that these files agree with the runs in the same folder.
    """
    frames = {"table": _all_rows(experiment), "folds": experiment.folds.frame}
    for name, frame in frames.items():
        write_frame(experiment.folder / f"{name}.parquet", frame)
    write_json(
        experiment.folder / "fingerprints.json",
        {name: frame_fingerprint(frame) for name, frame in frames.items()},
    )
    if experiment.curation.images_fingerprint:
        write_curation(experiment.folder, experiment.curation)


def rows_are_written(experiment: Experiment) -> bool:
    """Whether the experiment's folder holds what `write_rows` would write."""
    frames = {"table": _all_rows(experiment), "folds": experiment.folds.frame}
    paths = [experiment.folder / f"{name}.parquet" for name in frames]
    try:
        known = read_json(experiment.folder / "fingerprints.json")
        kept = read_curation(experiment.folder).images_fingerprint
    except (OSError, ValueError, StoreError):
        return False
    same = known == {name: frame_fingerprint(frame) for name, frame in frames.items()}
    return same and kept == experiment.curation.images_fingerprint and all(path.is_file() for path in paths)


def _all_rows(experiment: Experiment) -> pd.DataFrame:
    return pd.concat([frame.assign(part=part) for part, frame in experiment._parts()], ignore_index=True)


def print_overview(experiment: Experiment, out: Out) -> None:
    """Prints the number of rows and groups, the dropped rows, the duplicates and a table of the folds."""
    train, test = experiment.table.train, experiment.table.test
    out.say(
        f"{experiment.name}: {len(train):,} training rows ({int(experiment.target.sum()):,} positive, "
        f"{experiment.target.mean():.2%}) in {train['group'].nunique():,} groups, {len(test):,} test rows"
    )
    if dropped := experiment.unreadable_train:
        out.warn(
            f"{dropped} training rows are dropped, as their images cannot be read: see {experiment.folder}/dropped.csv"
        )
    if lost := len(experiment.unreadable_test):
        out.warn(
            f"{lost} test rows are predicted from the table alone (data.on_unreadable_test: table), as their images "
            f"cannot be read: see {experiment.folder}/dropped.csv"
        )
    if experiment.config.data.duplicates:
        unknown = experiment.folds.unknown_pairs
        out.say(f"duplicates: groups of listed pairs are merged; {unknown} pairs have an id outside the training rows")
    if found := len(train_pairs(experiment.curation, train)):
        out.say(f"near-duplicates: {found} pairs of training images; images of a pair are always in the same fold")
    data = experiment.config.data
    parts = {str(path): frame for path, frame in ((data.train, train), (data.test, test)) if path is not None}
    for warning in missing_code_warnings(parts, experiment.table.columns):
        out.warn(warning)
    for note in experiment.table.notes:
        out.warn(note)
    for line in described_choices(experiment.table.columns):
        out.say(line)
    for line in number_warnings(experiment.table.columns):
        out.warn(line)
    if experiment.table.groups_known and not experiment.table.test_groups_known:
        out.warn(
            f"{experiment.config.data.test} has no column {experiment.config.data.columns.group!r}: each test row is a "
            "group of its own. No feature uses groups of test rows, but groups in both train and test cannot be found"
        )
    if experiment.table.shared_groups:
        out.warn(f"{experiment.table.shared_groups} groups have rows in both train and test")
    groups = [train["group"], *([test["group"]] if experiment.table.test_groups_known else [])]
    if alike := similar_keys(pd.concat(groups)):
        one, other = alike[0]
        out.warn(
            f"{len(alike)} pairs of groups may be one, such as {one!r} and {other!r}, which differ only as numbers are "
            "written, or in case or spaces: they count as two, and if they are one patient, rows of it are in the "
            "training part of the fold that scores it. Give them one name, or names that differ more"
        )
    folds = experiment.folds.summary(experiment.target, train)
    out.table(folds, "Folds", shares=folds.columns.difference(list(NO_SHARES)))


def _group_features(config: Config) -> list[str]:
    """Returns the settings that use the groups of test rows."""
    if not any(stacker.enabled for stacker in config.stackers):
        return []
    names = ["aggregates", "neighbours", "context_counts", "probability_ratio"]
    if config.data.columns.numeric or config.features.derived or config.features.python is not None:
        names += ["relative", "relative_site", "outliers"]
    return [f"features.{name}" for name in names if getattr(config.all_features, name)]


def _all_ids(table: Table, *further: pd.DataFrame) -> pd.Series:
    return pd.concat([frame["id"] for frame in (table.train, table.test, *further)], ignore_index=True)


def _make_folds(
    config: Config, train: pd.DataFrame, curation: Curation, listed: pd.DataFrame | None, out: Out
) -> tuple[Folds, pd.DataFrame]:
    """Makes the folds, with near-duplicates and ``listed`` pairs in one fold; also returns the rows that have a fold.

    These are all of ``train``, unless folds of whole sources leave out rows of groups in several sources.
    """
    pairs = [train_pairs(curation, train), *([] if listed is None else [listed])]
    duplicates = pd.concat(pairs, ignore_index=True)
    by_source = config.folds.by == "source"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folds = make_folds(
            train,
            k=2 if by_source else config.folds.k,  # by source: only the split groups of these folds are used
            seed=config.folds.seed,
            duplicates=duplicates,
            own=_own_folds(config, train),
            stratify=config.folds.stratify,
        )
        if by_source:
            folds, train = folds_of_config(folds, train, config.folds)
    for warning in caught:
        out.warn(str(warning.message))
    return folds, train


def _own_folds(config: Config, train: pd.DataFrame) -> pd.Series | None:
    """Returns the existing folds (n,) that the config names, in the table or in a file, as text; None without any."""
    if config.data.columns.fold:
        return train["fold"]
    return None if (path := config.folds.file) is None else read_folds(path, config.data.columns.id, train["id"])


def train_pairs(curation: Curation, train: pd.DataFrame) -> pd.DataFrame:
    """Returns the near-duplicate pairs (id_1, id_2) whose ids are both training rows."""
    found = curation.pairs[["id_1", "id_2"]].astype("str")
    if found.empty:
        return found
    named = pd.unique(pd.concat([found["id_1"], found["id_2"]]))
    there = train["id"][train["id"].isin(named)]  # few: to look up in a million ids takes seconds for each column
    return found[found["id_1"].isin(there) & found["id_2"].isin(there)]

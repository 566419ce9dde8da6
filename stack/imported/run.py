"""Imports predictions of another pipeline as a run, after checks against the experiment's ids, groups and folds."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError, StoreError
from stack.console import Out
from stack.experiment import Experiment, write_rows
from stack.imported.folds import FoldMatch, check_nets, match_rows, net_label, net_numbers
from stack.imported.prediction_files import (
    FINEST_EDGE,
    Files,
    ImportedColumns,
    Part,
    read_parts,
    read_predictions_file,
    read_wide_file,
)
from stack.metrics.resolution import Limits, clip_limits, clipped_logit
from stack.predictions.doubts import doubts
from stack.predictions.plausibility import FACTS_TITLE, facts_table, is_fresh, run_facts
from stack.predictions.ranks import AVERAGED
from stack.predictions.run_views import Scores
from stack.settings.image_models import NAME_PATTERN
from stack.store import Run, fingerprint, locked, prediction_frame, read_run, set_aside, sha256, write_run
from stack.tables.keys import contained, keys_as_in
from stack.views import blends_run

ROUNDING_TOLERANCE = 1e-3  # rounding error of probabilities written with three digits


@dataclass(frozen=True)
class ImportOptions:
    """How the files of a run are read.

    ``test_averaged`` means that the test file has one averaged row an id; ``averaged_where_needed`` takes test files
    with one row an id as averaged and others by net. ``exclude`` is the exact number of training rows that the file
    lacks. The fold column must match the experiment's folds (their numbers may differ); other folds need
    ``foreign_folds``, which is recorded, because stacking on them is not fold-consistent. With ``all_rows_prefix`` the
    file of all rows has one column a model, named by the prefix and its fold. ``average_seeds`` averages files, or rows
    of one file, that differ in their seed only.
    """

    columns: ImportedColumns
    test_columns: ImportedColumns
    test_averaged: bool = False
    averaged_where_needed: bool = False
    exclude: int = 0
    foreign_folds: bool = False
    all_rows_prefix: str | None = None
    average_seeds: bool = False


@dataclass(frozen=True)
class Source:
    """The files that become the run ``name``, and how they are read.

    ``all_rows`` has the predictions of every fold model for every row of the out-of-fold file, one row an id and model;
    only the audit uses them.
    """

    name: str
    oof: tuple[Part, ...]
    test: tuple[Part, ...]
    options: ImportOptions
    all_rows: Path | None = None


@dataclass(frozen=True)
class Checked:
    """The predictions of one run, read and checked, and what run.json says of them."""

    name: str
    frames: dict[str, pd.DataFrame]
    meta: dict[str, Any]

    @property
    def scores(self) -> Scores:
        """The predictions in the form that `stack.predictions.plausibility` takes."""
        return Scores(self.name, "imported", self.frames["oof"], self.frames["test"])


def import_source(experiment: Experiment, source: Source, out: Out, *, replace: bool) -> Run:
    """Writes the run of another pipeline's probabilities, and prints the facts about them.

    Raises DataError that names the file, rows and values; StoreError where the run exists and ``replace`` is not set.
    """
    check_name(experiment, source.name)
    folder = experiment.models / source.name
    if read_run(folder) and not replace:
        raise StoreError(f"{folder} exists: add --replace to set it aside and import again")
    if unread := unread_test_file(experiment, source):
        out.warn(unread)
    checked = check_source(experiment, source, Files())
    _check_plausible(experiment, checked, source, out)
    with locked(experiment.folder):
        write_rows(experiment)
        run, aside = write_checked(experiment, checked)
        if aside:
            out.say(f"{source.name}: the old run is kept as {aside}")
        return run


def check_name(experiment: Experiment, name: str) -> None:
    """Raises DataError where ``name`` cannot be that of an imported run."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise DataError(
            f"{name!r} cannot be the name of a run: use at most 64 letters, digits, '_', '-' and '.', and begin with a "
            "letter or digit"
        )
    if name in experiment.config.model_names:
        raise DataError(f"{name} is a model of {experiment.config_path}: choose another name for the imported run")


def unread_test_file(experiment: Experiment, source: Source) -> str:
    """Returns a warning where the experiment has no test rows, but the source has their predictions; "" otherwise."""
    if source.test and not len(experiment.table.test):
        return f"the experiment has no test rows (data.test): {source.test[0].path} is not read"
    return ""


def check_source(experiment: Experiment, source: Source, files: Files) -> Checked:
    """Reads the files of one run and checks their rows, folds and values. Raises DataError, naming the file."""
    options = source.options
    if options.all_rows_prefix is not None and source.all_rows is None:
        raise DataError(f"--all-rows-prefix {options.all_rows_prefix} needs a file: name it with --all-rows")
    path = source.oof[0].path
    train = experiment.table.train["id"]
    oof = read_parts(
        source.oof, options.columns, needs_fold=not options.foreign_folds, alternative="--foreign-folds", files=files,
        respell=lambda ids, file: keys_as_in(ids, train, f"{file}: id", of="the training rows"),
        average_seeds=options.average_seeds,
    )  # fmt: skip
    fold = match_rows(experiment, oof, path, options.columns, exclude=options.exclude, foreign=options.foreign_folds)
    has_test = bool(len(experiment.table.test))
    if has_test and not source.test:
        raise DataError("the experiment has test rows: give their predictions with --test")
    frames = {"oof": prediction_frame(oof["id"], fold.numbers, to_logit(oof["p"]))}
    averaged = options.test_averaged
    if has_test:
        frames["test"], averaged, clip = _test_frame(experiment, source, fold, files)
    else:
        frames["test"], clip = prediction_frame([], 0, np.empty(0, np.float32)), _limits(oof["p"])
    if source.all_rows:
        frames["all_rows"] = _all_rows_frame(
            source.all_rows, options.columns, oof, fold, prefix=options.all_rows_prefix, files=files
        )
    inputs = inputs_of(experiment, source)
    meta = {
        "fingerprint": fingerprint(inputs),
        "level": 1,
        "kind": "imported",
        "inputs": inputs,
        "excluded": options.exclude,
        "foreign_folds": fold.foreign,
        "test_averaged": averaged,
        "clip": list(clip),  # at which the predictions of new rows are clipped too, however fine their file is
        "nets": {net_label(label): fold_of_net for label, fold_of_net in fold.theirs.items()},
        "read_as": read_as(source),
    }
    return Checked(source.name, frames, meta)


def inputs_of(experiment: Experiment, source: Source) -> dict[str, str]:
    """Returns what the run depends on, by name, as its run.json records it."""
    has_test = bool(len(experiment.table.test))
    hashed = {"oof": _hashes(source.oof), "test": _hashes(source.test) if has_test and source.test else None}
    if source.all_rows:
        hashed["all_rows"] = _hash(source.all_rows)
    return {"rows or folds": experiment.rows_fingerprint, "files": fingerprint(hashed)}


def _hashes(parts: Sequence[Part]) -> str | list[str]:
    """Returns the hash of one file, or those of several."""
    hashes = [_hash(part.path) for part in parts]
    return hashes[0] if len(hashes) == 1 else hashes


def _hash(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): correct its path") from error


def read_as(source: Source) -> dict[str, Any]:
    """Returns how the files were read: columns, options, and what their names say of folds and seeds."""
    options = asdict(source.options)
    del options["averaged_where_needed"]  # what was decided is in the predictions
    for key in ("columns", "test_columns"):
        del options[key]["option"]
        options[key]["ids"] = None if (ids := options[key]["ids"]) is None else _hash(ids)
    names = {part: [[one.fold, one.seed, one.p] for one in getattr(source, part)] for part in ("oof", "test")}
    return {**options, "parts": names}


def write_checked(experiment: Experiment, checked: Checked) -> tuple[Run, Path | None]:
    """Writes a run, in a locked experiment whose rows are written; returns it and where an older one is kept."""
    folder = experiment.models / checked.name
    aside = set_aside(folder, experiment.old)
    return write_run(folder, checked.meta, frames=checked.frames), aside


def _test_frame(
    experiment: Experiment, source: Source, fold: FoldMatch, files: Files
) -> tuple[pd.DataFrame, bool, Limits]:
    """Returns the predictions of the test rows, whether they are averaged over nets, and where they are clipped."""
    path, columns, options = source.test[0].path, source.options.test_columns, source.options
    known, averaged = experiment.as_read.test["id"], options.test_averaged
    test = read_parts(
        source.test, columns, needs_fold=not (averaged or fold.foreign), alternative="--test-averaged", files=files,
        respell=lambda ids, file: keys_as_in(ids, known, f"{file}: id", of="the test rows"),
        average_seeds=options.average_seeds,
    )  # fmt: skip
    # Rows that no image model can predict get the fallback, whatever an imported file says about them.
    if len(lost := experiment.unreadable_test["id"]):
        test = test[~contained(test["id"], lost)].reset_index(drop=True)
    if averaged and options.averaged_where_needed and "fold" in test:
        averaged = not test["id"].duplicated().any()
    if averaged or "fold" not in test:
        numbers = pd.Series(AVERAGED, index=test.index)
    elif fold.foreign:
        nets = test["fold"].nunique()
        if fold.theirs and nets != len(fold.theirs):
            raise DataError(
                f"{path}: predictions of {nets} nets, but the out-of-fold file has {len(fold.theirs)}: "
                "give the rows of every net, or one averaged row an id (--test-averaged)"
            )
        numbers = pd.Series(pd.factorize(test["fold"], sort=True)[0], index=test.index)
    else:
        numbers = net_numbers(
            test["fold"], fold, path, columns, instead=", or give one averaged row an id (--test-averaged)"
        )
    check_nets(test["id"], numbers.to_numpy(), experiment.table.test["id"], path, what="test rows")
    clip = _limits(test["p"])
    return prediction_frame(test["id"], numbers.to_numpy(np.int8), to_logit(test["p"], clip)), averaged, clip


def _all_rows_frame(
    path: Path, columns: ImportedColumns, oof: pd.DataFrame, fold: FoldMatch, *, prefix: str | None, files: Files
) -> pd.DataFrame:
    """Reads the predictions of every fold model for every row of the out-of-fold file.

    Raises DataError where a model's predictions for its held-out rows differ from those of the out-of-fold file.
    """
    if not fold.theirs:
        raise DataError(
            f"{path}: the out-of-fold file has no column {columns.fold!r}, so it is unknown which model held out a "
            "row: add the column, or leave out --all-rows"
        )
    if prefix is None:
        made = read_predictions_file(
            path, columns, needs_fold=True, alternative="--all-rows-prefix, for one column a net", files=files
        )
    else:
        made = read_wide_file(path, columns, prefix, files=files)
    made["id"] = keys_as_in(made["id"], oof["id"], f"{path}: id", of="the out-of-fold file")
    numbers = net_numbers(made["fold"], fold, path, columns, instead="")
    check_nets(made["id"], numbers.to_numpy(), oof["id"], path, what="out-of-fold rows")
    claimed = oof[["id", "p"]].assign(net=fold.numbers)
    own = made.assign(net=numbers).merge(claimed, on=["id", "net"], suffixes=("", "_oof"), validate="one_to_one")
    apart = (own["p"] - own["p_oof"]).abs()
    if (apart > ROUNDING_TOLERANCE).any():
        first = own.iloc[int(np.argmax(apart))]
        raise DataError(
            f"{path}: in {(apart > ROUNDING_TOLERANCE).sum()} rows the model that held the row out has another p than "
            f"in the out-of-fold file, the largest difference for {first['id']!r}: {first['p']:.4f} and "
            f"{first['p_oof']:.4f}: make both files from the same models, or check their folds"
        )
    return prediction_frame(made["id"], numbers.to_numpy(np.int8), to_logit(made["p"]))


def to_logit(p: pd.Series, clip: Limits | None = None) -> NDArray[np.float32]:
    """Returns the logits of a file's probabilities (n,), clipped; by default half of the file's resolution inside."""
    result: NDArray[np.float32] = clipped_logit(p, clip or _limits(p)).astype(np.float32)
    return result


def _limits(p: pd.Series) -> Limits:
    return clip_limits(p, FINEST_EDGE)


def _check_plausible(experiment: Experiment, checked: Checked, source: Source, out: Out) -> None:
    """Prints the facts about a run's predictions and what is doubtful about them; raises DataError for an error."""
    facts = run_facts(experiment, [checked.scores], known_scores(experiment, out, without={checked.name}))
    for doubt in doubts(facts, is_blended=partial(blends_run, experiment.config)):
        if doubt.severity == "error":
            raise DataError(f"{source.oof[0].path}: {doubt.title} ({doubt.evidence}): {doubt.remedy}")
        out.warn(f"{doubt.title} ({doubt.evidence}): {doubt.remedy}")
    out.table(facts_table(facts), FACTS_TITLE)


def known_scores(experiment: Experiment, out: Out, *, without: Collection[str]) -> Iterator[Scores]:
    """Yields the predictions of the finished runs of level 1 to compare with, but those named ``without``.

    One that is damaged is no reason to refuse another's import.
    """
    for run in experiment.finished(level=1):
        try:
            if run.name not in without and is_fresh(experiment, run):
                yield Scores.of(run)
        except StoreError as error:
            out.warn(f"not compared with {run.name}: {error}")

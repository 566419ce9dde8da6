"""Predictions made elsewhere, brought in as a run: checked row by row against the ids, groups and folds here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.errors import DataError, StoreError
from stack.experiment import Experiment, write_rows
from stack.matrix import to_logit
from stack.ranks import AVERAGED
from stack.reading import check_header
from stack.settings import NAME
from stack.store import Run, fingerprint, locked, prediction_frame, read_run, set_aside, sha256, write_run

MAX_FOLDS = 100  # as in a config; a column with more is no fold column


@dataclass(frozen=True)
class ImportedColumns:
    """How the files name things; ``fold`` is the net that made a row, in either file."""

    id: str
    p: str
    fold: str


def import_oof(
    experiment: Experiment,
    name: str,
    oof_csv: Path,
    test_csv: Path | None,
    out: Out,
    *,
    columns: ImportedColumns,
    test_averaged: bool,
    exclude: int,
    foreign_folds: bool,
    replace: bool,
) -> Run:
    """Write the run ``name`` from another pipeline's probabilities.

    ``exclude`` is how many training rows the file lacks: neither more nor fewer. Its fold column must put the rows
    into the experiment's folds (numbers may differ); other folds need ``foreign_folds``, which stays on record, as
    stacking on them is not fold-consistent. ``test_averaged`` is for a test file of one averaged row an id.

    Raises DataError naming the file, rows and values; StoreError where the run exists and ``replace`` isn't set.
    """
    folder = experiment.models / name
    if not re.fullmatch(NAME, name):
        raise DataError(f"{name!r} can't name a run: use letters, digits, '_', '-' and '.', 64 at most")
    if name in experiment.config.model_names:
        raise DataError(f"{name} is a model of {experiment.config_path}: choose another name for the imported run")
    if read_run(folder) and not replace:
        raise StoreError(f"{folder} exists: add --replace to set it aside and import again")
    oof = _read(oof_csv, columns, fold_unless=None if foreign_folds else "--foreign-folds")
    fold = _check_oof(experiment, oof, oof_csv, columns, exclude=exclude, foreign=foreign_folds)
    has_test = bool(len(experiment.table.test))
    if has_test and test_csv is None:
        raise DataError("the experiment has test rows: give their predictions with --test")
    if test_csv and not has_test:
        out.warn(f"the experiment has no test rows (data.test): {test_csv} is not read")
    frames = {"oof": prediction_frame(oof["id"], fold.numbers, to_logit(oof["p"].to_numpy()))}
    frames["test"] = (
        _test_frame(experiment, test_csv, columns, fold, averaged=test_averaged)
        if has_test and test_csv
        else prediction_frame([], 0, np.empty(0, np.float32))
    )
    inputs = {
        "rows or folds": experiment.rows_fingerprint,
        "files": fingerprint({"oof": sha256(oof_csv), "test": sha256(test_csv) if has_test and test_csv else None}),
    }
    meta = {
        "fingerprint": fingerprint(inputs),
        "level": 1,
        "kind": "imported",
        "inputs": inputs,
        "excluded": exclude,
        "foreign_folds": fold.foreign,
        "test_averaged": test_averaged,
    }
    with locked(experiment.folder):
        write_rows(experiment)
        if aside := set_aside(folder, experiment.old):
            out.say(f"{name}: the old run is kept as {aside}")
        return write_run(folder, meta, frames=frames)


@dataclass(frozen=True)
class _FoldMatch:
    numbers: NDArray[np.int8]  # of each out-of-fold row: ours, or its own where they are foreign
    theirs: dict[object, int]  # their number → ours
    foreign: bool


def _check_oof(
    experiment: Experiment,
    oof: pd.DataFrame,
    path: Path,
    columns: ImportedColumns,
    *,
    exclude: int,
    foreign: bool,
) -> _FoldMatch:
    ids = pd.Index(experiment.table.train["id"])
    doubled = oof["id"][oof["id"].duplicated()]
    if len(doubled):
        raise DataError(f"{path}: {len(doubled)} ids in more than one row, first {doubled.iloc[0]!r}: one row an id")
    rows = ids.get_indexer(oof["id"])
    if (rows < 0).any():
        first = oof["id"][rows < 0].iloc[0]
        raise DataError(
            f"{path}: {(rows < 0).sum()} ids are no training rows, first {first!r}: drop them from the file"
        )
    lacking = len(ids) - len(rows)
    if lacking != exclude:
        raise DataError(
            f"{path}: {lacking} of {len(ids)} training rows have no prediction, {exclude} declared: "
            + (f"add `--exclude {lacking}` to leave them out of the stack" if lacking else "drop --exclude")
        )
    ours = experiment.folds.frame["fold"].to_numpy()[rows]
    if empty := sorted(set(range(experiment.folds.k)) - set(ours)):
        raise DataError(f"{path}: no prediction for any row of fold {empty[0]}: stacking needs rows of every fold")
    if "fold" not in oof:
        return _FoldMatch(np.zeros(len(oof), np.int8), {}, foreign=True)
    pairs = pd.DataFrame({"theirs": oof["fold"], "ours": ours}).drop_duplicates()
    if len(pairs) == pairs["theirs"].nunique() == pairs["ours"].nunique():
        return _FoldMatch(ours.astype(np.int8), dict(zip(pairs["theirs"], pairs["ours"], strict=True)), foreign=False)
    if not foreign:
        raise DataError(
            f"{path}: column {columns.fold!r} holds other folds than the experiment's: use its folds here "
            "(data.columns.fold), or add --foreign-folds, which is recorded and shown with the run's numbers"
        )
    _check_groups(experiment, oof, rows, path)
    return _FoldMatch(pd.factorize(oof["fold"], sort=True)[0].astype(np.int8), {}, foreign=True)


def _check_groups(experiment: Experiment, oof: pd.DataFrame, rows: NDArray[np.intp], path: Path) -> None:
    """Foreign folds may differ from ours, but a group that they tear apart has leaked into the predictions."""
    torn = pd.Series(oof["fold"].to_numpy()).groupby(experiment.split_group[rows]).nunique()
    torn = torn[torn > 1]
    if len(torn):
        raise DataError(
            f"{path}: its folds split {len(torn)} groups, first {torn.index[0]!r}: these predictions have seen "
            "other rows of the groups that they are scored on; make them again with grouped folds"
        )


def _test_frame(
    experiment: Experiment, path: Path, columns: ImportedColumns, fold: _FoldMatch, *, averaged: bool
) -> pd.DataFrame:
    test = _read(path, columns, fold_unless=None if averaged or fold.foreign else "--test-averaged")
    if averaged or "fold" not in test:
        numbers = pd.Series(AVERAGED, index=test.index)
    elif fold.foreign:
        numbers = pd.Series(pd.factorize(test["fold"], sort=True)[0], index=test.index)
    else:
        numbers = test["fold"].map(fold.theirs)
        if numbers.isna().any():
            strange = sorted(set(test["fold"][numbers.isna()].astype(str)))
            raise DataError(
                f"{path}: fold {', '.join(strange)} is none of the out-of-fold file's: check {columns.fold!r}, or add "
                "--test-averaged for one averaged row an id"
            )
        if lacking := [str(theirs) for theirs, ours in fold.theirs.items() if ours not in set(numbers)]:
            raise DataError(
                f"{path}: no row is of net {', '.join(sorted(lacking))}, which the out-of-fold file has: give every "
                "net's rows, or one averaged row an id with --test-averaged"
            )
    wanted = pd.Index(experiment.table.test["id"])
    for number in sorted(set(numbers)):
        ids = test["id"][numbers == number]
        net = "" if number == AVERAGED else f" of net {number}"
        if ids.duplicated().any():
            raise DataError(
                f"{path}: {ids.duplicated().sum()} ids in more than one row{net}: one row an id and net "
                "(name the net's column with --fold-column, or give one averaged row with --test-averaged)"
            )
        if len(ids) != len(wanted) or not wanted.isin(ids).all():
            raise DataError(
                f"{path}: {(~wanted.isin(ids)).sum()} test rows have no prediction{net}, "
                f"{(~ids.isin(wanted)).sum()} ids are no test rows: give exactly the test csv's ids"
            )
    return prediction_frame(test["id"], numbers.to_numpy(np.int8), to_logit(test["p"].to_numpy()))


def _read(path: Path, columns: ImportedColumns, *, fold_unless: str | None) -> pd.DataFrame:
    """id (str), p in [0, 1] and fold, which may be missing only where no option ``fold_unless`` has to allow it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    check_header(path)
    try:
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")  # an id "NA" is an id
    except (ValueError, MemoryError) as error:
        raise DataError(f"{path}: not a readable csv in UTF-8 ({error})") from error
    wanted = {"id": columns.id, "p": columns.p}
    if columns.fold in raw or fold_unless:
        wanted["fold"] = columns.fold
    for key, name in wanted.items():
        if name not in raw:
            near = difflib.get_close_matches(name, map(str, raw.columns), n=1)
            hint = f"did you mean --{key}-column {near[0]}?" if near else f"it has {', '.join(map(str, raw.columns))}"
            without = f" (or do without folds: {fold_unless})" if key == "fold" else ""
            raise DataError(f"{path}: no column {name!r}: {hint}{without}")
    frame = pd.DataFrame({"id": raw[columns.id], "p": pd.to_numeric(raw[columns.p], errors="coerce")})
    bad = ~frame["p"].between(0, 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: {bad.sum()} values of {columns.p!r} are no probabilities, first "
            f"{raw[columns.p].iloc[row]!r} in row {row + 2}: they must lie in [0, 1]"
        )
    return frame.assign(fold=_fold_labels(raw[columns.fold], path, columns)) if "fold" in wanted else frame


def _fold_labels(values: pd.Series, path: Path, columns: ImportedColumns) -> pd.Series:
    """Numbers where all are numbers, so that 0 and 0.0 are one fold; else the text."""
    text = values.str.strip()
    missing = text.str.lower().isin(["", "na", "nan", "none", "null"])
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        raise DataError(f"{path}: {missing.sum()} rows without a {columns.fold!r}, first row {row + 2}: fill them in")
    if text.nunique() > MAX_FOLDS:
        raise DataError(
            f"{path}: column {columns.fold!r} holds {text.nunique()} values: that is no fold, check --fold-column"
        )
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers if numbers.notna().all() else text

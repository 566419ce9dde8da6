"""Predictions made elsewhere, brought in as a run: checked row by row against the ids, groups and folds here."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from stack.config import check_header
from stack.console import Out
from stack.errors import DataError, StoreError
from stack.experiment import Experiment, write_rows
from stack.image_config import NAME_PATTERN
from stack.ranks import AVERAGED
from stack.store import FRAME_ERRORS, Run, fingerprint, locked, prediction_frame, read_run, set_aside, sha256, write_run

MAX_FOLDS = 100  # as in a config; a column with more is no fold column


@dataclass(frozen=True)
class ImportedColumns:
    """How the files name things; ``fold`` is the net that made a row, in each file."""

    id: str
    p: str
    fold: str


def read_predictions_file(
    path: Path, columns: ImportedColumns, *, needs_fold: bool, alternative: str = ""
) -> pd.DataFrame:
    """id (str), p in [0, 1] and fold, which may be missing where the caller doesn't need it.

    ``alternative`` is the option that would do without. Raises DataError for an absent column or a p that is none.
    """
    raw = _read_raw(path)
    expected = {"id": columns.id, "p": columns.p}
    if columns.fold in raw or needs_fold:
        expected["fold"] = columns.fold
    for key, name in expected.items():
        without = f" (or do without folds: {alternative})" if key == "fold" and alternative else ""
        _check_column(raw, name, path, option=f"--{key}-column", without=without)
    frame = pd.DataFrame({"id": raw[columns.id].astype("str"), "p": _probabilities(raw[columns.p], path)})
    return frame.assign(fold=_fold_labels(raw[columns.fold], path, columns)) if "fold" in expected else frame


def read_wide_file(path: Path, columns: ImportedColumns, prefix: str) -> pd.DataFrame:
    """id, p and fold, a row an id and net, of a file with a column a net: the prefix, then the net's label."""
    raw = _read_raw(path)
    _check_column(raw, columns.id, path, option="--id-column")
    nets = [name for name in map(str, raw.columns) if name.startswith(prefix) and name not in (prefix, columns.id)]
    if not nets:
        raise DataError(
            f"{path}: no column begins with {prefix!r} (--all-rows-prefix): it has {', '.join(map(str, raw.columns))}"
        )
    labels = _fold_labels(pd.Series([name.removeprefix(prefix) for name in nets]), path, columns)
    ids = raw[columns.id].astype("str")
    parts = [pd.DataFrame({"id": ids, "p": _probabilities(raw[name], path)}) for name in nets]
    return pd.concat([part.assign(fold=label) for part, label in zip(parts, labels, strict=True)], ignore_index=True)


def _read_raw(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except FRAME_ERRORS as error:
            raise DataError(f"{path}: not a readable parquet file ({error})") from error
    check_header(path)
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")  # an id "NA" is an id
    except (ValueError, MemoryError) as error:
        raise DataError(f"{path}: not a readable csv in UTF-8 ({error})") from error


def _check_column(raw: pd.DataFrame, name: str, path: Path, *, option: str, without: str = "") -> None:
    if name not in raw:
        near = difflib.get_close_matches(name, map(str, raw.columns), n=1)
        hint = f"did you mean {option} {near[0]}?" if near else f"it has {', '.join(map(str, raw.columns))}"
        raise DataError(f"{path}: no column {name!r}: {hint}{without}")


def _probabilities(values: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    bad = ~numbers.between(0, 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: {bad.sum()} values of {values.name!r} are no probabilities, first "
            f"{values.iloc[row]!r} in row {_row_number(row, path)}: they must lie in [0, 1]"
        )
    return numbers


def _row_number(row: int, path: Path) -> int:
    """As one counts: from 1, and in a csv after the line of the names."""
    return row + (1 if path.suffix == ".parquet" else 2)


def _fold_labels(values: pd.Series, path: Path, columns: ImportedColumns) -> pd.Series:
    """Numbers where all are numbers, so that 0 and 0.0 are one fold; else the text."""
    text = values.astype("str").str.strip()
    missing = text.isna() | text.str.lower().isin(["", "na", "nan", "none", "null"])
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        where = f"first row {_row_number(row, path)}"
        raise DataError(f"{path}: {missing.sum()} rows without a {columns.fold!r}, {where}: fill them in")
    if text.nunique() > MAX_FOLDS:
        raise DataError(
            f"{path}: column {columns.fold!r} holds {text.nunique()} values: that is no fold, check --fold-column"
        )
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers if numbers.notna().all() else text


ROUNDING_TOLERANCE = 1e-3  # of probabilities written with three digits


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
    all_rows: Path | None = None,
    all_rows_prefix: str | None = None,
) -> Run:
    """Write the run ``name`` from another pipeline's probabilities.

    ``exclude`` is how many training rows the file lacks: neither more nor fewer. Its fold column must put the rows
    into the experiment's folds (numbers may differ); other folds need ``foreign_folds``, which stays on record, as
    stacking on them is not fold-consistent. ``test_averaged`` is for a test file of one averaged row an id.
    ``all_rows`` has what every fold model says of every row of the out-of-fold file, for the audit alone: a row an id
    and model, or with ``all_rows_prefix`` a column a model, called the prefix and its fold.

    Raises DataError naming the file, rows and values; StoreError where the run exists and ``replace`` isn't set.
    """
    folder = experiment.models / name
    if not re.fullmatch(NAME_PATTERN, name):
        raise DataError(f"{name!r} can't name a run: use letters, digits, '_', '-' and '.', 64 at most")
    if name in experiment.config.model_names:
        raise DataError(f"{name} is a model of {experiment.config_path}: choose another name for the imported run")
    if read_run(folder) and not replace:
        raise StoreError(f"{folder} exists: add --replace to set it aside and import again")
    if all_rows_prefix is not None and all_rows is None:
        raise DataError(f"--all-rows-prefix {all_rows_prefix} is of no file: name it with --all-rows")
    oof = read_predictions_file(oof_csv, columns, needs_fold=not foreign_folds, alternative="--foreign-folds")
    fold = _check_oof(experiment, oof, oof_csv, columns, exclude=exclude, foreign=foreign_folds)
    has_test = bool(len(experiment.table.test))
    if has_test and test_csv is None:
        raise DataError("the experiment has test rows: give their predictions with --test")
    if test_csv and not has_test:
        out.warn(f"the experiment has no test rows (data.test): {test_csv} is not read")
    frames = {"oof": prediction_frame(oof["id"], fold.numbers, _to_logit(oof["p"].to_numpy()))}
    frames["test"] = (
        _test_frame(experiment, test_csv, columns, fold, averaged=test_averaged)
        if has_test and test_csv
        else prediction_frame([], 0, np.empty(0, np.float32))
    )
    files = {"oof": sha256(oof_csv), "test": sha256(test_csv) if has_test and test_csv else None}
    if all_rows:
        frames["all_rows"] = _all_rows_frame(all_rows, columns, oof, fold, prefix=all_rows_prefix)
        files["all_rows"] = sha256(all_rows)
    inputs = {"rows or folds": experiment.rows_fingerprint, "files": fingerprint(files)}
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
    theirs: dict[object, int]  # their number → that in ``numbers``; empty where the file has no folds
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
    numbers, theirs = pd.factorize(oof["fold"], sort=True)
    return _FoldMatch(numbers.astype(np.int8), {net: number for number, net in enumerate(theirs)}, foreign=True)


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
    test = read_predictions_file(
        path, columns, needs_fold=not (averaged or fold.foreign), alternative="--test-averaged"
    )
    if averaged or "fold" not in test:
        numbers = pd.Series(AVERAGED, index=test.index)
    elif fold.foreign:
        numbers = pd.Series(pd.factorize(test["fold"], sort=True)[0], index=test.index)
    else:
        numbers = _net_numbers(
            test["fold"], fold, path, columns, instead=", or one averaged row an id (--test-averaged)"
        )
    _check_rows(test["id"], numbers, pd.Index(experiment.table.test["id"]), path, what="test rows")
    return prediction_frame(test["id"], numbers.to_numpy(np.int8), _to_logit(test["p"].to_numpy()))


def _all_rows_frame(
    path: Path, columns: ImportedColumns, oof: pd.DataFrame, fold: _FoldMatch, *, prefix: str | None
) -> pd.DataFrame:
    """Every fold model on every row of the out-of-fold file, whose own numbers each model must repeat."""
    if not fold.theirs:
        raise DataError(
            f"{path}: the out-of-fold file has no column {columns.fold!r}, so no model claims to lack a row"
        )
    if prefix is None:
        made = read_predictions_file(
            path, columns, needs_fold=True, alternative="--all-rows-prefix, for a column a net"
        )
    else:
        made = read_wide_file(path, columns, prefix)
    numbers = _net_numbers(made["fold"], fold, path, columns, instead="")
    _check_rows(made["id"], numbers, pd.Index(oof["id"]), path, what="out-of-fold rows")
    claimed = oof[["id", "p"]].assign(net=fold.numbers)
    own = made.assign(net=numbers).merge(claimed, on=["id", "net"], suffixes=("", "_oof"), validate="one_to_one")
    apart = (own["p"] - own["p_oof"]).abs()
    if (apart > ROUNDING_TOLERANCE).any():
        first = own.iloc[int(np.argmax(apart))]
        raise DataError(
            f"{path}: in {(apart > ROUNDING_TOLERANCE).sum()} rows the model that claims to have held them out has "
            f"another p "
            f"than in the out-of-fold file, furthest {first['id']!r}: {first['p']:.4f} and {first['p_oof']:.4f}; make "
            "both files from the same models, or check their folds"
        )
    return prediction_frame(made["id"], numbers.to_numpy(np.int8), _to_logit(made["p"].to_numpy()))


def _net_numbers(
    labels: pd.Series, fold: _FoldMatch, path: Path, columns: ImportedColumns, *, instead: str
) -> pd.Series:
    """The number of the net that made each row, whose label must be one of the out-of-fold file's."""
    numbers = labels.map(fold.theirs)
    if numbers.isna().any():
        strange = sorted(set(labels[numbers.isna()].astype(str)))
        raise DataError(
            f"{path}: fold {', '.join(strange)} is none of the out-of-fold file's: check {columns.fold!r}{instead}"
        )
    if lacking := [str(theirs) for theirs, ours in fold.theirs.items() if ours not in set(numbers)]:
        raise DataError(
            f"{path}: no row is of net {', '.join(sorted(lacking))}, which the out-of-fold file has: give every "
            f"net's rows{instead}"
        )
    return numbers


def _check_rows(ids: pd.Series, numbers: pd.Series, expected: pd.Index, path: Path, *, what: str) -> None:
    """Each net must have each of the expected rows once, and no other."""
    for number in sorted(set(numbers)):
        here = ids[numbers == number]
        net = "" if number == AVERAGED else f" of net {number}"
        if here.duplicated().any():
            raise DataError(
                f"{path}: {here.duplicated().sum()} ids in more than one row{net}: one row an id and net "
                "(name the net's column with --fold-column, or give one averaged test row with --test-averaged)"
            )
        if len(here) != len(expected) or not expected.isin(here).all():
            raise DataError(
                f"{path}: {(~expected.isin(here)).sum()} {what} have no prediction{net}, "
                f"{(~here.isin(expected)).sum()} ids are no {what}: give exactly their ids"
            )


def _to_logit(p: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of probabilities, kept finite at 0 and 1."""
    clipped = np.clip(np.asarray(p, np.float64), 1e-15, 1 - 1e-15)
    result: NDArray[np.float32] = logit(clipped).astype(np.float32)
    return result

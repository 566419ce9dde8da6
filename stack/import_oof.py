"""Imports predictions of another pipeline as a run, after checks against the experiment's ids, groups and folds."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError, StoreError
from stack.cells import UNNAMED_INDEX, as_text, is_parquet, read_columns
from stack.console import Out
from stack.doubts import doubts
from stack.experiment import Experiment, write_rows
from stack.image_config import NAME_PATTERN
from stack.keys import check_exact, contained, fold_labels, is_missing_fold, keys_as_in
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.plausibility import FACTS_TITLE, Scores, facts_table, is_fresh, run_facts
from stack.ranks import AVERAGED
from stack.store import Run, fingerprint, locked, prediction_frame, read_run, set_aside, sha256, write_run

MAX_FOLDS = 100  # the limit of the config; a column with more values is not a fold column


@dataclass(frozen=True)
class ImportedColumns:
    """Column names of one imported file; ``fold`` is the fold net that made the prediction.

    ``option`` begins the options that name these columns, for messages: ``--test`` for ``--test-p-column``.
    """

    id: str
    p: str
    fold: str
    option: str = "-"

    def option_of(self, key: str) -> str:
        """Returns the command option that names the column ``key``: id, p or fold."""
        return f"{self.option}-{key}-column"


def read_predictions_file(
    path: Path, columns: ImportedColumns, *, needs_fold: bool, alternative: str = ""
) -> pd.DataFrame:
    """Reads the columns id (str), p in [0, 1] and fold; without ``needs_fold`` the file may lack the fold column.

    ``alternative`` is the command option that makes folds unnecessary, for the message. Raises DataError for an absent
    column and for a p that is not a probability.
    """
    raw = read_columns(path)
    expected = {"id": _id_column(raw, columns), "p": columns.p}
    if columns.fold in raw or needs_fold:
        expected["fold"] = columns.fold
    for key, name in expected.items():
        without = f" (or import without folds: {alternative})" if key == "fold" and alternative else ""
        _check_column(raw, name, path, option=columns.option_of(key), without=without)
    check_exact(raw[expected["id"]], f"{path}: the ids in {expected['id']!r}")
    frame = pd.DataFrame({"id": as_text(raw[expected["id"]]), "p": _probabilities(raw[columns.p], path)})
    return frame.assign(fold=_fold_labels(raw[columns.fold], path, columns)) if "fold" in expected else frame


def read_wide_file(path: Path, columns: ImportedColumns, prefix: str) -> pd.DataFrame:
    """Reads a file with one column a net, named ``prefix`` and the net's label; returns id, p, fold by id and net.

    Raises DataError as `read_predictions_file` does, and where no column begins with ``prefix``.
    """
    raw = read_columns(path)
    id_column = _id_column(raw, columns)
    _check_column(raw, id_column, path, option=columns.option_of("id"))
    check_exact(raw[id_column], f"{path}: the ids in {id_column!r}")
    nets = [name for name in map(str, raw.columns) if name.startswith(prefix) and name not in (prefix, id_column)]
    if not nets:
        raise DataError(
            f"{path}: no column begins with {prefix!r}: correct --all-rows-prefix; the columns are "
            f"{', '.join(map(str, raw.columns))}"
        )
    for name in nets:
        _check_column(raw, name, path, option="--all-rows-prefix")
    labels = _fold_labels(pd.Series([name.removeprefix(prefix) for name in nets]), path, columns)
    ids = as_text(raw[id_column])
    parts = [pd.DataFrame({"id": ids, "p": _probabilities(raw[name], path)}) for name in nets]
    return pd.concat([part.assign(fold=label) for part, label in zip(parts, labels, strict=True)], ignore_index=True)


def _id_column(raw: pd.DataFrame, columns: ImportedColumns) -> str:
    """Returns the column of the ids; they may be the index of a parquet file, which need not have a name."""
    return UNNAMED_INDEX if columns.id not in raw and UNNAMED_INDEX in raw else columns.id


def _check_column(raw: pd.DataFrame, name: str, path: Path, *, option: str, without: str = "") -> None:
    if (number := list(raw.columns).count(name)) > 1:
        raise DataError(f"{path}: {number} columns are named {name!r}: rename all but one")
    if name not in raw:
        near = difflib.get_close_matches(name, map(str, raw.columns), n=1)
        all_names = ", ".join(map(str, raw.columns))
        hint = f"did you mean {option} {near[0]}?" if near else f"name it with {option}; the columns are {all_names}"
        raise DataError(f"{path}: no column {name!r}: {hint}{without}")


def _probabilities(values: pd.Series, path: Path) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce").astype(np.float64)
    bad = ~numbers.between(0, 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: {bad.sum()} values of {values.name!r} are not probabilities, first "
            f"{values.iloc[row]!r} in row {_row_number(row, path)}: give values in [0, 1]"
        )
    return numbers


def _row_number(row: int, path: Path) -> int:
    """Returns the row number for a message: parquet rows are counted from 1, csv rows with the header as row 1."""
    return row + (1 if is_parquet(path) else 2)


def _fold_labels(values: pd.Series, path: Path, columns: ImportedColumns) -> pd.Series:
    """Returns fold labels as numbers where all are numbers, so that 0 and 0.0 are one fold; else as text."""
    missing = is_missing_fold(values)
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        where = f"first row {_row_number(row, path)}"
        raise DataError(f"{path}: {missing.sum()} rows without a {columns.fold!r}, {where}: fill them in")
    labels = fold_labels(values, f"{path}: folds")
    if labels.nunique() > MAX_FOLDS:
        raise DataError(
            f"{path}: column {columns.fold!r} holds {labels.nunique()} values, too many for folds: check "
            f"{columns.option_of('fold')}"
        )
    return labels


FINEST_EDGE = 1e-15  # probabilities are clipped at least this far from 0 and 1, so that their logits are finite
ROUNDING_TOLERANCE = 1e-3  # rounding error of probabilities written with three digits


def import_oof(
    experiment: Experiment,
    name: str,
    oof_csv: Path,
    test_csv: Path | None,
    out: Out,
    *,
    columns: ImportedColumns,
    test_columns: ImportedColumns | None = None,
    test_averaged: bool,
    exclude: int,
    foreign_folds: bool,
    replace: bool,
    all_rows: Path | None = None,
    all_rows_prefix: str | None = None,
) -> Run:
    """Writes the run ``name`` from another pipeline's probabilities.

    ``exclude`` is the exact number of training rows that the file lacks. The fold column must match the experiment's
    folds (their numbers may differ). Other folds need ``foreign_folds``, which is recorded, because stacking on them is
    not fold-consistent. ``test_columns`` are those of the test file where they differ from ``columns``.
    ``test_averaged`` means that the test file has one averaged row an id. ``all_rows`` holds the predictions of every
    fold model for every row of the out-of-fold file, used only by the audit: one row an id and model or, with
    ``all_rows_prefix``, one column a model, named by the prefix and its fold.

    Raises DataError that names the file, rows and values; StoreError where the run exists and ``replace`` is not set.
    """
    folder = experiment.models / name
    if not re.fullmatch(NAME_PATTERN, name):
        raise DataError(
            f"{name!r} cannot be the name of a run: use at most 64 letters, digits, '_', '-' and '.', and begin with a "
            "letter or digit"
        )
    if name in experiment.config.model_names:
        raise DataError(f"{name} is a model of {experiment.config_path}: choose another name for the imported run")
    if read_run(folder) and not replace:
        raise StoreError(f"{folder} exists: add --replace to set it aside and import again")
    if all_rows_prefix is not None and all_rows is None:
        raise DataError(f"--all-rows-prefix {all_rows_prefix} needs a file: name it with --all-rows")
    oof = read_predictions_file(oof_csv, columns, needs_fold=not foreign_folds, alternative="--foreign-folds")
    oof["id"] = keys_as_in(oof["id"], experiment.table.train["id"], f"{oof_csv}: id", of="the training rows")
    fold = _check_oof(experiment, oof, oof_csv, columns, exclude=exclude, foreign=foreign_folds)
    has_test = bool(len(experiment.table.test))
    if has_test and test_csv is None:
        raise DataError("the experiment has test rows: give their predictions with --test")
    if test_csv and not has_test:
        out.warn(f"the experiment has no test rows (data.test): {test_csv} is not read")
    frames = {"oof": prediction_frame(oof["id"], fold.numbers, _to_logit(oof["p"]))}
    frames["test"] = (
        _test_frame(experiment, test_csv, test_columns or columns, fold, averaged=test_averaged)
        if has_test and test_csv
        else prediction_frame([], 0, np.empty(0, np.float32))
    )
    _check_plausible(experiment, Scores(name, "imported", frames["oof"], frames["test"]), oof_csv, out)
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
    numbers: NDArray[np.int8]  # (n,) fold of each out-of-fold row: the experiment's, or the file's where it is foreign
    theirs: dict[object, int]  # fold label of the file → fold in ``numbers``; empty where the file has no folds
    foreign: bool  # whether the file's folds are not those of the experiment


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
        raise DataError(
            f"{path}: {len(doubled)} rows repeat an id, first {doubled.iloc[0]!r}: give one row for each id"
        )
    rows = ids.get_indexer(oof["id"])
    if (rows < 0).any():
        first = oof["id"][rows < 0].iloc[0]
        raise DataError(
            f"{path}: {(rows < 0).sum()} ids are not training rows, first {first!r}: remove them from the file"
        )
    lacking = len(ids) - len(rows)
    if lacking != exclude:
        raise DataError(
            f"{path}: {lacking} of {len(ids)} training rows have no prediction, but {exclude} are declared: "
            + (f"add `--exclude {lacking}` to leave them out of the stack" if lacking else "remove --exclude")
        )
    ours = experiment.folds.frame["fold"].to_numpy()[rows]
    if empty := sorted(set(range(experiment.folds.k)) - set(ours)):
        raise DataError(
            f"{path}: no row of fold {empty[0]} has a prediction: add some, since stacking needs rows of every fold"
        )
    if "fold" not in oof:
        return _FoldMatch(np.zeros(len(oof), np.int8), {}, foreign=True)
    pairs = pd.DataFrame({"theirs": oof["fold"], "ours": ours}).drop_duplicates()
    if len(pairs) == pairs["theirs"].nunique() == pairs["ours"].nunique():
        return _FoldMatch(ours.astype(np.int8), dict(zip(pairs["theirs"], pairs["ours"], strict=True)), foreign=False)
    if not foreign:
        raise DataError(
            f"{path}: column {columns.fold!r} holds other folds than the experiment's: use these folds in the "
            "experiment (data.columns.fold), or add --foreign-folds, which is recorded and shown with the run's scores"
        )
    _check_groups(experiment, oof, rows, path)
    numbers, theirs = pd.factorize(oof["fold"], sort=True)
    return _FoldMatch(numbers.astype(np.int8), {net: number for number, net in enumerate(theirs)}, foreign=True)


def _check_groups(experiment: Experiment, oof: pd.DataFrame, rows: NDArray[np.intp], path: Path) -> None:
    """Raises DataError where foreign folds split a group: its rows have leaked into its predictions."""
    torn = pd.Series(oof["fold"].to_numpy()).groupby(experiment.split_group[rows]).nunique()
    torn = torn[torn > 1]
    if len(torn):
        raise DataError(
            f"{path}: its folds split {len(torn)} groups, first {torn.index[0]!r}, so models were trained on other "
            "rows of the groups that they are scored on: make the predictions again with grouped folds"
        )


def _test_frame(
    experiment: Experiment, path: Path, columns: ImportedColumns, fold: _FoldMatch, *, averaged: bool
) -> pd.DataFrame:
    test = read_predictions_file(
        path, columns, needs_fold=not (averaged or fold.foreign), alternative="--test-averaged"
    )
    test["id"] = keys_as_in(test["id"], experiment.as_read.test["id"], f"{path}: id", of="the test rows")
    # Rows that no image model can predict get the fallback, whatever an imported file says about them.
    test = test[~contained(test["id"], experiment.unreadable_test["id"])].reset_index(drop=True)
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
        numbers = _net_numbers(
            test["fold"], fold, path, columns, instead=", or give one averaged row an id (--test-averaged)"
        )
    _check_rows(test["id"], numbers, pd.Index(experiment.table.test["id"]), path, what="test rows")
    return prediction_frame(test["id"], numbers.to_numpy(np.int8), _to_logit(test["p"]))


def _all_rows_frame(
    path: Path, columns: ImportedColumns, oof: pd.DataFrame, fold: _FoldMatch, *, prefix: str | None
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
            path, columns, needs_fold=True, alternative="--all-rows-prefix, for one column a net"
        )
    else:
        made = read_wide_file(path, columns, prefix)
    made["id"] = keys_as_in(made["id"], oof["id"], f"{path}: id", of="the out-of-fold file")
    numbers = _net_numbers(made["fold"], fold, path, columns, instead="")
    _check_rows(made["id"], numbers, pd.Index(oof["id"]), path, what="out-of-fold rows")
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
    return prediction_frame(made["id"], numbers.to_numpy(np.int8), _to_logit(made["p"]))


def _net_numbers(
    labels: pd.Series, fold: _FoldMatch, path: Path, columns: ImportedColumns, *, instead: str
) -> pd.Series:
    """Returns the fold number of each label; raises DataError unless the labels are those of the out-of-fold file."""
    numbers = labels.map(fold.theirs)
    if numbers.isna().any():
        strange = sorted(set(labels[numbers.isna()].astype(str)))
        raise DataError(
            f"{path}: fold {', '.join(strange)} is not in the out-of-fold file: check {columns.fold!r}{instead}"
        )
    if lacking := [str(theirs) for theirs, ours in fold.theirs.items() if ours not in set(numbers)]:
        raise DataError(
            f"{path}: no row is of net {', '.join(sorted(lacking))}, which is in the out-of-fold file: give the rows "
            f"of every net{instead}"
        )
    return numbers


def _check_rows(ids: pd.Series, numbers: pd.Series, expected: pd.Index, path: Path, *, what: str) -> None:
    """Raises DataError unless each net has each of the expected rows once, and no other."""
    for number in sorted(set(numbers)):
        here = ids[numbers == number]
        net = "" if number == AVERAGED else f" of net {number}"
        if here.duplicated().any():
            raise DataError(
                f"{path}: {here.duplicated().sum()} rows{net} repeat an id: give one row for each id and net "
                "(name the net's column with --fold-column, or give one averaged test row an id with --test-averaged)"
            )
        if len(here) != len(expected) or not expected.isin(here).all():
            raise DataError(
                f"{path}: {(~expected.isin(here)).sum()} {what} have no prediction{net}, "
                f"{(~here.isin(expected)).sum()} ids are not {what}: give exactly the ids of the {what}"
            )


def _to_logit(p: pd.Series) -> NDArray[np.float32]:
    """Returns the logits of a file's probabilities (n,); 0 and 1 lie half of the file's resolution inside."""
    result: NDArray[np.float32] = clipped_logit(p, clip_limits(p, FINEST_EDGE)).astype(np.float32)
    return result


def _check_plausible(experiment: Experiment, scores: Scores, path: Path, out: Out) -> None:
    """Prints the facts about a run's predictions and what is doubtful about them; raises DataError for an error."""
    known = [run for run in experiment.finished(level=1) if run.name != scores.name and is_fresh(experiment, run)]
    facts = run_facts(experiment, [scores], _readable(known, out))
    for doubt in doubts(facts):
        if doubt.severity == "error":
            raise DataError(f"{path}: {doubt.what} ({doubt.evidence}): {doubt.remedy}")
        out.warn(f"{doubt.what} ({doubt.evidence}): {doubt.remedy}")
    out.table(facts_table(facts), FACTS_TITLE)


def _readable(runs: list[Run], out: Out) -> Iterator[Scores]:
    """Yields the predictions of runs to compare with; one that is damaged is no reason to refuse another's import."""
    for run in runs:
        try:
            yield Scores.of(run)
        except StoreError as error:
            out.warn(f"not compared with {run.name}: {error}")

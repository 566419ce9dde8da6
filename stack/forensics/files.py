"""Reads files of out-of-fold predictions as they are: guesses columns, and counts what is wrong with rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import DataError
from stack.draft.tables import PREDICTION_WORDS
from stack.imported.folds import check_nets
from stack.imported.prediction_files import (
    MAX_FOLDS,
    Files,
    ImportedColumns,
    read_parts,
    read_predictions_file,
    read_wide_file,
)
from stack.imported.run import ROUNDING_TOLERANCE, Source, to_logit
from stack.predictions.ranks import AVERAGED, mid_ranks
from stack.predictions.run_views import Scores
from stack.store import prediction_frame
from stack.tables.array_ids import is_array
from stack.tables.cells import UNNAMED_INDEX, as_text
from stack.tables.column_names import name_words, snake
from stack.tables.keys import contained, keys_as_in, positions_of

Scale = Literal["probabilities", "percentages", "logits", "ranks"]
ShownBy = Literal["fold column", "file names", "columns of nets", ""]

_FOLD_NAMES = ("fold", "folds", "kfold", "k_fold", "cv_fold", "fold_id")
_MAX_LOGIT = 60.0  # larger numbers are no logits
_IS_ID_COLUMN = 0.5  # share of known ids in the column of ids


@dataclass(frozen=True)
class NamedColumns:
    """Column names that the user gave; None is guessed for each file."""

    id: str | None = None
    p: str | None = None
    fold: str | None = None
    nets: str | None = None  # the prefix of one column a net


@dataclass(frozen=True)
class RowCounts:
    """What a file's rows are beside the labels; ``examples`` names ids, by the name of the count."""

    rows: int
    used: int  # labelled rows with one usable prediction
    unknown: int  # of ids that have no label
    lacking: int  # labelled rows without a prediction
    repeated: int  # further rows of an id, with the same prediction
    contradicting: int  # further rows of an id, with another prediction; the first is used
    not_numbers: int  # rows whose prediction is no number
    other_targets: int  # rows whose target in the file is not that of the labels
    examples: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReadRun:
    """The predictions of one run: frames of id, fold, logit and p, and what was found while they were read.

    ``fold`` of ``oof`` is 0 for all rows where the files do not say the folds; ``folds`` are then empty.
    """

    name: str
    paths: tuple[Path, ...]
    columns: str  # which columns were read, for the page
    counts: RowCounts
    scale: Scale
    oof: pd.DataFrame
    test: pd.DataFrame
    folds: tuple[str, ...]  # the files' names of the folds, in the order of their numbers
    shown_by: ShownBy
    all_rows: pd.DataFrame | None = None
    test_scale: Scale = "probabilities"  # of the test file, before they became probabilities
    test_fault: str = ""  # why the test file is not examined
    all_rows_fault: str = ""  # why the predictions of every net for every row are not examined

    @property
    def scores(self) -> Scores:
        """The predictions in the form that `stack.predictions.plausibility` takes."""
        return Scores(self.name, "imported", self.oof, self.test)

    def with_folds(self, fold: NDArray[np.integer], names: Sequence[str]) -> ReadRun:
        """Returns the run with these folds (n,) of its out-of-fold rows."""
        return replace(self, oof=self.oof.assign(fold=np.asarray(fold, np.int8)), folds=tuple(names))


def read_run_files(
    source: Source, labels: pd.DataFrame, named: NamedColumns, files: Files, *, target_column: str, id_column: str
) -> ReadRun:
    """Reads the files of one run beside ``labels`` (id, target), which the csv calls as the last two arguments say.

    Raises DataError where a file cannot be read or a column not be guessed, where none of its ids has a label, and for
    a file that holds the predictions of every net for every row.
    """
    first = source.oof[0].path
    raw = files.read(first, replace(source.options.columns, id=id_column))
    column_of_run = source.oof[0].p or named.p
    columns = guessed_columns(raw, first, labels["id"], replace(named, p=column_of_run), target_column, id_column)
    every: dict[str, int] = {}

    def respell(ids: pd.Series, path: Path) -> pd.Series:
        found = keys_as_in(ids, labels["id"], f"{path}: id", of="the labels")
        if not contained(found, labels["id"]).any():
            raise DataError(
                f"{path}: none of its {len(found):,} ids in {columns.id!r} has a label, first {found.iloc[0]!r}: is it "
                "a file of test predictions (--test), or is another column the id (--id-column)?"
            )
        every[str(path)] = len(found)
        return found

    parts = [replace(part, p="") for part in source.oof]
    read = read_parts(
        parts, columns, needs_fold=False, alternative="", files=files, respell=respell, any_number=True
    )  # fmt: skip
    all_rows = None if columns.nets is None else _every_net(source, columns, labels["id"], files)
    _check_one_row_an_id(read, first)
    counts, used = _counted(read, labels, raw if len(parts) == 1 else None, columns, target_column)
    p, scale = _as_probabilities(used["p"])
    numbers: NDArray[np.integer] = np.zeros(len(used), np.int8)
    names: tuple[str, ...] = ()
    if "fold" in used:
        numbers, found = pd.factorize(used["fold"], sort=True)
        names = tuple(f"{name:g}" if isinstance(name, float) else str(name) for name in found)
    shown: ShownBy = "columns of nets" if columns.nets else "file names" if parts[0].fold else "fold column"
    run = ReadRun(
        source.name, tuple(part.path for part in parts), _in_words(columns, "fold" in read and not parts[0].fold),
        counts, scale, prediction_frame(used["id"].reset_index(drop=True), numbers, to_logit(p)), _no_rows(), names,
        shown if len(names) > 1 else "",
    )  # fmt: skip
    if all_rows is not None and len(names) > 1:
        run = replace(run, all_rows=_numbered(all_rows, run))
    if source.all_rows is not None:
        run = _with_all_rows(run, source.all_rows, columns, source.options.all_rows_prefix, labels["id"], files)
    return run if not source.test else _with_test(run, source, named, files, target_column, id_column)


def guessed_columns(
    raw: pd.DataFrame, path: Path, ids: pd.Series, named: NamedColumns, target: str, id_column: str
) -> ImportedColumns:
    """Returns the columns of ids, predictions and folds of a file; named ones first, others by name and content.

    Raises DataError where the column of predictions, or that of ids, cannot be told.
    """
    header = list(map(str, raw.columns))
    row_id = next((name for name in (named.id, id_column, UNNAMED_INDEX) if name in header), None)
    if row_id is None:
        shares = {name: contained(as_text(raw[name]), ids).mean() for name in header if header.count(name) == 1}
        row_id = max(shares, key=lambda name: shares[name], default="")
        if not row_id or shares[row_id] < _IS_ID_COLUMN:
            raise DataError(
                f"{path}: no column holds the ids of the labels: name it with --id-column; the columns are "
                f"{', '.join(header)}"
            )
    fold = named.fold or next((name for name in header if snake(name) in _FOLD_NAMES), "fold")
    if named.nets is not None:
        return ImportedColumns(row_id, "p", fold, nets=named.nets)
    if named.p is not None or is_array(path):
        return ImportedColumns(row_id, named.p or "p", fold)
    free = [name for name in header if name not in (row_id, fold) and header.count(name) == 1]
    free = [name for name in free if _is_numeric(raw[name])]
    by_name = [name for name in free if name != target and set(name_words(name)) & PREDICTION_WORDS]
    others = [name for name in free if name != target]
    for found in (["p"] if "p" in free else [], by_name, others, free):
        if len(found) == 1:
            return ImportedColumns(row_id, found[0], fold)
        if found:
            raise DataError(
                f"{path}: several columns may hold the predictions ({', '.join(found[:8])}): name one with --p-column, "
                "or all of them with --run-columns and a pattern"
            )
    raise DataError(f"{path}: no column of numbers is left for the predictions; the columns are {', '.join(header)}")


def _is_numeric(values: pd.Series) -> bool:
    some = as_text(values.iloc[:1000])
    return bool(pd.to_numeric(some, errors="coerce").notna().mean() > 0.5)


def _in_words(columns: ImportedColumns, has_fold: bool) -> str:
    p = f"columns {columns.nets}…" if columns.nets else columns.p
    return f"id {columns.id}, prediction {p}" + (f", fold {columns.fold}" if has_fold else "")


def _check_one_row_an_id(read: pd.DataFrame, path: Path) -> None:
    """Raises DataError for a file with a row for each id and net, which is no out-of-fold file."""
    times = read["id"].duplicated(keep=False)
    if "fold" not in read or not times.mean() > 0.9 or read.duplicated(["id", "fold"]).any():
        return
    nets = int(read["fold"].nunique())
    raise DataError(
        f"{path}: it has a row for each id and net ({nets} nets), so nets predict rows that they were trained on: keep "
        "of each id the row of the net that has not seen it, and give this file as NAME_all_rows beside NAME_oof to "
        "have tested which rows each net held out"
    )


def _counted(
    read: pd.DataFrame,
    labels: pd.DataFrame,
    raw: pd.DataFrame | None,
    columns: ImportedColumns,
    target_column: str,
) -> tuple[RowCounts, pd.DataFrame]:
    """Counts what is wrong with the rows; also returns those that are used: one a labelled id, in the file's order."""
    place = positions_of(read["id"], labels["id"])
    known, number = place >= 0, np.isfinite(read["p"].to_numpy(np.float64))
    usable = read[known & number]
    again = usable["id"].duplicated().to_numpy()
    first = usable[~again]
    p_of_first = pd.Series(first["p"].to_numpy(), index=first["id"].to_numpy())
    differs = again & (usable["p"].to_numpy() != p_of_first.reindex(usable["id"]).to_numpy())
    lacking = labels["id"][~contained(labels["id"], first["id"])]
    own = np.zeros(len(read), bool)
    if (
        raw is not None
        and target_column in raw
        and target_column not in (columns.p, columns.id)
        and len(raw) == len(read)
    ):
        theirs = pd.to_numeric(as_text(raw[target_column]), errors="coerce").to_numpy()
        own = known & np.isfinite(theirs) & (theirs != labels["target"].to_numpy()[place])
    faults = {
        "unknown": read["id"][~known], "lacking": lacking, "repeated": usable["id"][again & ~differs],
        "contradicting": usable["id"][differs], "not_numbers": read["id"][known & ~number],
        "other_targets": read["id"][own],
    }  # fmt: skip
    counts = {name: len(ids) for name, ids in faults.items()}
    examples = {name: ", ".join(ids.head(3)) for name, ids in faults.items() if len(ids)}
    if first.empty:
        raise DataError("no row has an id with a label and a number as prediction: check --p-column")
    return RowCounts(len(read), len(first), **counts, examples=examples), first.reset_index(drop=True)


def _as_probabilities(values: pd.Series) -> tuple[pd.Series, Scale]:
    """Returns predictions as numbers in [0, 1], and what they were."""
    numbers = values.to_numpy(np.float64)
    if numbers.min() >= 0 and numbers.max() <= 1:
        return values, "probabilities"
    whole_ranks = bool((numbers >= 1).all() and (numbers == np.round(numbers)).mean() > 0.9)
    if not whole_ranks and numbers.min() >= 0 and numbers.max() <= 100:
        return values / 100, "percentages"  # logits are below 0 for most rows of a rare class
    if not whole_ranks and np.abs(numbers).max() <= _MAX_LOGIT:
        return pd.Series(np.asarray(expit(numbers), np.float64)), "logits"
    return pd.Series(mid_ranks(numbers)), "ranks"


def _every_net(source: Source, columns: ImportedColumns, ids: pd.Series, files: Files) -> pd.DataFrame | None:
    """Returns the predictions of every net for every row, where the columns of nets have no empty cell."""
    path, prefix = source.oof[0].path, columns.nets or ""
    if len(source.oof) > 1:
        return None
    try:
        made = read_wide_file(path, columns, prefix, option="--net-prefix", files=files)
    except DataError:  # an empty cell: only the net that held the row out has a prediction
        return None
    made["id"] = keys_as_in(made["id"], ids, f"{path}: id", of="the labels")
    return made


def _with_all_rows(
    run: ReadRun, path: Path, columns: ImportedColumns, prefix: str | None, ids: pd.Series, files: Files
) -> ReadRun:
    """Returns the run with the predictions of every net for its rows, or with the reason why they are not examined."""
    try:
        if not run.folds:
            raise DataError(f"{path}: the out-of-fold file does not say which net held a row out: add its fold column")
        if prefix is not None:
            made = read_wide_file(path, columns, prefix, files=files)
        else:
            made = read_predictions_file(path, columns, needs_fold=True, files=files)
        made["id"] = keys_as_in(made["id"], ids, f"{path}: id", of="the labels")
        frame = _numbered(made, run)
        check_nets(frame["id"], frame["fold"].to_numpy(), run.oof["id"], path, what="out-of-fold rows")
        both = frame.merge(run.oof, on=["id", "fold"], suffixes=("", "_oof"))
        if len(both) < len(run.oof) or ((both["p"] - both["p_oof"]).abs() > ROUNDING_TOLERANCE).any():
            raise DataError(
                f"{path}: the net that held a row out has another prediction than in the out-of-fold file: make both "
                "files from the same nets, or check their folds"
            )
        return replace(run, all_rows=frame)
    except DataError as error:
        return replace(run, all_rows_fault=str(error))


def _numbered(all_rows: pd.DataFrame, run: ReadRun) -> pd.DataFrame:
    """Returns the rows of every net with the numbers of the out-of-fold file's folds."""
    names = [f"{name:g}" if isinstance(name, float) else str(name) for name in all_rows["fold"]]
    codes = pd.Series(names).map({name: number for number, name in enumerate(run.folds)})
    kept = (codes.notna() & contained(all_rows["id"], run.oof["id"])).to_numpy()
    kept_rows = all_rows[kept]
    return prediction_frame(
        kept_rows["id"].reset_index(drop=True), codes[kept].to_numpy(np.int8), to_logit(kept_rows["p"])
    )


def _with_test(
    run: ReadRun, source: Source, named: NamedColumns, files: Files, target_column: str, id_column: str
) -> ReadRun:
    """Returns the run with its test predictions, or with the reason why they are not examined."""
    first = source.test[0].path
    try:
        raw = files.read(first, replace(source.options.test_columns, id=id_column))
        row_id = id_column if id_column in raw else str(raw.columns[0])
        found = guessed_columns(
            raw, first, pd.Series([], dtype="str"),
            replace(named, id=named.id or row_id, p=source.test[0].p or named.p), target_column, id_column,
        )  # fmt: skip
        columns = replace(found, option="--test")
        test = read_parts(
            [replace(part, p="") for part in source.test], columns, needs_fold=False, alternative="", files=files,
            respell=lambda ids, _: ids, any_number=True,
        )  # fmt: skip
        if len(bad := np.flatnonzero(~np.isfinite(test["p"].to_numpy(np.float64)))):
            raise DataError(
                f"{first}: {len(bad)} test predictions are no numbers, first of id {test['id'].iloc[bad[0]]!r}"
            )
        keys = ["id", "fold"] if "fold" in test else ["id"]
        if (again := test.duplicated(keys)).any():
            raise DataError(
                f"{first}: {int(again.sum())} rows repeat an id{' of one net' if 'fold' in test else ''}, first "
                f"{test['id'][again].iloc[0]!r}: give one row for each id and net, with the net in a fold column"
            )
    except DataError as error:
        return replace(run, test_fault=str(error))
    p, scale = _as_probabilities(test["p"])
    numbers: NDArray[np.integer] = np.full(len(test), AVERAGED, np.int8)
    if "fold" in test and test["fold"].nunique() > 1:
        names = pd.Series([f"{name:g}" if isinstance(name, float) else str(name) for name in test["fold"]])
        known = {name: number for number, name in enumerate(run.folds)}
        further = [name for name in pd.unique(names) if name not in known]
        known |= {name: min(len(known) + number, MAX_FOLDS) for number, name in enumerate(further)}
        numbers = names.map(known).to_numpy(np.int8)
    made = prediction_frame(test["id"].reset_index(drop=True), numbers, to_logit(p))
    return replace(run, test=made, test_scale=scale)


def _no_rows() -> pd.DataFrame:
    return prediction_frame(pd.Series([], dtype="str"), 0, np.empty(0, np.float32))

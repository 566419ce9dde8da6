"""Reads files of predictions in the forms in which notebooks write them, as rows of id, p and fold."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import DataError
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.tables.array_ids import NET_COLUMN, is_array, read_array_columns
from stack.tables.cells import UNNAMED_INDEX, as_text, is_parquet, plain_numbers, read_columns
from stack.tables.keys import check_exact, fold_labels, is_missing_fold

ROUNDED_SUM = 0.01  # what the probabilities of all classes of a row may differ from 1 by, where they are rounded
SPREAD_OF_SUM = 0.1  # of the spread of a column: nets agree, so their sum varies more than each; that of classes is 1
MAX_FOLDS = 100  # the limit of the config; a column with more values is not a fold column
FINEST_EDGE = 1e-15  # probabilities are clipped at least this far from 0 and 1, so that their logits are finite


@dataclass(frozen=True)
class ImportedColumns:
    """Column names of one kind of imported file; ``fold`` is the fold net that made the prediction.

    ``option`` begins the options that name these columns, for messages: ``--test`` for ``--test-p-column``. It is ""
    for test predictions where no option does: those of new rows have the columns of the test file of the import. With
    ``nets`` the file has one column a net instead of ``p``, named by this text and the net's fold. ``seed`` is read
    where several seeds of one file are averaged. ``ids`` is the file with the ids of a NumPy array, where it is not
    found beside it (`stack.tables.array_ids`).
    """

    id: str
    p: str
    fold: str
    option: str = "-"
    nets: str | None = None
    seed: str = "seed"
    ids: Path | None = None

    @property
    def is_test(self) -> bool:
        """Whether the files are of test rows, which every net predicts."""
        return self.option in ("--test", "")

    def option_of(self, key: str) -> str:
        """Returns the command option that names the column ``key``: id, p or fold; "" where there is none."""
        return self.option and f"{self.option}-{key}-column"


@dataclass(frozen=True)
class Part:
    """One file of a run: ``fold`` and ``seed`` are what its name says of the net that made it, "" for nothing.

    ``p`` is the column of the predictions, where several runs are columns of one file.
    """

    path: Path
    fold: str = ""
    seed: str = ""
    p: str = ""


class Files:
    """Reads files and keeps the two read last: several runs may be columns of one pair of files."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Path, Path | None], pd.DataFrame] = {}

    def read(self, path: Path, columns: ImportedColumns) -> pd.DataFrame:
        """Returns the columns of a file, as `read_columns` or, for an array, `read_array_columns` does."""
        if (raw := self._kept.get((path, columns.ids))) is None:
            part = "test" if columns.is_test else "oof"
            option = {"--test": "--test-ids", "-": "--ids"}.get(columns.option, "")
            raw = (
                read_array_columns(
                    path, part, id_column=columns.id, p=columns.p, fold=columns.fold, ids=columns.ids, option=option
                )
                if is_array(path)
                else read_columns(path)
            )
            self._kept = dict([*self._kept.items(), ((path, columns.ids), raw)][-2:])
        return raw


def read_predictions_file(
    path: Path,
    columns: ImportedColumns,
    *,
    needs_fold: bool,
    alternative: str = "",
    files: Files | None = None,
    any_number: bool = False,
) -> pd.DataFrame:
    """Reads the columns id (str), p in [0, 1] and fold; without ``needs_fold`` the file may lack the fold column.

    ``alternative`` is the command option that makes folds unnecessary, for the message. Raises DataError for an absent
    column and for a p that is not a probability; with ``any_number``, p is any number, and NaN where a cell is none.
    """
    raw = (files or Files()).read(path, columns)
    expected = {"id": _id_column(raw, columns), "p": columns.p}
    if columns.fold in raw or needs_fold:
        expected["fold"] = columns.fold
    for key, name in expected.items():
        without = f" (or import without folds: {alternative})" if key == "fold" and alternative else ""
        _check_column(raw, name, path, option=columns.option_of(key), without=without)
    check_exact(raw[expected["id"]], f"{path}: the ids in {expected['id']!r}")
    p = _numbers(raw[columns.p]) if any_number else _probabilities(raw[columns.p], path)
    frame = pd.DataFrame({"id": as_text(raw[expected["id"]]), "p": p})
    return frame.assign(fold=_fold_labels(raw[columns.fold], path, columns)) if "fold" in expected else frame


def read_wide_file(
    path: Path,
    columns: ImportedColumns,
    prefix: str,
    *,
    held_out: bool = False,
    option: str = "--all-rows-prefix",
    files: Files | None = None,
) -> pd.DataFrame:
    """Reads a file with one column a net, named ``prefix`` and the net's label; returns id, p, fold by id and net.

    With ``held_out`` it returns one row an id: the prediction of the net that held the row out. That is the net in the
    fold column or, where there is none, the only one whose cell of the row is not empty. Raises DataError as
    `read_predictions_file` does, where no column begins with ``prefix``, and where the net of a row is unknown.
    """
    raw = (files or Files()).read(path, columns)
    id_column = _id_column(raw, columns)
    _check_column(raw, id_column, path, option=columns.option_of("id"))
    check_exact(raw[id_column], f"{path}: the ids in {id_column!r}")
    others = {prefix, id_column, columns.fold}
    nets = [name for name in map(str, raw.columns) if name.startswith(prefix) and name not in others]
    if not nets:
        raise DataError(
            f"{path}: no column begins with {prefix!r}: correct {option}; the columns are "
            f"{', '.join(map(str, raw.columns))}"
        )
    for name in nets:
        _check_column(raw, name, path, option=option)
    labels = _fold_labels(pd.Series([name.removeprefix(prefix) for name in nets]), path, columns)
    ids = as_text(raw[id_column])
    if held_out:
        return _of_own_net(raw, ids, nets, labels, path, columns)
    parts = [pd.DataFrame({"id": ids, "p": _probabilities(raw[name], path)}) for name in nets]
    _check_no_classes(np.column_stack([part["p"] for part in parts]), nets, path)
    return pd.concat([part.assign(fold=label) for part, label in zip(parts, labels, strict=True)], ignore_index=True)


def _of_own_net(
    raw: pd.DataFrame, ids: pd.Series, nets: list[str], labels: pd.Series, path: Path, columns: ImportedColumns
) -> pd.DataFrame:
    p = np.full((len(raw), len(nets)), np.nan)
    for number, name in enumerate(nets):
        filled = (as_text(raw[name]).str.strip() != "").to_numpy(bool)
        p[filled, number] = _probabilities(raw[name], path, where=filled)
    _check_no_classes(p, nets, path)
    filled = ~np.isnan(p)
    if columns.fold in raw:
        fold = _fold_labels(raw[columns.fold], path, columns)
        own = fold.map({label: number for number, label in enumerate(labels)})
        if own.isna().any():
            strange = sorted(set(fold[own.isna()].astype(str)))
            raise DataError(f"{path}: no column is of net {', '.join(strange)}, which {columns.fold!r} holds: add it")
        net = own.to_numpy(np.intp)
        if lacking := int((~filled[np.arange(len(p)), net]).sum()):
            raise DataError(f"{path}: {lacking} rows have no prediction of the net that {columns.fold!r} names: add it")
    else:
        if (several := int((filled.sum(axis=1) != 1).sum())) > 0:
            raise DataError(
                f"{path}: {several} rows have not exactly one prediction, and no column {columns.fold!r} says which "
                f"net held the row out: add it, or name it with {columns.option_of('fold')}"
            )
        net = filled.argmax(axis=1)
    own_p = p[np.arange(len(p)), net]
    return pd.DataFrame({"id": ids, "p": own_p, "fold": labels.take(net).to_numpy()})


def _check_no_classes(p: NDArray[np.float64], nets: Sequence[str], path: Path) -> None:
    """Raises DataError where the columns ``nets`` of p (n, nets) are classes: they add up to 1, and nets rise together.

    An array of classes and an array of nets have the same form, so that a row would get the p of another class.
    """
    total, widest = p.sum(axis=1), float(p.std(axis=0).max(initial=0))
    if len(nets) > 1 and (np.abs(total - 1) <= ROUNDED_SUM).all() and total.std() < SPREAD_OF_SUM * widest:
        named = "its columns" if is_array(path) else f"its columns {', '.join(map(repr, nets))}"
        raise DataError(
            f"{path}: {named} add up to 1 in every row: they are the probabilities of {len(nets)} classes, not of one "
            "class by each fold net: write that of the positive class alone, such as `values[:, 1]`"
        )


def read_parts(
    parts: Sequence[Part],
    columns: ImportedColumns,
    *,
    needs_fold: bool,
    alternative: str,
    respell: Callable[[pd.Series, Path], pd.Series],
    files: Files,
    average_seeds: bool = False,
    any_number: bool = False,
) -> pd.DataFrame:
    """Reads all files of one kind (out-of-fold or test) of a run; returns id, p and fold, averaged over seeds.

    A file of one fold net has the fold of its name unless it has a fold column, which must agree. ``respell`` brings
    the ids of a file into the table's spelling. ``any_number`` is that of `read_predictions_file`. Raises DataError
    where seeds differ in their rows or folds.
    """
    by_seed: dict[str, list[pd.DataFrame]] = {}
    for part in parts:
        frame = _read_part(
            part, columns, needs_fold=needs_fold, alternative=alternative, files=files, any_number=any_number
        )
        frame["id"] = respell(frame["id"], part.path)
        if average_seeds and columns.nets is None and columns.seed in (raw := files.read(part.path, columns)):
            for seed, rows in frame.groupby(as_text(raw[columns.seed]).to_numpy()):
                by_seed.setdefault(f"{part.seed}{seed}", []).append(rows.reset_index(drop=True))
        else:
            by_seed.setdefault(part.seed, []).append(frame)
    made = {seed: _joined(frames, parts) for seed, frames in by_seed.items()}
    if len(made) == 1:
        return next(iter(made.values()))
    alone = "import them as runs of their own, without --average-seeds"
    return _mean_of_seeds(made, parts, alone if columns.option else "give the same rows and folds for each seed")


def _read_part(
    part: Part, columns: ImportedColumns, *, needs_fold: bool, alternative: str, files: Files, any_number: bool
) -> pd.DataFrame:
    path, is_test = part.path, columns.is_test
    prefix, columns = columns.nets, replace(columns, p=part.p or columns.p)
    if prefix is None and is_array(path) and f"{NET_COLUMN}0" in files.read(path, columns):
        prefix = NET_COLUMN
    if prefix is not None:
        option = "--test-net-prefix" if is_test else "--net-prefix"
        return read_wide_file(path, columns, prefix, held_out=not is_test, option=option, files=files)
    frame = read_predictions_file(
        path, columns, needs_fold=needs_fold and not part.fold, alternative=alternative, files=files,
        any_number=any_number,
    )  # fmt: skip
    if not part.fold:
        return frame
    if "fold" not in frame:
        return frame.assign(fold=float(part.fold) if part.fold.isdecimal() else part.fold)
    if (number := frame["fold"].nunique()) > 1:
        raise DataError(
            f"{path}: the name says that it is of fold {part.fold}, but {columns.fold!r} holds {number} folds: rename "
            "the file, or write one file for each fold"
        )
    return frame


def _joined(frames: list[pd.DataFrame], parts: Sequence[Part]) -> pd.DataFrame:
    if len(frames) == 1:
        return frames[0]
    if len({tuple(frame.columns) for frame in frames}) > 1:
        raise DataError(
            f"{_named(parts)}: some of these files have folds and some have none: write the fold into each name or file"
        )
    return pd.concat(frames, ignore_index=True)


def _mean_of_seeds(made: dict[str, pd.DataFrame], parts: Sequence[Part], advice: str) -> pd.DataFrame:
    """Returns the mean of the logits of several seeds, as p, in the order of the first; ``advice`` is for an error."""
    keys = ["id", "fold"] if all("fold" in frame for frame in made.values()) else ["id"]
    first, *others = [(seed, frame.set_index(keys)["p"]) for seed, frame in made.items()]
    for seed, series in (first, *others):
        if not series.index.is_unique:
            raise DataError(f"{_named(parts)}: rows of seed {seed} repeat an id: give each row once for each seed")
    total = _to_logit(first[1].to_numpy()).copy()
    for seed, series in others:
        if len(series) != len(first[1]) or not series.index.isin(first[1].index).all():
            raise DataError(
                f"{_named(parts)}: seed {seed} has other rows or folds than seed {first[0]}, so they are not "
                f"repetitions of one model: {advice}"
            )
        total += _to_logit(series.reindex(first[1].index).to_numpy())
    frame = next(iter(made.values()))
    return frame.assign(p=np.asarray(expit(total / len(made)), np.float64))[[*frame.columns]]


def _to_logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return clipped_logit(p, clip_limits(p, FINEST_EDGE))


def _named(parts: Sequence[Part]) -> str:
    shown = ", ".join(str(part.path) for part in parts[:3])
    return f"{shown}, … {len(parts)} files" if len(parts) > 3 else shown


def _id_column(raw: pd.DataFrame, columns: ImportedColumns) -> str:
    """Returns the column of the ids; they may be the index of a parquet file, which need not have a name."""
    return UNNAMED_INDEX if columns.id not in raw and UNNAMED_INDEX in raw else columns.id


def _check_column(raw: pd.DataFrame, name: str, path: Path, *, option: str, without: str = "") -> None:
    if (number := list(raw.columns).count(name)) > 1:
        raise DataError(f"{path}: {number} columns are named {name!r}: rename all but one")
    if name not in raw:
        near = difflib.get_close_matches(name, map(str, raw.columns), n=1)
        all_names = ", ".join(map(str, raw.columns))
        of_option = f"name it with {option}" if option else "rename the column"
        hint = f"did you mean {option} {near[0]}?" if near and option else f"{of_option}; the columns are {all_names}"
        raise DataError(f"{path}: no column {name!r}: {hint}{without}")


def _probabilities(values: pd.Series, path: Path, where: NDArray[np.bool_] | None = None) -> pd.Series:
    """Returns the values as float64; only those marked by ``where``, if given. Raises DataError unless in [0, 1]."""
    rows = np.arange(len(values)) if where is None else np.flatnonzero(where)
    values = values if where is None else values[where]
    numbers = _numbers(values)
    bad = ~numbers.between(0, 1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: {bad.sum()} values of {values.name!r} are not probabilities, first "
            f"{values.iloc[row]!r} in row {_row_number(int(rows[row]), path)}: give values in [0, 1]"
        )
    return numbers


def _numbers(values: pd.Series) -> pd.Series:
    if (plain := plain_numbers(values)) is not None:
        return pd.Series(plain, index=values.index, name=values.name)
    return pd.to_numeric(values, errors="coerce").astype(np.float64)


def _row_number(row: int, path: Path) -> int:
    """Returns the row number for a message: rows of a csv are counted with the header as row 1, others from 1."""
    return row + (1 if is_parquet(path) or is_array(path) else 2)


def _fold_labels(values: pd.Series, path: Path, columns: ImportedColumns) -> pd.Series:
    """Returns fold labels as numbers where all are numbers, so that 0 and 0.0 are one fold; else as text."""
    codes, names = pd.factorize(as_text(values))  # few names, whatever the number of rows
    found = pd.Series(names, dtype="str")
    missing = is_missing_fold(found)[codes]
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        where = f"first row {_row_number(row, path)}"
        raise DataError(f"{path}: {missing.sum()} rows without a {columns.fold!r}, {where}: fill them in")
    labels = fold_labels(found, f"{path}: folds")
    if labels.nunique() > MAX_FOLDS:
        advice = f"check {option}" if (option := columns.option_of("fold")) else "write the net of each row there"
        raise DataError(
            f"{path}: column {columns.fold!r} holds {labels.nunique()} values, too many for folds: {advice}"
        )
    return labels.take(codes).set_axis(values.index)

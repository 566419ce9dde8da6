"""Reads NumPy arrays of predictions whose ids lie in a file beside them; an array without ids is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError, StoreError
from stack.store import read_array
from stack.tables.cells import as_text, read_columns

NET_COLUMN = "net of column "  # begins the name of each column of a two-dimensional array, before its number
_MAGIC = b"\x93NUMPY"
_SAVE_IDS = "save the ids with `np.save(file, np.array(ids, dtype=str))`"  # text also of a pandas column
_SUFFIXES = (".npy", ".csv", ".parquet", ".txt")


def is_array(path: Path) -> bool:
    """Whether the file is a NumPy array, by its content."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:  # the reader says what is wrong with it
        return False


def ids_beside(path: Path, part: str) -> list[Path]:
    """Returns the names under which the ids of an array are looked for, the first that exists being used.

    For ``net_oof.npy`` these are ``net_oof_ids``, then for all arrays of the folder ``oof_ids`` (or ``test_ids``, as
    ``part`` says) and ``ids``, each as .npy, .csv, .parquet or .txt.
    """
    stems = dict.fromkeys([f"{path.stem}_ids", f"{part}_ids", "ids"])
    return [path.with_name(f"{stem}{suffix}") for stem in stems for suffix in _SUFFIXES]


def is_ids_file(path: Path) -> bool:
    """Whether the file's name is one under which the ids of an array are looked for."""
    stem = path.stem.lower()
    return path.suffix.lower() in _SUFFIXES and (stem == "ids" or stem.endswith("_ids"))


def read_array_columns(
    path: Path, part: str, *, id_column: str, p: str, fold: str, ids: Path | None = None, option: str = "--ids"
) -> pd.DataFrame:
    """Reads an array (n,), (n, 1), (n, nets) or (nets, n) as columns, beside the ids and, where known, the folds.

    A column of several is named NET_COLUMN and its number, which is the label of the net. ``option`` names the file of
    the ids, for messages; "" where none does. Raises DataError where the ids are not found or not as many as the array
    has rows, and for other arrays.
    """
    values = _numbers_of(path)
    found = ids or next((place for place in ids_beside(path, part) if place.exists()), None)
    if found is None:
        named = f", name their file with {option}," * bool(option)
        raise DataError(
            f"{path} is a NumPy array, which holds no ids, and rows are never joined by position: write the ids into "
            f"{path.stem}_ids.npy or {part}_ids.csv beside it{named} or write ids and values as columns of a csv"
        )
    frame = _read_ids(found, id_column, fold, option.replace("ids", "id-column"))
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim not in (1, 2) or len(frame) not in values.shape:
        raise DataError(
            f"{path}: an array of shape {values.shape} for the {len(frame):,} ids of {found}: give one value an id, or "
            "one column a fold net"
        )
    if values.ndim == 1:
        return frame.assign(**{p: values})
    if values.shape[0] == values.shape[1]:
        raise DataError(f"{path}: in a square array of {values.shape} it is not certain which way the rows go")
    by_row = values if len(values) == len(frame) else values.T
    names = [f"{NET_COLUMN}{number}" for number in range(by_row.shape[1])]
    return pd.concat([frame, pd.DataFrame(by_row, columns=names)], axis=1)


def _numbers_of(path: Path) -> NDArray[np.float64]:
    values = _opened(path, "save it again with `np.save(file, values.astype(float))`")
    if values.dtype.kind not in "biuf":
        raise DataError(f"{path}: an array of {values.dtype}: save it with `np.save(file, values.astype(float))`")
    return np.asarray(values, np.float64)


def _opened(path: Path, remedy: str) -> NDArray[np.generic]:
    try:
        return read_array(path, remedy=remedy)
    except StoreError as error:
        raise DataError(str(error)) from error


def _read_ids(path: Path, id_column: str, fold: str, option: str) -> pd.DataFrame:
    """Returns the ids of a file as the column ``id_column``, and its column ``fold`` if it has one."""
    if path.suffix.lower() == ".txt":
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a readable text file in UTF-8 ({error}): write one id a line") from error
        return pd.DataFrame({id_column: pd.Series(lines, dtype="str")})
    if is_array(path):
        ids = _opened(path, _SAVE_IDS)
        if ids.ndim != 1 or ids.dtype.kind not in "USiu":
            raise DataError(f"{path}: an array of {ids.dtype} and shape {ids.shape}: {_SAVE_IDS}")
        return pd.DataFrame({id_column: as_text(pd.Series(np.asarray(ids)))})
    raw = read_columns(path)
    column = id_column if id_column in raw else str(raw.columns[0]) if raw.shape[1] == 1 else ""
    if not column:
        raise DataError(
            f"{path}: no column {id_column!r}: {f'name it with {option}' if option else 'rename the column'}; the "
            f"columns are {', '.join(map(str, raw.columns))}"
        )
    frame = pd.DataFrame({id_column: raw[column]})
    return frame.assign(**{fold: raw[fold]}) if fold in raw and fold != column else frame

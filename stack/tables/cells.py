"""Reads csv and parquet files, recognised by their content, as columns of values or of text."""

from __future__ import annotations

import csv
import errno
import io
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dermstack.errors import DataError
from dermstack.parquet import FRAME_ERRORS, parquet_metadata, read_parquet
from stack.tables.csv_plain import COMPRESSION_ERRORS, read_plain_csv
from stack.tables.csv_rows import check_rows

MAX_CSV_COLUMNS = 10_000
_MAX_HEADER_BYTES = 1 << 20  # the longest header line of a csv, in bytes

UNNAMED_INDEX = "index of the file"  # the column that the index of a parquet file becomes where it has no name

_SHOWN_NAME = 120  # characters shown of a name that is too long
_PARQUET = b"PAR1"
_PARQUET_NAMES = (".parquet", ".pq")
_NO_IDS = "which holds no ids, so its rows cannot be joined to the table: write ids and values as columns of a csv"
_FOREIGN = {  # first bytes of files that are neither csv nor parquet: what they are and the next step
    b"\x93NUMPY": f"is a NumPy array, {_NO_IDS} or parquet file",
    b"\xd0\xcf\x11\xe0": "is an Excel file: save the sheet as a csv in UTF-8",
    b"ARROW1": "is a Feather (Arrow) file: save it as parquet or as a csv",
    b"\x89HDF": "is an HDF5 file: save the table as a csv or parquet file",
    b"[{": "is JSON: save the table as a csv or parquet file",
    b'{"': "is JSON: save the table as a csv or parquet file",
    b"SQLite format 3\0": "is an SQLite database: export the table as a csv",
    **{
        bytes(
            [0x80, version]
        ): "is a pickle, which can run code when it is read: save the table as a csv or parquet file"
        for version in range(2, 6)
    },
}
_ZIPPED = {  # suffixes of formats that are zip archives inside
    ".npz": f"is a file of NumPy arrays, {_NO_IDS} or parquet file",
    ".xlsx": _FOREIGN[b"\xd0\xcf\x11\xe0"],
    ".xlsm": _FOREIGN[b"\xd0\xcf\x11\xe0"],
    ".ods": "is a spreadsheet: save the sheet as a csv in UTF-8",
}


def read_columns(path: Path, *, may_be_empty: bool = False) -> pd.DataFrame:
    """Reads a csv or parquet file with a header and at least one row; the content decides which, not the name.

    Cells of a csv are the strings in the file: "17" stays "17", "NA" stays "NA", a missing cell is "". Columns of
    parquet keep their types, and a named index becomes columns. Names of columns are stripped and may repeat. Raises
    DataError for a file that is missing, empty, damaged or of another format, for a csv in which rows or cells are lost
    (see `stack.tables.csv_rows`) and for more than 10,000 columns.
    """
    head = _first_bytes(path)
    if head.startswith(_PARQUET):
        return _read_parquet(path, may_be_empty=may_be_empty)
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise DataError(f"{path} {what}")
    if head.startswith(b"PK\x03\x04") and (archive := _ZIPPED.get(path.suffix.lower())):
        raise DataError(f"{path} {archive}")
    check_header(path)
    cells = read_plain_csv(path)
    if cells is None:
        cells = _parsed_csv(path)
    if len(cells) < 2 and not may_be_empty:
        raise DataError(f"{path}: the file has a header but no rows: add at least one row")
    rows = cells.iloc[1:].reset_index(drop=True)
    rows.columns = pd.Index([name.strip() for name in cells.iloc[0]])
    return rows


def _parsed_csv(path: Path) -> pd.DataFrame:
    """Returns the cells of a csv of any form as text, the header as the first row, after `check_rows`."""
    try:
        # header=None, because pandas would silently rename a duplicated column and use a surplus one as the index.
        cells = pd.read_csv(path, header=None, dtype=str, keep_default_na=False, encoding="utf-8-sig").fillna("")
    except pd.errors.EmptyDataError as error:
        raise DataError(f"{path}: the file is empty: give it a header and at least one row") from error
    except (ValueError, OSError, MemoryError, pa.ArrowException, *COMPRESSION_ERRORS) as error:
        with suppress(ValueError, OSError, MemoryError, *COMPRESSION_ERRORS):
            check_rows(path)  # may know the reason
        also = " nor parquet" if path.suffix.lower() in _PARQUET_NAMES else ""
        raise DataError(f"{path}: not a readable csv in UTF-8{also} ({str(error).strip()}): save it as one") from error
    check_rows(path)
    return cells


def check_header(path: Path) -> None:
    """Raises DataError where the header of a csv is too long, or one column that other separators divide.

    pandas crashes the process at some millions of columns. Does nothing for a missing file, which the caller's reader
    reports.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        head = file.read(_MAX_HEADER_BYTES)
        is_all = not file.read(1)
    text = head.decode("utf-8-sig", "replace")
    lines = csv.reader(cells := io.StringIO(text, newline=""))
    try:
        first = next((row for row in lines if len(row) > 1 or "".join(row).strip()), [])
        ends = is_all or cells.tell() < len(text)
    except csv.Error as error:
        raise DataError(f"{path}: not a readable csv in UTF-8 ({error}): save it as one") from error
    if len(first) > MAX_CSV_COLUMNS or not ends:
        found = f"{len(first):,} columns" if ends else f"no end in its first {_MAX_HEADER_BYTES:,} bytes"
        raise DataError(
            f"{path}: its header has {found}, but a table has at most {MAX_CSV_COLUMNS:,} columns: check the file"
        )
    if len(first) == 1 and first[0].replace("\t", "").isprintable():  # not the first bytes of a compressed file
        for separator, name in ((";", "semicolons"), ("\t", "tabs"), ("|", "'|'")):
            if separator in first[0].strip():
                raise DataError(
                    f"{path}: its header is one column, {first[0]!r}: the cells are separated by {name}; save the file "
                    "with commas between the cells and a point in numbers (0.5, not 0,5)"
                )


def read_cells(path: Path, *, may_be_empty: bool = False) -> pd.DataFrame:
    """Reads a file as `read_columns` does, with every value as text. Raises DataError."""
    columns = read_columns(path, may_be_empty=may_be_empty)
    return as_cells(columns)


def as_cells(columns: pd.DataFrame) -> pd.DataFrame:
    """Returns the columns with every value as text."""
    made = pd.DataFrame({number: as_text(columns.iloc[:, number]) for number in range(columns.shape[1])})
    return made.set_axis(columns.columns, axis=1)


def is_parquet(path: Path) -> bool:
    """Returns whether the file is parquet by its content; rows of parquet are counted from 1, of a csv from 2."""
    return _first_bytes(path).startswith(_PARQUET)


def plain_numbers(cells: pd.Series) -> NDArray[np.float64] | None:
    """Returns the numbers (n,) of cells of text, NaN for missing values; None where a cell is no plain number.

    Arrow reads the same numbers as `pandas.to_numeric`, twelve times as fast, but stops at an empty cell, a word or a
    space.
    """
    if cells.dtype != "str":
        return None
    try:
        made = pc.cast(pa.array(cells, type=pa.large_string()), pa.float64())
    except pa.ArrowInvalid:
        return None
    numbers: NDArray[np.float64] = made.to_numpy(zero_copy_only=False)
    return numbers


def as_text(values: pd.Series) -> pd.Series:
    """Returns the values (n,) as str, as a csv would hold them; a missing value is "".

    A float column of whole numbers, which pandas makes of integers with missing values, is written without ".0". A bool
    is 1 or 0; bytes are decoded as UTF-8.
    """
    if values.dtype == "str":
        return values.fillna("")
    if pd.api.types.is_float_dtype(values.dtype):
        numbers = values.to_numpy(np.float64, na_value=np.nan)
        known = numbers[~np.isnan(numbers)]
        if np.all(np.isfinite(known) & (known == np.round(known)) & (np.abs(known) < 2**53)):
            words = [str(int(number)) if number == number else "" for number in numbers]
            return pd.Series(words, index=values.index, name=values.name, dtype="str")
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iu":
        return values.astype("str")
    return values.astype("object").map(_word).astype("str")


def is_rounded(values: pd.Series) -> bool:
    """Whether the integers (n,) in a column of floats may have lost digits, so that different ones became equal.

    float16 is exact up to 2,048, float32 up to 16,777,216, float64 up to 2**53; to save memory, notebooks often convert
    all columns.
    """
    if not pd.api.types.is_float_dtype(values.dtype):
        return False
    bits = {2: 11, 4: 24}.get(getattr(values.dtype, "itemsize", 8), 53)
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    return bool((np.abs(numbers[np.isfinite(numbers)]) >= 2.0**bits).any())


def _word(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")  # not "replace", which makes one text of different bytes
    if isinstance(value, bool | np.bool_):
        return str(int(value))
    if value is None or (pd.api.types.is_scalar(value) and pd.isna(value)):  # type: ignore[call-overload]
        return ""
    return str(value)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file: correct its path") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder: name a csv or parquet file") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{_start(path)}: the name is too long for this file system: correct it") from error
        raise DataError(f"{path} cannot be read ({error.strerror}): check the file") from error


def _start(path: Path) -> str:
    text = str(path)
    return f"{text[:_SHOWN_NAME]}… ({len(text):,} characters)" if len(text) > _SHOWN_NAME else text


def _read_parquet(path: Path, *, may_be_empty: bool) -> pd.DataFrame:
    try:
        if (found := parquet_metadata(path).num_columns) > MAX_CSV_COLUMNS:
            raise DataError(
                f"{path}: it has {found:,} columns, a table has at most {MAX_CSV_COLUMNS:,}: check the file"
            )
        frame = read_parquet(path)
        index, frame = frame.index, frame.reset_index(drop=True)
        # An index of numbers without a name is what a selection of rows leaves behind; any other may be the ids.
        if index.nlevels > 1 or index.name is not None or not pd.api.types.is_numeric_dtype(index.dtype):
            names = [UNNAMED_INDEX if name is None else str(name) for name in index.names]
            levels = index.set_names(names).to_frame(index=False)
            frame = pd.concat([levels[[name for name in names if name not in frame]], frame], axis=1)
    except FRAME_ERRORS as error:
        raise DataError(f"{path}: not a readable parquet file ({error}): write it again") from error
    if not len(frame) and not may_be_empty:
        raise DataError(f"{path}: the file has no rows: add at least one row")
    return frame.set_axis([str(name).strip() for name in frame.columns], axis=1)

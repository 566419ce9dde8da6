"""Checks that each line of a csv is one row of the table: no row lost inside quotation marks, no row cut off."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TextIO

from pandas.io.common import get_handle  # type: ignore[import-not-found]  # pandas' stubs lack it

from dermstack.errors import DataError
from dermstack.listing import first_of

_MAX_SHOWN = 60  # characters shown of a line
_LONGEST_CELL = (1 << 31) - 1  # characters
_MAX_SHAPES = 1000  # rows whose first cells are remembered


def check_rows(path: Path) -> None:
    """Raises DataError for a csv that other readers accept although rows or cells are lost.

    Two faults are found: a quotation mark that is closed in a later row, so that all rows between the two become one
    cell; and rows with fewer cells than the header, as in a file that was cut off. A cell of several lines is correct
    if it stands in quotation marks. Rows with more cells than the header are left to the parser, which refuses them.
    Raises ValueError where the file is not UTF-8 text.
    """
    limit = csv.field_size_limit(_LONGEST_CELL)  # a setting of the process; its default is 131,072 characters
    try:
        with get_handle(path, "r", encoding="utf-8-sig", compression="infer") as opened:
            _check(path, opened.handle)
    finally:
        csv.field_size_limit(limit)


def _check(path: Path, file: TextIO) -> None:
    width, end = 0, 0
    short: list[tuple[int, int, str]] = []
    suspects: list[tuple[int, list[str]]] = []
    try:
        for record, cells in _records(file):
            first, end = end + 1, end + len(record)
            if cells == 1 and not "".join(record).strip():
                continue  # a blank line
            if not width:
                width = cells
                continue
            if len(record) > 1:
                suspects.append((first, record))
            if cells < width:
                short.append((first, cells, record[0]))
    except csv.Error as error:
        raise DataError(
            f"{path}: the csv cannot be read from line {end + 1} on ({error}): check the quotation marks there"
        ) from error
    shapes = _shapes(file) if suspects else set()
    for first, record in suspects:
        if _holds_rows(record, width, shapes):
            raise DataError(
                f"{path}: the quotation mark that opens in line {first} goes on to line {first + len(record) - 1}, "
                f"so {len(record)} rows would be read as one: remove both marks, or double a mark that belongs to a "
                f"value; line {first} is {_shown(record[0])}"
            )
    if short:
        numbers = first_of(first for first, _, _ in short)
        first, cells, text = short[0]
        raise DataError(
            f"{path}: too few cells in line{'s' if len(short) > 1 else ''} {numbers}; line {first} has {cells} "
            f"of {width} ({_shown(text)}): the file may be cut off, or a comma is lost. Write the whole row, "
            "with an empty cell for each missing value"
        )


def _shapes(file: TextIO) -> set[str]:
    """Returns the forms of the first cells of rows that stand in one line, without the header's."""
    file.seek(0)
    found: set[str] = set()
    rows = (record for record, cells in _records(file) if cells > 1 or "".join(record).strip())
    for record in islice(rows, 1, None):
        if len(record) == 1:
            found.add(_shape(record[0]))
        if len(found) >= _MAX_SHAPES:
            break
    return found


def _records(file: Iterator[str]) -> Iterator[tuple[list[str], int]]:
    """Yields the lines of each record and its number of cells; only a record with quotation marks is parsed."""
    for line in file:
        if '"' not in line:
            yield [line], line.count(",") + 1
        else:
            record: list[str] = []
            cells = next(csv.reader(_noted(chain([line], file), record)))
            yield record, len(cells)


def _noted(lines: Iterable[str], record: list[str]) -> Iterator[str]:
    """Yields lines, each of which is also appended to ``record``."""
    for line in lines:
        record.append(line)
        yield line


def _holds_rows(record: list[str], width: int, shapes: set[str]) -> bool:
    """Tells whether the lines of one record are rows of their own, joined by a stray quotation mark.

    They are if text follows a closing mark, which no writer of csv makes, or if each line has as many cells as the
    header where marks are ignored, and begins as the other rows do. The lines of a comment rarely do both.
    """
    try:
        next(csv.reader(record, strict=True))
    except csv.Error:
        return True
    return all(line.count(",") + 1 == width for line in record) and all(_shape(line) in shapes for line in record[1:])


def _shape(line: str) -> str:
    """Returns the form of a line's first cell: its digits as 9, its letters as a."""
    first = line.partition(",")[0].strip().strip('"')
    return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d+", "9", first))


def _shown(line: str) -> str:
    text = line.rstrip("\r\n")
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")

"""Files of predictions made elsewhere, csv or parquet, as id, p and the label of the net that made each row."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from stack.errors import DataError
from stack.reading import check_header
from stack.store import NO_FRAME

MAX_FOLDS = 100  # as in a config; a column with more is no fold column


@dataclass(frozen=True)
class ImportedColumns:
    """How the files name things; ``fold`` is the net that made a row, in each file."""

    id: str
    p: str
    fold: str


def read_predictions_file(path: Path, columns: ImportedColumns, *, needs_fold: bool, unless: str = "") -> pd.DataFrame:
    """id (str), p in [0, 1] and fold, which may be missing where the caller doesn't need it.

    ``unless`` is the option that would do without. Raises DataError for an absent column or a p that is none.
    """
    raw = _raw(path)
    wanted = {"id": columns.id, "p": columns.p}
    if columns.fold in raw or needs_fold:
        wanted["fold"] = columns.fold
    for key, name in wanted.items():
        without = f" (or do without folds: {unless})" if key == "fold" and unless else ""
        _check_column(raw, name, path, option=f"--{key}-column", without=without)
    frame = pd.DataFrame({"id": raw[columns.id].astype("str"), "p": _probabilities(raw[columns.p], path)})
    return frame.assign(fold=_fold_labels(raw[columns.fold], path, columns)) if "fold" in wanted else frame


def read_wide_file(path: Path, columns: ImportedColumns, prefix: str) -> pd.DataFrame:
    """id, p and fold, a row an id and net, of a file with a column a net: the prefix, then the net's label."""
    raw = _raw(path)
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


def _raw(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path)
        except NO_FRAME as error:
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
            f"{values.iloc[row]!r} in row {_line(row, path)}: they must lie in [0, 1]"
        )
    return numbers


def _line(row: int, path: Path) -> int:
    """As one counts: from 1, and in a csv after the line of the names."""
    return row + (1 if path.suffix == ".parquet" else 2)


def _fold_labels(values: pd.Series, path: Path, columns: ImportedColumns) -> pd.Series:
    """Numbers where all are numbers, so that 0 and 0.0 are one fold; else the text."""
    text = values.astype("str").str.strip()
    missing = text.isna() | text.str.lower().isin(["", "na", "nan", "none", "null"])
    if missing.any():
        row = int(np.flatnonzero(missing)[0])
        where = f"first row {_line(row, path)}"
        raise DataError(f"{path}: {missing.sum()} rows without a {columns.fold!r}, {where}: fill them in")
    if text.nunique() > MAX_FOLDS:
        raise DataError(
            f"{path}: column {columns.fold!r} holds {text.nunique()} values: that is no fold, check --fold-column"
        )
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers if numbers.notna().all() else text

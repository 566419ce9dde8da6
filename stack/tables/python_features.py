"""Adds the columns that a user's own Python function computes from the table, and checks that each group is its own."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError
from dermstack.user_code import USER_ERRORS, load_user_file
from stack.tables.columns import RESERVED
from stack.tables.table import TRAIN_ONLY, Table

FUNCTION = "features"  # name of the function in the file
_SINGLE_GROUPS = 20  # groups that are computed alone, to compare
_TOLERANCE = 1e-5  # relative; sums in another order differ by less
_MAX_FLOAT = float(np.finfo(np.float32).max)


def with_python_features(table: Table, path: Path) -> Table:
    """Returns the table with the columns that `features(table)` in the file ``path`` computes, as columns of numbers.

    The function gets the training rows and the test rows one after the other, without target, diagnosis, source and
    fold: id, group, age, sex, site, where mapped width, height and bytes, and the further columns. It runs with the
    rights of the user. Raises ConfigError where it fails, where its result does not have the rows of its input, or
    names that are taken, or other than finite numbers and NaN, and where the values of a group change when other groups
    are left out, because then a feature of a scored row knows rows of other folds.
    """
    function = _load(path)
    train = _computed(function, path, _input(table.train), table)
    names = tuple(map(str, train.columns))
    _check_groups(function, path, table, train)
    if table.groups_known and not table.test_groups_known:
        rows = _input(table.train)
        if not _same(_computed(function, path, rows.assign(group=rows["id"]), table), train).all():
            raise ConfigError(
                f"features.python {path}: a feature compares a row with the other rows of its group, but data.test has "
                "no column data.columns.group: add it to the test csv"
            )
    test = pd.DataFrame(index=table.test.index, columns=list(names), dtype=np.float32)
    if len(table.test):
        test = _computed(function, path, _input(table.test), table)
        if (given := tuple(map(str, test.columns))) != names:
            raise ConfigError(
                f"features.python {path}: the columns are {', '.join(names)} for the training rows, but "
                f"{', '.join(given)} for the test rows: return the same columns for any rows"
            )
    return replace(
        table,
        train=pd.concat([table.train, train], axis=1),
        test=pd.concat([table.test, test], axis=1),
        columns=replace(table.columns, python=names),
    )


def _load(path: Path) -> Callable[[pd.DataFrame], object]:
    """Runs the file and returns its function."""
    if not path.is_file():
        raise ConfigError(f"features.python {path}: no such file: correct the path, or remove the key")
    try:
        module = load_user_file("dermstack_python_features", path)
    except USER_ERRORS as error:
        raise ConfigError(
            f"features.python {path}: it cannot be imported ({_told(error, path)}): correct it"
        ) from error
    function = getattr(module, FUNCTION, None)
    if not callable(function):
        raise ConfigError(
            f"features.python {path}: it has no function `{FUNCTION}`: define `def {FUNCTION}(table)`, which returns a "
            "DataFrame with the rows of the table"
        )
    found: Callable[[pd.DataFrame], object] = function
    return found


def _input(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns a copy of the rows without the columns that only training rows have, numbered from 0."""
    return frame.drop(columns=[name for name in TRAIN_ONLY if name in frame]).reset_index(drop=True).copy()


def _computed(function: Callable[[pd.DataFrame], object], path: Path, rows: pd.DataFrame, table: Table) -> pd.DataFrame:
    """Calls the function on a copy of ``rows`` and returns its checked result, float32 with the same index."""
    where = f"features.python {path}"
    try:
        made = function(rows.copy())
    except USER_ERRORS as error:
        raise ConfigError(
            f"{where}: {FUNCTION} failed on {len(rows):,} rows of {rows['group'].nunique():,} groups "
            f"({_told(error, path)}): correct it; it must work for any groups, also for a single row"
        ) from error
    if not isinstance(made, pd.DataFrame):
        raise ConfigError(f"{where}: {FUNCTION} returned a {type(made).__name__}: return a pandas DataFrame")
    if not made.index.equals(rows.index):
        raise ConfigError(
            f"{where}: {FUNCTION} returned {len(made):,} rows for {len(rows):,}, or in another order: return a frame "
            "with the index of the table"
        )
    if made.columns.empty:
        raise ConfigError(f"{where}: {FUNCTION} returned no column: add one, or remove the key")
    for name in made.columns:
        twice = list(made.columns).count(name) > 1
        if not isinstance(name, str) or twice or name in RESERVED or name in table.columns.names or name in table.train:
            why = "is there twice" if twice else "is a name of the table" if isinstance(name, str) else "is no text"
            raise ConfigError(f"{where}: the column name {name!r} {why}: give the column another one")
        is_real = pd.api.types.is_numeric_dtype(made[name]) and not pd.api.types.is_complex_dtype(made[name])
        if not (is_real or pd.api.types.is_bool_dtype(made[name])):
            raise ConfigError(f"{where}: column {name!r} is of type {made[name].dtype}: return numbers or NaN")
    values = made.to_numpy(np.float64, na_value=np.nan)
    bad = np.isinf(values) | (np.abs(values) > _MAX_FLOAT)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ConfigError(
            f"{where}: column {made.columns[column]!r} is {values[row, column]} for id {rows['id'].iloc[row]!r}, one "
            f"of {int(bad.sum()):,} values that are not finite: return NaN there"
        )
    return pd.DataFrame(values.astype(np.float32), index=rows.index, columns=made.columns)


def _check_groups(function: Callable[[pd.DataFrame], object], path: Path, table: Table, whole: pd.DataFrame) -> None:
    """Raises ConfigError where the values of a group are others without the other groups.

    Compares two halves of the groups, and some groups alone: the largest, the smallest and random ones.
    """
    rows = _input(table.train)
    code, groups = pd.factorize(rows["group"])
    by_size = np.argsort(np.bincount(code), kind="stable")
    rng = np.random.default_rng(0)
    half = rng.permutation(len(groups)) < len(groups) // 2
    drawn = rng.choice(len(groups), min(_SINGLE_GROUPS, len(groups)), replace=False)
    parts: list[NDArray[np.bool_]] = [half[code], ~half[code]]
    parts += [code == group for group in dict.fromkeys([by_size[-1], by_size[0], *drawn])]
    for part in parts:
        some = rows[part].reset_index(drop=True)
        if some.empty:
            continue
        alone = _computed(function, path, some, table)
        if list(alone.columns) != list(whole.columns):
            raise ConfigError(
                f"features.python {path}: the columns are {', '.join(map(str, whole.columns))} for all rows, but "
                f"{', '.join(map(str, alone.columns))} for {len(some):,} of them: return the same columns for any rows"
            )
        same = _same(alone, whole[part])
        if not same.all():
            row, column = np.argwhere(~same)[0]
            among, without = whole[part].iloc[row, column], alone.iloc[row, column]
            raise ConfigError(
                f"features.python {path}: column {whole.columns[column]!r} looks at rows of other groups, or draws "
                f"random numbers: for id {some['id'].iloc[row]!r} it is {among:g} among all groups and {without:g} "
                "without the others. A feature of other groups would know rows of other folds: use the row and its "
                "group only, such as table.groupby('group')"
            )


def _same(made: pd.DataFrame, expected: pd.DataFrame) -> NDArray[np.bool_]:
    """Returns which values (n, columns) of two frames of the same shape are equal, up to rounding."""
    pair = (made.to_numpy(np.float64), expected.to_numpy(np.float64))
    same: NDArray[np.bool_] = np.isclose(*pair, rtol=_TOLERANCE, atol=1e-30, equal_nan=True)
    return same


def _told(error: BaseException, path: Path) -> str:
    """Returns type and message of an error of the user's code, with the last line of the file that it comes from."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    at = f" in line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}{at}: {' '.join(str(error).split())[:200]}"

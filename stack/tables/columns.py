"""Chooses the numeric and categorical columns of a table that have no role, and reads their values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import TabularError
from dermstack.listing import counted, first_of
from stack.settings.data import Codes
from stack.tables.cells import plain_numbers
from stack.tables.checks import nearest
from stack.tables.keys import MISSING_KEYS, unified_words
from stack.tables.number_texts import NumberText, number_text
from tabular.expressions import Expression, derived_columns, parse
from tabular.relative import LARGEST

Kind = Literal["numeric", "categorical"]
KINDS: tuple[Kind, ...] = ("numeric", "categorical")

# Names of the table's own columns. A csv column with one of these names and no role is called `csv.<name>`.
RESERVED = frozenset({
    "id", "group", "target", "age", "sex", "site", "diagnosis", "source", "fold", "width", "height", "bytes",
    "part", "split_group", "logit", "score", "p", "p_calibrated",
})  # fmt: skip
_MAX_NAMED = 12  # columns that a message lists
_MAX_INFINITE, _MAX_IDS = 4, 3  # columns with infinite cells that a message lists, and rows of each

InfiniteCells = dict[str, NDArray[np.bool_]]  # rows (n,) whose cell is infinite or beyond 1e38, by csv column


class Choice(NamedTuple):
    """What was decided of one csv column: taken as numeric or categorical, or left out (None), and why."""

    column: str
    kind: Kind | None
    reason: str
    odd: NumberText | None = None  # numbers written as text, for which it was left out or taken as categorical
    place: int = 0  # of a column without a name in the csv, the first column is 1

    @property
    def shown(self) -> str:
        """Its name, or which column it is where it has none."""
        return self.column or f"column {self.place}, without a name"


@dataclass(frozen=True)
class TableColumns:
    """The numeric and categorical columns of a table without a role, each with its name in the csv.

    ``choices`` says of each csv column without a role what was decided and why; it is empty where a table is read with
    the columns of another, such as a bundle's.
    """

    numeric: Mapping[str, str] = field(default_factory=dict)  # csv name by name in the table
    categorical: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)  # expression by name in the table
    choices: tuple[Choice, ...] = ()
    python: tuple[str, ...] = ()  # names of the columns that `features.python` computes

    @property
    def numbers(self) -> list[str]:
        """Names in the table of the columns of numbers: of the csv, derived ones, then those of `features.python`."""
        return [*self.numeric, *self.derived, *self.python]

    @property
    def names(self) -> list[str]:
        """Names in the table: columns of numbers, then of words."""
        return [*self.numbers, *self.categorical]

    @property
    def csv(self) -> dict[str, str]:
        """Name in the csv by name in the table."""
        return {**self.numeric, **self.categorical}

    def only(self, names: Collection[str]) -> TableColumns:
        """Returns the columns ``names``, and all derived ones if one of them is named, as they may use each other."""
        numeric, categorical = (
            {name: csv for name, csv in part.items() if name in names} for part in (self.numeric, self.categorical)
        )
        derived = self.derived if set(names) & set(self.derived) else {}
        return TableColumns(numeric, categorical, derived, python=tuple(name for name in self.python if name in names))

    @property
    def shown(self) -> dict[str, str]:
        """Name on pages by name in the table: as in the csv, but `csv.age` for a column `age` without that role."""
        csv = self.csv
        return {name: csv.get(name, name) if csv.get(name) not in RESERVED else name for name in self.names}

    @property
    def shown_categorical(self) -> dict[str, str]:
        """Name on pages of each categorical column, by its name in the table."""
        shown = self.shown
        return {name: shown[name] for name in self.categorical}

    @property
    def shown_numeric(self) -> dict[str, str]:
        """Name on pages of each numeric column of the csv, by its name in the table."""
        shown = self.shown
        return {name: shown[name] for name in self.numeric}

    @property
    def made_of(self) -> dict[str, tuple[str, ...]]:
        """The csv's columns that each column of the table is read or computed from, by name in the table."""
        found: dict[str, tuple[str, ...]] = {name: (csv,) for name, csv in self.csv.items()}
        for name in self.derived:
            needed = [name]  # grows
            parts = dict[str, None]()
            for one in needed:
                for part in parse(self.derived[one]).columns:
                    if part not in self.derived:
                        parts[part] = None
                    elif part not in needed:
                        needed.append(part)
            found[name] = tuple(parts)
        return found

    def inputs(self, with_role: Collection[str]) -> dict[str, str]:
        """Returns the csv's columns that the table needs and that are not among ``with_role``, by `name_in_table`."""
        parts = dict.fromkeys(csv for listed in self.made_of.values() for csv in listed)
        return {name_in_table(csv): csv for csv in parts if csv not in with_role}

    @property
    def unused(self) -> list[str]:
        """Columns of the training csv that were left out because nothing in the config asks for them."""
        return [choice.shown for choice in self.choices if choice.reason == NOT_ASKED]


NO_COLUMNS = TableColumns()
NOT_ASKED = "the config does not name it"
ONLY_DERIVED = "only features.derived uses it"


def described_choices(columns: TableColumns) -> list[str]:
    """Returns a line on the columns taken of each kind, one on those left out with the reasons, one on unused ones.

    Columns of numbers that are written as text are left to `number_warnings`.
    """
    lines = []
    for kind in KINDS:
        if names := [choice.shown for choice in columns.choices if choice.kind == kind]:
            lines.append(f"{kind} columns: {len(names):,} ({first_of(names, _MAX_NAMED)})")
    if columns.python:
        lines.append(f"columns of features.python: {len(columns.python):,} ({first_of(columns.python, _MAX_NAMED)})")
    by_reason: dict[str, list[str]] = {}
    for choice in columns.choices:
        if choice.kind is None and choice.reason != NOT_ASKED and choice.odd is None:
            by_reason.setdefault(choice.reason, []).append(choice.shown)
    if by_reason:
        parts = [f"{first_of(names, _MAX_NAMED)}: {reason}" for reason, names in by_reason.items()]
        lines.append(f"columns left out: {'; '.join(parts)}")
    if columns.unused:
        lines.append(
            f"columns that nothing uses: {len(columns.unused):,} ({first_of(columns.unused, _MAX_NAMED)}); name them "
            "in data.columns.numeric or data.columns.categorical, or write `auto` there, to use them"
        )
    return lines


def number_warnings(columns: TableColumns) -> list[str]:
    """Returns a line on the columns of each fault that keeps numbers from being read, with what to do."""
    found: dict[tuple[str, bool], list[Choice]] = {}
    for choice in columns.choices:
        if choice.odd is not None:
            found.setdefault((choice.odd.kind, choice.kind is None), []).append(choice)
    lines = []
    for (_, is_left_out), choices in found.items():
        first, names = choices[0], first_of([choice.shown for choice in choices], _MAX_NAMED)
        if len(choices) == 1:
            became = "is left out" if is_left_out else "is taken as words"
            lines.append(f"column {names} {became}: {first.odd}")
        else:
            became = "are left out" if is_left_out else "are taken as words"
            lines.append(f"{len(choices):,} columns {became} ({names}): such as {first.shown}, {first.odd}")
    return lines


def name_in_table(csv: str) -> str:
    """Returns the name that a csv column without a role has in the table."""
    return f"csv.{csv}" if csv in RESERVED else csv


def empty_values(columns: TableColumns, n: int) -> pd.DataFrame:
    """Returns ``n`` rows of the chosen columns without any value."""
    return read_values(pd.DataFrame(index=range(n)), columns, {}, Path(), [], may_lack=True)


def read_values(
    raw: pd.DataFrame,
    columns: TableColumns,
    missing: Codes,
    path: Path,
    faults: list[str],
    *,
    may_lack: bool = False,
    infinite: InfiniteCells | None = None,
) -> pd.DataFrame:
    """Returns the values of the chosen columns: float32 (NaN missing) and str (NaN missing), from cells of text.

    A column that ``raw`` lacks, or that `features.python` computes, has no value in any row; for a derived column an
    absent one is a fault, unless the rows ``may_lack`` it, as new and external ones may. A cell of a numeric column
    that is no number is appended to ``faults``; one that is infinite or beyond 1e38 is a missing value, and
    ``infinite`` gets its row.
    """
    infinite = {} if infinite is None else infinite
    made: dict[str, NDArray[np.float32] | pd.Series] = {}
    for name, csv in columns.numeric.items():
        made[name] = _numbers(raw, csv, missing, path, faults, infinite)
    if columns.derived and not faults:
        made |= _derived(raw, columns, missing, path, faults, infinite, may_lack=may_lack)
    made |= {name: np.full(len(raw), np.nan, np.float32) for name in columns.python}
    for name, csv in columns.categorical.items():
        if csv in raw:
            made[name] = unified_words(known_cells(raw[csv], csv, missing).astype("str"))
        else:
            made[name] = pd.Series(np.nan, index=raw.index, dtype="str")
    return pd.DataFrame(made, index=raw.index)


def infinite_note(infinite: InfiniteCells, ids: pd.Series, path: Path) -> list[str]:
    """Returns a note on the cells of a table that are infinite or beyond 1e38; [] where there are none.

    ``ids`` (n,) name its rows.
    """
    if not infinite:
        return []
    parts = [
        f"{csv!r} in {counted(int(cells.sum()), 'rows')} ({first_of(ids[cells], _MAX_IDS)})"
        for csv, cells in infinite.items()
    ]
    listed = first_of(parts, _MAX_INFINITE)
    return [
        f"{path}: infinite cells, and numbers beyond {LARGEST:g}, count as missing values: column {listed}; write a "
        "number there if they stand for one"
    ]


def _numbers(
    raw: pd.DataFrame, csv: str, missing: Codes, path: Path, faults: list[str], infinite: InfiniteCells
) -> NDArray[np.float32]:
    """Returns the numbers (n,) of a csv column, NaN where it is absent; appends cells that are no number to faults.

    Cells that are infinite or beyond 1e38 are NaN too, and ``infinite`` marks their rows.
    """
    if csv not in raw:
        return np.full(len(raw), np.nan, np.float32)
    text, numbers = known_numbers(raw[csv], csv, missing)
    if (beyond := np.abs(numbers) > LARGEST).any():
        infinite[csv] = beyond
        numbers = np.where(beyond, np.nan, numbers)
    values = numbers.astype(np.float32)
    if (bad := text.notna().to_numpy() & np.isnan(values) & ~beyond).any():
        if (odd := number_text(text, csv, is_numeric=True)) is not None:
            faults.append(f"{path}: column {csv!r} holds {odd}")
            return values
        found = list(dict.fromkeys(text[bad]))
        listed = first_of(repr(value[:40]) for value in found)
        faults.append(
            f"{path}: column {csv!r} holds {listed} in {counted(int(bad.sum()), 'rows')}, which is no number: correct "
            "the cells, declare a code for missing values in data.missing, or name the column in columns.categorical"
        )
    return values


def _derived(
    raw: pd.DataFrame,
    columns: TableColumns,
    missing: Codes,
    path: Path,
    faults: list[str],
    infinite: InfiniteCells,
    *,
    may_lack: bool,
) -> dict[str, NDArray[np.float32]]:
    """Returns the derived columns; expressions name columns of the csv, also such as are no features themselves."""
    try:
        expressions = {name: parse(text) for name, text in columns.derived.items()}
        if early := _used_too_early(expressions):
            faults += early
            return {}
        needed = dict.fromkeys(name for one in expressions.values() for name in one.columns if name not in expressions)
        if not may_lack:
            for name in needed:
                if name not in raw:
                    near = nearest(name, raw.columns)
                    faults.append(f"{path}: no column {name!r} (features.derived){near}: correct the expression")
        values = {name: _numbers(raw, name, missing, path, faults, infinite) for name in needed}
        made = derived_columns(pd.DataFrame(values, index=raw.index), expressions)
    except TabularError as error:
        faults.append(f"features.derived: {error}")
        return {}
    return {name: made[name].to_numpy(np.float32) for name in expressions}


def _used_too_early(expressions: Mapping[str, Expression]) -> list[str]:
    """Returns a fault for each derived column that uses itself or one that is derived below it."""
    faults, names = [], list(expressions)
    for place, (name, one) in enumerate(expressions.items()):
        for used in one.columns:
            if used == name:
                faults.append(f"features.derived: {name!r} uses itself: name other columns in its expression")
            elif used in names[place:]:
                faults.append(
                    f"features.derived: {name!r} uses {used!r}, which is derived below it: put {used!r} above {name!r}"
                )
    return faults


def known_numbers(cells: pd.Series, column: str, missing: Codes) -> tuple[pd.Series, NDArray[np.float64]]:
    """Returns the text of `known_cells` (n,), and its numbers, NaN for missing cells and those that are no number."""
    if not _codes_of(column, missing):
        plain = plain_numbers(cells)
        if plain is not None and not np.isnan(plain).any():  # no cell is empty or a word, so none is missing
            return cells, plain
    text = known_cells(cells, column, missing)
    numbers = plain_numbers(text)
    if numbers is None:
        numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return text, numbers


def known_cells(cells: pd.Series, column: str, missing: Codes) -> pd.Series:
    """Returns stripped text (n,), NaN for empty cells, words such as `NA` and codes that ``missing`` declares.

    ``missing`` has codes by the column's name or a pattern of names; a code that is a number stands for every spelling
    of it.
    """
    text = cells.str.strip()
    lower = text.str.lower()
    unknown = lower.isin(MISSING_KEYS)
    if codes := _codes_of(column, missing):
        unknown |= lower.isin([str(code).strip().lower() for code in codes])
        if numbers := [number for code in codes if (number := _as_number(code)) is not None]:
            unknown |= pd.to_numeric(text, errors="coerce").isin(numbers)
    return text.mask(unknown)


def _codes_of(column: str, missing: Codes) -> list[str | float]:
    """Returns the codes of a column for missing values."""
    return [code for name, listed in missing.items() if fits(column, name) for code in listed]


def check_missing_names(missing: Codes, known: Iterable[str], path: Path, faults: list[str]) -> None:
    """Appends a fault for each name or pattern of `data.missing` that fits none of the ``known`` columns."""
    names = list(known)
    for name in missing:
        if not any(fits(column, name) for column in names):
            faults.append(f"{path}: no column fits {name!r} (data.missing){nearest(name, names)}: correct the name")


def fits(column: str, name: str) -> bool:
    """Returns whether a column has this name or fits this pattern; brackets in a column's own name stand for itself."""
    return column == name or fnmatchcase(column, name)


def _as_number(code: str | float) -> float | None:
    try:
        return float(code)
    except ValueError:
        return None

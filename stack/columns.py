"""Chooses the numeric and categorical columns of a table that have no role, and reads their values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import TabularError
from stack.data_config import Codes, ColumnRules, Wanted
from stack.keys import MISSING_KEYS, unified_words
from stack.metrics.scores import auc
from tabular.expressions import derived_columns, parse

Kind = Literal["numeric", "categorical"]
KINDS: tuple[Kind, ...] = ("numeric", "categorical")

# Names of the table's own columns. A csv column with one of these names and no role is called `csv.<name>`.
RESERVED = frozenset({
    "id", "group", "target", "age", "sex", "site", "diagnosis", "source", "fold", "width", "height", "bytes",
    "part", "split_group", "logit", "score", "p", "p_calibrated",
})  # fmt: skip
PROXY_AUC = 0.98  # a column that alone has this AUC is a proxy of the target, such as a diagnosis
MAX_TEXT = 60  # characters: a column whose values are longer on average is free text
MAX_LEVELS = 1000  # different words of a categorical column that `auto` takes
_MIN_DISTINCT_SHARE = 0.5  # of the known rows: a column of words with more different values holds names or free text
_MIN_ROWS = 20  # with fewer rows nothing is called an identifier, free text or a proxy
_MAX_LISTED, _MAX_NAMED = 5, 12  # cells, and columns, that a message lists
_ID_NAME = re.compile(r"(^|[_\W])(id|uid|uuid|index|key)$|^unnamed", re.IGNORECASE)


class Choice(NamedTuple):
    """What was decided of one csv column: taken as numeric or categorical, or left out (None), and why."""

    column: str
    kind: Kind | None
    reason: str


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
        return {name: self.csv.get(name, name) if self.csv.get(name) not in RESERVED else name for name in self.names}

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

    def lost_without(self, csv: str) -> list[str]:
        """Returns the columns of the table that have no value where the csv lacks this column."""
        return [name for name, parts in self.made_of.items() if csv in parts]

    @property
    def unused(self) -> list[str]:
        """Columns of the training csv that were left out because nothing in the config asks for them."""
        return [choice.column for choice in self.choices if choice.reason == NOT_ASKED]


NO_COLUMNS = TableColumns()
NOT_ASKED = "the config does not name it"
ONLY_DERIVED = "only features.derived uses it"


def described_choices(columns: TableColumns) -> list[str]:
    """Returns a line on the columns taken of each kind, one on those left out with the reasons, one on unused ones."""
    lines = []
    for kind in KINDS:
        if names := [choice.column for choice in columns.choices if choice.kind == kind]:
            lines.append(f"{kind} columns: {len(names):,} ({_shortened(names)})")
    if columns.python:
        lines.append(f"columns of features.python: {len(columns.python):,} ({_shortened(columns.python)})")
    by_reason: dict[str, list[str]] = {}
    for choice in columns.choices:
        if choice.kind is None and choice.reason != NOT_ASKED:
            by_reason.setdefault(choice.reason, []).append(choice.column)
    if by_reason:
        parts = [f"{_shortened(names)}: {reason}" for reason, names in by_reason.items()]
        lines.append(f"columns left out: {'; '.join(parts)}")
    if columns.unused:
        lines.append(
            f"columns that nothing uses: {len(columns.unused):,} ({_shortened(columns.unused)}); name them in "
            "data.columns.numeric or data.columns.categorical, or write `auto` there, to use them"
        )
    return lines


def _shortened(names: Sequence[str]) -> str:
    more = f", … {len(names):,} in all" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def name_in_table(csv: str) -> str:
    """Returns the name that a csv column without a role has in the table."""
    return f"csv.{csv}" if csv in RESERVED else csv


def choose_columns(
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    rules: ColumnRules,
    *,
    roles: Mapping[str, str],
    target: NDArray[np.int8],
    group: pd.Series,
    paths: tuple[Path, Path | None],
    faults: list[str],
) -> TableColumns:
    """Decides of each column of ``train`` without a role whether it is numeric, categorical or left out.

    ``train`` and ``test`` hold text; ``roles`` is the role of each csv column that has one; ``target`` (n,) and
    ``group`` (n,) belong to ``train``. A column that is named, or matches a pattern, must exist in both tables. `auto`
    takes what both tables have and leaves out identifiers, constants, free text and proxies of the target. Appends what
    cannot be done to ``faults``.
    """
    for name in rules.derived:
        if name in RESERVED or name in train:
            what = "a name of dermstack" if name in RESERVED else f"a column of {paths[0]}"
            faults.append(f"features.derived: {name!r} is {what}: give the derived column another name")
    counts = Counter(train.columns)
    free = [column for column in dict.fromkeys(train.columns) if column not in roles]
    asked = {kind: _asked(getattr(rules, kind), kind, free, roles, paths, test, faults) for kind in KINDS}
    for column in sorted(asked["numeric"].keys() & asked["categorical"].keys()):
        exact = [kind for kind in asked if asked[kind][column]]
        if len(exact) == 1:  # a name goes before a pattern
            del asked["categorical" if exact == ["numeric"] else "numeric"][column]
        else:
            faults.append(
                f"{paths[0]}: column {column!r} is in columns.numeric and in columns.categorical: name it in one"
            )
    automatic = {kind for kind in asked if getattr(rules, kind) == "auto"}
    in_expressions = {part for parts in TableColumns(derived=rules.derived).made_of.values() for part in parts}
    choices = []
    for column in free:
        kind = next((kind for kind in asked if column in asked[kind]), None)
        if counts[column] > 1:
            choice = Choice(column, None, f"{counts[column]} columns have this name")
            if kind is not None:
                faults.append(f"{paths[0]}: {counts[column]} columns are named {column!r}: rename all but one")
        elif kind is not None:
            choice = Choice(column, kind, "named in the config" if asked[kind][column] else "matches a pattern")
        elif not automatic:
            choice = Choice(column, None, ONLY_DERIVED if column in in_expressions else NOT_ASKED)
        else:
            choice = _automatic(column, train, test, rules, automatic, target, group)
        choices.append(choice)
    taken = {
        kind: {name_in_table(choice.column): choice.column for choice in choices if choice.kind == kind}
        for kind in KINDS
    }
    return TableColumns(taken["numeric"], taken["categorical"], dict(rules.derived), tuple(choices))


def empty_values(columns: TableColumns, n: int) -> pd.DataFrame:
    """Returns ``n`` rows of the chosen columns without any value."""
    return read_values(pd.DataFrame(index=range(n)), columns, {}, Path(), [])


def read_values(
    raw: pd.DataFrame,
    columns: TableColumns,
    missing: Codes,
    path: Path,
    faults: list[str],
    *,
    may_lack: bool = False,
) -> pd.DataFrame:
    """Returns the values of the chosen columns: float32 (NaN missing) and str (NaN missing), from cells of text.

    A column that ``raw`` lacks, or that `features.python` computes, has no value in any row; for a derived column an
    absent one is a fault, unless it ``may_lack``, as in new rows. A cell of a numeric column that is no finite number
    is appended to ``faults``.
    """
    made: dict[str, NDArray[np.float32] | pd.Series] = {}
    for name, csv in columns.numeric.items():
        made[name] = _numbers(raw, csv, missing, path, faults)
    if columns.derived and not faults:
        made |= _derived(raw, columns, missing, path, faults, may_lack=may_lack)
    made |= {name: np.full(len(raw), np.nan, np.float32) for name in columns.python}
    for name, csv in columns.categorical.items():
        if csv in raw:
            made[name] = unified_words(known_cells(raw[csv], csv, missing).astype("str"))
        else:
            made[name] = pd.Series(np.nan, index=raw.index, dtype="str")
    return pd.DataFrame(made, index=raw.index)


def with_needed(raw: pd.DataFrame, columns: TableColumns) -> pd.DataFrame:
    """Returns ``raw`` with an empty column for each that the derived columns need and it lacks."""
    expressions = [parse(text) for text in columns.derived.values()]
    needed = {name for one in expressions for name in one.columns if name not in columns.derived}
    return raw.assign(**dict.fromkeys(sorted(needed - set(raw.columns)), ""))


def _numbers(raw: pd.DataFrame, csv: str, missing: Codes, path: Path, faults: list[str]) -> NDArray[np.float32]:
    """Returns the numbers (n,) of a csv column, NaN where it is absent; appends cells that are no number to faults."""
    if csv not in raw:
        return np.full(len(raw), np.nan, np.float32)
    text = known_cells(raw[csv], csv, missing)
    numbers = pd.to_numeric(text, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32)
    if (bad := text.notna().to_numpy() & ~np.isfinite(values)).any():
        found = list(dict.fromkeys(text[bad]))
        listed = ", ".join(repr(value[:40]) for value in found[:_MAX_LISTED])
        faults.append(
            f"{path}: column {csv!r} holds {listed}{', …' if len(found) > _MAX_LISTED else ''} in "
            f"{int(bad.sum()):,} rows, which is no finite number: correct the cells, declare a code for missing "
            "values in data.missing, or name the column in columns.categorical"
        )
    return values


def _derived(
    raw: pd.DataFrame, columns: TableColumns, missing: Codes, path: Path, faults: list[str], *, may_lack: bool
) -> dict[str, NDArray[np.float32]]:
    """Returns the derived columns; expressions name columns of the csv, also such as are no features themselves."""
    try:
        expressions = {name: parse(text) for name, text in columns.derived.items()}
        needed = dict.fromkeys(name for one in expressions.values() for name in one.columns if name not in expressions)
        if len(raw.columns) and not may_lack:  # without any column all values are missing
            for name in needed:
                if name not in raw:
                    near = get_close_matches(name, list(raw.columns), n=1)
                    hint = f", did you mean {near[0]!r}?" if near else ""
                    faults.append(f"{path}: no column {name!r} (features.derived){hint}: correct the expression")
        values = {name: _numbers(raw, name, missing, path, faults) for name in needed}
        made = derived_columns(pd.DataFrame(values, index=raw.index), expressions)
    except TabularError as error:
        faults.append(f"features.derived: {error}")
        return {}
    return {name: made[name].to_numpy(np.float32) for name in expressions}


def known_cells(cells: pd.Series, column: str, missing: Codes) -> pd.Series:
    """Returns stripped text (n,), NaN for empty cells, words such as `NA` and codes that ``missing`` declares.

    ``missing`` has codes by the column's name or a pattern of names; a code that is a number stands for every spelling
    of it.
    """
    text = cells.str.strip()
    lower = text.str.lower()
    unknown = lower.isin(MISSING_KEYS)
    codes = [code for name, listed in missing.items() if fits(column, name) for code in listed]
    if codes:
        unknown |= lower.isin([str(code).strip().lower() for code in codes])
        if numbers := [number for code in codes if (number := _as_number(code)) is not None]:
            unknown |= pd.to_numeric(text, errors="coerce").isin(numbers)
    return text.mask(unknown)


def check_missing_names(missing: Codes, known: Iterable[str], path: Path, faults: list[str]) -> None:
    """Appends a fault for each name or pattern of `data.missing` that fits none of the ``known`` columns."""
    names = list(known)
    for name in missing:
        if not any(fits(column, name) for column in names):
            near = get_close_matches(name, names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            faults.append(f"{path}: no column fits {name!r} (data.missing){hint}: correct the name")


def fits(column: str, name: str) -> bool:
    """Returns whether a column has this name or fits this pattern; brackets in a column's own name stand for itself."""
    return column == name or fnmatchcase(column, name)


def _as_number(code: str | float) -> float | None:
    try:
        return float(code)
    except ValueError:
        return None


def _asked(
    wanted: Wanted,
    kind: str,
    free: Sequence[str],
    roles: Mapping[str, str],
    paths: tuple[Path, Path | None],
    test: pd.DataFrame | None,
    faults: list[str],
) -> dict[str, bool]:
    """Returns the columns that the config names for ``kind``: whether by its name (True) or by a pattern."""
    if wanted == "auto":
        return {}
    found: dict[str, bool] = {}
    train_path, test_path = paths
    in_test = None if test is None else set(test.columns)
    for name in wanted:
        is_pattern = any(sign in name for sign in "*?[") and name not in free
        fitting = [column for column in free if (fnmatchcase(column, name) if is_pattern else column == name)]
        if not is_pattern and name in roles:
            if roles[name] not in ("age", "sex", "site"):
                faults.append(
                    f"{train_path}: column {name!r} (columns.{kind}) is already mapped as columns.{roles[name]}, which "
                    "is no feature: remove it from one of the two"
                )
            continue
        if not fitting:
            near = get_close_matches(name, free, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            what = "no column fits" if is_pattern else "no column"
            faults.append(f"{train_path}: {what} {name!r} (columns.{kind}){hint}: correct columns.{kind}")
        for column in fitting:
            if in_test is not None and column not in in_test:
                if not is_pattern:
                    faults.append(
                        f"{test_path}: no column {column!r} (columns.{kind}), which only {train_path} has: rows to "
                        "predict need it too, so remove it from the config or add it"
                    )
                continue
            found[column] = found.get(column, False) or not is_pattern
    return found


def _automatic(
    column: str,
    train: pd.DataFrame,
    test: pd.DataFrame | None,
    rules: ColumnRules,
    automatic: set[Kind],
    target: NDArray[np.int8],
    group: pd.Series,
) -> Choice:
    """Decides of one column by its values."""

    def left_out(reason: str) -> Choice:
        return Choice(column, None, reason)

    if test is not None and column not in test:
        return left_out("only the training table has it, so rows to predict lack it")
    if test is not None and list(test.columns).count(column) > 1:
        return left_out("several columns of the test table have this name")
    cells = known_cells(train[column], column, rules.missing)
    known = cells.notna().to_numpy()
    distinct = cells[known].nunique()
    if distinct == 0:
        return left_out("no row has a value")
    if distinct == 1 and known.all():
        return left_out("all rows have one value")
    numbers = pd.to_numeric(cells, errors="coerce")
    numeric = bool((numbers.notna().to_numpy() == known).all())
    if numeric and test is not None:
        other = known_cells(test[column], column, rules.missing)
        numeric = bool((pd.to_numeric(other, errors="coerce").notna() == other.notna()).all())
    n = int(known.sum())
    if n >= _MIN_ROWS:
        if distinct == n and (not numeric or _is_numbering(column, numbers[known])):
            return left_out("every row has another value: an identifier")
        if not numeric:
            if cells[known].str.len().mean() > MAX_TEXT:
                return left_out(f"more than {MAX_TEXT} characters in a cell on average: free text")
            if distinct > _MIN_DISTINCT_SHARE * n or distinct > MAX_LEVELS:
                return left_out(f"{distinct:,} different words in {n:,} rows: names or free text")
    strength = _strength(cells, numbers if numeric else None, target, group)
    if len(train) >= _MIN_ROWS and strength >= PROXY_AUC:
        return left_out(f"it separates the target alone (AUC {strength:.3f}): a proxy of the target")
    kind: Kind = "numeric" if numeric else "categorical"
    if kind not in automatic:
        return left_out(f"it is {kind}, and columns.{kind} is not auto")
    if numeric:
        return Choice(column, kind, f"numbers, {distinct:,} different")
    return Choice(column, kind, f"words, {distinct:,} different")


def _is_numbering(column: str, numbers: pd.Series) -> bool:
    """Whether distinct numbers count or name the rows."""
    values = numbers.to_numpy(np.float64)
    if not np.all(values == np.round(values)):
        return False
    return bool(_ID_NAME.search(column)) or float(values.max() - values.min()) == len(values) - 1


def _strength(cells: pd.Series, numbers: pd.Series | None, target: NDArray[np.int8], group: pd.Series) -> float:
    """Returns the AUC of one column alone: of its values in their better direction, or of the rates of its words.

    The rate of a word is that among the rows of the other half of the groups, so that rare words do not separate the
    rows they come from. Whether a cell is empty counts as a column too.
    """
    known = cells.notna().to_numpy()
    found = [0.5]
    if known.any() and not known.all():
        found.append(auc(target, known.astype(np.float64)))
    if numbers is not None:
        if len(np.unique(target[known])) == 2:
            found.append(auc(target[known], numbers[known].to_numpy(np.float64)))
    else:
        half = pd.factorize(group)[0] % 2
        words = cells.fillna("")
        rate = np.full(len(target), float(target.mean()))
        for side in (0, 1):
            by_word = pd.Series(target[half != side]).groupby(words[half != side].to_numpy()).mean()
            rate[half == side] = words[half == side].map(by_word).fillna(float(target.mean())).to_numpy(np.float64)
        found.append(auc(target, rate))
    return max(max(value, 1 - value) for value in found)

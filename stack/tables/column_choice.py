"""Decides which columns of a table without a role are features: those that the config names, or what `auto` finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.metrics.scores import auc
from stack.settings.data import ColumnRules, Wanted
from stack.tables.checks import nearest
from stack.tables.column_names import LESIONS, PATIENTS, is_short_for_patients, names_keys_of
from stack.tables.columns import (
    KINDS,
    NOT_ASKED,
    ONLY_DERIVED,
    RESERVED,
    Choice,
    Kind,
    TableColumns,
    known_cells,
    known_numbers,
    name_in_table,
)
from stack.tables.number_texts import NumberText, is_numbering, number_text

PROXY_AUC = 0.98  # a column that alone has this AUC is a proxy of the target, such as a diagnosis
MAX_TEXT = 60  # characters: a column whose values are longer on average is free text
MAX_LEVELS = 1000  # different words of a categorical column that `auto` takes
FEATURE_ROLES = ("age", "sex", "site")  # roles whose columns are features; a target, diagnosis or fold is none
_MIN_DISTINCT_SHARE = 0.5  # of the known rows: a column of words with more different values holds names or free text
_MIN_ROWS = 20  # with fewer rows nothing is called an identifier, free text or a proxy


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
    for name, parts in TableColumns(derived=rules.derived).made_of.items():
        for part in parts:
            if part in roles and roles[part] not in FEATURE_ROLES:
                faults.append(
                    f"features.derived: {name!r} uses column {part!r}, which is mapped as columns.{roles[part]} and is "
                    "no feature: take it out of the expression"
                )
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
            choice = Choice(column, None, f"{counts[column]} columns have {'this' if column else 'no'} name")
            if kind is not None:
                faults.append(f"{paths[0]}: {counts[column]} columns are named {column!r}: rename all but one")
        elif kind is not None:
            odd = _number_text(column, train, test, rules) if kind == "categorical" else None
            if asked[kind][column]:  # words among numbers, such as a grade X, are then meant
                choice = Choice(column, kind, "named in the config", None if odd and odd.kind == "words" else odd)
            else:
                choice = Choice(column, kind, "matches a pattern", odd)
        elif not automatic:
            choice = Choice(column, None, ONLY_DERIVED if column in in_expressions else NOT_ASKED)
        else:
            choice = _automatic(column, train, test, rules, automatic, target, group)
        choices.append(choice if column else choice._replace(place=list(train.columns).index(column) + 1))
    named = {name: name for name in rules.derived}
    for choice in choices:
        if choice.kind is not None and named.setdefault(name_in_table(choice.column), choice.column) != choice.column:
            faults.append(
                f"{paths[0]}: columns {named[name_in_table(choice.column)]!r} and {choice.column!r} would both be "
                f"called {name_in_table(choice.column)!r}: rename one in the tables"
            )
    taken = {
        kind: {name_in_table(choice.column): choice.column for choice in choices if choice.kind == kind}
        for kind in KINDS
    }
    return TableColumns(taken["numeric"], taken["categorical"], dict(rules.derived), tuple(choices))


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
            if roles[name] not in FEATURE_ROLES:
                faults.append(
                    f"{train_path}: column {name!r} (columns.{kind}) is already mapped as columns.{roles[name]}, which "
                    "is no feature: remove it from one of the two"
                )
            continue
        if not fitting:
            what = "no column fits" if is_pattern else "no column"
            near = nearest(name, free)
            faults.append(f"{train_path}: {what} {name!r} (columns.{kind}){near}: correct columns.{kind}")
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
    if names_keys_of(column, (*PATIENTS, *LESIONS)) or is_short_for_patients(column):
        return left_out(
            "by its name it holds keys of patients or lesions: name it as columns.group, or, if it is a feature, as "
            "columns.categorical"
        )
    cells, numbers = known_numbers(train[column], column, rules.missing)
    known = cells.notna().to_numpy()
    distinct = cells[known].nunique()
    if distinct == 0:
        return left_out("no row has a value")
    if distinct == 1 and known.all():
        return left_out("all rows have one value")
    numeric = bool((~np.isnan(numbers) == known).all())
    if numeric and test is not None:
        other, of_other = known_numbers(test[column], column, rules.missing)
        numeric = bool((~np.isnan(of_other) == other.notna()).all())
    if numeric and (infinite := np.isinf(numbers)).any():  # missing values
        numeric = not infinite[known].all()  # `inf` alone is a word, such as one for inferior
        cells = cells.mask(infinite) if numeric else cells
        known = cells.notna().to_numpy()
    n = int(known.sum())
    odd = None if numeric or n < _MIN_ROWS else _number_text(column, train, test, rules)
    if odd is not None and (distinct > _MIN_DISTINCT_SHARE * n or distinct > MAX_LEVELS):
        return Choice(column, None, str(odd), odd)
    if n >= _MIN_ROWS and odd is None:
        if distinct == n and (not numeric or is_numbering(column, numbers[known])):
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
    if not column:
        return left_out("name it in the header of the tables to use it")
    if kind not in automatic:
        if odd is not None:
            return Choice(column, None, str(odd), odd)
        return left_out(f"it is {kind}, and columns.{kind} is not auto")
    if numeric:
        return Choice(column, kind, f"numbers, {distinct:,} different")
    return Choice(column, kind, f"words, {distinct:,} different", odd)


def _number_text(column: str, train: pd.DataFrame, test: pd.DataFrame | None, rules: ColumnRules) -> NumberText | None:
    """Returns how both tables write numbers in a column that is not read as one of numbers."""
    parts = [part[column] for part in (train, test) if part is not None]
    return number_text(known_cells(pd.concat(parts, ignore_index=True), column, rules.missing), column)


def _strength(
    cells: pd.Series, numbers: NDArray[np.float64] | None, target: NDArray[np.int8], group: pd.Series
) -> float:
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
            found.append(auc(target[known], numbers[known]))
    else:
        half = pd.factorize(group)[0] % 2
        words = cells.fillna("")
        rate = np.full(len(target), float(target.mean()))
        for side in (0, 1):
            by_word = pd.Series(target[half != side]).groupby(words[half != side].to_numpy()).mean()
            rate[half == side] = words[half == side].map(by_word).fillna(float(target.mean())).to_numpy(np.float64)
        found.append(auc(target, rate))
    return max(max(value, 1 - value) for value in found)

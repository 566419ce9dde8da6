"""Reads and checks tables of images (train, test, external, new): one row an image, with canonical column names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, DataError
from stack.settings.data import NO_RULES, Codes, ColumnRules
from stack.tables.cells import as_cells, read_columns
from stack.tables.checks import case_notes, group_faults, id_faults, listed, nearest, rows_text, targets_of
from stack.tables.column_choice import choose_columns
from stack.tables.columns import (
    NO_COLUMNS,
    InfiniteCells,
    TableColumns,
    check_missing_names,
    fits,
    infinite_note,
    known_cells,
    read_values,
)
from stack.tables.keys import (
    MISSING_KEYS,
    check_exact,
    contained,
    keys_as_in,
    unified_keys,
    unified_words,
    words_as_in,
)
from stack.tables.missing_codes import MAX_AGE
from stack.tables.number_texts import number_text
from stack.tables.units import GROUP, SEPARATOR, UNIT, check_whole, read_units, unit_columns

REQUIRED = ("id", "target")
ACQUISITION = ("width", "height", "bytes")  # properties of the image file, not of its content: law 8
OPTIONAL = ("group", "age", "sex", "site", "diagnosis", "source", "fold", *ACQUISITION)
TRAIN_ONLY = ("target", "diagnosis", "source", "fold")
CASED = ("diagnosis", "source")  # roles whose words keep their case
CODED = ("age", "sex", "site", "diagnosis", "source", *ACQUISITION)  # roles whose values may be declared as missing

_MAX_LISTED = 5  # values listed of each fault, which also gives their number


@dataclass(frozen=True)
class Table:
    """Checked rows, with columns id, group, age, sex, site, where mapped width, height, bytes, and the further columns.

    `train` also has target and, where mapped, diagnosis, source and fold. id and group are str, target int8, age,
    width, height and bytes float32 (NaN missing), the others str (NaN missing). `fold` is as in the file; `test` has
    no rows where there is no test csv. Each group has one spelling, in train and test. Where ``test_groups_known`` is
    false, the test csv has no groups and each test row is a group of its own, named by its id; where ``groups_known``
    is false, this holds for all rows. The further columns (`TableColumns`) are numeric (float32) or categorical (str).
    ``units`` is the unit of each image, by id, where predictions are made for units (`predict_per`). ``target_notes``
    name the targets that count as negative and look like a positive word; ``value_notes`` the infinite numbers and the
    words that differ only in case.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    test_groups_known: bool = True
    groups_known: bool = True
    columns: TableColumns = NO_COLUMNS
    units: pd.Series | None = None
    target_notes: tuple[str, ...] = ()
    value_notes: tuple[str, ...] = ()

    @property
    def shared_groups(self) -> int:
        """Number of groups that have rows in both train and test."""
        return len(set(self.train["group"]) & set(self.test["group"])) if self.test_groups_known else 0

    @property
    def notes(self) -> list[str]:
        """What every command that shows the experiment says of how the rows were read."""
        without = (
            "no column data.columns.group: each row is a group of its own. If several rows show one patient or lesion, "
            "they may be in different folds, and every score is then higher than on new patients"
        )
        return [*self.target_notes, *self.value_notes, *([] if self.groups_known else [without])]


def read_table(
    train_csv: Path,
    test_csv: Path | None,
    *,
    columns: Mapping[str, str],
    group_features: Sequence[str] | None = None,
    rules: ColumnRules = NO_RULES,
    per: Sequence[str] = (),
) -> Table:
    """Reads and checks both tables, csv or parquet; `columns` maps canonical names to those of the files.

    `rules` say which columns without a role are read too, which cells are missing values and which targets are
    positive. Without a group column each row is its own group.

    `group_features` are the settings that use the groups of test rows: where it is empty, the test table may lack the
    group column. By default it needs one. ``per`` are the columns whose values name the unit of each image
    (`predict_per`).

    Raises ConfigError where `columns` lacks id or target or has an unknown key, and DataError that lists
    every fault of both files: file, rows, values, next step. Row numbers are those of a spreadsheet: the header is
    row 1.
    """
    _check_columns(columns)
    faults: list[str] = []
    notes: list[str] = []
    value_notes: list[str] = []
    keys = [name for name in unit_columns(per, columns) if name not in columns.values()]
    raw_train = _read_strings(train_csv, columns, faults, keys)
    raw_test = _read_strings(test_csv, columns, faults, keys) if test_csv else None
    train = None
    if raw_train is not None:
        train = _checked_frame(raw_train, train_csv, columns, faults, rules, is_train=True, notes=notes)
    test: pd.DataFrame | None = _no_rows()
    grouped = True
    if test_csv is not None:
        test, grouped = _read_test(raw_test, test_csv, columns, faults, rules, group_features)
    further = NO_COLUMNS
    if train is not None and raw_train is not None and not faults:
        further = choose_columns(
            raw_train, raw_test, rules, roles={csv: name for name, csv in columns.items()},
            target=train["target"].to_numpy(np.int8), group=train["group"], paths=(train_csv, test_csv), faults=faults,
        )  # fmt: skip
        check_missing_names(rules.missing, [*columns, *raw_train.columns], train_csv, faults)
        train = _with_values(train, raw_train, further, rules.missing, train_csv, faults, value_notes)
        empty = raw_train.iloc[:0] if raw_test is None else raw_test
        if test is not None:
            test = _with_values(test, empty, further, rules.missing, test_csv or train_csv, faults, value_notes)
    if train is not None and test is not None:
        test = _with_keys_of_train(test, train, (train_csv, test_csv), faults, grouped=grouped)
    further = replace(further, choices=tuple(one for one in further.choices if one.kind or one.column not in keys))
    units = list[pd.Series]()
    if per and raw_train is not None and train is not None and test is not None and not faults:
        if GROUP in per and not grouped:
            faults.append(f"{test_csv}: no column {columns['group']!r} (columns.group), whose values predict_per names")
        parts = [(raw_train, train, train_csv)]
        if test_csv is not None and raw_test is not None:
            parts.append((raw_test, test, test_csv))
        read = [read_units(raw, frame, per, columns, path, faults) for raw, frame, path in parts if not faults]
        units = [one for one in read if one is not None]
    if faults or train is None or test is None:
        raise DataError("\n".join(faults))
    test = with_words_of(test, train, further)
    words = {**{name: columns[name] for name in CASED if name in columns}, **further.categorical}
    value_notes += case_notes(train, words, train_csv)
    if test_csv is not None:
        value_notes += case_notes(test, words, test_csv, train, train_csv)
    joined = pd.concat(units) if units else None
    return Table(train, test, grouped, "group" in columns, further, joined, tuple(notes), tuple(value_notes))


def _with_values(
    frame: pd.DataFrame,
    raw: pd.DataFrame,
    further: TableColumns,
    missing: Codes,
    path: Path,
    faults: list[str],
    notes: list[str] | None,
    *,
    may_lack: bool = False,
) -> pd.DataFrame:
    """Returns ``frame`` with its further columns, read from ``raw``; ``notes`` gets a note on infinite cells."""
    infinite: InfiniteCells = {}
    values = read_values(raw, further, missing, path, faults, may_lack=may_lack, infinite=infinite)
    if notes is not None:
        notes += infinite_note(infinite, frame["id"], path)
    return pd.concat([frame, values], axis=1)


def with_words_of(frame: pd.DataFrame, known: pd.DataFrame, further: TableColumns = NO_COLUMNS) -> pd.DataFrame:
    """Returns ``frame`` with the words of its categories in the spelling that they have in the rows ``known``."""
    names = ("sex", "site", "diagnosis", *further.categorical)
    shared = [name for name in names if name in frame and name in known]
    return frame.assign(**{name: words_as_in(frame[name], known[name]) for name in shared})


def _with_keys_of_train(
    test: pd.DataFrame, train: pd.DataFrame, paths: tuple[Path, Path | None], faults: list[str], *, grouped: bool
) -> pd.DataFrame:
    """Returns ``test`` with its groups in the spelling of train; appends a fault for ids that are also in train."""
    train_csv, test_csv = paths
    shared = keys_as_in(test["id"], train["id"], "id", of=str(train_csv), refuse_doubtful=False)
    both = test.loc[contained(shared, train["id"]) & (shared != "").to_numpy(), "id"]
    if len(both):
        faults.append(
            f"{test_csv}: {listed(both)} also in {train_csv}: an image is either in train or in test, "
            "remove it from one of the files"
        )
    if grouped:
        try:
            groups = keys_as_in(test["group"], train["group"], f"{test_csv}: group", of=str(train_csv))
            return test.assign(group=groups)
        except DataError as error:
            faults.append(str(error))
    return test


def _read_test(
    raw: pd.DataFrame | None,
    path: Path,
    columns: Mapping[str, str],
    faults: list[str],
    rules: ColumnRules,
    group_features: Sequence[str] | None,
) -> tuple[pd.DataFrame | None, bool]:
    """Checks the test table; also returns whether it has groups."""
    if raw is None:
        return None, True
    if "group" not in columns or group_features is None or columns["group"] in raw:
        return _checked_frame(raw, path, columns, faults, rules, is_train=False), "group" in columns
    if group_features:
        near = nearest(columns["group"], raw.columns)
        faults.append(
            f"{path}: no column {columns['group']!r} (columns.group){near}: {' and '.join(group_features)} compare a "
            f"test row with the other rows of its group, so add the column, or set {' and '.join(group_features)} to "
            "false (a list to `[]`)"
        )
    without = {name: csv for name, csv in columns.items() if name != "group"}
    return _checked_frame(raw, path, without, faults, rules, is_train=False), False


def read_external_frame(
    path: Path,
    columns: Mapping[str, str],
    rules: ColumnRules = NO_RULES,
    table: TableColumns = NO_COLUMNS,
    further: Sequence[str] = (),
    notes: list[str] | None = None,
) -> pd.DataFrame:
    """Reads an external table: id, group ("" where missing), target 0/1, age, sex, site and, where mapped, diagnosis.

    ``further`` are the names of columns of ``table`` that are read too; those that the file lacks have missing values.

    The checks are those of a training csv, except that groups are not checked and one class is enough. ``notes`` gets
    what `Table.target_notes` has, and a note on infinite numbers. Raises DataError, ConfigError.
    """
    for name in ("id", "target"):
        if name not in columns:
            raise ConfigError(f"columns.{name} of {path} is not set: name the csv column that holds the {name}")
    faults: list[str] = []
    raw = _read_strings(path, columns, faults)
    frame = None
    if raw is not None:
        frame = _checked_frame(raw, path, columns, faults, rules, is_train=True, is_external=True, notes=notes)
    if frame is not None and raw is not None and further and not faults:
        wanted = [*frame.columns, *further]
        frame = _with_values(frame, raw, table.only(further), rules.missing, path, faults, notes, may_lack=True)[wanted]
    if faults or frame is None:
        raise DataError("\n".join(faults))
    return frame


def read_new_frame(
    path: Path,
    columns: Mapping[str, str],
    rules: ColumnRules = NO_RULES,
    further: TableColumns = NO_COLUMNS,
    per: Sequence[str] = (),
    notes: list[str] | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Reads rows to predict, with the columns of `Table.test`; also returns the columns that the file lacks.

    Without a group column the group of every image is its id; other columns that are absent have missing values. With
    ``per``, the columns whose values name the unit of each image (`predict_per`), there is a column `UNIT` with it;
    all of these must be there, and all images of a unit in one group. ``notes`` gets a note on infinite numbers. Raises
    DataError.
    """
    faults: list[str] = []
    raw = _read_strings(
        path, columns, faults, [name for name in unit_columns(per, columns) if name not in columns.values()]
    )
    if raw is None:
        raise DataError("\n".join(faults))
    present = {name: csv for name, csv in columns.items() if name not in TRAIN_ONLY and csv in raw}
    if "id" not in present:
        near = nearest(columns["id"], raw.columns)
        raise DataError(f"{path}: no column {columns['id']!r}{near}: rename the column that holds the image ids")
    frame = _checked_frame(raw, path, present, faults, rules, is_train=False)
    if frame is not None:
        frame = _with_values(frame, raw, further, rules.missing, path, faults, notes, may_lack=True)
    if frame is None or faults:
        raise DataError("\n".join(faults))
    if per:
        frame = frame.assign(**{UNIT: _units_of_new(raw, frame, per, columns, path, grouped="group" in present)})
    lacking = [name for name in columns if name not in present and name not in TRAIN_ONLY]
    absent = [name for name, csv in further.inputs(columns.values()).items() if csv not in raw]
    return frame, lacking + absent


def _units_of_new(
    raw: pd.DataFrame, frame: pd.DataFrame, per: Sequence[str], columns: Mapping[str, str], path: Path, *, grouped: bool
) -> pd.Series:
    """Returns the unit of each row of a table of new rows; whether it has groups says ``grouped``."""
    faults: list[str] = []
    if GROUP in per and not grouped:
        faults.append(f"{path}: no column {columns['group']!r}, whose values name what gets a prediction: add it")
    units = None if faults else read_units(raw, frame, per, columns, path, faults)
    if units is None:
        raise DataError("\n".join(faults))
    if grouped:
        named = SEPARATOR.join(unit_columns(per, columns))
        check_whole(
            units.to_numpy(object), frame["group"].to_numpy(object), named, columns["group"], f"images in {path}"
        )
    return units.reset_index(drop=True)


def _check_columns(columns: Mapping[str, str]) -> None:
    for name in REQUIRED:
        if name not in columns:
            raise ConfigError(f"columns.{name} is not set: name the csv column that holds the {name}")
    known = (*REQUIRED, *OPTIONAL)
    for name in columns:
        if name not in known:
            raise ConfigError(f"columns.{name} is unknown{nearest(name, known)}: use one of {', '.join(known)}")


def _checked_frame(
    raw: pd.DataFrame,
    path: Path,
    columns: Mapping[str, str],
    faults: list[str],
    rules: ColumnRules,
    *,
    is_train: bool,
    is_external: bool = False,
    notes: list[str] | None = None,
) -> pd.DataFrame | None:
    """Returns the columns with a role under their canonical names and appends faults; None if one is not there.

    Without a group column each row is its own group, but in an external table the group is then "".
    """
    found = len(faults)
    mapped = {name: csv for name, csv in columns.items() if is_train or name not in TRAIN_ONLY}
    for name, csv in mapped.items():
        number = list(raw.columns).count(csv)
        if number == 0:
            near = nearest(csv, raw.columns)
            faults.append(f"{path}: no column {csv!r} (columns.{name}){near}: correct columns.{name} in the config")
        elif number > 1:
            faults.append(f"{path}: {number} columns are named {csv!r} (columns.{name}): rename all but one")
    if len(faults) > found:
        return None
    text = pd.DataFrame({name: raw[csv] for name, csv in mapped.items()})
    # An id stays as written, because it must equal the submission's; other values are stripped.
    for name in text.columns.drop("id"):
        text[name] = text[name].str.strip()
        if name in CODED:
            declared = _codes_of(rules.missing, name, mapped[name])
            if declared:
                text[name] = known_cells(text[name], name, {name: declared}).fillna("")
    faults += [f"{path}: {fault}" for fault in id_faults(text["id"])]
    has_groups = "group" in text
    if not has_groups:
        text["group"] = "" if is_external else text["id"]
    try:
        text["group"] = unified_keys(text["group"], f"{path}: groups") if has_groups else text["group"]
    except DataError as error:
        faults.append(str(error))
    if not is_external and has_groups:
        faults += [f"{path}: {fault}" for fault in group_faults(text["group"], is_train=is_train)]
    frame = text[["id", "group"]].copy()
    if is_train:
        frame["target"] = targets_of(
            text["target"], path, faults, rules.positive, may_be_one_class=is_external, notes=notes
        )
    frame["age"] = (
        _number("age", f"a number of years from 0 to {MAX_AGE}", text["age"], path, faults)
        if "age" in text
        else np.float32(np.nan)
    )
    for name in ("sex", "site"):
        frame[name] = unified_words(_words(text[name]).str.lower()) if name in text else _all_missing(len(text))
    for name in ACQUISITION:
        if name in text:
            frame[name] = _number(name, "a number of pixels or bytes above 0", text[name], path, faults)
    for name in ("diagnosis", "source"):
        if name in text:
            frame[name] = unified_words(_words(text[name]))
    if "fold" in text:
        frame["fold"] = text["fold"]
    return frame


def _read_strings(
    path: Path, columns: Mapping[str, str], faults: list[str], keys: Sequence[str] = ()
) -> pd.DataFrame | None:
    """Reads every cell as text and appends what prevents it to `faults`; ``keys`` are further columns of keys."""
    try:
        read = read_columns(path)
        for name in [name for name in ("id", "group") if name in columns]:
            if list(read.columns).count(columns[name]) == 1:
                check_exact(read[columns[name]], f"{path}: the keys in {columns[name]!r} (columns.{name})")
        for name in keys:
            if list(read.columns).count(name) == 1:
                check_exact(read[name], f"{path}: the keys in {name!r} (predict_per)")
        return as_cells(read)
    except DataError as error:
        faults.append(str(error))
    return None


def _codes_of(missing: Codes, role: str, csv: str) -> tuple[str | float, ...]:
    """Returns the codes declared for a column with a role, by its role or by its name in the csv."""
    fitting = [codes for name, codes in missing.items() if name == role or fits(csv, name)]
    return tuple(code for codes in fitting for code in codes)


def _number(name: str, what: str, values: pd.Series, path: Path, faults: list[str]) -> NDArray[np.float32]:
    known = ~values.str.lower().isin(MISSING_KEYS)
    numbers = _numbers(values.where(known)).to_numpy(np.float64, na_value=np.nan)
    in_range = (numbers >= 0) & (numbers <= MAX_AGE) if name == "age" else numbers > 0
    bad = known & ~(np.isfinite(numbers) & in_range)
    if bad.any():
        odd = number_text(values.where(known), name, is_numeric=True)
        advice = (
            f"correct it, or leave the cell empty where the {name} is unknown (a code such as -1 or 999 is no value)"
        )
        if odd is not None and odd.kind != "words":
            advice = f"the column holds {odd}"
        faults.append(f"{path}: {name} {listed(values[bad])} ({rows_text(bad)}) is not {what}: {advice}")
    return numbers.astype(np.float32)


def _numbers(values: pd.Series) -> pd.Series:
    """Returns texts as numbers, NaN where they are none; each text is read once, however many rows have it."""
    codes, distinct = pd.factorize(values, use_na_sentinel=True)
    numbers = pd.to_numeric(pd.Series(distinct), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return pd.Series(np.append(numbers, np.nan)[codes], index=values.index)  # -1, a missing text, takes the last


def _words(values: pd.Series) -> pd.Series:
    return values.mask(values.str.lower().isin(MISSING_KEYS))


def _all_missing(n: int) -> pd.Series:
    return pd.Series(np.nan, index=range(n), dtype="str")


def _no_rows() -> pd.DataFrame:
    types = {"id": "str", "group": "str", "age": "float32", "sex": "str", "site": "str"}
    return pd.DataFrame(columns=list(types)).astype(types)

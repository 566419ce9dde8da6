"""Reads and checks tables of images (train, test, external, new): one row an image, with canonical column names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, DataError
from stack.cells import as_cells, read_columns
from stack.columns import (
    NO_COLUMNS,
    TableColumns,
    check_missing_names,
    choose_columns,
    fits,
    known_cells,
    read_values,
)
from stack.data_config import NO_RULES, Codes, ColumnRules
from stack.keys import MISSING_KEYS, check_exact, keys_as_in, spelled_twice, unified_keys, unified_words, words_as_in
from stack.missing_codes import MAX_AGE

REQUIRED = ("id", "target")
ACQUISITION = ("width", "height", "bytes")  # properties of the image file, not of its content: law 8
OPTIONAL = ("group", "age", "sex", "site", "diagnosis", "source", "fold", *ACQUISITION)
TRAIN_ONLY = ("target", "diagnosis", "source", "fold")
CODED = ("age", "sex", "site", "diagnosis", "source", *ACQUISITION)  # roles whose values may be declared as missing

# Values that exporters write into a group column for an unknown group.
SENTINELS = frozenset({"-1", "-1.0", "0", "0.0", "", "none", "unknown", "na", "nan", "null"})
_MAX_LISTED = 5  # values listed of each fault, which also gives their number


@dataclass(frozen=True)
class Table:
    """Checked rows, with columns id, group, age, sex, site, where mapped width, height, bytes, and the further columns.

    `train` also has target and, where mapped, diagnosis, source and fold. id and group are str, target int8, age,
    width, height and bytes float32 (NaN missing), the others str (NaN missing). `fold` is as in the file; `test` has
    no rows where there is no test csv. Each group has one spelling, in train and test. Where ``test_groups_known`` is
    false, the test csv has no groups and each test row is a group of its own, named by its id; where ``groups_known``
    is false, this holds for all rows. The further columns (`TableColumns`) are numeric (float32) or categorical (str).
    """

    train: pd.DataFrame
    test: pd.DataFrame
    test_groups_known: bool = True
    groups_known: bool = True
    columns: TableColumns = NO_COLUMNS

    @property
    def shared_groups(self) -> int:
        """Number of groups that have rows in both train and test."""
        return len(set(self.train["group"]) & set(self.test["group"])) if self.test_groups_known else 0


def read_table(
    train_csv: Path,
    test_csv: Path | None,
    *,
    columns: Mapping[str, str],
    group_features: Sequence[str] | None = None,
    rules: ColumnRules = NO_RULES,
) -> Table:
    """Reads and checks both tables, csv or parquet; `columns` maps canonical names to those of the files.

    `rules` say which columns without a role are read too, which cells are missing values and which targets are
    positive. Without a group column each row is its own group.

    `group_features` are the settings that use the groups of test rows: where it is empty, the test table may lack the
    group column. By default it needs one.

    Raises ConfigError where `columns` lacks id or target or has an unknown key, and DataError that lists
    every fault of both files: file, rows, values, next step. Row numbers are those of a spreadsheet: the header is
    row 1.
    """
    _check_columns(columns)
    faults: list[str] = []
    raw_train = _read_strings(train_csv, columns, faults)
    raw_test = _read_strings(test_csv, columns, faults) if test_csv else None
    train = None if raw_train is None else _checked_frame(raw_train, train_csv, columns, faults, rules, is_train=True)
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
        train = pd.concat([train, read_values(raw_train, further, rules.missing, train_csv, faults)], axis=1)
        empty = raw_train.iloc[:0] if raw_test is None else raw_test
        values = read_values(empty, further, rules.missing, test_csv or train_csv, faults)
        test = None if test is None else pd.concat([test, values], axis=1)
    if train is not None and test is not None:
        shared = keys_as_in(test["id"], train["id"], "id", of=str(train_csv), refuse_doubtful=False)
        common = set(train["id"]) & set(shared) - {""}
        both = test.loc[shared.isin(common), "id"]
        if len(both):
            faults.append(
                f"{test_csv}: {_listed(both)} also in {train_csv}: an image is either in train or in test, "
                "remove it from one of the files"
            )
        if grouped:
            try:
                groups = keys_as_in(test["group"], train["group"], f"{test_csv}: group", of=str(train_csv))
                test = test.assign(group=groups)
            except DataError as error:
                faults.append(str(error))
    if faults or train is None or test is None:
        raise DataError("\n".join(faults))
    test = with_words_of(test, train, further)
    return Table(train, test, grouped, "group" in columns, further)


def with_words_of(frame: pd.DataFrame, known: pd.DataFrame, further: TableColumns = NO_COLUMNS) -> pd.DataFrame:
    """Returns ``frame`` with the words of its categories in the spelling that they have in the rows ``known``."""
    names = ("sex", "site", "diagnosis", *further.categorical)
    shared = [name for name in names if name in frame and name in known]
    return frame.assign(**{name: words_as_in(frame[name], known[name]) for name in shared})


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
        near = _nearest(columns["group"], raw.columns)
        faults.append(
            f"{path}: no column {columns['group']!r} (columns.group){near}: {' and '.join(group_features)} compare a "
            f"test row with the other rows of its group, so add the column, or set {' and '.join(group_features)} to "
            "false"
        )
    without = {name: csv for name, csv in columns.items() if name != "group"}
    return _checked_frame(raw, path, without, faults, rules, is_train=False), False


def read_external_frame(path: Path, columns: Mapping[str, str], rules: ColumnRules = NO_RULES) -> pd.DataFrame:
    """Reads an external table: id, group ("" where missing), target 0/1, age, sex, site and, where mapped, diagnosis.

    The checks are those of a training csv, except that groups are not checked and one class is enough. Raises
    DataError, ConfigError.
    """
    for name in ("id", "target"):
        if name not in columns:
            raise ConfigError(f"columns.{name} of {path} is not set: name the csv column that holds the {name}")
    faults: list[str] = []
    raw = _read_strings(path, columns, faults)
    frame = None if raw is None else _checked_frame(raw, path, columns, faults, rules, is_train=True, is_external=True)
    if faults or frame is None:
        raise DataError("\n".join(faults))
    return frame


def read_new_frame(
    path: Path, columns: Mapping[str, str], rules: ColumnRules = NO_RULES, further: TableColumns = NO_COLUMNS
) -> tuple[pd.DataFrame, list[str]]:
    """Reads rows to predict, with the columns of `Table.test`; also returns the columns that the file lacks.

    Without a group column the group of every image is its id; other columns that are absent have missing values.
    Raises DataError.
    """
    faults: list[str] = []
    raw = _read_strings(path, columns, faults)
    if raw is None:
        raise DataError("\n".join(faults))
    present = {name: csv for name, csv in columns.items() if name not in TRAIN_ONLY and csv in raw}
    if "id" not in present:
        near = _nearest(columns["id"], raw.columns)
        raise DataError(f"{path}: no column {columns['id']!r}{near}: rename the column that holds the image ids")
    frame = _checked_frame(raw, path, present, faults, rules, is_train=False)
    values = read_values(raw, further, rules.missing, path, faults, may_lack=True)
    if frame is None or faults:
        raise DataError("\n".join(faults))
    lacking = [name for name in columns if name not in present and name not in TRAIN_ONLY]
    absent = [name for name, csv in further.inputs(columns.values()).items() if csv not in raw]
    return pd.concat([frame, values], axis=1), lacking + absent


def _check_columns(columns: Mapping[str, str]) -> None:
    for name in REQUIRED:
        if name not in columns:
            raise ConfigError(f"columns.{name} is not set: name the csv column that holds the {name}")
    known = (*REQUIRED, *OPTIONAL)
    for name in columns:
        if name not in known:
            raise ConfigError(f"columns.{name} is unknown{_nearest(name, known)}: use one of {', '.join(known)}")


def _checked_frame(
    raw: pd.DataFrame,
    path: Path,
    columns: Mapping[str, str],
    faults: list[str],
    rules: ColumnRules,
    *,
    is_train: bool,
    is_external: bool = False,
) -> pd.DataFrame | None:
    """Returns the columns with a role under their canonical names and appends faults; None if one is not there.

    Without a group column each row is its own group, but in an external table the group is then "".
    """
    found = len(faults)
    mapped = {name: csv for name, csv in columns.items() if is_train or name not in TRAIN_ONLY}
    for name, csv in mapped.items():
        number = list(raw.columns).count(csv)
        if number == 0:
            near = _nearest(csv, raw.columns)
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
    faults += [f"{path}: {fault}" for fault in _id_faults(text["id"])]
    has_groups = "group" in text
    if not has_groups:
        text["group"] = "" if is_external else text["id"]
    try:
        text["group"] = unified_keys(text["group"], f"{path}: groups") if has_groups else text["group"]
    except DataError as error:
        faults.append(str(error))
    if not is_external and has_groups:
        faults += [f"{path}: {fault}" for fault in _group_faults(text["group"], is_train=is_train)]
    frame = text[["id", "group"]].copy()
    if is_train:
        frame["target"] = _target(text["target"], path, faults, rules.positive, may_be_one_class=is_external)
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


def _read_strings(path: Path, columns: Mapping[str, str], faults: list[str]) -> pd.DataFrame | None:
    """Reads every cell as text and appends what prevents it to `faults`."""
    try:
        read = read_columns(path)
        for name in [name for name in ("id", "group") if name in columns]:
            if list(read.columns).count(columns[name]) == 1:
                check_exact(read[columns[name]], f"{path}: the keys in {columns[name]!r} (columns.{name})")
        return as_cells(read)
    except DataError as error:
        faults.append(str(error))
    return None


def _id_faults(ids: pd.Series) -> Iterable[str]:
    missing = ids.str.strip() == ""
    if missing.any():
        yield f"{_rows(missing)} without an id: fill in the column or remove the rows"
    doubled = ids.duplicated(keep=False) & ~missing
    if doubled.any():
        names = ids[doubled].drop_duplicates()
        yield f"{_listed(names)} in more than one row ({_rows(doubled)}): ids must be unique, keep one row of each"
    if pairs := spelled_twice(ids[~missing]):
        yield (
            f"{' and '.join(map(repr, pairs[0]))} are two spellings of one id, {len(pairs)} such pairs: ids must be "
            "unique, keep one row of each or give them other names"
        )
    # Ids become file names, here and on other machines.
    unsafe = ids.str.contains(r"^\.|\.\.|[/\\\x00-\x1f\x7f]|^\s|\s$", regex=True) & ~missing
    if unsafe.any():
        yield (
            f"{_listed(ids[unsafe])} ({_rows(unsafe)}) cannot be a file name: rename it without path separators, "
            "control characters, '..', a leading '.' or blanks at its ends"
        )


def _group_faults(groups: pd.Series, *, is_train: bool) -> Iterable[str]:
    missing = groups == ""
    if missing.any():
        yield f"{_rows(missing)} without a group: fill in the column, or give each row a group of its own"
    sizes = groups[~missing].value_counts()
    is_sentinel = sizes.index.str.lower().isin(SENTINELS)
    largest = sizes[~is_sentinel].max() if (~is_sentinel).any() else 0
    n = len(groups)
    advice = "it would put unrelated rows into one fold, give each of them a group of its own"
    refused = set()
    for name, size in sizes[is_sentinel].items():
        if size > 0.05 * n and size > 5 * largest:
            refused.add(name)
            yield f"group {name!r} is in {size} of {n} rows and looks like a placeholder for 'unknown': {advice}"
    for name, size in sizes.items():
        if is_train and n > 20 and size > 0.5 * n and name not in refused:
            yield f"group {name!r} has {size} of {n} rows, more than half: {advice}, or map another column"


_BOOLEANS = {"true": "1", "false": "0", "yes": "1", "no": "0"}


def _target(
    values: pd.Series, path: Path, faults: list[str], positive: tuple[str, ...], *, may_be_one_class: bool
) -> NDArray[np.int8]:
    """Returns 0 and 1: for 0/1, true/false or yes/no, or, where ``positive`` is given, whether a value is one of it."""
    if positive:
        numbers = _is_positive(values, positive, path, faults)
        bad = values.str.lower().isin(MISSING_KEYS)
        if bad.any():
            faults.append(f"{path}: {_rows(bad)} without a target: fill in the column or remove the rows")
    else:
        lower = values.str.lower()
        known = ~lower.isin(MISSING_KEYS)
        as_booleans = bool(lower[known].isin(_BOOLEANS).all())  # a `yes` among 0 and 1 is a fault, not a boolean
        numbers = pd.to_numeric(lower.map(_BOOLEANS) if as_booleans else values, errors="coerce")
        bad = ~numbers.isin([0, 1])
        if bad.any():
            words = values[bad & ~lower.isin(MISSING_KEYS)]
            words = words[pd.to_numeric(words, errors="coerce").isna()]
            advice = "correct or remove the rows"
            if len(words):
                advice = (
                    "correct or remove the rows or, if words are meant, say which is positive: "
                    f"data.columns.target: {{column: …, positive: {words.iloc[0]}}}"
                )
            faults.append(f"{path}: target {_listed(values[bad])} ({_rows(bad)}) is not 0 or 1: {advice}")
    if not bad.any() and numbers.nunique() == 1 and not may_be_one_class:
        only = int(numbers.iloc[0])
        faults.append(f"{path}: every target is {only}: both classes are needed, check columns.target")
    return numbers.where(~bad, 0).to_numpy(np.int8)


def _is_positive(values: pd.Series, positive: tuple[str, ...], path: Path, faults: list[str]) -> pd.Series:
    """Returns 1 where a value (n,) is one of ``positive``, in any case of letters, else 0."""
    folded = values.str.casefold()
    found = pd.Series(False, index=values.index)
    for wanted in positive:
        is_it = folded == wanted.strip().casefold()
        if (number := pd.to_numeric(wanted, errors="coerce")) == number:
            is_it |= pd.to_numeric(values, errors="coerce") == number
        if not is_it.any():
            near = _nearest(wanted, values.unique())
            faults.append(
                f"{path}: no target is {wanted!r} (columns.target.positive){near}: the column holds {_listed(values)}"
            )
        found |= is_it
    return found.astype(np.int64)


def _codes_of(missing: Codes, role: str, csv: str) -> tuple[str | float, ...]:
    """Returns the codes declared for a column with a role, by its role or by its name in the csv."""
    fitting = [codes for name, codes in missing.items() if name == role or fits(csv, name)]
    return tuple(code for codes in fitting for code in codes)


def _number(name: str, what: str, values: pd.Series, path: Path, faults: list[str]) -> NDArray[np.float32]:
    known = ~values.str.lower().isin(MISSING_KEYS)
    numbers = pd.to_numeric(values.where(known), errors="coerce").to_numpy(np.float64, na_value=np.nan)
    in_range = (numbers >= 0) & (numbers <= MAX_AGE) if name == "age" else numbers > 0
    bad = known & ~(np.isfinite(numbers) & in_range)
    if bad.any():
        faults.append(
            f"{path}: {name} {_listed(values[bad])} ({_rows(bad)}) is not {what}: "
            f"correct it, or leave the cell empty where the {name} is unknown (a code such as -1 or 999 is no value)"
        )
    return numbers.astype(np.float32)


def _words(values: pd.Series) -> pd.Series:
    return values.mask(values.str.lower().isin(MISSING_KEYS))


def _all_missing(n: int) -> pd.Series:
    return pd.Series(np.nan, index=range(n), dtype="str")


def _no_rows() -> pd.DataFrame:
    types = {"id": "str", "group": "str", "age": "float32", "sex": "str", "site": "str"}
    return pd.DataFrame(columns=list(types)).astype(types)


def _rows(mask: pd.Series) -> str:
    """Lists the rows of the mask with the numbers of a spreadsheet, where the header is row 1."""
    numbers = np.flatnonzero(mask.to_numpy()) + 2
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    more = f", … {len(numbers)} in all" if len(numbers) > _MAX_LISTED else ""
    return "rows " + ", ".join(map(str, numbers[:_MAX_LISTED])) + more


def _listed(values: pd.Series) -> str:
    unique = values.drop_duplicates()
    more = f", … {len(unique)} in all" if len(unique) > _MAX_LISTED else ""
    return ", ".join(repr(value) for value in unique[:_MAX_LISTED]) + more


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""

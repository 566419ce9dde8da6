"""Reads and checks tables of images (train, test, external, new): one row an image, with canonical column names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, DataError
from stack.cells import read_cells
from stack.keys import MISSING_KEYS, contained, is_ascii, keys_as_in, matches, spelled_twice, unified_keys
from stack.missing_codes import MAX_AGE

REQUIRED = ("id", "group", "target")
ACQUISITION = ("width", "height", "bytes")  # properties of the image file, not of its content: law 8
OPTIONAL = ("age", "sex", "site", "diagnosis", "source", "fold", *ACQUISITION)
TRAIN_ONLY = ("target", "diagnosis", "source", "fold")

# Values that exporters write into a group column for an unknown group.
SENTINELS = frozenset({"-1", "-1.0", "0", "0.0", "", "none", "unknown", "na", "nan", "null"})
_MAX_LISTED = 5  # values listed of each fault, which also gives their number


@dataclass(frozen=True)
class Table:
    """Checked rows, with columns id, group, age, sex, site and, where mapped, width, height, bytes.

    `train` also has target and, where mapped, diagnosis, source and fold. id and group are str, target int8, age,
    width, height and bytes float32 (NaN missing), the others str (NaN missing). `fold` is as in the file; `test` has
    no rows where there is no test csv. Each group has one spelling, in train and test. Where ``test_groups_known`` is
    false, the test csv has no groups and each test row is a group of its own, named by its id.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    test_groups_known: bool = True

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
) -> Table:
    """Reads and checks both tables, csv or parquet; `columns` maps canonical names to those of the files.

    `group_features` are the settings that use the groups of test rows: where it is empty, the test table may lack the
    group column. By default it needs one.

    Raises ConfigError where `columns` lacks id, group or target or has an unknown key, and DataError that lists
    every fault of both files: file, rows, values, next step. Row numbers are those of a spreadsheet: the header is
    row 1.
    """
    _check_columns(columns)
    faults: list[str] = []
    train = _read_frame(train_csv, columns, faults, is_train=True)
    test, grouped = _read_test(test_csv, columns, faults, group_features) if test_csv else (_no_rows(), True)
    if train is not None and test is not None:
        shared = keys_as_in(test["id"], train["id"], "id", of=str(train_csv), refuse_doubtful=False)
        both = test.loc[contained(shared, train["id"]) & (shared != "").to_numpy(), "id"]
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
    return Table(train, test, grouped)


def _read_test(
    path: Path, columns: Mapping[str, str], faults: list[str], group_features: Sequence[str] | None
) -> tuple[pd.DataFrame | None, bool]:
    """Reads the test table; also returns whether it has groups."""
    raw = _read_strings(path, faults)
    if raw is None or group_features is None or columns["group"] in raw:
        return (None if raw is None else _checked_frame(raw, path, columns, faults, is_train=False)), True
    if group_features:
        near = _nearest(columns["group"], raw.columns)
        faults.append(
            f"{path}: no column {columns['group']!r} (columns.group){near}: {' and '.join(group_features)} compare a "
            f"test row with the other rows of its group, so add the column, or set {' and '.join(group_features)} to "
            "false"
        )
    without = {name: csv for name, csv in columns.items() if name != "group"}
    frame = _checked_frame(raw, path, without, faults, is_train=False, is_external=True)
    return (None if frame is None else frame.assign(group=frame["id"])), False


def read_external_frame(path: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    """Reads an external table: id, group ("" where missing), target 0/1, age, sex, site and, where mapped, diagnosis.

    The checks are those of a training csv, except that groups are not checked and one class is enough. Raises
    DataError, ConfigError.
    """
    for name in ("id", "target"):
        if name not in columns:
            raise ConfigError(f"columns.{name} of {path} is not set: name the csv column that holds the {name}")
    faults: list[str] = []
    frame = _read_frame(path, columns, faults, is_train=True, is_external=True)
    if faults or frame is None:
        raise DataError("\n".join(faults))
    return frame


def read_new_frame(path: Path, columns: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Reads rows to predict, with the columns of `Table.test`; also returns the mapped columns that the file lacks.

    Without a group column the group of every image is its id; other columns that are absent have missing values.
    Raises DataError.
    """
    faults: list[str] = []
    raw = _read_strings(path, faults)
    if raw is None:
        raise DataError("\n".join(faults))
    present = {name: csv for name, csv in columns.items() if name not in TRAIN_ONLY and csv in raw}
    if "id" not in present:
        near = _nearest(columns["id"], raw.columns)
        raise DataError(f"{path}: no column {columns['id']!r}{near}: rename the column that holds the image ids")
    frame = _read_frame(path, present, faults, is_train=False, is_external="group" not in present)
    if frame is None or faults:
        raise DataError("\n".join(faults))
    if "group" not in present:
        frame["group"] = frame["id"]
    return frame, [name for name in columns if name not in present and name not in TRAIN_ONLY]


def _check_columns(columns: Mapping[str, str]) -> None:
    for name in REQUIRED:
        if name not in columns:
            raise ConfigError(f"columns.{name} is not set: name the csv column that holds the {name}")
    known = (*REQUIRED, *OPTIONAL)
    for name in columns:
        if name not in known:
            raise ConfigError(f"columns.{name} is unknown{_nearest(name, known)}: use one of {', '.join(known)}")


def _read_frame(
    path: Path, columns: Mapping[str, str], faults: list[str], *, is_train: bool, is_external: bool = False
) -> pd.DataFrame | None:
    """Reads one file into canonical columns and appends its faults to `faults`; returns None if it is unusable."""
    raw = _read_strings(path, faults)
    if raw is None:
        return None
    return _checked_frame(raw, path, columns, faults, is_train=is_train, is_external=is_external)


def _checked_frame(
    raw: pd.DataFrame,
    path: Path,
    columns: Mapping[str, str],
    faults: list[str],
    *,
    is_train: bool,
    is_external: bool = False,
) -> pd.DataFrame | None:
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
    faults += [f"{path}: {fault}" for fault in _id_faults(text["id"])]
    if "group" not in text:
        text["group"] = ""
    try:
        text["group"] = unified_keys(text["group"], f"{path}: groups")
    except DataError as error:
        faults.append(str(error))
    if not is_external:
        faults += [f"{path}: {fault}" for fault in _group_faults(text["group"], is_train=is_train)]
    frame = text[["id", "group"]].copy()
    if is_train:
        frame["target"] = _target(text["target"], path, faults, may_be_one_class=is_external)
    frame["age"] = (
        _number("age", f"a number of years from 0 to {MAX_AGE}", text["age"], path, faults)
        if "age" in text
        else np.float32(np.nan)
    )
    for name in ("sex", "site"):
        frame[name] = _words(text[name]).str.lower() if name in text else _all_missing(len(text))
    for name in ACQUISITION:
        if name in text:
            frame[name] = _number(name, "a number of pixels or bytes above 0", text[name], path, faults)
    for name in ("diagnosis", "source"):
        if name in text:
            frame[name] = _words(text[name])
    if "fold" in text:
        frame["fold"] = text["fold"]
    return frame


def _read_strings(path: Path, faults: list[str]) -> pd.DataFrame | None:
    """Reads every cell as text and appends what prevents it to `faults`."""
    try:
        return read_cells(path)
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
    unsafe = _unsafe_names(ids) & ~missing
    if unsafe.any():
        yield (
            f"{_listed(ids[unsafe])} ({_rows(unsafe)}) cannot be a file name: rename it without path separators, "
            "control characters, '..', a leading '.' or blanks at its ends"
        )


_UNSAFE = r"^\.|\.\.|[/\\\x00-\x1f\x7f]|^\s|\s$"


def _unsafe_names(ids: pd.Series) -> pd.Series:
    """Marks the ids that cannot be names of files, here or on other machines."""
    found = pd.Series(matches(ids, _UNSAFE), index=ids.index)
    beyond = ~is_ascii(ids)  # RE2 knows the blanks of ASCII only
    if beyond.any():
        found[beyond] |= ids[beyond].map(lambda name: re.search(_UNSAFE, name) is not None).astype(bool)
    return found


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


def _target(values: pd.Series, path: Path, faults: list[str], *, may_be_one_class: bool) -> NDArray[np.int8]:
    numbers = _numbers(values)
    bad = ~numbers.isin([0, 1])
    if bad.any():
        faults.append(f"{path}: target {_listed(values[bad])} ({_rows(bad)}) is not 0 or 1: correct or remove the rows")
    elif numbers.nunique() == 1 and not may_be_one_class:
        only = int(numbers.iloc[0])
        faults.append(f"{path}: every target is {only}: both classes are needed, check columns.target")
    return numbers.where(~bad, 0).to_numpy(np.int8)


def _number(name: str, what: str, values: pd.Series, path: Path, faults: list[str]) -> NDArray[np.float32]:
    known = ~values.str.lower().isin(MISSING_KEYS)
    numbers = _numbers(values.where(known)).to_numpy(np.float64, na_value=np.nan)
    in_range = (numbers >= 0) & (numbers <= MAX_AGE) if name == "age" else numbers > 0
    bad = known & ~(np.isfinite(numbers) & in_range)
    if bad.any():
        faults.append(
            f"{path}: {name} {_listed(values[bad])} ({_rows(bad)}) is not {what}: "
            f"correct it, or leave the cell empty where the {name} is unknown (a code such as -1 or 999 is no value)"
        )
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


OnCollision = Literal["refuse", "drop"]
_DROP_ADVICE = "set its `on_collision: drop` to leave them out, or remove them from the csv"


@dataclass(frozen=True)
class ExternalRows:
    """Checked rows of an external table: id, group, target, age, sex, site and, where mapped, diagnosis.

    Groups are named ``<table>:<group>``, so that patients of two tables with the same number stay apart. ``collided``
    is the number of rows dropped because their id is in train or test; ``ungrouped`` is the number of rows without a
    group, which became groups of one.
    """

    name: str
    frame: pd.DataFrame
    collided: int
    ungrouped: int

    def summary(self) -> str:
        """Returns one line with the numbers of rows, positives, dropped rows and rows without a group."""
        positives = int(self.frame["target"].sum())
        text = (
            f"external {self.name}: {len(self.frame):,} rows ({positives:,} positive) train every fold's image models"
        )
        if self.collided:
            text += f"; {self.collided:,} dropped, as their ids are in train or test"
        return text + (f"; {self.ungrouped:,} without a group are groups of one" if self.ungrouped else "")


def read_external(
    path: Path, *, name: str, columns: Mapping[str, str], primary: Table, on_collision: OnCollision
) -> ExternalRows:
    """Reads and checks the csv of an external table; ``columns`` maps id, target and the optional columns.

    Raises DataError that lists the faulty rows, and where ids are also in train or test and ``on_collision`` is refuse.
    Raises ConfigError where ``columns`` lacks id or target.
    """
    frame = read_external_frame(path, columns)
    known = pd.concat([primary.train["id"], primary.test["id"]])
    spelled = keys_as_in(frame["id"], known, f"{path}: id", of="train and test", refuse_doubtful=False)
    taken = pd.Series(contained(spelled, known), index=frame.index)
    if taken.any() and on_collision == "refuse":
        first = ", ".join(frame["id"][taken].iloc[:3])
        raise DataError(f"{path}: {int(taken.sum())} ids are also in train or test, first: {first}: {_DROP_ADVICE}")
    frame = frame[~taken].reset_index(drop=True)
    if frame.empty:
        raise DataError(f"{path}: every id is also in train or test: remove the table from data.external")
    is_ungrouped = frame["group"].str.lower().isin(SENTINELS)
    group = frame["group"].where(~is_ungrouped, "id " + frame["id"])
    return ExternalRows(name, frame.assign(group=name + ":" + group), int(taken.sum()), int(is_ungrouped.sum()))


def duplicates_of_primary(
    external: pd.DataFrame, pairs: pd.DataFrame, on_collision: Mapping[str, OnCollision]
) -> pd.DataFrame:
    """Returns the external rows whose image is also in train or test: id, source (the table), reason.

    ``external`` has id and source; ``pairs`` has id_1 and id_2 of the same image; ``on_collision`` has the setting of
    each table. Training level 1 on an image that is scored would be a leak. Raises DataError for such rows of a table
    whose setting is refuse.
    """
    source = external.set_index("id")["source"]
    sides = [pairs[["id_1", "id_2"]], pairs[["id_2", "id_1"]]]
    both = pd.concat([side.set_axis(["id", "of"], axis=1) for side in sides], ignore_index=True)
    copies = both[both["id"].isin(source.index) & ~both["of"].isin(source.index)].drop_duplicates("id")
    copies = copies.assign(source=copies["id"].map(source)).sort_values("id", ignore_index=True)
    for table, rows in copies.groupby("source"):
        if on_collision[str(table)] == "refuse":
            first = ", ".join(f"{a} (as {b})" for a, b in rows[["id", "of"]].iloc[:3].to_numpy())
            raise DataError(
                f"external {table}: {len(rows)} images are also in train or test, first: {first}: {_DROP_ADVICE}"
            )
    return pd.DataFrame({
        "id": copies["id"],
        "source": copies["source"],
        "reason": "the same image as " + copies["of"].astype("str"),
    })  # fmt: skip

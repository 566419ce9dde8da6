"""Names the unit of each image, such as the breast or the lesion, that gets one prediction (`predict_per`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from dermstack.listing import counted
from stack.settings.data import PredictPer
from stack.tables.checks import listed, nearest, rows_text
from stack.tables.keys import MISSING_KEYS, unified_keys

GROUP = "group"  # in `predict_per`: the column that data.columns.group names
UNIT = "unit of predict_per"  # the column of new rows with their unit; no csv is likely to have one of this name
SEPARATOR = "_"  # between the values of several columns, as in the ids of RSNA 2022 (`10008_L`)


def unit_columns(columns: Sequence[str], roles: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the csv's names of the columns of `predict_per`; ``roles`` has the csv's names by role."""
    return tuple(roles.get(GROUP, name) if name == GROUP else name for name in columns)


def unit_name(columns: Sequence[str], roles: Mapping[str, str]) -> str:
    """Returns the name of the column of units in a submission without a sample: the columns' names, joined."""
    return SEPARATOR.join(unit_columns(columns, roles))


def read_units(
    raw: pd.DataFrame,
    frame: pd.DataFrame,
    columns: Sequence[str],
    roles: Mapping[str, str],
    path: Path,
    faults: list[str],
) -> pd.Series | None:
    """Returns the unit of each row, by its id; appends faults and returns None where there are any.

    ``raw`` has every cell of the file as text, ``frame`` the checked rows in the same order, with id and group. The
    values of several columns are joined by an underscore.
    """
    found, parts = len(faults), list[pd.Series]()
    for name in columns:
        csv = unit_columns([name], roles)[0]
        number = list(raw.columns).count(csv)
        if number != 1:
            there = f"no column {csv!r}{nearest(csv, raw.columns)}" if not number else f"{number} columns named {csv!r}"
            faults.append(f"{path}: {there} (predict_per): every table needs the columns that name the units")
            continue
        values = frame["group"] if name == GROUP else raw[csv].str.strip().reset_index(drop=True)
        missing = values.str.lower().isin(MISSING_KEYS)
        if missing.any():
            faults.append(
                f"{path}: {rows_text(missing)} without a value in {csv!r} (predict_per): fill in the column, or give "
                "each of these images a unit of its own"
            )
            continue
        try:
            parts.append(unified_keys(values, f"{path}: values of {csv!r} (predict_per)"))
        except DataError as error:
            faults.append(str(error))
    if len(faults) > found:
        return None
    units = parts[0].astype("str")
    for part in parts[1:]:
        units = units + SEPARATOR + part.astype("str")
    if len(parts) > 1:
        distinct = pd.concat([part.reset_index(drop=True) for part in parts], axis=1).drop_duplicates().index
        if (doubled := units.reset_index(drop=True).loc[distinct].duplicated(keep=False)).any():
            same = units.reset_index(drop=True).loc[distinct][doubled]
            faults.append(
                f"{path}: {listed(same.drop_duplicates())} would name different units, as their values contain "
                f"{SEPARATOR!r}, which joins the columns of predict_per: write other values, or one column of units"
            )
            return None
    return pd.Series(units.to_numpy(), index=pd.Index(frame["id"].to_numpy(), name="id"), name="unit", dtype="str")


def check_units(
    per: PredictPer,
    units: pd.Series,
    *,
    train: pd.DataFrame,
    split_group: ArrayLike,
    test: pd.DataFrame | None,
    group_column: str | None,
) -> None:
    """Raises DataError for a unit that is torn between groups, or whose images differ in target where they must not.

    ``units`` (by image id) are those of `Table`, ``train`` the training rows (id, target) with their ``split_group``
    (n,), and ``test`` the test rows (id, group), None where their groups are not known. All images of a unit must be in
    one split group: in two folds, it would be scored by models that were trained on it.
    """
    of_train = units.loc[train["id"]].to_numpy(object)
    columns = SEPARATOR.join(per.columns)
    check_whole(of_train, np.asarray(split_group, object), columns, group_column, "training images")
    if test is not None and len(test):
        of_test = units.loc[test["id"]].to_numpy(object)
        check_whole(of_test, test["group"].to_numpy(object), columns, group_column, "test images")
    if per.target == "same" and (mixed := mixed_units(of_train, train["target"])):
        raise DataError(
            f"predict_per.target is `same`, but {counted(len(mixed), 'units', 'have')} images of both "
            f"targets ({listed(pd.Series(mixed))}): correct the targets, or set predict_per.target to `any`, with "
            "which a unit is positive if one of its images is"
        )


def mixed_units(units: ArrayLike, target: ArrayLike) -> list[str]:
    """Returns the units (n,) that have images of both targets (n,), sorted."""
    pairs = pd.DataFrame({"unit": np.asarray(units, object), "target": np.asarray(target)}).drop_duplicates()
    return sorted(pairs["unit"][pairs["unit"].duplicated()].astype(str))


def check_whole(
    units: NDArray[np.object_], groups: NDArray[np.object_], columns: str, group_column: str | None, images: str
) -> None:
    """Raises DataError for a unit (n,) whose images are in several groups (n,); ``columns`` are those of units."""
    pairs = pd.DataFrame({"unit": units, "group": groups}).drop_duplicates()
    torn = pairs[pairs["unit"].duplicated(keep=False)]
    if torn.empty:
        return
    first = torn["unit"].iloc[0]
    of_first = torn["group"][torn["unit"] == first].astype("str")
    more = torn["unit"].nunique() - 1
    advice = (
        f"set data.columns.group to a column whose groups hold whole units, such as {columns!r} itself"
        if group_column is None
        else f"if a value of {columns!r} recurs in other groups, name both columns (`predict_per: [{group_column}, "
        f"{columns}]`); otherwise correct the groups, or name a column with larger groups as data.columns.group"
    )
    raise DataError(
        f"predict_per: unit {first!r} has {images} of {len(of_first)} groups ({listed(of_first)})"
        + (f", and {more:,} more units are torn too" if more else "")
        + f". All images of a unit must be in one group, and so in one fold: {advice}"
    )

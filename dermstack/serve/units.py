"""The rows that a bundle predicts: the images, or one row for each unit, with their columns and their targets."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError
from dermstack.listing import counted
from dermstack.serve.bundle import Bundle
from dermstack.serve.new_rows import NewRows
from stack.tables.checks import listed
from stack.tables.units import UNIT, mixed_units
from stack.unit_rows import rows_of_units


def rows_to_predict(rows: NewRows) -> pd.DataFrame:
    """Returns one row for each prediction, in their order: id, group and the columns of the table.

    A unit has the values that all its images share, also those that cannot be read.
    """
    return rows.frame if UNIT not in rows.frame else rows_of_units(rows.frame, rows.frame[UNIT])


def targets_to_predict(bundle: Bundle, rows: NewRows, labels: pd.Series) -> NDArray[np.int_]:
    """Returns the target of each row of `rows_to_predict`, from those of the images (``labels``, in their order).

    A unit is positive if one of its images is. Raises DataError where the bundle's experiment had `target: same`, and
    the images of a unit differ.
    """
    y = labels.to_numpy(np.int_)
    if (per := bundle.predict_per) is None:
        return y
    unit = rows.frame[UNIT].to_numpy(object)
    if per.target == "same" and (mixed := mixed_units(unit, y)):
        raise DataError(
            f"labels: {counted(len(mixed), 'units', 'have')} images of both targets ({listed(pd.Series(mixed))}), but "
            f"in training all images of {bundle.per_text} had one (predict_per.target: same): correct the labels"
        )
    return pd.Series(y).groupby(unit, sort=False).max().to_numpy(np.int_)


def units_note(bundle: Bundle, rows: NewRows) -> str | None:
    """Returns what a row of the results is, as one sentence; None where it is an image."""
    if bundle.predict_per is None:
        return None
    units = counted(rows.frame[UNIT].nunique(), "units")
    return (
        f"There is one prediction for {bundle.per_text}, called a unit: {units} of "
        f"{counted(len(rows.frame), 'images')}, pooled by {bundle.pooling}; a unit is positive if one of its images is."
    )

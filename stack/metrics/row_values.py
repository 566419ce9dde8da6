"""Reads arguments that hold one value for each row, and refuses those whose rows or values would be misread.

NumPy drops the mask of a masked array and the index of a pandas object without a word, and keeps text and Python
objects as they are. Each of these would give a wrong number, or an error that does not name the argument.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError, DataError

_ROUNDING = 1e-12  # largest relative difference of numbers that count as equal


def row_values(values: ArrayLike, what: str) -> NDArray[Any]:
    """Returns `values` as an array of numbers; Python's own numbers, such as Decimal, become float64, None NaN.

    Raises DataError for masked values and for text, which is not converted: "1e3" may be an id.

    >>> row_values([None, 0.5], "scores")
    array([nan, 0.5])
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.getmaskarray(values).any():
        raise DataError(
            f"{int(np.ma.getmaskarray(values).sum())} {what} are masked: leave these rows out of all arguments"
        )
    given = np.asarray(values)
    if given.dtype.kind in "OSU" and (text := [value for value in given.ravel() if isinstance(value, str | bytes)]):
        raise DataError(
            f"{len(text)} of {given.size} {what} are text (first: {str(text[0])!r}): convert them to numbers"
        )
    if given.dtype.kind != "O":
        return given
    missing = np.asarray(pd.isna(given))
    numbers = np.full(given.shape, np.nan)
    try:
        numbers[~missing] = given[~missing].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not numbers ({error}): convert them to numbers") from error
    return numbers


def checked_seed(seed: object) -> int:
    """Returns `seed`; raises ConfigError unless it is a whole number of at least 0, as NumPy needs."""
    if isinstance(seed, bool | np.bool_) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed={seed!r}: give a whole number of at least 0")
    return int(seed)


def varies(values: ArrayLike) -> bool:
    """Returns whether `values` (n,) differ by more than the rounding errors of their own computation.

    A weighted mean of equal numbers may be 1e-16 off in some rows; scaled to a standard deviation of 1, that noise
    would become a feature.
    """
    given = np.asarray(values, dtype=np.float64)
    return bool(np.ptp(given) > _ROUNDING * np.abs(given).max())

"""Checks the predictions, targets, folds and groups that a nested blend is given."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, DataError
from stack.blend.blender import PredictionsError
from stack.blend.weights import METHODS
from stack.metrics.intervals import GIVE_GROUPS
from stack.metrics.scores import check_one_type, raise_for_rows


def simplest_first(methods: Iterable[str]) -> tuple[str, ...]:
    """Returns the blend methods, simplest first; raises ConfigError for an unknown one, and for none."""
    requested = (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [method for method in requested if method not in METHODS]
    if unknown or not requested:
        raise ConfigError(f"blend methods {', '.join(requested) or '(none)'}: choose from {', '.join(METHODS)}")
    return tuple(method for method in METHODS if method in requested)


def checked_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the predictions; raises DataError for a column that is no number, such as the ids."""
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column.dtype) and pd.to_numeric(column, errors="coerce").isna().any():
            raise DataError(
                f"P has the column {name!r}, which holds {column.iloc[0]!r}: give only predictions, as numbers"
            )
    return frame


def check_rows(rows: int, y: NDArray[Any], **others: NDArray[Any]) -> None:
    """Raises DataError for arrays of another length than the predictions, and for targets that are not 0 and 1."""
    for name, values in {"y": y, **others}.items():
        is_right = values.shape == (rows,) or (name == "nets" and values.ndim == 2 and len(values) == rows)
        if not is_right:
            raise DataError(f"{name} has shape {values.shape}, but P has {rows} rows: give one value for each row")
    if not np.isin(y, (0, 1)).all():
        raise DataError(f"y holds {y[~np.isin(y, (0, 1))][:1].tolist()[0]!r}: give targets of 0 and 1")


def check_runs(frame: pd.DataFrame) -> None:
    """Raises PredictionsError, naming the runs, for no run and for predictions that are NaN or inf."""
    if not frame.shape[1]:
        raise PredictionsError("P has no columns: give the predictions of at least one run")
    finite = np.isfinite(frame.to_numpy(np.float64, na_value=np.nan))
    if not finite.all():
        names = ", ".join(map(str, frame.columns[~finite.all(axis=0)]))
        raise PredictionsError(
            f"{names}: {(~finite).sum()} predictions are NaN or inf (first in row {np.argmin(finite.all(axis=1))}): "
            "drop these rows or leave the run out"
        )


def checked_folds(fold: NDArray[Any], split_group: NDArray[Any], candidates: int) -> list[int]:
    """Returns the folds of the rows (n,), for a nested choice among ``candidates``.

    Raises DataError for too few folds, missing split groups, and a split group in two folds.
    """
    folds = [int(k) for k in np.unique(fold)]
    needed = 3 if candidates > 1 else 2
    if len(folds) < needed:
        raise DataError(
            f"{len(folds)} folds: a nested estimate of {candidates} methods needs {needed}; make more folds"
            + (", or name one method" if len(folds) == 2 else "")
        )
    missing = pd.isna(split_group)
    raise_for_rows(missing, split_group, "split_groups are missing", GIVE_GROUPS)
    assignments = pd.DataFrame({"split_group": split_group, "fold": fold}).drop_duplicates()
    check_one_type(assignments["split_group"].unique(), "split_group")
    straddling = assignments["split_group"][assignments["split_group"].duplicated()].unique()
    if len(straddling):
        raise DataError(
            f"{len(straddling)} split_groups sit in more than one fold ({straddling[0]}): make the folds by group"
        )
    return folds

"""Rows joined by id, never by place: where ids stand in a table, or an error that names one that doesn't."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.errors import StoreError
from stack.store import Run


def places(ids: Iterable[str], among: Iterable[str], what: str) -> NDArray[np.intp]:
    """Where each of ``ids`` (n,) stands in ``among``, which ``what`` names. Raises StoreError where one has no place,
    or two."""
    asked, index = pd.Index(ids), pd.Index(among)
    if not index.is_unique:
        raise StoreError(f"{what} hold id {index[index.duplicated()][0]!r} twice: make them again")
    found: NDArray[np.intp] = index.get_indexer(asked)
    if (lost := found < 0).any():
        raise StoreError(f"{lost.sum()} ids are not among {what}, first {asked[lost][0]!r}: make the run again")
    return found


def places_in_run(run: Run, own: pd.Series[str], ids: pd.Series[str], part: str) -> NDArray[np.intp]:
    """Where each of ``ids`` stands in the run's rows (-1: nowhere). Raises for doubled ids and strangers."""
    index = pd.Index(own)
    if not index.is_unique:
        raise StoreError(f"{run.folder}/{part}.parquet holds {index.duplicated().sum()} ids twice: rebuild the run")
    extra = index.difference(pd.Index(ids))
    if len(extra):
        raise StoreError(
            f"{run.folder}/{part}.parquet holds {len(extra)} ids that are not in the table, first: "
            f"{', '.join(map(str, extra[:3]))}: rebuild the run for these rows"
        )
    return index.get_indexer(pd.Index(ids))

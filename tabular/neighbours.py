"""The ugly duckling: how far a lesion's embedding stands from those of the same patient's other lesions.

Grob & Bonerandi 1998 named the sign. Every feature comes from the rows of one group alone: no other group, no target.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tabular.errors import TabularError
from tabular.group_features import code_groups

NEIGHBOURS = 10  # of the local outlier factor
MIN_OUTLIER_GROUP = 2 * NEIGHBOURS + 1  # fewer rows have no neighbourhood to stand out of
ROWS_AT_ONCE = 1024  # of a group's distance matrix, which for 9,000 rows would take 300 MB
Floats = NDArray[np.float32]


def embedding_aggregates(group: ArrayLike, z: NDArray[np.floating], name: str) -> pd.DataFrame:
    """How each row's embedding stands in its group: group (n,), z (n, d) centred, so that directions differ.

    Gives (n, 3) float32, in cosine distance (0 the same direction, 1 at right angles, 2 opposite):
        <name>_group_centroid   to the mean direction of the group's other rows
        <name>_group_nearest    to the nearest of the other rows
        <name>_group_outlier    local outlier factor (Breunig et al. 2000) with 10 neighbours: 1 as dense as its
                                neighbours, larger alone; 1 in groups of fewer than 21 rows
    In a group of one both distances are 0. One BLAS call a group; the cost is the sum of squared group sizes.
    """
    codes, groups = code_groups(group)
    if z.ndim != 2 or len(z) != len(codes):
        raise TabularError(f"{name}: embeddings of shape {z.shape} for {len(codes)} rows: one row an id")
    if not np.isfinite(z).all():
        raise TabularError(f"{name}: embeddings of {int((~np.isfinite(z)).any(axis=1).sum())} rows are not finite")
    order = np.argsort(codes, kind="stable")
    size = np.bincount(codes, minlength=groups)
    start = np.cumsum(size) - size
    made = np.zeros((len(codes), 3), np.float32)
    made[:, 2] = 1
    for first, rows in zip(start[size > 1], size[size > 1], strict=True):  # over groups; the rows inside go to BLAS
        members = order[first : first + rows]
        made[members] = _within(_unit(z[members].astype(np.float32)))
    columns = [f"{name}_group_{feature}" for feature in ("centroid", "nearest", "outlier")]
    index = group.index if isinstance(group, pd.Series) else None
    return pd.DataFrame(made, columns=columns, index=index)


def _within(unit: Floats) -> Floats:
    """The three features (n, 3) of one group's directions (n, d), n > 1."""
    n = len(unit)
    others = unit.sum(axis=0) - unit
    centroid = 1 - np.einsum("nd,nd->n", _unit(others), unit)
    nearest = np.empty(n, np.float32)
    k = NEIGHBOURS if n >= MIN_OUTLIER_GROUP else 0
    distance, neighbour = np.empty((n, k), np.float32), np.empty((n, k), np.intp)
    for first in range(0, n, ROWS_AT_ONCE):
        some = slice(first, min(first + ROWS_AT_ONCE, n))
        apart = unit[some] @ unit.T
        np.subtract(1, apart, out=apart)
        apart[np.arange(len(apart)), np.arange(first, first + len(apart))] = np.inf  # itself
        if k:
            nearby = np.argpartition(apart, k, axis=1)[:, :k]
            neighbour[some] = nearby
            distance[some] = np.take_along_axis(apart, nearby, axis=1)
            nearest[some] = distance[some].min(axis=1)
        else:
            nearest[some] = apart.min(axis=1)
    outlier = _local_outlier_factor(distance, neighbour) if k else np.ones(n, np.float32)
    return np.column_stack([np.maximum(centroid, 0), np.maximum(nearest, 0), outlier]).astype(np.float32)


def _local_outlier_factor(distance: Floats, neighbour: NDArray[np.intp]) -> Floats:
    """Breunig et al. 2000, of each row's k neighbours (n, k) and their distances."""
    near = np.maximum(distance, 0)
    reach = np.maximum(near, near.max(axis=1)[neighbour])
    density = 1 / (reach.mean(axis=1) + np.float32(1e-10))  # as scikit-learn keeps copies apart
    factor: Floats = (density[neighbour].mean(axis=1) / density).astype(np.float32)
    return factor


def _unit(z: Floats) -> Floats:
    length = np.linalg.norm(z, axis=1, keepdims=True)
    unit: Floats = (z / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
    return unit

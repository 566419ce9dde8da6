"""Shuffles targets between split_groups, as a test for leaks, and measures the AUC among groups of equal size.

Target vectors are exchanged between groups of equal size only, so the number of images of a group still predicts the
target (AUC 0.70 on HAM10000), and a net that can infer it from the images scores above 0.5 without a leak. Among
groups of one size no signal remains: there the AUC must be 0.5 within noise.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from stack.metrics.intervals import Interval
from stack.metrics.scores import auc


def shuffle_targets(train: pd.DataFrame, split_group: ArrayLike, *, seed: int) -> pd.DataFrame:
    """Returns `train` with target vectors exchanged at random between split_groups of equal size and shuffled within.

    `split_group` (n,) is in the order of the rows. A group's targets stay together, so that a leak by group remains
    visible; a shuffle by row would hide it. They are also shuffled within the group, because a group of a unique size
    keeps its targets, and without a shuffle each row would keep its own.
    """
    codes, _ = pd.factorize(np.asarray(split_group, dtype=object), sort=True)
    if len(codes) != len(train):
        raise DataError(f"{len(codes)} split_groups for {len(train)} rows: give one for each row of the table")
    rng = np.random.default_rng(seed)
    rows = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    origin = np.arange(len(train))
    for size in np.unique(sizes):
        members = rows[starts[sizes == size][:, None] + np.arange(size)]  # (groups of this size, size)
        origin[members] = rng.permuted(rng.permutation(members), axis=1)
    # The diagnosis determines the target, so it is moved together with it.
    exchanged = [column for column in ("target", "diagnosis") if column in train]
    return train.assign(**{column: train[column].to_numpy()[origin] for column in exchanged})


def auc_equal_size(y: ArrayLike, s: ArrayLike, split_group: ArrayLike, *, draws: int = 200, seed: int = 0) -> Interval:
    """Returns the AUC of scores `s` (n,) over pairs of rows from split_groups (n,) of equal size.

    The interval is a bootstrap over split_groups.
    """
    y, s = np.asarray(y), np.asarray(s, np.float64)
    codes, names = pd.factorize(np.asarray(split_group, object), sort=True)
    size = np.bincount(codes)[codes]
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(draws):
        chosen = np.concatenate([rows[group] for group in rng.integers(len(names), size=len(names))])
        drawn.append(auc_within_strata(y[chosen], s[chosen], size[chosen]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Interval(auc_within_strata(y, s, size), float(low), float(high), float(np.nanstd(drawn)))


def auc_within_strata(y: NDArray[np.generic], s: NDArray[np.floating], stratum: NDArray[np.integer]) -> float:
    """Returns the AUC over pairs of a positive and a negative row of the same ``stratum`` (n,); NaN without pairs."""
    won = pairs = 0.0
    for value in np.unique(stratum):
        rows = stratum == value
        positives = int((y[rows] == 1).sum())
        if 0 < positives < rows.sum():
            here = positives * (int(rows.sum()) - positives)
            won += here * auc(y[rows], s[rows])
            pairs += here
    return won / pairs if pairs else float("nan")

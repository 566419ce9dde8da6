"""Train against test, column by column: how far apart they are, and how far chance alone would put them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_DRAWS = 200


def drift(
    train: Mapping[str, pd.Series],
    test: Mapping[str, pd.Series],
    train_group: pd.Series,
    test_group: pd.Series,
    *,
    seed: int,
) -> pd.DataFrame:
    """Compare each column of `train` (n values) with that of `test` (m values); groups (n,) and (m,).

    One row a column: column, kind, distance, chance, beyond, auc, missing_train, missing_test.

    `distance`, 0 to 1, is the largest difference between the shares of train and of test that one question can find:
    below which value (kind "number", the Kolmogorov–Smirnov statistic of the known values), or in which set of levels
    (kind "words", total variation; a missing value is a level). `chance`: 95 % of draws that deal whole groups to train
    and test at random lie below it; `beyond`: whether the distance is larger. `auc`, 0.5 to 1: of telling a test row
    from a train row by this column alone; by words, levels with more of the test rows first, as seen on these rows.
    NaN where one side has no known value.
    """
    rng = np.random.default_rng(seed)
    units, in_test = _units(train_group, test_group)
    shuffled = [rng.permutation(in_test) for _ in range(_DRAWS)]
    records = []
    for column in train:
        both = pd.concat([train[column], test[column]], ignore_index=True)
        numeric = pd.api.types.is_numeric_dtype(both)
        codes, levels = pd.factorize(both, sort=True, use_na_sentinel=numeric)
        known = np.flatnonzero(codes >= 0)
        counts = [_counts(codes[known], dealt[units[known]], len(levels)) for dealt in [in_test, *shuffled]]
        distances = [_distance(pair, numeric) for pair in counts]
        missing = [float(side[column].isna().mean()) for side in (train, test)]
        # A draw in which one side has no known value has no distance.
        chance = float(np.nanquantile(distances[1:], 0.95)) if np.isfinite(distances[1:]).any() else np.nan
        kind = "number" if numeric else "words"
        beyond = distances[0] > chance + 1e-9  # sums of the same shares in another order differ by rounding
        records.append([column, kind, distances[0], chance, beyond, _auc(counts[0], numeric), *missing])
    names = ["column", "kind", "distance", "chance", "beyond", "auc", "missing_train", "missing_test"]
    return pd.DataFrame(records, columns=names)


def _units(train_group: pd.Series, test_group: pd.Series) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """What is dealt whole: the unit of each row, and of each unit whether it is in test. A shared group is two."""
    first, groups = pd.factorize(train_group)
    second, others = pd.factorize(test_group)
    in_test = np.repeat([False, True], [len(groups), len(others)])
    return np.concatenate([first, second + len(groups)]), in_test


def _counts(codes: NDArray[np.intp], in_test: NDArray[np.bool_], levels: int) -> NDArray[np.float64]:
    """Rows of train and of test with each level: (2, levels)."""
    return np.bincount(codes + levels * in_test, minlength=2 * levels).reshape(2, levels).astype(np.float64)


def _distance(counts: NDArray[np.float64], numeric: bool) -> float:
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        return np.nan
    train, test = counts / totals
    if numeric:
        return float(np.max(np.abs(np.cumsum(train - test))))
    return float(np.sum(np.abs(train - test)) / 2)


def _auc(counts: NDArray[np.float64], numeric: bool) -> float:
    """That a test row's level stands above a train row's, ties half, turned to 0.5 or more."""
    if not counts.sum(axis=1).all():
        return np.nan
    if not numeric:
        counts = counts[:, np.argsort(counts[1] / counts.sum(axis=0), kind="stable")]
    train, test = counts
    below = np.cumsum(train) - train
    value = float(np.sum(test * (below + train / 2)) / (train.sum() * test.sum()))
    return max(value, 1 - value)

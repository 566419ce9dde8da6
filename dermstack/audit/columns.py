"""Describes the columns without a role: values by target, AUC of each alone, and distance between train and test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.audit.drift import drift
from dermstack.audit.single_column import column_auc, out_of_fold_rates
from stack.folds import Folds
from stack.metrics.scores import Floats
from stack.tables.table import Table

MAX_DRIFT_ROWS = 5_000  # rows of train and of test, of whole groups, in which distances are measured
_QUANTILES = {"low": 0.05, "middle": 0.5, "high": 0.95}


def number_columns(table: Table, group: NDArray[np.object_], *, seed: int) -> pd.DataFrame:
    """Returns a row for each column of numbers, the best single predictors of the target first.

    Columns: column (its name on pages); negative_low, negative_middle, negative_high and the same of positive: the 5 %,
    50 % and 95 % quantiles of the known values; auc of the known values alone (below 0.5: positives are lower) with its
    95 % interval low and high over ``group`` (n,); missing_train, missing_test; distance, chance and beyond of `drift`,
    in a sample of whole groups of a large table. NaN where a number cannot be computed.
    """
    train, names, shown = table.train, table.columns.numbers, table.columns.shown
    positive = train["target"].to_numpy() == 1
    records = []
    for name in names:
        values = train[name].to_numpy(np.float64)
        known = np.isfinite(values)
        record: dict[str, object] = {"column": shown[name]}
        for of, rows in (("negative", known & ~positive), ("positive", known & positive)):
            found = np.quantile(values[rows], list(_QUANTILES.values())) if rows.any() else [np.nan] * 3
            record |= {f"{of}_{which}": float(value) for which, value in zip(_QUANTILES, found, strict=True)}
        records.append(record | _auc(positive[known], values[known], group[known]))
    frame = _with_drift(pd.DataFrame(records), table, names, seed=seed)
    return _sorted(frame, (frame["auc"] - 0.5).abs()) if names else frame


def word_columns(table: Table, folds: Folds | None, *, seed: int) -> pd.DataFrame:
    """Returns a row for each column of words, the best single predictors of the target first.

    Columns: column; words (number of different ones); commonest, with its share of the known values; auc of the rate of
    positives at each word in the other folds, with low and high (NaN without ``folds``); and those of `number_columns`
    on missing values and drift.
    """
    train, names, shown = table.train, list(table.columns.categorical), table.columns.shown
    positive = train["target"].to_numpy() == 1
    records = []
    for name in names:
        counts = train[name].value_counts()
        record: dict[str, object] = {"column": shown[name], "words": len(counts), "commonest": "–"}
        if len(counts):
            record["commonest"] = f"{counts.index[0]} ({100 * counts.iloc[0] / counts.sum():.0f} %)"
        if folds is None:
            record |= {"auc": np.nan, "low": np.nan, "high": np.nan}
        else:
            fold = folds.frame["fold"].to_numpy()
            rates = out_of_fold_rates(train[name].reset_index(drop=True), train["target"].to_numpy(), fold)
            record |= _auc(positive, rates, folds.frame["split_group"].to_numpy(object))
        records.append(record)
    frame = _with_drift(pd.DataFrame(records), table, names, seed=seed)
    return _sorted(frame, frame["auc"]) if names else frame  # rates of other folds: below 0.5 there is no relation


def _sorted(frame: pd.DataFrame, strength: pd.Series) -> pd.DataFrame:
    return frame.iloc[np.argsort(-strength.fillna(-1).to_numpy(), kind="stable")].reset_index(drop=True)


def _auc(positive: NDArray[np.bool_], values: Floats, group: NDArray[np.object_]) -> dict[str, float]:
    if not (positive.any() and (~positive).any()):
        return {"auc": np.nan, "low": np.nan, "high": np.nan}
    found = column_auc(positive.astype(np.int8), values, group)
    return {"auc": found.value, "low": found.low, "high": found.high}


def _with_drift(frame: pd.DataFrame, table: Table, names: Sequence[str], *, seed: int) -> pd.DataFrame:
    """Adds the columns on missing values and drift."""
    if frame.empty:
        return frame
    train, test = table.train, table.test
    frame["missing_train"] = [float(train[name].isna().mean()) for name in names]
    frame["missing_test"] = [float(test[name].isna().mean()) if len(test) else np.nan for name in names]
    parts = [_sample(part, seed=seed) for part in (train, test)]
    compared = [name for name in names if all(len(part) and part[name].notna().any() for part in parts)]
    made = pd.DataFrame(index=list(names), columns=["distance", "chance"], dtype=np.float64).assign(beyond=False)
    if compared:
        sides = [{name: part[name] for name in compared} for part in parts]
        found = drift(sides[0], sides[1], parts[0]["group"], parts[1]["group"], seed=seed).set_index("column")
        made.loc[compared] = found.loc[compared, ["distance", "chance", "beyond"]]
    for column in made:
        frame[column] = made[column].to_numpy()
    return frame


def _sample(rows: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    if len(rows) <= MAX_DRIFT_ROWS:
        return rows
    codes, names = pd.factorize(rows["group"])
    order = np.random.default_rng(seed).permutation(len(names))
    taken = np.zeros(len(names), bool)
    taken[order[np.cumsum(np.bincount(codes)[order]) <= MAX_DRIFT_ROWS]] = True
    return rows[taken[codes]]

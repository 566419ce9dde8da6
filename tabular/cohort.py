"""Features of a row relative to its cohort: the fitted rows of the same age band, sex and site."""

from __future__ import annotations

import json
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from dermstack.errors import TabularError

COHORT_LEVELS = (
    ("band", "sex", "site"),
    ("band", "sex"),
    ("band",),
    (),
)  # a row's cohort is that of the first level with enough rows
_ROWS, _VALUES = "cells", "column_cells"  # keys in JSON: all columns have the same cohorts, or each has its own


class CohortScore(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """z-score of logits by the mean and standard deviation of the fitted rows of the same age band, sex and site.

    A cohort of fewer than ``min_rows`` fitted rows is replaced by that without the site, then without the sex, then by
    all rows. Where logits are missing (NaN), each column is replaced by itself, and only rows with a value in it count.
    A missing age, sex or site is a value of its own; age bands are ten years wide. No targets are used.

    Fitted: `cohorts_`, {level: {cohort: [means (runs,), standard deviations (runs,)]}}, NaN for a column with too few
    values, and `by_column_`, whether a fitted value was missing. Without one all columns have the same cohorts, and the
    JSON is that of earlier versions, which took for all columns the cohort of the first one. Their JSON with NaN is
    still read as they read it, so that models trained on such features get the same ones.
    """

    def __init__(self, min_rows: int = 50) -> None:
        self.min_rows = min_rows

    def fit(self, frame: pd.DataFrame, logits: NDArray[np.floating]) -> Self:
        """Fits the cohorts of training rows with age, sex and site in ``frame`` and ``logits`` (n, runs)."""
        if logits.shape[0] != len(frame) or not len(frame):
            raise TabularError(
                f"logits of shape {logits.shape} for {len(frame)} rows: give one row of logits for each, at least one"
            )
        keys = _cohort_columns(frame)
        values = pd.DataFrame(logits.astype(np.float64))
        self.runs_ = logits.shape[1]
        self.by_column_ = bool(values.isna().to_numpy().any())
        self.cohorts_: dict[str, dict[str, list[list[float]]]] = {}
        for level in COHORT_LEVELS:
            cohort = _cohort_keys(keys, level)
            grouped = values.groupby(cohort, sort=True)
            enough = (grouped.count() >= self.min_rows) | (not level)
            mean, std = grouped.mean().where(enough), grouped.std(ddof=0).where(enough)
            self.cohorts_["+".join(level)] = {
                str(key): [mean.loc[key].tolist(), std.loc[key].tolist()] for key in enough.index[enough.any(axis=1)]
            }
        return self

    def transform(self, frame: pd.DataFrame, logits: NDArray[np.floating], names: tuple[str, ...]) -> pd.DataFrame:
        """Returns (n, runs) float32 named `<run>_cohort_z`; where a cohort's std is 0, the difference to its mean."""
        keys = _cohort_columns(frame)
        mean = np.full(logits.shape, np.nan)
        std = np.full(logits.shape, np.nan)
        for level in COHORT_LEVELS:
            cells = self.cohorts_["+".join(level)]
            place = pd.Index(cells, dtype="str").get_indexer(pd.Index(_cohort_keys(keys, level)))
            lacking = np.isnan(mean if self.by_column_ else mean[:, :1])  # (n, runs), or (n, 1) for all runs together
            here = (place >= 0) & lacking.any(axis=1)
            if here.any():
                table = np.array(list(cells.values()))  # (cells, 2, runs)
                for found, part in ((mean, 0), (std, 1)):
                    found[here] = np.where(lacking[here], table[place[here], part], found[here])
        z = (logits - mean) / np.where(std > 1e-9, std, 1.0)
        return pd.DataFrame(z.astype(np.float32), columns=[f"{name}_cohort_z" for name in names], index=frame.index)

    def to_json(self) -> str:
        """Returns the fitted state as JSON, for `from_json`."""
        key = _VALUES if self.by_column_ else _ROWS  # earlier versions refuse the other key instead of misreading it
        return json.dumps({"runs": self.runs_, key: self.cohorts_}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the CohortScore stored by `to_json`; raises TabularError for any other text."""
        try:
            state = json.loads(text)
            score = cls()
            score.runs_ = int(state["runs"])
            score.by_column_ = _VALUES in state
            stored = state[_VALUES if score.by_column_ else _ROWS]
            score.cohorts_ = {"+".join(level): dict(stored["+".join(level)]) for level in COHORT_LEVELS}
            for cells in filter(None, score.cohorts_.values()):
                table = np.array(list(cells.values()), np.float64)
                # NaN: too few rows of the cohort have a value in the column, or before `_VALUES` none.
                if table.shape != (len(cells), 2, score.runs_) or np.isinf(table).any():
                    raise ValueError(f"a cohort lacks a finite mean and deviation for each of {score.runs_} columns")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise TabularError(f"not cohort statistics: {text[:60]!r} ({error}): fit the stacker again") from error
        return score


def _cohort_columns(frame: pd.DataFrame) -> pd.DataFrame:
    band = (frame["age"].astype("float64") // 10).fillna(-1).astype(int).astype("str")
    return pd.DataFrame({
        "band": band.to_numpy(object),
        "sex": frame["sex"].astype("str").fillna("?").to_numpy(object),
        "site": frame["site"].astype("str").fillna("?").to_numpy(object),
    })  # fmt: skip


def _cohort_keys(keys: pd.DataFrame, level: tuple[str, ...]) -> NDArray[np.object_]:
    if not level:
        return np.full(len(keys), "all", object)
    text = keys[level[0]].astype("str")
    for column in level[1:]:
        text = text + "\x1f" + keys[column].astype("str")
    return text.to_numpy(object)

"""A lesion against its cohort: is p high for someone of this age and sex, at this site?"""

from __future__ import annotations

import json
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from tabular.errors import TabularError

LEVELS = (("band", "sex", "site"), ("band", "sex"), ("band",), ())  # the first that has enough rows is a row's cohort


class CohortScore(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """z-score of logits within (age band, sex, site): mean and spread of the fitted rows' cohort, never of targets.

    A cohort of fewer than ``min_rows`` fitted rows gives way to the same without the site, then without the sex, then
    to all rows. Missing values are values of their own; bands are ten years wide.

    Fitted: `cells_`, {level: {cohort: (mean, std) a run}}.
    """

    def __init__(self, min_rows: int = 50) -> None:
        self.min_rows = min_rows

    def fit(self, frame: pd.DataFrame, logits: NDArray[np.floating]) -> Self:
        """``frame`` holds age, sex and site of the training rows, ``logits`` (n, runs) stand beside them."""
        if logits.shape[0] != len(frame) or not len(frame):
            raise TabularError(f"logits of shape {logits.shape} for {len(frame)} rows: one row an id, and at least one")
        keys = _keys(frame)
        values = pd.DataFrame(logits.astype(np.float64))
        self.runs_ = logits.shape[1]
        self.cells_: dict[str, dict[str, list[list[float]]]] = {}
        for level in LEVELS:
            cohort = _cohort(keys, level)
            grouped = values.groupby(cohort, sort=True)
            mean, std, rows = grouped.mean(), grouped.std(ddof=0), grouped.size()
            enough = rows.index[(rows >= self.min_rows) | (not level)]
            self.cells_["+".join(level)] = {str(key): [mean.loc[key].tolist(), std.loc[key].tolist()] for key in enough}
        return self

    def transform(self, frame: pd.DataFrame, logits: NDArray[np.floating], names: tuple[str, ...]) -> pd.DataFrame:
        """(n, runs) float32 named `<run>_cohort_z`; a cohort without spread gives the plain difference."""
        keys = _keys(frame)
        mean = np.full(logits.shape, np.nan)
        std = np.full(logits.shape, np.nan)
        for level in LEVELS:
            cells = self.cells_["+".join(level)]
            place = pd.Index(cells, dtype="str").get_indexer(pd.Index(_cohort(keys, level)))
            here = (place >= 0) & np.isnan(mean[:, 0])
            if here.any():
                table = np.array(list(cells.values()))  # (cells, 2, runs)
                mean[here], std[here] = table[place[here], 0], table[place[here], 1]
        z = (logits - mean) / np.where(std > 1e-9, std, 1.0)
        return pd.DataFrame(z.astype(np.float32), columns=[f"{name}_cohort_z" for name in names], index=frame.index)

    def to_json(self) -> str:
        """Everything that `from_json` needs to score new rows the same way."""
        return json.dumps({"runs": self.runs_, "cells": self.cells_}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave; raises TabularError for anything else."""
        try:
            state = json.loads(text)
            score = cls()
            score.runs_ = int(state["runs"])
            score.cells_ = {"+".join(level): dict(state["cells"]["+".join(level)]) for level in LEVELS}
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise TabularError(f"no cohort statistics: {text[:60]!r} ({error}); fit the stacker again") from error
        return score


def _keys(frame: pd.DataFrame) -> pd.DataFrame:
    band = (frame["age"].astype("float64") // 10).fillna(-1).astype(int).astype("str")
    return pd.DataFrame({
        "band": band.to_numpy(object),
        "sex": frame["sex"].astype("str").fillna("?").to_numpy(object),
        "site": frame["site"].astype("str").fillna("?").to_numpy(object),
    })  # fmt: skip


def _cohort(keys: pd.DataFrame, level: tuple[str, ...]) -> NDArray[np.object_]:
    if not level:
        return np.full(len(keys), "all", object)
    text = keys[level[0]].astype("str")
    for column in level[1:]:
        text = text + "\x1f" + keys[column].astype("str")
    return text.to_numpy(object)

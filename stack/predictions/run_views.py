"""Predictions of runs beside the experiment's rows: targets, folds, ranks, each computed on first use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.metrics.intervals import midranks
from stack.metrics.resolution import resolution
from stack.store import Run
from stack.tables.keys import positions_of

Floats = NDArray[np.float64]

SAMPLE_ROWS = 10_000  # correlations are computed on at most this many rows, evenly spaced in the table


@dataclass(frozen=True)
class Scores:
    """Predictions of one run: frames of id, fold, logit and p, ``oof`` for training rows and ``test`` for test rows."""

    name: str
    kind: str
    oof: pd.DataFrame
    test: pd.DataFrame

    @classmethod
    def of(cls, run: Run) -> Scores:
        """Reads the predictions of a run."""
        return cls(run.name, str(run.meta["kind"]), run.frame("oof"), run.frame("test"))


def _sample(rows: int) -> slice:
    """Returns at most SAMPLE_ROWS rows, evenly spaced."""
    return slice(None, None, max(1, -(-rows // SAMPLE_ROWS)))


class TableRows:
    """The experiment's rows, with one index of ids for all runs."""

    def __init__(self, experiment: Experiment) -> None:
        self.y = experiment.target
        self.split_group, _ = pd.factorize(experiment.split_group)
        self.fold = experiment.folds.frame["fold"].to_numpy()
        self.sample = _sample(len(self.y))
        tables = {"training rows": experiment.table.train, "test rows": experiment.table.test}
        self._ids = {part: frame["id"] for part, frame in tables.items()}
        # Runs often have equal rows, and mostly those of the table.
        self._last = {part: (ids, np.arange(len(ids), dtype=np.int32)) for part, ids in self._ids.items()}

    def positions(self, ids: pd.Series[str], part: str, run: str) -> NDArray[np.integer]:
        """Returns the position of each id among the rows of ``part``; raises StoreError where one is not among them."""
        if self._last[part][0].equals(ids):
            return self._last[part][1]
        found = positions_of(ids, self._ids[part]).astype(np.int32)  # kept for each run
        if (found < 0).any():
            raise StoreError(f"{(found < 0).sum()} ids of {run} are not among the {part}: make the run again")
        self._last[part] = ids, found
        return found

    @property
    def number_of_test_rows(self) -> int:
        """Number of test rows."""
        return len(self._ids["test rows"])


class RunView:
    """The predictions of one run beside the experiment's targets and folds; each part is computed on first use."""

    def __init__(self, table: TableRows, scores: Scores) -> None:
        self.name, self.kind, self._table = scores.name, scores.kind, table
        self.rows = table.positions(scores.oof["id"], "training rows", scores.name)
        self._logit, self.nets = scores.oof["logit"].to_numpy(), scores.oof["fold"].to_numpy()
        self.test_rows = table.positions(scores.test["id"], "test rows", scores.name)
        self._test_logit, self.test_nets = scores.test["logit"].to_numpy(), scores.test["fold"].to_numpy()

    @property
    def logit(self) -> Floats:
        """Out-of-fold logits (n,)."""
        return self._logit.astype(np.float64)

    @property
    def p(self) -> Floats:
        """Out-of-fold probabilities (n,)."""
        return np.asarray(expit(self.logit), np.float64)

    @property
    def y(self) -> NDArray[np.int8]:
        """Targets (n,)."""
        of_rows: NDArray[np.int8] = self._table.y[self.rows]
        return of_rows

    @property
    def split_group(self) -> NDArray[np.intp]:
        """Split groups (n,), as numbers."""
        of_rows: NDArray[np.intp] = self._table.split_group[self.rows]
        return of_rows

    @property
    def test_logit(self) -> Floats:
        """Logits of the test rows by every net."""
        return self._test_logit.astype(np.float64)

    @cached_property
    def resolution(self) -> float | None:
        """Step of the grid of all p but the lowest and the highest, where exact 0 and 1 were clipped."""
        p = self.p
        inner = p[(p > p.min()) & (p < p.max())] if len(p) else p
        return resolution(inner) if len(inner) else None

    @cached_property
    def ranks(self) -> Floats:
        """Ranks within the experiment's folds, of the sampled rows in the order of the table; NaN where not covered."""
        of_sample, fold = self._in_table(self.logit)[self._table.sample], self._table.fold[self._table.sample]
        found = np.full(len(fold), np.nan)
        for number in np.unique(fold):
            shown = np.flatnonzero((fold == number) & ~np.isnan(of_sample))
            found[shown] = midranks(of_sample[shown]) / max(len(shown), 1)
        return found

    @property
    def p_in_table(self) -> Floats:
        """Out-of-fold probabilities in the order of the table; NaN where not covered."""
        return self._in_table(self.p)

    def _in_table(self, values: Floats) -> Floats:
        made = np.full(len(self._table.y), np.nan)
        made[self.rows] = values
        return made

    @property
    def _test_sums(self) -> Floats:
        """Sum of each test row's logits over nets, in the order of the table; NaN where there are none."""
        rows = self._table.number_of_test_rows
        sums = np.bincount(self.test_rows, self.test_logit, rows)
        return np.where(np.bincount(self.test_rows, minlength=rows) > 0, sums, np.nan)

    @cached_property
    def test_key(self) -> bytes:
        """Equal for equal test predictions."""
        return hashlib.sha256(self._test_sums.tobytes()).digest()

    @cached_property
    def has_test_spread(self) -> bool:
        """Whether test predictions differ."""
        sums = self._test_sums
        return len(sums) >= 3 and not np.isnan(sums).any() and float(np.ptp(sums)) > 0

    @cached_property
    def test_ranks(self) -> Floats:
        """Ranks of the test predictions over all nets, of sampled rows; NaN where there are none."""
        sums = self._test_sums
        sampled = sums[_sample(len(sums))]
        shown = ~np.isnan(sampled)
        found = np.full(len(sampled), np.nan)
        found[shown] = midranks(sampled[shown]) / max(shown.sum(), 1)
        return found

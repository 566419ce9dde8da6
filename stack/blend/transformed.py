"""Predictions of runs in every transform of a blend, each computed once and shared by fits to parts of the rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stack.blend.columns import NetScaler, Weighting, standard_rank
from stack.metrics.scores import Bools, Floats

Ints = NDArray[np.intp]


class TransformedRuns:
    """Columns of rows by runs, as a blend weights them: probabilities, ranks and logits.

    A column is computed when it is first asked for, or all at once by `prepared`, after which no scaler is needed and
    the columns can be sent to other processes. `part` selects rows and runs without copying: what the fits of many
    folds and methods share is held once. Transforms use no targets, so to share them shows no fit a held-out target.
    """

    def __init__(self, scaler: NetScaler, P: Floats, nets: NDArray[Any]) -> None:
        """Takes predictions `P` (n, runs) made by `nets` (n,) or (n, runs), and the scaler fitted to the runs."""
        self.is_probability: Bools = scaler.is_probability_
        self.moments: Sequence[tuple[float, float]] = scaler.moments_
        self._matrices: dict[str, Floats] = {"probability": np.asarray(P, np.float64)}
        self._columns: dict[tuple[str, int], Floats] = {}
        self._make: Callable[[str, int], Floats] | None = _column_maker(scaler, self._matrices["probability"], nets)
        self._rows: Bools | None = None
        self._runs: Ints = np.arange(self._matrices["probability"].shape[1])

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(self._runs)

    def prepared(self) -> TransformedRuns:
        """Computes all columns in all transforms, and returns itself."""
        make, probability = self._make, np.asfortranarray(self._matrices["probability"])
        if make is not None:
            found = {kind: np.empty(probability.shape, order="F") for kind in ("rank", "logit")}
            for run in range(probability.shape[1]):
                found["rank"][:, run] = make("rank", run)
                found["logit"][:, run] = make("logit", run) if self.is_probability[run] else np.nan
            self._matrices, self._make, self._columns = {"probability": probability, **found}, None, {}
        return self

    def part(self, *, rows: Bools | None = None, runs: Bools | None = None) -> TransformedRuns:
        """Returns the columns of the rows in a mask (n,) and of the runs in a mask (runs,), of columns of all rows."""
        made = object.__new__(TransformedRuns)
        made.__dict__ = dict(self.__dict__)
        if rows is not None and not rows.all():
            assert self._rows is None
            made._rows = rows
        if runs is not None:
            made._runs = self._runs[runs]
            made.is_probability = self.is_probability[runs]
            made.moments = [self.moments[run] for run in np.flatnonzero(runs).tolist()]
        return made

    def unscaled(self, run: int, kind: str) -> Floats:
        """Returns the column (n,) of a run: its "probability" as it is, its "rank" in (0, 1) or its standard "logit".

        A view of what is shared: not to be changed.
        """
        source = int(self._runs[run])
        if kind in self._matrices:
            values = self._matrices[kind][:, source]
        else:
            if (kind, source) not in self._columns:
                assert self._make is not None
                self._columns[kind, source] = self._make(kind, source)
            values = self._columns[kind, source]
        return values if self._rows is None else values[self._rows]

    def standardised(self, run: int, kind: str, power: float = 1.0) -> Floats:
        """Returns the column (n,) of a run with mean 0 and standard deviation 1 on the rows of the scaler."""
        values = self.unscaled(run, kind)
        if kind == "rank":
            return standard_rank(values, power)
        if kind == "logit":
            return values
        mean, spread = self.moments[run]
        standard: Floats = (values - mean) / spread
        return standard

    def matrix(self, kinds: Sequence[str], *, standard: bool) -> Floats:
        """Returns all columns, (n, runs), each run in its own transform."""
        column = self.standardised if standard else self.unscaled
        first = column(0, kinds[0])
        made = np.empty((len(first), self.runs), order="F")
        for run, kind in enumerate(kinds):
            made[:, run] = first if run == 0 else column(run, kind)
        return made

    def total(self, weighting: Weighting, *, standard: bool) -> Floats:
        """Returns the weighted sum (n,) of the runs; equal rows have exactly equal sums, as of `weighted_sum`."""
        total: Floats | None = None
        for run, (kind, weight) in enumerate(zip(weighting.transforms, weighting.weights, strict=True)):
            if weight == 0:  # adds nothing
                continue
            power = weighting.powers[run] if weighting.powers else 1.0
            column = self.standardised(run, kind, power) if standard else self.unscaled(run, kind)
            if weighting.logit_shares and (share := weighting.logit_shares[run]):
                column = (1 - share) * column + share * self.standardised(run, "logit")
            total = (0.0 + weight * column) if total is None else total + weight * column
        assert total is not None
        return total


def _column_maker(scaler: NetScaler, P: Floats, nets: NDArray[Any]) -> Callable[[str, int], Floats]:
    by_run = np.broadcast_to(nets.reshape(len(P), -1), P.shape)

    def column(kind: str, run: int) -> Floats:
        make = scaler.ranks_.transform_run if kind == "rank" else scaler.standard_logit
        return make(P[:, run], by_run[:, run], run)

    return column

"""Probabilities for the rows of each fold, by a map that was chosen and fitted on the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stack.blend.calibration import FITS, Calibrator
from stack.blend.nested import choose_method
from stack.metrics.curve import Floats
from stack.metrics.intervals import paired_difference
from stack.metrics.scores import brier, expected_calibration_error, log_loss


@dataclass(frozen=True)
class NestedCalibration:
    """What `calibrate_nested` found."""

    chosen: str
    chosen_by_fold: dict[int, str]
    p: Floats  # (n,): each row by the map, and the kind of map, chosen without its fold
    by_kind: dict[str, Floats]  # (n,): each row by this kind of map, fitted without its fold
    final: Calibrator  # of the chosen kind, fitted on all rows

    def summary(self, y: ArrayLike, split_group: ArrayLike) -> pd.DataFrame:
        """A row a kind and one for the choice: log loss, brier, ece, and the loss less Platt's with its interval."""
        first = next(iter(self.by_kind.values()))
        rows = []
        for kind, p in {**self.by_kind, "chosen in each fold": self.p}.items():
            more = paired_difference("logloss", y, first, p, split_group)  # of negated losses
            rows.append({
                "map": kind, "log loss": log_loss(y, p), "brier": brier(y, p), "ece": expected_calibration_error(y, p),
                "less platt": more.value, "low": more.low, "high": more.high, "chosen": kind == self.chosen,
            })  # fmt: skip
        return pd.DataFrame(rows)


def calibrate_nested(score: ArrayLike, y: ArrayLike, fold: ArrayLike, split_group: ArrayLike) -> NestedCalibration:
    """Calibrate scores (n,) in [0, 1] that did not look at their own targets `y` (n,), such as nested ones.

    Each fold's p comes from the kind of map that has, on the other folds and fitted without the one it is scored
    on, the lowest log loss, or from a simpler one within a standard error of it (`choose_method`). Of two folds from
    the simplest kind.
    """
    score, y, fold, split_group = (np.asarray(values) for values in (score, y, fold, split_group))
    folds = [int(k) for k in np.unique(fold)]

    def crossed(rows: NDArray[np.bool_]) -> dict[str, Floats]:
        """Each kind's p on ``rows``, a fold by the map of the other folds among them; NaN elsewhere."""
        made = {kind: np.full(len(score), np.nan) for kind in FITS}
        for k in np.unique(fold[rows]):
            learn, held = rows & (fold != k), rows & (fold == k)
            for kind, fit in FITS.items():
                made[kind][held] = fit(score[learn], y[learn])(score[held])
        return made

    def choice(made: Mapping[str, Floats], rows: NDArray[np.bool_]) -> str:
        return choose_method("logloss", y[rows], {kind: p[rows] for kind, p in made.items()}, split_group[rows])

    everything = np.ones(len(score), np.bool_)
    by_kind = crossed(everything)
    chosen_by_fold = {}
    p = np.full(len(score), np.nan)
    for k in folds:
        others = fold != k
        # Of two folds the other is one alone: nothing is left to choose on, and the simplest map is taken.
        chosen_by_fold[k] = choice(crossed(others), others) if len(folds) > 2 else next(iter(FITS))
        p[fold == k] = by_kind[chosen_by_fold[k]][fold == k]
    chosen = choice(by_kind, everything)
    return NestedCalibration(chosen, chosen_by_fold, p, by_kind, FITS[chosen](score, y))


def calibration_record(found: NestedCalibration, y: ArrayLike, split_group: ArrayLike) -> dict[str, Any]:
    """For run.json: what was chosen where, and what each kind of map is worth."""
    return {
        "chosen": found.chosen,
        "chosen_by_fold": found.chosen_by_fold,
        "maps": found.summary(y, split_group).to_dict("records"),
    }

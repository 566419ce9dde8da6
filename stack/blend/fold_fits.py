"""Fits the methods of a nested blend without some folds: the task of one worker process.

Apart from `stack/blend/nested.py`, so that a worker starts without the import of scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dermstack.threads import limit_threads
from stack.blend.columns import LeftOutFolds, Weighting
from stack.blend.preselection import informative_runs
from stack.blend.transformed import TransformedRuns
from stack.blend.weights import WITHOUT_TARGETS, Fitted, Settings, WeightFits, score_all
from stack.metrics.scores import Bools, Floats
from stack.predictions.ranks import mid_ranks

if TYPE_CHECKING:
    from stack.blend.stored_fits import StoredFits


@dataclass(frozen=True)
class FitRows:
    """Rows that a blend is fitted to and scored on, checked and transformed."""

    columns: TransformedRuns
    positive: Bools
    fold: NDArray[Any]
    split_group: NDArray[np.intp]


@dataclass(frozen=True)
class Fits:
    """Blends of all methods fitted without some folds."""

    without: LeftOutFolds
    fitted: list[Fitted]
    scores: list[Floats]  # for each method: scores of the rows left out, or of all where no fold is left out
    comparable: list[Floats]  # the same as ranks among all rows
    used_runs: Bools
    kept: int  # how many of the fits were found on disk

    def rows(self, fold: NDArray[Any]) -> Bools:
        """Returns which rows (n,) are scored."""
        return np.isin(fold, list(self.without)) if self.without else np.ones(len(fold), np.bool_)


# Bytes must not depend on n_jobs, with which the number of BLAS threads changes.
@limit_threads(1)
def fit_without(
    without: LeftOutFolds,
    *,
    rows: FitRows,
    methods: tuple[str, ...],
    settings: Settings,
    preselect: bool,
    weighting: Weighting | None,
    stored: StoredFits | None,
) -> Fits:
    """Fits each method without the folds `without` and scores their rows, or all rows where no fold is left out."""
    columns, seen = rows.columns, ~np.isin(rows.fold, list(without))
    positive = rows.positive[seen]
    known, used = stored.read(without, methods, settings) if stored else ({}, None)
    kept = len(known)  # `WeightFits` adds its own to them
    if used is None:
        used = np.ones(columns.runs, np.bool_)
        if preselect:
            ranks = columns.part(rows=seen).matrix(("rank",) * columns.runs, standard=False)
            used = informative_runs(ranks, positive, rows.split_group[seen])
    fits = WeightFits(columns.part(rows=seen, runs=used), positive, settings, known)
    found = []
    for method in methods:
        if method == "optuna" and weighting is not None:
            found.append(Fitted(weighting))
            continue
        is_new = method not in known
        fit = fits.fit(method)
        if stored and is_new and method not in WITHOUT_TARGETS:
            stored.write(without, method, settings, fit, used)
        found.append(fit.spread_over(used))
    scored = ~seen if without else seen
    scores, comparable = [], []
    for method, fit in zip(methods, found, strict=True):
        made = score_all(method, settings.objective, fit, columns, seen)
        on_one_scale = made if settings.objective == "logloss" or not without else mid_ranks(made)
        scores.append(made[scored])
        comparable.append(on_one_scale[scored])
    return Fits(without, found, scores, comparable, used, kept)

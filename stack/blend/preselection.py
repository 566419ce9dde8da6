"""Finds runs that are not shown to be better than chance, so that a blend can leave them out (`blend.preselect`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from stack.blend.columns import weighted_sum
from stack.metrics.intervals import clustered_auc
from stack.metrics.scores import Bools, Floats

_ABOVE_CHANCE = 1.645  # standard errors above 0.5 at which an AUC is shown to be above 0.5 (one-sided 5 %)


def informative_runs(ranks: Floats, y: ArrayLike, split_group: ArrayLike) -> Bools:
    """Returns which runs (runs,) a blend should use, by their `ranks` (n, runs) and the 0/1 targets `y` (n,).

    A run is left out where its AUC is not shown to be above 0.5 and the mean of the other runs' ranks has a higher AUC
    than the mean of all. The standard error is that for rows in `split_group` (n,) (`clustered_auc`). All such runs are
    left out together or none is: many weak runs, none of which is shown to be above 0.5 with few positives, can be
    good together. Inverted runs are left out too. All runs are used where nothing can be tested, with fewer than two
    groups of a class.
    """
    every: Bools = np.ones(ranks.shape[1], np.bool_)
    if ranks.shape[1] == 1:
        return every
    try:
        alone = clustered_auc(y, ranks, split_group)
    except DataError:  # fewer than two groups hold a class
        return every
    shown: Bools = alone.auc - _ABOVE_CHANCE * np.sqrt(np.maximum(np.diag(alone.covariance), 0)) > 0.5
    if shown.all() or not shown.any():
        return every
    means = np.column_stack([_mean(ranks[:, shown]), _mean(ranks)])
    gain, _ = clustered_auc(y, means, split_group).difference(0, 1)
    return shown if gain.value > 0 else every


def _mean(ranks: Floats) -> NDArray[Any]:
    return weighted_sum(ranks, np.full(ranks.shape[1], 1 / ranks.shape[1]))

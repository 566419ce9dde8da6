"""Hill climbing over runs: add, one after the other, the run that helps most."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stack.metrics.curve import Floats
from stack.metrics.scores import scorer

PATIENCE = 20  # steps without a new best after which a climb ends: a share of steps gets finer the longer it climbs
MIN_GAIN = 1e-9  # below it, two scores are the same up to rounding


def hill_climb(
    V: Floats,
    y: ArrayLike,
    *,
    objective: str = "auc",
    replacement: bool = True,
    bags: int = 5,
    steps: int = 200,
    seed: int = 0,
) -> Floats:
    """Weights (runs,) on the simplex, by ensemble selection over the columns of `V` (n, runs) for targets `y` (n,).

    Forward selection from the best run alone, of which the best prefix is kept; ``replacement`` lets a run be added
    again, so that weights are shares of steps, and without it the chosen runs weigh the same (Caruana,
    Niculescu-Mizil, Crew & Ksikes 2004). ``bags`` > 1 adds climbs on random halves of each class's rows and
    averages the weights, which keeps a run that fits by luck from taking all (Bühlmann & Yu 2002; Caruana draws
    halves of hundreds of models, which would leave some bags of a blend of five with noise alone).
    """
    y = np.asarray(y)
    rng = np.random.default_rng(seed)
    weights = _climb(V, y, objective, replacement, steps)
    for _ in range(bags - 1 if V.shape[1] > 1 else 0):
        halves = [
            rng.choice(rows, size=(len(rows) + 1) // 2, replace=False) for rows in map(np.flatnonzero, (y, y == 0))
        ]
        rows = np.sort(np.concatenate(halves))
        weights = weights + _climb(V[rows], y[rows], objective, replacement, steps)
    return weights / bags if V.shape[1] > 1 else weights


def _climb(V: Floats, y: NDArray[Any], objective: str, replacement: bool, steps: int) -> Floats:
    """Shares (runs,) of the best prefix of one climb."""
    columns = [np.ascontiguousarray(column) for column in V.T]
    value_of = scorer(objective, y)
    counts, best_counts = np.zeros(len(columns)), np.zeros(len(columns))
    total, best, since = np.zeros_like(columns[0]), -np.inf, 0
    left = list(range(len(columns)))
    for step in range(1, steps + 1):
        # Of a sum, not of a mean: a curve's value doesn't change with the scale. Log loss needs the mean.
        scale = 1 / step if objective == "logloss" else 1.0
        values = [value_of((total + columns[run]) * scale if scale != 1 else total + columns[run]) for run in left]
        added = left[int(np.argmax(values))]
        total = total + columns[added]
        counts[added] += 1
        if max(values) > best + MIN_GAIN:
            best, best_counts, since = max(values), counts.copy(), 0
        else:
            since += 1
        if not replacement:
            left.remove(added)
        if since == PATIENCE or not left:
            break
    share: Floats = best_counts / best_counts.sum()
    return share

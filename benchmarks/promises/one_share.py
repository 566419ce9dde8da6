"""Simulates the AUC over all sources, each scored by a model fitted without it and moved to one share of positives.

The truth is the AUC of the score that one model for all sources would have. The promise is for sources that differ in
their share of positives only. The note tells how far the value is off on average, without the move too, and where half
of the difference between the sources is explained by what the models see.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from benchmarks.promises.promise import Promise
from stack.metrics.intervals import interval
from stack.metrics.scores import auc
from stack.one_share import log_odds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROWS, EFFECT = 400, 1.2  # rows of each source, one a patient
SHARES = ((0.05, 0.3), (0.02, 0.05, 0.1, 0.2, 0.3))
TRUE = float(norm.cdf(EFFECT / np.sqrt(2)))


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Counts how often the 95 % interval of the AUC over all sources contains the true one."""
    promises = []
    for shares in SHARES:
        rng, held, off = np.random.default_rng([seed, len(shares)]), 0, np.zeros(3)
        source = np.repeat(np.arange(len(shares)), ROWS)
        for _ in range(repetitions):
            x, y = alike(rng, np.array(shares)[source])
            fitted, moved = left_out_scores(x, y, source)
            found = interval("auc", y, moved, np.arange(len(y)))
            held += found.low <= TRUE <= found.high
            x, explained = half_explained(rng, source / source.max() * 2 - 1)
            _, other = left_out_scores(x, explained, source)
            off += [found.value - TRUE, auc(y, fitted) - TRUE, auc(explained, other) - auc(explained, x[:, 0])]
        moved_off, fitted_off, explained_off = off / repetitions
        promises.append(Promise(
            "the 95 % interval of the AUC over all sources, at one share of positives, contains that of the true score",
            f"{len(shares)} sources of {ROWS} patients, {shares[0]:.0%} to {shares[-1]:.0%} positive", 0.95, int(held),
            repetitions, note=f"off by {moved_off:+.3f} on average, not moved by {fitted_off:+.3f}; where half of the "
            f"difference is explained by {explained_off:+.3f}",
        ))  # fmt: skip
    return promises


def alike(rng: np.random.Generator, share: Floats) -> tuple[Floats, Bools]:
    """Draws two columns (n, 2), of which the first tells the target, and targets (n,) of these shares (n,)."""
    y = rng.random(len(share)) < share
    return rng.standard_normal((len(share), 2)) + EFFECT * np.column_stack([y, np.zeros(len(y))]), y


def half_explained(rng: np.random.Generator, place: Floats) -> tuple[Floats, Bools]:
    """Draws the same of sources at a ``place`` (n,) from -1 to 1, which half moves the column and half the risk."""
    x = rng.standard_normal((len(place), 2)) + 0.5 * np.column_stack([place, np.zeros(len(place))])
    return x, rng.random(len(place)) < expit(EFFECT * x[:, 0] - 2.5 + 0.6 * place)


def left_out_scores(x: Floats, y: Bools, source: NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Returns scores (n,) by models that were each fitted without the source that they score, as fitted and moved."""
    logit, share = np.empty(len(y)), np.empty(len(y))
    for number in np.unique(source):
        train, rows = source != number, source == number
        logit[rows] = LogisticRegression().fit(x[train], y[train]).decision_function(x[rows])
        share[rows] = log_odds(y[train])
    return logit, logit - share

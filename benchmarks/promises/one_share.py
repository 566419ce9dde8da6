"""Simulates the AUC over all sources, each scored by a model fitted without it and moved to one share of positives.

The interval is that of these models, for new patients of the same sources. The note tells how far the value is off from
the AUC of the score that one model for all sources would have, with and without the move, and where half of the
difference between the sources is explained by what the models see.
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
from stack.predictions.one_share import log_odds

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
ROWS, NEW, EFFECT = 400, 5_000, 1.2  # rows of each source, one a patient, and new ones
SHARES = ((0.05, 0.3), (0.02, 0.05, 0.1, 0.2, 0.3))
TRUE = float(norm.cdf(EFFECT / np.sqrt(2)))


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Counts how often the 95 % interval of the AUC over all sources contains that among new patients."""
    promises = []
    for shares in SHARES:
        rng, held, true_in, off = np.random.default_rng([seed, len(shares)]), 0, 0, np.zeros(3)
        source, new_source = (np.repeat(np.arange(len(shares)), rows) for rows in (ROWS, NEW))
        for _ in range(repetitions):
            x, y = alike(rng, np.array(shares)[source])
            models = fitted_without(x, y, source)
            as_fitted, moved = scores(models, x, source)
            found = interval("auc", y, moved, np.arange(len(y)))
            new_x, new_y = alike(rng, np.array(shares)[new_source])
            held += found.low <= auc(new_y, scores(models, new_x, new_source)[1]) <= found.high
            true_in += found.low <= TRUE <= found.high
            x, explained = half_explained(rng, source / source.max() * 2 - 1)
            _, other = scores(fitted_without(x, explained, source), x, source)
            off += [found.value - TRUE, auc(y, as_fitted) - TRUE, auc(explained, other) - auc(explained, x[:, 0])]
        moved_off, fitted_off, explained_off = off / repetitions
        promises.append(Promise(
            "the 95 % interval of the AUC over all sources, at one share of positives, contains that of the same "
            "models among new patients",
            f"{len(shares)} sources of {ROWS} patients, {shares[0]:.0%} to {shares[-1]:.0%} positive",
            0.95,
            int(held),
            repetitions,
            note=f"it contains the AUC of one model for all sources in {true_in}, and the value is off from that by "
            f"{moved_off:+.3f} on average, not moved by {fitted_off:+.3f}; where half of the difference is explained, "
            f"by {explained_off:+.3f}",
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


def fitted_without(x: Floats, y: Bools, source: NDArray[np.intp]) -> list[tuple[LogisticRegression, float]]:
    """Returns, for each source, a model fitted on the others and the log odds of their share of positives."""
    others = [source != number for number in np.unique(source)]
    return [(LogisticRegression().fit(x[rows], y[rows]), log_odds(y[rows])) for rows in others]


def scores(
    models: list[tuple[LogisticRegression, float]], x: Floats, source: NDArray[np.intp]
) -> tuple[Floats, Floats]:
    """Returns scores (n,), as fitted and moved, each by the model without the row's source."""
    logit, share = np.empty(len(x)), np.empty(len(x))
    for number, (model, of_share) in enumerate(models):
        rows = source == number
        logit[rows], share[rows] = model.decision_function(x[rows]), of_share
    return logit, logit - share

"""Chooses among blend methods: the one that overfits least stays unless another shows a real gain over it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from stack.metrics.intervals import bootstrap_scores, clustered_auc
from stack.metrics.scores import Floats, score

REFERENCE = "averaged_logistic"  # the method that others must beat
REAL_GAIN = 1.2816  # standard errors below a gain at which its lower confidence bound lies (one-sided 90 %)

_DIGITS = 12  # bounds that agree to so many decimals are equal


def choose_method(
    objective: str,
    y: ArrayLike,
    scores: Mapping[str, ArrayLike],
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> str:
    """Returns the method whose gain in `objective` over the reference has the highest lower confidence bound.

    `scores` holds an array (n,) for each method, simplest first. The reference is that of `reference_of`. Its own gain
    is 0, so that it is chosen where no other gain is shown to be above 0. The standard error of a gain is that of the
    paired difference for rows in split_groups (n,): for "auc" by `clustered_auc`, for other objectives by bootstrap.
    Raises DataError where fewer than two groups hold a class.
    """
    names = list(scores)
    if len(names) == 1:
        return names[0]
    columns = np.column_stack(list(scores.values()))
    reference = reference_of(names)
    if objective == "auc":
        found = clustered_auc(y, columns, split_group)
        return names[highest_bound(found.auc, found.covariance, reference)]
    values = np.array([score(objective, y, s) for s in scores.values()])
    drawn = bootstrap_scores(objective, y, columns, split_group, draws=draws, seed=seed)
    covariance = np.cov(drawn[np.isfinite(drawn).all(axis=1)], rowvar=False, bias=True)
    return names[highest_bound(values, covariance, reference)]


def reference_of(names: Sequence[str]) -> int:
    """Returns the place of the method that others must beat: `REFERENCE` or its first variant, else the first."""
    return next((place for place, name in enumerate(names) if name.rpartition("/")[2] == REFERENCE), 0)


def highest_bound(values: Floats, covariance: Floats, reference: int = 0, errors: float = REAL_GAIN) -> int:
    """Returns the index of the value (methods,) with the highest gain over `reference` less `errors` standard errors.

    Of equal ones, the first. `covariance` (methods, methods) is that of the values.

    Where methods are equally good, a complex one costs what its weights overfit, and a milder bound takes it more
    often; where weights help, a stricter bound misses more of the gain. Of the usual bounds, this is the strictest that
    loses nothing there against the rule of one standard error (`python -m benchmarks.choice design`). To compare each
    method with one reference, not with the one chosen before it, loses less: two real gains need not differ beyond
    noise.
    """
    variances = np.diag(covariance) + covariance[reference, reference] - 2 * covariance[reference]
    bounds = values - values[reference] - errors * np.sqrt(np.maximum(variances, 0.0))
    bounds[reference] = 0.0  # exactly, also where rounding left a variance
    return int(np.argmax(np.round(bounds, _DIGITS)))

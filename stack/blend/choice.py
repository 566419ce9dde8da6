"""Chooses among methods ordered from simple to complex: a more complex one must show a real gain over the simplest."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from stack.metrics.intervals import bootstrap_scores, clustered_auc
from stack.metrics.scores import Floats, score

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
    """Returns the method whose gain in `objective` over the simplest has the highest lower confidence bound.

    `scores` holds an array (n,) for each method, simplest first; its own gain is 0, so that it is chosen where no other
    gain is shown to be above 0. The standard error of a gain is that of the paired difference for rows in split_groups
    (n,): for "auc" by `clustered_auc`, for other objectives by bootstrap. Raises DataError where fewer than two groups
    hold a class.
    """
    names = list(scores)
    if len(names) == 1:
        return names[0]
    columns = np.column_stack(list(scores.values()))
    if objective == "auc":
        found = clustered_auc(y, columns, split_group)
        return names[highest_bound(found.auc, found.covariance)]
    values = np.array([score(objective, y, s) for s in scores.values()])
    drawn = bootstrap_scores(objective, y, columns, split_group, draws=draws, seed=seed)
    covariance = np.cov(drawn[np.isfinite(drawn).all(axis=1)], rowvar=False, bias=True)
    return names[highest_bound(values, covariance)]


def highest_bound(values: Floats, covariance: Floats, errors: float = REAL_GAIN) -> int:
    """Returns the index of the value (methods,) whose gain over the first less `errors` standard errors is highest.

    Of equal ones, the first. `covariance` (methods, methods) is that of the values.

    Where methods are equally good, a complex one costs what its weights overfit, and a milder bound takes it more
    often; where weights help, a stricter bound misses more of the gain. Of the usual bounds, this is the strictest that
    loses nothing there against the rule of one standard error (`python -m benchmarks.choice design`). To compare each
    method with the simplest, not with the one chosen before it, loses less: two real gains need not differ beyond
    noise.
    """
    variances = np.diag(covariance) + covariance[0, 0] - 2 * covariance[0]
    bounds = values - values[0] - errors * np.sqrt(np.maximum(variances, 0.0))
    bounds[0] = 0.0  # exactly, also where rounding left a variance
    return int(np.argmax(np.round(bounds, _DIGITS)))

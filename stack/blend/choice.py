"""Chooses among methods ordered from simple to complex: a more complex one must show a real paired gain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from stack.metrics.intervals import bootstrap_scores, clustered_auc
from stack.metrics.scores import score

FALSE_GAIN = 0.2  # chance, at most, that a more complex method is chosen where all are equal (benchmarks/choice.py)


def choose_method(
    objective: str,
    y: ArrayLike,
    scores: Mapping[str, ArrayLike],
    split_group: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> str:
    """Returns the last of the methods that each show a real gain over the one chosen before; at first, the simplest.

    `scores` holds an array (n,) for each method, simplest first. A gain in `objective` is real if it exceeds
    `required_errors` times its standard error, that of the paired difference for rows in split_groups (n,): for "auc"
    by `clustered_auc`, for other objectives by bootstrap. Raises DataError where fewer than two groups hold a class.
    """
    names = list(scores)
    if len(names) == 1:
        return names[0]
    values = np.array([score(objective, y, s) for s in scores.values()])
    columns = np.column_stack(list(scores.values()))
    if objective == "auc":
        covariance = clustered_auc(y, columns, split_group).covariance
    else:
        drawn = bootstrap_scores(objective, y, columns, split_group, draws=draws, seed=seed)
        covariance = np.cov(drawn[np.isfinite(drawn).all(axis=1)], rowvar=False, bias=True)
    needed, chosen = required_errors(len(names)), 0
    for other in range(1, len(names)):
        variance = covariance[other, other] + covariance[chosen, chosen] - 2 * covariance[other, chosen]
        if values[other] - values[chosen] > needed * np.sqrt(max(variance, 0.0)):
            chosen = other
    return names[chosen]


def required_errors(methods: int) -> float:
    """Returns how many standard errors a gain must have: more for more `methods`, as each is one more chance of noise.

    One-sided, with FALSE_GAIN divided among the comparisons (Bonferroni's inequality): 0.84 for two methods, 1.64 for
    five.

    >>> [round(required_errors(methods), 2) for methods in (2, 3, 5)]
    [0.84, 1.28, 1.64]
    """
    return float(-ndtri(FALSE_GAIN / (methods - 1)))

"""Simulated: few positives, much noise. Tuning looks better than it is, and the honest choice does not fall for it."""

from __future__ import annotations

import numpy as np
import pytest
from joblib import Parallel, delayed
from numpy.typing import NDArray

from stack.blend.nested import blend_nested
from stack.metrics.scores import auc

METHODS = ("rank_mean", "mean", "averaged_logistic", "optuna")  # the default ones, and the one that claims most
STRENGTHS = np.array([1.3, 1.1, 0.9, *np.linspace(0, 0.36, 12)])  # three runs, and twelve at AUC 0.5 to 0.6


def sample(rows: int, positives: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    y = rng.permutation(np.arange(rows) < positives).astype(int)
    return 1 / (1 + np.exp(-np.outer(y, STRENGTHS) - rng.normal(size=(rows, 15)))), y


def one(seed: int) -> tuple[float, float, float]:
    """The chosen blend's AUC on 20,000 new rows less the rank average's; what tuning claims; what nesting says."""
    rng = np.random.default_rng(seed)
    P, y = sample(300, 15, rng)
    fold = np.empty(300, int)
    fold[np.argsort(y, kind="stable")] = np.arange(300) % 5
    found = blend_nested(
        P, y, nets=np.zeros(300, int), fold=fold, split_group=np.arange(300), methods=METHODS, trials=40
    )
    new, target = sample(20_000, 4_000, rng)
    none_in_particular = np.zeros(len(new), int)
    blended = auc(target, found.final.predict_proba(new, nets=none_in_particular)[:, 1])
    average = auc(target, np.argsort(np.argsort(new, axis=0), axis=0).mean(axis=1))
    return blended - average, auc(y, found.tuned["optuna"]), auc(y, found.by_method["optuna"])


@pytest.mark.slow
def test_the_honest_choice_does_not_lose_to_the_rank_average() -> None:
    gains, tuned, nested = np.array(Parallel(n_jobs=2)(delayed(one)(seed) for seed in range(30))).T
    assert gains.mean() > -2 * gains.std() / np.sqrt(30)
    optimism = tuned - nested
    assert optimism.mean() > 4 * optimism.std() / np.sqrt(30), "what tuning claims is more than it keeps"

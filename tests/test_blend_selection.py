"""Hill climbing against a climb written plainly, and what its options promise."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score

from stack.blend.selection import PATIENCE, hill_climb


def world(*strengths: float, rows: int = 300, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.3).astype(int)
    return 1 / (1 + np.exp(-np.outer(y, strengths) - rng.normal(size=(rows, len(strengths))))), y


def plainly(V: NDArray[np.float64], y: NDArray[np.int64], objective: str) -> NDArray[np.float64]:
    """With replacement, scored by scikit-learn on means, until PATIENCE steps bring nothing."""
    chosen: list[int] = []
    best, best_counts, since = -np.inf, np.zeros(V.shape[1]), 0
    while since < PATIENCE:
        score = roc_auc_score if objective == "auc" else lambda y, p: -log_loss(y, p)
        scores = [score(y, V[:, [*chosen, run]].mean(axis=1)) for run in range(V.shape[1])]
        chosen.append(int(np.argmax(scores)))
        if max(scores) > best + 1e-9:
            best, best_counts, since = max(scores), np.bincount(chosen, minlength=V.shape[1]), 0
        else:
            since += 1
    return best_counts / best_counts.sum()


@pytest.mark.parametrize("objective", ["auc", "logloss"])
@pytest.mark.parametrize("seed", range(5))
def test_a_climb_equals_one_written_plainly(objective: str, seed: int) -> None:
    V, y = world(1, 0.8, 0.3, 0, seed=seed)
    np.testing.assert_allclose(hill_climb(V, y, objective=objective, bags=1), plainly(V, y, objective))


def test_a_climb_is_never_worse_than_the_best_run() -> None:
    for seed in range(10):
        V, y = world(0.5, 0.5, 0.5, 0, seed=seed)
        best = max(roc_auc_score(y, column) for column in V.T)
        assert roc_auc_score(y, V @ hill_climb(V, y, bags=1)) >= best


def test_without_replacement_the_chosen_weigh_the_same() -> None:
    V, y = world(1.5, 1.2, 1, 0, 0)
    weights = hill_climb(V, y, replacement=False, bags=1)
    chosen = weights[weights > 0]
    assert len(chosen) > 1
    np.testing.assert_allclose(chosen, 1 / len(chosen))


def test_bags_add_climbs_on_halves_to_the_climb_on_all_rows() -> None:
    V, y = world(1, 1, 1, 0.5, rows=150)
    alone, bagged = hill_climb(V, y, bags=1), hill_climb(V, y, bags=6)
    halves = (6 * bagged - alone) / 5
    assert halves.min() >= -1e-12
    assert halves.sum() == pytest.approx(1)
    assert np.abs(halves - alone).max() > 0.01


def test_the_same_seed_makes_the_same_weights() -> None:
    V, y = world(1, 1, 1, rows=100)
    np.testing.assert_array_equal(hill_climb(V, y), hill_climb(V, y))
    assert (hill_climb(V, y) != hill_climb(V, y, seed=1)).any()

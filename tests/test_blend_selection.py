"""Hill climbing, forward and backward selection against ones written plainly, and what their options promise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import log_loss, roc_auc_score

from stack.blend import selection
from stack.blend.selection import PATIENCE, hill_climb, select_backward, select_forward


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


def equal_weights(V: NDArray[np.float64], y: NDArray[np.int64], chosen: list[int]) -> float:
    return float(roc_auc_score(y, V[:, chosen].mean(axis=1)))


@pytest.mark.parametrize("seed", range(4))
def test_forward_selection_equals_one_written_plainly(seed: int) -> None:
    V, y = world(1, 0.9, 0.4, 0.2, 0, seed=seed)
    chosen: list[int] = []
    found, best = [], -np.inf
    while len(chosen) < 5:
        left = [run for run in range(5) if run not in chosen]
        chosen.append(max(left, key=lambda run: equal_weights(V, y, [*chosen, run])))
        if equal_weights(V, y, chosen) > best + 1e-9:
            found, best = list(chosen), equal_weights(V, y, chosen)
    np.testing.assert_allclose(select_forward(V, y), np.isin(range(5), found) / len(found))


@pytest.mark.parametrize("seed", range(4))
def test_backward_elimination_equals_one_written_plainly(seed: int) -> None:
    V, y = world(1, 0.9, 0.4, 0.2, 0, seed=seed)
    left = list(range(5))
    found, best = list(left), equal_weights(V, y, left)
    while len(left) > 1:
        left.remove(max(left, key=lambda run: equal_weights(V, y, [other for other in left if other != run])))
        if equal_weights(V, y, left) > best + 1e-9:
            found, best = list(left), equal_weights(V, y, left)
    assert 4 not in found or seed
    np.testing.assert_allclose(select_backward(V, y), np.isin(range(5), found) / len(found))


def test_selections_of_equal_runs_keep_the_first_or_all() -> None:
    V, y = world(1)
    assert select_forward(np.tile(V, 3), y).tolist() == [1, 0, 0]
    np.testing.assert_allclose(select_backward(np.tile(V, 3), y), 1 / 3)


def many_rows(rows: int = 8000, runs: int = 12, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Ranks of runs that share factors, as nets trained on the same images do."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.05).astype(int)
    shared = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, runs)) * 0.6
    logits = np.outer(y, rng.uniform(0.3, 1.6, runs)) + shared + rng.normal(size=(rows, runs)) * 0.6
    return (rankdata(logits, axis=0) - 0.5) / rows, y


@pytest.mark.slow
@pytest.mark.parametrize("select", [hill_climb, select_forward, select_backward])
def test_on_many_rows_bins_and_races_select_as_well_as_exact_scores_of_all_runs(
    select: Callable[..., NDArray[np.float64]], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for seed in range(3):
        V, y = many_rows(seed=seed)
        fast = roc_auc_score(y, V @ select(V, y, are_ranks=True))
        with monkeypatch.context() as patched:
            patched.setattr(selection, "LARGE_ROWS", 10**9)
            exact = roc_auc_score(y, V @ select(V, y, are_ranks=True))
        losses.append(exact - fast)
    assert max(np.abs(losses)) < 5e-4
    assert np.mean(losses) < 2e-4


def test_the_auc_of_bins_is_that_of_the_mean_rank_and_ties_stay_ties() -> None:
    V, y = many_rows()
    sums = selection._sums_of(V, y, "auc", True, np.random.default_rng(0))(None)
    assert isinstance(sums, selection._BinnedSums)
    for size, run in enumerate((0, 3, 3, 7), start=1):
        with_one_more = sums.with_one_more(run)
        sums.add(run)
        assert sums.value() == with_one_more
        expected = roc_auc_score(y, V[:, [0, 3, 3, 7][:size]].mean(axis=1))
        assert sums.value() == pytest.approx(expected, abs=3e-5)
    without = sums.without(7)
    sums.remove(7)
    assert sums.value() == without == pytest.approx(roc_auc_score(y, V[:, [0, 3, 3]].mean(axis=1)), abs=3e-5)
    same = selection._sums_of(np.tile(V[:, :1], 5), y, "auc", True, np.random.default_rng(0))(None)
    values = set()
    for run in range(5):
        same.add(run)
        values.add(same.value())
    assert len(values) == 1, "the mean of equal runs orders rows as one of them"


@pytest.mark.parametrize("positives", [1, 2, 30, 512, 513, 1499])
@pytest.mark.parametrize("kinds", [2, 50, 1 << 15])
def test_the_auc_of_bins_counts_every_pair_once_and_ties_half(positives: int, kinds: int) -> None:
    levels, rng = 1 << 15, np.random.default_rng([positives, kinds])
    positive = rng.permutation(1500) < positives
    rounded = (rng.integers(kinds, size=(4, 1500)) * (levels // kinds)).astype(np.float32)
    rounded[:, ~positive] = np.floor(rounded[:, ~positive] * 0.8)
    sums, total = selection._BinnedSums(rounded, positive, levels), np.zeros(1500, np.float32)
    for size, run in enumerate(rng.integers(4, size=20), start=1):
        value = sums.with_one_more(run)
        sums.add(run)
        total += rounded[run]
        bins = (total * np.float32(selection.BINS / (levels * size))).astype(int)
        above = bins[positive][:, None] - bins[~positive]
        won = 2 * np.count_nonzero(above > 0) + np.count_nonzero(above == 0)
        assert value == sums.value() == won / (2 * above.size)


def test_of_a_class_with_very_many_rows_a_selection_uses_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_OF_CLASS", 1000)
    y = (np.arange(6000) % 20 == 0).astype(int)
    kept = selection._at_most(np.arange(6000), y, np.random.default_rng(0))
    assert (y[kept] == 1).sum() == 300
    assert (y[kept] == 0).sum() == 1000
    assert (np.diff(kept) > 0).all()
    V, y = many_rows()
    weights = hill_climb(V, y, are_ranks=True)
    np.testing.assert_array_equal(weights, hill_climb(V, y, are_ranks=True))
    best = max(roc_auc_score(y, column) for column in V.T)
    assert roc_auc_score(y, V @ weights) > best

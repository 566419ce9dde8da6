from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stack.null import auc_equal_size, auc_within
from stack.table import shuffle_targets


def world(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Groups of one to four rows of which the large are positive more often; scores see the size and nothing else."""
    sizes = rng.integers(1, 5, 1500)
    group = np.repeat([f"g{i}" for i in range(1500)], sizes)
    size = np.repeat(sizes, sizes)
    target = np.repeat(rng.random(1500) < 0.05 * sizes, sizes).astype(np.int8)
    return pd.DataFrame({"target": target}), group, size + rng.normal(0, 0.5, len(size))


def test_a_score_that_sees_group_size_beats_pooled_chance_and_not_this(rng: np.random.Generator) -> None:
    from stack.metrics import auc

    frame, group, score = world(rng)
    shuffled = shuffle_targets(frame, group, seed=0)["target"]
    assert auc(shuffled, score) > 0.55
    found = auc_equal_size(shuffled, score, group)
    assert abs(found.value - 0.5) < 3 * found.se


def test_a_score_that_leaks_the_target_shows(rng: np.random.Generator) -> None:
    frame, group, score = world(rng)
    found = auc_equal_size(frame["target"], score + frame["target"], group)
    assert found.low > 0.6


def test_it_counts_pairs_of_equal_size_alone() -> None:
    y, s, group = [1, 0, 1, 0, 0], [0.1, 0.9, 0.8, 0.5, 0.7], ["a", "b", "c", "c", "d"]
    # among the groups of one: row 0 loses to rows 1 and 4; within c: row 2 wins against row 3
    assert auc_equal_size(y, s, group, draws=20).value == pytest.approx(1 / 3)


def test_pairs_within_strata_are_counted_one_by_one(rng: np.random.Generator) -> None:
    y, s, stratum = rng.integers(0, 2, 60), rng.integers(0, 6, 60).astype(float), rng.integers(0, 5, 60)
    pairs = [(s[i] > s[j]) + 0.5 * (s[i] == s[j]) for i in range(60) for j in range(60)
             if y[i] > y[j] and stratum[i] == stratum[j]]  # fmt: skip
    assert auc_within(y, s, stratum) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc_within(y, s, np.arange(60)))

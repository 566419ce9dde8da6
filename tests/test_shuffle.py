from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.errors import DataError
from stack.metrics.shuffle import auc_equal_size, auc_within_strata, shuffle_targets


def simulated_rows(rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Groups of one to four rows of which the large are positive more often; scores see the size and nothing else."""
    sizes = rng.integers(1, 5, 1500)
    group = np.repeat([f"g{i}" for i in range(1500)], sizes)
    size = np.repeat(sizes, sizes)
    target = np.repeat(rng.random(1500) < 0.05 * sizes, sizes).astype(np.int8)
    return pd.DataFrame({"target": target}), group, size + rng.normal(0, 0.5, len(size))


def test_a_score_that_sees_group_size_beats_pooled_chance_and_not_this(rng: np.random.Generator) -> None:
    from stack.metrics.scores import auc

    frame, group, score = simulated_rows(rng)
    shuffled = shuffle_targets(frame, group, seed=0)["target"]
    assert auc(shuffled, score) > 0.55
    found = auc_equal_size(shuffled, score, group)
    assert abs(found.value - 0.5) < 3 * found.se


def test_a_score_that_leaks_the_target_shows(rng: np.random.Generator) -> None:
    frame, group, score = simulated_rows(rng)
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
    assert auc_within_strata(y, s, stratum) == pytest.approx(np.mean(pairs))
    assert np.isnan(auc_within_strata(y, s, np.arange(60)))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1)), min_size=1, max_size=60), st.integers(0, 5))
def test_shuffled_targets_of_a_group_stay_together_and_only_go_to_groups_of_equal_size(
    rows: list[tuple[int, int]], seed: int
) -> None:
    groups = np.array([f"g{group}" for group, _ in rows])
    train = pd.DataFrame({"id": [f"i{i}" for i in range(len(rows))], "target": np.array([y for _, y in rows], np.int8)})
    before = train.copy()
    after = shuffle_targets(train, groups, seed=seed)
    pd.testing.assert_frame_equal(train, before)
    pd.testing.assert_series_equal(after["id"], before["id"])
    assert after["target"].dtype == np.int8

    def vectors(target: pd.Series) -> list[tuple[int, int]]:
        by_group = target.groupby(groups)
        return sorted(zip(by_group.size(), by_group.sum(), strict=True))

    assert vectors(after["target"]) == vectors(before["target"])


def test_shuffled_targets_lie_in_any_order_within_a_group() -> None:
    """A group of a unique size keeps its targets: sorted as they lie, each row would keep its own."""
    train = pd.DataFrame({"target": np.repeat([1, 0], [30, 90])})
    kept = [(shuffle_targets(train, np.zeros(120), seed=s)["target"] == train["target"]).mean() for s in range(40)]
    assert abs(np.mean(kept) - (0.25**2 + 0.75**2)) < 0.02


def test_shuffling_breaks_the_link_between_a_group_and_its_target() -> None:
    groups = np.repeat([f"g{i}" for i in range(400)], 3)
    target = np.repeat(np.arange(400) % 2, 3).astype(np.int8)
    train = pd.DataFrame({"target": target})
    agreement = [(shuffle_targets(train, groups, seed=s)["target"] == target).mean() for s in range(40)]
    assert abs(np.mean(agreement) - 0.5) < 5 * 0.5 / np.sqrt(400 * 40)
    again = shuffle_targets(train, groups, seed=1)
    pd.testing.assert_frame_equal(again, shuffle_targets(train, groups, seed=1))
    assert not again.equals(shuffle_targets(train, groups, seed=2))


def test_shuffle_wants_one_split_group_a_row() -> None:
    with pytest.raises(DataError, match="2 split_groups for 3 rows"):
        shuffle_targets(pd.DataFrame({"target": [0, 1, 0]}), ["a", "b"], seed=0)


def test_a_shuffled_diagnosis_goes_with_its_target() -> None:
    """Left behind, it would tell a model with `target: diagnosis` what the target was."""
    target = np.tile([0, 1, 0], 40)
    train = pd.DataFrame({"target": target, "diagnosis": np.where(target == 1, "melanoma", "nevus")})
    shuffled = shuffle_targets(train, np.arange(120).astype(str), seed=0)
    assert (shuffled["target"] != train["target"]).any()
    assert (shuffled["diagnosis"] == np.where(shuffled["target"] == 1, "melanoma", "nevus")).all()

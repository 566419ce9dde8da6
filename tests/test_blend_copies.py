"""Near copies among runs: found by rank correlation, without targets, and what leaving them out would change."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from stack.blend.copies import NEAR_COPY, change_without_copies, copies_record, near_copies
from stack.blend.nested import BlendRows, NestedSettings, blend_nested
from stack.metrics.scores import auc

N = 600


def two_kinds_of_runs(seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Runs 0, 2 and 4 are one net with little noise, 1 and 3 are two others."""
    rng = np.random.default_rng(seed)
    y = (rng.random(N) < 0.3).astype(int)
    one, two, three = (1.2 * y + rng.normal(size=N) for _ in range(3))
    logits = [one, two, one + 0.05 * rng.normal(size=N), three, 2 * one - 1 + 0.1 * rng.normal(size=N)]
    return 1 / (1 + np.exp(-np.stack(logits, axis=1))), y


def test_correlations_are_spearmans_and_groups_are_of_near_copies_only() -> None:
    P, _ = two_kinds_of_runs()
    found = near_copies(P, np.full(N, -1))
    np.testing.assert_allclose(found.correlation, spearmanr(P).statistic, atol=1e-8)
    assert found.groups == ((0, 2, 4),)
    assert found.kept == (0,), "the one that the others were made of is most like them"
    assert found.use().tolist() == [True, True, False, True, False]


def test_a_chain_of_small_differences_joins_no_runs_that_differ() -> None:
    rng = np.random.default_rng(0)
    steps = np.cumsum(np.column_stack([rng.normal(size=N), 0.14 * rng.normal(size=(N, 5))]), axis=1)
    found = near_copies(steps, np.full(N, -1))
    assert found.groups
    for group in found.groups:
        assert spearmanr(steps[:, group]).statistic.min() >= NEAR_COPY - 1e-9
    assert len(found.groups[0]) < 6


def test_other_runs_constant_runs_and_one_run_are_no_copies() -> None:
    P, _ = two_kinds_of_runs()
    for runs in (P[:, [0, 1, 3]], P[:, [0]], np.column_stack([P[:, 0], np.full((N, 2), 0.5)])):
        assert near_copies(runs, np.full(N, -1)).groups == ()


@pytest.mark.parametrize("method", ["rank_mean", "logistic"])
def test_the_change_is_that_of_a_nested_blend_of_the_runs_that_are_left(method: str) -> None:
    P, y = two_kinds_of_runs()
    fold, group = np.arange(N) % 4, np.arange(N)
    given = {"nets": fold, "fold": fold, "split_group": group}
    nested, copies = blend_nested(P, y, **given, methods=[method]), near_copies(P, fold, group)
    change = change_without_copies(copies, nested, BlendRows(P, y, **given), NestedSettings())
    left = blend_nested(P[:, [0, 1, 3]], y, **given, methods=[method])
    assert change.value == pytest.approx(auc(y, left.score) - auc(y, nested.score), abs=1e-12)
    assert change.low < change.value < change.high
    assert (change.value > 0.005) == (method == "rank_mean"), "a mean counts the same net three times"
    record = copies_record(copies, ["a", "b", "c", "d", "e"], method, change)
    assert record["groups"][0]["runs"] == ["a", "c", "e"]
    assert record["groups"][0]["kept"] == "a"
    assert record["change"]["value"] == change.value

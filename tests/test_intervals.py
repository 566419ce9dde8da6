"""Intervals against a bootstrap that repeats rows, and against the spread over new samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from test_scores import ORACLES

from dermstack.errors import ConfigError, DataError
from stack.metrics import intervals
from stack.metrics.intervals import Interval, bootstrap_scores, interval, paired_difference
from stack.metrics.scores import OBJECTIVES, auc


def simulated_rows(
    *, rows: int = 300, groups: int = 60, steps: int = 20, seed: int = 0
) -> tuple[NDArray[np.int64], ...]:
    """Targets, tied scores in [0, 1] and groups of unequal size, in no order."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.15).astype(int)
    s = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1) * steps) / steps
    return y, s, (rng.random(rows) ** 2 * groups).astype(int)


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [4, 10_000])
def test_the_bootstrap_equals_repeating_the_rows_of_drawn_groups(objective: str, steps: int) -> None:
    y, s, group = simulated_rows(steps=steps)
    other = s[::-1]
    fast = bootstrap_scores(objective, y, np.column_stack([s, other]), group, draws=30, seed=5)
    codes = np.unique(group, return_inverse=True)[1]
    drawn = intervals._drawn_groups(y == 1, codes, np.random.default_rng(5))
    for values, times in zip(fast, drawn, strict=False):
        rows = np.repeat(np.arange(len(y)), times[codes].astype(int))
        assert values[0] == pytest.approx(ORACLES[objective](y[rows], s[rows]), abs=1e-12)
        assert values[1] == pytest.approx(ORACLES[objective](y[rows], other[rows]), abs=1e-12)


def test_groups_with_and_without_positives_are_drawn_apart() -> None:
    y, _, group = simulated_rows()
    codes = np.unique(group, return_inverse=True)[1]
    held = np.bincount(codes, y) > 0
    drawn = intervals._drawn_groups(y == 1, codes, np.random.default_rng(0))
    for _, times in zip(range(20), drawn, strict=False):
        assert times[held].sum() == held.sum()
        assert times[~held].sum() == (~held).sum()


def test_draws_do_not_hang_on_how_many_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    y, s, group = simulated_rows()
    at_once = bootstrap_scores("auc", y, s, group, draws=50)
    monkeypatch.setattr(intervals, "_CHUNK_BYTES", 1)
    np.testing.assert_array_equal(bootstrap_scores("auc", y, s, group, draws=50), at_once)
    monkeypatch.setattr(intervals, "_KEPT_BYTES", 0)  # the draws are made again each time
    np.testing.assert_array_equal(bootstrap_scores("auc", y, s, group, draws=50), at_once)


@pytest.mark.parametrize("positives", [2, 17, 60])
def test_many_draws_in_one_call_are_those_of_a_call_for_each(positives: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few groups are drawn many times in one call of the generator, many groups once: the numbers are the same."""
    groups = np.arange(60)
    seen = []
    for at_once in (0, 500):  # eight draws a call, and the last call not used up
        monkeypatch.setattr(intervals, "_DRAWN_AT_ONCE", at_once)
        drawn = intervals._drawn_groups(groups < positives, groups, np.random.default_rng(7))
        seen.append(np.stack([next(drawn) for _ in range(30)]))
    np.testing.assert_array_equal(*seen)
    assert (seen[0][:, :positives].sum(axis=1) == positives).all()


def test_draws_do_not_hang_on_the_order_of_rows(rng: np.random.Generator) -> None:
    y, s, group = simulated_rows()
    mixed = rng.permutation(len(y))
    names = np.array([f"patient {g}" for g in range(group.max() + 1)])[group]
    assert interval("ap", y, s, names) == interval("ap", y[mixed], s[mixed], pd.Series(names[mixed]))


def test_copies_of_a_row_in_its_group_do_not_narrow_the_interval() -> None:
    y, s, group = simulated_rows()
    once = interval("auc", y, s, group)
    twice = interval("auc", np.tile(y, 2), np.tile(s, 2), np.tile(group, 2))
    assert (once.value, once.se) == pytest.approx((twice.value, twice.se))
    assert interval("auc", np.tile(y, 2), np.tile(s, 2), np.arange(2 * len(y))).se < 0.8 * once.se


def test_the_standard_error_is_the_spread_over_new_samples() -> None:
    def sample(seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(150), 4)
        y = np.repeat(rng.random(150) < 0.2, 4).astype(int)
        return y, y + rng.normal(size=150)[patient] + rng.normal(size=600), patient

    values = [auc(*sample(seed)[:2]) for seed in range(400)]
    errors = [interval("auc", *sample(seed), draws=200).se for seed in range(20)]
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.15)


def test_an_interval_prints_as_value_and_bounds() -> None:
    assert str(Interval(0.9124, 0.9031, 0.92149, 0.005)) == "0.912 [0.903, 0.921]"


def test_an_interval_is_the_middle_of_its_draws() -> None:
    y, s, group = simulated_rows()
    drawn = bootstrap_scores("auc", y, s, group, draws=500, seed=3)[:, 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert interval("auc", y, s, group, draws=500, seed=3) == Interval(auc(y, s), low, high, drawn.std())
    assert low < auc(y, s) < high


def test_a_paired_difference_shares_its_draws(rng: np.random.Generator) -> None:
    y, a, group = simulated_rows(steps=10_000)
    b = a + rng.normal(0, 0.02, len(y))
    paired = paired_difference("auc", y, a, b, group)
    assert paired.value == pytest.approx(auc(y, a) - auc(y, b), abs=1e-15)
    assert paired.se < 0.5 * interval("auc", y, a, group).se
    assert paired_difference("auc", y, a, a, group) == Interval(0, 0, 0, 0)
    mirrored = paired_difference("auc", y, b, a, group)
    assert (mirrored.low, mirrored.high) == pytest.approx((-paired.high, -paired.low))


def test_intervals_without_enough_groups_are_refused() -> None:
    y, s = [1, 1, 0, 0, 0], [0.5, 0.6, 0.1, 0.7, 0.2]
    with pytest.raises(DataError, match="1 of 3 split_groups hold positives"):
        interval("auc", y, s, ["a", "a", "b", "b", "c"])
    with pytest.raises(DataError, match=r"1 of 5 split_groups are missing \(row 2"):
        interval("auc", y, s, ["a", "b", None, "c", "d"])


def test_a_draw_without_negatives_is_nan_and_leaves_the_interval() -> None:
    y, s, group = [1, 1, 0, 1, 1], [0.1, 0.8, 0.5, 0.6, 0.7], ["a", "b", "b", "c", "c"]
    for objective in OBJECTIVES[:3]:
        drawn = bootstrap_scores(objective, y, s, group, draws=200)
        assert 0 < np.isnan(drawn).mean() < 0.5
        assert np.isfinite([interval(objective, y, s, group).low, interval(objective, y, s, group).se]).all()


@pytest.mark.parametrize("draws", [0, 1, -3, 2.5, None])
def test_a_number_of_draws_that_gives_no_interval_is_refused(draws: Any) -> None:
    y, s = np.arange(40) % 2, np.random.default_rng(0).random(40)
    for call in (
        lambda: interval("auc", y, s, np.arange(40), draws=draws),
        lambda: paired_difference("auc", y, s, s, np.arange(40), draws=draws),
    ):
        with pytest.raises(ConfigError, match=rf"draws={draws!r}: give a whole number of at least 2"):
            call()


def test_scores_of_another_length_are_refused_in_a_difference() -> None:
    y, s = np.arange(40) % 2, np.random.default_rng(0).random(40)
    for a, b in ((s, s[1:]), (s[1:], s), (s[1:], s[1:])):
        with pytest.raises(DataError, match=r"scores have shape \(39,\), targets \(40,\)"):
            paired_difference("auc", y, a, b, np.arange(40))

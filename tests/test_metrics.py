"""Metrics against scikit-learn, intervals against a bootstrap that repeats rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from stack import metrics
from stack.errors import ConfigError, DataError
from stack.metrics import (
    OBJECTIVES,
    Interval,
    accuracy,
    auc,
    auc_by_fold,
    average_precision,
    bootstrap_scores,
    brier,
    interval,
    log_loss,
    paired_difference,
    pauc80,
    score,
)


def isic_2024(y: NDArray[np.int64], s: NDArray[np.float64]) -> float:
    """The metric as published with the competition, at a true positive rate above 80 %."""
    max_fpr = 1 - 0.8
    scaled = sk.roc_auc_score(np.abs(y - 1), -1.0 * s, max_fpr=max_fpr)
    return 0.5 * max_fpr**2 + (max_fpr - 0.5 * max_fpr**2) / (1.0 - 0.5) * (scaled - 0.5)


ORACLES: dict[str, Callable[..., float]] = {
    "auc": sk.roc_auc_score,
    "pauc80": isic_2024,
    "ap": sk.average_precision_score,
    "logloss": lambda y, s: -sk.log_loss(y, s, labels=[0, 1]),
}


@st.composite
def targets_and_scores(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Both classes, and scores in [0, 1] on a grid coarse enough to tie."""
    steps = draw(st.sampled_from([1, 3, 10, 1000]))
    rows = draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, steps)), min_size=2, max_size=40))
    y, s = np.array(rows).T
    y[:2] = [0, 1]
    return y, s / steps


def world(*, rows: int = 300, groups: int = 60, steps: int = 20, seed: int = 0) -> tuple[NDArray[np.int64], ...]:
    """Targets, tied scores in [0, 1] and groups of unequal size, in no order."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.15).astype(int)
    s = np.round(np.clip(rng.normal(0.4 + 0.2 * y, 0.2), 0, 1) * steps) / steps
    return y, s, (rng.random(rows) ** 2 * groups).astype(int)


@pytest.mark.parametrize("objective", OBJECTIVES)
@given(rows=targets_and_scores())
@settings(deadline=None, max_examples=150)
def test_objectives_equal_scikit_learn_on_tied_scores(objective: str, rows: tuple[NDArray, NDArray]) -> None:
    assert score(objective, *rows) == pytest.approx(ORACLES[objective](*rows), abs=1e-12)


def test_auc_is_exact_on_a_tie_across_the_classes() -> None:
    assert auc([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9]) == 3.5 / 4
    assert auc([0, 1, 1], [7, 7, 7]) == 0.5


def test_pauc80_spans_zero_to_a_fifth() -> None:
    assert pauc80([0, 0, 1, 1], [1, 2, 3, 4]) == pytest.approx(0.2, abs=1e-15)
    assert pauc80([0, 0, 1, 1], [4, 3, 2, 1]) == 0
    assert pauc80([0, 1], [5, 5]) == pytest.approx(0.02)  # the triangle that chance leaves


def test_proper_scores_and_accuracy_equal_scikit_learn(rng: np.random.Generator) -> None:
    y, p = rng.integers(0, 2, 200), rng.random(200)
    assert brier(y, p) == pytest.approx(sk.brier_score_loss(y, p))
    assert log_loss(y, p) == pytest.approx(sk.log_loss(y, p))
    assert average_precision(y, p) == pytest.approx(sk.average_precision_score(y, p))
    assert accuracy(y, p, threshold=0.3) == sk.accuracy_score(y, p >= 0.3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_better_score_is_the_higher_one(objective: str) -> None:
    y = [0, 0, 0, 1, 1]
    assert score(objective, y, [0.1, 0.2, 0.3, 0.8, 0.9]) > score(objective, y, [0.9, 0.8, 0.7, 0.2, 0.1])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_targets_and_scores_of_any_number_type_are_taken(dtype: type) -> None:
    y = np.array([0, 1, 0, 1])
    assert auc(y.astype(dtype), np.float32([0.1, 0.4, 0.3, 0.9])) == 1
    assert auc(pd.Series(y.astype(dtype)), pd.Series([1, 4, 3, 9])) == 1


@pytest.mark.parametrize(
    ("y", "s", "names"),
    [
        ([0, 1, 1], [0.1, np.nan, 0.2], "1 of 3 scores are NaN .row 1"),
        ([1, 1], [0.1, 0.2], "single class: all 2 rows are positive"),
        ([0, 0], [0.1, 0.2], "single class: all 2 rows are negative"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "1 of 3 targets are not 0 or 1 .row 2: 2"),
        ([0, np.nan], [0.1, 0.2], "row 1: nan"),
        ([0, 1], [0.1, 0.2, 0.3], "scores have shape .3,., targets .2,."),
        ([], [], "shape .0,."),
    ],
)
def test_what_cannot_be_scored_is_refused_by_name(y: list[float], s: list[float], names: str) -> None:
    with pytest.raises(DataError, match=names):
        auc(y, s)


def test_unknown_objectives_and_improbable_probabilities_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="unknown objective 'f1': choose one of auc"):
        score("f1", [0, 1], [0, 1])
    for metric in (log_loss, brier):
        with pytest.raises(DataError, match=r"1 of 2 scores are no probabilities \(row 1: 1\.5\)"):
            metric([0, 1], [0.5, 1.5])


def test_a_fold_of_a_single_class_has_nan_on_the_record() -> None:
    y, s, fold = [0, 1, 0, 1, 0, 0], [0.1, 0.2, 0.9, 0.3, 0.5, 0.6], [0, 0, 1, 1, 4, 4]
    values = auc_by_fold(y, s, fold)
    assert values.index.tolist() == [0, 1, 4]
    assert values.tolist()[:2] == [1, 0]
    assert np.isnan(values[4])


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("steps", [4, 10_000])
def test_the_bootstrap_equals_repeating_the_rows_of_drawn_groups(objective: str, steps: int) -> None:
    y, s, group = world(steps=steps)
    other = s[::-1]
    fast = bootstrap_scores(objective, y, np.column_stack([s, other]), group, draws=30, seed=5)
    codes = np.unique(group, return_inverse=True)[1]
    drawn = metrics._drawn_groups(y == 1, codes, np.random.default_rng(5))
    for values, times in zip(fast, drawn, strict=False):
        rows = np.repeat(np.arange(len(y)), times[codes].astype(int))
        assert values[0] == pytest.approx(ORACLES[objective](y[rows], s[rows]), abs=1e-12)
        assert values[1] == pytest.approx(ORACLES[objective](y[rows], other[rows]), abs=1e-12)


def test_groups_with_and_without_positives_are_drawn_apart() -> None:
    y, _, group = world()
    codes = np.unique(group, return_inverse=True)[1]
    held = np.bincount(codes, y) > 0
    drawn = metrics._drawn_groups(y == 1, codes, np.random.default_rng(0))
    for _, times in zip(range(20), drawn, strict=False):
        assert times[held].sum() == held.sum()
        assert times[~held].sum() == (~held).sum()


def test_draws_do_not_hang_on_how_many_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    y, s, group = world()
    at_once = bootstrap_scores("auc", y, s, group, draws=50)
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 1)
    np.testing.assert_array_equal(bootstrap_scores("auc", y, s, group, draws=50), at_once)


def test_draws_do_not_hang_on_the_order_of_rows(rng: np.random.Generator) -> None:
    y, s, group = world()
    mixed = rng.permutation(len(y))
    names = np.array([f"patient {g}" for g in range(group.max() + 1)])[group]
    assert interval("ap", y, s, names) == interval("ap", y[mixed], s[mixed], pd.Series(names[mixed]))


def test_copies_of_a_row_in_its_group_do_not_narrow_the_interval() -> None:
    y, s, group = world()
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
    y, s, group = world()
    drawn = bootstrap_scores("auc", y, s, group, draws=500, seed=3)[:, 0]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert interval("auc", y, s, group, draws=500, seed=3) == Interval(auc(y, s), low, high, drawn.std())
    assert low < auc(y, s) < high


def test_a_paired_difference_shares_its_draws(rng: np.random.Generator) -> None:
    y, a, group = world(steps=10_000)
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

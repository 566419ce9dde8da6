from __future__ import annotations

import random
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dermstack.errors import TabularError
from tabular.relative import LARGEST, STATISTICS, cross_groups, ratio_to_mean, relative_features


def by_a_loop(group: list[str], values: list[float]) -> np.ndarray:
    """Computes all statistics one row at a time, with means of exact fractions."""
    rows = []
    for own, value in zip(group, values, strict=True):
        known = [other for mine, other in zip(group, values, strict=True) if mine == own and not np.isnan(other)]
        spread = float(np.std(known)) if len(set(known)) > 1 else 0.0
        if np.isnan(value):
            rows.append([np.nan] * 5 + [spread if known else np.nan])
            continue
        mean = sum(map(Fraction, known)) / len(known)
        ratio = float(Fraction(value) / mean) if mean else (1.0 if value == 0 else np.nan)
        rank = (rankdata(known)[known.index(value)] - 1) / (len(known) - 1) if len(known) > 1 else 0.5
        z = float(Fraction(value) - mean) / spread if spread else 0.0
        rows.append([value - np.median(known), float(Fraction(value) - mean), ratio, z, rank, spread])
    return np.array(rows)


# A coarse grid makes ties, constant groups and means of zero common; eighths have exact sums. NaN is a missing value.
# Negative zero equals zero and has other bits.
special = st.sampled_from([np.nan, -0.0])
numbers = st.one_of(st.integers(-3, 3).map(float), st.integers(-80_000, 80_000).map(lambda k: k / 8), special)
rows = st.lists(st.tuples(st.sampled_from("abcd"), numbers, numbers), min_size=1, max_size=20)


@settings(max_examples=100)
@given(rows)
@example([("a", -1.0, 0.0), ("a", 1.0, 0.0), ("a", 0.0, 0.0)])
def test_each_statistic_equals_a_loop_over_rows(rows: list[tuple[str, float, float]]) -> None:
    group, values = [row[0] for row in rows], np.array([row[1:] for row in rows])
    found = relative_features(group, values, ["size", "colour"])
    assert found.columns.tolist() == [f"{name}_group_{word}" for name in ("size", "colour") for word in STATISTICS]
    assert (found.dtypes == np.float32).all()
    expected = np.column_stack([by_a_loop(group, column.tolist()) for column in values.T])
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_bit(rows: list[tuple[str, float, float]], chance: random.Random) -> None:
    order = list(range(len(rows)))
    chance.shuffle(order)
    frame = pd.DataFrame(rows, columns=["group", "size", "colour"])
    found, shuffled = (
        relative_features(table["group"], table[["size", "colour"]], ["size", "colour"])
        for table in (frame, frame.iloc[order])
    )
    assert shuffled.index.tolist() == order
    assert found.iloc[order].to_numpy().tobytes() == shuffled.to_numpy().tobytes()


def test_a_group_alone_has_the_same_bits_as_beside_others(rng: np.random.Generator) -> None:
    group = pd.Series(rng.integers(0, 40, 3000))
    values = rng.normal(-4, 2, (3000, 3)) * [1, 1e-9, 1e20]
    values[rng.random(values.shape) < 0.1] = np.nan
    together = relative_features(group, values, ["a", "b", "c"])
    for name in range(40):
        alone = relative_features(group[group == name], values[group == name], ["a", "b", "c"])
        assert alone.to_numpy().tobytes() == together[group == name].to_numpy().tobytes()


def test_other_groups_change_nothing(rng: np.random.Generator) -> None:
    group, values = np.array(["a", "b"] * 30), rng.normal(size=(60, 1))
    before = relative_features(group, values, ["x"])
    values[1::2] = 7e9
    pd.testing.assert_frame_equal(relative_features(group, values, ["x"])[::2], before[::2], check_exact=True)


@pytest.mark.parametrize("value", [0.0, -0.0, 4.2, -1e30, 1e-300, LARGEST])
def test_a_group_of_one_and_equal_values_are_neutral(value: float) -> None:
    for size in (1, 2, 3, 1000):
        found = relative_features(["x"] * size, np.full((size, 1), value), ["a"])
        assert (found == [0, 0, 1, 0, 0.5, 0]).all(axis=None)


def test_a_missing_value_is_ignored_by_the_others_and_has_no_relations_itself() -> None:
    group, values = ["a", "a", "a", "b"], np.array([[1.0], [np.nan], [3.0], [np.nan]])
    found = relative_features(group, values, ["x"])
    without = relative_features(["a", "a"], [[1.0], [3.0]], ["x"])
    np.testing.assert_array_equal(found.iloc[[0, 2]], without)
    np.testing.assert_array_equal(found.iloc[1], [np.nan] * 5 + [1.0])
    assert found.iloc[3].isna().all()


@settings(max_examples=100)
@given(st.lists(st.floats(-LARGEST, LARGEST), min_size=1, max_size=6))
@example([LARGEST, -LARGEST])
@example([5e-324, 1e-323])
@example([0.1, 0.2, -0.3])
def test_values_of_any_size_give_no_infinity(values: list[float]) -> None:
    found = relative_features(["a"] * len(values), np.array(values)[:, None], ["x"])
    assert not np.isinf(found.to_numpy()).any()
    assert found.drop(columns="x_group_mean_ratio").notna().all(axis=None)
    std = found["x_group_z"].to_numpy(np.float64).std()
    assert std == pytest.approx(1 if max(values) > min(values) else 0, abs=1e-5)


def test_a_mean_that_rounding_leaves_near_zero_counts_as_zero() -> None:
    found = relative_features(["a"] * 4, [[-1.8], [0.5], [0.6], [0.7]], ["x"], statistics=["mean_ratio"])
    assert found.isna().all(axis=None)


def test_statistics_are_chosen_and_come_in_the_order_asked_for(rng: np.random.Generator) -> None:
    group, values = rng.integers(0, 5, 50), rng.normal(size=(50, 2))
    every = relative_features(group, values, ["a", "b"])
    for chosen in (["rank"], ["spread", "median_diff"], ["z"], ["spread"]):
        found = relative_features(group, values, ["a", "b"], statistics=chosen)
        assert found.columns.tolist() == [f"{name}_group_{statistic}" for name in "ab" for statistic in chosen]
        pd.testing.assert_frame_equal(found, every[found.columns], check_exact=True)


def test_rows_of_the_same_site_are_those_of_one_patient_only() -> None:
    group = pd.Series(["a", "a", "a", "b", "b"], index=[5, 3, 8, 1, 2])
    site = pd.Series(["arm", "arm", "leg", "arm", None], index=group.index)
    pairs = cross_groups(group, site)
    assert pairs.index.tolist() == [5, 3, 8, 1, 2]
    found = relative_features(pairs, [[1.0], [3.0], [9.0], [5.0], [6.0]], ["x"], word="group_site")
    assert found["x_group_site_mean_diff"].tolist() == [-1, 1, 0, 0, 0]
    assert found.index.tolist() == [5, 3, 8, 1, 2]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["arm", "leg", None])), max_size=12))
def test_pairs_are_the_same_where_group_and_category_are(pairs: list[tuple[str, str | None]]) -> None:
    group, site = pd.Series([p[0] for p in pairs], dtype="str"), pd.Series([p[1] for p in pairs], dtype="str")
    codes = cross_groups(group, site)
    for i, one in enumerate(pairs):
        for j, other in enumerate(pairs):
            assert (codes[i] == codes[j]) == (one == other)


def test_the_ratio_of_probabilities_is_that_to_the_patients_mean() -> None:
    found = ratio_to_mean(["a", "a", "b", "c"], [[0.1, 0], [0.3, 0], [0.5, 1], [0, np.nan]], ["cnn", "other"])
    assert found.columns.tolist() == ["cnn_group_p_ratio", "other_group_p_ratio"]
    np.testing.assert_allclose(found["cnn_group_p_ratio"], [0.5, 1.5, 1, 1], rtol=1e-6)
    np.testing.assert_array_equal(found["other_group_p_ratio"], [1, 1, 1, np.nan])
    with pytest.raises(TabularError, match=r"1 probabilities are outside 0..1, first -2.5 in row 1"):
        ratio_to_mean(["a", "a"], [[0.5], [-2.5]], ["cnn"])


def test_the_columns_of_a_real_table_equal_pandas(shared_data: Path) -> None:
    table = pd.read_csv(shared_data / "isic2024" / "train.csv")
    names = [name for name in table.columns if name.startswith("tbp_lv_") and table[name].dtype == np.float64]
    found = relative_features(table["patient_id"], table[names], names)
    groups = table.groupby("patient_id")[names]
    mean, std = groups.transform("mean"), groups.transform("std", ddof=0).fillna(0)
    expected = {
        "median_diff": table[names] - groups.transform("median"),
        "mean_diff": table[names] - mean,
        "mean_ratio": table[names] / mean,
        "z": ((table[names] - mean) / std).where(std > 1e-9),
        "rank": ((groups.rank() - 1) / (groups.transform("count") - 1)).fillna(0.5),
        "spread": std,
    }
    assert len(names) > 30
    for statistic in STATISTICS:
        ours = found[[f"{name}_group_{statistic}" for name in names]].to_numpy()
        oracle = expected[statistic].to_numpy()
        np.testing.assert_allclose(ours[~np.isnan(oracle)], oracle[~np.isnan(oracle)], rtol=1e-4, atol=1e-5)


def test_no_rows_and_no_columns_give_none() -> None:
    assert relative_features([], np.empty((0, 2)), ["a", "b"]).shape == (0, 12)
    assert relative_features(["a", "b"], np.empty((2, 0)), []).shape == (2, 0)
    assert ratio_to_mean([], np.empty((0, 1)), ["cnn"]).shape == (0, 1)
    assert relative_features(["a"], [[np.nan]], ["a"]).isna().all(axis=None)


def test_errors_name_the_column_and_the_rows() -> None:
    with pytest.raises(TabularError, match="1 rows have no group"):
        relative_features(["a", None], np.zeros((2, 1)), ["x"])
    with pytest.raises(TabularError, match=r"column 'y' is infinite or beyond 1e\+38 in 1 rows, first row 1"):
        relative_features(["a", "b"], [[1, 2], [3, np.inf]], ["x", "y"])
    with pytest.raises(TabularError, match=r"shape \(2, 1\) for 2 rows and 2 columns \(x, y\)"):
        relative_features(["a", "b"], np.zeros((2, 1)), ["x", "y"])
    swapped = pd.DataFrame({"y": [1.0], "x": [2.0]})
    with pytest.raises(TabularError, match="a table with columns 'y', 'x' for the names 'x', 'y'"):
        relative_features(["a"], swapped, ["x", "y"])
    with pytest.raises(TabularError, match="column 'x' is not numeric"):
        relative_features(["a"], pd.DataFrame({"x": ["1.5"]}), ["x"])
    with pytest.raises(TabularError, match="column 'x' is named twice"):
        relative_features(["a"], np.zeros((1, 2)), ["x", "x"])
    with pytest.raises(TabularError, match="statistics 'mode': choose each once, among median_diff, mean_diff"):
        relative_features(["a"], np.zeros((1, 1)), ["x"], statistics=["mode"])
    with pytest.raises(TabularError, match="2 categories for 1 rows"):
        cross_groups(["a"], ["arm", "leg"])

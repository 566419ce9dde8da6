from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from dermstack.errors import TabularError
from tabular import outliers
from tabular.outliers import GroupOutliers

NAMES = ["table_group_nearest", "table_group_neighbours", "table_group_outlier"]


def table_of(rng: np.random.Generator, rows: int, columns: int = 5) -> pd.DataFrame:
    scale = 10.0 ** rng.integers(-3, 4, columns)
    values = rng.normal(3, 1, (rows, columns)) * scale
    return pd.DataFrame(values, columns=[f"c{number}" for number in range(columns)])


def of_group_by_scikit_learn(values: np.ndarray, k: int, share: float = 1) -> np.ndarray:
    """The three features of the rows of one group, of more than one row."""
    found, _ = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors()
    factor = LocalOutlierFactor(n_neighbors=min(k, max(math.floor((len(values) - 1) * share), 1))).fit(values)
    return np.column_stack([found[:, 0], found.mean(axis=1), -factor.negative_outlier_factor_])


@pytest.mark.parametrize("share", [1, 0.5, 0.1])
@pytest.mark.parametrize("block", [50, 4_000, 2**19])  # rows in parts, groups one by one, groups together
def test_all_features_are_scikit_learns(
    block: int, share: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outliers, "BLOCK_VALUES", block)
    sizes = [1, 1, 2, 2, 3, 3, 7, 30, 31, 32, 120, 120]
    group = np.repeat(np.arange(len(sizes)), sizes)[rng.permutation(sum(sizes))]
    train, table = table_of(rng, 400), table_of(np.random.default_rng(0), len(group))
    table.iloc[3] *= -1
    table.iloc[rng.random(len(table)) < 0.1, 2] = np.nan
    found = GroupOutliers(factor_share=share).fit(train).transform(group, table)
    assert found.columns.tolist() == NAMES
    assert (found.dtypes == np.float32).all()
    dense = np.nan_to_num(StandardScaler().fit(train).transform(table))
    for number, size in enumerate(sizes):
        members = group == number
        expected = [[0, 0, 1]] if size == 1 else of_group_by_scikit_learn(dense[members], min(30, size - 1), share)
        np.testing.assert_allclose(found[members], expected, rtol=1e-5)


def test_a_smaller_number_of_neighbours_is_kept(rng: np.random.Generator) -> None:
    table = table_of(rng, 40)
    found = GroupOutliers(neighbours=4).fit(table).transform(["a"] * 40, table)
    np.testing.assert_allclose(found, of_group_by_scikit_learn(StandardScaler().fit_transform(table), 4), rtol=1e-5)


def test_a_row_far_from_all_others_stands_out_in_groups_of_any_size(rng: np.random.Generator) -> None:
    for size in (4, 8, 20, 31, 100):
        table = pd.DataFrame(rng.normal(size=(size, 8)), columns=list("abcdefgh"))
        table.iloc[size // 2] = 9
        found = GroupOutliers().fit(table).transform(["a"] * size, table)
        assert (found.to_numpy().argmax(axis=0) == size // 2).all()
        assert found["table_group_outlier"][size // 2] > 1.5


def test_groups_of_one_and_two_have_defined_values() -> None:
    table = pd.DataFrame({"x": [0.0, 2.0, 4.0]})  # standard deviation sqrt(8 / 3)
    found = GroupOutliers().fit(table).transform(["a", "b", "b"], table)
    apart = 2 / np.sqrt(8 / 3)
    np.testing.assert_allclose(found, [[0, 0, 1], [apart, apart, 1], [apart, apart, 1]], rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_changes_no_bit_and_equal_rows_are_treated_alike(seed: int) -> None:
    # On a coarse grid, which of several equally distant rows is a neighbour decides the local outlier factor.
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(rng.integers(-1, 2, (360, 5)) / 10, columns=list("vwxyz"))
    frame.iloc[::9, 0] = rng.choice([0.0, -0.0, np.nan], 40)  # the fitted mean is 0: these three are equal
    group = pd.Series(rng.choice(["a", "b"], 360, p=[0.8, 0.2]))
    fitted = GroupOutliers(neighbours=7).fit(pd.DataFrame([[-1.0] * 5, [1.0] * 5], columns=list("vwxyz")))
    found = fitted.transform(group, frame)
    for _ in range(3):
        order = rng.permutation(360)
        shuffled = fitted.transform(group.iloc[order], frame.iloc[order])
        assert shuffled.index.tolist() == order.tolist()
        assert found.iloc[order].to_numpy().tobytes() == shuffled.to_numpy().tobytes()
    for _, same in found.groupby([group, *(frame[column].fillna(0) + 0.0 for column in frame)]):
        assert len(same.drop_duplicates()) == 1
    assert np.isfinite(found.to_numpy()).all()


def test_a_group_alone_has_the_same_bits_as_beside_others(rng: np.random.Generator) -> None:
    sizes = np.r_[np.full(30, 2), np.full(20, 37), [1, 5, 45, 900]]
    group = np.repeat(np.arange(len(sizes)), sizes)[rng.permutation(sizes.sum())]
    table = table_of(rng, len(group), 45).round(2)
    fitted = GroupOutliers().fit(table)
    together = fitted.transform(group, table)
    for number in range(0, len(sizes), 3):
        alone = fitted.transform(group[group == number], table[group == number])
        assert alone.to_numpy().tobytes() == together[group == number].to_numpy().tobytes()


def test_the_number_of_threads_changes_no_bit(rng: np.random.Generator) -> None:
    group, table = rng.integers(0, 3, 1500), table_of(rng, 1500, 40)
    fitted = GroupOutliers().fit(table)
    with threadpool_limits(1):
        one = fitted.transform(group, table)
    with threadpool_limits(2):
        two = fitted.transform(group, table)
    assert one.to_numpy().tobytes() == two.to_numpy().tobytes()


def test_other_groups_change_nothing(rng: np.random.Generator) -> None:
    group, table = np.array(["a", "b"] * 30), table_of(rng, 60)
    fitted = GroupOutliers().fit(table)
    before = fitted.transform(group, table)
    table.iloc[1::2] = 1e9
    pd.testing.assert_frame_equal(fitted.transform(group, table)[::2], before[::2], check_exact=True)


def test_a_small_distance_beside_a_far_row_is_exact() -> None:
    # Around the mean, the products of these rows would be 1e16 and lose every digit of the distances between them.
    table = pd.DataFrame({"x": [0.0, 1e-3, 3e-3, 7e-3, 1e9], "y": [0.0] * 5})
    fitted = GroupOutliers(neighbours=1).fit(pd.DataFrame({"x": [-1.0, 1.0], "y": [-1.0, 1.0]}))
    found = fitted.transform(["a"] * 5, table)
    np.testing.assert_allclose(found["table_group_nearest"][:4], [1e-3, 1e-3, 2e-3, 4e-3], rtol=1e-5)


def test_many_duplicates_stay_finite(rng: np.random.Generator) -> None:
    table = pd.DataFrame({"x": [1.0] * 60 + [2.0], "y": [5.0] * 60 + [5.0]})
    found = GroupOutliers().fit(table).transform(["a"] * 61, table)
    assert (found[:60] == [0, 0, 1]).all(axis=None)
    assert found["table_group_outlier"][60] == 1000


def test_columns_that_do_not_vary_and_those_beyond_the_maximum_are_left_out(rng: np.random.Generator) -> None:
    table = table_of(rng, 50, 4)
    table.insert(0, "constant", 0.1)
    table.insert(2, "missing", np.nan)
    fitted = GroupOutliers(max_columns=3).fit(table)
    assert fitted.columns_ == ["c0", "c1", "c2"]
    assert fitted.left_out_ == ["constant", "missing", "c3"]
    group = rng.integers(0, 4, 50)
    expected = fitted.transform(group, table)
    changed = table.assign(constant=9, c3=0)[["c3", "c2", "constant", "c1", "c0"]]
    pd.testing.assert_frame_equal(fitted.transform(group, changed), expected, check_exact=True)
    alike = GroupOutliers().fit(table[["constant", "missing"]]).transform(group, table)
    assert (alike == [0, 0, 1]).all(axis=None)


def test_the_distance_ignores_the_scale_of_the_columns(rng: np.random.Generator) -> None:
    group, table = rng.integers(0, 3, 60), table_of(rng, 60)
    other = table * [1e-3, 10, 1, 1e6, 7] + [0, 5, -2, 1, 9]
    found = [GroupOutliers().fit(frame).transform(group, frame) for frame in (table, other)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-4)


def test_extreme_values_give_no_infinity() -> None:
    fitted = GroupOutliers().fit(pd.DataFrame({"x": [0.0, 1e-150], "y": [1e38, -1e38]}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fitted.transform(["a"] * 4, pd.DataFrame({"x": [1e38, -1e38, 0, 1], "y": [1e38, -1e38, np.nan, 0]}))
    assert np.isfinite(found.to_numpy()).all()


def test_what_is_stored_gives_the_same_features(rng: np.random.Generator) -> None:
    group, table = rng.integers(0, 9, 80), table_of(rng, 80).rename(columns={"c1": 'ü "1"[]{}'})
    table["constant"] = 1
    fitted = GroupOutliers(neighbours=5, factor_share=0.3, max_columns=4).fit(table)
    again = GroupOutliers.from_json(fitted.to_json())
    assert again.get_params() == fitted.get_params()
    assert (again.columns_, again.left_out_) == (fitted.columns_, fitted.left_out_)
    pd.testing.assert_frame_equal(again.transform(group, table), fitted.transform(group, table), check_exact=True)


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1.0]}, {"scale": [1.0, 0.0]}, {"scale": [1.0, float("nan")]}, {"mean": [float("inf"), 1.0]},
        {"mean": ["a", 1.0]}, {"columns": "xy"}, {"columns": ["x", "x"]}, {"neighbours": 0}, {"neighbours": "5"},
        {"neighbours": 31}, {"max_columns": 1.5}, {"factor_share": 0}, {"factor_share": "1"}, {"factor_share": True},
        {"mean": None}, {"left_out": None}, {"scale": [1.0, [2.0]]},
    ],
)  # fmt: skip
def test_a_damaged_state_is_refused(change: dict[str, object]) -> None:
    state = json.loads(GroupOutliers().fit(pd.DataFrame({"x": [1.0, 2.0], "y": [1.0, 2.0]})).to_json())
    GroupOutliers.from_json(json.dumps(state))
    with pytest.raises(TabularError, match="not the state of outlier features"):
        GroupOutliers.from_json(json.dumps(state | change))
    for key in state:
        with pytest.raises(TabularError, match="not the state of outlier features"):
            GroupOutliers.from_json(json.dumps({name: value for name, value in state.items() if name != key}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_another_text_is_refused(text: str) -> None:
    with pytest.raises(TabularError, match="train the model again"):
        GroupOutliers.from_json(text)


def test_no_rows_give_no_rows() -> None:
    fitted = GroupOutliers().fit(pd.DataFrame({"x": [1.0, 2.0]}))
    assert fitted.transform([], pd.DataFrame({"x": []}, dtype=float), name="t").columns[0] == "t_group_nearest"
    with pytest.raises(TabularError, match="no rows to fit"):
        GroupOutliers().fit(pd.DataFrame({"x": []}))


def test_errors_name_the_column_and_the_rows() -> None:
    table = pd.DataFrame({"x": [1.0, 2.0], "y": ["a", "b"]}, index=[7, 8])
    with pytest.raises(TabularError, match="column 'y' is not numeric"):
        GroupOutliers().fit(table)
    fitted = GroupOutliers().fit(table[["x"]])
    with pytest.raises(TabularError, match=r"column 'x' absent \(1 of the 1 that"):
        fitted.transform(["a", "a"], table[["y"]])
    with pytest.raises(TabularError, match=r"column 'x' is infinite or beyond 1e\+38 in 1 rows, first row 8"):
        fitted.transform(["a", "a"], table.assign(x=[1, np.inf]))
    with pytest.raises(TabularError, match="1 groups for 2 rows"):
        fitted.transform(["a"], table)
    with pytest.raises(TabularError, match="column 'x' is named twice"):
        GroupOutliers().fit(pd.DataFrame([[1, 2]], columns=["x", "x"]))
    with pytest.raises(TabularError, match="neighbours 31: give at most 30"):
        GroupOutliers(neighbours=31).fit(table[["x"]])
    with pytest.raises(TabularError, match="factor_share nan: give a number above 0 and up to 1"):
        GroupOutliers(factor_share=math.nan).fit(table[["x"]])
    with pytest.raises(TabularError, match="max_columns 0: give a whole number from 1 on"):
        GroupOutliers(max_columns=0).fit(table[["x"]])

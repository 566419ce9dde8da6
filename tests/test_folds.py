import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold

from dermstack.errors import ConfigError, DataError
from stack.folds import inner_split, make_folds
from stack.tables.table import read_table

DATA = Path(__file__).parents[2] / "shared" / "data"
real_tables = pytest.mark.skipif(not DATA.is_dir(), reason="the real tables are not at ../shared/data")


def table(groups: list[str], target: list[int]) -> pd.DataFrame:
    ids = [f"i{i}" for i in range(len(groups))]
    return pd.DataFrame({"id": ids, "group": groups, "target": np.array(target, np.int8)}).astype({"id": "str"})


def pairs(*ids: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(list(ids), columns=["a", "b"])


@st.composite
def tables(draw: st.DrawFn) -> tuple[pd.DataFrame, int]:
    """Draw a table with at least k groups of each class, from singletons to very uneven groups, and k."""
    k = draw(st.integers(2, 5))
    rows = draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=2 * k, max_size=120))
    giant = draw(st.integers(0, 60))
    groups = [f"g{group}" for group, _ in rows] + ["giant"] * giant
    frame = table(groups, [y for _, y in rows] + [draw(st.integers(0, 1))] * giant)
    for y in (0, 1):
        assume(frame.loc[frame["target"] == y, "group"].nunique() >= k)
    return frame, k


@settings(max_examples=60)
@given(tables(), st.integers(0, 3))
def test_every_row_is_held_out_once_and_no_split_group_sits_in_two_folds(
    drawn: tuple[pd.DataFrame, int], seed: int
) -> None:
    train, k = drawn
    folds = make_folds(train, k=k, seed=seed)
    assert folds.k == k
    held_out = np.zeros(len(train), int)
    for fold, train_rows, held_rows in folds.pairs():
        held_out[held_rows] += 1
        assert len(train_rows) + len(held_rows) == len(train)
        assert not set(folds.frame["split_group"][train_rows]) & set(folds.frame["split_group"][held_rows])
        assert set(train["target"][held_rows]) == {0, 1}, f"fold {fold} has one class"
    assert (held_out == 1).all()


@settings(max_examples=40)
@given(tables(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_order_of_the_rows_leaves_no_trace_in_the_folds(
    drawn: tuple[pd.DataFrame, int], seed: int, random: object
) -> None:
    train, k = drawn
    order = list(range(len(train)))
    random.shuffle(order)  # type: ignore[attr-defined]
    ids = train["id"].tolist()
    ties = pairs((ids[0], ids[-1]), (ids[1], ids[len(ids) // 2]))
    frames: list[pd.DataFrame | None] = []
    for rows in (train, train.iloc[order]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                frames.append(make_folds(rows, k=k, seed=seed, duplicates=ties).frame.set_index("id"))
            except DataError:  # the ties left fewer than k groups of a class
                frames.append(None)
    first, second = frames
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        pd.testing.assert_frame_equal(second.loc[ids], first)


def test_same_seed_same_folds_and_another_seed_others() -> None:
    rng = np.random.default_rng(0)
    train = table([f"g{g}" for g in rng.integers(0, 300, 1000)], rng.integers(0, 2, 1000).tolist())
    one = make_folds(train, k=5, seed=1).frame
    pd.testing.assert_frame_equal(one, make_folds(train, k=5, seed=1).frame)
    other = make_folds(train, k=5, seed=2).frame
    same = (one["fold"].to_numpy()[:, None] == one["fold"].to_numpy()) == (
        other["fold"].to_numpy()[:, None] == other["fold"].to_numpy()
    )
    assert not same.all()  # other folds, not the same ones under other numbers


def test_folds_are_no_less_balanced_than_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    ours, theirs = [], []
    for seed in range(4):
        sizes = rng.geometric(0.08, 400)
        groups = np.repeat([f"g{i}" for i in range(400)], sizes)
        risk = np.repeat(rng.beta(0.3, 8, 400), sizes)
        target = (rng.random(len(groups)) < risk).astype(int)
        train = table(groups.tolist(), target.tolist())
        ours.append(imbalance(make_folds(train, k=5, seed=seed).frame["fold"].to_numpy(), target))
        fold = np.zeros(len(groups), int)
        splitter = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for number, (_, held) in enumerate(splitter.split(groups, target, groups)):
            fold[held] = number
        theirs.append(imbalance(fold, target))
    assert np.mean(ours, axis=0).max() < 0.03
    assert (np.mean(ours, axis=0) <= np.mean(theirs, axis=0)).all()


def imbalance(fold: np.ndarray, target: np.ndarray) -> list[float]:
    """Largest relative distance of a fold's rows and positives to the even share."""
    counts = (np.bincount(fold), np.bincount(fold, weights=target))
    return [float(np.abs(c / c.mean() - 1).max()) for c in counts]


def test_summary_counts_rows_groups_and_positives() -> None:
    train = table(["a", "a", "b", "c", "d", "d"], [1, 0, 0, 1, 0, 0])
    own = pd.Series([0, 0, 0, 1, 1, 1])
    summary = make_folds(train, k=2, seed=0, own=own).summary(train["target"])
    assert summary.to_dict("list") == {
        "fold": [0, 1],
        "rows": [3, 3],
        "groups": [2, 2],
        "positives": [1, 1],
        "prevalence": [1 / 3, 1 / 3],
    }


def test_duplicates_merge_groups_along_chains_while_the_group_stays() -> None:
    groups = ["c", "b", "a", "x", *[f"g{i}" for i in range(96)]]
    train = table(groups, [int(i % 4 == 0) for i in range(100)])
    # chain c-b, b-a across three groups; a pair inside one group; a test id; an id with itself
    ties = pairs(("i0", "i1"), ("i1", "i2"), ("i3", "i3"), ("i3", "test_1"), ("nowhere", "test_1"))
    folds = make_folds(train, k=4, seed=0, duplicates=ties)
    assert folds.unknown_pairs == 2
    assert folds.frame["group"].tolist() == groups
    assert folds.frame["split_group"].tolist() == ["a", "a", "a", *groups[3:]]
    assert folds.frame["fold"][:3].nunique() == 1


def test_no_duplicates_or_an_empty_list_leave_the_groups_alone() -> None:
    train = table([f"g{i}" for i in range(20)], [i % 2 for i in range(20)])
    for nothing in (None, pairs()):
        folds = make_folds(train, k=2, seed=0, duplicates=nothing)
        assert folds.frame["split_group"].tolist() == train["group"].tolist()
        assert folds.unknown_pairs == 0


def test_duplicates_of_more_than_two_columns_are_refused() -> None:
    train = table([f"g{i}" for i in range(20)], [i % 2 for i in range(20)])
    with pytest.raises(DataError, match="columns a, b, phash: keep the two"):
        make_folds(train, k=2, seed=0, duplicates=pairs(("i0", "i1")).assign(phash=0))


def test_a_merged_component_of_more_than_five_percent_is_a_warning() -> None:
    train = table([f"g{i}" for i in range(100)], [i % 2 for i in range(100)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_folds(train, k=2, seed=0, duplicates=pairs(*[("i0", f"i{i}") for i in range(1, 5)]))
    with pytest.warns(UserWarning, match=r"merge 6 groups into one, 'g0', with 6 rows \(6\.0%"):
        make_folds(train, k=2, seed=0, duplicates=pairs(*[("i0", f"i{i}") for i in range(1, 6)]))


def test_a_large_group_that_nothing_was_merged_into_is_no_warning() -> None:
    train = table(["big"] * 10 + [f"g{i}" for i in range(90)], [i % 2 for i in range(100)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_folds(train, k=2, seed=0, duplicates=pairs(("i20", "i21")))


@pytest.mark.parametrize(("flip", "word"), [(0, "positives"), (1, "negatives")])
def test_fewer_groups_of_a_class_than_folds_are_refused(flip: int, word: str) -> None:
    target = [int(i in (3, 4, 12)) ^ flip for i in range(40)]  # 3 rows in 2 groups
    train = table([f"g{i // 8 if i < 16 else i}" for i in range(40)], target)
    with pytest.raises(
        DataError, match=rf"2 groups hold {word}, fewer than the 3 folds: set fewer folds \(folds\.k: 2\)"
    ):
        make_folds(train, k=3, seed=0)
    assert make_folds(train, k=2, seed=0).k == 2


@pytest.mark.parametrize("k", [1, 0, 128])
def test_an_impossible_number_of_folds_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match=f"k is {k}"):
        make_folds(table(["a", "b"], [0, 1]), k=k, seed=0)


@pytest.mark.parametrize("values", [[2, 10, 30], ["2", "10", "30"], [2.0, 10.0, 30.0], ["a", "b", "c"]])
def test_own_folds_are_kept_and_numbered_in_sorted_order(values: list[object]) -> None:
    train = table([f"g{i // 2}" for i in range(30)], [i % 2 for i in range(30)])
    own = pd.Series([values[i // 2 % 3] for i in range(30)], index=range(100, 130))
    assert make_folds(train, k=3, seed=0, own=own).frame["fold"].tolist() == [i // 2 % 3 for i in range(30)]


def test_own_folds_that_split_a_group_are_refused_by_name() -> None:
    train = table([f"g{i // 2}" for i in range(12)], [i % 2 for i in range(12)])
    own = pd.Series([i // 2 % 2 for i in range(12)])
    own[3] = 0
    with pytest.raises(DataError, match=r"splits 1 groups \('g1' in folds 0, 1\)"):
        make_folds(train, k=2, seed=0, own=own)


def test_own_folds_that_split_duplicates_are_refused_by_name() -> None:
    train = table([f"g{i // 2}" for i in range(12)], [i % 2 for i in range(12)])
    own = pd.Series([i // 2 % 2 for i in range(12)])
    with (
        pytest.warns(UserWarning, match="merge 2 groups"),
        pytest.raises(DataError, match=r"splits 1 groups \('g2' in folds 0, 1\)"),
    ):
        make_folds(train, k=2, seed=0, own=own, duplicates=pairs(("i5", "i7")))


@pytest.mark.parametrize("gap", [None, np.nan, -1])
def test_own_folds_must_cover_every_row(gap: float | None) -> None:
    train = table([f"g{i}" for i in range(12)], [i % 2 for i in range(12)])
    own = pd.Series([gap if i == 7 else i // 2 % 2 for i in range(12)], dtype=object)
    with pytest.raises(DataError, match=r"empty or negative in 1 rows \(row 9\)"):
        make_folds(train, k=2, seed=0, own=own)


def test_own_folds_of_another_number_length_or_one_class_are_refused() -> None:
    train = table([f"g{i}" for i in range(12)], [i % 2 for i in range(12)])
    with pytest.raises(DataError, match="has 3 folds, but k is 2: set k to 3"):
        make_folds(train, k=2, seed=0, own=pd.Series(range(12)) % 3)
    with pytest.raises(DataError, match="11 values for 12 rows"):
        make_folds(train, k=2, seed=0, own=pd.Series(range(11)) % 2)
    with pytest.raises(DataError, match="fold 0 of the fold column holds only one class"):
        make_folds(train, k=2, seed=0, own=pd.Series(range(12)) % 2)


@settings(max_examples=60)
@given(tables(), st.integers(0, 3))
def test_an_inner_split_takes_whole_groups_with_both_classes(drawn: tuple[pd.DataFrame, int], seed: int) -> None:
    train, parts = drawn
    stop = inner_split(train["target"], train["group"], parts=parts, seed=seed)
    assert stop.dtype == bool
    assert not set(train["group"][stop]) & set(train["group"][~stop])
    assert set(train["target"][stop]) == set(train["target"][~stop]) == {0, 1}


def test_an_inner_split_takes_about_one_part_of_rows_and_positives() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"g{g}" for g in rng.integers(0, 300, 2000)])
    target = (rng.random(2000) < 0.1).astype(int)
    stop = inner_split(target, groups, parts=8, seed=0)
    assert abs(stop.mean() - 1 / 8) < 0.01
    assert abs(target[stop].sum() / target.sum() - 1 / 8) < 0.02
    # few groups with positives: the part grows instead, as long as both sides keep both classes
    few = (np.array([group in {"g1", "g2"} for group in groups])).astype(int)
    stop = inner_split(few, groups, parts=8, seed=0)
    assert set(few[stop]) == set(few[~stop]) == {0, 1}
    with pytest.raises(DataError, match="1 group holds positives"):
        inner_split((groups == "g1").astype(int), groups, seed=0)
    with pytest.raises(ConfigError, match="parts is 1"):
        inner_split(target, groups, parts=1, seed=0)


@real_tables
@pytest.mark.parametrize(("name", "group"), [("ham10000", "lesion_id"), ("siim2020", "patient_id")])
def test_prevalence_hardly_differs_between_folds_of_published_tables(name: str, group: str) -> None:
    columns = {"id": "image_name", "group": group, "target": "target"}
    train = read_table(DATA / name / "train.csv", None, columns=columns).train
    duplicates = pd.read_csv(DATA / name / "duplicates.csv", dtype=str) if name == "siim2020" else None
    for seed in range(3):
        folds = make_folds(train, k=5, seed=seed, duplicates=duplicates)
        assert imbalance(folds.frame["fold"].to_numpy(), train["target"].to_numpy())[0] < 0.002
        summary = folds.summary(train["target"])
        spread = np.ptp(summary["prevalence"]) / train["target"].mean()
        assert spread < 0.02
        if duplicates is not None:
            fold = folds.frame.set_index("id")["fold"]
            assert folds.unknown_pairs == 0
            left, right = (fold.loc[duplicates.iloc[:, side]].to_numpy() for side in (0, 1))
            np.testing.assert_array_equal(left, right)


def test_a_seed_below_0_is_named() -> None:
    frame = table(list("abcdefgh"), [0, 1] * 4)
    with pytest.raises(ConfigError, match="seed=-1"):
        make_folds(frame, k=2, seed=-1)

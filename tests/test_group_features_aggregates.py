import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from dermstack.errors import TabularError
from tabular.group_features import context_counts, metadata_aggregates, prediction_aggregates

RUN_FEATURES = ["mean", "max", "min", "std", "rank", "z", "others_mean", "others_diff"]


def brute_metadata(group, age):
    rows = []
    for i in range(len(group)):
        ages = [age[j] for j in range(len(group)) if group[j] == group[i] and not np.isnan(age[j])]
        if ages:
            rows.append([min(ages), max(ages), max(ages) - min(ages), age[i] - min(ages)])
        else:
            rows.append([np.nan] * 4)
    return np.array(rows)


def brute_predictions(group, logits):
    rows = []
    for i in range(len(group)):
        of_group = [j for j in range(len(group)) if group[j] == group[i] and not np.isnan(logits[j])]
        mine = logits[of_group]
        if not of_group:
            rows.append([np.nan] * 8)
            continue
        whole = [mine.mean(), mine.max(), mine.min(), mine.std()]
        if np.isnan(logits[i]):
            rows.append([*whole, np.nan, np.nan, mine.mean(), np.nan])
            continue
        place = rankdata(mine)[of_group.index(i)]
        rank = (place - 1) / (len(mine) - 1) if len(mine) > 1 else 0.5
        z = (logits[i] - mine.mean()) / mine.std() if mine.max() > mine.min() else 0.0
        others = [logits[j] for j in of_group if j != i]
        others_mean = np.mean(others) if others else logits[i]
        rows.append([*whole, rank, z, others_mean, logits[i] - others_mean])
    return np.array(rows)


# A coarse grid makes ties and constant groups common; a fine one makes them rare. NaN is a missing value.
grid = st.one_of(st.integers(-4, 4).map(lambda k: k / 10), st.integers(-20_000, 20_000).map(lambda k: k / 1000))
values = st.one_of(grid, st.just(np.nan))
rows = st.lists(st.tuples(st.sampled_from("abcde"), values, values), min_size=1, max_size=25)


@settings(max_examples=100)
@given(rows)
def test_prediction_aggregates_equal_a_loop_over_rows(rows):
    group = [row[0] for row in rows]
    logits = np.array([row[1:] for row in rows])
    found = prediction_aggregates(group, logits, ["cnn", "other"])
    assert found.columns.tolist() == [f"{run}_group_{name}" for run in ("cnn", "other") for name in RUN_FEATURES]
    assert (found.dtypes == np.float32).all()
    expected = np.column_stack([brute_predictions(group, column) for column in logits.T])
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60)
@given(rows)
def test_metadata_aggregates_equal_a_loop_over_rows(rows):
    group, age = [row[0] for row in rows], np.array([row[1] for row in rows])
    found = metadata_aggregates(pd.DataFrame({"group": group, "age": age}))
    names = ["age_group_min", "age_group_max", "age_group_spread", "age_since_group_min"]
    assert found.columns.tolist() == names
    np.testing.assert_allclose(found.to_numpy(), brute_metadata(group, age), rtol=1e-5, atol=1e-5)


@settings(max_examples=30)
@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_no_bit(rows, random):
    order = list(range(len(rows)))
    random.shuffle(order)
    frame = pd.DataFrame(rows, columns=["group", "age", "logit"])
    shuffled = frame.iloc[order]
    for features in (
        metadata_aggregates,
        lambda f: prediction_aggregates(f["group"], f[["logit"]].to_numpy(), ["cnn"]),
    ):
        pd.testing.assert_frame_equal(features(frame).iloc[order], features(shuffled), check_exact=True)


def test_a_group_alone_has_the_same_bits_as_beside_others():
    rng = np.random.default_rng(0)
    group = pd.Series(rng.integers(0, 40, 3000))
    logits = rng.normal(-4, 2, (3000, 2))
    together = prediction_aggregates(group, logits, ["a", "b"])
    for name in (0, 17):
        alone = prediction_aggregates(group[group == name], logits[group == name], ["a", "b"])
        pd.testing.assert_frame_equal(alone, together[group == name], check_exact=True)


def test_a_group_of_one_has_defined_values():
    found = prediction_aggregates(["x"], [[-3.3]], ["cnn"]).iloc[0]
    logit = np.float32(-3.3)
    assert found.tolist() == [logit, logit, logit, 0, 0.5, 0, logit, 0]
    ages = metadata_aggregates(pd.DataFrame({"group": ["x"], "age": [50.0]})).iloc[0]
    assert ages.tolist() == [50, 50, 0, 0]


@pytest.mark.parametrize("logit", [0.1, -7.3, 1e-9, 1e6 + 0.1])
@pytest.mark.parametrize("size", [2, 3, 7, 1000])
def test_equal_logits_have_no_spread_and_no_z(logit, size):
    found = prediction_aggregates(["x"] * size, np.full((size, 1), logit), ["cnn"])
    assert (found["cnn_group_std"] == 0).all()
    assert (found["cnn_group_z"] == 0).all()
    assert (found["cnn_group_rank"] == 0.5).all()
    assert (found["cnn_group_others_diff"] == 0).all()


def test_the_spread_of_large_logits_that_differ_little_is_kept():
    logits = 1e8 + np.array([[0.0], [1.0], [2.0]])
    found = prediction_aggregates(["x"] * 3, logits, ["cnn"])
    np.testing.assert_allclose(found["cnn_group_std"], np.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(found["cnn_group_others_diff"], [-1.5, 0, 1.5])


def test_no_rows_give_no_rows():
    assert prediction_aggregates([], np.empty((0, 1)), ["cnn"]).shape == (0, 8)
    assert metadata_aggregates(pd.DataFrame({"group": [], "age": []})).shape == (0, 4)


def test_features_keep_the_index_of_their_rows():
    frame = pd.DataFrame({"group": ["a", "b", "a"], "age": [1.0, 2.0, 3.0]}, index=[9, 4, 2])
    assert metadata_aggregates(frame).index.tolist() == [9, 4, 2]
    assert prediction_aggregates(frame["group"], np.zeros((3, 1)), ["cnn"]).index.tolist() == [9, 4, 2]


def test_errors_name_the_rows_and_the_run():
    with pytest.raises(TabularError, match="1 rows have no group, first row 1"):
        prediction_aggregates(["a", None], np.zeros((2, 1)), ["cnn"])
    with pytest.raises(TabularError, match="cnn is infinite in 1 rows, first row 0"):
        prediction_aggregates(["a", "b"], [[-np.inf], [0.0]], ["cnn"])
    with pytest.raises(TabularError, match=r"shape \(2, 1\) for 2 rows and 2 runs \(cnn, other\)"):
        prediction_aggregates(["a", "b"], np.zeros((2, 1)), ["cnn", "other"])
    with pytest.raises(TabularError, match="named twice"):
        prediction_aggregates(["a", "b"], np.zeros((2, 2)), ["cnn", "cnn"])
    with pytest.raises(TabularError, match="'age' absent"):
        metadata_aggregates(pd.DataFrame({"group": ["a"]}))


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["torso", "leg", None]), st.sampled_from([40.0, 45.0, None])),
        min_size=1,
        max_size=20,
    )
)
def test_counts_equal_a_loop_over_rows(rows):
    frame = pd.DataFrame(rows, columns=["group", "site", "age"])
    frame["age"] = frame["age"].astype("float32")
    found = context_counts(frame)
    for i, (group, site, _) in enumerate(rows):
        visits = {age for other, _, age in rows if other == group and age is not None}
        assert found["group_visits"][i] == pytest.approx(np.log(max(len(visits), 1)))
        assert found["group_images"][i] == pytest.approx(np.log(sum(other == group for other, _, _ in rows)))
        assert found["group_images_of_site"][i] == pytest.approx(
            np.log(sum(other[:2] == (group, site) for other in rows))
        )

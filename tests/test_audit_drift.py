import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp
from sklearn.metrics import roc_auc_score

from dermstack.audit.drift import drift


def one(train, test, groups=None):
    """The line of a single column; each row a group of its own unless `groups` says otherwise."""
    first, second = groups or (np.arange(len(train)), len(train) + np.arange(len(test)))
    found = drift({"x": pd.Series(train)}, {"x": pd.Series(test)}, pd.Series(first), pd.Series(second), seed=0)
    assert len(found) == 1
    return found.iloc[0]


numbers = st.lists(st.integers(0, 9).map(float), min_size=1, max_size=40)
words = st.lists(st.sampled_from(["torso", "head", "palms", None]), min_size=1, max_size=40)


@settings(max_examples=60)
@given(numbers, numbers)
def test_numbers_are_as_far_apart_as_kolmogorov_and_smirnov_say(train, test):
    line = one(train, test)
    assert line["kind"] == "number"
    below = [[np.mean(np.array(part) <= value) for value in range(10)] for part in (train, test)]
    assert line["distance"] == pytest.approx(np.max(np.abs(np.subtract(*below))))
    in_test = np.repeat([0, 1], [len(train), len(test)])
    value = roc_auc_score(in_test, [*train, *test])
    assert line["auc"] == pytest.approx(max(value, 1 - value))


@settings(max_examples=60)
@given(words, words)
def test_words_are_as_far_apart_as_the_best_set_of_levels_tells_them(train, test):
    line = one(pd.Series(train, dtype="str"), pd.Series(test, dtype="str"))
    levels = ["torso", "head", "palms", None]
    shares = [np.array([part.count(level) / len(part) for level in levels]) for part in (train, test)]
    sets = [[bool(number >> k & 1) for k in range(4)] for number in range(16)]
    assert line["kind"] == "words"
    assert line["distance"] == pytest.approx(max(abs(shares[0][s].sum() - shares[1][s].sum()) for s in sets))
    # By words alone no ranking of these rows is better than that by a level's share of test rows.
    rate = {lv: test.count(lv) / (train.count(lv) + test.count(lv)) for lv in {*train, *test}}
    in_test = np.repeat([0, 1], [len(train), len(test)])
    assert line["auc"] == pytest.approx(roc_auc_score(in_test, [rate[level] for level in [*train, *test]]))


def test_scipy_finds_the_same_distance(rng):
    train, test = rng.normal(size=300), rng.normal(size=200) + 0.3
    assert one(train, test)["distance"] == pytest.approx(ks_2samp(train, test).statistic)


def test_the_same_values_are_no_distance_apart_and_others_all_of_it():
    assert one([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])[["distance", "auc"]].tolist() == [0, 0.5]
    assert one([1.0, 2.0], [3.0, 4.0])[["distance", "auc"]].tolist() == [1, 1]
    assert one(["a"], ["b"])[["distance", "auc"]].tolist() == [1, 1]


def test_missing_numbers_are_left_out_and_counted():
    line = one([1.0, np.nan, 2.0, np.nan], [np.nan, 1.0, 2.0])
    assert line[["distance", "missing_train", "missing_test"]].tolist() == [0, 0.5, pytest.approx(1 / 3)]
    nothing = one([1.0, 2.0], [np.nan, np.nan])
    assert np.isnan(nothing["distance"])
    assert np.isnan(nothing["auc"])


def test_chance_is_what_dealing_rows_at_random_gives(rng):
    beyond = []
    for _ in range(40):
        line = one(rng.normal(size=150), rng.normal(size=80))
        beyond.append(line["beyond"])
        assert 0.1 < line["chance"] < 0.3  # 1.36 * sqrt(1/150 + 1/80) = 0.19, asymptotically
    assert np.mean(beyond) < 0.2
    assert one(rng.normal(size=150), rng.normal(size=80) + 1)["beyond"]


def test_chance_is_larger_where_values_come_by_group(rng):
    """100 patients of 20 images with one age each: a hundred ages, not two thousand."""
    ages = np.repeat(rng.normal(size=100), 20)
    group = np.repeat(np.arange(100), 20)
    by_group = one(ages[:1400], ages[1400:], (group[:1400], group[1400:]))["chance"]
    by_row = one(ages[:1400], ages[1400:])["chance"]
    assert by_group > 3 * by_row


def test_one_group_each_can_never_be_beyond_chance(rng):
    line = one(rng.integers(0, 9, 30) / 3, rng.integers(0, 9, 70) / 3, (["a"] * 30, ["b"] * 70))
    assert line["distance"] == pytest.approx(line["chance"])
    assert not line["beyond"]


def test_a_group_in_both_parts_counts_as_two(rng):
    x = rng.normal(size=40)
    same = one(x[:20], x[20:], (np.arange(20), np.arange(20)))
    apart = one(x[:20], x[20:])
    assert same.tolist() == apart.tolist()


def test_the_same_seed_has_the_same_chance(rng):
    x, y = rng.normal(size=30), rng.normal(size=20)
    assert one(x, y).tolist() == one(x, y).tolist()

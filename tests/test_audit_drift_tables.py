import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dermstack.audit.drift import (
    AGE_EDGES,
    MISSING,
    age_histograms,
    age_rates,
    age_shares,
    group_sizes,
    level_counts,
    missing_values,
    picture_sizes,
    shortcuts,
)
from stack.metrics.intervals import interval
from stack.tables.table import Table

SITES = ["torso", "head", None, "torso", "palms", "head", "torso", None]


@pytest.fixture
def train():
    return pd.DataFrame(
        {
            "id": list("abcdefgh"),
            "group": ["p", "p", "p", "q", "q", "r", "s", "t"],
            "target": np.array([1, 0, 0, 1, 0, 0, 1, 0], np.int8),
            "age": np.array([40, 44, 60, np.nan, 100, 130, 0, 99], np.float32),
            "site": pd.Series(SITES, dtype="str"),
        }
    )


def test_levels_are_counted_against_the_target_with_the_missing_last(train):
    counts = level_counts(train, "site")
    assert counts["level"].tolist() == ["torso", "head", "palms", MISSING]
    oracle = pd.crosstab(train["site"].fillna(MISSING), train["target"]).loc[counts["level"]]
    assert counts["negatives"].tolist() == oracle[0].tolist()
    assert counts["positives"].tolist() == oracle[1].tolist()
    assert counts["prevalence"].tolist() == [1.0, 0.0, 0.0, 0.0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(0, 1)), min_size=1, max_size=50), st.integers(2, 8))
def test_rare_levels_share_a_line_and_no_row_is_lost(rows, most):
    frame = pd.DataFrame(rows, columns=["site", "target"])
    counts = level_counts(frame, "site", most=most)
    assert len(counts) == min(most, frame["site"].nunique())
    assert counts["rows"].sum() == len(frame)
    assert counts["positives"].sum() == frame["target"].sum()
    if frame["site"].nunique() > most:
        kinds = frame["site"].nunique() - most + 1
        assert counts["level"].iloc[-1] == f"other ({kinds} kinds)"
        kept = frame["site"].value_counts()[counts["level"].iloc[:-1]]
        assert kept.min() >= frame.loc[~frame["site"].isin(kept.index), "site"].value_counts().max()


def test_shares_of_ages_are_those_of_a_histogram(rng):
    ages = pd.Series(np.r_[rng.uniform(0, 100, 500), np.nan, 100, 5, 4.99, 250])
    shares = age_shares(ages)
    oracle, _ = np.histogram(ages.dropna().clip(upper=102), [*AGE_EDGES, 105])
    assert shares == pytest.approx(oracle / ages.count())
    assert shares.sum() == pytest.approx(1)
    assert not age_shares(pd.Series([np.nan, np.nan])).any()


def test_each_level_has_its_ages_of_all_and_of_positive_images(train):
    ages = age_histograms(train, "site").set_index(["level", "of"])
    assert len(ages) == 8
    torso = train[train["site"] == "torso"]
    for of, rows in (("all", torso), ("positive", torso[torso["target"] == 1])):
        line = ages.loc["torso", of]
        assert (line["images"], line["known"]) == (len(rows), rows["age"].count())
        assert line["median"] == rows["age"].median()
        assert line[AGE_EDGES.tolist()].to_numpy(float) == pytest.approx(age_shares(rows["age"]))
    assert ages.loc["head", "positive"]["images"] == 0
    assert np.isnan(ages.loc["head", "positive"]["median"])


def test_rates_by_age_are_shares_of_each_decade(train):
    rates = age_rates(train).set_index("ages")
    assert rates.index.tolist()[0] == "0–9"
    assert rates.index.tolist()[-1] == "90 and over"
    assert rates["images"].sum() == 7
    assert rates.loc["40–49"].tolist() == [2, 1, 0.5]
    assert rates.loc["90 and over", "images"] == 3
    assert np.isnan(rates.loc["10–19", "prevalence"])


@pytest.mark.parametrize("largest", [1, 5, 12, 13, 64, 115])
def test_every_group_has_one_line_of_its_size(rng, largest):
    sizes = [*rng.integers(1, largest + 1, 60), largest]
    frame = pd.DataFrame({"group": np.repeat(np.arange(61), sizes)})
    frame["target"] = rng.integers(0, 2, len(frame)) * rng.integers(0, 2, len(frame))
    table = group_sizes(frame)
    assert table["groups"].sum() == 61
    assert table["rows"].sum() == len(frame)
    assert table["with_positive"].sum() == frame.loc[frame["target"] == 1, "group"].nunique()
    for line in table.to_dict("records"):
        low, _, high = line["images"].partition("–")
        inside = [size for size in sizes if int(low) <= size <= int(high or low)]
        assert (line["groups"], line["rows"]) == (len(inside), sum(inside))
        assert line["prevalence"] == line["positives"] / line["rows"]


def test_sizes_of_groups_stand_alone_up_to_twelve_and_double_beyond():
    def lines(largest):
        frame = pd.DataFrame({"group": np.repeat(np.arange(largest), np.arange(1, largest + 1))}).assign(target=0)
        return group_sizes(frame)["images"].tolist()

    assert lines(12) == [str(size) for size in range(1, 13)]
    assert lines(13) == ["1", "2–3", "4–7", "8–13"]


def test_missing_values_are_shares_of_train_of_each_class_and_of_test(train):
    test = train.drop(columns="target").iloc[:4].assign(sex=np.nan)
    table = missing_values(Table(train.assign(sex="male"), test)).set_index("column")
    assert table.index.tolist() == ["age", "sex", "site"]
    assert table.loc["age"].tolist() == [1, 1 / 8, 0, 1 / 3, 1 / 4]
    assert table.loc["site"].tolist() == [2, 2 / 8, 2 / 5, 0, 1 / 4]
    assert table.loc["sex"].tolist() == [0, 0, 0, 0, 1]
    assert missing_values(Table(train, test.iloc[:0]))["test"].isna().all()


def test_sizes_of_pictures_are_counted_most_frequent_first(train):
    sized = train.assign(
        source_width=[640, 640, 10, 640, 10, 3, 3, 640], source_height=[480, 480, 20, 480, 20, 4, 4, 481]
    )
    sizes = picture_sizes(sized)
    assert sizes[["width", "height", "rows", "positives"]].to_numpy().tolist() == [
        *([640, 480, 3, 2], [3, 4, 2, 1], [10, 20, 2, 0], [640, 481, 1, 0]),
    ]
    assert (sizes["negatives"] + sizes["positives"] == sizes["rows"]).all()


def test_a_shortcut_is_scored_from_the_end_at_which_positives_lie(rng):
    y = (np.arange(400) % 4 == 0).astype(np.int8)
    train = pd.DataFrame({"group": np.arange(400) // 2, "target": y})
    values = rng.normal(size=400) - y
    facts = {"falling": values, "rising": -values, "same": np.ones(400)}
    table = shortcuts(train, facts, train["group"]).set_index("fact")
    assert table["direction"].tolist() == ["smaller", "larger", "neither"]
    assert table["auc"].tolist() == pytest.approx([roc_auc_score(y, -values)] * 2 + [0.5])
    assert table.loc["falling", "positives"] == np.median(values[y == 1])
    found = interval("auc", y, -values, train["group"], draws=4000)  # by another method
    assert table.loc["falling", ["low", "high"]].tolist() == pytest.approx([found.low, found.high], abs=0.01)
    alone = shortcuts(train.assign(target=(np.arange(400) == 7).astype(np.int8)), {"x": values}, train["group"])
    assert np.isnan(alone.loc[0, "low"])

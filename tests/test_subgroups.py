import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stack.metrics.intervals import clustered_auc
from stack.metrics.subgroups import MIN_GROUPS, MISSING, Subgroup, find_subgroups, subgroups


def drawn(rng, n=1500, groups=900, harder=0.0):
    """Rows in groups with a risk of their own; the score orders site 0 worse by `harder`."""
    group = rng.integers(0, groups, n)
    risk = rng.normal(size=groups)[group]
    y = (rng.random(n) < 1 / (1 + np.exp(3 - risk))).astype(np.int8)
    site = rng.choice(8, n, p=[0.3, 0.25, 0.2, 0.1, 0.05, 0.04, 0.03, 0.03])
    sex = rng.integers(0, 2, groups)[group]
    s = 0.3 * risk + np.where(site == 0, 1.8 - harder, 1.8) * y + rng.normal(size=n)
    parts = [Subgroup("sex", str(k), sex == k) for k in range(2)] + [
        Subgroup("site", str(k), site == k) for k in range(8)
    ]
    return y, s, group, parts


def test_each_side_of_a_cut_has_the_auc_of_its_rows(rng):
    y, s, group, parts = drawn(rng)
    table = subgroups(y, s, group, parts, draws=50)
    assert len(table) == len(parts)
    for part, line in zip(parts, table.to_dict("records"), strict=True):
        rows = part.rows
        assert (line["by"], line["subgroup"]) == part[:2]
        assert (line["rows"], line["positives"]) == (rows.sum(), y[rows].sum())
        assert line["groups"] == len(set(group[rows]))
        if np.isfinite(line["auc"]):
            assert line["auc"] == pytest.approx(roc_auc_score(y[rows], s[rows]))
            assert line["difference"] == pytest.approx(line["auc"] - roc_auc_score(y[~rows], s[~rows]))
            assert line["low"] <= line["auc"] <= line["high"]


def test_halves_of_one_cut_are_one_comparison(rng):
    y, s, group, parts = drawn(rng)
    both, one = subgroups(y, s, group, parts[:2], draws=20), subgroups(y, s, group, parts[:1], draws=20)
    assert both["difference"].iloc[0] == pytest.approx(-both["difference"].iloc[1])
    assert both["wide_low"].iloc[0] == pytest.approx(one["wide_low"].iloc[0])
    assert both["wide_low"].iloc[0] == pytest.approx(-both["wide_high"].iloc[1])


def test_more_comparisons_widen_every_interval_as_bonferroni_says(rng):
    y, s, group, parts = drawn(rng)
    few, many = subgroups(y, s, group, parts[:1], draws=20), subgroups(y, s, group, parts[:6], draws=20)
    told = int(many["auc"].notna().sum()) - 1  # the two sexes are one comparison
    widths = [(table["wide_high"] - table["wide_low"]).iloc[0] for table in (few, many)]
    assert told == 5
    assert widths[1] / widths[0] == pytest.approx(norm.isf(0.025 / told) / norm.isf(0.025))


def test_a_random_half_has_the_standard_error_that_delong_gives_it(rng):
    y, s = (rng.random(6000) < 0.1).astype(int), rng.normal(size=6000)
    s = s + y
    half = rng.random(6000) < 0.5
    table = subgroups(y, s, np.arange(6000), [Subgroup("coin", "heads", half)], draws=20)
    variance = sum(clustered_auc(y[side], s[side], np.arange(side.sum())).covariance[0, 0] for side in (half, ~half))
    width = (table["wide_high"] - table["wide_low"])[0] / 2 / norm.isf(0.025)
    assert width == pytest.approx(np.sqrt(variance), rel=0.05)


def test_rows_that_a_group_repeats_count_once(rng):
    y, s = (rng.random(800) < 0.2).astype(int), rng.normal(size=800)
    s, half = s + y, rng.random(800) < 0.5
    alone = subgroups(y, s, np.arange(800), [Subgroup("coin", "heads", half)], draws=20)
    fourfold = [np.repeat(values, 4) for values in (y, s, np.arange(800), half)]
    repeated = subgroups(*fourfold[:3], [Subgroup("coin", "heads", fourfold[3])], draws=20)
    assert repeated["wide_low"][0] == pytest.approx(alone["wide_low"][0], abs=2e-3)


@pytest.mark.slow
def test_subgroups_that_are_alike_raise_a_false_alarm_in_one_data_set_of_twenty():
    rng = np.random.default_rng(7)
    alarms = [subgroups(*drawn(rng), draws=2)["apart"].any() for _ in range(400)]
    assert 0.02 < np.mean(alarms) < 0.09  # 0.05 with a standard error of 0.011


@pytest.mark.slow
def test_a_subgroup_that_is_ordered_worse_is_flagged():
    rng = np.random.default_rng(8)
    flagged = []
    for _ in range(40):
        table = subgroups(*drawn(rng, harder=1.0), draws=2)
        flagged.append(bool(table.loc[(table["by"] == "site") & (table["subgroup"] == "0"), "apart"].iloc[0]))
    assert np.mean(flagged) > 0.6


def test_where_few_groups_hold_a_class_only_counts_are_given(rng):
    y, s, group, _ = drawn(rng)
    few = np.zeros(len(y), bool)
    few[np.flatnonzero(y == 1)[: MIN_GROUPS - 1]] = True
    few[np.flatnonzero(y == 0)[:50]] = True
    patients = np.where(few & (y == 1), -1, group)  # a dozen pictures of one lesion are one lesion
    many = few.copy()
    many[np.flatnonzero(y == 1)[:20]] = True
    one_patient = np.where(many & (y == 1), -1, patients)
    for rows, groups in ((few, group), (many, one_patient)):
        line = subgroups(y, s, groups, [Subgroup("site", "x", rows)], draws=20).iloc[0]
        assert line["rows"] == rows.sum()
        assert np.isnan([line["auc"], line["low"], line["difference"], line["wide_low"]]).all()
        assert not line["apart"]


def test_classes_that_do_not_overlap_have_no_interval(rng):
    y, s, group, parts = drawn(rng)
    s[parts[2].rows] += 100 * y[parts[2].rows]
    line = subgroups(y, s, group, parts, draws=50).iloc[2]
    assert line["auc"] == 1
    assert np.isnan([line["low"], line["high"]]).all()
    assert np.isfinite(line["wide_low"])


def test_rows_are_cut_by_sex_age_band_site_and_source_and_what_is_not_known():
    frame = pd.DataFrame({
        "sex": ["male", "female", np.nan, "male"],
        "age": [19.0, 20.0, 85.0, np.nan],
        "site": ["torso"] * 4,
        "source": ["Vienna", "Vienna", "Sydney", "Sydney"],
    })  # fmt: skip
    cut = {part[:2]: part.rows.tolist() for part in find_subgroups(frame)}
    assert cut == {
        ("sex", "male"): [True, False, False, True],
        ("sex", "female"): [False, True, False, False],
        ("sex", MISSING): [False, False, True, False],
        ("age", "0–19"): [True, False, False, False],
        ("age", "20–39"): [False, True, False, False],
        ("age", "80 and over"): [False, False, True, False],
        ("age", MISSING): [False, False, False, True],
        ("source", "Vienna"): [True, True, False, False],
        ("source", "Sydney"): [False, False, True, True],
    }
    assert find_subgroups(frame[["site"]]) == []


@pytest.mark.parametrize("steps", [["1", "2", "10"], ["I", "IV", "VI"], ["2016", "2017", "2019"], ["b", "a", "c"]])
def test_the_steps_of_a_scale_stand_in_their_order_and_words_by_their_number(steps):
    column = pd.Series([steps[0]] * 3 + [steps[1]] * (2 if steps[0] == "b" else 5) + [steps[2]] + [None])
    names = [part.name for part in find_subgroups(pd.DataFrame({"tone": column}), {"tone": "skin tone"})]
    assert names == [*steps, MISSING]


def test_the_rarest_of_many_sites_share_a_line():
    frame = pd.DataFrame({"site": [f"s{k}" for k in range(20) for _ in range(21 - k)]})
    parts = find_subgroups(frame)
    assert parts[-1].name == "other (9 kinds)"
    assert np.all(sum(part.rows.astype(int) for part in parts) == 1)


def shared_draw(rng, effect):
    """Patients with one image on each side, whose scores share a large part; the AUC is the same on both sides."""
    n = 400
    patient = np.repeat(np.arange(n), 2)
    y = np.repeat((rng.random(n) < 0.4).astype(int), 2)
    s = y + np.repeat(rng.normal(0, 1, n), 2) * effect + rng.normal(0, 0.3, 2 * n)
    return y, s, patient, np.tile([True, False], n)


@pytest.mark.slow
def test_the_difference_of_sides_that_share_patients_has_the_spread_that_it_has():
    """Without the covariance its interval would be three times as wide, and a real difference would stay hidden."""
    rng = np.random.default_rng(4)
    found, halves = [], []
    for _ in range(150):
        y, s, patient, side = shared_draw(rng, 1.0)
        line = subgroups(y, s, patient, [Subgroup("x", "a", side)], draws=2).iloc[0]
        found.append(line["difference"])
        halves.append((line["wide_high"] - line["wide_low"]) / 2 / 1.96)
    assert np.std(found) == pytest.approx(np.mean(halves), rel=0.6)
    assert np.mean(np.abs(found) > 1.96 * np.array(halves)) < 0.08, "no more false alarms than asked for"


def test_sides_that_share_no_patient_keep_their_interval(rng):
    y, s, _, side = shared_draw(rng, 1.0)
    alone = subgroups(y, s, np.arange(len(y)), [Subgroup("x", "a", side)], draws=2).iloc[0]
    apart = subgroups(y, s, [f"{number}" for number in range(len(y))], [Subgroup("x", "a", side)], draws=2).iloc[0]
    shared = subgroups(y, s, np.arange(len(y)) // 2, [Subgroup("x", "a", side)], draws=2).iloc[0]
    assert alone["wide_high"] == apart["wide_high"]
    width = [line["wide_high"] - line["wide_low"] for line in (shared, alone)]
    assert width[0] < 0.7 * width[1]

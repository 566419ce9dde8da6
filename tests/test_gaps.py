from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from stack.metrics import gaps as module
from stack.metrics.decisions import operating_points
from stack.metrics.gaps import AUC, BOUNDED, DIFFERS, MARGINS, RATIO, SENSITIVITY, SPECIFICITY, TOO_FEW, gaps
from stack.metrics.subgroups import MIN_GROUPS, Subgroup


def drawn(rng, n=1500, groups=700, harder=0.0):
    """Targets, scores, p, groups and the parts of two columns; the score orders site 0 worse by ``harder``."""
    group = rng.integers(0, groups, n)
    y = (rng.random(n) < 0.25).astype(np.int8)
    site, sex = rng.choice(3, n, p=[0.3, 0.5, 0.2]), rng.integers(0, 2, groups)[group]
    score = y * np.where(site == 0, 2 - harder, 2) + rng.normal(0, 0.4, groups)[group] + rng.normal(size=n)
    p = 1 / (1 + np.exp(2.8 - 1.8 * score))
    parts = [Subgroup("sex", str(k), sex == k) for k in range(2)]
    return y, score, p, group, [*parts, *(Subgroup("site", str(k), site == k) for k in range(3))]


def test_values_are_those_of_the_rows_of_each_side(rng):
    y, score, p, group, parts = drawn(rng)
    table = gaps(y, score, p, group, parts).table
    assert len(table) == len(parts) * 6
    for line in table.to_dict("records"):
        rows = next(part.rows for part in parts if (part.by, part.name) == (line["by"], line["subgroup"]))
        for side, value in ((rows, line["value"]), (~rows, line["rest"])):
            called = p[side] >= line["threshold"]
            truth = {
                AUC: roc_auc_score(y[side], score[side]),
                SENSITIVITY: called[y[side] == 1].mean(),
                SPECIFICITY: 1 - called[y[side] == 0].mean(),
                RATIO: p[side].sum() / y[side].sum(),
            }[line["measure"]]
            assert value == pytest.approx(truth)
        of = line["value"] / line["rest"] if line["measure"] == RATIO else line["value"] - line["rest"]
        assert line["gap"] == pytest.approx(of)
        assert line["low"] <= line["gap"] <= line["high"]
        assert line["rows"] == (y[rows] == (line["measure"] != SPECIFICITY)).sum()
    at = table.loc[(table["aim"] == "sensitivity 90 %"), "threshold"].unique()
    assert (p[y == 1] >= at[0]).mean() == pytest.approx(0.9, abs=0.01)


def test_halves_of_one_column_have_opposite_gaps(rng):
    table = gaps(*drawn(rng)).table.set_index(["subgroup", "measure", "aim"])
    for key, line in table[table["by"] == "sex"].loc["0"].iterrows():
        other = table[table["by"] == "sex"].loc["1"].loc[key]
        sign = (lambda value: 1 / value) if key[0] == RATIO else (lambda value: -value)
        assert [line["gap"], line["low"], line["high"]] == pytest.approx(
            [sign(other["gap"]), sign(other["high"]), sign(other["low"])]
        )


def test_two_proportions_have_the_interval_that_newcombe_published():
    pair = module._Pair((56 / 70, 48 / 80), (70, 80), 0.0, is_ratio=False)
    assert pair.bounds(56 / 70, norm.isf(0.025)) == pytest.approx((0.0524, 0.3339), abs=5e-5)  # 1998, method 10
    pair = module._Pair((1.0, 1.0), (10, 10), 0.0, is_ratio=False)
    assert pair.bounds(1.0, norm.isf(0.025)) == pytest.approx((-0.2775, 0.2775), abs=5e-5)  # not of width 0


def test_expected_per_observed_has_the_score_interval_of_a_poisson_count():
    low, high = module._limits(np.log(20 / 25), 20.0, 1.96, is_ratio=True)
    for ratio in np.exp([low, high]):  # where the count is 1.96 standard errors from what the ratio expects
        assert abs(20 - 25 * ratio) == pytest.approx(1.96 * np.sqrt(25 * ratio))


def test_in_large_samples_the_smallest_gap_seen_follows_from_the_standard_error():
    pair = module._Pair((0.5, 0.5), (40_000, 60_000), 0.0, is_ratio=False)
    se = np.sqrt(0.25 / 40_000 + 0.25 / 60_000)
    power = norm.ppf(0.85)  # at which simulations show 80 of 100 gaps: benchmarks/promises/fairness.py
    assert pair.smallest_seen(3.0) == pytest.approx((3.0 + power) * se, rel=0.01)
    assert pair.smallest_seen(2.0) == pytest.approx((2.0 + power) * se, rel=0.01)
    ratio = module._Pair((0.0, 0.0), (40_000, 60_000), 0.0, is_ratio=True)
    assert ratio.smallest_seen(3.0) == pytest.approx((3.0 + power) * np.sqrt(1 / 40_000 + 1 / 60_000), rel=0.02)
    assert np.isnan(module._Pair((0.8, 0.8), (3, 1000), 0.0, is_ratio=False).smallest_seen(3.5)), "too few for any gap"


def test_the_critical_value_lies_between_that_of_one_gap_and_bonferronis(rng):
    y, score, p, group, parts = drawn(rng)
    found = gaps(y, score, p, group, parts)
    assert found.tested == 30
    assert norm.isf(0.025 / 3) < found.critical < norm.isf(0.025 / 30)
    alone = gaps(y, score, p, group, parts[:1])
    twins = gaps(y, score, p, group, parts[:2])
    assert twins.critical == pytest.approx(alone.critical, abs=0.03), "the halves of a column are one comparison"


def test_rows_that_a_group_repeats_count_once(rng):
    y, score, p, group, parts = drawn(rng)
    alone = gaps(y, score, p, group, parts).table
    four = [np.repeat(values, 4) for values in (y, score, p, group)]
    repeated = gaps(*four, [Subgroup(part.by, part.name, np.repeat(part.rows, 4)) for part in parts]).table
    assert (alone["groups"] == repeated["groups"]).all()
    width, of_repeated = ((table["high"] - table["low"]) for table in (alone, repeated))
    assert of_repeated.to_numpy() == pytest.approx(width.to_numpy(), rel=0.05)


def test_a_gap_is_flagged_and_each_verdict_follows_from_its_numbers(rng):
    table = gaps(*drawn(rng, harder=1.2)).table
    site = table[(table["by"] == "site") & (table["subgroup"] == "0")].set_index(["measure", "aim"])
    assert (site.loc[[AUC, SENSITIVITY], "verdict"] == DIFFERS).all()
    assert (site.loc[[AUC, SENSITIVITY], "gap"] < 0).all()
    for line in table.to_dict("records"):
        is_ratio, margin = line["measure"] == RATIO, MARGINS[line["measure"]]
        size = (lambda value: abs(np.log(value))) if is_ratio else abs
        margin = np.log(margin) if is_ratio else margin
        none = 1 if is_ratio else 0
        if not line["low"] <= none <= line["high"]:
            assert line["verdict"] == DIFFERS
        elif size(line["seen"]) <= margin or max(size(line["low"]), size(line["high"])) <= margin:
            assert line["verdict"] == BOUNDED
        else:
            assert line["verdict"] == TOO_FEW


def test_few_groups_of_a_class_are_too_few_to_say(rng):
    y, score, p, group, _ = drawn(rng)
    few = np.zeros(len(y), bool)
    few[np.flatnonzero(y == 1)[:40]] = True
    group = np.where(few, group % (MIN_GROUPS - 1) + 10_000, group)  # many images of four patients
    few[np.flatnonzero(y == 0)[:200]] = True
    table = gaps(y, score, p, group, [Subgroup("site", "x", few)]).table.set_index("measure")
    of_positives = table.drop(index=SPECIFICITY)
    assert (of_positives["verdict"] == TOO_FEW).all()
    assert of_positives[["value", "gap", "low", "high", "seen"]].isna().all(axis=None)
    assert table.loc[SPECIFICITY, "gap"].notna().all(), "it needs no positives"


def test_a_small_subgroup_without_an_error_does_not_differ(rng):
    y, score, p, group, parts = drawn(rng)
    small = np.zeros(len(y), bool)
    small[np.flatnonzero((y == 1) & (p > np.quantile(p[y == 1], 0.3)))[:8]] = True
    small[np.flatnonzero((y == 0) & (p < np.median(p)))[:30]] = True
    table = gaps(y, score, p, group, [*parts, Subgroup("site", "small", small)]).table
    line = table[(table["subgroup"] == "small") & (table["measure"] == SENSITIVITY)].iloc[0]
    assert line["value"] == 1.0
    assert line["low"] < 0 < line["high"]
    assert line["verdict"] == TOO_FEW


def test_without_subgroups_there_are_no_gaps(rng):
    y, score, p, group, _ = drawn(rng)
    found = gaps(y, score, p, group, [])
    assert found.tested == len(found.table) == 0
    assert isinstance(found.table, pd.DataFrame)


def test_thresholds_can_be_given(rng):
    y, score, p, group, parts = drawn(rng)
    point = replace(operating_points(y, p, group)[0], threshold=0.5)
    table = gaps(y, score, p, group, parts, points=[point]).table
    assert set(table["threshold"].dropna()) == {0.5}
    assert len(table) == len(parts) * 4


def test_where_no_row_is_an_error_each_group_counts_once(rng):
    y, score, _, group, parts = drawn(rng)
    p = 0.4 * rng.random(len(y)) + 0.5 * y  # separates the classes
    point = replace(operating_points(y, p, group)[0], threshold=0.45)
    four = [np.repeat(values, 4) for values in (y, score, p, group)]
    repeated = [Subgroup(part.by, part.name, np.repeat(part.rows, 4)) for part in parts]
    tables = [gaps(y, score, p, group, parts, points=[point]).table, gaps(*four, repeated, points=[point]).table]
    exact, of_repeated = (table[table["measure"] == SENSITIVITY] for table in tables)
    assert (exact["value"] == 1).all()
    assert (exact["low"] < -0.005).all()
    assert (exact["verdict"] != DIFFERS).all()
    assert of_repeated["low"].to_numpy() == pytest.approx(exact["low"].to_numpy(), rel=0.05)

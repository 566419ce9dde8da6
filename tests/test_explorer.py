from __future__ import annotations

import json
import re

import numpy as np
import pytest
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, precision_score, recall_score

from dermstack.report.explorer import MAX_POINTS, count_at_thresholds, explorer, operating_point
from dermstack.report.report import script_policy
from stack.metrics.decisions import operating_point_at
from stack.metrics.intervals import interval


def simulated_rows(
    n: int = 500, *, decimals: int = 9, seed: int = 0
) -> tuple[NDArray[np.int8], NDArray[np.float64], NDArray]:
    """Targets, probabilities (tied where ``decimals`` are few) and groups."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.15).astype(np.int8)
    p = 1 / (1 + np.exp(2 - 2.0 * y - 1.5 * rng.normal(size=n)))
    return y, p.round(decimals), rng.integers(0, n // 3, n)


@pytest.mark.parametrize("decimals", [1, 3, 12])
@pytest.mark.parametrize("limit", [2000, 400, 20])
def test_counts_are_those_of_the_rows_at_or_above_each_threshold(decimals: int, limit: int) -> None:
    y, p, _ = simulated_rows(decimals=decimals)
    points = count_at_thresholds(y, p, limit=limit)
    assert len(points.threshold) <= limit
    assert (np.diff(points.threshold) > 0).all()
    for threshold, found, alarms in zip(points.threshold, points.true_positives, points.false_positives, strict=True):
        (spared, false), (missed, true) = confusion_matrix(y, p >= threshold, labels=[0, 1])
        assert (true, false) == (found, alarms)
        assert (points.positives - found, points.negatives - alarms) == (missed, spared)
    assert points.true_positives[0] + points.false_positives[0] == len(y)  # the lowest calls all
    if limit >= 400:  # none of the positives' steps is left out
        assert set(points.true_positives) == {(p[y == 1] >= step).sum() for step in p[y == 1]} | {(y == 1).sum()}


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1, width=64)), min_size=2, max_size=30))
def test_a_threshold_as_it_is_shown_parts_the_rows_as_its_probability_does(
    rows: list[tuple[bool, float]],
) -> None:
    y, p = (np.array(column) for column in zip(*rows, strict=True))
    points = count_at_thresholds(y.astype(int), p)
    for threshold, step in zip(points.threshold, np.unique(p), strict=True):
        np.testing.assert_array_equal(p >= float(str(threshold)), p >= step)


def test_thresholds_are_short_where_rows_lie_apart() -> None:
    points = count_at_thresholds([0, 1, 0, 1], [0.123456, 0.4005, 0.40052, 0.87654321])
    assert points.threshold.tolist() == [0.123, 0.4, 0.40052, 0.876]


@pytest.mark.parametrize("prevalence", [None, 0.001, 0.02, 0.5, 0.9])
def test_operating_points_are_those_of_rows_weighted_to_the_prevalence(prevalence: float | None) -> None:
    y, p, _ = simulated_rows()
    share = y.mean() if prevalence is None else prevalence
    weight = np.where(y == 1, share / y.mean(), (1 - share) / (1 - y.mean()))
    points = count_at_thresholds(y, p)
    for place in (0, 40, 250, 480, len(points.threshold) - 1):
        called = p >= points.threshold[place]
        made = operating_point(
            int(points.true_positives[place]), int(points.false_positives[place]), points.positives, points.negatives,
            prevalence=prevalence,
        )  # fmt: skip
        assert made.sensitivity == pytest.approx(recall_score(y, called))
        assert made.specificity == pytest.approx(recall_score(1 - y, ~called))
        assert made.accuracy == pytest.approx(accuracy_score(y, called, sample_weight=weight))
        assert made.ppv == pytest.approx(precision_score(y, called, sample_weight=weight))
        assert made.biopsies == (pytest.approx(1 / made.ppv) if made.ppv else None)
        if called.all():
            assert made.npv is None
        else:
            assert made.npv == pytest.approx(precision_score(1 - y, ~called, sample_weight=weight))


def test_what_nobody_is_called_has_no_predictive_value() -> None:
    none = operating_point(0, 0, 5, 10)
    assert (none.sensitivity, none.specificity, none.ppv, none.biopsies) == (0, 1, None, None)
    assert none.npv == pytest.approx(10 / 15)
    wrong = operating_point(0, 3, 5, 10)
    assert (wrong.ppv, wrong.biopsies) == (0, None)


def test_the_table_without_javascript_holds_what_the_aims_bring() -> None:
    y, p, group = simulated_rows()
    rows = {row[0]: row for row in Page(explorer(y, p, group).markup).rows}
    for aim, objective in (("sensitivity 90 %", "specificity@0.9"), ("specificity 80 %", "sensitivity@0.8")):
        row = rows[aim]
        threshold = float(row[1])
        called = p >= threshold
        best = interval(objective, y, p, group).value
        shown = row[3] if aim.startswith("sens") else row[2]
        assert shown.startswith(f"{100 * best:.1f} %")
        point = operating_point_at(y, p, group, *aim.split()[:2], threshold)
        shares = (point.sensitivity, point.specificity, point.ppv, point.npv)
        assert point.sensitivity.value == pytest.approx(recall_score(y, called))
        for cell, share in zip(row[2:6], shares, strict=True):
            assert cell == f"{100 * share.value:.1f} % {100 * share.low:.1f} to {100 * share.high:.1f}"
        assert row[6] == f"{1 / precision_score(y, called):.1f}"


def test_a_specificity_that_no_threshold_reaches_is_answered_with_the_highest() -> None:
    y, p = np.array([0, 1, 0, 1, 0, 1]), np.array([0.2, 0.3, 0.9, 0.3, 0.9, 0.9])
    rows = {row[0]: row for row in Page(explorer(y, p, np.arange(6)).markup).rows}
    assert rows["specificity 95 %"][3].startswith("33.3 %")


def test_the_section_carries_the_exact_table_and_its_script() -> None:
    y, p, group = simulated_rows(6_000)
    section = explorer(y, p, group)
    table = json.loads(re.search(r'id="explorer-data">(.*?)</script>', section.markup, re.DOTALL)[1])
    points = count_at_thresholds(y, p)
    assert table["threshold"] == points.threshold.tolist()
    assert table["truePositives"] == points.true_positives.tolist()
    assert len(points.threshold) <= MAX_POINTS
    assert f"<script>{section.script}</script>" in section.markup
    assert script_policy("alert(1)") == "'sha256-bhHHL3z2vDgxUt0W3dWQOrprscmda2Y5pLsLg4GF+pI='"  # of a CSP tutorial
    assert script_policy("") == "'none'"


@pytest.mark.slow
def test_half_a_million_rows_keep_the_section_small() -> None:
    assert len(explorer(*simulated_rows(400_000)).markup.encode()) < 200_000


def test_thresholds_of_the_table_have_equally_many_decimals_and_reach_what_their_row_says() -> None:
    y, p, group = simulated_rows(3_000, decimals=12)
    rows = [row for row in Page(explorer(y, p, group).markup).rows if row[0].startswith(("sens", "spec"))]
    assert len(rows) == 7
    decimals = {len(row[1].partition(".")[2]) for row in rows}
    assert len(decimals) == 1
    smallest = min(float(row[1]) for row in rows)
    assert 100 <= smallest * 10 ** decimals.pop() < 1000  # three significant digits
    for row in rows:
        aim, share = row[0].split()[0], float(row[0].split()[1]) / 100
        called = p >= float(row[1])
        assert (recall_score(y, called) if aim == "sensitivity" else recall_score(1 - y, ~called)) >= share
        best = interval(f"{'specificity' if aim == 'sensitivity' else 'sensitivity'}@{share}", y, p, group).value
        other = recall_score(1 - y, ~called) if aim == "sensitivity" else recall_score(y, called)
        assert best - 0.02 < other <= best + 1e-9


def test_a_threshold_is_not_rounded_above_every_probability() -> None:
    y, p = np.array([0] * 50 + [1] * 50), np.r_[np.linspace(0.1, 0.98764, 50), np.linspace(0.5, 0.98765, 50)]
    rows = {row[0]: row for row in Page(explorer(y, p, np.arange(100)).markup).rows}
    assert (p >= float(rows["specificity 95 %"][1])).any()
    assert rows["specificity 95 %"][6] != "–"

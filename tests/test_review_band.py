"""The review band: what is decided, by whom it was chosen, and whether a promise is said to have held."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dermstack.report.review import per_thousand_table, review_doubts
from stack.metrics.measures import jsonable
from stack.metrics.review_band import (
    FAILED,
    HELD,
    TOO_FEW,
    UNDECIDED,
    Band,
    ReviewCheck,
    band_from_record,
    choose_band,
    cross_fitted_decisions,
    decide,
    decisions_by_subgroup,
    guarantee_text,
    kept_text,
    measure_decisions,
)
from stack.metrics.risk_control import Guarantee
from stack.metrics.subgroups import Subgroup

LOW = Guarantee("sensitivity", 0.9, 0.9, 0.2, 50, 60, 2, 3, "betting", None)
HIGH = Guarantee("ppv", 0.5, 0.9, 0.6, 50, 60, 2, 3, "betting", None)


def rows(
    seed: int = 0, patients: int = 400, sharp: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Targets, calibrated p, patients and folds."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    p = 1 / (1 + np.exp(-sharp * rng.normal(-1, 2, len(group))))
    return (rng.random(len(group)) < p).astype(int), p, group, group % 5


def test_each_risk_has_the_decision_of_its_side() -> None:
    band = Band(LOW, HIGH, 0.9, 0.2, 0.6)
    assert decide([0.1, 0.2, 0.59, 0.6, 0.9], band).tolist() == ["negative", "review", "review", "positive", "positive"]
    assert decide([0.0, 1.0], Band(LOW, None, 0.9, 0.0, None)).tolist() == ["review", "review"]
    assert decide([0.1, 0.9], band, certain=[False, True]).tolist() == ["review", "positive"]


def test_two_ends_share_what_the_confidence_leaves() -> None:
    y, p, group, _ = rows()
    one = choose_band(y, p, group, ("sensitivity", 0.9), confidence=0.9)
    two = choose_band(y, p, group, ("sensitivity", 0.9), ("specificity", 0.8), confidence=0.9)
    assert [of.confidence for of in one.guarantees] == [pytest.approx(0.9)]
    assert [of.confidence for of in two.guarantees] == [pytest.approx(0.95)] * 2
    assert two.below <= one.below


@pytest.mark.parametrize("low", [("sensitivity", 0.7), ("npv", 0.8)])
@pytest.mark.parametrize("high", [("specificity", 0.7), ("ppv", 0.7)])
def test_where_the_ends_overlap_one_threshold_keeps_both_promises(
    low: tuple[str, float], high: tuple[str, float]
) -> None:
    y, p, group, _ = rows(sharp=3)
    band = choose_band(y, p, group, low, high)
    assert band.high is not None
    assert band.low.threshold is not None
    assert band.high.threshold is not None
    assert band.high.threshold < band.low.threshold, "else this is no test"
    assert band.above == band.below
    assert band.high.threshold <= band.below <= band.low.threshold
    found = measure_decisions(y, decide(p, band), group, band.guarantees)
    assert found.review.value == 0
    assert all(kept.value.value >= kept.level for kept in found.kept)


def test_a_decision_does_not_depend_on_targets_of_its_own_fold() -> None:
    y, p, group, fold = rows()
    before, without = cross_fitted_decisions(y, p, group, fold, ("sensitivity", 0.9))
    changed = np.where(fold == 2, 1 - y, y)
    after, _ = cross_fitted_decisions(changed, p, group, fold, ("sensitivity", 0.9))
    assert without == 0
    assert (before[fold == 2] == after[fold == 2]).all()
    assert (before[fold != 2] != after[fold != 2]).any()
    few, none = cross_fitted_decisions(y[:40], p[:40], group[:40], fold[:40], ("sensitivity", 0.99))
    assert set(few) == {"review"}
    assert none == len(set(fold[:40]))


def test_counts_are_those_of_the_rows() -> None:
    y = np.array([1, 1, 0, 0, 1, 0])
    decision = np.array(["negative", "review", "negative", "positive", "positive", "review"], object)
    found = measure_decisions(y, decision, list("aabbcd"), (LOW, HIGH))
    assert (found.rows, found.groups, found.positives, found.missed, found.false_alarms) == (6, 4, 3, 1, 1)
    assert [share.value for share in (found.negative, found.review, found.positive)] == [pytest.approx(1 / 3)] * 3
    sensitivity, ppv = found.kept
    assert sensitivity.value.value == pytest.approx(2 / 3), "a reviewed positive counts as found"
    assert (sensitivity.rows, sensitivity.groups, sensitivity.errors) == (3, 2, 1)
    assert (ppv.value.value, ppv.rows, ppv.errors) == (0.5, 2, 1)
    assert found.per_thousand(found.missed) == pytest.approx(1000 / 6)


@pytest.mark.parametrize(
    ("positives", "missed", "verdict", "words"),
    [
        (200, 2, HELD, "The promise held here: sensitivity 99.0"),
        (200, 60, FAILED, "Let a person see all images"),
        (200, 18, UNDECIDED, "cannot be told"),
        (4, 0, TOO_FEW, "4 patients with an image that is positive, an interval needs 5"),
    ],
)
def test_a_promise_is_judged_by_the_interval_over_patients(
    positives: int, missed: int, verdict: str, words: str
) -> None:
    decision = np.where(np.arange(positives) < missed, "negative", "review").astype(object)
    found = measure_decisions(np.ones(positives, int), decision, np.arange(positives), (LOW,))
    assert found.kept[0].verdict == verdict
    assert words in kept_text(found.kept[0])


def test_a_subgroup_fails_only_beyond_what_the_number_of_subgroups_explains() -> None:
    n = 100
    decision = np.where(np.arange(n) < 17, "negative", "review").astype(object)  # 83 % [74, 89] of 90 %
    y, group, everyone = np.ones(n, int), np.arange(n), np.ones(n, bool)
    alone, *_ = decisions_by_subgroup(y, decision, group, (LOW,), [Subgroup("sex", "female", everyone)])
    among = decisions_by_subgroup(y, decision, group, (LOW,), [Subgroup("site", str(k), everyone) for k in range(40)])
    assert alone.found.kept[0].verdict == FAILED
    assert {of.found.kept[0].verdict for of in among} == {UNDECIDED}
    assert among[0].found.kept[0].value == alone.found.kept[0].value, "the interval that is shown is the same"


def test_a_band_is_restored_from_what_was_written() -> None:
    y, p, group, _ = rows()
    for high in (None, ("ppv", 0.6)):
        band = choose_band(y, p, group, ("npv", 0.8), high, exact=False)
        assert band_from_record(json.loads(json.dumps(jsonable(band)))) == band


def test_where_no_threshold_has_the_guarantee_the_reason_is_said() -> None:
    y, p, group, _ = rows(patients=20)
    for aim, level, words in (
        ("sensitivity", 0.99, "patients with a positive image are too few"),
        ("npv", 0.999, "no image is decided as negative"),
    ):
        band = choose_band(y, p, group, (aim, level))
        text = guarantee_text(band.low, band.below, "rule")
        assert band.below == 0
        assert words in text
        found = measure_decisions(y, decide(p, band), group, band.guarantees)
        assert found.review.value == 1
        check = ReviewCheck(band, found, (), 1.0, ())
        assert check.sentences() == ["No image is decided as negative, so nothing is promised about such decisions."]
    lacking = ReviewCheck(band, found, (), 1.0, ("sex",))
    assert "as these lack sex" in lacking.sentences()[0]


def test_a_subgroup_whose_own_interval_lies_below_the_promise_is_named() -> None:
    y, group = np.ones(120, int), np.arange(120)
    decision = np.array(["negative"] * 8 + ["review"] * 112, dtype=object)  # the first eight are missed
    parts = [Subgroup("age", name, rows) for name, rows in (("young", group < 20), ("old", group >= 20))]
    y[60:] = 0
    many = [*parts, *[Subgroup("site", str(k), group >= 20) for k in range(300)]]
    found = decisions_by_subgroup(y, decision, group, [LOW], many)
    (said,) = review_doubts(found)
    assert said.startswith("age young: sensitivity 60.0 %")
    assert "(8 wrong of 20 images)" in said
    assert ("may be chance" in said) == (found[0].found.kept[0].verdict != "failed")
    assert [cells[0] for _, cells in per_thousand_table(found[0].found).rows] == ["negative", "for a person"]
    both = measure_decisions(y, decision, group, [LOW, HIGH])
    assert [cells[0] for _, cells in per_thousand_table(both).rows] == ["negative", "for a person", "positive"]

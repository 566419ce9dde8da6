from __future__ import annotations

import html
import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from dermstack.errors import DataError
from dermstack.report.evaluation import evaluation_html
from stack.metrics.closed_test import closed_test
from stack.metrics.gaps import AIMS_OF_GAPS, gaps, gaps_of_records
from stack.metrics.intervals import Interval, clustered_auc
from stack.metrics.measures import check_classes, jsonable, measure
from stack.metrics.subgroups import find_subgroups
from stack.metrics.validation import (
    AGREES,
    COLUMNS_MISSING,
    DIFFERS,
    HIGHER,
    LOWER,
    NOT_COMPARABLE,
    UNDECIDED,
    InternalValidation,
    Validation,
    compare,
    internal_validation,
    internal_validation_from_json,
    validate,
)

Rows = tuple[np.ndarray, np.ndarray, pd.DataFrame]


def drawn(rng: np.random.Generator, n: int = 1500, *, prevalence: float = 0.15) -> Rows:
    """Targets, a p that is right at a prevalence of 15 %, and rows in groups of about three."""
    group = rng.integers(0, n // 3, n)
    y = (rng.random(n) < prevalence).astype(int)
    x = rng.normal(1.6 * y, 1.0)
    p = expit(logit(0.15) + 1.6 * x - 1.6**2 / 2)
    people = {"sex": rng.choice(["male", "female"], n // 3), "age": rng.integers(20, 90, n // 3).astype(float)}
    frame = pd.DataFrame({"group": group, **{name: values[group] for name, values in people.items()}})
    return y, p, frame.assign(site=rng.choice(["torso", "head/neck"], n))


def promised(rng: np.random.Generator) -> InternalValidation:
    y, p, frame = drawn(rng, 3000)
    return internal_validation("auc", y, p, p, frame["group"], frame, draws=100)


def judged(promise: InternalValidation, y: np.ndarray, p: np.ndarray, frame: pd.DataFrame, **more: Any) -> Validation:
    made = pd.DataFrame({"score": p, "p_calibrated": p, **more})
    return validate(promise, made, y, frame, experiment="x", bundle="0123456789ab", draws=100)


def verdicts(found: Validation) -> dict[str, str]:
    return {entry.quantity: entry.verdict for entry in found.comparisons}


def test_measures_are_those_of_scikit_learn(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng)
    made = measure(y, p, p, frame["group"], draws=50)
    assert (made.rows, made.positives, made.groups) == (1500, y.sum(), frame["group"].nunique())
    assert made.prevalence.value == pytest.approx(y.mean())
    assert made.auc.value == pytest.approx(roc_auc_score(y, p))
    assert made.ap.value == pytest.approx(average_precision_score(y, p))
    assert made.log_loss.value == pytest.approx(log_loss(y, p))
    assert made.log_loss.low < made.log_loss.value < made.log_loss.high
    assert made.brier == pytest.approx(brier_score_loss(y, p))
    assert made.auc_se == pytest.approx(np.sqrt(clustered_auc(y, p, frame["group"]).covariance[0, 0]))


def test_a_p_that_is_right_has_about_the_ece_that_chance_gives_it(rng: np.random.Generator) -> None:
    p = rng.beta(1, 5, 3000)
    seen = [measure((rng.random(3000) < p).astype(int), p, p, np.arange(3000), draws=2) for _ in range(10)]
    assert np.mean([made.ece for made in seen]) == pytest.approx(seen[0].ece_by_chance, rel=0.2)
    assert (
        measure((rng.random(3000) < p**2).astype(int), p, p, np.arange(3000), draws=2).ece > 3 * seen[0].ece_by_chance
    )


@pytest.mark.parametrize(
    ("found", "found_se", "verdict"),
    [
        (0.85, 0.02, AGREES),
        (0.84, 0.02, LOWER),
        (0.96, 0.02, HIGHER),
        (0.99, 0.0, UNDECIDED),
        (np.nan, 0.02, UNDECIDED),
    ],
)
def test_estimates_agree_within_the_noise_of_both(found: float, found_se: float, verdict: str) -> None:
    made = compare("auc", 0.90, 0.02, found, found_se)  # 1.96 √(0.02² + 0.02²) = 0.0554
    assert made.verdict == verdict
    if found_se:
        assert made.noise == pytest.approx(0.0554, abs=1e-4)


def test_more_rows_of_the_same_world_agree(rng: np.random.Generator) -> None:
    found = judged(promised(rng), *drawn(rng))
    assert set(verdicts(found).values()) == {AGREES}
    assert not found.prevalence_differs


@pytest.mark.slow
def test_the_auc_of_the_same_world_is_called_apart_in_one_of_twenty() -> None:
    rng, apart = np.random.default_rng(5), 0
    for _ in range(400):
        (y, p, frame), (y2, p2, frame2) = drawn(rng, 900), drawn(rng, 600)
        one, two = (clustered_auc(*of).interval() for of in ((y, p, frame["group"]), (y2, p2, frame2["group"])))
        apart += compare("auc", one.value, one.se, two.value, two.se).verdict != AGREES
    assert 0.02 < apart / 400 < 0.09


@pytest.mark.slow
def test_the_joint_test_says_that_the_same_world_differs_in_one_of_twenty() -> None:
    """Of sixteen verdicts; the words of every line follow from the one test."""
    rng, apart = np.random.default_rng(8), 0
    for _ in range(200):
        (y, p, frame), (y2, p2, frame2) = drawn(rng, 3000), drawn(rng, 2000)
        promise = internal_validation("auc", y, p, p, frame["group"], frame, draws=60)
        found = validate(
            promise, pd.DataFrame({"score": p2, "p_calibrated": p2}), y2, frame2, experiment="x", bundle="0", draws=200
        )
        assert found.joint.values in {13, 16}, "without those that another prevalence changes"
        assert (found.verdict == DIFFERS) == bool(found.apart)
        apart += found.verdict == DIFFERS
    assert 0.015 < apart / 200 < 0.10


def test_the_words_follow_from_the_joint_test(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    same, other = judged(promise, y, p, frame), judged(promise, y, expit(logit(p) + 0.7), frame)
    assert same.verdict == AGREES
    assert same.apart == []
    assert same.summary.startswith("agrees with the training estimate (joint test of 16 metrics")
    assert other.verdict == DIFFERS
    assert other.summary.startswith("differs from the training estimate beyond noise in ")
    assert any("specificity" in name for name in other.apart)
    assert "calibration in the large (lower)" in other.apart, other.apart  # not "beyond noise in in the large"
    page = re.sub(r"\s+", " ", evaluation_html(other, y, p, created=""))
    assert "Agrees with" not in page
    assert "Differs from the training estimate beyond noise in" in page
    assert "the AUC is not lower beyond noise, but other values differ" in page


def test_beside_metrics_that_agree_the_reader_is_told_where_the_risks_are_wrong(rng: np.random.Generator) -> None:
    """The number of positives is tested by itself: the page must not only say that the AUC and the others agree."""
    promise, (y, p, frame) = promised(rng), drawn(rng)
    found = judged(promise, y, p, frame)
    positives = found.found.positives
    assert found.verdict == AGREES
    for low, high, words in ((0.5, 0.9, "too low"), (1.1, 1.5, "too high"), (0.9, 1.1, "")):
        expected = Interval((low + high) / 2 * positives, low * positives, high * positives, 1.0)
        other = replace(found, expected_positives=expected)
        page = re.sub(r"\s+", " ", evaluation_html(other, y, p, created=""))
        told = f"<strong>What to do:</strong> the risks are {words} for these images: {positives:,} are positive"
        assert (told in page) == bool(words)
        assert ("<strong>What to do:</strong>" in page) == bool(words)
        assert ("which agrees" in page) == (not words)


def test_rows_without_metadata_are_not_compared_with_what_metadata_promised(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    worse = expit(logit(p) + rng.normal(0, 1.5, len(p)))  # what the model knew of age is gone
    made = pd.DataFrame({"score": worse, "p_calibrated": worse})
    given: dict[str, Any] = {"experiment": "x", "bundle": "0", "draws": 100, "lacking": ["age", "sex"]}
    unknown = validate(promise, made, y, frame, **given)
    assert unknown.verdict == COLUMNS_MISSING
    assert unknown.joint.values == 0
    assert "cannot be compared with the training estimate, which was made with age and sex" in unknown.summary
    change = float(roc_auc_score(y, worse)) - promise.measures.auc.value
    known = validate(promise, made, y, frame, cost=Interval(change, change - 0.02, change + 0.02, 0.01), **given)
    assert known.verdict == AGREES
    assert known.joint.values == 1
    assert "as far as rows without age and sex can be compared" in known.summary
    auc = known.comparison("auc")
    assert auc.promised == pytest.approx(promise.measures.auc.value + change)
    assert auc.promised_se == pytest.approx(np.hypot(promise.measures.auc_se, 0.01))
    assert {entry.verdict for of in known.points for entry in (of.sensitivity, of.specificity)} == {COLUMNS_MISSING}
    assert validate(promise, made, y, frame, **{**given, "lacking": []}).verdict == DIFFERS
    for found in (unknown, known):
        page = re.sub(r"\s+", " ", evaluation_html(found, y, worse, created=""))
        assert "These images have no age and no sex" in page


def test_flipped_labels_are_lower_than_promised(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng)
    flipped = np.where(rng.random(len(y)) < 0.25, 1 - y, y)
    found = judged(promised(rng), flipped, p, frame)
    assert found.verdict == DIFFERS
    assert verdicts(found)["auc"] == LOWER
    assert verdicts(found)["slope"] == LOWER
    assert all(LOWER in (of.sensitivity.verdict, of.specificity.verdict) for of in found.points)
    reversed_ = judged(promised(rng), 1 - y, p, frame)
    assert reversed_.found.auc.value == pytest.approx(1 - roc_auc_score(y, p))


def test_a_sharper_world_is_higher_than_promised(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng)
    assert judged(promised(rng), y, expit(logit(p) + 2 * y), frame).comparison("auc").verdict == HIGHER


def test_another_prevalence_is_named_and_only_what_it_leaves_alone_is_compared(rng: np.random.Generator) -> None:
    found = judged(promised(rng), *drawn(rng, prevalence=0.4))
    assert found.prevalence_differs
    said = verdicts(found)
    assert said.pop("prevalence") == HIGHER
    assert {name for name, verdict in said.items() if verdict == NOT_COMPARABLE} == {"ap", "log_loss", "in_the_large"}
    assert {name for name, verdict in said.items() if verdict == AGREES} == {"auc", "pauc80", "slope"}
    assert all(of.sensitivity.verdict == of.specificity.verdict == AGREES for of in found.points)


def test_a_p_that_is_too_high_or_too_bold_is_no_longer_calibrated(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    high, bold = (judged(promise, y, of, frame) for of in (expit(logit(p) + 1), expit(2 * logit(p))))
    assert verdicts(high)["auc"] == verdicts(bold)["auc"] == AGREES  # the order is the same
    assert high.verdict == bold.verdict == DIFFERS
    assert verdicts(high)["in_the_large"] == LOWER
    assert high.found.in_the_large.value == pytest.approx(judged(promise, y, p, frame).found.in_the_large.value - 1)
    assert verdicts(bold)["slope"] == LOWER
    # A threshold that training fixed finds more where p is too high, and calls more by mistake.
    assert {(of.sensitivity.verdict, of.specificity.verdict) for of in high.points} <= {
        (HIGHER, LOWER),
        (AGREES, LOWER),
    }


def test_thresholds_of_training_are_applied_and_those_of_these_rows_told_apart(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    found = judged(promise, y, p, frame)
    for of, own in zip(found.points, promise.points, strict=True):
        assert of.found.threshold == own.threshold
        assert of.found.sensitivity.value == np.mean(p[y == 1] >= own.threshold)
        assert of.found.specificity.value == np.mean(p[y == 0] < own.threshold)
    for selected in found.selected_on_these_rows:
        keep, other = (y == 1, y == 0) if selected.aim == "sensitivity" else (y == 0, y == 1)
        sides = [(p >= t, p < t) if selected.aim == "sensitivity" else (p < t, p >= t) for t in [*np.unique(p), 2]]
        best = max(np.mean(lost[other]) for held, lost in sides if np.mean(held[keep]) >= selected.level)
        assert selected.other.value == pytest.approx(best)


def test_a_subgroup_that_is_ordered_worse_stands_out_beside_what_training_had(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    bad = (frame["site"] == "torso").to_numpy()
    p = np.where(bad, rng.permutation(p), p)
    line = next(of for of in judged(promise, y, p, frame).subgroups if of["subgroup"] == "torso")
    assert line["apart"]
    assert line["auc"] == pytest.approx(roc_auc_score(y[bad], p[bad]))
    assert line["promised_auc"] == next(of["auc"] for of in promise.subgroups if of["subgroup"] == "torso")


def test_gaps_are_those_at_the_thresholds_of_training_and_come_back_from_json(rng: np.random.Generator) -> None:
    promise, (y, p, frame) = promised(rng), drawn(rng)
    found = judged(promise, y, p, frame)
    at = {point.threshold for point in promise.points if (point.aim, point.level) in AIMS_OF_GAPS}
    stored = json.loads(json.dumps(jsonable(found)))
    between = gaps_of_records(stored["gaps"], stored["gaps_critical"])
    assert set(between.table["threshold"].dropna()) == at
    assert len(at) == 2
    expected = gaps(
        y, p, p, frame["group"], find_subgroups(frame), points=[of for of in promise.points if of.threshold in at]
    )
    pd.testing.assert_frame_equal(between.table, expected.table, check_dtype=False)
    assert between.critical == expected.critical
    page = evaluation_html(found, y, p, created="")
    assert "Gaps between subgroups" in page
    assert "The thresholds were chosen in training" in page


def test_far_images_are_counted_and_left_out_for_comparison(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng)
    far = rng.random(len(y)) < 0.2
    found = judged(promised(rng), y, p, frame, far=far).far
    assert found is not None
    assert (found.rows, found.positives) == (far.sum(), y[far].sum())
    assert found.auc_near.value == pytest.approx(roc_auc_score(y[~far], p[~far]))
    assert found.auc_far == pytest.approx(roc_auc_score(y[far], p[far]))
    none = judged(promised(rng), y, p, frame, far=np.ones(len(y), bool)).far
    assert none is not None
    assert np.isnan(none.auc_near.value)
    assert judged(promised(rng), y, p, frame).far is None


def test_too_few_groups_of_a_class_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="none of the 3 rows is positive"):
        check_classes([0, 0, 0], ["a", "b", "c"])
    with pytest.raises(DataError, match=r"all 2 positive rows are of 1 group \(a\)"):
        check_classes([1, 1, 0, 0], ["a", "a", "b", "c"])


@pytest.mark.parametrize("y", [[0, 0, 0, 0], [1, 1, 0, 0]])
def test_too_few_labels_to_recalibrate_are_refused_with_what_recalibration_needs(y: list[int]) -> None:
    with pytest.raises(DataError, match=r"recalibration.* needs two groups with each class.*--prevalence") as caught:
        closed_test(y, [0.1, 0.2, 0.3, 0.4], ["a", "a", "b", "c"])
    assert "AUC" not in str(caught.value)


def test_a_promise_comes_back_from_json_as_it_was(rng: np.random.Generator) -> None:
    promise = promised(rng)
    assert internal_validation_from_json(json.loads(json.dumps(jsonable(promise), allow_nan=False))) == promise


def test_the_page_says_what_the_json_says_and_names_no_row(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng, prevalence=0.4)
    frame["group"] = [f"PATIENT_{number}" for number in frame["group"]]
    frame["id"] = [f"IMAGE_{number}" for number in range(len(y))]
    found = judged(promised(rng), y, p, frame, far=rng.random(len(y)) < 0.2)
    content = json.loads(json.dumps(jsonable(found), allow_nan=False))
    page = evaluation_html(found, y, p, created="2026-01-01")
    shown = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    auc = content["found"]["auc"]
    assert f"AUC on these images {auc['value']:.3f} 95 % interval {auc['low']:.3f} to {auc['high']:.3f}" in shown
    for entry in content["comparisons"]:
        form = ".1%" if entry["quantity"] == "prevalence" else ".4f"
        cells = [f"{entry[side]:{form}}".replace("-", "−").replace("%", " %") for side in ("promised", "found")]
        assert f"{cells[0]} {cells[1]} " in shown
    for of in content["points"]:
        share = of["found"]["sensitivity"]
        assert f"{share['value']:.1%}".replace("%", " %") + f" ({100 * share['low']:.1f} to " in shown
    assert f"{content['far']['rows']:,} of {content['found']['rows']:,} images" in shown
    assert shown.count(NOT_COMPARABLE) == 3
    assert "Content-Security-Policy" in page
    assert not re.search(r"PATIENT|IMAGE_|<script|https?://(?!www\.w3\.org)", page)


def test_what_users_wrote_is_text_on_the_page(rng: np.random.Generator) -> None:
    y, p, frame = drawn(rng)
    frame["site"] = np.where(frame["site"] == "torso", "<b>torso</b>", frame["site"])
    page = evaluation_html(judged(promised(rng), y, p, frame), y, p, created="2026-01-01")
    assert "<b>torso" not in page
    assert "&lt;b&gt;torso" in page


def test_subgroups_by_a_further_column_are_those_of_its_rows_with_the_expected_auc_beside_them(
    rng: np.random.Generator,
) -> None:
    words = np.array(["scanner A", "scanner B"])
    y, p, frame = drawn(rng, 3000)
    frame = frame.assign(device=words[(p > np.median(p)).astype(int)])
    given = {"further": {"device": "device, as in the csv"}, "draws": 100}
    promise = internal_validation("auc", y, p, p, frame["group"], frame, **given)
    new_y, new_p, new = drawn(rng, 1500)
    new = new.assign(device=words[(new_p > np.median(new_p)).astype(int)])
    made = pd.DataFrame({"score": new_p, "p_calibrated": new_p})
    found = validate(promise, made, new_y, new, experiment="x", bundle="0123456789ab", **given)
    parts = {entry["subgroup"]: entry for entry in found.subgroups if entry["by"] == "device, as in the csv"}
    assert set(parts) == set(words)
    for word in words:
        rows, trained = (new["device"] == word).to_numpy(), (frame["device"] == word).to_numpy()
        assert parts[word]["rows"] == rows.sum()
        assert parts[word]["auc"] == pytest.approx(roc_auc_score(new_y[rows], new_p[rows]))
        assert parts[word]["promised_auc"] == pytest.approx(roc_auc_score(y[trained], p[trained]))
    plain = validate(promise, made, new_y, new, experiment="x", bundle="0123456789ab", draws=100)
    assert "device, as in the csv" not in {entry["by"] for entry in plain.subgroups}

import re
import warnings

import matplotlib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from dermstack.report.figures import (
    CURVE_POINTS,
    Estimate,
    bar_figure,
    block_importance_figure,
    decision_figure,
    feature_importance_figure,
    interval_figure,
    precision_recall_figure,
    precision_recall_points,
    reliability_figure,
    roc_figure,
    roc_points,
    study_figure,
)
from stack.metrics.calibration import reliability
from stack.metrics.decisions import decision_curve
from stack.tune.studies import StudyHistory

ODD = ["$\\frac$", "<b>&amp;", 'id="x" url(#y)', "font-family: x; #00000a", "_hidden", "日本 −", "x" * 80]

scored = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=40).filter(
    lambda rows: len({y for y, _ in rows}) == 2
)


@settings(max_examples=60)
@given(scored)
def test_the_areas_under_the_drawn_curves_are_auc_and_ap(rows):
    y, s = np.array(rows).T
    assert np.trapezoid(*roc_points(y, s)[::-1]) == pytest.approx(roc_auc_score(y, s))
    recall, precision = precision_recall_points(y, s)
    assert recall[0] == 0
    assert recall[-1] == 1
    assert np.sum(np.diff(recall) * precision[1:]) == pytest.approx(average_precision_score(y, s))


def test_thinned_curves_stay_within_a_pixel_of_the_whole():
    rng = np.random.default_rng(0)
    y = rng.random(60_000) < 0.4
    s = rng.normal(size=y.size) + y
    x, rate = roc_points(y, s)
    assert x.size <= CURVE_POINTS
    assert (x[0], rate[0], x[-1], rate[-1]) == (0, 0, 1, 1)
    whole_x, whole_rate, _ = roc_curve(y, s)
    assert whole_x.size > 5 * CURVE_POINTS
    assert np.max(np.abs(np.interp(whole_x, x, rate) - whole_rate)) < 1 / 300
    recall, precision = precision_recall_points(y, s)
    whole_precision, whole_recall, _ = precision_recall_curve(y, s)
    assert recall.size <= CURVE_POINTS
    late = whole_recall > 0.01  # before that, a few rows make the precision jump
    gap = np.abs(np.interp(whole_recall[late], recall, precision) - whole_precision[late])
    assert np.max(gap) < 1 / 100


def draw_all(labels):
    y = np.array([0, 1, 0, 1])
    scores = {label: np.roll([0.1, 0.2, 0.3, 0.4], i) for i, label in enumerate(labels)}
    estimates = [Estimate(label, 0.8, 0.7, 0.9, 0.85, strong=i == 0) for i, label in enumerate(labels)]
    return [
        roc_figure("roc", y, scores),
        precision_recall_figure("recall", y, scores),
        interval_figure("intervals", estimates, axis="AUC", reference=0.8),
        bar_figure("bars", {label: 0.1 * i for i, label in enumerate(labels)}, axis="weight"),
    ]


def draw_more(labels):
    rng = np.random.default_rng(0)
    y, p, group = rng.random(300) < 0.3, rng.random(300), np.arange(300)
    importance = pd.DataFrame(
        [[label, of, name, "x", 0.5, 0.5] for label in labels for of in ("block", "feature") for name in labels],
        columns=["stacker", "of", "name", "block", "size", "trend"],
    )
    studies = [StudyHistory(f"{label}-without-none", np.array([0.5, 0.6]), ("complete",) * 2) for label in labels]
    return [
        reliability_figure("reliability", reliability(y, p, group), axis="p"),
        decision_figure("decision", decision_curve(y, p, group, draws=5)),
        block_importance_figure("blocks", importance),
        feature_importance_figure("features", importance, labels[0]),
        study_figure("history", studies, axis="AUC"),
        roc_figure("folds", y, {labels[0]: p}, group % 3),
    ]


def test_the_same_figure_has_the_same_bytes_whatever_the_users_settings():
    plain = [(drawn.svg, drawn.legend) for drawn in draw_all(["a", "b"])]
    with matplotlib.rc_context({"font.size": 30, "text.color": "red", "axes.linewidth": 5, "lines.marker": "x"}):
        assert [(drawn.svg, drawn.legend) for drawn in draw_all(["a", "b"])] == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_figures_have_the_colours_of_the_page_only():
    for drawing in [*draw_all("abcde"), *draw_more("abcde")]:
        colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawing.svg))
        assert colours <= {"none", "var(--ink)", "var(--muted)", "var(--line)", "var(--accent)"}
        assert "var(--accent)" in colours


def test_figures_on_one_page_share_no_ids():
    found = [set(re.findall(r'\bid="([^"]+)"', drawing.svg)) for drawing in [*draw_all("ab"), *draw_more("ab")]]
    assert all(found)
    assert len(set.union(*found)) == sum(map(len, found))
    for drawing, ids in zip([*draw_all("ab"), *draw_more("ab")], found, strict=True):
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', drawing.svg)) <= ids


def test_any_label_is_shown_as_it_is():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves, _, intervals, bars = draw_all(ODD)
        _, _, blocks, features, _, _ = draw_more(ODD)
    assert [label for label, _ in blocks.legend] == ODD
    assert [label for label, _ in curves.legend] == ODD
    for drawing in (intervals, bars, blocks, features):
        shown = re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)
        for label in ODD[:-1]:
            assert label.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") in shown
        assert "x" * 35 + "…" + "x" * 12 in shown


def test_what_a_figure_shows_is_also_said():
    curves, _, intervals, bars = draw_all(["one", "two"])
    assert 'role="img" aria-label="ROC curves. one; two."' in curves.svg
    assert "one 0.8000, 0.7000 to 0.9000, tuned in-sample 0.8500; two" in intervals.svg
    assert "weight. one 0.000; two 0.100." in bars.svg


def test_a_value_without_an_interval_is_still_drawn():
    nan = float("nan")
    drawing = interval_figure("x", [Estimate("a", 0.8, nan, nan), Estimate("b", 0.7, 0.6, 0.8)], axis="AUC")
    assert "0.8000" in drawing.svg
    assert "nan" not in drawing.svg
    assert "a 0.8000; b 0.7000, 0.6000 to 0.8000" in drawing.svg


def lines(drawing):
    """Vertices of each path that is stroked and not filled, in the units of the SVG."""
    found = re.findall(r'<path d="([^"]+)"[^>]*style="fill: none; stroke: var\(--accent\)', drawing.svg)
    return [np.array(re.findall(r"[ML] ([\d.-]+) ([\d.-]+)", path), float) for path in found]


def test_each_fold_with_both_classes_has_a_thin_line_of_its_own_curve(rng):
    y, s = np.r_[rng.random(300) < 0.3, np.zeros(50)], rng.normal(size=350)
    fold = np.r_[np.arange(300) % 3, np.full(50, 3)]  # fold 3 has no positive
    whole, folds = roc_figure("a", y, {"x": s}), roc_figure("a", y, {"x": s}, fold)
    assert len(lines(folds)) == len(lines(whole)) + 3
    assert [label for label, _ in folds.legend] == ["x", "the first curve, within each fold"]
    area = [abs(np.trapezoid(path[:, 1].max() - path[:, 1], path[:, 0])) for path in lines(folds)]
    full = np.ptp(lines(whole)[-1][:, 0]) * np.ptp(lines(whole)[-1][:, 1])
    aucs = [roc_auc_score(y[fold == k], s[fold == k]) for k in range(3)]
    assert sorted(np.array(area[:3]) / full) == pytest.approx(sorted(aucs), abs=0.005)


def test_the_reliability_of_each_bin_is_said(rng):
    y, p = rng.random(500) < 0.3, rng.random(500)
    table = reliability(y, p, np.arange(500))
    svg = reliability_figure("r", table, axis="p").svg
    assert svg.count("predicted ") == len(table)
    assert f"predicted {table['p'][0]:.1%}, observed {table['share'][0]:.1%}" in svg


def test_a_history_never_falls_and_skips_what_has_no_value():
    study = StudyHistory("x", np.array([np.nan, 0.5, 0.4, np.nan, 0.7]), ("fail", *["complete"] * 4))
    assert study.best_so_far[1:].tolist() == [0.5, 0.5, 0.5, 0.7]
    assert np.isnan(study.best_so_far[0])
    assert "x 0.7000 after 5 trials" in study_figure("h", [study], axis="AUC").svg

"""The report with every section: what each shows, where sections of others stand, what text can't do."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
from html_page import Page
from markupsafe import Markup
from test_report import EVIL, hold_together, make_data

from dermstack.report.report import (
    OPTIONAL_SECTIONS,
    Calibration,
    Comparison,
    DataFacts,
    Decision,
    Section,
    report_html,
)
from stack.metrics.calibration import calibration_scores, reliability
from stack.metrics.decisions import decision_curve
from stack.metrics.review_band import (
    choose_band,
    cross_fitted_decisions,
    decisions_by_subgroup,
    measure_decisions,
    percent_text,
)
from stack.metrics.subgroups import Subgroup, subgroups
from stack.review import ReviewResult
from stack.tune.studies import StudyHistory


def make_full_data(n=400, seed=0):
    """With every section."""
    data = make_data(n, seed)
    rng = np.random.default_rng(seed)
    s, group = data.curves["blend, nested"], rng.integers(0, n, n)
    before, after = 1 / (1 + np.exp(-s)), 1 / (1 + np.exp(2.5 - 1.5 * s))
    sex = rng.random(n) < 0.5
    parts = [Subgroup("sex", "male", sex), Subgroup("sex", "female", ~sex), Subgroup("site", "palms", np.arange(n) < 3)]
    worse = subgroups(data.y, np.where(sex, s, -s), group, parts, draws=20)
    assert worse["apart"].tolist() == [True, True, False]
    importance = pd.DataFrame(
        [
            ["lightgbm", "feature", "net_a", "image models", 0.51234, 0.9],
            ["lightgbm", "feature", "site", "metadata", 0.31234, np.nan],
            ["lightgbm", "feature", "age_group_min", "ages of the group", 0.11234, -0.9],
            ["lightgbm", "feature", "unused", "metadata", 0.0, np.nan],
            ["lightgbm", "block", "image models", "image models", 0.51234, np.nan],
            ["lightgbm", "block", "metadata", "metadata", 0.31234, np.nan],
            ["logistic", "feature", "net_a", "image models", 0.41234, 0.9],
            ["logistic", "block", "image models", "image models", 0.41234, np.nan],
        ],
        columns=["stacker", "of", "name", "block", "size", "trend"],
    )
    told = {"raw": before, "mended": after}
    scores = pd.DataFrame([{"probability": name, **calibration_scores(data.y, p)} for name, p in told.items()])
    reliable = [reliability(data.y, p, group) for p in told.values()]
    missing = ["column", "rows", "train", "negatives", "positives", "test"]
    finding = {"severity": "error", "what": "black", "evidence": "3 of 9 pictures", "remedy": "look"}
    return replace(
        data,
        weights=data.weights.assign(**{"enters as": ["rank", "logit"]}),
        calibration=Calibration("optuna", "platt", *reliable, scores),
        decision=Decision(
            decision_curve(data.y, after, group, draws=20),
            decision_curve(data.y, after, group, draws=20, thresholds=[0.05, 0.2]),
        ),
        by_fold=pd.DataFrame({"run": ["blend", "net_a"], "fold 0": [0.9, 0.81234], "fold 1": [0.8, 0.71234]}),
        agreement=pd.DataFrame([[1.0, 0.4], [0.4, 1.0]], index=["blend", "net_a"], columns=["blend", "net_a"]),
        subgroups=worse,
        importance=importance,
        studies=[
            StudyHistory("gbdt-lightgbm-without-0", np.array([0.8, np.nan, 0.82]), ("complete", "pruned", "complete")),
            StudyHistory("gbdt-lightgbm-without-none", np.array([0.81, 0.805, 0.83]), ("complete",) * 3),
            StudyHistory("blend-weighting-without-1", np.array([np.nan]), ("fail",)),
        ],
        data=DataFacts(
            {"pairs in the list of duplicates": 425, "near-duplicates": "the images were not checked"},
            pd.DataFrame([["age", 3, 0.01, 0.02, 0.0, np.nan]], columns=missing),
            pd.DataFrame([finding]),
        ),
        seeds={"folds": 7},
        fingerprints={"blend": "a36ab2c0f2d4"},
    )  # fmt: skip


def test_no_text_of_the_data_becomes_markup(full):
    data = full

    def evil(value):
        if isinstance(value, str):
            return EVIL + value
        if isinstance(value, pd.DataFrame):
            words = value.select_dtypes(["str", "object"])
            return value.assign(**{name: EVIL + words[name] for name in words}).assign(**{EVIL: EVIL})
        if isinstance(value, dict):
            return {EVIL + key: evil(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [evil(entry) for entry in value]
        if isinstance(value, Comparison):
            return replace(value, label=evil(value.label))
        if isinstance(value, Calibration):
            changed = {"method": evil(value.method), "map": evil(value.map), "scores": evil(value.scores)}
            return replace(value, **changed)
        if isinstance(value, DataFacts):
            return replace(value, **{field.name: evil(getattr(value, field.name)) for field in fields(value)})
        return replace(value, name=evil(value.name)) if isinstance(value, StudyHistory) else value

    kept = {"objective", "importance", "agreement", "subgroups"}  # whose columns are what the page asks for
    changed = {field.name: evil(getattr(data, field.name)) for field in fields(data) if field.name not in kept}
    changed["importance"] = data.importance.assign(
        name=EVIL + data.importance["name"], stacker=EVIL + data.importance["stacker"]
    )
    changed["importance"]["of"] = data.importance["of"]
    changed["agreement"] = data.agreement.rename(index=evil, columns=evil)
    changed["subgroups"] = data.subgroups.assign(by=EVIL, subgroup=EVIL + data.subgroups["subgroup"])
    html = report_html(replace(data, **changed))
    page = Page(html)
    assert "<script" not in html
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.text.count("alert(1)") > 30
    assert not any(name.startswith("alert") for _, attrs in page.tags for name in attrs)


@pytest.fixture(scope="module")
def full():
    return make_full_data()


@pytest.fixture(scope="module")
def full_page(full):
    return Page(report_html(full))


@pytest.mark.parametrize("high", [None, ("specificity", 0.5)])
def test_the_review_band_is_a_section_of_its_own(full, high):
    rng = np.random.default_rng(0)
    n = len(full.y)
    p, group, fold = np.clip(full.y * 0.4 + rng.random(n) * 0.6, 0.001, 0.999), np.arange(n) // 2, np.arange(n) % 4
    asked = [full.y, p, group, fold, ("sensitivity", 0.8), high]
    band = choose_band(*asked[:3], *asked[4:])
    decision, without = cross_fitted_decisions(*asked)
    parts = [Subgroup(EVIL, EVIL, group % 2 == 0), Subgroup("sex", "male", group < 3)]
    decisions = measure_decisions(full.y, decision, group, band.guarantees)
    found = ReviewResult(
        band, decisions, decisions_by_subgroup(full.y, decision, group, band.guarantees, parts), 4, without
    )
    html = report_html(replace(full, review=found))
    page = Page(html)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections.index("review") == sections.index("decision") + 1
    assert "<script" not in html
    hold_together(page)
    shown = " ".join(page.text.split())
    below = " ".join(percent_text(band.below).split())  # without its no-break space
    assert f"Images with a calibrated risk below {below} are decided as negative" in shown
    assert f"about {1000 * decisions.review.value:.0f} go to a person" in shown
    assert "too few to say" in shown, "of the second subgroup"
    assert ("are decided as positive" in shown) == (high is not None)
    counts = [(decision == name).sum() for name in ("negative", "review", "positive")]
    for count in counts:
        assert f"{1000 * count / n:,.0f}" in shown


def test_every_section_is_listed_and_every_figure_and_table_is_explained(full, full_page):
    anchors = [attrs["href"].removeprefix("#") for tag, attrs in full_page.tags if tag == "a"][1:]
    sections = [attrs["id"] for tag, attrs in full_page.tags if tag == "section"]
    assert anchors == sections
    assert sections == [
        *("result", "curves", "calibration", "decision", "runs", "methods", "subgroups", "importance", "studies"),
        *("data", "settings"),
    ]
    tags = [tag for tag, _ in full_page.tags]
    plots = [attrs for tag, attrs in full_page.tags if tag == "svg" and attrs["class"] == "plot"]
    assert len(plots) == tags.count("figure") == tags.count("figcaption") == 14
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    assert tags.count("caption") == tags.count("table")
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", report_html(full), flags=re.DOTALL)
    assert all(len(caption.strip()) > 60 for caption in captions)
    hold_together(full_page)


def test_the_sections_show_the_numbers_they_were_given(full, full_page):
    rows = {row[0]: row[1:] for row in full_page.rows}
    after = full.calibration.scores.iloc[1]
    assert rows["mended"][-1] == f"{after['log loss']:.4f}"
    assert rows["5 %"][:2] == [
        f"{1000 * full.decision.at_round_thresholds['called'][0]:.0f}",
        f"{100 * full.decision.at_round_thresholds['sensitivity'][0]:.1f} %",
    ]
    male = full.subgroups.iloc[0]
    assert rows["sex: male differs"][:4] == [
        str(male["rows"]), str(male["groups"]), str(male["positives"]), f"{100 * male['prevalence']:.1f} %",
    ]  # fmt: skip
    assert rows["sex: male differs"][4] == f"{male['auc']:.3f}"
    assert rows["site: palms"][4:] == ["–"] * 4
    assert (
        f"sex male: AUC {male['auc']:.3f}, {male['difference']:.3f} above that of all other images." in full_page.text
    )
    assert rows["gbdt-lightgbm-without-0"] == ["2", "1", "0", "0.8000", "0.8200", "+0.0200", "3"]
    assert rows["blend-weighting-without-1"] == ["0", "0", "1", "–", "–", "–", "–"]
    assert rows["age"] == ["3", "1.0 %", "2.0 %", "0.0 %", "–"]
    assert rows["error"] == ["black", "3 of 9 pictures", "look"]
    assert ["net_a", "0.8123", "0.7123"] in full_page.rows
    assert ["net_a", "0.40", "1.00"] in full_page.rows
    assert "pairs in the list of duplicates425" in full_page.text
    assert "a36ab2c0f2d4" in full_page.text


def test_what_no_model_uses_is_no_bar(full):
    html = report_html(full)
    features = html[html.index('aria-label="mean absolute contribution to the logit. net_a') :]
    assert features.startswith(
        'aria-label="mean absolute contribution to the logit. net_a 0.512; site 0.312; age_group_min 0.112."'
    )
    assert "0.512 ↑" in features
    assert "0.112 ↓" in features
    assert ">0.312<" in features


@pytest.mark.usefixtures("without_figures")
def test_where_nothing_differs_the_page_says_so(full):
    alike = full.subgroups.assign(apart=False)
    text = Page(report_html(replace(full, subgroups=alike))).text
    assert "No subgroup has an AUC that differs from the rest beyond noise." in text
    assert "that of all other images." not in text


@pytest.mark.usefixtures("without_figures")
def test_without_an_audit_the_page_names_the_command_that_makes_it(full):
    data = DataFacts({}, None, None, audit_command="dermstack audit --config <c>.yaml")
    text = Page(report_html(replace(full, data=data))).text
    assert "The images have not been audited. dermstack audit --config <c>.yaml checks" in text


@pytest.mark.usefixtures("without_figures")
def test_sections_stand_at_their_places_and_only_their_scripts_may_run(full):
    script = "document.title += '!'"
    made = {
        place: Section(
            Markup(f'<section id="{place}" aria-labelledby="{place}-title"><h2 id="{place}-title">x</h2>'
                   f"<script>{script}</script></section>"),
            style=f".of-{place} {{ color: var(--ink); }}",
            script=script,
        )
        for place in OPTIONAL_SECTIONS
    }  # fmt: skip
    html = report_html(full, made)
    page = Page(html)
    sections = [attrs["id"] for tag, attrs in page.tags if tag == "section"]
    assert sections.index("explorer") == sections.index("curves") + 1
    assert sections.index("participants") == sections.index("result") + 1
    assert sections.index("gaps") == sections.index("subgroups") + 1
    assert sections.index("hard-cases") == sections.index("gaps") + 1
    assert sections.index("second-look") == sections.index("hard-cases") + 1
    anchors = [attrs["href"].removeprefix("#") for tag, attrs in page.tags if tag == "a"][1:]
    assert anchors == sections
    style = html.partition("<style>")[2].partition("</style>")[0]
    assert all(section.style in style for section in made.values())
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy.partition("script-src")[2]
    with pytest.raises(AssertionError, match="the page has places for participants, sources, explorer, gaps"):
        report_html(full, {"elsewhere": made["hard-cases"]})


@pytest.mark.slow
def test_four_hundred_thousand_rows_do_not_make_the_page_large():
    assert len(report_html(make_full_data(400_000)).encode()) < 2_000_000


def calibrated(full, before, after):
    """The data with these log losses of the score and of the calibrated p."""
    scores = full.calibration.scores.assign(**{"log loss": [before, after]})
    return Page(report_html(replace(full, calibration=replace(full.calibration, scores=scores)))).text


@pytest.mark.usefixtures("without_figures")
def test_a_calibration_that_worsens_the_log_loss_is_remarked_with_both_values(full):
    text = calibrated(full, 0.1941, 0.1951)
    assert "The calibration worsened the log loss, from 0.1941 (raw) to 0.1951" in text
    for before, after in ((0.1951, 0.1941), (0.1941, 0.1941), (0.19412, 0.19413)):  # better, equal, equal as shown
        assert "The calibration worsened" not in calibrated(full, before, after)


@pytest.mark.usefixtures("without_figures")
def test_the_remark_compares_with_the_best_of_the_probabilities_before(full):
    scores = pd.concat([full.calibration.scores] * 2, ignore_index=True).iloc[:3]
    scores = scores.assign(probability=["the score", "the mean", "calibrated"], **{"log loss": [0.4, 0.2, 0.3]})
    page = Page(report_html(replace(full, calibration=replace(full.calibration, scores=scores))))
    assert "worsened the log loss, from 0.2000 (the mean) to 0.3000" in page.text


@pytest.mark.usefixtures("without_figures")
def test_thresholds_of_the_decision_table_have_the_decimals_that_they_need(full):
    for thresholds, shown in (
        ([0.05, 0.2], ["5 %", "20 %"]), ([0.005, 0.1], ["0.5 %", "10.0 %"]), ([0.0002, 0.01], ["0.02 %", "1.00 %"]),
    ):  # fmt: skip
        curve = full.decision.at_round_thresholds.assign(threshold=thresholds)
        page = Page(report_html(replace(full, decision=replace(full.decision, at_round_thresholds=curve))))
        assert set(shown) <= set(page.named)


@pytest.mark.usefixtures("without_figures")
def test_the_chosen_method_is_named_beside_the_headline_only_where_its_value_is_another(full):
    value = full.headline.value
    for nested, named in ((value + 0.01, True), (value, False), (value + 1e-9, False)):
        methods = full.methods.assign(nested=[0.7, nested])
        text = Page(report_html(replace(full, methods=methods))).text
        assert ("optuna in every fold" in text) == named
        assert ("The estimate is the headline, not the value of optuna in every fold" in text) == named


def test_the_first_method_has_no_difference_to_itself(full, full_page):
    assert full_page.named["rank_mean"][-2:] == ["–", "–"]


@pytest.mark.usefixtures("without_figures")
def test_a_run_that_the_blend_leaves_out_has_no_way_to_enter_it(full):
    weights = full.weights.assign(weight=[0.0, 1.0])
    html = report_html(replace(full, weights=weights))
    assert "net_a 0.000; lightgbm, as logit 1.000" in html
    assert "net_a, as rank" not in html


@pytest.mark.usefixtures("without_figures")
def test_the_more_similar_two_runs_are_the_more_colour_a_cell_has(full):
    """In words that hold in light and in dark mode: a shade mixes the accent into the card."""
    html = report_html(full)
    cells = re.findall(r'--shade: ([\d.]+)%">([\d.]+)<', html)
    assert [(shade, cell) for shade, cell in cells if cell == "1.00"] == [("45.0", "1.00")] * 2
    assert "0.40" not in [cell for _, cell in cells]  # the lowest correlation has no colour
    assert "The more strongly a cell is coloured, the more similarly two runs rank the images" in html
    assert not re.search(r"darker|lighter|brighter", html)


@pytest.mark.usefixtures("without_figures")
def test_every_note_has_a_title(full):
    page = Page(report_html(full))
    assert page.ids.count("differing-title") == page.ids.count("limits-title") == 1
    notes = [attrs for tag, attrs in page.tags if str(attrs.get("class")).split()[0] == "note"]
    assert [note["aria-labelledby"] for note in notes] == ["limits-title", "differing-title"]


@pytest.mark.usefixtures("without_figures")
def test_code_in_findings_is_marked(full):
    finding = full.data.findings.assign(what="the column `diagnosis` separates <b>")
    html = report_html(replace(full, data=replace(full.data, findings=finding)))
    assert "the column <code>diagnosis</code> separates &lt;b&gt;" in html

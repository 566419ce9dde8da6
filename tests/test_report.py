import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from html_page import Page

from dermstack.report.report import Comparison, ReportData, report_html
from stack.metrics.intervals import Interval
from stack.metrics.scores import auc, auc_by_fold, average_precision

EVIL = "<script>alert(1)</script>\"'&"


def make_data(n=400, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.2).astype(np.int8)
    fold = rng.integers(0, 4, n)
    s = rng.normal(size=n) + 1.5 * y
    best = s + rng.normal(size=n)
    ranks = s + 0.5 * rng.normal(size=n)
    value = auc(y, s)
    columns = ["run", "kind", "level", "rows", "auc", "low", "high", "ap", "within_folds", "min_fold", "max_fold"]
    runs = pd.DataFrame(
        [
            ["net_a", "imported", 1, 1387, 0.71234, 0.61234, 0.81234, 0.31234, 0.7, 0.65, 0.75],
            ["lightgbm", "lightgbm", 2, 1400, 0.81111, 0.71111, 0.91111, 0.41111, 0.8, 0.75, 0.85],
        ],
        columns=columns,
    ).assign(seconds=[np.nan, 1234.4], note=["13 rows left out", ""])
    methods = pd.DataFrame(
        {
            "method": ["rank_mean", "optuna"],
            "nested": [0.84321, 0.85432],
            "low": [0.8, 0.81],
            "high": [0.88, 0.89],
            "tuned": [0.84321, 0.86543],
            "gap": [0.0, 0.01111],
            "difference": [0.0, 0.01234],
            "difference_low": [0.0, -0.00321],
            "difference_high": [0.0, 0.02987],
            "chosen": [False, True],
        }
    )
    folds = pd.DataFrame({"fold": range(4), "rows": np.bincount(fold), "positives": np.bincount(fold, y).astype(int)})
    return ReportData(
        experiment="ham",
        created="2026-05-04 12:30 UTC",
        objective="auc",
        headline=Interval(value, value - 0.031, value + 0.027, 0.015),
        headline_label="nested from level 2 up",
        chosen="optuna",
        comparisons=[
            Comparison("rank average", Interval(0.8, 0.7, 0.9, 0.05), Interval(0.0123, 0.0011, 0.0222, 0.01)),
            Comparison("best run", Interval(0.7, 0.6, 0.8, 0.05), Interval(0.0456, -0.0033, 0.0777, 0.01)),
            Comparison("the old blend", Interval(0.9, 0.8, 0.95, 0.05), Interval(-0.05, -0.07, -0.03, 0.01)),
        ],
        runs=runs,
        methods=methods,
        weights=pd.DataFrame({"run": ["net_a", "lightgbm"], "weight": [0.25, 0.75]}),
        y=y,
        curves={"blend, nested": s, "best run": best, "rank average": ranks},
        fold=fold,
        folds=folds.assign(groups=7, prevalence=0.1875),
        facts={"training rows": 1400, "groups": 987, "prevalence": 0.2},
        notes=["435 rows left out: declared by net_a"],
        settings="experiment: ham\nseed: 0\n",
        versions={"numpy": "2.4.0"},
    )


@pytest.fixture(scope="module")
def data():
    return make_data()


@pytest.fixture(scope="module")
def html(data):
    return report_html(data)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_same_data_has_the_same_bytes(html):
    assert report_html(make_data()) == html


def test_the_page_asks_the_network_for_nothing_and_runs_nothing(page, html):
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for _, attrs in page.tags:
        for name, value in attrs.items():
            assert name not in {"src", "srcset", "action", "background"}
            assert not name.startswith("on")
            if name.endswith("href"):
                assert value.startswith("#")
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", html)
    assert "@import" not in html
    assert "default-src 'none'" in html


def test_headline_and_its_interval_stand_on_the_page(page, data):
    value = data.headline
    assert f"{value.value:.3f}" in page.text
    assert f"95 % interval {value.low:.3f} to {value.high:.3f}" in page.text
    assert f"{1000 * value.value:.0f} times in 1,000" in page.text
    assert f"Measured on 400 images, {data.y.sum()} of them positive, in 4 folds" in page.text
    assert "nested from level 2 up" in page.text


def test_tables_show_the_numbers_they_were_given(page):
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["net_a"] == [
        *("imported", "1", "1,387", "0.7123", "0.6123 to 0.8123", "0.3123", "0.7000", "0.6500", "0.7500"),
        *("–", "13 rows left out"),
    ]
    assert rows["lightgbm"][-2:] == ["1,234", ""]
    assert rows["optuna chosen"] == ["0.8543", "0.8100 to 0.8900", "0.8654", "0.0111", "0.0123", "−0.0032 to 0.0299"]
    assert rows["rank average"] == ["0.8000", "+0.0123", "+0.0011 to +0.0222", "better, beyond noise"]
    assert rows["best run"][1:] == ["+0.0456", "−0.0033 to +0.0777", "no difference beyond noise"]
    assert rows["the old blend"][1:] == ["−0.0500", "−0.0700 to −0.0300", "worse, beyond noise"]


def test_scores_of_curves_and_folds_are_computed_from_the_rows(page, data):
    for label, s in data.curves.items():
        assert f"{label}: AUC {auc(data.y, s):.4f}" in page.text
        assert f"{label}: AP {average_precision(data.y, s):.4f}" in page.text
    within = auc_by_fold(data.y, data.curves["blend, nested"], data.fold)
    shown = [row for row in page.rows if row[0] in "0123"]
    assert [row[-1] for row in shown] == [f"{value:.4f}" for value in within]
    assert f"{within.mean():.4f} on average, from {within.min():.4f} to {within.max():.4f}" in page.text


def test_what_a_figure_shows_is_said_in_words(page, html):
    plots = [attrs for tag, attrs in page.tags if tag == "svg" and attrs["class"] == "plot"]
    assert len(plots) == 6
    assert all(plot["role"] == "img" and len(plot["aria-label"]) > 20 for plot in plots)
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html, flags=re.DOTALL)
    assert len(captions) == 6
    assert all(len(caption.strip()) > 60 for caption in captions)
    assert [tag for tag, _ in page.tags].count("caption") == [tag for tag, _ in page.tags].count("table")


def test_a_page_without_sections_lets_no_script_run(html):
    assert "script-src 'none'" in html
    assert "<script" not in html


def test_notes_have_code_and_minus_signs(data):
    text = report_html(replace(data, notes=["`--a <b>` is -0.5 off, from 2026-01-02"]))
    assert "<li><code>--a &lt;b&gt;</code> is −0.5 off, from 2026-01-02</li>" in text


def test_headings_ids_and_labels_hold_together(page):
    hold_together(page)


def hold_together(page):
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in page.tags:
        for name in ("href", "xlink:href", "aria-labelledby"):
            assert attrs.get(name, ids[0]).removeprefix("#") in ids


def test_words_can_be_read_in_light_dark_and_print(html):
    """WCAG AA: a contrast of 4.5 between text and ground."""

    def luminance(colour):
        c = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    schemes = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    assert len(schemes) == 3
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", scheme))
        pairs = [(text, ground) for text in ("ink", "muted", "accent") for ground in ("paper", "card")]
        for text, ground in [*pairs, ("ink", "tint"), ("accent", "tint"), ("note-ink", "note")]:
            dark, light = sorted([luminance(colours[text]), luminance(colours[ground])])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
        # The strongest shade of a heat map mixes 45 % of the accent into the card.
        channels = [[int(colours[name][i : i + 2], 16) for i in (1, 3, 5)] for name in ("accent", "card")]
        mixed = "#" + "".join(f"{round(0.45 * a + 0.55 * b):02x}" for a, b in zip(*channels, strict=True))
        dark, light = sorted([luminance(colours["ink"]), luminance(mixed)])
        assert (light + 0.05) / (dark + 0.05) >= 4.5, mixed


@pytest.mark.parametrize("objective", ["auc", "pauc80", "ap", "logloss"])
def test_every_objective_is_explained(data, objective):
    value = Interval(-0.213, -0.231, -0.199, 0.01) if objective == "logloss" else Interval(0.15, 0.14, 0.16, 0.005)
    runs = data.runs.assign(**{objective: [0.11, 0.12]})
    text = Page(report_html(replace(data, objective=objective, headline=value, runs=runs))).text
    assert "erfect is" in text or "times in 1,000" in text
    if objective == "logloss":
        assert "−0.213 95 % interval −0.231 to −0.199" in text
        p = data.y.mean()
        assert f"−{-(p * np.log(p) + (1 - p) * np.log(1 - p)):.4f}" in text


def test_what_is_not_known_is_left_out(data):
    nothing = {"comparisons": [], "notes": [], "facts": {}, "weights": data.weights.iloc[:0]}
    page = Page(report_html(replace(data, **nothing, methods=data.methods.iloc[:0])))
    assert "Blend methods" not in page.text
    assert "Weights" not in page.text
    unknown = data.runs.assign(low=np.nan, high=np.nan, ap=np.nan)
    row = next(row for row in Page(report_html(replace(data, runs=unknown))).rows if row[0] == "net_a")
    assert row[4:7] == ["0.7123", "–", "–"]


def test_a_column_the_report_does_not_know_is_shown(data):
    page = Page(report_html(replace(data, runs=data.runs.assign(image_size=[128, 224]))))
    heads = next(row for row in page.rows if row[0] == "run")
    assert heads[-1] == "image size"


def test_words_that_readers_asked_about_are_explained(data):
    made = replace(
        data, target="malignant", diagnostics=["With shortcuts, the AUC would be 0.9."],
        methods=data.methods.assign(method=["rank_mean", "logistic"]), chosen="logistic",
        runs=data.runs.assign(kind=["imported", "logistic"]),
    )  # fmt: skip
    shown = re.sub(r"\s+", " ", Page(report_html(made)).text)
    assert "malignant = 1, the class that the score looks for" in shown.replace("\N{NO-BREAK SPACE}", " ")
    assert "logistic in every fold" in shown
    assert "logistic stacker" in shown
    assert shown.index("Limits of this result") < shown.index("Checks of level 2")
    assert "different patients" not in shown
    assert "darker" not in shown


def test_a_template_is_compiled_once_for_all_pages_of_a_process(monkeypatch):
    report_html(make_data())
    monkeypatch.setattr(
        "jinja2.environment.Environment.compile", lambda *given: pytest.fail(f"compiled again: {given}")
    )
    assert "<h1" in report_html(make_data(seed=1))

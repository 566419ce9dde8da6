"""Decisions as metrics: each against a count by hand, intervals against a plain bootstrap, and the command compare."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from hypothesis import given, settings
from hypothesis import strategies as st
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from scipy.special import expit

from dermstack.errors import ConfigError, DataError
from stack.metrics.decision_metrics import by_chance, decision_metric, row_parts
from stack.metrics.decisions import decision_numbers
from stack.metrics.intervals import bootstrap_scores, interval, paired_difference
from stack.metrics.scores import objective_label, score

Y = np.array([1, 0, 0, 1, 0, 0, 0, 1, 0, 0])
S = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
PATIENT = np.array(list("aaaabbbbcc"))


def test_images_are_reviewed_from_the_highest_score_down() -> None:
    assert score("reviews@0.3", Y, S) == -1.0  # the first image is a cancer
    assert score("reviews@0.6", Y, S) == -2.0  # four images for two cancers
    assert score("reviews@1", Y, S) == pytest.approx(-8 / 3)
    assert score("reviews@0.5", Y, np.zeros(10)) == pytest.approx(-10 / 3)  # ties are reviewed together


def test_biopsies_and_net_benefit_at_a_risk() -> None:
    assert score("nnb@0.5", Y, S) == pytest.approx(-5 / 2)  # five called, two of them positive
    assert score("net_benefit@0.5", Y, S) == pytest.approx((2 - 3) / 10)
    assert score("net_benefit@0.2", Y, S) == pytest.approx((3 - 5 * 0.25) / 10)


def test_top_images_of_a_patient() -> None:
    # Patient a: positives at places 1 and 4 of 4; b: place 4 of 4; c has no positive.
    assert score("top@1", Y, S, patient=PATIENT) == pytest.approx(1 / 3)
    assert score("top@3", Y, S, patient=PATIENT) == pytest.approx(1 / 3)
    assert score("top@1", Y, np.zeros(10), patient=PATIENT) == 0.0  # equal scores choose nothing
    with pytest.raises(DataError, match="no patient with a positive has more images"):
        score("top@4", Y, S, patient=PATIENT)  # nothing is left to choose
    with pytest.raises(DataError, match="needs the patient of each row"):
        score("top@3", Y, S)


rows = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 4)), min_size=4, max_size=40)


@settings(max_examples=60)
@given(rows, st.sampled_from([0.1, 0.5, 0.8, 0.9, 1.0]), st.integers(1, 4))
def test_they_agree_with_loops(made: list[tuple[int, int, int]], at: float, k: int) -> None:
    y, s, patient = (np.array(column) for column in zip(*made, strict=True))
    s = s / 8
    if 0 < y.sum() < len(y):
        wanted = [t for t in np.unique(s) if y[s >= t].sum() >= at * y.sum() - 1e-9]
        assert score(f"reviews@{at:g}", y, s) == pytest.approx(-(s >= wanted[-1]).sum() / y[s >= wanted[-1]].sum())
    hits = []
    for number in np.flatnonzero(y):
        own = patient == patient[number]
        if own.sum() > k:
            hits.append((s[own] >= s[number]).sum() <= k)
    if hits:
        assert score(f"top@{k}", y, s, patient=patient) == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("name", ["reviews@0.8", "nnb@0.3", "net_benefit@0.3", "top@2"])
def test_intervals_are_those_of_resampled_groups(name: str, rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(60), 5)
    y = (rng.random(300) < 0.2).astype(int)
    s = np.clip(0.25 + 0.2 * y + rng.normal(0, 0.15, 300), 0, 1)
    drawn = bootstrap_scores(name, y, s, group, draws=40, patient=group)[:, 0]
    again = []
    has = np.array([y[group == g].any() for g in range(60)])
    strata, draws = (np.flatnonzero(has), np.flatnonzero(~has)), np.random.default_rng(0)
    for _ in range(40):
        chosen = np.concatenate([part[draws.integers(len(part), size=len(part))] for part in strata])
        at = np.concatenate([np.flatnonzero(group == g) for g in chosen])
        patient = np.repeat(np.arange(len(chosen)), 5)  # a group that is drawn twice is two patients
        again.append(score(name, y[at], s[at], patient=patient))
    assert np.allclose(drawn, again)
    found = interval(name, y, s, group, patient=group)
    assert found.low < found.value < found.high
    gain = paired_difference(name, y, s, rng.random(300), group, patient=group)
    assert gain.value > 0


def test_scores_without_information_reach_what_chance_says(rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(400), rng.integers(1, 9, 400))
    y = (rng.random(len(group)) < 0.2).astype(int)
    for name in ("reviews@0.9", "top@2"):
        metric = decision_metric(name)
        assert metric is not None
        found = np.mean([score(name, y, rng.random(len(y)), patient=group) for _ in range(60)])
        assert found == pytest.approx(by_chance(metric, y, group), rel=0.03)


@pytest.mark.parametrize("name", ["top@0", "top@1.5", "reviews@0", "reviews@2", "nnb@1", "net_benefit@x", "top@"])
def test_a_wrong_argument_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=name.partition("@")[0]):
        objective_label(name)


def test_risks_are_needed_where_a_risk_is_the_threshold() -> None:
    metric = decision_metric("nnb@0.1")
    assert metric is not None
    with pytest.raises(DataError, match=r"needs risks in \[0, 1\]"):
        row_parts(metric, Y == 1, S * 3, None)
    with pytest.raises(DataError, match="no positive has such a risk"):
        score("nnb@0.95", Y, S)


def test_compare_takes_each_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = opened_experiment(write_experiment(tmp_path))
    for number, name in enumerate(("a", "b", "c")):
        import_frames(experiment, name, *predictions(experiment, seed=number))
    names = [f"elsewhere/{name}" for name in ("a", "b", "c")]
    runs = str(experiment.config.runs)
    table, oof = experiment.table.train, experiment.models / "a" / "oof.parquet"
    p = pd.read_parquet(oof).set_index("id")["p"].loc[table["id"]].to_numpy(np.float64)
    for objective in ("reviews@0.9", "nnb@0.3", "net_benefit@0.3", "top@1"):
        out = tmp_path / "board.csv"
        run_cli("compare", *names, "--folder", runs, "--objective", objective, "--out", str(out))
        board = pd.read_csv(out).set_index("run")
        expected = score(objective, table["target"], p, patient=table["group"])
        assert board.loc["elsewhere/a", objective] == pytest.approx(expected)
        page = tmp_path / "board.html"
        run_cli("compare", *names, "--folder", runs, "--objective", objective, "--out", str(page))
        assert objective_label(objective) in page.read_text()
        capsys.readouterr()
        run_cli("compare", *names[:2], "--folder", runs, "--objective", objective)
        assert f"{objective_label(objective)} of elsewhere/a minus elsewhere/b" in capsys.readouterr().out
    said = command_error(capsys, "compare", *names, "--folder", runs, "--objective", "nonsense")
    assert "unknown objective 'nonsense': choose auc, pauc80, ap, logloss, or a metric of decisions" in said


def test_the_numbers_of_the_report_are_those_of_the_metrics(rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(120), rng.integers(1, 7, 120))
    y = (rng.random(len(group)) < 0.2).astype(int)
    s = 1.5 * y + rng.normal(0, 1, len(y))
    p = expit(s - 2)
    found = decision_numbers(y, s, p, group, group, draws=100).set_index("measure")
    ninety = found.loc["images reviewed for each positive found, until 90 % of the positives are found"]
    assert ninety["value"] == pytest.approx(-score("reviews@0.9", y, s))
    assert ninety["low"] < ninety["value"] < ninety["high"] < ninety["by_chance"] + 2
    assert ninety["by_chance"] == pytest.approx(1 / y.mean())
    top = found.loc["share of positives among the 3 highest scores of their patient"]
    assert top["value"] == pytest.approx(score("top@3", y, s, patient=group))
    biopsies = found[found.index.str.startswith("number needed to biopsy")]
    assert len(biopsies)
    for words, line in biopsies.iterrows():
        at = float(str(words).partition("risk of ")[2].split(" ")[0]) / 100
        assert line["value"] == pytest.approx((p >= at).sum() / y[p >= at].sum())
    alike = decision_numbers(
        np.repeat(y[::6], 6)[: len(y)], s, p, np.arange(len(y)) // 6, np.arange(len(y)) // 6, draws=20
    )
    assert not any("patient" in str(words) for words in alike["measure"])  # lesions: all images of one are alike
    assert not any("15 highest" in str(words) for words in found.index)  # no patient has more than six images
    assert not any("patient" in str(words) for words in decision_numbers(y, s, p, group, None, draws=100)["measure"])

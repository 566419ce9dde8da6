"""What the report gathers from an experiment, and what it keeps to itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from html_page import Page
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from dermstack.audit.finding import Finding, write_part_findings
from dermstack.report.evidence import blended_runs, report_data
from dermstack.report.pseudonyms import pseudonym_key, pseudonyms
from stack.console import Out
from stack.experiment import Experiment
from stack.history import fold_table, rank_correlations
from stack.store import read_run


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = write_experiment(tmp_path_factory.mktemp("evidence"), stackers=[{"name": "line", "kind": "logistic"}])
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    return config


@pytest.fixture
def experiment(config: Path) -> Experiment:
    return opened_experiment(config)


def page(experiment: Experiment, *options: str) -> str:
    assert run_cli("report", "-c", str(experiment.config_path), "-q", *options) == 0
    return (experiment.folder / "report.html").read_text(encoding="utf-8")


def test_every_number_is_of_the_blends_own_rows(experiment: Experiment) -> None:
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    data = report_data(experiment, blend, blended_runs(experiment, blend), Out(quiet=True))
    oof = blend.frame("oof")
    assert data.headline.value == pytest.approx(roc_auc_score(data.y, oof["score"]))
    assert data.calibration is not None
    calibrated = data.calibration.scores.set_index("probability").loc["calibrated"]
    assert calibrated["brier"] == pytest.approx(np.mean((oof["p_calibrated"] - data.y) ** 2))
    assert data.calibration.after["rows"].sum() == data.calibration.before["rows"].sum() == len(oof)
    assert data.subgroups is not None
    assert data.subgroups.groupby("by")["rows"].sum().tolist() == [len(oof)] * 3
    assert data.decision is not None
    at = data.decision.at_round_thresholds.iloc[0]
    called = oof["p_calibrated"] >= at["threshold"]
    odds = at["threshold"] / (1 - at["threshold"])
    assert at["net_benefit"] == pytest.approx((called & (data.y == 1)).mean() - (called & (data.y == 0)).mean() * odds)
    assert data.importance is not None
    assert data.studies == []
    assert data.fingerprints["blend"] == blend.meta["fingerprint"]


def test_runs_are_compared_within_folds(experiment: Experiment) -> None:
    runs = experiment.finished(level=1)
    table = fold_table(experiment, runs).set_index("run")
    a, b = (run.frame("oof") for run in runs)
    y = experiment.table.train.set_index("id")["target"]
    correlations = []
    for fold in range(3):
        one, other = a[a["fold"] == fold].set_index("id"), b[b["fold"] == fold].set_index("id")
        assert table.loc["net_a", f"fold {fold}"] == pytest.approx(roc_auc_score(y.loc[one.index], one["logit"]))
        correlations.append(spearmanr(one["logit"], other["logit"].loc[one.index]).statistic)
    found = rank_correlations(runs)
    assert found.loc["net_a", "net_b"] == pytest.approx(np.mean(correlations), abs=0.01)
    assert np.diag(found) == pytest.approx([1, 1])


def test_nets_on_other_scales_agree_as_much(experiment: Experiment) -> None:
    class Scaled:
        def __init__(self, run: object) -> None:
            self.name = "scaled"
            self.run = run

        def frame(self, name: str) -> pd.DataFrame:
            oof = self.run.frame(name)
            return oof.assign(logit=oof["logit"] * (1 + oof["fold"]) + 5 * oof["fold"])

    run = experiment.finished(level=1)[0]
    assert rank_correlations([run, Scaled(run)]).loc["net_a", "scaled"] == pytest.approx(1)  # type: ignore[list-item]


@pytest.mark.usefixtures("without_figures")
def test_ids_that_the_audit_found_are_on_the_page_only_when_asked_for(experiment: Experiment) -> None:
    finding = Finding("error", "near-duplicates", "1 pairs", "look at both", "closest 0003 and 0007")
    write_part_findings(experiment, {"pictures": ("today", [finding])})
    assert "closest 0003 and 0007" not in page(experiment)
    assert "1 pairs" in page(experiment)
    assert "closest 0003 and 0007" in page(experiment, "--show-ids")


def test_the_page_does_not_say_where_files_lie(experiment: Experiment) -> None:
    html = page(experiment, "--no-images")
    assert str(experiment.config_path.parent) not in html
    assert "train: train.csv" in html


def test_no_id_and_no_group_is_on_the_page(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    names = {}
    for part in ("train", "test", "sample"):
        frame = pd.read_csv(tmp_path / f"{part}.csv", dtype=str, keep_default_na=False)
        names[part] = [f"ISIC-secret-{part}-{number}" for number in range(len(frame))]
        frame["isic"] = names["test" if part == "sample" else part]
        if "patient" in frame:
            frame["patient"] = "patient-secret-" + frame["patient"]
        frame.to_csv(tmp_path / f"{part}.csv", index=False)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "-c", str(config), "-q") == 0
    assert "secret" not in page(experiment)


@pytest.mark.usefixtures("without_figures")
def test_where_images_are_named_by_codes_the_page_says_what_a_code_is(experiment: Experiment) -> None:
    ids = experiment.table.train["id"].tolist()
    html = page(experiment)
    coded, named = Page(html), Page(page(experiment, "--show-ids"))
    explanation = (
        "Images are named by codes, so that the page can be shared: a code is always the same for the same image"
    )
    sections = html.partition('<section id="hard-cases"')[2].partition('<section id="second-look"')
    assert explanation in sections[0]
    assert explanation in sections[2] or "No label of the" in sections[2]
    assert "dermstack report --show-ids shows the ids" in coded.text
    assert explanation not in named.text
    cases = [row[0] for row in named.rows if row[0] in set(ids)]
    assert cases
    key = pseudonym_key(experiment.folder)
    assert set(pseudonyms(cases, key)) <= set(coded.named)


@pytest.mark.usefixtures("without_figures")
def test_without_level_2_nothing_is_said_of_it(tmp_path: Path) -> None:
    config = write_experiment(tmp_path, stackers=[])
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "-c", str(config), "-q") == 0
    text = Page(page(experiment)).text
    assert "Level-2 models are fitted on" not in text
    assert "No training curves" not in text
    assert "net, selected on these rows" in text


def test_imported_runs_and_a_regression_make_no_section_on_training(experiment: Experiment) -> None:
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    data = report_data(experiment, blend, blended_runs(experiment, blend), Out(quiet=True))
    assert data.training is None  # a logistic regression is not trained by rounds


def test_a_run_that_is_gone_or_was_made_again_is_not_shown_beside_the_blend_of_the_old_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    run = experiment.models / "net_b"
    run.rename(tmp_path / "away")  # as `oof --rebuild` does first
    error = command_error(capsys, "report", "-c", str(config), "-q")
    assert "the blend was made of net_a, net_b, of which net_b is no longer complete" in error
    (tmp_path / "away").rename(run)
    page(experiment)
    import_frames(experiment, "net_b", *predictions(experiment, seed=1), replace=True)
    page(experiment)  # the same predictions
    import_frames(experiment, "net_b", *predictions(experiment, seed=7), replace=True)
    error = command_error(capsys, "report", "-c", str(config), "-q")
    assert "net_a, net_b: at least one of these runs was made again after they were blended" in error
    assert "dermstack stack" in error

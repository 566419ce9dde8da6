"""The report's section on training: curves of every net, the rounds of GBDTs, and what is not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli, small_config
from html_page import Page
from test_figures import lines
from test_report import make_data

from dermstack.report.report import Training, report_html
from dermstack.report.training import at_the_limit, missing_curves, training_figure, training_of
from stack.level1.training_curves import TrainingCurve
from stack.store import Run


def curve(fold: int, losses: list[float], aucs: list[float] | None = None, *, run: str = "net", seed: int = 0):
    epochs = pd.DataFrame({"epoch": range(1, len(losses) + 1), "loss": losses, "auc": aucs or np.nan})
    return TrainingCurve(run, fold, seed, epochs.astype({"auc": float}))


def stored(name: str, kind: str, level: int, folder: Path, **meta: object) -> Run:
    return Run(folder / name, {"kind": kind, "level": level, "files": {}, **meta})


CHOSEN = [curve(0, [0.6, 0.5, 0.45], [0.7, 0.9, 0.8]), curve(1, [0.6, 0.4, 0.3], [0.6, 0.7, 0.8])]
ROUNDS = pd.DataFrame({
    "stacker": ["a", "a", "a", "a", "b", "b"], "fold": [0, 0, 1, 1, 0, 1], "rounds": [120, 80, 2000, 1500, 10, 20],
    "limit": [2000.0] * 4 + [np.nan] * 2,
})  # fmt: skip


def shown(training: Training | None) -> Page:
    return Page(report_html(replace(make_data(), training=training)))


def test_each_net_is_a_line_and_their_mean_is_bold() -> None:
    drawing = training_figure("t", CHOSEN)
    assert [label for label, _ in drawing.legend] == ["one net (fold and seed)", "mean of the nets"]
    assert (
        'aria-label="Training loss and validation AUC by epoch. fold 0, seed 0: loss 0.600 to 0.450, AUC 0.900 in '
        'epoch 2; fold 1, seed 0: loss 0.600 to 0.300, AUC 0.800 in epoch 3."'
    ) in drawing.svg
    means = lines(drawing)
    assert len(means) == 2  # of the loss and of the AUC
    fall = np.diff(means[0][:, 1])  # downwards in the units of the SVG
    assert fall[0] / fall[1] == pytest.approx((0.6 - 0.45) / (0.45 - 0.375), rel=1e-4)


def test_without_a_validation_auc_only_the_loss_is_drawn_and_the_page_says_why() -> None:
    page = shown(Training([curve(0, [0.6, 0.5]), curve(1, [0.7, 0.5])]))
    assert "There is no validation AUC: this run keeps the last epoch" in page.text
    assert page.named["net"][-1] == "2"  # no column of AUCs
    assert "AUC at a dot" not in page.text
    assert "The AUC at a dot is therefore optimistic" in shown(Training(CHOSEN)).text


def test_every_net_stands_in_the_table() -> None:
    rows = [row for row in shown(Training(CHOSEN)).rows if row[0] == "net"]
    assert rows == [
        ["net", "0", "0", "3", "0.6000", "0.4500", "2", "0.9000"],
        ["net", "1", "0", "3", "0.6000", "0.3000", "3", "0.8000"],
    ]


def test_a_single_epoch_is_a_row_and_no_empty_chart() -> None:
    page = shown(Training([curve(0, [0.6])]))
    assert page.named["net"] == ["0", "0", "1", "0.6000", "0.6000", "1"]
    assert "by epoch." not in " ".join(str(attrs.get("aria-label")) for _, attrs in page.tags)


def test_runs_without_curves_are_named_with_the_reason(tmp_path: Path) -> None:
    runs = [
        stored("old", "image", 1, tmp_path), stored("a", "imported", 1, tmp_path),
        stored("b", "imported", 1, tmp_path), stored("still", "frozen", 1, tmp_path),
    ]  # fmt: skip
    training = training_of(runs, {})
    assert training is not None
    assert [names for names, _ in missing_curves(training)] == [["old"], ["a", "b"], ["still"]]
    text = shown(training).text
    assert "No training curves of old: none were kept when the networks were trained." in text
    assert "No training curves of a, b: the training of imported runs is not known here." in text
    assert "which has no epochs" in text


def test_where_nothing_was_trained_there_is_no_section(tmp_path: Path) -> None:
    assert training_of([stored("a", "imported", 1, tmp_path)], {}) is None
    assert "training" not in shown(None).ids


def test_the_rounds_of_a_gbdt_stand_beside_their_limit(tmp_path: Path) -> None:
    meta = {"chosen": [[120, 80], [30, 50]], "settings": {"params": {"rounds": 120}}}
    runs = [stored("a", "lightgbm", 2, tmp_path, **meta), stored("tuned", "xgboost", 2, tmp_path, **meta)]
    training = training_of(runs, {"tuned": "study"})
    assert training is not None
    page = shown(training)
    assert page.named["a"] == ["120", "120, 80", "30, 50"]
    assert page.named["tuned"] == ["tuned", "120, 80", "30, 50"]
    assert at_the_limit(training) == ["a"]
    assert "a used all rounds allowed in at least one fold" in page.text
    assert "used all rounds" not in shown(Training(rounds=ROUNDS.assign(limit=5000.0))).text


def test_many_runs_are_folded_away() -> None:
    curves = [curve(0, [0.6, 0.5], run=f"net_{number}") for number in range(6)]
    html = report_html(replace(make_data(), training=Training(curves)))
    assert html.index("The other runs</summary>") > html.index("<h3>net_3</h3>")
    assert html.index("The other runs</summary>") < html.index("<h3>net_4</h3>")


@pytest.mark.slow
def test_the_report_of_an_experiment_shows_what_its_nets_recorded(small_data: Path, tmp_path: Path) -> None:
    tiny = {
        "name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 2, "batch_size": 16,
        "select": "best", "seeds": [0, 1],
    }  # fmt: skip
    config = small_config(small_data, tmp_path, image_models=[tiny])
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    page = Page((tmp_path / "runs/small/report.html").read_text(encoding="utf-8"))
    rows = [row[1:] for row in page.rows if row[0] == "tiny" and len(row) == 8 and row[3] == "2"]
    expected = []
    for fold in range(3):
        for seed in (0, 1):
            kept = pd.read_csv(tmp_path / f"runs/small/models/tiny/fold_{fold}/seed_{seed}/history.csv")
            best = int(kept["auc"].argmax())
            expected.append([
                str(fold), str(seed), "2", f"{kept['loss'][0]:.4f}", f"{kept['loss'][1]:.4f}", str(best + 1),
                f"{kept['auc'][best]:.4f}",
            ])  # fmt: skip
    assert rows == expected

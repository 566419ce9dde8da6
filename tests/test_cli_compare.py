"""The command compare: two runs as ever, any other number as a leaderboard on the terminal, as csv and as a page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from html_page import Page
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import roc_auc_score

from stack.console import Out
from stack.experiment import Experiment
from stack.history import append_ledger
from stack.submission import run_blend

Capture = pytest.CaptureFixture[str]


def blend(experiment: Experiment, *, noise: float = 1.5) -> None:
    """Two imported runs, their blend and the ledger: what `stack` makes without level 2 and report."""
    runs = [
        import_frames(experiment, f"net{number}", *predictions(experiment, noise=noise, seed=number))
        for number in range(2)
    ]
    append_ledger(experiment, run_blend(experiment, runs, Out(quiet=True)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/ with three experiments on the same rows: one of another number of folds, one with poor predictions."""
    folder = tmp_path_factory.mktemp("world")
    for name, k, noise in (("first", 3, 1.5), ("second", 4, 1.5), ("poor", 3, 20.0)):
        config = write_experiment(folder, experiment=name, folds={"k": k})
        experiment = opened_experiment(config)
        blend(experiment, noise=noise)
    return folder / "runs"


def blend_auc(runs: Path, name: str) -> float:
    table = pd.read_parquet(runs / name / "table.parquet").set_index("id")["target"]
    oof = pd.read_parquet(runs / name / "blend" / "oof.parquet")
    return float(roc_auc_score(table[oof["id"]], oof["score"]))


def test_two_runs_are_compared_as_ever(runs: Path, capsys: Capture) -> None:
    assert run_cli("compare", "first", "poor", "--folder", str(runs)) == 0
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    difference = blend_auc(runs, "first") - blend_auc(runs, "poor")
    assert shown.startswith(f"AUC of first minus poor: {difference:+.4f} [")
    assert shown.endswith("first is better, by more than noise\n")


def test_without_names_all_experiments_are_ranked(runs: Path, capsys: Capture) -> None:
    assert run_cli("compare", "--folder", str(runs)) == 0
    shown = capsys.readouterr().out
    for name in ("first", "second", "poor"):
        assert f"{blend_auc(runs, name):.4f}" in shown
    assert "rows that all 3 cover" in shown
    assert "the best of 3 was chosen on these" in shown
    assert "worse than the best" in shown
    assert "folds.k" in shown


def test_one_experiment_has_its_number_and_interval_alone(runs: Path, capsys: Capture) -> None:
    assert run_cli("compare", "first", "--folder", str(runs)) == 0
    shown = capsys.readouterr().out
    assert f"{blend_auc(runs, 'first'):.4f}" in shown
    assert "chosen" not in shown
    assert "verdict" not in shown


def test_the_csv_and_the_page_say_the_same(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    csv, page = tmp_path / "board.csv", tmp_path / "board.html"
    assert run_cli("compare", "--folder", str(runs), "--out", str(csv), "--out", str(page)) == 0
    frame, read = pd.read_csv(csv), Page(page.read_text(encoding="utf-8"))
    assert set(frame["run"]) == {"first", "second", "poor"}
    assert frame["auc"].tolist() == pytest.approx(sorted(frame["auc"], reverse=True))
    assert dict(zip(frame["run"], frame["config.folds.k"], strict=True)) == {"first": 3, "second": 4, "poor": 3}
    for line in frame.to_dict("records"):
        assert line["auc"] == pytest.approx(blend_auc(runs, line["run"]))
        assert any(f"{line['auc']:.4f}" in row for row in read.rows if row and row[0].startswith(line["run"]))
    assert "The best was chosen on these rows" in read.text
    assert len(read.ids) == len(set(read.ids))
    assert f"written: {csv}" in capsys.readouterr().out


def test_two_runs_can_be_written_too(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    csv = tmp_path / "two.csv"
    assert run_cli("compare", "first", "second", "--folder", str(runs), "--out", str(csv)) == 0
    shown = capsys.readouterr().out
    assert "AUC of first minus second" in shown
    assert len(pd.read_csv(csv)) == 2
    assert float(np.abs(pd.read_csv(csv)["difference"]).max()) == pytest.approx(
        abs(blend_auc(runs, "first") - blend_auc(runs, "second"))
    )


def test_runs_are_found_by_wildcards(runs: Path, capsys: Capture) -> None:
    assert run_cli("compare", "first/*", "poor", "--folder", str(runs)) == 0
    shown = capsys.readouterr().out
    assert "first/net0" in shown
    assert "rows that all 3 cover" in shown


def test_what_cannot_be_compared_or_written_is_named(runs: Path, tmp_path: Path, capsys: Capture) -> None:
    def error(*arguments: str) -> str:
        return command_error(capsys, "compare", *arguments, "--folder", str(runs))

    assert "nowhere: no complete run" in error("first", "second", "nowhere")
    assert "no complete run has such a name" in error("none*")
    assert "ends with .csv or .html" in error("--out", str(tmp_path / "board.xlsx"))
    (tmp_path / "folder.csv").mkdir()
    assert "is a folder" in error("--out", str(tmp_path / "folder.csv"))
    assert "unknown objective 'accuracy'" in error("--objective", "accuracy")
    assert "holds no experiment" in command_error(capsys, "compare", "--folder", str(tmp_path))


@pytest.mark.slow
def test_experiments_of_other_rows_have_a_board_of_their_own(tmp_path: Path, capsys: Capture) -> None:
    for name, start in (("one", ""), ("two", ""), ("far", "x")):
        config = write_experiment(tmp_path, experiment=name)
        for table in ("train", "test", "sample"):
            path = tmp_path / f"{table}.csv"
            frame = pd.read_csv(path, dtype=str, keep_default_na=False)
            frame.assign(isic=start + frame["isic"]).to_csv(path, index=False)
        experiment = opened_experiment(config)
        blend(experiment)
    out = tmp_path / "board.csv"
    assert run_cli("compare", "--folder", str(tmp_path / "runs"), "--out", str(out)) == 0
    assert "2 leaderboards" in capsys.readouterr().out
    frame = pd.read_csv(out)
    assert frame.groupby("board")["run"].agg(sorted).tolist() == [["far"], ["one", "two"]]

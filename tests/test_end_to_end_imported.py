"""The way of the base install: predictions made elsewhere in, a submission out, no image and no torch."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import command_error, opened_experiment, predictions, unexpected_files, write_experiment
from sklearn.metrics import roc_auc_score

Capture = pytest.CaptureFixture[str]


@pytest.mark.slow
def test_the_whole_way_on_imported_predictions(tmp_path: Path, capsys: Capture) -> None:
    """What the base install does: import two runs, stack them with a GBDT, list, compare, clean. Nothing on stderr."""
    config = write_experiment(
        tmp_path, stackers=[{"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5}}]
    )
    experiment = opened_experiment(config)
    oof, test = predictions(experiment, noise=1.0, seed=1)
    oof.rename(columns={"p": "prob"}).to_csv(tmp_path / "a.csv", index=False)
    test.rename(columns={"p": "prob"}).to_csv(tmp_path / "a-test.csv", index=False)
    import_a = ["import-oof", "a", "-c", str(config), "--oof", str(tmp_path / "a.csv")]
    import_a += ["--test", str(tmp_path / "a-test.csv")]
    assert "no column 'p'" in command_error(capsys, *import_a)
    assert unexpected_files(tmp_path) == []
    assert run_cli(*import_a, "--p-column", "prob") == 0
    other, other_test = predictions(experiment, noise=2.0, seed=2)
    other.iloc[:-2].to_csv(tmp_path / "b.csv", index=False)
    other_test[other_test["fold"] == 0].drop(columns="fold").to_csv(tmp_path / "b-test.csv", index=False)
    import_b = ["import-oof", "b", "-c", str(config), "--oof", str(tmp_path / "b.csv")]
    import_b += ["--test", str(tmp_path / "b-test.csv"), "--test-averaged"]
    assert "add `--exclude 2`" in command_error(capsys, *import_b)
    assert run_cli(*import_b, "--exclude", "2") == 0
    assert "2 rows excluded" in capsys.readouterr().out

    assert run_cli("stack", "-c", str(config)) == 0
    shown = capsys.readouterr()
    folder = tmp_path / "runs" / "elsewhere"
    assert shown.err == ""
    assert f"submission: {folder / 'submission.csv'}" in shown.out
    assert f"report: {folder / 'report.html'}" in shown.out
    assert "2 training rows are left out" in shown.out

    submission, sample = (pd.read_csv(path, dtype={"isic": str}) for path in (
        folder / "submission.csv", tmp_path / "sample.csv",
    ))  # fmt: skip
    assert submission.columns.tolist() == sample.columns.tolist()
    assert submission["isic"].tolist() == sample["isic"].tolist()
    assert submission["malignant"].between(0, 1).all()

    blend = json.loads((folder / "blend" / "run.json").read_text())
    ranked = [frame.iloc[:-2].groupby("fold")["p"].rank(pct=True) for frame in (oof, other)]
    ranks_alone = roc_auc_score(experiment.target[:-2], ranked[0] + ranked[1])
    assert blend["runs"] == ["a", "b", "gbdt"]
    assert blend["left_out"] == 2
    assert abs(blend["headline"]["value"] - ranks_alone) < 0.05, "a GBDT of 20 rounds adds little to the two"
    assert blend["headline"]["low"] < blend["headline"]["value"] < blend["headline"]["high"]

    before = (folder / "submission.csv").read_bytes()
    assert run_cli("stack", "-c", str(config)) == 0
    shown = capsys.readouterr()
    assert "elsewhere: complete, and nothing that it depends on has changed" in shown.out
    assert (folder / "submission.csv").read_bytes() == before
    assert len((folder / "ledger.jsonl").read_text().splitlines()) == 2

    assert run_cli("runs", "--folder", str(tmp_path / "runs")) == 0
    listing = capsys.readouterr().out
    assert f"{roc_auc_score(experiment.target, oof['p']):.4f}" in listing
    assert f"{blend['headline']['value']:.4f} [" in listing

    assert run_cli("compare", "elsewhere/a", "elsewhere/b", "--folder", str(tmp_path / "runs")) == 0
    assert "elsewhere/a is better, by more than noise" in capsys.readouterr().out
    assert run_cli("compare", "elsewhere", "elsewhere", "--folder", str(tmp_path / "runs")) == 0
    assert "no difference is shown" in capsys.readouterr().out
    assert "elsewhere has a, b, gbdt" in command_error(
        capsys, "compare", "elsewhere/c", "elsewhere", "--folder", str(tmp_path / "runs")
    )

    assert run_cli("stack", "-c", str(config), "--set", "blend.methods=[mean]", "-q") == 0
    assert capsys.readouterr() == ("", "")
    assert [path.name.partition("-")[0] for path in (folder / "old").iterdir()] == ["blend"]
    assert run_cli("clean", "-c", str(config), "--yes") == 0
    assert "freed" in capsys.readouterr().out
    assert list((folder / "old").iterdir()) == []
    assert run_cli("clean", "-c", str(config)) == 0
    assert capsys.readouterr().out == "nothing to clean\n"


def test_without_image_models_nobody_is_sent_back_and_forth(tmp_path: Path, capsys: Capture) -> None:
    """Before any import neither `oof` nor `stack` names the other; after it `oof` leads to `stack`."""
    config = write_experiment(tmp_path)
    assert run_cli("oof", "-c", str(config)) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "enables no image model, so import predictions made elsewhere with `dermstack import-oof" in shown
    assert "next:" not in shown
    message = command_error(capsys, "stack", "-c", str(config))
    assert "has no level-1 run" in message
    assert "enables no image model, so import predictions made elsewhere with `dermstack import-oof" in message
    assert "add a model to its image_models and run `dermstack oof" in message
    shortcuts = command_error(capsys, "stack", "-c", str(config), "--set", "features.shortcuts=true")
    assert "run `dermstack oof` on images" not in shortcuts
    experiment = opened_experiment(config)
    oof, test = predictions(experiment)
    oof.to_csv(tmp_path / "a.csv", index=False)
    test.to_csv(tmp_path / "t.csv", index=False)
    command = [
        "import-oof",
        "a",
        "-c",
        str(config),
        "--oof",
        str(tmp_path / "a.csv"),
        "--test",
        str(tmp_path / "t.csv"),
    ]
    assert run_cli(*command) == 0
    assert run_cli("oof", "-c", str(config)) == 0
    assert "next: dermstack stack" in " ".join(capsys.readouterr().out.split())

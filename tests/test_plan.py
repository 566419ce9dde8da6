"""`dermstack plan`: it writes nothing, and what it says is what `oof` and `stack` then do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from table_layouts import write_png_folders, written_bytes

from image_models.settings import Compute, Network, Training
from image_models.speed import measure_speed
from stack.plan.changes import Change, setting_changes
from stack.plan.steps import Plan, Step
from stack.plan.text import duration, plan_lines, size
from stack.store import read_run

TABLE_CONFIG = """
experiment: e
runs: runs
cache: cache
threads: 1
data:
  name: e
  train: train.csv
  test: test.csv
  columns: {id: id, group: patient, target: y, age: age, numeric: auto}
folds: {k: 3}
stackers:
  - {name: lr, kind: logistic, runs: [], bags: 1}
  - {name: lr_plain, kind: logistic, runs: [], bags: 1, features: {relative: []}}
blend: {methods: [mean]}
"""


def planned(capsys: pytest.CaptureFixture[str], config: Path, *overrides: str, measure: bool = False) -> dict[str, Any]:
    """Returns the plan as JSON; no file of the folder may change."""
    capsys.readouterr()
    before = written_bytes([config.parent])
    options = [f"--set={override}" for override in overrides] + ([] if measure else ["--no-measure"])
    assert run_cli("plan", "-c", str(config), "--json", *options) == 0
    assert written_bytes([config.parent]) == before
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def states(plan: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in plan["steps"]}


def changes(plan: dict[str, Any], name: str) -> list[tuple[str, str, str]]:
    step = next(step for step in plan["steps"] if step["name"] == name)
    return [(change["key"], change["old"], change["new"]) for change in step["changes"]]


def write_table_experiment(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    n = 150
    y = (rng.random(n) < 0.4).astype(int)
    frame = pd.DataFrame({
        "id": [f"i{k}" for k in range(n)], "patient": [f"p{k // 3}" for k in range(n)], "y": y,
        "age": rng.integers(20, 80, n), "size": (y + rng.normal(size=n)).round(3), "hue": rng.normal(size=n).round(3),
    })  # fmt: skip
    frame.iloc[:120].to_csv(folder / "train.csv", index=False)
    frame.iloc[120:].drop(columns="y").to_csv(folder / "test.csv", index=False)
    config = folder / "config.yaml"
    config.write_text(TABLE_CONFIG, encoding="utf-8")
    return config


@pytest.mark.slow
def test_the_plan_of_a_table_is_what_stack_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_table_experiment(tmp_path)
    first = planned(capsys, config)
    assert states(first) == dict.fromkeys(("lr", "lr_plain", "blend", "submission.csv"), "make")
    assert first["train_rows"] == 120
    assert first["test_rows"] == 30
    assert first["folds"] == 3
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    for step in first["steps"][:2]:  # the number of features was told before they were made
        run = read_run(tmp_path / "runs" / "e" / "models" / step["name"])
        assert run is not None
        assert step["features"] == len(run.meta["features"])
    assert set(states(planned(capsys, config)).values()) == {"skip"}

    of_features = planned(capsys, config, "features.relative=[z]")
    assert changes(of_features, "lr") == [("features.relative", "['mean_diff', 'z', 'rank']", "['z']")]
    assert states(of_features) == {"lr": "remake", "lr_plain": "skip", "blend": "remake", "submission.csv": "remake"}
    of_stacker = planned(capsys, config, "stackers.1.bags=2", "blend.methods=[mean,rank_mean]")
    assert changes(of_stacker, "lr_plain") == [("bags", "1", "2")]
    assert states(of_stacker)["lr"] == "skip"
    assert changes(of_stacker, "blend") == [("blend.methods", "['mean']", "['mean', 'rank_mean']")]
    assert changes(planned(capsys, config, "folds.k=4"), "lr") == [("folds.k", "3", "4")]
    assert changes(planned(capsys, config, "objective=ap"), "blend") == [("objective", "auc", "ap")]
    seeded = planned(capsys, config, "folds.seed=5")
    assert changes(seeded, "lr")[0][0] == "folds"
    assert changes(seeded, "lr")[0][2] == "seed 5"

    capsys.readouterr()
    what_was_planned = ["-c", str(config), "--set=features.relative=[z]"]
    assert run_cli("stack", "--no-report", *what_was_planned) == 0
    printed = capsys.readouterr().out
    assert "lr_plain: complete, skipped" in printed
    assert "lr: its inputs changed" in printed


@pytest.mark.slow
def test_changed_rows_and_columns_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_table_experiment(tmp_path)
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    train = pd.read_csv(tmp_path / "train.csv")
    changed = train.copy()
    changed.loc[[4, 7], "hue"] = 9.5
    changed.to_csv(tmp_path / "train.csv", index=False)
    assert changes(planned(capsys, config), "lr") == [("column hue", "2 rows with other values", "changed")]
    train.drop(columns="hue").to_csv(tmp_path / "train.csv", index=False)
    assert changes(planned(capsys, config), "lr") == [("column hue", "used", "absent")]
    train.iloc[3:].to_csv(tmp_path / "train.csv", index=False)
    assert ("training rows", "120", "117 (0 new, 3 gone)") in changes(planned(capsys, config), "lr")
    train.assign(y=1 - train["y"]).to_csv(tmp_path / "train.csv", index=False)
    assert changes(planned(capsys, config), "lr")  # a stale run always has a reason


@pytest.mark.slow
def test_runs_that_noted_no_settings_still_get_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_table_experiment(tmp_path)
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    path = tmp_path / "runs" / "e" / "models" / "lr" / "run.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    del meta["made_with"], meta["digest"]  # as dermstack 0.2.0 wrote it
    path.write_text(json.dumps(meta), encoding="utf-8")
    plan = planned(capsys, config, "features.relative=[z]")
    assert changes(plan, "lr") == [("features, seed or tuned parameters", "not noted in the run", "changed")]


@pytest.mark.slow
def test_image_models_are_planned_as_oof_makes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png_folders(tmp_path, n=120, n_test=30)
    config = tmp_path / "config.yaml"
    assert run_cli("init", str(tmp_path), "--out", str(config), "-q") == 0
    short = ("image_models.0.epochs=1", "folds.k=3")
    first = planned(capsys, config, *short, measure=True)
    by_name = {step["name"]: step for step in first["steps"]}
    assert by_name["images at 32 px"]["images"] == 120
    assert by_name["images at 32 px"]["state"] == "make"
    net = by_name["small_cnn"]
    assert net["nets"] == 3
    assert net["cost"]["seconds"] > 0
    assert net["images"] == 3 * 60 + 90 + 3 * 30 + 3 * 90  # in training; predictions: own, test and anchor rows
    assert "dermstack oof" in first["next"]
    sets = [f"--set={override}" for override in short]
    assert run_cli("oof", "-c", str(config), "-q", *sets) == 0
    done = planned(capsys, config, *short)
    assert states(done)["small_cnn"] == states(done)["images at 32 px"] == "skip"
    assert "dermstack stack" in done["next"]

    of_lr = planned(capsys, config, *short, "image_models.0.lr=0.001")
    assert changes(of_lr, "small_cnn") == [("lr", "0.002", "0.001")]
    assert states(of_lr)["small_cnn"] == "stale"
    assert "--rebuild small_cnn" in of_lr["next"]
    assert run_cli("oof", "-c", str(config), "-q", *sets, "--set=image_models.0.lr=0.001") == 2  # refused
    of_seeds = planned(capsys, config, *short, "image_models.0.seeds=[0,1]")
    step = next(step for step in of_seeds["steps"] if step["name"] == "small_cnn")
    assert changes(of_seeds, "small_cnn") == [("seeds", "[0]", "[0, 1]")]
    assert step["nets"] == 3
    assert "3 of 6 nets can be reused" in step["why"]

    folder = tmp_path / "runs" / tmp_path.name / "models" / "small_cnn"
    (folder / "run.json").unlink()
    shutil.rmtree(folder / "fold_1")
    begun = planned(capsys, config, *short)
    step = next(step for step in begun["steps"] if step["name"] == "small_cnn")
    assert step["state"] == "resume"
    assert step["nets"] == 1


def test_lines_fit_a_terminal_of_80_columns() -> None:
    step = Step("stack", "lightgbm", "a_rather_long_name_of_a_stacker", "remake", "it sees " + ", ".join("abc" * 30),
                (Change("features.relative", "['mean_diff', 'z', 'rank']" * 4, "[]"),), rows=10**6,
                features=900)  # fmt: skip
    plan = Plan("e", 10**6, 5, 7, 3, 5, (step,), ("a problem " * 20,), 10**9, "dermstack stack")
    assert all(len(line) <= 80 for line in plan_lines(plan))
    assert plan.to_json()["steps"][0]["changes"][0]["key"] == "features.relative"


def test_settings_are_compared_by_key() -> None:
    old = {"a": 1, "section": {"b": [1], "gone": True}, "same": None}
    new = {"a": 2, "section": {"b": [1, 2], "new": 0}, "same": None}
    assert setting_changes(old, new) == [
        Change("a", "1", "2"), Change("section.b", "[1]", "[1, 2]"), Change("section.gone", "True", "absent"),
        Change("section.new", "absent", "0"),
    ]  # fmt: skip
    assert setting_changes(old, old) == []


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "1 s"), (300, "5 min"), (5400, "1.5 h"), (2e6, "23.1 days")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_sizes() -> None:
    assert (size(12), size(3 * 2**20)) == ("12 bytes", "3.0 MiB")


@pytest.mark.parametrize("frozen", [False, True])
def test_a_network_is_measured_without_files(frozen: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    speed = measure_speed(
        Network("test_resnet", True, {}, None, None), Training(batch_size=4), size=32, classes=3,
        metadata=2 * (not frozen), frozen=frozen, compute=Compute("cpu", 1, 0),
    )  # fmt: skip
    assert (speed.train > 0) != frozen
    assert speed.predict > 0
    assert speed.features > 0
    assert speed.weights_bytes > 1000
    assert not list(tmp_path.iterdir())

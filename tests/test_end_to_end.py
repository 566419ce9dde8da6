"""The whole way on the small world: level 1, level 2, blend, submission, report; resumed, killed, changed."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli, small_config

from benchmarks.chaos_world import Command, CommandResult
from image_models import fit as fit_module
from stack.blend.weights import DEFAULT_METHODS
from stack.store import read_run


@pytest.fixture(scope="session")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the small config and everything that `oof` and `stack` make of it. Copy before changing it."""
    folder = tmp_path_factory.mktemp("finished")
    config = small_config(small_data, folder)
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert run_cli("stack", "-c", str(config), "-q") == 0
    return folder


@pytest.fixture
def copy(finished: Path, small_data: Path, tmp_path: Path) -> Path:
    """A copy of the finished experiment that a test may change."""
    shutil.copytree(finished, tmp_path / "copy")
    small_config(small_data, tmp_path / "copy")
    return tmp_path / "copy"


def experiment(folder: Path) -> Path:
    return folder / "runs" / "small"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of finished runs, but for what holds times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.suffix in {".parquet", ".npy", ".txt", ".safetensors", ".csv"}
        and path.name != "history.csv"
    }


def without_report(files: dict[str, bytes]) -> dict[str, bytes]:
    """What `stack --no-report` makes of them."""
    return {name: content for name, content in files.items() if not name.startswith("report/")}


def test_every_training_row_is_predicted_once_by_the_net_that_held_it_out(finished: Path) -> None:
    folds = pd.read_parquet(experiment(finished) / "folds.parquet").set_index("id")["fold"]
    for name in ("tiny", "still", "gbdt"):
        oof = pd.read_parquet(experiment(finished) / "models" / name / "oof.parquet")
        assert sorted(oof["id"]) == sorted(folds.index)
        assert (oof["fold"].to_numpy() == folds.loc[oof["id"]].to_numpy()).all()
        assert np.allclose(oof["p"], 1 / (1 + np.exp(-oof["logit"].astype(float))), atol=1e-6)


def test_what_lies_on_disk_is_what_the_design_says(finished: Path) -> None:
    models = experiment(finished) / "models"
    tiny, still = read_run(models / "tiny"), read_run(models / "still")
    assert tiny is not None
    assert still is not None
    n, m, k = 240, 60, 3
    assert len(tiny.frame("test")) == len(still.frame("test")) == k * m
    assert tiny.array("oof_z").shape[0] == still.array("oof_z").shape[0] == n
    assert tiny.array("test_z").shape[0] == k * m
    assert still.array("test_z").shape[0] == m, "a frozen backbone has one z, whatever the fold"
    assert tiny.meta["anchors"] == "train", "60 test rows are too few for anchors"
    assert len(tiny.frame("anchor")) == len(tiny.array("anchor_z")) == k * n
    fold = models / "tiny" / "fold_0"
    assert {str(path.relative_to(fold)) for path in fold.rglob("*") if path.is_file()} == {
        "run.json",
        "seed_0/weights.safetensors",
        "seed_0/history.csv",
        "seed_0/run.json",
    }
    assert (models / "gbdt" / "fold_2" / "model.txt").exists()


def test_stored_z_and_logit_belong_to_the_same_row(finished: Path) -> None:
    """The frozen head applied to the stored z gives the stored logits, row by row."""
    from safetensors.numpy import load_file

    run = read_run(experiment(finished) / "models" / "still")
    assert run is not None
    z, oof = run.array("oof_z").astype(np.float32), run.frame("oof")
    for fold in range(3):
        head = load_file(run.folder / f"fold_{fold}" / "weights.safetensors")
        logit = z @ head["head.weight"][0] + head["head.bias"][0]
        rows = oof["fold"] == fold
        assert np.allclose(logit[rows], oof["logit"][rows], atol=1e-4)


def test_the_submission_is_valid_and_apart_from_the_calibrated_p(finished: Path, small_data: Path) -> None:
    submission = pd.read_csv(experiment(finished) / "submission.csv")
    sample = pd.read_csv(small_data / "sample_submission.csv")
    assert list(submission.columns) == list(sample.columns)
    assert submission["image_name"].tolist() == sample["image_name"].tolist()
    assert submission["target"].between(0, 1).all()
    predictions = (
        pd.read_parquet(experiment(finished) / "predictions.parquet").set_index("id").loc[submission["image_name"]]
    )
    assert (predictions["score"].to_numpy() == submission["target"].to_numpy()).all()
    assert abs(predictions["p_calibrated"].mean() - 0.08) < 0.08


def test_a_second_run_skips_all_and_changes_no_byte(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(experiment(copy))
    assert run_cli("oof", "-c", str(copy / "small.yaml")) == 0
    assert run_cli("stack", "-c", str(copy / "small.yaml")) == 0
    shown = capsys.readouterr().out
    for name in ("tiny", "still", "gbdt", "blend"):
        assert f"{name}: complete, skipped" in shown
    assert contents(experiment(copy)) == before


def test_a_killed_fold_alone_is_made_again_with_the_same_bytes(
    small_data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third fold of the first model: the two before it are kept as they are."""
    config, calls = small_config(small_data, tmp_path), []
    fit = fit_module.train_net

    def stop_in_the_third(*arguments: Any, **settings: Any) -> pd.DataFrame:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return fit(*arguments, **settings)

    monkeypatch.setattr(fit_module, "train_net", stop_in_the_third)
    assert run_cli("oof", "-c", str(config), "-q") == 130
    tiny = experiment(tmp_path) / "models" / "tiny"
    files = [path for fold in (0, 1) for path in tiny.glob(f"fold_{fold}/**/[!.]*.*") if "parts" not in path.parts]
    kept = {path: path.stat().st_mtime_ns for path in files}
    assert len(kept) == 2 * 4, "run.json, and of the net weights, history and run.json"
    assert not (tiny / "fold_2" / "run.json").exists()
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert len(calls) == 4, "one fold was left to train"
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    assert contents(experiment(tmp_path)) == without_report(contents(experiment(finished)))


@pytest.mark.ci
@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one(finished: Path, small_data: Path, tmp_path: Path) -> None:
    config = small_config(small_data, tmp_path, n_jobs=2)
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert run_cli("stack", "-c", str(config), "-q") == 0
    assert contents(experiment(tmp_path)) == contents(experiment(finished))


@pytest.mark.ci
@pytest.mark.slow
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bytes(
    finished: Path, small_data: Path, tmp_path: Path
) -> None:
    config = small_config(small_data, tmp_path)
    arguments, log = ["oof", "-c", str(config), "-q"], tmp_path / "log"
    rng = np.random.default_rng(0)
    for delay in rng.uniform(0.2, 2.5, size=4):
        command = Command(arguments, log)  # of a server that has imported the libraries, so that kills hit work
        command.wait(delay)
        command.send(signal.SIGKILL, group=True)
        command.wait()
    assert Command(arguments, log).wait() == CommandResult(0, "")
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    assert contents(experiment(tmp_path)) == without_report(contents(experiment(finished)))


def test_stale_image_runs_refuse_and_name_the_command_that_rebuilds(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = ["-c", str(copy / "small.yaml"), "--set", "image_models.0.lr=0.002"]
    for command in ("oof", "stack"):
        assert run_cli(command, *changed) == 2
        error = capsys.readouterr().err
        assert "made with other settings" in error
        assert "--rebuild tiny" in error
    assert run_cli("oof", *changed, "--rebuild", "tiny", "-q") == 0
    assert list((experiment(copy) / "old").glob("tiny-*")), "the old run is kept"
    assert run_cli("stack", "--no-report", *changed, "-q") == 0
    assert list((experiment(copy) / "old").glob("gbdt-*")), "level 2 on other level-1 runs is rebuilt"


def test_a_changed_age_rebuilds_level_2_and_leaves_level_1(copy: Path, small_data: Path, tmp_path: Path) -> None:
    table = pd.read_csv(small_data / "train.csv", dtype=str)
    table.loc[0, "age_approx"] = "11"
    shutil.copytree(small_data, tmp_path / "data")
    table.to_csv(tmp_path / "data" / "train.csv", index=False)
    settings = ["-c", str(copy / "small.yaml"), "--set", f"data.train={tmp_path / 'data' / 'train.csv'}", "-q"]
    before = contents(experiment(copy) / "models" / "tiny")
    assert run_cli("stack", "--no-report", *settings) == 0
    assert contents(experiment(copy) / "models" / "tiny") == before
    assert list((experiment(copy) / "old").glob("gbdt-*"))


def test_the_blend_alone_reruns_when_only_its_settings_change(copy: Path) -> None:
    before = contents(experiment(copy) / "models")
    assert (
        run_cli("stack", "--no-report", "-c", str(copy / "small.yaml"), "--set", "blend.methods=[rank_mean]", "-q") == 0
    )
    assert contents(experiment(copy) / "models") == before
    lines = [json.loads(line) for line in (experiment(copy) / "ledger.jsonl").read_text().splitlines()]
    assert set(lines[-1]["changed"]) == {f"blend.methods.{number}" for number in range(1, len(DEFAULT_METHODS))}


def test_several_seeds_are_one_run_with_their_spread_on_record(small_data: Path, tmp_path: Path) -> None:
    model = {"name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "seeds": [0, 1]}
    config = small_config(small_data, tmp_path, image_models=[model])
    assert run_cli("oof", "-c", str(config), "-q") == 0
    run = read_run(experiment(tmp_path) / "models" / "tiny")
    assert run is not None
    seeds = run.frame("oof_seeds").set_index("id").loc[run.frame("oof")["id"]]
    assert np.allclose(seeds.mean(axis=1), run.frame("oof")["logit"], atol=1e-6)
    assert not np.allclose(seeds["logit_0"], seeds["logit_1"])
    for seed in (0, 1):
        assert (run.folder / "fold_0" / f"seed_{seed}" / "weights.safetensors").is_file()


def test_shuffled_targets_live_in_an_experiment_of_their_own(copy: Path) -> None:
    """Same ids and folds, the same number of positives in each group size, other targets; the real one untouched."""
    before = contents(experiment(copy))
    assert run_cli("oof", "-c", str(copy / "small.yaml"), "--shuffle-target", "-q") == 0
    shuffled = copy / "runs" / "small-shuffled-0"
    assert contents(experiment(copy)) == before
    real, other = (pd.read_parquet(folder / "table.parquet") for folder in (experiment(copy), shuffled))
    assert (real["id"] == other["id"]).all()
    assert real["target"].sum() == other["target"].sum()
    assert (real["target"].fillna(0) != other["target"].fillna(0)).any()
    assert (
        (pd.read_parquet(shuffled / "folds.parquet") == pd.read_parquet(experiment(copy) / "folds.parquet")).all().all()
    )

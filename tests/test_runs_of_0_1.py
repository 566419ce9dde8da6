"""Runs made by dermstack 0.1, whose nets lie side by side in a fold's folder, are complete, readable and reusable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli, small_config

from image_models.net_files import net_files
from stack.store import read_run, write_run

NET = {
    "name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "batch_size": 16,
    "seeds": [3, 0], "metadata": ["age", "sex"],
}  # fmt: skip


def as_0_1_wrote_it(fold: Path) -> None:
    """Move the nets of a fold to where dermstack 0.1 had them, and give the fold the run.json that it had."""
    run = read_run(fold)
    assert run is not None
    histories = []
    for number, seed in enumerate(run.meta["settings"]["seeds"]):
        net = fold / f"seed_{seed}"
        histories.append(pd.read_csv(net / "history.csv", dtype=str).assign(seed=seed))
        (net / "weights.safetensors").rename(
            fold / ("weights.safetensors" if number == 0 else f"weights_{seed}.safetensors")
        )
        shutil.rmtree(net)
    pd.concat(histories).to_csv(fold / "history.csv", index=False)
    meta = {name: value for name, value in run.meta.items() if name not in ("files", "digest")}
    write_run(fold, meta, frames={}, existing_files=sorted(path for path in fold.iterdir() if path.name != "run.json"))


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished experiment in the layout of 0.1."""
    folder = tmp_path_factory.mktemp("of_0_1")
    config = small_config(small_data, folder, image_models=[NET])
    for step in (["oof"], ["stack", "--no-report"]):
        assert run_cli(*step, "-c", str(config), "-q") == 0
    for fold in sorted((folder / "runs" / "small" / "models" / "tiny").glob("fold_*")):
        as_0_1_wrote_it(fold)
    return folder


@pytest.fixture
def of_0_1(finished: Path, small_data: Path, tmp_path: Path) -> tuple[Path, bytes]:
    """The config of a copy that a test may change, and the submission."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    submission = (tmp_path / "runs" / "small" / "submission.csv").read_bytes()
    return small_config(small_data, tmp_path, image_models=[NET]), submission


@pytest.mark.usefixtures("without_figures")
def test_it_is_complete_and_goes_to_report_and_bundle(
    of_0_1: tuple[Path, bytes], small_data: Path, tmp_path: Path, trained: list[int]
) -> None:
    config, submission = of_0_1
    for command in (["oof"], ["stack"], ["report"], ["bundle", "--out", str(tmp_path / "b.zip")]):
        assert run_cli(*command, "-c", str(config), "-q") == 0
    assert trained == []
    assert run_cli(
        "predict", "--bundle", str(tmp_path / "b.zip"), "--images", str(small_data / "images"),
        "--metadata", str(small_data / "test.csv"), "--out", str(tmp_path / "p.csv"), "-q",
    ) == 0  # fmt: skip
    made, before = pd.read_csv(tmp_path / "p.csv"), pd.read_parquet(tmp_path / "runs/small/predictions.parquet")
    assert (made["score"].to_numpy() == before["score"].to_numpy()).all()
    assert (tmp_path / "runs/small/submission.csv").read_bytes() == submission


def test_its_nets_are_taken_over_by_a_run_with_one_more_seed(
    of_0_1: tuple[Path, bytes], small_data: Path, tmp_path: Path, trained: list[int]
) -> None:
    more = small_config(small_data, tmp_path, image_models=[NET | {"seeds": [0, 1, 3]}])
    assert run_cli("oof", "-c", str(more), "--rebuild", "tiny", "-q") == 0
    assert trained == [1, 1, 1]
    folder = tmp_path / "runs" / "small"
    (old,) = (folder / "old").iterdir()
    for fold in range(3):
        new = folder / "models" / "tiny" / f"fold_{fold}"
        assert [path.parent.name for path in net_files(new, [0, 1, 3])] == ["seed_0", "seed_1", "seed_3"]
        assert (new / "seed_3" / "weights.safetensors").read_bytes() == (
            old / f"fold_{fold}" / "weights.safetensors"
        ).read_bytes()
        history = pd.read_csv(new / "seed_3" / "history.csv")
        assert "seed" not in history
        assert json.loads((new / "seed_3" / "run.json").read_text())["inputs"]["net seed"] == "3"

"""A level-1 run that is killed with SIGKILL again and again ends in the bytes of one that never was."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import small_config

from benchmarks.chaos_world import Command, CommandResult

# Whatever keeps state from step to step, so that a resume that forgot it would show.
MODEL = {
    "name": "tiny",
    "backbone": "test_resnet",
    "pretrained": False,
    "size": 32,
    "epochs": 4,
    "batch_size": 16,
    "target": "diagnosis",
    "diagnosis": {"unknown": "target"},
    "metadata": ["age", "sex", "site"],
    "augment": ["light", "hair"],
    "balance": "sqrt",
    "ema": 0.9,
    "mixup": 0.3,
    "cutmix": 0.3,
    "dropout": 0.2,
    "dropout_samples": 2,
    "tta": "flips",
    "select": "best",
    "seeds": [0, 1],
}


def config(data: Path, folder: Path) -> Path:
    import yaml

    folder.mkdir()
    path = small_config(data, folder, image_models=[MODEL], stackers=[])
    settings = yaml.safe_load(path.read_text())
    settings["data"]["columns"]["diagnosis"] = "diagnosis"
    path.write_text(yaml.safe_dump(settings))
    return path


def start(path: Path) -> Command:
    return Command(["oof", "-c", str(path), "-q"], path.parent / "log")


def made(path: Path) -> dict[str, bytes]:
    run = path.parent / "runs" / "small" / "models" / "tiny"
    names = ["oof.parquet", "test.parquet", "oof_seeds.parquet", "anchor.parquet", "oof_z.npy", "test_z.npy"]
    return {name: (run / name).read_bytes() for name in names} | {
        str(file.relative_to(run)): file.read_bytes() for file in sorted(run.rglob("*.safetensors"))
    }


@pytest.mark.ci
@pytest.mark.slow
def test_killed_in_mid_training_it_ends_with_the_same_bytes(small_data: Path, tmp_path: Path) -> None:
    whole, killed = config(small_data, tmp_path / "whole"), config(small_data, tmp_path / "killed")
    assert start(whole).wait() == CommandResult(0, "")
    run = killed.parent / "runs" / "small" / "models" / "tiny"
    rng = np.random.default_rng(0)
    resumed = 0
    for _ in range(4):
        before = time.time_ns()
        command = start(killed)
        while command.wait(0) is None:  # until this process has finished an epoch, and then into the next
            states = [state.stat().st_mtime_ns for state in run.glob("fold_*/seed_*/state.pt") if state.is_file()]
            if max(states, default=0) > before:
                break
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        command.send(signal.SIGKILL, group=True)
        command.wait()
        resumed += any(run.glob("fold_*/seed_*/state.pt"))
    assert resumed >= 2, "the kills came while a fold was training"
    assert start(killed).wait() == CommandResult(0, "")
    assert made(killed) == made(whole)
    assert not list(run.rglob("state.pt")), "a complete fold has no more use for its state"

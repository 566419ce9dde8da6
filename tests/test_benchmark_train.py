"""The benchmark of training runs on the CPU and on a GPU, with pictures augmented on either."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import train


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_it_prints_the_ratios_of_each_round(
    augment_on: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no GPU on this machine")
    for number in range(16):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(tmp_path / f"{number}.jpg")
    options = ["--backbone", "test_resnet", "--size", "32", "--batch", "4", "--rounds", "2", "--device"]
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), *options, device, "--augment-on", augment_on])
    before = torch.get_num_threads()
    try:
        train.main()
    finally:
        torch.set_num_threads(before)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"test_resnet, 32 px, light on the {augment_on}, {device}"
    rates = np.array([[float(value) for value in line.split()[1:5]] for line in said[2:4]])
    assert (rates > 0).all()

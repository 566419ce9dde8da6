"""A training that is interrupted, finished, another one's or damaged: what its state file makes of the next attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import CPU, N, state, tiny_net, toy_pictures, train

import image_models.train
from dermstack.errors import ImageError
from image_models.dataset import Batch, CachedImages
from image_models.settings import DoneBefore, Training
from image_models.train import train_net
from image_models.transforms import Augment

TARGET = (np.arange(N) % 2).astype(np.int8)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return toy_pictures(rng)[0]


EVERYTHING = {
    "ema": 0.9,
    "mixup": 0.5,
    "cutmix": 0.5,
    "dropout": 0.3,
    "dropout_samples": 2,
    "balance": "sqrt",
    "clip_norm": 1.0,
    "label_smoothing": 0.1,
    "layer_decay": 0.8,
    "accumulate": 2,
}


@pytest.mark.parametrize("killed_after", [1, 5, 8])
def test_a_training_killed_in_any_step_ends_in_the_same_weights(
    killed_after: int, pixels: np.ndarray, tmp_path: Path
) -> None:
    def images() -> CachedImages:
        return CachedImages(pixels, np.arange(N), TARGET, augment=Augment("light", seed=0))

    options: dict[str, Any] = EVERYTHING | {"epochs": 3, "identity": "a"}
    whole = tiny_net(dropout=0.3, dropout_samples=2)
    history = train(whole, images(), state=tmp_path / "whole.pt", **options)

    class Killed(Exception):
        pass

    class Cut(CachedImages):
        steps = 0

        def __getitem__(self, batch: list[int]) -> Batch:
            Cut.steps += 1
            if Cut.steps > killed_after:
                raise Killed
            return super().__getitem__(batch)

    cut = tiny_net(dropout=0.3, dropout_samples=2)
    with pytest.raises(Killed):
        train(
            cut, Cut(pixels, np.arange(N), TARGET, augment=Augment("light", seed=0)), state=tmp_path / "cut.pt",
            **options,
        )  # fmt: skip
    torch.rand(11)  # a new process has drawn otherwise
    again, said = tiny_net(dropout=0.3, dropout_samples=2), list[str]()
    resumed = train(again, images(), state=tmp_path / "cut.pt", say=said.append, **options)
    assert said == ([f"seed 0 resumes after epoch {killed_after // 3} of 3"] if killed_after >= 3 else [])
    assert state(again) == state(whole)
    assert resumed.drop(columns="images_per_s").equals(history.drop(columns="images_per_s"))


def test_a_finished_training_is_taken_as_it_is(pixels: np.ndarray, tmp_path: Path) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)
    first, second = tiny_net(), tiny_net()
    train(first, images, state=tmp_path / "state.pt", balance="full")
    seen: list[int] = []
    train_net(
        second, images, training=Training(epochs=2, batch_size=8, lr=0.01, balance="full"), seed=0, device=CPU,
        state=tmp_path / "state.pt", progress=seen.append,
    )  # fmt: skip
    assert state(first) == state(second), "the prior is corrected once"
    assert seen == [2 * N]
    assert isinstance(seen[0], DoneBefore)


def test_a_training_goes_on_where_float16_has_another_scaler(pixels: np.ndarray, tmp_path: Path) -> None:
    """`precision: float16` is float32 on a CPU, whose state holds no scale to go on with."""
    images = CachedImages(pixels, np.arange(N), TARGET)
    train(tiny_net(), images, state=tmp_path / "state.pt", epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_models.train, "pick_precision", lambda name, device: torch.float16)
        history = train(tiny_net(), images, state=tmp_path / "state.pt", epochs=2, precision="float16")
    assert history["epoch"].tolist() == [1, 2]


def test_the_state_of_another_training_is_not_taken_up(pixels: np.ndarray, tmp_path: Path) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)
    train(tiny_net(), images, state=tmp_path / "state.pt", identity="one")
    alone, beside = tiny_net(), tiny_net()
    train(alone, images)
    train(beside, images, state=tmp_path / "state.pt", identity="two")
    assert state(alone) == state(beside)


@pytest.mark.parametrize("damage", ["cut", "flipped", "pickle"])
def test_a_damaged_state_is_refused_by_name(damage: str, pixels: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    images = CachedImages(pixels, np.arange(N), TARGET)
    train(tiny_net(), images, state=path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(b"cos\nsystem\n(S'touch hacked'\ntR.")
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"state\.pt.* is damaged: remove"):
        train(tiny_net(), images, state=path)

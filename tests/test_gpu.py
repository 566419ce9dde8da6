"""On a GPU a network trains and predicts as on the CPU; without one these tests are skipped.

`DERMSTACK_TEST_GPU=cpu` runs them on the CPU, which shows that the tests themselves are right.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import small_config
from tiny_training import CPU, N, tiny_net, toy_pictures
from typer.testing import CliRunner

from dermstack.cli.main import app
from image_models.dataset import CachedImages
from image_models.device_augment import DeviceAugment
from image_models.predict import predict
from image_models.settings import Training
from image_models.train import read_state, train_net
from image_models.transforms import Augment

DEVICE = torch.device(os.environ.get("DERMSTACK_TEST_GPU", "cuda"))
pytestmark = pytest.mark.skipif(
    DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="torch finds no GPU on this machine"
)
BOTH = (CPU, DEVICE)


def fitted(pixels: np.ndarray, target: np.ndarray, device: torch.device, **settings: object) -> np.ndarray:
    """Logits, predicted on the CPU, of a net that was trained for eight epochs on a device."""
    net, rows = tiny_net(), np.arange(len(target))
    training = Training(**({"epochs": 8, "batch_size": 8, "lr": 0.01} | settings))  # type: ignore[arg-type]
    train_net(net, CachedImages(pixels, rows, target), training=training, seed=0, device=device)
    return predict(net, CachedImages(pixels, rows), batch_size=8, device=CPU).logit


@pytest.mark.parametrize("tta", ["none", "d4"])
def test_a_net_predicts_the_same_on_both(tta: str, rng: np.random.Generator) -> None:
    pixels, _ = toy_pictures(rng)
    net, images = tiny_net(), CachedImages(pixels, np.arange(N))
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    cpu, gpu = (predict(net, images, batch_size=8, device=device, tta=tta) for device in BOTH)
    np.testing.assert_allclose(gpu.logit, cpu.logit, rtol=1e-2, atol=1e-2)  # TF32 has ten bits
    np.testing.assert_allclose(gpu.z.astype(float), cpu.z.astype(float), rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16"])
def test_every_precision_learns_what_float32_learns(precision: str, rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    expected = fitted(pixels, target, CPU)
    made = fitted(pixels, target, DEVICE, precision=precision)
    assert made[target == 1].min() > made[target == 0].max()
    assert np.corrcoef(made, expected)[0, 1] > 0.95


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"mixup": 0.4}, {"cutmix": 1.0}, {"clip_norm": 1.0}])
def test_every_option_trains(options: dict[str, float], rng: np.random.Generator) -> None:
    assert np.isfinite(fitted(*toy_pictures(rng), DEVICE, epochs=2, **options)).all()


@pytest.mark.parametrize("recipe", ["light", "standard"])
def test_pictures_are_augmented_alike(recipe: str, rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.integers(0, 256, (8, 33, 33, 3), dtype=np.uint8))
    cpu, gpu = (
        DeviceAugment(recipe, seed=0)(images.to(device), epoch=1, rows=range(8)).cpu().numpy() for device in BOTH
    )
    assert np.mean(np.abs(cpu - gpu) > 1) < 0.01, "a pixel at the edge of a hole may fall on the other side"


@pytest.mark.parametrize(("first", "second"), [(CPU, DEVICE), (DEVICE, CPU), (DEVICE, DEVICE)])
def test_a_training_goes_on_where_it_was_stopped(
    first: torch.device, second: torch.device, tmp_path: Path, rng: np.random.Generator
) -> None:
    pixels, target = toy_pictures(rng)
    images, state = CachedImages(pixels, np.arange(N), target, augment=Augment("light", seed=0)), tmp_path / "state.pt"
    training = Training(epochs=3, batch_size=8, lr=0.01, ema=0.9)

    class Stopped(Exception):
        pass

    seen: list[int] = []

    def stop(done: int) -> None:
        seen.append(done)
        if sum(seen) > 2 * N:
            raise Stopped

    with pytest.raises(Stopped):
        train_net(tiny_net(), images, training=training, seed=0, device=first, state=state, progress=stop)
    kept = read_state(state, identity="")
    assert kept is not None
    assert kept["epoch"] == 2
    history = train_net(tiny_net(), images, training=training, seed=0, device=second, state=state)
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


@pytest.mark.skipif(DEVICE.type == "cpu", reason="fills the memory of a GPU")
def test_a_full_memory_halves_the_batch(rng: np.random.Generator) -> None:
    """A batch that needs more than what is left is processed in parts, and nothing else changes."""
    said, net = list[str](), tiny_net()
    pixels = rng.integers(0, 256, (64, 512, 512, 3), dtype=np.uint8)
    images = CachedImages(pixels, np.arange(64), (np.arange(64) % 2).astype(np.int8))
    training = Training(epochs=1, batch_size=64, lr=0.01)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    train_net(tiny_net(), images, training=training, seed=0, device=DEVICE)
    needed, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(DEVICE).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * needed / total)
    try:
        train_net(net, images, training=training, seed=0, device=DEVICE, say=said.append)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert said[0] == f"out of memory on {DEVICE}: batches of 64 are now processed in 2 parts"


@pytest.mark.parametrize("augment_on", ["cpu", "device"])
def test_an_experiment_trained_there_is_bundled_and_predicts_on_the_cpu(
    augment_on: str, small_data: Path, tmp_path: Path
) -> None:
    config = small_config(small_data, tmp_path, device=DEVICE.type, n_jobs=2)
    change = ["--set", f"image_models.0.augment_on={augment_on}"]
    for command in (["oof", "-c", config], ["stack", "-c", config], ["bundle", "-c", config, "--out", tmp_path / "b"]):
        made = CliRunner().invoke(app, [*map(str, command), *change])
        assert made.exit_code == 0, made.output
    out = tmp_path / "p.csv"
    arguments = ["--bundle", tmp_path / "b", "--images", small_data / "images", "--metadata", small_data / "test.csv"]
    made = CliRunner().invoke(app, ["predict", *map(str, arguments), "--device", "cpu", "--out", str(out)])
    assert made.exit_code == 0, made.output
    submitted = pd.read_csv(tmp_path / "runs" / "small" / "submission.csv").set_index("image_name")["target"]
    predicted = pd.read_csv(out).set_index("id")["score"].loc[submitted.index]
    assert predicted.corr(submitted, method="spearman") > 0.99

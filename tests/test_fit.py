from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from dermstack.errors import ImageError
from image_models.cache import PIXELS_FILE, ImageCache
from image_models.dataset import CachedImages
from image_models.fit import FoldPredictions, TrainingRows, embed, fit_frozen_fold, predict_fold, train_fold_net
from image_models.frozen_head import fit_head
from image_models.net import Net, build_net, read_weights
from image_models.net_files import net_folder
from image_models.predict import predict
from image_models.settings import SILENT, Callbacks, Compute, Network, Training
from image_models.train import write_state

N = 36
TRAIN, HELD, TEST = np.arange(0, 18), np.arange(18, 26), np.arange(26, N)
TARGET = (np.arange(N) % 3 == 0).astype(np.int8)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture
def cache(tmp_path: Path, rng: np.random.Generator) -> ImageCache:
    """Noise that is less red where the target is 1."""
    pixels = rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
    pixels[TARGET == 1, :, :, 0] //= 2
    pixels.tofile(tmp_path / PIXELS_FILE)
    length = 32 * 32 * 3
    index = pd.DataFrame({"id": [f"i{row}" for row in range(N)], "offset": np.arange(N) * length, "length": length})
    index = index.assign(crc=[zlib.crc32(picture) for picture in pixels])
    return ImageCache(tmp_path, 32, "square", "raw", index, pd.DataFrame())


def change(cache: ImageCache, rows: Any, by: int) -> None:
    """Darken pictures where they are kept, as if they had been others from the beginning."""
    pixels = np.memmap(cache.folder / PIXELS_FILE, dtype=np.uint8, mode="r+", shape=(N, 32, 32, 3))
    pixels[rows] //= by
    cache.index["crc"] = [zlib.crc32(picture) for picture in pixels]


COMPUTE = Compute(device="cpu", threads=1, workers=0)


def network(backbone: str = "test_resnet", **timm_args: Any) -> Network:
    return Network(backbone, pretrained=False, timm_args=timm_args, mean=MEAN, std=STD)


def settings_of(seeds: list[int], training: Training) -> dict[str, Any]:
    """What the run.json of a run of these nets holds, as far as predictions need it."""
    return {
        "backbone": "test_resnet", "timm_args": {}, "size": 32, "normalise": {"mean": MEAN, "std": STD},
        "frozen": False,
        "seeds": seeds, "tta": "none", "batch_size": training.batch_size, "precision": training.precision,
        "lr": training.lr,
    }  # fmt: skip


def train(
    cache: ImageCache, folder: Path, seed: int, callbacks: Callbacks = SILENT, *, net: Network | None = None,
    inner_val: Any = None, **changes: Any,
) -> float:  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(**({"epochs": 2, "batch_size": 8, "lr": 0.01} | changes))
    data = TrainingRows(TRAIN, TARGET[TRAIN], inner_val=inner_val)
    return train_fold_net(
        cache, data, net or network(), training, seed=seed, folder=folder, compute=COMPUTE, callbacks=callbacks
    )


def fold(
    cache: ImageCache, folder: Path, seeds: list[int], progress: Any = SILENT.progress, **changes: Any
) -> FoldPredictions:
    """A fold as level 1 makes it: a net a seed, and the predictions of all of them."""
    for seed in seeds:
        train(cache, net_folder(folder, seed), seed, Callbacks(progress=progress), **changes)
    training = Training(**({"epochs": 2, "batch_size": 8, "lr": 0.01} | changes))
    sets = {"oof": HELD, "test": TEST}
    return predict_fold(
        folder, settings_of(seeds, training), cache, sets, {}, positive=(False, True), compute=COMPUTE,
        progress=progress,
    )  # fmt: skip


def frozen_z(cache: ImageCache, rows: np.ndarray, folder: Path, *, net: Network | None = None) -> np.ndarray:
    folder.mkdir()
    return embed(cache, rows, net or network(), batch_size=8, tta="none", seed=0, folder=folder, compute=COMPUTE)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def blank(*, frozen: bool, seed: int = 99) -> Net:
    """A net of the same kind with other weights, to be filled from a file."""
    return build_net(
        "test_resnet", pretrained=False, frozen=frozen, timm_args={}, size=32, mean=MEAN, std=STD, prior=(0.5, 0.5),
        seed=seed,
    )  # fmt: skip


def test_several_seeds_are_the_mean_of_their_logits_and_the_features_of_the_first(
    cache: ImageCache, tmp_path: Path
) -> None:
    both = fold(cache, tmp_path / "both", [5, 2])
    alone = {seed: fold(cache, tmp_path / f"seed {seed}", [seed]) for seed in (5, 2)}
    for name, rows in (("oof", HELD), ("test", TEST)):
        logits = both.seed_logits[name]
        assert logits.shape == (len(rows), 2)
        for column, seed in enumerate((5, 2)):
            assert (logits[:, column] == alone[seed].predictions[name].logit).all()
        np.testing.assert_allclose(both.predictions[name].logit, logits.astype(np.float64).mean(axis=1), rtol=1e-6)
        assert both.predictions[name].logit.dtype == np.float32
        assert (both.predictions[name].z == alone[5].predictions[name].z).all()
        assert (both.predictions[name].z != alone[2].predictions[name].z).any()
    assert names(tmp_path / "both") == ["seed_2", "seed_5"]
    for seed in (2, 5):
        net = tmp_path / "both" / f"seed_{seed}"
        assert names(net) == ["history.csv", "state.pt", "weights.safetensors"]
        assert pd.read_csv(net / "history.csv")["epoch"].tolist() == [1, 2]
        assert (net / "weights.safetensors").read_bytes() == (
            tmp_path / f"seed {seed}" / f"seed_{seed}" / "weights.safetensors"
        ).read_bytes()


def test_the_weights_on_disk_make_the_same_predictions(cache: ImageCache, tmp_path: Path) -> None:
    made = fold(cache, tmp_path / "fold", [0, 1])
    for column, seed in enumerate((0, 1)):
        net = blank(frozen=False)
        read_weights(net, tmp_path / "fold" / f"seed_{seed}" / "weights.safetensors")
        for name, rows in (("oof", HELD), ("test", TEST)):
            again = predict(net, CachedImages(cache, rows), batch_size=8, device=torch.device("cpu"))
            assert (again.logit == made.seed_logits[name][:, column]).all()
            if column == 0:
                assert (again.z == made.predictions[name].z).all()


def test_seconds_count_the_epochs_before_an_interruption(cache: ImageCache, tmp_path: Path) -> None:
    train(cache, tmp_path / "net", 0)
    state = tmp_path / "net" / "state.pt"
    kept = torch.load(io.BytesIO(state.read_bytes()[32:]), weights_only=True)
    kept["history"][0]["images_per_s"] = 0.5
    write_state(state, kept)
    seconds = train(cache, tmp_path / "net", 0)
    assert seconds == pytest.approx(len(TRAIN) / 0.5, rel=0.2), "its first epoch took two seconds an image"


def test_a_fold_net_has_seen_its_training_rows_and_no_other(cache: ImageCache, tmp_path: Path) -> None:
    def weights(name: str) -> bytes:
        train(cache, tmp_path / name, 0)
        return (tmp_path / name / "weights.safetensors").read_bytes()

    before = weights("before")
    change(cache, np.concatenate([HELD, TEST]), by=3)
    assert weights("other pictures held out") == before
    change(cache, TRAIN[4], by=255)
    assert weights("one other training picture") != before


def test_an_untrained_fold_predicts_its_training_rows_prevalence(cache: ImageCache, tmp_path: Path) -> None:
    made = fold(cache, tmp_path / "fold", [0], lr=1e-12, epochs=1)
    p = 1 / (1 + np.exp(-made.predictions["oof"].logit))
    np.testing.assert_allclose(p, TARGET[TRAIN].mean(), rtol=0.1)


def test_a_net_that_says_the_same_of_all_is_refused(cache: ImageCache, tmp_path: Path) -> None:
    """But for rounding: weight decay has emptied it."""
    with pytest.raises(ImageError, match=r"collapsed.* 8 held-out images: lower `lr`, now 0\.01"):
        fold(cache, tmp_path / "fold", [0], weight_decay=99.0, epochs=6)


def test_a_fold_for_which_memory_is_not_enough_says_what_to_lower(
    cache: ImageCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: torch.optim.AdamW) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch.optim.AdamW, "step", full)  # its state comes with the first step
    with pytest.raises(ImageError, match=r"not enough \(CUDA out of memory\.\): lower `batch_size` or `size`"):
        fold(cache, tmp_path / "fold", [0])


def test_each_epoch_is_reported_to_a_study(cache: ImageCache, tmp_path: Path) -> None:
    told: list[int] = []
    inner_val = np.arange(len(TRAIN)) >= 12
    train(cache, tmp_path / "net", 0, Callbacks(report=lambda epoch, auc: told.append(epoch)), inner_val=inner_val)
    assert told == [1, 2]


def test_test_pictures_that_are_all_the_same_are_no_collapse(cache: ImageCache, tmp_path: Path) -> None:
    pixels = np.memmap(cache.folder / PIXELS_FILE, dtype=np.uint8, mode="r+", shape=(N, 32, 32, 3))
    pixels[TEST] = pixels[TEST[0]]
    cache.index["crc"] = [zlib.crc32(picture) for picture in pixels]
    made = fold(cache, tmp_path / "fold", [0]).predictions
    assert np.ptp(made["test"].logit) < 1e-6 < np.ptp(made["oof"].logit)


def test_every_image_of_every_seed_is_counted_in_the_progress(cache: ImageCache, tmp_path: Path) -> None:
    seen: list[int] = []
    fold(cache, tmp_path / "fold", [0, 1], seen.append)
    assert sum(seen) == 2 * (2 * len(TRAIN) + len(HELD) + len(TEST))


def test_the_settings_threads_hold(cache: ImageCache, tmp_path: Path) -> None:
    """Their number decides the bytes, so it is the config's and not the machine's."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        frozen_z(cache, TEST, tmp_path / "a")
        assert torch.get_num_threads() == 1
        torch.set_num_threads(2)
        train(cache, tmp_path / "b", 0, epochs=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_pictures_of_a_size_that_the_backbone_does_not_take_are_refused(cache: ImageCache, tmp_path: Path) -> None:
    transformer = network("test_vit", img_size=64, dynamic_img_size=False)
    with pytest.raises(ImageError, match="32 px"):
        train(cache, tmp_path / "a", 0, net=transformer)
    with pytest.raises(ImageError, match="32 px"):
        frozen_z(cache, TEST, tmp_path / "b", net=transformer)


# Frozen backbones


def test_the_backbone_on_disk_makes_the_stored_features_again(cache: ImageCache, tmp_path: Path) -> None:
    z = frozen_z(cache, TRAIN, tmp_path / "frozen")
    assert names(tmp_path / "frozen") == ["backbone.safetensors"]
    (tmp_path / "any").touch()
    assert (tmp_path / "frozen" / "backbone.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode
    net = blank(frozen=True)
    read_weights(net.backbone, tmp_path / "frozen" / "backbone.safetensors")
    again = predict(net, CachedImages(cache, TRAIN), batch_size=8, device=torch.device("cpu")).z
    assert z.dtype == np.float16
    assert (again == z).all()


def test_training_and_test_rows_are_embedded_by_the_same_backbone(cache: ImageCache, tmp_path: Path) -> None:
    """Train and test are embedded by two calls; their features must share axes."""
    train, test = frozen_z(cache, TRAIN, tmp_path / "train"), frozen_z(cache, TEST, tmp_path / "test")
    every = frozen_z(cache, np.arange(N), tmp_path / "every")
    np.testing.assert_allclose(every[TRAIN], train, atol=1e-3)
    np.testing.assert_allclose(every[TEST], test, atol=1e-3)
    written = {(tmp_path / name / "backbone.safetensors").read_bytes() for name in ("train", "test", "every")}
    assert len(written) == 1


def frozen_fold(z: np.ndarray, folder: Path, **changes: Any) -> FoldPredictions:
    folder.mkdir()
    sets = {"oof": z[HELD], "test": z[TEST]}
    inner = np.arange(len(TRAIN)) % 3 < 1
    inner[:2] = [False, True]  # both targets in both parts
    return fit_frozen_fold(z[TRAIN], TARGET[TRAIN], inner, sets, folder=folder, threads=1, **changes)


def test_a_frozen_fold_is_its_head_applied_to_each_sets_features(cache: ImageCache, tmp_path: Path) -> None:
    z = frozen_z(cache, np.arange(N), tmp_path / "frozen")
    seen: list[int] = []
    made = frozen_fold(z, tmp_path / "fold", progress=seen.append)
    inner = np.arange(len(TRAIN)) % 3 < 1
    inner[:2] = [False, True]
    head = fit_head(z[TRAIN], TARGET[TRAIN], inner)
    for name, rows in (("oof", HELD), ("test", TEST)):
        np.testing.assert_allclose(made.predictions[name].logit, head.logit(z[rows]), rtol=1e-6)
        assert (made.predictions[name].z == z[rows]).all()
        assert (made.seed_logits[name] == made.predictions[name].logit[:, None]).all()
    assert pd.read_csv(tmp_path / "fold" / "history.csv")["strength"].tolist() == [head.strength]
    assert sum(seen) == len(TRAIN)


def test_backbone_and_head_on_disk_are_one_net_with_the_same_logits(cache: ImageCache, tmp_path: Path) -> None:
    """What is handed on predicts from pictures what was stored from features."""
    made = frozen_fold(frozen_z(cache, np.arange(N), tmp_path / "frozen"), tmp_path / "fold")
    assert names(tmp_path / "fold") == ["history.csv", "weights.safetensors"]
    net = blank(frozen=True)
    read_weights(net.backbone, tmp_path / "frozen" / "backbone.safetensors")
    head = safetensors.torch.load_file(tmp_path / "fold" / "weights.safetensors")
    assert not net.load_state_dict(head, strict=False).unexpected_keys
    for name, rows in (("oof", HELD), ("test", TEST)):
        again = predict(net, CachedImages(cache, rows), batch_size=8, device=torch.device("cpu"))
        np.testing.assert_allclose(again.logit, made.predictions[name].logit, atol=1e-3)
    assert safetensors.numpy.load_file(tmp_path / "fold" / "weights.safetensors")["head.bias"].dtype == np.float32


def test_a_frozen_head_has_seen_its_training_rows_and_no_other(cache: ImageCache, tmp_path: Path) -> None:
    z = frozen_z(cache, np.arange(N), tmp_path / "frozen")
    frozen_fold(z, tmp_path / "before")
    z[HELD], z[TEST] = -z[HELD], 0
    frozen_fold(z, tmp_path / "after")
    before, after = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("before", "after"))
    assert before == after


def test_rows_that_choose_the_epoch_are_not_trained_on(cache: ImageCache, tmp_path: Path) -> None:
    inner_val = np.isin(np.arange(len(TRAIN)), [0, 1, 2, 3])

    def weights(name: str) -> bytes:
        train(cache, tmp_path / name, 0, epochs=1, select="best", inner_val=inner_val)
        return (tmp_path / name / "weights.safetensors").read_bytes()

    before = weights("before")
    change(cache, TRAIN[inner_val], by=2)
    assert weights("other pictures to choose on") == before
    change(cache, TRAIN[5], by=2)
    assert weights("another picture to train on") != before

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import run_cli, small_config

from dermstack.errors import ImageError
from image_models.cache import ImageCache, open_cache
from image_models.dataset import CachedImages
from image_models.net_files import net_files
from image_models.predict import predict
from image_models.saved import read_fold_net, read_fold_nets
from stack.store import Run, read_run
from tabular.encode import DenseMetadata

MODELS = [
    {"name": "plain", "normalise": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}},
    {"name": "fused", "target": "diagnosis", "metadata": ["age", "sex"], "seeds": [3, 7, 5], "tta": "flips"},
    {"name": "still", "frozen": True, "seeds": [2, 4]},
]
SHAPE = {"backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="module")
def folder(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished level-1 runs of MODELS, with a seed of the experiment's own."""
    folder = tmp_path_factory.mktemp("stored")
    path = small_config(
        small_data,
        folder,
        seed=10,
        folds={"k": 2},
        image_models=[SHAPE | model for model in MODELS],
        stackers=[],
        blend={"methods": ["rank_mean"]},
    )
    text = path.read_text().replace("    age: age_approx", "    age: age_approx\n    diagnosis: diagnosis")
    path.write_text(text)
    assert run_cli("oof", "--config", str(path), "--quiet") == 0
    return folder


def stored(folder: Path, name: str) -> tuple[Run, ImageCache]:
    run = read_run(folder / "runs" / "small" / "models" / name)
    assert run is not None
    return run, open_cache(folder / "cache" / "small-32", size=32, resize="square", format="raw")


def encoded(run: Run, fold: int, small_data: Path, ids: Any) -> np.ndarray | None:
    if not run.meta["settings"]["metadata"]:
        return None
    from stack.tables.table import read_table

    columns = {"id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx", "sex": "sex"}
    rows = read_table(small_data / "train.csv", None, columns=columns).train.set_index("id").loc[ids].reset_index()
    return DenseMetadata.from_json((run.folder / f"fold_{fold}" / "metadata.json").read_text()).transform(rows)


@pytest.mark.parametrize("name", ["plain", "fused", "still"])
def test_a_stored_net_says_of_its_held_out_rows_what_it_said_when_it_was_fitted(
    name: str, folder: Path, small_data: Path
) -> None:
    run, cache = stored(folder, name)
    settings, oof, z = run.meta["settings"], run.frame("oof"), run.array("oof_z")
    for fold in range(2):
        held = oof["fold"].to_numpy() == fold
        metadata = encoded(run, fold, small_data, oof["id"][held])
        nets = read_fold_nets(
            run.folder / f"fold_{fold}", settings, positive=run.meta.get("positive", (False, True)),
            metadata=0 if metadata is None else metadata.shape[1],
        )  # fmt: skip
        images = CachedImages(cache, cache.rows_for(oof["id"][held]), metadata=metadata)
        made = [predict(net, images, batch_size=16, device=torch.device("cpu"), tta=settings["tta"]) for net in nets]
        np.testing.assert_array_equal(made[0].z, z[held])
        if name == "still":  # its logits were made of z by numpy
            np.testing.assert_allclose(made[0].logit, oof["logit"][held], atol=1e-5)
            continue
        assert len(nets) == len(settings["seeds"])
        by_seed = np.stack([predictions.logit for predictions in made], axis=1)
        np.testing.assert_array_equal(by_seed.mean(axis=1, dtype=np.float32), oof["logit"][held])
        if len(nets) > 1:  # each at its own place
            seeds = run.frame("oof_seeds").set_index("id").loc[oof["id"][held]]
            np.testing.assert_array_equal(by_seed, seeds)


def test_reading_a_net_leaves_chance_where_it_was(folder: Path) -> None:
    run, _ = stored(folder, "plain")
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    read_fold_net(net_files(run.folder / "fold_0", run.meta["settings"]["seeds"])[0], run.meta["settings"])
    assert torch.equal(torch.rand(2), wanted)


def test_a_frozen_net_takes_its_body_from_the_folder_of_its_run(folder: Path, tmp_path: Path) -> None:
    run, _ = stored(folder, "still")
    weights = run.folder / "fold_1" / "weights.safetensors"
    (tmp_path / "alone").mkdir()
    head = tmp_path / "alone" / "head.safetensors"
    head.write_bytes(weights.read_bytes())
    with pytest.raises(ImageError, match=r"backbone\.safetensors: weights cannot be loaded"):
        read_fold_net(head, run.meta["settings"])
    (tmp_path / "backbone.safetensors").write_bytes((run.folder / "backbone.safetensors").read_bytes())
    net = read_fold_net(head, run.meta["settings"])
    np.testing.assert_array_equal(net.head.weight.detach(), safetensors.numpy.load_file(weights)["head.weight"])


def test_weights_that_do_not_fit_their_settings_are_refused(folder: Path, tmp_path: Path) -> None:
    run, _ = stored(folder, "fused")
    fold, settings = run.folder / "fold_0", run.meta["settings"]
    positive = run.meta["positive"]
    columns = len(json.loads((fold / "metadata.json").read_text())["mean"])
    with pytest.raises(ImageError, match="of another network"):
        read_fold_nets(fold, settings, positive=positive, metadata=columns + 1)
    with pytest.raises(ImageError, match="of another network"):
        read_fold_nets(fold, settings, metadata=columns)  # of two classes
    with pytest.raises(ImageError, match="weights of 3 seeds, but its settings name 4"):
        read_fold_nets(fold, settings | {"seeds": [3, 7, 5, 6]}, positive=positive, metadata=columns)

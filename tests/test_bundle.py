"""What leaves the house: whole, checked, without a row of the data, and nothing in it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from PIL import Image
from safetensors.numpy import load, save

from dermstack.errors import BundleError
from dermstack.serve.bundle import FORMAT, MANIFEST, read_bundle, write_manifest, zip_bundle
from dermstack.serve.ensemble import read_fitted
from dermstack.serve.expectations import read_promise
from dermstack.serve.patient import Ensemble, Photo, read_patient
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config

INERT = {".json", ".npy", ".safetensors", ".txt", ".ubj", ".cbm", ".yaml", ".md"}


@pytest.fixture
def unpacked(bundled_experiment: Path, tmp_path: Path) -> Path:
    """The bundle as a folder of one's own."""
    with zipfile.ZipFile(bundled_experiment / "bundle.zip") as archive:
        archive.extractall(tmp_path / "bundle")
    return tmp_path / "bundle"


def experiment_of(folder: Path) -> Experiment:
    path = folder / "small.yaml"
    return open_experiment(read_config(path), path, Out(quiet=True))


def test_no_id_group_or_path_of_the_training_data_is_in_it(
    bundled_experiment: Path, unpacked: Path, small_data: Path
) -> None:
    rows = pd.concat([pd.read_csv(small_data / f"{part}.csv", dtype=str) for part in ("train", "test")])
    words = [*rows["image_name"], *rows["patient_id"].unique(), str(small_data), str(bundled_experiment)]
    for path in unpacked.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not [word for word in words if word.encode() in content], path.name


def test_its_config_says_that_nets_from_scratch_had_no_pretrained_weights(unpacked: Path) -> None:
    settings = yaml.safe_load((unpacked / "config.yaml").read_text(encoding="utf-8"))
    assert [model["pretrained"] for model in settings["image_models"]] == [False, False]


def test_nothing_in_it_is_of_a_kind_that_runs_when_it_is_read(unpacked: Path) -> None:
    assert {path.suffix for path in unpacked.rglob("*") if path.is_file()} <= INERT
    assert (unpacked / "model_card.md").read_text(encoding="utf-8").startswith("# ")


def test_the_same_runs_make_the_same_bytes(bundled_experiment: Path, tmp_path: Path) -> None:
    write_bundle(experiment_of(bundled_experiment), tmp_path / "again.zip", Out(quiet=True))
    assert (tmp_path / "again.zip").read_bytes() == (bundled_experiment / "bundle.zip").read_bytes()


def test_every_file_that_changes_or_goes_is_named(unpacked: Path, tmp_path: Path) -> None:
    names = list(read_bundle(unpacked).manifest["files"])
    assert {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()} == {
        MANIFEST, *names
    }  # fmt: skip
    for name in names:
        path = unpacked / name
        content = path.read_bytes()
        for changed in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
            path.write_bytes(changed)
            with pytest.raises(BundleError, match=f"{name} is damaged"):
                read_bundle(unpacked)
        path.unlink()
        with pytest.raises(BundleError, match=f"{name} is missing"):
            read_bundle(unpacked)
        elsewhere = tmp_path / "elsewhere"
        elsewhere.write_bytes(content)
        path.symlink_to(elsewhere)
        with pytest.raises(BundleError, match=f"{name} is missing"):
            read_bundle(unpacked)
        path.unlink()
        path.write_bytes(content)
    read_fitted(read_bundle(unpacked))


@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", "a\\..\\out", "C:/out", "a//b", "", "."])
def test_a_name_that_leads_out_of_the_bundle_is_refused(name: str, unpacked: Path, tmp_path: Path) -> None:
    manifest = json.loads((unpacked / MANIFEST).read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 3}
    (unpacked / MANIFEST).write_text(json.dumps(manifest))
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.write(unpacked / MANIFEST, MANIFEST)
        archive.writestr(name or "x", b"out")
    before = sorted(tmp_path.rglob("*"))
    for path in (unpacked, tmp_path / "evil.zip"):
        with pytest.raises(BundleError, match="names a file outside the bundle"):
            read_bundle(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_zip_that_holds_more_than_it_says_does_not_fill_the_disk(unpacked: Path, tmp_path: Path) -> None:
    bundle = read_bundle(unpacked)
    name = next(iter(bundle.manifest["files"]))
    (unpacked / name).write_bytes(b"0" * (1 << 24))
    zip_bundle(bundle, tmp_path / "fat.zip")
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        read_bundle(tmp_path / "fat.zip")


def test_what_is_no_bundle_says_so(tmp_path: Path, unpacked: Path, bundled_experiment: Path) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    (tmp_path / "cut.zip").write_bytes((bundled_experiment / "bundle.zip").read_bytes()[:-100])
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    for name, says in {
        "gone.zip": "no such bundle", "text.zip": "as a zip", "cut.zip": "as a zip", "empty": "holds no manifest",
        "other.zip": "holds no manifest",
    }.items():  # fmt: skip
        with pytest.raises(BundleError, match=says):
            read_bundle(tmp_path / name)
    content = dict(read_bundle(unpacked).manifest)
    for text, says in (
        ("{}", "damaged"),
        ("[]", "damaged"),
        (json.dumps({**content, "format": FORMAT + 1}), "a newer dermstack"),
    ):
        (unpacked / MANIFEST).write_text(text)
        with pytest.raises(BundleError, match=says):
            read_bundle(unpacked)


def test_a_damaged_part_behind_a_right_hash_is_a_named_error(unpacked: Path) -> None:
    """Someone made the manifest anew around it."""
    manifest = read_bundle(unpacked).manifest
    (unpacked / "blend" / "blend.json").write_text('{"method": "mean"}')
    write_manifest(unpacked, {key: value for key, value in manifest.items() if key not in {"files", "format"}})
    with pytest.raises(BundleError, match="level 2 or the blend cannot be read"):
        read_fitted(read_bundle(unpacked))


def test_a_bundle_is_of_what_the_config_says_today(
    bundled_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config, target = bundled_experiment / "small.yaml", tmp_path / "b"
    for change, says in {
        "blend.trials=6": "the blend is stale", "features.cohort=false": "gbdt is stale",
        "stackers.1.name=other": "other is missing",
    }.items():  # fmt: skip
        assert run_cli("bundle", "-c", str(config), "--out", str(target), "--set", change, "-q") == 2
        assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    target.mkdir()
    assert run_cli("bundle", "-c", str(config), "--out", str(target), "-q") == 2
    assert "exists already" in capsys.readouterr().err
    assert run_cli("bundle", "-c", str(config), "--out", str(target), "--replace", "-q") == 0
    assert read_bundle(target).fingerprint == read_bundle(bundled_experiment / "bundle.zip").fingerprint


def test_the_bytes_that_are_read_are_those_that_are_hashed(unpacked: Path) -> None:
    """Any file may change between the opening and its reading, in place or by another in its stead."""
    bundle = read_bundle(unpacked)
    for name in bundle.manifest["files"]:
        path = unpacked / name
        content = path.read_bytes()
        assert bundle.read(name) == bundle.read_path(path) == content
        for changed in (content[:-1] + bytes([content[-1] ^ 1]), content + b"0", b""):
            path.write_bytes(changed)
            with pytest.raises(BundleError, match=re.escape(f"{name} has changed since the bundle was opened")):
                bundle.read(name)
        path.unlink()
        with pytest.raises(BundleError, match=re.escape(name)):
            bundle.read(name)
        os.mkfifo(path)  # would block for ever
        with pytest.raises(BundleError, match=re.escape(name)):
            bundle.read(name)
        path.unlink()
        path.write_bytes(content)
    with pytest.raises(BundleError, match=r"more\.npy is not in its manifest"):
        bundle.read("blend/more.npy")


def test_every_part_that_predicts_is_read_through_the_hash(unpacked: Path, tmp_path: Path) -> None:
    """Each file is changed after the opening; what does not notice would not have been used."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    photo = Photo("a.png", (tmp_path / "a.png").read_bytes())
    unused = {"config.yaml", "model_card.md", "promise.json"}  # for people, and for `evaluate` alone
    for name in read_bundle(unpacked).manifest["files"]:
        bundle = read_bundle(unpacked)
        content = (unpacked / name).read_bytes()
        (unpacked / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        if name in unused:
            read_patient(Ensemble(bundle, device="cpu"), [photo])
        else:
            with pytest.raises(BundleError, match=re.escape(f"{name} has changed since the bundle was opened")):
                read_patient(Ensemble(bundle, device="cpu"), [photo])
        if name == "promise.json":
            with pytest.raises(BundleError, match=re.escape(f"{name} has changed since the bundle was opened")):
                read_promise(bundle)
        (unpacked / name).write_bytes(content)


def test_a_bundle_replaced_in_use_says_so(unpacked: Path, tmp_path: Path) -> None:
    """As `bundle --replace` under a running app: before the first patient, after it, and in between."""
    other = tmp_path / "other"
    shutil.copytree(unpacked, other)
    for path in other.rglob("weights*.safetensors"):
        path.write_bytes(save({key: np.asarray(values * 2) for key, values in load(path.read_bytes()).items()}))
    manifest = read_bundle(unpacked).manifest
    write_manifest(other, {key: value for key, value in manifest.items() if key not in {"files", "format"}})
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / "a.png")
    photo = Photo("a.png", (tmp_path / "a.png").read_bytes())

    def score(ensemble: Ensemble) -> float:
        return read_patient(ensemble, [photo]).lesions[0].score

    before, after = (score(Ensemble(read_bundle(folder), device="cpu")) for folder in (unpacked, other))
    assert before != after
    kept = Ensemble(read_bundle(unpacked), device="cpu")
    assert score(kept) == before
    fresh, small = (Ensemble(read_bundle(unpacked), device="cpu", net_cache_bytes=size) for size in (4 << 30, 0))
    assert score(small) == before
    unpacked.replace(tmp_path / "replaced")
    other.replace(unpacked)
    for ensemble in (kept, fresh, small):  # the heads of a frozen run are read for each patient
        with pytest.raises(BundleError, match=r"was replaced by another bundle .* start the command"):
            score(ensemble)
    assert score(Ensemble(read_bundle(unpacked), device="cpu")) == after

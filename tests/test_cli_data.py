"""`audit` and `eda` on the small world, as a user calls them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli, small_config
from imported_experiment import write_experiment
from PIL import Image


@pytest.fixture
def world(small_data: Path, tmp_path: Path) -> Path:
    """A data set with one picture under two patients, once positive and once negative, and one in train and test."""
    shutil.copytree(small_data, tmp_path / "data")
    train, test = (pd.read_csv(tmp_path / "data" / f"{part}.csv", dtype=str) for part in ("train", "test"))
    positive = train[train["target"] == "1"].iloc[0]
    negative = train[(train["target"] == "0") & (train["patient_id"] != positive["patient_id"])].iloc[0]
    other = train[~train["image_name"].isin([positive["image_name"], negative["image_name"]])].iloc[5]
    images = tmp_path / "data" / "images"
    for source, copy in ((positive, negative), (other, test.iloc[0])):
        with Image.open(next(images.glob(f"{source['image_name']}.*"))) as image:
            image.convert("RGB").rotate(90).save(next(images.glob(f"{copy['image_name']}.*")), quality=92)
    return tmp_path


def test_the_audit_lists_pairs_by_kind_and_writes_them_down(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small_config(world / "data", world)
    assert run_cli("audit", "-c", str(config)) == 0
    shown = capsys.readouterr().out
    assert "pairs of images that look alike, different targets: 1" in shown
    assert "pairs of images that look alike, train and test: 1" in shown
    assert re.search(r"│ [01] +│ train +│", shown), "targets have no decimals"
    folder = world / "runs" / "small"
    pairs = pd.read_csv(folder / "audit_pairs.csv", dtype=str)
    assert sorted(pairs["kind"]) == ["different targets", "train and test"]
    findings = pd.read_csv(folder / "audit.csv")
    assert findings["severity"].iloc[0] == "error"
    assert findings.columns.tolist() == ["severity", "what", "evidence", "remedy", "example"]


def test_an_audit_decides_nothing(world: Path) -> None:
    """What it found reaches the folds when `oof` is run, and then the same way."""
    config = small_config(world / "data", world)
    assert run_cli("audit", "-c", str(config), "-q") == 0
    assert not (world / "runs" / "small" / "pictures.json").exists()
    assert not (world / "runs" / "small" / "folds.parquet").exists()


def test_the_eda_page_shows_pictures_and_duplicates(world: Path) -> None:
    config = small_config(world / "data", world)
    assert run_cli("eda", "-c", str(config), "--sheet", "6", "-q") == 0
    page = (world / "runs" / "small" / "eda.html").read_text(encoding="utf-8")
    assert page.count("data:image/") >= 24, "six of each class, with their edges"
    assert "different targets" in page
    assert run_cli("eda", "-c", str(config), "--no-images", "-q") == 0
    assert "data:image/" not in (world / "runs" / "small" / "eda.html").read_text(encoding="utf-8")


def test_metadata_alone_has_a_page_too(tmp_path: Path) -> None:
    assert run_cli("eda", "-c", str(write_experiment(tmp_path)), "-q") == 0
    assert (tmp_path / "runs" / "elsewhere" / "eda.html").exists()

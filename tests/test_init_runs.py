"""Configs that `dermstack init` writes run to a submission as they are: generated layouts and the data at hand."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import SHARED, run_cli
from table_layouts import write_clinic, write_png_folders

pytestmark = pytest.mark.slow

DATA = SHARED / "data"


def _initialised(start: Path, folder: Path) -> Path:
    config = folder / "config.yaml"
    assert run_cli("init", str(start), "--out", str(config), "-q") == 0
    return config


def _submission(config: Path, ids: pd.Series, *, images: bool) -> pd.DataFrame:
    """Runs the commands that `init` printed and returns the submission, which must score each test row."""
    for step in ("oof", "stack") if images else ("stack",):
        assert run_cli(step, "-c", str(config), "-q") == 0
    made = list((config.parent / "runs").glob("*/submission.csv"))
    assert len(made) == 1
    frame = pd.read_csv(made[0], dtype={0: str})
    assert sorted(frame.iloc[:, 0]) == sorted(ids.astype(str))
    assert frame.iloc[:, 1].between(0, 1).all()
    return frame


def test_png_files_in_folders_with_words_as_labels(tmp_path: Path) -> None:
    frame = write_png_folders(tmp_path)
    made = _submission(_initialised(tmp_path, tmp_path), frame["ID"].iloc[300:], images=True)
    y = (frame.set_index("ID")["label"] == "malignant").loc[made["ID"]].to_numpy()
    assert made["label"][y].mean() > made["label"][~y].mean()  # `malignant` is the class that is predicted


def test_a_layout_of_no_config(tmp_path: Path) -> None:
    write_clinic(tmp_path)
    test = pd.read_parquet(tmp_path / "to_predict_test.parquet")
    made = _submission(_initialised(tmp_path, tmp_path), test["filename"], images=True)
    assert list(made.columns) == ["filename", "p"]  # those of its sample submission


def test_the_generated_demo_data(tmp_path: Path) -> None:
    assert run_cli("demo-data", str(tmp_path / "demo"), "-q") == 0
    test = pd.read_csv(tmp_path / "demo" / "test.csv", dtype=str)
    _submission(_initialised(tmp_path / "demo", tmp_path), test["image_name"], images=True)


@pytest.mark.skipif(not (DATA / "isic2024").is_dir(), reason="needs the data beside the repository")
def test_isic2024_runs_on_its_table(tmp_path: Path) -> None:
    test = pd.read_csv(DATA / "isic2024" / "test.csv", usecols=["isic_id"])
    _submission(_initialised(DATA / "isic2024", tmp_path), test["isic_id"], images=False)


@pytest.mark.skipif(not (DATA / "siim2020").is_dir(), reason="needs the data beside the repository")
def test_siim2020_runs_on_its_table_as_most_rows_have_no_image(tmp_path: Path) -> None:
    test = pd.read_csv(DATA / "siim2020" / "test.csv", usecols=["image_name"])
    _submission(_initialised(DATA / "siim2020", tmp_path), test["image_name"], images=False)


@pytest.mark.skipif(not (DATA / "ham10000").is_dir(), reason="needs the data beside the repository")
def test_ham10000_is_described_as_its_own_config_describes_it(tmp_path: Path) -> None:
    from stack.settings.config import read_config

    config = _initialised(DATA / "ham10000", tmp_path)
    made, known = read_config(config), read_config(Path("configs/ham10000.yaml"))
    for name in ("id", "group", "target", "age", "sex", "site", "diagnosis"):
        assert getattr(made.data.columns, name) == getattr(known.data.columns, name), name
    assert made.data.images is not None
    assert made.data.images.name == "jpeg"
    assert made.image_models
    assert run_cli("eda", "-c", str(config), "--no-images", "-q") == 0


def test_the_tutorial_s_commands_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text(encoding="utf-8")
    found = [
        line.split()[1:] for line in text.splitlines() if line.startswith(("    dermstack init", "    dermstack plan"))
    ]
    assert [words[0] for words in found] == ["init", "plan"]
    (tmp_path / "data" / "mine").mkdir(parents=True)
    write_png_folders(tmp_path / "data" / "mine", n=80, n_test=20)
    monkeypatch.chdir(tmp_path)
    for words in found:
        assert run_cli(*words) == 0
    assert run_cli("plan", "-c", "mine.yaml", "--set", "image_models.0.size=64") == 0

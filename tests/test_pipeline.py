"""The pipeline from Python is the one of the command line, and takes a file, a mapping or a Config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config

import dermstack
from dermstack import ConfigError, DataError, StoreError, run_oof, run_stack
from dermstack.pipeline import open_config
from stack.console import Out
from stack.metrics.scores import auc
from stack.settings.config import read_config

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

API = Path(__file__).parents[1] / "docs" / "api.md"


def settings_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


@pytest.mark.slow
def test_a_mapping_gives_what_the_commands_give(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("shell", "python"):
        (tmp_path / place).mkdir()
    config = small_config(small_data, tmp_path / "shell")
    assert run_cli("oof", "-c", str(config), "-q") == 0
    assert run_cli("stack", "-c", str(config), "-q") == 0
    settings = settings_of(small_config(small_data, tmp_path / "python"))
    settings |= {"runs": "runs", "cache": "cache"}
    monkeypatch.chdir(tmp_path / "python")  # where relative paths start
    level1, made = run_oof(settings), run_stack(settings)
    theirs, ours = (tmp_path / place / "runs" / "small" for place in ("shell", "python"))
    assert (ours / "submission.csv").read_bytes() == (theirs / "submission.csv").read_bytes()
    assert list(level1.runs) == ["tiny", "still"]
    assert list(made.runs) == ["tiny", "still", "gbdt"]
    assert made.report.samefile(ours / "report.html")
    oof = made.oof
    train = pd.read_csv(small_data / "train.csv", dtype=str)
    assert oof["id"].tolist() == train["image_name"].tolist()
    assert oof["target"].tolist() == train["target"].astype(int).tolist()
    for name, run in made.runs.items():
        by_id = run.frame("oof").set_index("id")["p"]
        np.testing.assert_array_equal(oof[name], by_id.loc[oof["id"]])
    assert made.headline.value == pytest.approx(auc(oof["target"], oof["score"]), abs=1e-12)
    assert made.submission is not None
    assert made.submission.iloc[:, 0].tolist() == pd.read_csv(ours / "submission.csv", dtype=str).iloc[:, 0].tolist()
    assert made.scores["run"].tolist() == list(made.runs)


@pytest.mark.slow
def test_the_example_of_the_page_runs(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_config(small_data, tmp_path).rename(tmp_path / "demo.yaml")
    monkeypatch.chdir(tmp_path)
    (snippet,) = re.findall(r"```python\n([^`]*run_oof.*?)```", API.read_text(encoding="utf-8"), re.DOTALL)
    seen: dict[str, Any] = {}
    exec(compile(snippet, "api.md", "exec"), seen)
    assert seen["made"].submission.shape == (60, 2)


def test_a_config_a_mapping_and_a_file_open_the_same_experiment(small_data: Path, tmp_path: Path) -> None:
    path, out = small_config(small_data, tmp_path), Out(quiet=True)
    of_file = open_config(path, out)
    for config in (str(path), settings_of(path), read_config(path)):
        opened = open_config(config, out)
        assert opened.config == of_file.config
        assert opened.rows_fingerprint == of_file.rows_fingerprint


def test_overrides_change_a_copy_of_the_mapping(small_data: Path, tmp_path: Path) -> None:
    settings = settings_of(small_config(small_data, tmp_path))
    opened = open_config(settings, Out(quiet=True), overrides=["image_models.0.epochs=7"])
    assert opened.config.image_models[0].epochs == 7
    assert settings["image_models"][0]["epochs"] == 1
    with pytest.raises(ConfigError, match="pass them to read_config"):
        open_config(opened.config, Out(quiet=True), overrides=["seed=3"])


def test_messages_name_the_call_where_there_is_no_file(small_data: Path, tmp_path: Path) -> None:
    settings = settings_of(small_config(small_data, tmp_path))
    with pytest.raises(StoreError, match=r"run `dermstack\.run_oof\(config\)` first"):
        run_stack(settings)
    with pytest.raises(ConfigError, match=r"the settings:\n  folds\.k: "):
        dermstack.run_oof(settings | {"folds": {"k": 1}})


def test_a_sample_of_other_rows_is_refused_before_anything_is_trained(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(small_data, tmp_path)
    settings = settings_of(config)
    sample = tmp_path / "other_sample.csv"
    sample.write_text("image_name,target\nISIC_0000001,0\n", encoding="utf-8")
    settings["data"]["sample_submission"] = str(sample)
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(DataError, match=r"other_sample\.csv.*ISIC_0000001"):
        run_oof(config)
    assert not (tmp_path / "runs" / "small" / "models").exists()
    assert run_cli("plan", "-c", str(config)) in (0, 1)
    assert "other_sample.csv" in "".join(capsys.readouterr())

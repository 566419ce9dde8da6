"""A run with more seeds or other views takes over the nets that were trained before it, and ends in the same bytes."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config

from image_models import fit as fit_module
from stack.store import read_run

NET = {"name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "batch_size": 16}


@pytest.fixture(scope="session")
def one_seed(smaller_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a complete run of seed 0. Copy before changing it."""
    folder = tmp_path_factory.mktemp("one_seed")
    assert run_cli("oof", "-c", str(config(smaller_data, folder)), "-q") == 0
    return folder


def config(data: Path, folder: Path, *, seed: int = 0, **net: Any) -> Path:
    return small_config(data, folder, image_models=[NET | net], seed=seed)


def copied(one_seed: Path, tmp_path: Path) -> Path:
    shutil.copytree(one_seed, tmp_path / "copy")
    return tmp_path / "copy"


def contents(folder: Path) -> dict[str, Any]:
    """What the run in ``folder`` predicts, its weights and its histories, but for what holds times."""
    run = folder / "runs" / "small" / "models" / "tiny"
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.suffix in {".parquet", ".npy", ".safetensors"}
    }
    for path in run.rglob("history.csv"):
        found[str(path.relative_to(run))] = pd.read_csv(path).drop(columns="images_per_s").to_dict()
    return found


@pytest.mark.parametrize("wanted", [{"seeds": [0, 3]}, {"seeds": [3, 0]}, {"tta": "flips"}], ids=str)
def test_what_was_trained_is_taken_over_and_the_bytes_are_those_of_a_run_from_nothing(
    wanted: dict[str, Any], one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = copied(one_seed, tmp_path)
    assert run_cli("oof", "-c", str(config(smaller_data, folder, **wanted)), "--rebuild", "tiny") == 0
    assert trained == ([3] * 3 if "seeds" in wanted else [])
    assert "3 trained nets are reused without training" in " ".join(capsys.readouterr().out.split())
    assert run_cli("oof", "-c", str(config(smaller_data, tmp_path, **wanted)), "-q") == 0
    assert contents(folder) == contents(tmp_path)


@pytest.mark.usefixtures("without_figures")
def test_a_label_by_hand_stands_beside_the_number_and_trains_nothing(
    one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(one_seed, tmp_path)
    before, labelled = contents(folder), ["-c", str(config(smaller_data, folder, selected=True))]
    assert run_cli("stack", *labelled, "-q") == 2, "the run does not say so yet"
    assert "was made with other selection" in capsys.readouterr().err
    assert run_cli("oof", *labelled, "--rebuild", "tiny") == 0
    assert "selected on these rows" in " ".join(capsys.readouterr().out.split())
    assert trained == []
    assert contents(folder) == before
    assert run_cli("stack", *labelled) == 0
    assert "tiny, gbdt: selected on these rows" in " ".join(capsys.readouterr().out.split())
    assert "settings were selected on these rows" in (folder / "runs/small/report.html").read_text()
    assert run_cli("stack", "-c", str(config(smaller_data, folder)), "-q") == 2, "a label does not come off by itself"


@pytest.mark.parametrize("wanted", [{}, {"lr": 0.002}, {"ema": 0.5}, {"seed": 1}], ids=str)
def test_a_run_asked_for_anew_or_trained_otherwise_is_trained(
    wanted: dict[str, Any], one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int]
) -> None:
    folder = copied(one_seed, tmp_path)
    assert run_cli("oof", "-c", str(config(smaller_data, folder, **wanted)), "--rebuild", "tiny", "-q") == 0
    assert len(trained) == 3


def test_views_may_go_and_come_back_without_a_training(
    one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int]
) -> None:
    folder = copied(one_seed, tmp_path)
    before = contents(folder)
    for tta in ("flips", "none"):
        assert run_cli("oof", "-c", str(config(smaller_data, folder, tta=tta)), "--rebuild", "tiny", "-q") == 0
    assert contents(folder) == before
    assert trained == []
    assert run_cli("oof", "-c", str(config(smaller_data, folder)), "--rebuild", "tiny", "-q") == 0
    assert len(trained) == 3, "settings are unchanged: it is wanted anew"


def test_a_run_wanted_anew_stays_so_when_it_is_interrupted(
    one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied(one_seed, tmp_path)
    path, counted = config(smaller_data, folder), fit_module.train_net

    def interrupted(*arguments: Any, **settings: Any) -> pd.DataFrame:
        if len(trained) == 1:
            raise KeyboardInterrupt
        return counted(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "train_net", interrupted)
        assert run_cli("oof", "-c", str(path), "--rebuild", "tiny", "-q") == 130
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert len(trained) == 3
    assert run_cli("oof", "-c", str(config(smaller_data, folder, tta="flips")), "--rebuild", "tiny", "-q") == 0
    assert len(trained) == 3, "what was wanted anew is complete, and may be taken over"


def test_the_same_command_goes_on_with_what_it_was_rebuilding(
    one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user who is told to run the same command again repeats `--rebuild` too."""
    folder = copied(one_seed, tmp_path)
    before, path, counted = contents(folder), config(smaller_data, folder), fit_module.train_net

    def interrupted(*arguments: Any, **settings: Any) -> pd.DataFrame:
        if len(trained) in (1, 2) and len(trained) not in stopped:
            stopped.append(len(trained))
            raise KeyboardInterrupt
        return counted(*arguments, **settings)

    stopped: list[int] = []
    monkeypatch.setattr(fit_module, "train_net", interrupted)
    for _ in range(2):
        assert run_cli("oof", "-c", str(path), "--rebuild", "tiny", "-q") == 130
    assert run_cli("oof", "-c", str(path), "--rebuild", "tiny", "-q") == 0
    assert len(trained) == 3, "no fold is trained twice"
    assert contents(folder) == before
    assert len(list((folder / "runs" / "small" / "old").iterdir())) == 1


def test_the_command_that_rebuilds_is_the_one_that_was_typed(
    one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(one_seed, tmp_path)
    changed = [
        "-c",
        str(config(smaller_data, folder)),
        "--set",
        "image_models.0.name=tiny",
        "--set",
        "image_models.0.lr=0.02",
    ]
    assert run_cli("oof", *changed, "-q") == 2
    command = shlex.split(capsys.readouterr().err.rpartition("rebuild the run with `")[2].partition("`")[0])
    assert command[0] == "dermstack"
    assert run_cli(*command[1:]) == 0
    assert len(trained) == 3
    follows = shlex.split(capsys.readouterr().out.rpartition("next: ")[2].strip())
    assert run_cli(*follows[1:], "-q") == 0, "and what comes next is of the same settings"


def test_nothing_is_set_aside_where_another_run_is_refused(one_seed: Path, smaller_data: Path, tmp_path: Path) -> None:
    folder = copied(one_seed, tmp_path)
    path = config(smaller_data, folder)
    other = yaml.safe_load(path.read_text())
    other["image_models"].append({"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32})
    other["image_models"][1]["frozen"] = True
    path.write_text(yaml.safe_dump(other))
    assert run_cli("oof", "-c", str(path), "-q") == 0
    before = contents(folder)
    changed = ["--set", "image_models.1.tta=flips"]
    assert run_cli("oof", "-c", str(path), *changed, "--rebuild", "tiny", "-q") == 2
    assert contents(folder) == before
    assert not (folder / "runs" / "small" / "old").exists()


def test_other_rows_are_trained_on(one_seed: Path, smaller_data: Path, tmp_path: Path, trained: list[int]) -> None:
    folder = copied(one_seed, tmp_path)
    shutil.copytree(smaller_data, tmp_path / "data")
    rows = pd.read_csv(tmp_path / "data" / "train.csv")
    rows.iloc[1:].to_csv(tmp_path / "data" / "train.csv", index=False)
    path = config(tmp_path / "data", folder, seeds=[0, 3])
    assert run_cli("oof", "-c", str(path), "--rebuild", "tiny", "-q") == 0
    assert sorted(trained) == [0] * 3 + [3] * 3


def test_weights_that_have_changed_since_are_refused_by_name(
    one_seed: Path, smaller_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(one_seed, tmp_path)
    weights = folder / "runs/small/models/tiny/fold_1/seed_0/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert run_cli("oof", "-c", str(config(smaller_data, folder, seeds=[0, 3])), "--rebuild", "tiny", "-q") == 2
    error = capsys.readouterr().err
    assert "fold_1/seed_0/weights.safetensors is damaged: remove" in error
    assert "models/tiny and run `dermstack oof` again" in error
    assert not (folder / "runs/small/old").exists(), "nothing was moved"


@pytest.mark.parametrize("step", ["oof", "stack"])
def test_another_seed_of_everything_makes_a_run_stale_both_ways(
    step: str, one_seed: Path, smaller_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copied(one_seed, tmp_path)
    path = config(smaller_data, folder, seed=1)
    assert run_cli(step, "-c", str(path), "-q") == 2
    assert "was made with other seed" in capsys.readouterr().err
    assert run_cli("oof", "-c", str(path), "--rebuild", "tiny", "-q") == 0
    assert run_cli(step, "-c", str(config(smaller_data, folder)), "-q") == 2
    assert "was made with other seed" in capsys.readouterr().err
    run = read_run(folder / "runs/small/models/tiny")
    assert run is not None
    assert run.meta["inputs"]["seed"] == "1"

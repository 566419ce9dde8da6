"""Law 9: the same config, seed and threads give the same bytes in every file, in one process, in two, and again."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli, small_config

TINY = {"backbone": "test_resnet", "pretrained": False, "size": 32, "batch_size": 16}
MODELS = [
    {**TINY, "name": "tiny", "epochs": 1, "metadata": ["age", "sex"], "seeds": [3, 0], "tta": "flips"},
    {**TINY, "name": "still", "frozen": True},
]
QUICK = {"rounds": 12, "patience": 4}
STACKERS = [
    {"name": "gbdt", "kind": "lightgbm", "params": QUICK, "bags": 2, "negatives": 0.8},
    {"name": "xgb", "kind": "xgboost", "params": QUICK},
    {"name": "line", "kind": "logistic"},
]
TIMES = {"seconds", "when", "datetime_start", "datetime_complete", "worker_id", "images_per_s"}
OF_TIMES = {"history.csv", "digest", "crc"}  # checks of what holds times
# A page says when it was made, and names rows by a key that each experiment draws for itself.
NOT_COMPARED = {".lock", "pseudonym.key", "report.html", "up_to_date.json"}  # the last holds hashes of the others


def made(data: Path, folder: Path, *, n_jobs: int, workers: int = 0) -> dict[str, object]:
    """Every file of a whole experiment by its path: nets, frozen, studies of GBDTs and blend, stackers, submission."""
    folder.mkdir()
    features = {"frozen_z": 4, "aligned_z": 3, "cohort": True}
    config = small_config(
        data, folder, n_jobs=n_jobs, workers=workers, image_models=MODELS, features=features, stackers=STACKERS
    )
    runs = folder / "runs" / "small"
    gbdt = [f"--set=tuned.gbdt.{name}={runs}/studies/gbdt-{name}.yaml" for name in ("gbdt", "xgb")]
    blend = f"--set=tuned.blend={runs}/studies/blend.yaml"
    for command in (
        ["oof"],
        ["tune", "gbdt", "--trials", "2"],
        ["stack", "--no-report", *gbdt],  # the second makes it, and what it needs
        ["tune", "blend", "--trials", "3", *gbdt],
        ["stack", *gbdt, blend],
    ):
        assert run_cli(*command, "-c", str(config), "-q") == 0
    assert (runs / "submission.csv").is_file()
    return {
        str(path.relative_to(runs)): without_times(path, folder)
        for path in sorted(runs.rglob("*"))
        if path.is_file() and path.name not in NOT_COMPARED
    }


def without_times(path: Path, folder: Path) -> object:
    """The bytes of a file, or what it says besides times and where it lies."""
    content = path.read_bytes()
    if path.name == "history.csv":
        history = pd.read_csv(io.BytesIO(content))
        return history.drop(columns=TIMES & set(history.columns)).to_csv()
    if path.suffix in {".json", ".jsonl", ".log"}:
        lines = content.decode().splitlines() if path.suffix != ".json" else [content.decode()]
        kept = [json.loads(re.sub(re.escape(str(folder)), "", line), object_hook=_timeless) for line in lines]
        return [line for line in kept if line]
    return content


def _timeless(part: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in part.items() if key not in TIMES | OF_TIMES}


@pytest.fixture(scope="module")
def one_process(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return made(small_data, tmp_path_factory.mktemp("determinism") / "one", n_jobs=1)


@pytest.mark.ci
@pytest.mark.slow
@pytest.mark.parametrize(("n_jobs", "workers"), [(1, 0), (2, 1)])
def test_every_file_is_the_same_again(
    n_jobs: int, workers: int, one_process: dict[str, object], small_data: Path, tmp_path: Path
) -> None:
    again = made(small_data, tmp_path / "again", n_jobs=n_jobs, workers=workers)
    assert list(again) == list(one_process)
    assert [name for name, content in again.items() if content != one_process[name]] == []
    kinds = {Path(name).suffix for name in again}
    assert {".safetensors", ".npy", ".parquet", ".txt", ".ubj", ".csv", ".yaml", ".json", ".log"} <= kinds

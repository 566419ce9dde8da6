"""Commands that run at once: each pair either works side by side or one is refused by name, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import run_cli, small_config

from dermstack.errors import StoreError
from image_models.locks import in_use, locked, unused

STILL = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
HOLD = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from image_models.locks import in_use, locked
hold = {"locked": locked, "in_use": in_use}[sys.argv[1]]
with hold(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@contextmanager
def held(kind: str, folder: Path, seconds: float = 600) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of a folder, or uses it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", HOLD, kind, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_many_use_a_folder_at_once_and_nobody_removes_it_meanwhile(tmp_path: Path) -> None:
    with held("in_use", tmp_path), in_use(tmp_path), pytest.raises(StoreError, match="another process is using"):
        unused(tmp_path).__enter__()
    with unused(tmp_path), pytest.raises(StoreError, match="another process is working on"):
        locked(tmp_path).__enter__()


def test_a_killed_user_is_none(tmp_path: Path) -> None:
    with held("in_use", tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with unused(tmp_path):
            assert not list(tmp_path.glob(".*.use"))


def test_a_wait_is_told_on_stderr_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with held("locked", tmp_path, seconds=3):
        with locked(tmp_path, wait=60):
            pass
        assert capsys.readouterr().err == f"waiting for another process that is working on {tmp_path}\n"
    with locked(tmp_path, wait=60):
        pass
    assert capsys.readouterr().err == "", "without a wait nothing is said"


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stacked experiment of one frozen model, and what an earlier run left in old/."""
    folder = tmp_path_factory.mktemp("finished")
    path = small_config(small_data, folder, image_models=[STILL])
    for step in (["oof"], ["stack", "--no-report"]):
        assert run_cli(*step, "-c", str(path), "-q") == 0
    (folder / "runs" / "small" / "old" / "still-0").mkdir(parents=True)
    return folder


# What a command that runs holds, and which commands are refused meanwhile.
USED, EXPERIMENT, RUN = "cache/.small", "runs/small", "runs/small/models/still"
CLEAN = ["clean --yes", "clean --cache --yes"]
PAIRS = [
    ("in_use", USED, ["clean --cache --yes"], ["clean --yes", "stack", "report", "audit", "eda --no-images", "oof"]),
    (
        "locked",
        EXPERIMENT,
        [
            "clean --yes",
            "clean --cache --yes",
            "stack",
            "report",
            "audit",
            "tune blend --trials 1",
            "bundle --out {}/b",
        ],
        ["oof", "eda --no-images", "runs"],
    ),
    (
        "locked",
        RUN,
        [
            "clean --yes",
            "clean --cache --yes",
            "stack",
            "oof --rebuild still",
            "tune blend --trials 1",
            "bundle --out {}/b",
        ],
        ["oof", "report", "audit", "eda --no-images", "runs"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "place", "refused", "allowed"), PAIRS)
def test_each_command_beside_one_that_runs_is_done_or_refused_by_name(
    finished: Path, capsys: pytest.CaptureFixture[str], kind: str, place: str, refused: list[str], allowed: list[str]
) -> None:
    config = ["-c", str(finished / "small.yaml")]

    def run(words: str) -> int:
        named = ["--folder", str(finished / "runs")] if words == "runs" else config
        return run_cli(*words.format(finished).split(), *named)

    with held(kind, finished / place):
        for words in refused:
            assert run(words) == 2, words
            assert "error: another process is" in capsys.readouterr().err, words
        assert (finished / "cache" / "small-32" / "index.parquet").is_file()
        for words in [words for words in allowed if words != "clean --yes"]:
            assert run(words) == 0, (words, capsys.readouterr().err)


@pytest.mark.slow
def test_clean_beside_an_oof_that_fills_the_cache_removes_nothing_of_it(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_config(small_data, tmp_path, image_models=[STILL])
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-m", "dermstack", "oof", "-c", str(path), "-q"]
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    refused = 0
    while running.poll() is None:
        if (tmp_path / "cache" / ".small").exists() and run_cli("clean", "-c", str(path), "--cache", "--yes") == 2:
            refused += "another process is" in capsys.readouterr().err
        time.sleep(0.05)
    assert running.returncode == 0, running.stderr.read() if running.stderr else ""
    assert refused, "it ran at the same time"
    assert run_cli("clean", "-c", str(path), "--cache", "--yes") == 0
    assert not (tmp_path / "cache" / "small-32").exists()

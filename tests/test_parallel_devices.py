from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

import pytest

from stack import parallel as devices
from stack.parallel import reserve_device


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda device: 0 if device == "cpu" else 2)
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))


def test_tasks_at_the_same_time_have_gpus_of_their_own() -> None:
    with reserve_device("auto") as first, reserve_device("cuda") as second:
        assert {first, second} == {"cuda:0", "cuda:1"}
    with reserve_device("auto") as again:
        assert again == "cuda:0", "what was held is free again"


def test_the_cpu_is_shared() -> None:
    with reserve_device("cpu") as first, reserve_device("cpu") as second:
        assert first == second == "cpu"


def test_one_gpu_needs_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda device: 1)
    with reserve_device("auto") as first:
        assert first == "auto"


def _hold(ready: multiprocessing.synchronize.Event) -> None:
    with reserve_device("cuda"):
        ready.set()
        time.sleep(60)


def test_a_killed_process_leaves_its_gpu_free() -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(ready,))
    process.start()
    assert ready.wait(10)
    with reserve_device("cuda") as beside:
        assert beside == "cuda:1"
        process.kill()
        process.join()
        with reserve_device("cuda") as freed:
            assert freed == "cuda:0"

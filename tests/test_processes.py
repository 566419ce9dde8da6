"""Worker processes end with the process that started them, and leave Ctrl-C to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dermstack.errors import ImageError
from image_models.dataset import Batch, CachedImages, load_batches
from image_models.processes import explain_death
from stack.parallel import Pending, start_together
from stack.settings.config import config_of

MINIMAL: dict[str, Any] = {
    "experiment": "started",
    "data": {"name": "small", "train": "train.csv", "columns": {"id": "id", "target": "target"}},
    "stackers": [],
}

PROGRAM = """
import os, sys, time
from functools import partial
from pathlib import Path
from image_models.processes import end_workers, run_parallel

def work(folder, number):
    (Path(folder) / f"{os.getpid()}.worker").touch()
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 600):
        time.sleep(0.1)
    return number

try:
    made = list(run_parallel([partial(work, sys.argv[1], number) for number in range(4)], 2))
except KeyboardInterrupt:
    end_workers()
    sys.exit(130)
assert made == [0, 1, 2, 3], made
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def started(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """The program and its two workers, each at its task."""
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    while len(workers := list(folder.glob("*.worker"))) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    return process, [int(path.stem) for path in workers]


def all_ended(pids: list[int]) -> bool:
    for _ in range(600):
        if not any(map(lives, pids)):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.slow
def test_the_workers_of_a_killed_process_end_in_the_middle_of_their_task(tmp_path: Path) -> None:
    process, workers = started(tmp_path)
    process.kill()
    process.wait()
    assert all_ended(workers)


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_reaches_the_main_process_alone_and_ends_all(tmp_path: Path) -> None:
    process, workers = started(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert (process.returncode, said) == (130, ""), "no worker has a word to say"
    assert all_ended(workers)


COMMAND = """
import atexit, os, sys
from functools import partial
from pathlib import Path
from unittest.mock import patch
import dermstack.cli.main as cli
from image_models.processes import run_parallel

def work(folder):
    (Path(folder) / f"{os.getpid()}.worker").touch()
    atexit.register((Path(folder) / "left to itself").touch)

def command():
    list(run_parallel([partial(work, sys.argv[1])] * 4, 2))
    sys.exit(0)

with patch.object(cli, "app", command):
    cli.main()
"""


@pytest.mark.slow
def test_a_command_that_is_done_does_not_wait_until_its_workers_have_ended_by_themselves(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", COMMAND, str(tmp_path)], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    workers = [int(path.stem) for path in tmp_path.glob("*.worker")]
    assert workers
    assert not any(map(lives, workers))
    assert not (tmp_path / "left to itself").exists()


class Failing(CachedImages):
    """Its second batch meets a damaged picture, or the end of its process."""

    def __init__(self, how: str) -> None:
        super().__init__(np.zeros((8, 4, 4, 3), np.uint8), np.arange(8))
        self.how = how

    def __getitem__(self, batch: list[int]) -> Batch:
        if 4 in batch and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if 4 in batch:
            raise ImageError("images.bin is damaged (ImageError: no JPEG) at the image i4: remove it")
        return super().__getitem__(batch)


@pytest.mark.slow
@pytest.mark.parametrize(("how", "said"), [("damaged", "^images.bin is damaged"), ("killed", "lower `workers`")])
def test_what_a_loading_process_meets_is_one_message_without_traceback(how: str, said: str) -> None:
    with pytest.raises(ImageError, match=said) as caught:
        list(load_batches(Failing(how), [[0, 1, 2, 3], [4, 5, 6, 7]], workers=1, pin=False))
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "crashed in compiled code (Segm"),
        ("DataLoader worker (pid 7) is killed by signal: Aborted. ", "crashed in compiled code (Aborted)"),
        ("The exit codes of the workers are {SIGSEGV(-11), SIGTERM(-15)}", "crashed in compiled code (SIGSEGV)"),
        ("The exit codes of the workers are {SIGKILL(-9)}", "perhaps because memory ran out: if so, lower `n_jobs`"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "perhaps because memory ran out: if so, lower `n_jobs`"),
    ],
)
def test_a_native_crash_is_not_called_a_lack_of_memory(text: str, said: str) -> None:
    death = explain_death(text, memory_advice="lower `n_jobs`", crash_advice="change the backbone")
    assert ("change the backbone" in death) == ("crashed" in death)
    assert said in death
    assert ("memory ran out" in death) != ("crashed" in death)


@pytest.mark.slow
@pytest.mark.parametrize(("end", "said"), [("SIGSEGV", "crashed in compiled code (SIGSEGV)"), ("SIGKILL", "lower `n")])
def test_joblib_names_the_signal_that_a_worker_died_of(end: str, said: str) -> None:
    program = (
        "import os, signal\nfrom functools import partial\n"
        "from image_models.processes import explain_death, run_parallel\n"
        "try:\n"
        f"    list(run_parallel([partial(signal.raise_signal, signal.{end})] * 2, 2))\n"
        "except Exception as error:\n"
        "    print(explain_death(str(error), memory_advice='lower `n_jobs`', crash_advice='x'))\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said in made.stdout


@pytest.mark.slow
def test_naming_crashes_does_not_wait_for_processes_that_were_forked_inside() -> None:
    program = (
        "import os, signal, time\nfrom image_models.processes import crash_named\n"
        "with crash_named('{crash}'):\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        time.sleep(600)\n"
        "        os._exit(0)\n"
        "print('on', flush=True)\n"
        "os.kill(child, signal.SIGKILL)\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300)
    assert (made.stdout, made.stderr) == ("on\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["SIGSEGV", "SIGABRT", None])
def test_a_crash_of_the_process_itself_is_named_with_what_ran(end: str | None) -> None:
    program = (
        "import signal\nfrom image_models.processes import crash_named\n"
        "with crash_named('net fold 3 (fastvit_t8) crashed ({crash})'):\n"
        f"    {f'signal.raise_signal(signal.{end})' if end else 'pass'}\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    names = {"SIGSEGV": "Segmentation fault", "SIGABRT": "Aborted"}
    assert made.stderr == (f"error: net fold 3 (fastvit_t8) crashed ({names[end]})\n" if end else "")
    assert made.returncode == (-getattr(signal, end) if end else 0)


def test_tasks_that_are_started_run_while_this_process_does_something_else(tmp_path: Path) -> None:
    def ready(folder: Path, n_jobs: int) -> Pending[list[str]]:
        folder.mkdir()
        tasks = [partial(_touch, folder / name) for name in ("b", "a")]
        return start_together(tasks, config_of({**MINIMAL, "n_jobs": n_jobs}), list)

    other, own = ready(tmp_path / "other", 2), ready(tmp_path / "own", 1)
    for _ in range(600):
        if len(list((tmp_path / "other").iterdir())) == 2:
            break
        time.sleep(0.1)
    assert len(list((tmp_path / "other").iterdir())) == 2, "nobody has asked for the results"
    assert list((tmp_path / "own").iterdir()) == [], "with one job this process works when it is asked"
    for pending in (other, own):
        done: list[int] = []
        assert pending.finish(done.append) == ["b", "a"], "in the order of the tasks"
        assert done == [1] * pending.tasks


def test_a_task_that_was_started_raises_its_own_error_when_it_is_asked_for(tmp_path: Path) -> None:
    started = start_together([partial(_touch, tmp_path / "no" / "folder")], config_of({**MINIMAL, "n_jobs": 2}), list)
    with pytest.raises(FileNotFoundError, match="folder"):
        started.finish(lambda done: None)


NOT_ASKED_FOR = """
import sys, time
from functools import partial
from pathlib import Path
from stack.settings.config import config_of
from stack.parallel import start_together

folder = Path(sys.argv[1])
config = config_of({**MINIMAL, "n_jobs": 2})
pending = start_together([partial(Path.touch, folder / name) for name in "ab"], config, list)
while len(list(folder.iterdir())) < 2:
    time.sleep(0.1)
time.sleep(1)  # until the results have come
"""


def test_results_that_nobody_asks_for_are_no_message(tmp_path: Path) -> None:
    program = NOT_ASKED_FOR.replace("MINIMAL", repr(MINIMAL))
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
def test_workers_that_were_started_early_end_with_the_command_and_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"{yaml.safe_dump({**MINIMAL, 'n_jobs': 2})}", encoding="utf-8")
    command = [sys.executable, "-m", "dermstack", "stack", "-c", "config.yaml"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said, complained = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "train.csv" in complained
    assert "warn" not in (said + complained).lower()


def _touch(path: Path) -> str:
    path.touch()
    return path.name

"""What is said where a training ends in a crash of compiled code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dermstack.errors import ImageError
from stack.console import Out
from stack.level1.folds import FoldTask
from stack.level1.jobs import run_tasks


class Dies:
    """Kills the process that unpickles it."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[object, ...]:
        return signal.raise_signal, (self.number,)


def tasks(folder: Path, number: int) -> list[FoldTask]:
    return [
        FoldTask(folder / name / f"fold_{fold}", fold, Dies(number), 1, {}, None, {"settings": {"backbone": backbone}})  # type: ignore[arg-type]
        for name, backbone in (("fast", "fastvit_t8"), ("slow", "resnet18"))
        for fold in range(2)
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSEGV, "crashed in compiled code (SIGSEGV), which is a library's fault and no lack of memory: update "
         "torch and timm, or change the backbone fastvit_t8, its `size` or `device`"),
        (signal.SIGKILL, "perhaps because memory ran out: if so, lower `n_jobs`"),
    ],
)  # fmt: skip
def test_a_dead_worker_is_told_with_the_backbones_that_were_running(number: int, said: str, tmp_path: Path) -> None:
    config = SimpleNamespace(backend="processes", device="cpu", n_jobs=2)
    with pytest.raises(ImageError) as caught:
        list(run_tasks(tasks(tmp_path, number), config, Out(quiet=True)))  # type: ignore[arg-type]
    assert said in str(caught.value)
    assert "Running were fast fold 0 (fastvit_t8), fast fold 1 (fastvit_t8)" in str(caught.value)
    assert "run again" in str(caught.value)


@pytest.mark.slow
def test_a_crash_of_a_single_process_is_told_with_the_backbone(tmp_path: Path) -> None:
    program = (
        "import signal\nfrom pathlib import Path\nfrom types import SimpleNamespace\nfrom stack.console import Out\n"
        "from stack.level1 import jobs\nfrom stack.level1.folds import FoldTask\n"
        "jobs.run_task = lambda *_: signal.raise_signal(signal.SIGSEGV)\n"
        f"folder = Path({str(tmp_path)!r}) / 'fast' / 'fold_0'\n"
        "task = FoldTask(folder, 0, None, 1, {}, None, {'settings': {'backbone': 'fastvit_t8'}})\n"
        "config = SimpleNamespace(backend='processes', device='cpu', n_jobs=1)\n"
        "list(jobs.run_tasks([task], config, Out(quiet=True)))\n"
    )
    made = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert made.returncode == -signal.SIGSEGV
    assert "error: fast fold 0 (fastvit_t8) crashed in compiled code (Segmentation fault)" in made.stderr
    assert "change the backbone fastvit_t8" in made.stderr

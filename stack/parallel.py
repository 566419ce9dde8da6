"""As many threads for BLAS as the config says: it rounds by how many share the rows of a product (law 9)."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import filelock
from threadpoolctl import threadpool_limits

from image_models.processes import run_parallel
from stack.config import Config
from stack.console import Out

Result = TypeVar("Result")


def run_with_threads(threads: int, task: Callable[..., Result], *parts: Any) -> Result:
    """``task(*parts)``, here or in a process of joblib's, which would take as many threads as cores / n_jobs."""
    with threadpool_limits(threads):
        return task(*parts)


def run_folds(
    tasks: Sequence[Callable[[], Result]], label: str, config: Config, out: Out, *, unit: str = "folds"
) -> list[Result]:
    """What each task gives, in order: in ``n_jobs`` processes on the config's threads, with progress."""
    made: list[Result] = []
    with out.bar(label, len(tasks), unit) as progress:
        jobs = (partial(run_with_threads, config.threads, task) for task in tasks)
        for result in run_parallel(jobs, config.n_jobs):
            made.append(result)
            progress(1)
    return made


def count_gpus(device: str) -> int:
    """GPUs that tasks on ``device`` (auto, cpu, cuda) are spread over; 0 where they run on the CPU."""
    if device == "cpu":
        return 0
    from image_models.device import visible_gpus

    return visible_gpus()


@contextmanager
def reserve_device(device: str) -> Iterator[str]:
    """``device``, or where there are several GPUs one that no other task of this user on this machine holds.

    The lock is the operating system's and goes with its process. Waits while all are taken.
    """
    gpus = count_gpus(device)
    if gpus < 2:
        yield device
        return
    # Ray and schedulers renumber the GPUs that they leave visible: other names, other locks.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", "-")
    folder = Path(tempfile.gettempdir()) / f"dermstack-gpus-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    locks = [filelock.FileLock(folder / f"{visible}.{number}.lock") for number in range(gpus)]
    while True:
        for number, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            try:
                yield f"cuda:{number}"
            finally:
                lock.release()
            return
        time.sleep(0.5)

"""Runs tasks with the config's number of threads, in parallel processes, and reserves one GPU a task.

The number of threads is fixed because BLAS results depend on how many share a matrix product (law 9).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import filelock

from dermstack.threads import limit_threads
from image_models.processes import start_parallel
from stack.console import Out
from stack.settings.config import Config

Result = TypeVar("Result")
Made = TypeVar("Made")


def run_with_threads(threads: int, task: Callable[..., Result], *parts: Any) -> Result:
    """Returns ``task(*parts)``, computed with ``threads`` BLAS threads; joblib would set cores / n_jobs instead."""
    with limit_threads(threads):
        return task(*parts)


def run_folds(
    tasks: Sequence[Callable[[], Result]], label: str, config: Config, out: Out, *, unit: str = "folds"
) -> list[Result]:
    """Runs the tasks in ``n_jobs`` processes with the config's threads and a progress bar; returns results in order."""
    return list(stream_folds(tasks, label, config, out, unit=unit))


def stream_folds(
    tasks: Sequence[Callable[[], Result]], label: str, config: Config, out: Out, *, unit: str = "folds"
) -> Generator[Result]:
    """Yields the results of `run_folds` one by one, in order, while the tasks after them are running."""
    with out.bar(label, len(tasks), unit) as progress:
        for result in start_folds(tasks, config):
            progress(1)
            yield result


def start_folds(tasks: Sequence[Callable[[], Result]], config: Config) -> Generator[Result]:
    """Starts the tasks of `run_folds` and returns their results, to be asked for later (see `start_parallel`)."""
    return start_parallel((partial(run_with_threads, config.threads, task) for task in tasks), config.n_jobs)


@dataclass(frozen=True)
class Pending(Generic[Made]):
    """What worker processes are making while this one does something else; with ``n_jobs: 1`` it is made when asked."""

    tasks: int  # the number of those that are running or waiting
    finish: Callable[[Callable[[int], object]], Made]  # waits and returns; calls its argument with 1 after each task

    def shown(self, label: str, out: Out, *, unit: str = "folds") -> Made:
        """Waits with a progress bar, where there is a task to wait for, and returns what was made."""
        if not self.tasks:
            return self.finish(lambda done: None)
        with out.bar(label, self.tasks, unit) as progress:
            return self.finish(progress)


def start_together(
    tasks: Sequence[Callable[[], Result]], config: Config, join: Callable[[list[Result]], Made]
) -> Pending[Made]:
    """Starts the tasks as `start_folds` does; what they make is ``join`` of their results, in the tasks' order."""
    results = start_folds(tasks, config)

    def finish(progress: Callable[[int], object]) -> Made:
        made = []
        for result in results:
            made.append(result)
            progress(1)
        return run_with_threads(config.threads, join, made)

    return Pending(len(tasks), finish)


def ready(made: Made) -> Pending[Made]:
    """Returns what is made already as something to wait for."""
    return Pending(0, lambda progress: made)


def count_gpus(device: str) -> int:
    """Returns the number of GPUs for tasks on ``device`` (auto, cpu, cuda); 0 where they run on the CPU."""
    if device == "cpu":
        return 0
    from image_models.device import visible_gpus

    return visible_gpus()


@contextmanager
def reserve_device(device: str) -> Iterator[str]:
    """Yields ``device`` or, with several GPUs, one that no other task of this user on this machine has reserved.

    Waits while all GPUs are reserved. The operating system releases the lock when the process ends.
    """
    gpus = count_gpus(device)
    if gpus < 2:
        yield device
        return
    # Ray and schedulers renumber the visible GPUs from 0, so the lock's name includes which are visible.
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

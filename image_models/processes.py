"""Tasks in worker processes: which end with the one that started them, and which Ctrl-C leaves to it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import ParamSpec, TypeVar

import joblib

LOOK_EVERY_S = 0.2

Given = ParamSpec("Given")
Made = TypeVar("Made")


def in_processes(tasks: Iterable[Callable[[], Made]], n_jobs: int) -> Iterator[Made]:
    """What each task gives, in order, as soon as it is there: by ``n_jobs`` processes, or here where that is 1."""
    with _ctrl_c_waits():
        made = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(joblib.delayed(tied(task))() for task in tasks)
    yield from made


def tied(task: Callable[Given, Made]) -> Callable[Given, Made]:
    """The same task, to be sent to a worker process, which then ends as soon as this process is gone.

    Nobody tells a worker that its parent was killed (SIGKILL, the memory killer): it would go on with its task for
    hours, and write into the folder where the same command, started again, is at work.
    """
    return partial(_run, os.getpid(), task)


def end_workers() -> None:
    """Kill the worker processes of this one, whatever they are at: else its end would wait for theirs."""
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(reuse=True)
    getattr(executor, "terminate", executor.shutdown)(kill_workers=True)  # joblib's own drops its shared memory too


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Ctrl-C goes to every process of a terminal: those started in here never see it, this one does afterwards."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(parent: int, task: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
    if os.getpid() != parent:
        _end_with(os.getpid(), parent)
    return task(*given, **named)


@cache  # one thread a process
def _end_with(_process: int, parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()

"""Worker processes that end with the one that started them, so that nobody writes where it is run again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import ParamSpec, TypeVar

LOOK_EVERY_S = 0.2

Given = ParamSpec("Given")
Made = TypeVar("Made")


def tied(task: Callable[Given, Made]) -> Callable[Given, Made]:
    """The same task, to be sent to a worker process, which then ends as soon as this process is gone.

    Nobody tells a worker that its parent was killed (SIGKILL, the memory killer): it would go on with its task for
    hours, and write into the folder where the same command, started again, is at work.
    """
    return partial(_run, os.getpid(), task)


def end_with(parent: int) -> None:
    """From now on this process, a child of ``parent``, ends when that is gone."""
    _watch(os.getpid(), parent)


def _run(parent: int, task: Callable[Given, Made], *given: Given.args, **named: Given.kwargs) -> Made:
    if os.getpid() != parent:
        end_with(parent)
    return task(*given, **named)


@cache  # one thread a process
def _watch(_process: int, parent: int) -> None:
    def look() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_EVERY_S)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()

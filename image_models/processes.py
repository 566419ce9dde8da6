"""Runs tasks in worker processes, which end with their parent and leave Ctrl-C to it."""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import ParamSpec, TypeVar

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from dermstack.masking import mask_streams

PARENT_POLL_SECONDS = 0.2
_CRASH = re.compile(
    r"SIG(?:SEGV|ABRT|BUS|ILL|FPE)|Segmentation fault|Aborted|Bus error|Illegal instruction|Floating point exception"
)

# joblib's advice where results are not asked for, because an error ended the command or it needs the workers alone.
warnings.filterwarnings("ignore", r"\d+ tasks (have been successfully executed|which were still)", module="joblib")

WorkerDied = TerminatedWorkerError  # what `run_parallel` raises where a worker process died

Params = ParamSpec("Params")
Result = TypeVar("Result")


def run_parallel(tasks: Iterable[Callable[[], Result]], n_jobs: int) -> Iterator[Result]:
    """Yields each task's result in order, as soon as it is ready: from ``n_jobs`` processes, or from this one if 1."""
    yield from start_parallel(tasks, n_jobs)


def start_parallel(tasks: Iterable[Callable[[], Result]], n_jobs: int) -> Generator[Result]:
    """Starts the tasks in ``n_jobs`` processes, and returns what `run_parallel` yields, to be asked for later.

    Processes are shared with tasks that were started before and are not complete. With one job nothing is started: each
    task is run by this process when its result is asked for. Closing the generator ends tasks that are not complete.
    """
    with _sigint_blocked(), own_packages_first():
        made: Generator[Result] = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
            joblib.delayed(exit_with_parent(task))() for task in tasks
        )
    return made


def exit_with_parent(task: Callable[Params, Result]) -> Callable[Params, Result]:
    """Wraps a task so that the worker process that runs it ends as soon as this process is gone.

    A worker does not notice that its parent was killed (SIGKILL, out-of-memory killer): it would continue for hours
    and write into the folder in which the same command, started again, is working.
    """
    return partial(_run, os.getpid(), task)


def end_workers() -> None:
    """Kills the worker processes of this process, if there are any; left to themselves, they end their tasks first.

    Idle ones with many libraries loaded would take a second or two to end.
    """
    from joblib.externals.loky import get_reusable_executor, reusable_executor

    if getattr(reusable_executor, "_executor", None) is None:
        return
    executor = get_reusable_executor(reuse=True)
    getattr(executor, "terminate", executor.shutdown)(
        kill_workers=True
    )  # joblib's own terminate also frees its shared memory


def explain_death(message: str, *, memory_advice: str, crash_advice: str) -> str:
    """Says how a worker process ended and what to do, from the text in which joblib or torch names its signal.

    A signal such as SIGSEGV is a crash in compiled code; only a process that was killed may have run out of memory.
    ``crash_advice`` names what was running, as only the caller knows it.
    """
    if crash := _CRASH.search(message):
        return (
            f"a worker process crashed in compiled code ({crash.group()}), which is a library's fault and no lack of "
            f"memory: {crash_advice}"
        )
    return f"a worker process was killed, perhaps because memory ran out: if so, {memory_advice}"


@contextmanager
def crash_named(message: str) -> Iterator[None]:
    """Prints ``message`` where this process itself dies inside of a signal such as SIGSEGV, with ``{crash}`` replaced.

    A process that crashes in compiled code cannot print it. faulthandler still writes the name of the signal, here into
    a pipe, at whose other end a small process waits. Where faulthandler is in use already, nothing changes.
    """
    if faulthandler.is_enabled():
        yield
        return
    end, start = os.pipe()
    command = [sys.executable, "-I", "-S", "-c", _REPORTER, message]
    with subprocess.Popen(command, stdin=end, start_new_session=True) as reporter:  # Ctrl-C does not reach it
        os.close(end)
        faulthandler.enable(start, all_threads=False)
        try:
            yield
        finally:
            faulthandler.disable()
            os.close(start)
            reporter.kill()  # a process forked inside may still hold the pipe, whose end would never come


_REPORTER = """
import sys
line = sys.stdin.readline()
if line:
    sys.stderr.write("error: " + sys.argv[1].replace("{crash}", line.rpartition(": ")[2].strip()) + "\\n")
"""


@contextmanager
def own_packages_first() -> Iterator[None]:
    """Processes that start in here find the packages of dermstack before any file of the same name elsewhere.

    A new process gets a copy of ``sys.path``, in which the working folder stands first when its parent is a notebook or
    a script, and looks up the task's module there before it has imported dermstack (see dermstack/own_packages.py).
    """
    installed = str(Path(__file__).resolve().parents[1])
    sys.path.insert(0, installed)
    try:
        yield
    finally:
        sys.path.remove(installed)


@contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Blocks Ctrl-C, which a terminal sends to all processes, for workers started here; this process gets it later."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run(parent: int, task: Callable[Params, Result], *args: Params.args, **kwargs: Params.kwargs) -> Result:
    if os.getpid() != parent:
        _watch_parent(os.getpid(), parent)
        mask_streams()
    return task(*args, **kwargs)


@cache  # one thread per process
def _watch_parent(_process: int, parent: int) -> None:
    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=poll, daemon=True).start()

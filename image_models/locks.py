"""Locks between commands that run at once: one worker on a folder, and users of a folder against its removal."""

from __future__ import annotations

import math
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dermstack.errors import StoreError

LOCK_FILE = ".lock"
_USER_SUFFIX = ".use"
_SHORT_WAIT_S = 30.0  # a folder is locked for a moment while a user of it enters or leaves


@contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Locks ``folder`` against other processes; waits ``wait`` seconds (`math.inf`: for ever), else raises StoreError.

    The operating system releases the lock when the process ends, also when it is killed. A wait is told on stderr.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK_FILE)
    try:
        try:
            lock.acquire(timeout=min(wait, 1.0))
        except Timeout:
            if wait <= 1.0:
                raise
            print(f"waiting for another process that is working on {folder}", file=sys.stderr, flush=True)
            lock.acquire(timeout=-1 if math.isinf(wait) else wait - 1.0)
    except Timeout as error:
        raise StoreError(f"another process is working on {folder}: wait for it, or stop it") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Marks ``folder`` as used by this process, so that `unused` refuses to remove anything there; many may use it."""
    with locked(folder, wait=_SHORT_WAIT_S):
        mark = FileLock(folder / f".{uuid.uuid4().hex}{_USER_SUFFIX}")
        mark.acquire()
    try:
        yield
    finally:
        mark.release()
        Path(mark.lock_file).unlink(missing_ok=True)


@contextmanager
def unused(folder: Path) -> Iterator[None]:
    """Locks ``folder`` while nobody uses it. Raises StoreError where a process that still runs has marked it."""
    with locked(folder):
        for path in folder.glob(f".*{_USER_SUFFIX}"):
            try:
                with FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)  # left by a process that was killed
            except Timeout as error:
                raise StoreError(f"another process is using {folder}: wait for it, or stop it") from error
        yield

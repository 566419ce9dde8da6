"""Which GPU a task has to itself."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock


def count_gpus(device: str) -> int:
    """GPUs that tasks on ``device`` (auto, cpu, cuda) are spread over; 0 where they run on the CPU."""
    if device == "cpu":
        return 0
    from image_models.device import visible_gpus

    return visible_gpus()


@contextmanager
def own_device(device: str) -> Iterator[str]:
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

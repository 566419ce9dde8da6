"""Chooses device, precision and threads for a network, and handles a GPU that runs out of memory."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import cv2
import torch

from dermstack.errors import ImageError

_TRIM_THRESHOLD, _MAPPING_THRESHOLD, _MOST_MAPPINGS = -1, -3, -4  # M_… in malloc.h
Params = ParamSpec("Params")
Result = TypeVar("Result")


def pick_device(name: str) -> torch.device:
    """Returns the device ``name``; ``auto`` is the GPU if there is one. Raises ImageError for a GPU that is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ImageError(f"device {name}: torch finds no GPU on this machine: set `device: auto` or `device: cpu`")
    return torch.device(name)


def visible_gpus() -> int:
    """Returns the number of GPUs that this process may use."""
    return torch.cuda.device_count()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the dtype ``name``; ``auto`` is bfloat16 on GPUs that have it. On a CPU always float32: half is slow."""
    if device.type == "cpu" or name == "float32":
        return torch.float32
    if name == "auto":
        # torch also counts GPUs (T4, P100) that only emulate bfloat16, more slowly than float32.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def use_threads(threads: int) -> None:
    """Sets the number of threads of torch and OpenCV in this process."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Lets glibc keep freed memory for the next tensors; on leaving, the memory goes back. Elsewhere does nothing.

    By default glibc hands a large tensor back to the system when it is freed, and the system clears each page of the
    next one: a tenth to a third of the training time of a small network on a CPU (docs/log.md). The most memory in use
    stays the same.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_TRIM_THRESHOLD, -1)  # never hand back
    libc.mallopt(_MOST_MAPPINGS, 0)  # take nothing outside of the memory that is kept
    try:
        yield
    finally:
        libc.mallopt(_MOST_MAPPINGS, 2**16)
        # The thresholds no longer adapt once one is set: these are where they would end.
        libc.mallopt(_MAPPING_THRESHOLD, 2**25)
        libc.mallopt(_TRIM_THRESHOLD, 2**26)
        libc.malloc_trim(0)


def retry_on_oom(
    step: Callable[[int], Result], parts: int, *, max_parts: int, say: Callable[[int], object] = lambda parts: None
) -> tuple[Result, int]:
    """Calls ``step(parts)``, with twice as many parts, up to ``max_parts``, each time memory runs out.

    Returns the result and the number of parts; ``say`` is called with each higher number. Raises torch's
    OutOfMemoryError where ``max_parts`` parts do not fit either.
    """
    while True:
        try:
            return step(parts), parts
        except torch.OutOfMemoryError:
            if parts >= max_parts:
                raise
        parts = min(2 * parts, max_parts)
        say(parts)


def explain_oom(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Wraps a function so that it raises ImageError with advice where a GPU runs out of memory."""

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise ImageError(
                f"the GPU's memory is not enough ({str(error).splitlines()[0]}): lower `batch_size` or `size`, or use "
                "a smaller backbone"
            ) from error

    return wrapper

"""What a network runs on: which device, in which precision, with how many threads, and what its memory holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import cv2
import torch

from image_models.errors import ImageError

Params = ParamSpec("Params")
Result = TypeVar("Result")


def pick_device(name: str) -> torch.device:
    """``auto`` is the GPU where there is one. Raises ImageError for a GPU where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ImageError(f"device {name}: torch finds no GPU on this machine: set `device: auto` or `device: cpu`")
    return torch.device(name)


def visible_gpus() -> int:
    """How many GPUs this process may use."""
    return torch.cuda.device_count()


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, float32 elsewhere; half precision on a CPU is slow and stays out."""
    if device.type == "cpu" or name == "float32":
        return torch.float32
    if name == "auto":
        # torch also counts GPUs (T4, P100) that only imitate it, slower than float32.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def use_threads(threads: int) -> None:
    """Of this process, for networks and for what draws on pictures."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)


def retry_on_oom(
    step: Callable[[int], Result], parts: int, *, max_parts: int, say: Callable[[int], object] = lambda parts: None
) -> tuple[Result, int]:
    """What ``step`` makes of a batch in so many parts: in twice as many whenever memory doesn't hold one, at
    ``max_parts``.

    Returns how many it took too; ``say`` is told each increase. Raises torch's OutOfMemoryError where nothing helps.
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
    """The same function, which raises ImageError with what to do where a GPU's memory is not enough."""

    @wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        try:
            return function(*args, **kwargs)
        except torch.OutOfMemoryError as error:
            raise ImageError(
                f"the GPU's memory is not enough ({str(error).splitlines()[0]}): lower `batch_size` or `size`, or take "
                "a smaller backbone"
            ) from error

    return wrapper

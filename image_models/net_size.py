"""Checks that a network has the tensors of its weights file before memory for the network is allocated.

Settings from someone else may describe a network of any size. It is first built on torch's meta device, where tensors
have a shape but no memory, and the construction stops as soon as it has more than the weights at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dermstack.errors import ImageError

# Bounds of timm_args. Larger numbers cost memory and time in timm's own code, before a tensor is made.
MAX_VALUES, MAX_LEVELS, MAX_TEXT, MAX_SUM = 200, 4, 200, 1_000_000
MAX_TENSOR_BYTES = 4 << 30  # of one activation of one image
MAX_BATCH_BYTES = 256 << 30  # of one activation of a batch
_SLACK_ELEMENTS, _SLACK_TENSORS = 1 << 24, 4096  # what a network may have and drop while it is built
_MAX_BUFFER_ELEMENTS = 1 << 27  # of buffers that are computed and not stored, such as masks and position indices


Module = TypeVar("Module", bound=nn.Module)


def check_timm_args(timm_args: Mapping[str, Any]) -> None:
    """Raises ImageError for arguments of more or larger values than any backbone takes."""
    values, total = 0, 0.0
    waiting: list[tuple[Any, int]] = [(timm_args, 0)]
    while waiting:
        value, level = waiting.pop()
        values += 1
        if isinstance(value, str):
            fault = len(value) > MAX_TEXT
        elif isinstance(value, int | float):
            total += abs(value)
            fault = not total <= MAX_SUM
        else:
            fault = level > MAX_LEVELS
            if isinstance(value, Mapping):
                waiting += [(part, level + 1) for item in value.items() for part in item]
            elif isinstance(value, list | tuple):
                waiting += [(part, level + 1) for part in value]
        if fault or values + len(waiting) > MAX_VALUES:
            raise ImageError(
                f"timm_args has more than {MAX_VALUES} values, numbers of more than {MAX_SUM:,} together, a text of "
                f"more than {MAX_TEXT} characters or more than {MAX_LEVELS} levels: no backbone takes them, drop them"
            )


def planned(build: Callable[[], Module], *, elements: int, tensors: int, batch_size: int) -> Module:
    """Returns the network that ``build`` builds and applies to an image, on the meta device: shapes without memory.

    Raises ImageError, or what ``build`` makes of it, for a network with many more ``elements`` or ``tensors`` than
    these, or with larger activations than the limits.
    """
    counted = _counted(4 * elements + _SLACK_ELEMENTS, 4 * tensors + _SLACK_TENSORS)
    with counted, torch.device("meta"), _Activations(batch_size), _AttentionShapes():
        return build()


@contextmanager
def _counted(max_elements: int, max_tensors: int) -> Iterator[None]:
    """Raises ImageError in this thread as soon as modules register more elements or tensors than allowed."""
    thread, found = threading.get_ident(), {"parameters": 0, "buffers": 0, "tensors": 0, "modules": 0}

    def check() -> None:
        if (
            found["parameters"] > max_elements
            or found["buffers"] > max_elements + _MAX_BUFFER_ELEMENTS
            or max(found["tensors"], found["modules"]) > 16 * max_tensors
        ):
            raise ImageError(
                f"the network has over {found['parameters']:,} parameters in {found['tensors']:,} tensors, far more "
                "than its weights file"
            )

    def parameter(_module: nn.Module, _name: str, value: torch.Tensor | None) -> None:
        if value is not None and threading.get_ident() == thread:
            found["parameters"] += value.numel()
            found["tensors"] += 1
            check()

    def buffer(_module: nn.Module, _name: str, value: torch.Tensor | None) -> None:
        if value is not None and threading.get_ident() == thread:
            found["buffers"] += value.numel()
            found["tensors"] += 1
            check()

    def submodule(_module: nn.Module, _name: str, value: nn.Module | None) -> None:
        if threading.get_ident() == thread:
            found["modules"] += 1
            check()

    handles = [
        torch_module.register_module_parameter_registration_hook(parameter),
        torch_module.register_module_buffer_registration_hook(buffer),
        torch_module.register_module_module_registration_hook(submodule),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Activations(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type it
    """Raises ImageError for an operation whose result is larger than the limits."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.limit = min(MAX_TENSOR_BYTES, MAX_BATCH_BYTES // batch_size)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else (made,):
            if isinstance(value, torch.Tensor) and value.nbytes > self.limit:
                raise ImageError(f"an activation takes {value.nbytes / 2**30:,.1f} GiB for each image")
        return made


class _AttentionShapes(TorchFunctionMode):
    """Gives fused attention only its result: on the meta device, torch would make the matrix that it avoids."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and len(args) >= 3:
            query, _, value = args[:3]
            return query.new_empty((*query.shape[:-1], value.shape[-1]))
        return func(*args, **(kwargs or {}))

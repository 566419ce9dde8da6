"""As many threads for BLAS as the config says: it rounds by how many share the rows of a product (law 9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

Made = TypeVar("Made")


def on_threads(threads: int, task: Callable[..., Made], *parts: Any) -> Made:
    """``task(*parts)``, here or in a process of joblib's, which would take as many threads as cores / n_jobs."""
    with threadpool_limits(threads):
        return task(*parts)

"""As many threads for BLAS as the config says: it rounds by how many share the rows of a product (law 9)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from image_models.processes import in_processes
from stack.config import Config
from stack.console import Out

Made = TypeVar("Made")


def on_threads(threads: int, task: Callable[..., Made], *parts: Any) -> Made:
    """``task(*parts)``, here or in a process of joblib's, which would take as many threads as cores / n_jobs."""
    with threadpool_limits(threads):
        return task(*parts)


def run_folds(
    tasks: Sequence[Callable[[], Made]], label: str, config: Config, out: Out, *, unit: str = "folds"
) -> list[Made]:
    """What each task gives, in order: in ``n_jobs`` processes on the config's threads, with progress."""
    made: list[Made] = []
    with out.bar(label, len(tasks), unit) as progress:
        jobs = (partial(on_threads, config.threads, task) for task in tasks)
        for result in in_processes(jobs, config.n_jobs):
            made.append(result)
            progress(1)
    return made

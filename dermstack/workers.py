"""Starts the worker processes of `stack` early: they import what they need while the command does so itself.

This module imports nothing else of that, so that the command can call it first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def early_workers(n_jobs: int) -> Iterator[None]:
    """Starts as many worker processes, which tasks of as many jobs inside find ready; they end with an error inside."""
    if n_jobs == 1:
        yield
        return
    from image_models.processes import start_parallel

    started = start_parallel([_import_for_stack] * n_jobs, n_jobs)
    try:
        yield
    except BaseException:
        started.close()  # ends them, whatever they are importing
        raise
    with suppress(RuntimeError):  # they have ended, of which other tasks have told
        list(started)


def _import_for_stack() -> None:
    import dermstack.audit.run  # noqa: F401
    import stack.level2.stackers  # noqa: F401

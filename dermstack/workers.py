"""Starts the worker processes of `stack` early: they import what they need while the command does so itself.

This module imports nothing else of that, so that the command can call it first.
"""

from __future__ import annotations

from collections.abc import Generator


def start_workers(n_jobs: int) -> Generator[None]:
    """Starts as many worker processes, which the next tasks of as many jobs find ready.

    They end when the generator is closed, as it is where nothing holds it any more.
    """
    from image_models.processes import start_parallel

    return start_parallel([_import_for_stack] * n_jobs, n_jobs)


def _import_for_stack() -> None:
    import dermstack.audit.run  # noqa: F401
    import stack.level2  # noqa: F401

"""Limits the threads of BLAS and OpenMP."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from threadpoolctl import ThreadpoolController


@contextmanager
def limit_threads(threads: int, *, user_api: str | None = None) -> Iterator[None]:
    """Gives the libraries ``threads`` threads, or only those of ``user_api`` ("blas", "openmp"); also a decorator."""
    with _libraries(len(sys.modules), next(reversed(sys.modules))).limit(limits=threads, user_api=user_api):
        yield


@lru_cache(maxsize=1)
def _libraries(_modules: int, _last_imported: str) -> ThreadpoolController:
    """The libraries that are loaded. A look-up takes milliseconds, and only an import loads another library."""
    return ThreadpoolController()

"""Limits the memory that a library takes to read a file, since sizes in a damaged file may be of any magnitude."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def limited_memory(n_bytes: int) -> Iterator[None]:
    """Limits what this process may take in addition to what it has; does nothing on systems other than Linux.

    A library that asks for more gets an error from the system, which most raise as MemoryError or one of their own.
    """
    if sys.platform != "linux":
        yield
        return
    import resource

    page = resource.getpagesize()
    taken = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * page
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = taken + n_bytes
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))

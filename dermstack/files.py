"""Writes files completely or not at all, with the usual permissions."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` to write to; on success flushes it to disk and renames it to ``path``.

    An OSError, also one that safetensors hides in an error of its own, is raised again with ``path`` as its file name.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        hidden = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else int(hidden.group(1)) if hidden else None
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        partial.unlink(missing_ok=True)


def apply_umask(path: Path) -> None:
    """Gives a file the permissions that the umask allows: safetensors makes its files readable by their owner only."""
    path.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    """Returns the umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Files that are written whole or not at all."""

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
    """A temporary name beside ``path`` to write to; on success it is flushed to the disk and takes ``path``'s place.

    An OSError, which safetensors hides in one of its own, names ``path``.
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
    """Give a file the rights that a new one gets here: safetensors lets its own user alone read what it writes."""
    path.chmod(0o666 & ~_umask())


@cache
def _umask() -> int:
    """Of this process: it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask

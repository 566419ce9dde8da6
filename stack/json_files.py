"""JSON files with a digest of their own content, fingerprints and hashes, and writes that are complete or not made.

Apart from `stack/store.py`, as a `stack` with nothing to do needs these and neither tables nor arrays.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from dermstack.files import atomic_write

_DIGEST_KEY = "digest"  # key of a file's digest inside the file
_DISK_BLOCK_BYTES = 1 << 16  # bytes: a disk with less free space counts as full


def fingerprint(parts: Mapping[str, Any]) -> str:
    """Returns twelve hex digits of the SHA-256 of a step's settings and inputs.

    Callers leave out n_jobs, device and paths, which must not change it.
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, as hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_once(path: Path) -> str:
    """Returns the SHA-256 of a file, computed once for each modification of it, as large files are read often."""
    state = path.stat()
    return _hash_once(path, state.st_mtime_ns, state.st_size)


@cache
def _hash_once(path: Path, mtime_ns: int, size: int) -> str:
    return sha256(path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON atomically, with the keys in their order."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object that `write_json` wrote and verifies its digest if it has one.

    Raises ValueError for anything else.
    """
    return verify_digest(json.loads(path.read_text(encoding="utf-8")))


def with_digest(value: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a copy of ``value`` with a digest of its JSON text."""
    return {**value, _DIGEST_KEY: _digest(value)}


def verify_digest(value: Any) -> dict[str, Any]:
    """Removes the digest of `with_digest`, if there is one, and returns the rest.

    Raises ValueError where ``value`` is not an object or does not match its digest.
    """
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    if (digest := value.pop(_DIGEST_KEY, None)) is not None and digest != _digest(value):
        raise ValueError("its content does not match its digest")
    return value


def _digest(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; on success the file is flushed to the disk and renamed to ``path``.

    An OSError inside the block is raised again with ``path`` as its file, whichever library caused it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path) as temporary:
            yield temporary
    except OSError as error:
        raise error_with_path(error, path) from error


def error_with_path(error: OSError, path: Path) -> OSError:
    """Returns the same error for ``path``.

    An error without number (NumPy's after a short write) becomes ENOSPC where the disk is full, else EIO.
    """
    if error.errno is None:
        full = shutil.disk_usage(path.parent).free < _DISK_BLOCK_BYTES
        return OSError(errno.ENOSPC if full else errno.EIO, str(error), str(path))
    return OSError(error.errno, os.strerror(error.errno), str(path))

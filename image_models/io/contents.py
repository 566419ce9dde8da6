"""Hashes the content of image files: of small ones all bytes, of large ones length, time and both ends."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

WHOLE_BYTES = 1 << 20  # a file of up to this size is hashed whole, of a larger one as many bytes of its two ends
_END_BYTES = WHOLE_BYTES // 2
UNKNOWN = 0  # the hash of a file that cannot be read; decoding it again tells why
_BITS = 62  # a hash fits an int64 of the cache's index together with one more bit


def file_content(path: Path) -> int:
    """Returns the hash of a file's content, `UNKNOWN` where it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if status.st_size <= WHOLE_BYTES:
                return content_of(_read(file.fileno(), WHOLE_BYTES + 1))
            head = _read(file.fileno(), _END_BYTES)
            os.lseek(file.fileno(), -_END_BYTES, os.SEEK_END)
            return _large_content(head, _read(file.fileno(), _END_BYTES), status)
    except OSError:
        return UNKNOWN


def content_as_read(data: bytes, status: os.stat_result) -> int:
    """Returns the `file_content` of a file from all its bytes and its status after they were read."""
    if status.st_size <= WHOLE_BYTES:
        return content_of(data)
    return _large_content(data[:_END_BYTES], data[-_END_BYTES:], status)


def content_of(*parts: bytes) -> int:
    """Returns the hash of bytes: 62 bits of their SHA-256, never `UNKNOWN`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return (int.from_bytes(digest.digest()[:8], "big") >> (64 - _BITS)) or 1


def _large_content(head: bytes, tail: bytes, status: os.stat_result) -> int:
    # The time, as a change between the two ends would go unnoticed.
    return content_of(head, tail, f"{status.st_size} {status.st_mtime_ns}".encode())


def _read(descriptor: int, length: int) -> bytes:
    parts = []
    while length > 0 and (part := os.read(descriptor, length)):
        parts.append(part)
        length -= len(part)
    return b"".join(parts)

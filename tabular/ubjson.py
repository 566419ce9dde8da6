"""Reads UBJSON, XGBoost's model format, in memory bounded by the size of the content."""

from __future__ import annotations

from typing import Any

import numpy as np

MAX_DEPTH = 32  # objects and arrays within each other; XGBoost writes 6
_SCALARS = {"i": ">i1", "U": ">u1", "I": ">i2", "l": ">i4", "L": ">i8", "d": ">f4", "D": ">f8"}
_LITERALS = {"T": True, "F": False, "Z": None}


def read_ubjson(content: bytes) -> Any:
    """Returns the value that ``content`` holds: arrays of one number type as NumPy arrays, other arrays as lists.

    Raises ValueError for anything else, such as a length beyond the end of the content, a key that occurs twice in an
    object, and bytes after the value. (https://ubjson.org)
    """
    reader = _Reader(content)
    value = reader.value(reader.marker(), 0)
    if reader.at != len(content):
        raise ValueError(f"{len(content) - reader.at} bytes follow its end")
    return value


class _Reader:
    """A position in the content."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def take(self, n_bytes: int) -> bytes:
        """Returns the next bytes."""
        if not 0 <= n_bytes <= len(self.content) - self.at:
            raise ValueError(f"byte {self.at} claims {n_bytes} further bytes")
        self.at += n_bytes
        return self.content[self.at - n_bytes : self.at]

    def marker(self) -> str:
        """Returns the next type marker."""
        return self.take(1).decode("latin-1")

    def length(self) -> int:
        """Returns the integer, with its marker, that gives a length."""
        marker = self.marker()
        if marker not in "iUIlL":
            raise ValueError(f"byte {self.at - 1} is no type of a length")
        return int(self.value(marker, 0))

    def text(self) -> str:
        """Returns a length and as many bytes of text."""
        return self.take(self.length()).decode()

    def value(self, marker: str, depth: int) -> Any:
        """Returns the value that follows its ``marker``."""
        if depth > MAX_DEPTH:
            raise ValueError(f"more than {MAX_DEPTH} levels lie within each other")
        if marker in _SCALARS:
            dtype = np.dtype(_SCALARS[marker])
            return np.frombuffer(self.take(dtype.itemsize), dtype)[0].item()
        if marker in _LITERALS:
            return _LITERALS[marker]
        if marker == "S":
            return self.text()
        if marker == "C":
            return self.take(1).decode("latin-1")
        if marker == "{":
            return self._object(depth)
        if marker == "[":
            return self._array(depth)
        raise ValueError(f"byte {self.at - 1} is no known type")

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while self.content[self.at : self.at + 1] != b"}":
            key = self.text()
            if key in found:
                raise ValueError(f"the key {key[:40]!r} occurs twice")
            found[key] = self.value(self.marker(), depth + 1)
        self.take(1)
        return found

    def _array(self, depth: int) -> Any:
        following = self.content[self.at : self.at + 1]
        if following == b"$":
            self.take(1)
            kind, counted = self.marker(), self.marker()
            if kind not in _SCALARS or counted != "#":
                raise ValueError(f"byte {self.at - 1} is no typed array of numbers")
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(self.length() * dtype.itemsize), dtype)
        if following == b"#":
            self.take(1)
            length = self.length()
            if not 0 <= length <= len(self.content) - self.at:  # a value has at least one byte
                raise ValueError(f"byte {self.at} claims {length} further values")
            return [self.value(self.marker(), depth + 1) for _ in range(length)]
        items = []
        while (marker := self.marker()) != "]":
            items.append(self.value(marker, depth + 1))
        return items

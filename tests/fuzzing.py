"""One way to spoil files, and to see whether a reader refuses them in its own words.

Shared by the property tests (`test_fuzz_readers.py`) and the coverage-guided fuzzer (`fuzz_readers.py`).
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dermstack.errors import DermstackError, ImageError, TabularError

OWN_ERRORS = (
    DermstackError,
    ImageError,
    TabularError,
)  # what a command shows as a message; anything else is a traceback


@dataclass(frozen=True)
class Reader:
    """``read`` is given the path of a file named ``name``; ``seeds`` are contents that it reads."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]


def reader_accepts(reader: Reader, content: bytes, folder: Path) -> bool:
    """Whether the reader takes the content; False where it refuses in its own words, anything else is raised."""
    place = folder / str(next(_numbers))  # no name twice: the store remembers what it has checked
    place.mkdir()
    path = place / reader.name
    try:
        path.write_bytes(content)
        reader.read(path)
    except OWN_ERRORS as error:
        if len(str(error)) > MAX_MESSAGE_LENGTH:
            raise OverflowError(f"{len(str(error)):,} characters are no message") from error
        return False
    finally:
        shutil.rmtree(place)
    return True


MAX_MESSAGE_LENGTH = 20_000
_numbers = itertools.count()


def mutated(content: bytes, rng: np.random.Generator, others: list[bytes]) -> bytes:
    """The content after some accidents: bytes turned, cut, doubled, put in, numbers made extreme, parts of others."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        at, length = int(rng.integers(0, len(data) + 1)), int(rng.geometric(0.2))
        match int(rng.integers(0, 8)):
            case 0 if data:
                data[at % len(data)] = int(rng.integers(0, 256))
            case 1 if data:
                data[at % len(data)] ^= 1 << int(rng.integers(0, 8))
            case 2:
                del data[at:]
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = data[at : at + length * int(rng.choice([1, 9, 99]))]
            case 5:
                data[at:at] = rng.bytes(length)
            case 6:
                extreme = int(rng.choice(EXTREMES)).to_bytes(8, "little", signed=True)[: int(rng.choice([1, 2, 4, 8]))]
                data[at : at + len(extreme)] = extreme if rng.random() < 0.5 else extreme[::-1]
            case 7:
                other = others[int(rng.integers(0, len(others)))]
                start = int(rng.integers(0, len(other) + 1))
                data[at : at + length] = other[start : start + int(rng.geometric(0.02))]
    return bytes(data)


EXTREMES = [0, 1, -1, 127, 128, 255, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, -(2**63)]

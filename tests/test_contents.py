"""The hash of a file's content: the whole of a small file; length, time and both ends of a large one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from image_models.io.contents import UNKNOWN, WHOLE_BYTES, content_as_read, file_content


@pytest.mark.parametrize("place", [0, 1000, WHOLE_BYTES // 2, WHOLE_BYTES - 1])
def test_any_byte_of_a_file_of_one_mebibyte_counts_and_its_time_does_not(tmp_path: Path, place: int) -> None:
    path, content = tmp_path / "a", bytearray(WHOLE_BYTES)
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    before = file_content(path)
    os.utime(path, ns=(2, 2))
    assert file_content(path) == before
    content[place] = 1
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert file_content(path) != before


def test_of_a_larger_file_both_ends_the_length_and_the_time_count(tmp_path: Path) -> None:
    path, half = tmp_path / "a", WHOLE_BYTES // 2
    plain = bytes(4 * WHOLE_BYTES)
    contents = [plain, b"\1" + plain[1:], plain[:-1] + b"\1", plain + b"\0"]
    for place in (half - 1, len(plain) - half):
        contents.append(plain[:place] + b"\1" + plain[place + 1 :])
    found = set()
    for content in contents:
        path.write_bytes(content)
        os.utime(path, ns=(1, 1))
        found.add(file_content(path))
    os.utime(path, ns=(2, 2))
    assert len(found | {file_content(path)}) == len(contents) + 1


@pytest.mark.parametrize("length", [0, 5, WHOLE_BYTES, WHOLE_BYTES + 1, 3 * WHOLE_BYTES])
def test_bytes_that_were_read_hash_like_their_file(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a"
    data = bytes(number % 251 for number in range(length))
    path.write_bytes(data)
    assert content_as_read(data, path.stat()) == file_content(path)
    if data:
        assert content_as_read(data[:-1] + b"\xff", path.stat()) != file_content(path)


def test_what_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    assert file_content(tmp_path / "nothing") == UNKNOWN
    assert file_content(tmp_path) == UNKNOWN
    (tmp_path / "empty").write_bytes(b"")
    assert file_content(tmp_path / "empty") != UNKNOWN

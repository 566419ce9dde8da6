"""Memory for reading parquet is limited to what the cells of a file may need."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from dermstack import parquet
from dermstack.memory import limited_memory
from stack.tables.cells import read_cells

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits are set on Linux alone")
FRAME = pd.DataFrame({"id": ["a", "b"], "p": [0.25, 0.5]})


def taken() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def test_a_file_is_read_in_little_more_than_its_cells_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before, seen = tmp_path / "x.parquet", resource.getrlimit(resource.RLIMIT_AS), []
    FRAME.to_parquet(path)
    read = pd.read_parquet

    def watched(*args: object, **options: object) -> pd.DataFrame:
        seen.append(resource.getrlimit(resource.RLIMIT_AS)[0] - taken())
        return read(*args, **options)

    monkeypatch.setattr(pd, "read_parquet", watched)
    assert read_cells(path)["id"].tolist() == ["a", "b"]
    (allowed,) = seen
    assert 1 << 30 < allowed < 3 << 30
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_file_that_asks_for_more_is_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.parquet"
    FRAME.to_parquet(path)

    def greedy(*args: object, **options: object) -> pd.DataFrame:
        return pd.DataFrame({"p": bytearray(1 << 37)})  # what pyarrow did for a damaged file of 2.5 kB

    monkeypatch.setattr(pd, "read_parquet", greedy)
    with pytest.raises(parquet.FRAME_ERRORS):
        parquet.read_parquet(path)


def test_the_limit_ends_with_an_error() -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(MemoryError), limited_memory(1 << 20):
        bytearray(1 << 30)
    assert resource.getrlimit(resource.RLIMIT_AS) == before

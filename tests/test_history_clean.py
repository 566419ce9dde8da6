"""`dermstack clean` frees what can be made again, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from imported_experiment import write_experiment

from stack.history import INTERRUPTED_AFTER_S, leftovers, remove_leftovers
from stack.settings.config import Config, read_config

KEPT = [
    "runs/elsewhere/table.parquet",
    "runs/elsewhere/ledger.jsonl",
    "runs/elsewhere/models/net/oof.parquet",
    "runs/elsewhere/models/net/run.json",
    "runs/elsewhere/models/old/run.json",  # a run of that name
    "runs/elsewhere/blend/run.json",
    "runs/elsewhere/leave_source_out/models/net/run.json",
    "runs/elsewhere/studies/blend.db",
    "runs/elsewhere-2/old/net-1/run.json",  # other experiments
    "runs/elsewhere-shuffled-again/old/net-1/run.json",
    "runs/other/old/net-1/run.json",
    "runs/other/.x.1.tmp",
]
OLD = [
    "runs/elsewhere/old/net-0123/oof.parquet",
    "runs/elsewhere/old/net-0123/.oof.parquet.7.tmp",
    "runs/elsewhere/old/blend-4567/run.json",
    "runs/elsewhere/leave_source_out/old/net-0/run.json",
    "runs/elsewhere-shuffled-0/old/net-0/run.json",
    "runs/elsewhere-shuffled--3/old/net-0/run.json",
]
TORN = ["runs/elsewhere/.table.parquet.99.tmp", "runs/elsewhere/models/net/fold_1/.oof_z.npy.12.tmp"]
CACHES = ["cache/generated-64/images.u8", "cache/generated-64/index.parquet", "cache/generated-128/images.u8"]
OTHER_CACHES = ["cache/generated-more-64/images.u8", "cache/more-64/images.u8", "cache/generated-64x/images.u8"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A config and a tree of files beside it, each of another size, all of long ago."""
    path = write_experiment(tmp_path)
    for number, name in enumerate([*KEPT, *OLD, *TORN, *CACHES, *OTHER_CACHES], start=1):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * number**2)
        age(file, 2 * INTERRUPTED_AFTER_S)
    return read_config(path)


def age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def lying(folder: Path) -> set[str]:
    return {
        str(path.relative_to(folder))
        for part in ("runs", "cache")
        for path in (folder / part).rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("cache", [False, True])
def test_only_what_can_be_made_again_goes(config: Config, tmp_path: Path, cache: bool) -> None:
    before = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    found = leftovers(config, cache=cache)
    assert lying(tmp_path) == {*KEPT, *OLD, *TORN, *CACHES, *OTHER_CACHES}, "looking removes nothing"
    remove_leftovers(found)
    assert lying(tmp_path) == {*KEPT, *OTHER_CACHES} | (set() if cache else set(CACHES))
    after = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert sum(leftover.size for leftover in found) == before - after, "what it says is what it frees"
    assert leftovers(config, cache=cache) == []


def test_each_is_listed_once(config: Config) -> None:
    paths = [leftover.path for leftover in leftovers(config, cache=True)]
    assert len(set(paths)) == len(paths)
    assert not [path for path in paths if set(paths) & set(path.parents)]


def test_a_file_that_is_being_written_stays(config: Config, tmp_path: Path) -> None:
    written = tmp_path / "runs/elsewhere/models/net/.oof.parquet.5.tmp"
    written.write_text("half of")
    assert written not in [leftover.path for leftover in leftovers(config, cache=False)]
    age(written, 1.1 * INTERRUPTED_AFTER_S)
    assert written in [leftover.path for leftover in leftovers(config, cache=False)]


def test_what_is_gone_by_then_is_no_error(config: Config, tmp_path: Path) -> None:
    found = leftovers(config, cache=False)
    (tmp_path / TORN[0]).unlink()
    remove_leftovers(found)
    assert lying(tmp_path) == {*KEPT, *CACHES, *OTHER_CACHES}


def test_where_nothing_was_made_there_is_nothing(tmp_path: Path) -> None:
    assert leftovers(read_config(write_experiment(tmp_path)), cache=True) == []

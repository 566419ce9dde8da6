"""The faults of `make chaos`, a few of each: what is killed, barred, filled up or damaged ends as if undisturbed."""

from __future__ import annotations

import signal

import numpy as np
import pytest

from benchmarks.chaos_damage import damage_files, worlds_to_damage
from benchmarks.chaos_disk import full_disk, may_mount, no_write_permission
from benchmarks.chaos_faults import (
    Baseline,
    Tally,
    kill_at_random,
    run_baseline,
    run_twice_at_once,
    terminate,
)

pytestmark = [pytest.mark.slow, pytest.mark.ci]


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Baseline:
    return run_baseline(tmp_path_factory.mktemp("chaos"))


def survived(tally: Tally) -> bool:
    return tally.tried > 0 and tally.survived == tally.tried and tally.lost == 0


@pytest.mark.parametrize(("victim", "kills", "n_jobs"), [("group", 4, 1), ("main", 1, 2), ("worker", 1, 2)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    baseline: Baseline, victim: str, kills: int, n_jobs: int
) -> None:
    tally = Tally(f"SIGKILL, {victim}")
    kill_at_random(baseline, np.random.default_rng(kills), tally, kills=kills, victim=victim, n_jobs=n_jobs)
    assert survived(tally)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_ends_cleanly_and_goes_on(baseline: Baseline, number: int) -> None:
    tally = Tally(f"signal {number}")
    terminate(baseline, np.random.default_rng(1), tally, times=1, number=number)
    assert survived(tally)


def test_a_full_disk_is_named_and_goes_on_when_there_is_room(baseline: Baseline) -> None:
    if not may_mount(baseline.folder):
        pytest.skip("this user may not mount a tmpfs")
    tally = Tally("disk full")
    full_disk(baseline, np.random.default_rng(2), tally, times=1)
    assert survived(tally)


def test_a_folder_that_may_not_be_written_is_named(baseline: Baseline) -> None:
    tally = Tally("no permission")
    no_write_permission(baseline, tally, names=["runs"])
    assert survived(tally)


@pytest.mark.parametrize(
    ("state", "file", "damage"),
    [
        ("finished", "runs/chaos/models/still/run.json", "removed"),
        ("finished", "runs/chaos/models/tiny/fold_1/seed_0/weights.safetensors", "one byte flipped"),
        ("finished", "runs/chaos/blend/run.json", "cut in half"),
        ("training", "runs/chaos/models/tiny/fold_0/parts/run.json", "removed"),
        ("training", "cache/chaos-32/images.bin", "one byte flipped"),
        ("predicted", "predictions.csv.parts/part_00000/made.parquet", "one byte flipped"),
    ],
)
def test_a_damaged_file_is_named_with_the_way_out_or_changes_nothing(
    baseline: Baseline, state: str, file: str, damage: str
) -> None:
    tally, worlds = Tally(damage), worlds_to_damage(baseline)
    damage_files(baseline, np.random.default_rng(3), tally, worlds=worlds, files=[(state, file)], damages=[damage])
    assert survived(tally)


def test_of_two_at_once_one_is_refused_and_neither_harms(baseline: Baseline) -> None:
    tally = Tally("twice")
    run_twice_at_once(baseline, np.random.default_rng(4), tally, times=1)
    assert survived(tally)

"""Faults of the disk (full, read-only, no permission): a refusal must name the file, and the bytes agree afterwards."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.chaos_faults import Baseline, Tally, refusal
from benchmarks.chaos_world import PipelineFolder, finish, run, write_config


def full_disk(baseline: Baseline, rng: np.random.Generator, tally: Tally, *, times: int) -> None:
    """Runs everything on a tmpfs of random size that fills up, then enlarges it."""
    needed = _size(baseline.finished.folder)
    for _ in range(times):
        room = int(rng.uniform(0.02, 0.95) * needed)
        shutil.rmtree(baseline.folder / "full", ignore_errors=True)
        with _tmpfs(baseline.folder / "full", room) as folder:
            world = PipelineFolder(folder)
            write_config(folder)
            ended = finish(world, baseline.log)
            failure, lost = refusal(ended, "disk is full"), 0
            if failure is None:
                _grow(folder, 64 * needed)
                failure, lost = baseline.judge(world)
            tally.add(f"{room >> 10} KiB", failure, lost=lost, refused=ended.status == 2)


UNWRITABLE = ("runs", "cache", "runs/chaos/models/tiny", "bundle.zip", "predictions.csv")


def no_write_permission(baseline: Baseline, tally: Tally, names: Sequence[str] = UNWRITABLE) -> None:
    """Makes one folder read-only, then writable again."""
    for name in names:
        world = baseline.fresh("no_right")
        barred = world.folder / name
        if barred.suffix:  # a file: all is finished but this file, and its folder is read-only
            shutil.rmtree(world.folder)
            world = baseline.finished.copy(world.folder)
            barred.unlink()
            barred = world.folder
        else:
            barred.mkdir(parents=True)
        barred.chmod(0o555)
        for arguments in world.commands():
            ended = run(arguments, baseline.log, as_user=True)
            if ended.status:
                break
        failure, lost = f"status {ended.status}, output {ended.output[-3000:]}", 0
        if ended.status == 2 and ended.clean and "permission denied" in ended.output and str(barred) in ended.output:
            barred.chmod(0o755)
            failure, lost = baseline.judge(world)
        tally.add(name, failure, lost=lost, refused=True)


def read_only(baseline: Baseline, tally: Tally, *, commands: int) -> None:
    """Makes the file system read-only before each of the commands, as happens when a disk fails."""
    for number in range(commands):
        shutil.rmtree(baseline.folder / "read_only", ignore_errors=True)
        with _tmpfs(baseline.folder / "read_only", 1 << 28) as folder:
            world = PipelineFolder(folder)
            write_config(folder)
            for arguments in world.commands()[:number]:
                run(arguments, baseline.log)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            ended = run(world.commands()[number], baseline.log)
            failure, lost = refusal(ended, "read-only"), 0
            subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
            if failure is None:
                failure, lost = baseline.judge(world)
            tally.add(world.commands()[number][0], failure, lost=lost, refused=ended.status == 2)


@contextmanager
def _tmpfs(folder: Path, room: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _grow(folder: Path, room: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={room}", str(folder)], check=True)


def may_mount(folder: Path) -> bool:
    """Checks whether this process may mount a tmpfs, which the tests of a full disk need."""
    try:
        with _tmpfs(folder / "probe", 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

"""Kills, interrupts and duplicates runs, each in a new world, which must end like the undisturbed one."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.chaos_world import Command, CommandResult, PipelineFolder, finish, new_world, run

LINGERING_S = 30.0  # how long a worker may outlive its parent; it checks five times a second, but a machine may be busy


@dataclass
class Tally:
    """Counts how often one fault was tried and survived, and the rows lost; `add` prints what went wrong."""

    fault: str
    tried: int = 0
    survived: int = 0
    lost: int = 0
    refused: int = 0  # survived by following the advice of a refusal

    def add(self, what: str, failure: str | None, *, lost: int = 0, refused: bool = False) -> None:
        self.tried += 1
        self.survived += failure is None
        self.lost += lost
        self.refused += refused and failure is None
        if failure is not None:
            print(f"{self.fault}, {what}: {failure}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Baseline:
    """The folder in which faults are tried, the undisturbed outcome, its duration, and a finished world to copy."""

    folder: Path
    outcome: dict[str, str]
    seconds: dict[str, float]  # of each command
    finished: PipelineFolder

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    def fresh(self, name: str, *, n_jobs: int = 1) -> PipelineFolder:
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return new_world(self.folder / name, n_jobs=n_jobs)

    def judge(self, world: PipelineFolder) -> tuple[str | None, int]:
        """Finishes the world's pipeline; returns what is wrong with it, if anything, and the number of lost rows."""
        ended = finish(world, self.log)
        if ended.status:
            return f"cannot be resumed, status {ended.status}: {ended.output[-1500:]}", 0
        return self.compare(world)

    def compare(self, world: PipelineFolder) -> tuple[str | None, int]:
        """Returns what is wrong with a finished world, if anything, and the number of lost rows."""
        made, lost = world.outcome(), world.rows_lost()
        other = sorted(name for name in {*made, *self.outcome} if made.get(name) != self.outcome.get(name))
        return (f"bytes differ in {', '.join(other)}" if other else None), lost


def run_baseline(folder: Path) -> Baseline:
    """Runs the undisturbed pipeline and measures its commands."""
    world, seconds = new_world(folder / "undisturbed"), {}
    run(["--help"], folder / "log.txt")  # so that the server imports before the clock runs
    for arguments in world.commands():
        started = time.monotonic()
        ended = run(arguments, folder / "log.txt")
        assert ended.status == 0, ended.output
        seconds[arguments[0]] = time.monotonic() - started
    with zipfile.ZipFile(world.folder / "bundle.zip") as archive:
        archive.extractall(world.folder / "unpacked")
    return Baseline(folder, world.outcome(), seconds, world)


def kill_at_random(
    baseline: Baseline, rng: np.random.Generator, tally: Tally, *, kills: int, victim: str, n_jobs: int
) -> None:
    """Kills the whole group, the main process or one worker at ``kills`` random moments, up to 4 times per world."""
    left, life = kills, 0
    while left:
        life += 1
        world = baseline.fresh("killed", n_jobs=n_jobs)
        here = 0
        while left and here < 4:
            moment = float(rng.uniform(0, sum(baseline.seconds.values()) * 0.6))
            if not _kill_at(baseline, world, moment, victim, rng):
                break  # it had already ended
            left, here = left - 1, here + 1
        failure, lost = baseline.judge(world)
        for number in range(here):
            tally.add(f"life {life}, kill {number + 1}", failure, lost=lost if number == 0 else 0)
        if not here:  # the moment was too late: this world does not count
            continue


def _kill_at(baseline: Baseline, world: PipelineFolder, moment: float, victim: str, rng: np.random.Generator) -> bool:
    """Starts the pipeline and kills it ``moment`` seconds later; returns False if it has ended before."""
    deadline = time.monotonic() + moment
    for arguments in world.commands():
        command = Command(arguments, baseline.log)
        ended = command.wait(max(0.0, deadline - time.monotonic()))
        if ended is not None:
            assert ended.status == 0, f"{arguments[0]}: {ended.output[-3000:]}"
            continue
        if victim == "worker":
            return _kill_worker(command, rng)
        command.send(signal.SIGKILL, group=victim == "group")
        command.wait()
        return True
    return False


def _kill_worker(command: Command, rng: np.random.Generator) -> bool:
    """Kills a worker within 2 s of its start; returns whether the command then ended with status 2 (a refusal)."""
    while (ended := command.wait(0.02)) is None:
        if command.workers("LokyProcess"):
            time.sleep(float(rng.uniform(0, 2)))
            if not (workers := command.workers("LokyProcess")):
                continue
            _kill(int(rng.choice(workers)))
            ended = command.wait()
            assert ended is not None
            assert ended.clean, ended.output[-3000:]
            return ended.status == 2
    return False


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def terminate(baseline: Baseline, rng: np.random.Generator, tally: Tally, *, times: int, number: int) -> None:
    """Sends SIGTERM to the main process, or Ctrl-C to the whole group, as a terminal does."""
    status, too_late = 128 + number, 0
    for trial in range(3 * times):
        if tally.tried == times:
            return
        world = baseline.fresh("asked", n_jobs=1 + trial % 2)
        command, failure = None, None
        # The undisturbed run may have been slower, on a machine that was busier.
        deadline = time.monotonic() + float(rng.uniform(0.3, sum(baseline.seconds.values()) / 2**too_late))
        for arguments in world.commands():
            command = Command(arguments, baseline.log)
            if command.wait(max(0.3, deadline - time.monotonic())) is None:
                break
        assert command is not None
        command.send(number, group=number == signal.SIGINT)
        ended = command.wait(60)
        if ended is None:
            command.send(signal.SIGUSR1)
            time.sleep(1)
            failure = f"it still ran after a minute: {baseline.log.read_text()[-4000:]}"
            command.send(signal.SIGKILL, group=True)
            command.wait()
        elif ended.status == 0:
            too_late += 1  # it had already ended
            continue
        elif ended.status == -number and not ended.output:
            pass  # Python had not started yet, so that nothing is said; `judge` sees that nothing is lost either
        elif ended.status != status or not ended.clean or "run the same command again" not in ended.output:
            failure = f"status {ended.status}, output {ended.output[-3000:]}"
        elif _outlived_by(command):
            failure = f"workers {command.workers()} still ran"
        if failure is None:
            failure, lost = baseline.judge(world)
            tally.add(f"trial {trial}", failure, lost=lost)
        else:
            tally.add(f"trial {trial}", failure)


def _outlived_by(command: Command) -> bool:
    deadline = time.monotonic() + LINGERING_S
    while command.workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(command.workers())


def interrupted(baseline: Baseline, name: str, appears: str, *, command: int = 0) -> PipelineFolder:
    """Returns a world that was killed as soon as a file of the pattern ``appears`` existed."""
    shutil.rmtree(baseline.folder / name, ignore_errors=True)
    world = baseline.finished.copy(baseline.folder / name) if command else baseline.fresh(name)
    started = Command(world.commands()[command], baseline.log)
    while not list(world.folder.glob(appears)):
        assert started.wait(0.002) is None, f"the command ended before {appears} existed"
    started.send(signal.SIGKILL, group=True)
    started.wait()
    assert list(world.folder.glob(appears)), f"{appears} was removed before the kill"
    return world


def refusal(ended: CommandResult, wanted: str) -> str | None:
    """Returns what is wrong with a refusal; None where it is correct or the command succeeded."""
    if ended.status == 0:
        return None
    if ended.status != 2 or not ended.clean or wanted not in ended.output:
        return f"status {ended.status}, output {ended.output[-3000:]}"
    return None


def run_twice_at_once(baseline: Baseline, rng: np.random.Generator, tally: Tally, *, times: int) -> None:
    """Runs the same command twice at once: one may wait or be refused, and neither does harm."""
    for trial in range(times):
        world = baseline.fresh("twice")
        which = trial % 2
        if which:
            ended = run(world.commands()[0], baseline.log)
            assert ended.status == 0, ended.output
        first = Command(world.commands()[which], baseline.log)
        time.sleep(float(rng.uniform(0, baseline.seconds["stack" if which else "oof"])))
        second = Command(world.commands()[which], baseline.folder / "second.txt")
        ends = [first.wait(), second.wait()]
        failure = None
        for ended in ends:
            assert ended is not None
            failure = failure or refusal(ended, "another process is working on")
        if failure is None and all(ended is not None and ended.status for ended in ends):
            failure = "both were refused"
        lost = 0
        if failure is None:
            failure, lost = baseline.judge(world)
        tally.add(f"trial {trial}", failure, lost=lost)


def shared_cache(baseline: Baseline, tally: Tally) -> None:
    """Lets two experiments fill one cache at the same time."""
    worlds = [baseline.fresh(name) for name in ("sharing", "sharing_too")]
    for world in worlds:
        path = world.folder / "chaos.yaml"
        path.write_text(path.read_text().replace(str(world.folder / "cache"), str(baseline.folder / "shared_cache")))
    running = [Command(world.commands()[0], baseline.folder / f"{world.folder.name}.txt") for world in worlds]
    for command in running:
        command.wait()
    for world in worlds:
        failure, lost = baseline.judge(world)
        tally.add(world.folder.name, failure, lost=lost)
    shutil.rmtree(baseline.folder / "shared_cache")


def stale_lock(baseline: Baseline, tally: Tally, *, times: int) -> None:
    """Kills a command that holds its locks; the next one must start at once."""
    for trial in range(times):
        appears = f"runs/*/models/*/fold_0/seed_0/{'state.pt' if trial % 2 else 'weights.safetensors'}"
        world = interrupted(baseline, "dead", appears)
        failure, lost = baseline.judge(world)
        tally.add(f"trial {trial}", failure, lost=lost)

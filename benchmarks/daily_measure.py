"""Runs commands on two versions of the code, each in a process of its own, and measures seconds and memory (Linux)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parents[1]
OLD_COMMIT = "b103a11"
SAMPLE_SECONDS = 0.1
_TICK, _KB = os.sysconf("SC_CLK_TCK"), 1024

# The command line of each version; both read sys.argv.
_START = "from commands.cli import main; main()", "from dermstack.cli.main import main; main()"


@dataclass(frozen=True)
class Cost:
    """What a command cost: wall and processor seconds with all its processes, and their memory at its highest, in GB.

    Memory that processes share counts once. ``ended``: it was stopped at its limit, so that it would have cost more.
    """

    wall: float
    cpu: float
    peak: float
    ended: bool = False

    def __add__(self, other: Cost) -> Cost:
        """Returns the cost of one command after the other."""
        peak = max(self.peak, other.peak)
        return Cost(self.wall + other.wall, self.cpu + other.cpu, peak, self.ended or other.ended)


@dataclass(frozen=True)
class Tree:
    """One version of the code: a folder that Python imports from."""

    name: str
    folder: Path

    def command(self, *arguments: str) -> list[str]:
        """Returns a command of dermstack in this version."""
        code = _START[not (self.folder / "commands" / "cli.py").exists()]
        return [sys.executable, "-P", "-c", code, *arguments]

    def run(self, *arguments: str, limit: float | None = None) -> Cost:
        """Measures a command of dermstack in this version."""
        return self.measure(self.command(*arguments), limit=limit)

    def measure(self, command: Sequence[str], *, limit: float | None = None) -> Cost:
        """Measures any command that imports this version."""
        return measure(command, limit=limit, env={"PYTHONPATH": str(self.folder)})


@contextmanager
def two_trees(now: Path = HERE) -> Iterator[tuple[Tree, Tree]]:
    """Yields the old commit, as a git worktree that is removed afterwards, and the present code, in ``now``."""
    with tempfile.TemporaryDirectory(prefix="dermstack-daily-") as folder:
        old = Path(folder) / "old"
        git = ["git", "-C", str(HERE), "worktree"]
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(old), OLD_COMMIT], check=True)
            yield Tree(OLD_COMMIT, old), Tree("now", now.resolve())
        finally:
            subprocess.run([*git, "remove", "--force", str(old)], check=False)


def measure(command: Sequence[str], *, limit: float | None = None, env: dict[str, str] | None = None) -> Cost:
    """Runs the command with one thread for each process and measures it; with ``limit``, it is killed after as long.

    Raises RuntimeError, with the end of its output, where the command fails.
    """
    with tempfile.TemporaryFile() as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=output, start_new_session=True, cwd=tempfile.gettempdir(),
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        )  # fmt: skip
        seen, peak, ended = dict[int, float](), 0.0, False
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            peak = max(peak, _sample(process.pid, seen))
            if limit is not None and not ended and time.perf_counter() - started > limit:
                os.killpg(process.pid, signal.SIGKILL)
                ended = True
            time.sleep(SAMPLE_SECONDS)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode and not ended:
            output.seek(0)
            text = output.read().decode(errors="replace")[-3000:]
            raise RuntimeError(f"{' '.join(command)[:300]} ended with {process.returncode}:\n{text}")
    # Worker processes that were not waited for are missing in usage, and the last moments of each in the samples.
    cpu = max(usage.ru_utime + usage.ru_stime, sum(seen.values()))
    return Cost(wall, cpu, max(peak, usage.ru_maxrss * _KB / 1e9), ended)


def _sample(root: int, seen: dict[int, float]) -> float:
    """Notes the processor seconds of a process and its descendants in ``seen``; returns their memory now, in GB."""
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        folder = Path("/proc") / str(pid)
        try:
            for children in (folder / "task").glob("*/children"):
                waiting += map(int, children.read_text().split())
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            seen[pid] = (int(fields[11]) + int(fields[12])) / _TICK
            lines = (folder / "smaps_rollup").read_text().splitlines()
            total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return total * _KB / 1e9

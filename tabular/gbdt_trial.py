"""Parses GBDT model files in a child process with limits of memory and time, before this process parses the same bytes.

The libraries parse with native code that may crash, never end or allocate what a file claims. A new interpreter and not
a fork is used, because OpenMP does not survive a fork.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dermstack.errors import TabularError

MIB = 1 << 20
# The child's whole program: it takes the module path of this process, so that it finds the same packages.
_PROGRAM = (
    "import json, sys; task = json.loads(sys.stdin.buffer.readline()); sys.path[:] = task['path']; "
    "from tabular.gbdt_trial import run_trial; run_trial(task)"
)
# What the libraries use only where it is installed. Without these a child starts in a third of the time.
_OPTIONAL = ("pandas", "sklearn", "pyarrow", "polars", "dask", "distributed", "matplotlib", "graphviz", "cffi")
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
_READY = "ready"


@dataclass(frozen=True)
class TrialLimits:
    """Limits of a child process; memory and CPU time need Linux or another POSIX system, the wall time none."""

    memory: int = 512 * MIB  # bytes beyond the imported libraries,
    memory_of_byte: int = 64  # and for each byte of the largest model
    cpu_s: int = 20
    cpu_s_of_mib: int = 5
    wall_s: int = 300  # a busy machine lets a child wait: more than the CPU time
    wall_s_of_mib: int = 60

    def of(self, sizes: Sequence[int]) -> tuple[int, int, int]:
        """Returns bytes of memory, seconds of CPU and seconds in all for models of these sizes."""
        mib = -(-sum(sizes) // MIB)
        return (
            self.memory + self.memory_of_byte * max(sizes),
            self.cpu_s + self.cpu_s_of_mib * mib,
            self.wall_s + self.wall_s_of_mib * mib,
        )


DEFAULT_LIMITS = TrialLimits()


@dataclass(frozen=True)
class ModelFile:
    """The name (for messages), the kind and the content of a model file."""

    name: str
    kind: str
    content: bytes

    @property
    def digest(self) -> bytes:
        """SHA-256 of kind and content."""
        return hashlib.sha256(self.kind.encode() + b"\0" + self.content).digest()


def try_models(models: Sequence[ModelFile], *, limits: TrialLimits = DEFAULT_LIMITS) -> None:
    """Parses each model and predicts two rows with it in one child process. Raises TabularError naming the first fault.

    Faults are: the library's refusal, a prediction that is not finite, a crash, and more memory or time than `limits`.
    """
    models = [model for model in models if model.digest not in _ACCEPTED]
    if not models:
        return
    needed = {"pandas"} if any(model.kind == "catboost" for model in models) else set()
    lines, ending = _run_child(models, limits, without=[name for name in _OPTIONAL if name not in needed])
    if _READY not in lines:  # an optional package may not be optional in every version
        lines, ending = _run_child(models, limits, without=())
    if _READY not in lines:
        raise TabularError(
            f"the child process that parses GBDT models before this one does not start ({ending}): check that "
            f"`{sys.executable} -c 'import lightgbm, xgboost'` works"
        )
    results = lines[lines.index(_READY) + 1 :]
    for model, result in zip(models, results, strict=False):
        if result != "ok":
            raise TabularError(f"{model.name} is a damaged {model.kind} model ({result[:200]}): do not use it")
    if len(results) < len(models):
        model = models[len(results)]
        raise TabularError(
            f"{model.name} cannot be parsed as a {model.kind} model within the limits of memory and time ({ending}): "
            "do not use it"
        )
    _ACCEPTED.update(model.digest for model in models)


_ACCEPTED: set[bytes] = set()  # digests of the models that passed in this process, which may open a bundle again


def _run_child(models: Sequence[ModelFile], limits: TrialLimits, *, without: Sequence[str]) -> tuple[list[str], str]:
    """Returns the lines that the child printed, and how it ended."""
    memory, cpu_s, wall_s = limits.of([len(model.content) for model in models])
    task = {
        "path": [str(Path(__file__).resolve().parents[1]), *sys.path],
        "without": list(without),
        "memory": memory,
        "cpu_s": cpu_s,
        "models": [(model.kind, len(model.content)) for model in models],
    }
    sent = b"".join([json.dumps(task).encode(), b"\n", *(model.content for model in models)])
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", "-c", _PROGRAM],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, **_ONE_THREAD},
        )  # fmt: skip
    except OSError as error:
        return [], str(error)
    with child:
        try:
            printed, _ = child.communicate(sent, timeout=wall_s)
            ending = _ending(child.returncode)
        except subprocess.TimeoutExpired:
            child.kill()  # SIGKILL: native code does not listen to others
            printed, _ = child.communicate()
            ending = f"killed after {wall_s} s"
        except BaseException:  # Ctrl-C
            child.kill()
            raise
    return printed.decode("utf-8", "replace").splitlines(), ending


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name}, as for more CPU time than allowed" if name in ("SIGXCPU", "SIGKILL") else f"a crash, {name}"


def run_trial(task: dict[str, Any]) -> None:
    """Parses the models that follow on the standard input, in the child; prints `ready` and a line for each."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the libraries print is no result
    sys.meta_path.insert(0, _Absent(task["without"]))
    from tabular.gbdt_libraries import LIBRARIES, load_library

    for kind in {kind for kind, _ in task["models"]}:
        load_library(kind)
    _limit(task["memory"], task["cpu_s"])
    print(_READY, file=results, flush=True)
    for kind, n_bytes in task["models"]:
        content = sys.stdin.buffer.read(n_bytes)
        try:
            result = _fault(LIBRARIES[kind], content) or "ok"
        except Exception as error:  # noqa: BLE001 - the parent names every fault
            result = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        print(result, file=results, flush=True)


class _Absent:
    """A finder with which packages are as if they were not installed."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError for the packages."""
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _fault(library: Any, content: bytes) -> str | None:
    booster, names, rounds = library.load(content)
    if not 0 < len(names) <= len(content) or not 0 <= rounds <= len(content):
        return f"it claims {len(names)} columns and {rounds} rounds"
    rows = np.stack([np.zeros(len(names), np.float32), np.full(len(names), np.nan, np.float32)])
    margin = np.asarray(library.margin(booster, rows, 1))
    if margin.shape != (2,) or not np.isfinite(margin).all():
        return "its predictions are not one finite number a row"
    return None


def _limit(memory: int, cpu_s: int) -> None:
    """Limits the memory and CPU time of this process from here on, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + cpu_s
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if statm.exists():  # macOS has no limit of the address space that it keeps to
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

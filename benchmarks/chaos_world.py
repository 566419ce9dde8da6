"""A tiny world for faults: the whole pipeline on small data, as processes that can be killed, and its outcome."""

from __future__ import annotations

import ctypes
import faulthandler
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import yaml
from joblib.externals.loky import process_executor

from dermstack.cli.main import main
from stack.metrics.intervals import bootstrap_scores, interval, paired_difference

EXPERIMENT = "chaos"
ROWS, TEST_ROWS, PIXELS = 96, 24, 32
COMPARED_FILES = (
    "oof.parquet",
    "test.parquet",
    "oof_z.npy",
    "test_z.npy",
    "anchor.parquet",
    "anchor_z.npy",
)  # of each run

# The commands run in children of one server that has imported the libraries, so that kills hit work, not imports.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["torch", "dermstack.cli.main", "image_models.fit", "dermstack.report.evidence", "dermstack.serve.write_bundle"]
)


@dataclass(frozen=True)
class CommandResult:
    """Result of a command: its exit status (negative: a signal) and its output."""

    status: int
    output: str

    @property
    def clean(self) -> bool:
        """Whether the output has no traceback."""
        return "Traceback" not in self.output


@dataclass(frozen=True)
class PipelineFolder:
    """A folder with the config and everything that the pipeline makes; the data lies beside it."""

    folder: Path
    tuned: bool = False  # whether a study chooses the stacker's parameters

    @property
    def experiment(self) -> Path:
        return self.folder / "runs" / EXPERIMENT

    def commands(self) -> list[list[str]]:
        """Returns the pipeline's commands: image models, level 2 and blend, bundle, predictions of the bundle."""
        config, bundle = ["-c", str(self.folder / "chaos.yaml")], str(self.folder / "bundle.zip")
        data = self.folder.parent / "data"
        tune, study = [], self.experiment / "studies" / "gbdt-gbdt.yaml"
        if self.tuned:
            tune = [["tune", "gbdt", *config, "-q", "--trials", "2"]]
        chosen = ["--set", f"tuned={{gbdt: {{gbdt: {study}}}}}"] if self.tuned else []
        images = ["--images", str(data / "images"), "--metadata", str(data / "test.csv")]
        return [
            ["oof", *config, "-q"],
            *tune,
            ["stack", *config, *chosen, "-q"],
            ["bundle", *config, *chosen, "--out", bundle, "--replace", "-q"],
            ["predict", "--bundle", bundle, *images, "--out", str(self.folder / "predictions.csv"), "-q"],
        ]

    def outcome(self) -> dict[str, str]:
        """Returns digests of what must agree: submission, predictions, each run's out-of-fold and test files."""
        files = [self.experiment / "submission.csv", self.folder / "predictions.csv"]
        files += [
            path
            for run in sorted(self.experiment.glob("models/*"))
            for name in COMPARED_FILES
            if (path := run / name).exists()
        ]
        return {str(path.relative_to(self.folder)): _digest(path) for path in files}

    def rows_lost(self) -> int:
        """Counts the rows that a run, the submission or the predictions lack or have twice."""
        runs = sorted(self.experiment.glob("models/*/oof.parquet"))
        wanted = [(ROWS, pd.read_parquet(path)["id"]) for path in runs]
        wanted += [(TEST_ROWS, pd.read_csv(self.experiment / "submission.csv")["image_name"])]
        wanted += [(TEST_ROWS, pd.read_csv(self.folder / "predictions.csv")["id"])]
        return sum(abs(number - ids.nunique()) + abs(number - len(ids)) for number, ids in wanted)

    def copy(self, folder: Path) -> PipelineFolder:
        """Copies the state to another folder, with a config of its own."""
        shutil.copytree(self.folder, folder)
        write_config(folder)
        return replace(self, folder=folder)


def new_world(folder: Path, *, n_jobs: int = 1) -> PipelineFolder:
    """Makes a world in which nothing has run; its data lies beside it and is shared by all worlds there."""
    from dermstack.cli.demo_data import write_demo_data

    data = folder.parent / "data"
    if not data.exists():
        write_demo_data(data, n_train=ROWS, n_test=TEST_ROWS, size=PIXELS, seed=6)
    folder.mkdir()
    write_config(folder, n_jobs=n_jobs)
    return PipelineFolder(folder)


def write_config(folder: Path, *, n_jobs: int = 1) -> None:
    data = folder.parent / "data"
    net = {"backbone": "test_resnet", "pretrained": False, "size": PIXELS, "batch_size": 16}
    columns = {"id": "image_name", "group": "patient_id", "target": "target", "age": "age_approx", "sex": "sex"}
    settings = {
        "experiment": EXPERIMENT,
        "runs": str(folder / "runs"),
        "cache": str(folder / "cache"),
        "threads": 1,
        "n_jobs": n_jobs,
        "data": {
            "name": "chaos",
            "train": str(data / "train.csv"),
            "test": str(data / "test.csv"),
            "sample_submission": str(data / "sample_submission.csv"),
            "images": str(data / "images"),
            "columns": columns | {"site": "anatom_site_general_challenge"},
        },
        "folds": {"k": 3},
        "image_models": [
            {**net, "name": "tiny", "epochs": 3, "metadata": ["age", "sex"]},
            {**net, "name": "still", "frozen": True},
        ],
        "features": {"frozen_z": 4, "aligned_z": 3},
        "stackers": [{"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 15, "patience": 5}}],
        "blend": {"trials": 3},
    }
    (folder / "chaos.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


class Command:
    """A dermstack command in its own process group."""

    def __init__(self, arguments: Sequence[str], log: Path, *, as_user: bool = False) -> None:
        self.log = log
        self.process: BaseProcess = _context.Process(target=_command, args=(list(arguments), str(log), as_user))
        self.process.start()
        assert self.process.pid is not None
        self.pid: int = self.process.pid

    def wait(self, seconds: float | None = None) -> CommandResult | None:
        """Returns how the command ended; None if it still runs after ``seconds``."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            return None
        output = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return CommandResult(self.process.exitcode, output)

    def send(self, number: int, *, group: bool = False) -> None:
        """Sends a signal to the process, or to it and all its workers; does nothing if it has ended."""
        with suppress(ProcessLookupError):  # it has ended
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def workers(self, called: str = "") -> list[int]:
        """Returns the other living processes of the group whose command line contains ``called``."""
        others = [pid for pid, group in _groups() if group == self.pid and pid != self.pid]
        return [pid for pid in others if called in _command_line(pid)]


def run(arguments: Sequence[str], log: Path, *, as_user: bool = False) -> CommandResult:
    """Runs a command to its end."""
    ended = Command(arguments, log, as_user=as_user).wait()
    assert ended is not None
    return ended


def finish(world: PipelineFolder, log: Path) -> CommandResult:
    """Runs the whole pipeline; stops at the first command that fails."""
    for arguments in world.commands():
        ended = run(arguments, log)
        if ended.status:
            break
    return ended


def _command(arguments: list[str], log: str, as_user: bool) -> None:
    os.setpgid(0, 0)
    to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(to, 1)
    os.dup2(to, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.register(signal.SIGUSR1)  # writes to the log where it hangs
    if as_user:
        _drop_root_override()
    for function in (interval, paired_difference, bootstrap_scores):  # saves time; no compared file depends on it
        function.__kwdefaults__["draws"] = 40
    sys.argv = ["dermstack", *arguments]
    try:
        main()
    finally:
        # An interpreter tells loky's workers to end at exit; a multiprocessing child would wait for them before that.
        process_executor._python_exit()


def _drop_root_override() -> None:
    """Drops root's right to write anywhere, so that the kernel checks permission bits as for other users."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for place in (0, 1):  # effective, permitted
        sets[place] &= ~(1 << 1)  # CAP_DAC_OVERRIDE
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")


def _groups() -> list[tuple[int, int]]:
    """Returns (pid, process group) of every living process."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            found.append((int(path.parent.name), int(fields[2])))
    return found


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "gone"

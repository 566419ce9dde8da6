"""A stacker is on disk as soon as it ends: what is killed between two stackers goes on with the second, to the byte."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from stack.store import read_run

pytestmark = pytest.mark.slow

STACKERS = [
    {"name": "first", "kind": "lightgbm", "bags": 2, "params": {"rounds": 12, "patience": 4}},
    {"name": "second", "kind": "xgboost", "bags": 2, "repeats": 2, "params": {"rounds": 12, "patience": 4}},
    {"name": "third", "kind": "logistic"},
]
KILLED_AFTER = """
import os, signal, sys
import dermstack, stack.level2.stackers
name = sys.argv[1]
sys.argv = ["dermstack", *sys.argv[2:]]
write_run = stack.level2.stackers.write_run
def killed(folder, *arguments, **options):
    made = write_run(folder, *arguments, **options)
    if folder.name == name:
        os.kill(os.getpid(), signal.SIGKILL)
    return made
stack.level2.stackers.write_run = killed
from dermstack.cli.main import main
main()
"""


def experiment_in(folder: Path) -> Path:
    folder.mkdir()
    config = write_experiment(folder, stackers=STACKERS)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    return config


def outcome(config: Path) -> dict[str, bytes]:
    """What predicts and what is predicted: the frames and models of every stacker, and the submission."""
    folder = config.parent / "runs" / "elsewhere"
    files = [path for path in sorted(folder.glob("models/*/**/*")) if path.suffix in (".parquet", ".txt", ".ubj")]
    files += [folder / "models" / "third" / f"fold_{fold}" / "model.json" for fold in range(3)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in [*files, folder / "submission.csv"]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    config = experiment_in(tmp_path_factory.mktemp("resume") / "undisturbed")
    assert run_cli("stack", "-c", str(config), "-q", "--no-report") == 0
    return outcome(config)


@pytest.mark.parametrize(("last", "n_jobs"), [("first", 1), ("second", 2)])
def test_killed_between_stackers_it_goes_on_with_the_next(
    undisturbed: dict[str, bytes], tmp_path: Path, last: str, n_jobs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    config = experiment_in(tmp_path / "killed")
    stack = ["stack", "-c", str(config), "--no-report", "--set", f"n_jobs={n_jobs}"]
    ended = subprocess.run([sys.executable, "-c", KILLED_AFTER, last, *stack], capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    models = config.parent / "runs" / "elsewhere" / "models"
    complete = ["first", "second"][: 1 + (last == "second")]
    assert [name for name in ("first", "second", "third") if read_run(models / name)] == complete
    for name in complete:
        assert f"{name}: AUC " in ended.stdout or name == last, "its score was printed when it ended"
    times = {path: path.stat().st_mtime_ns for name in complete for path in (models / name).rglob("*.*")}
    assert run_cli(*stack) == 0
    said = capsys.readouterr().out
    assert [name for name in ("first", "second", "third") if f"{name}: complete, skipped" in said] == complete
    assert {path: path.stat().st_mtime_ns for path in times} == times, "no fold of it was fitted twice"
    assert outcome(config) == undisturbed


@pytest.mark.usefixtures("without_figures")
def test_what_is_printed_comes_in_the_order_of_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = experiment_in(tmp_path / "order")
    assert run_cli("stack", "-c", str(config)) == 0
    said = capsys.readouterr().out
    parts = [
        "training rows", "out-of-fold AUC of each run", "audit: ", "first: AUC ", "second: AUC ", "third: AUC ",
        "elsewhere: AUC ", "Blend methods", "gain from shortcuts", "submission.csv", "report.html",
    ]  # fmt: skip
    places = [said.index(part) for part in parts]
    assert places == sorted(places)

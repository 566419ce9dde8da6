"""A user's mistake is one message that names the thing and the next step, exit status 2, nothing half-written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow
import pytest
import typer
from conftest import WITHOUT_IMAGE_EXTRA, run_cli, small_config
from imported_experiment import (
    command_error,
    import_frames,
    opened_experiment,
    predictions,
    unexpected_files,
    write_experiment,
)
from joblib.externals.loky.process_executor import TerminatedWorkerError

from dermstack.cli.main import app, run_app
from stack.store import locked

Capture = pytest.CaptureFixture[str]

ROWS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str, str]] = {
    "missing column": (
        lambda t: t.rename(columns={"patient_id": "patient_ids"}),
        "no column 'patient_id' (columns.group), did you mean 'patient_ids'?",
        "correct columns.group in the config",
    ),
    "doubled id": (lambda t: pd.concat([t, t.head(1)]), "in more than one row (rows 2, 242)", "keep one row of each"),
    "target not 0/1": (
        lambda t: t.assign(target=["2", *t["target"][1:]]),
        "target '2' (row 2) is not 0 or 1",
        "correct or remove the rows",
    ),
    "target of two codes": (
        lambda t: t.assign(target=[-1 if int(value) == 0 else 1 for value in t["target"]]),
        "is not 0 or 1",
        "if the two numbers are classes, say which is positive: data.columns.target: {column: …, positive: 1}",
    ),
    "sentinel group": (
        lambda t: t.assign(patient_id="-1"),
        "group '-1' is in 240 of 240 rows",
        "give each of them a group of its own",
    ),
    "image missing": (
        lambda t: pd.concat([t, t.head(1).assign(image_name="NOPE_1")]),
        "1 of 241 images are missing in",
        "first: NOPE_1: restore the files or drop the rows",
    ),
}
SETTINGS = {
    "too many folds": ("folds.k=60", "groups hold positives, fewer than the 60 folds", "set fewer folds"),
    "unknown backbone": ("image_models.0.backbone=mobilenetv2_10", "'mobilenetv2_10'", "did you mean mobilenetv2_1"),
    "weights missing": ("image_models.0.pretrained=nowhere.pth", "nowhere.pth do not exist", "give a file"),
    "unknown key": ("image_models.0.epoch=3", "image_models.0: unknown key 'epoch'", "did you mean 'epochs'?"),
    "unknown recipe": ("image_models.0.augment=hevy", "unknown augmentation 'hevy'", "choose from none, light"),
    "no train csv": ("data.train=gone.csv", "gone.csv: no such file", "correct its path"),
    "no images folder": ("data.images=gone", "gone is not a folder", "name the folder or file that holds the images"),
    "no duplicates csv": ("data.duplicates=gone.csv", "gone.csv does not exist", "or remove the key"),
    "unset variable": ("data.train=${NOT_SET_HERE}/x.csv", "NOT_SET_HERE is not set", "export NOT_SET_HERE="),
}


def commands() -> list[tuple[str, Any]]:
    return sorted(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_row_is_named(name: str, small_data: Path, tmp_path: Path, capsys: Capture) -> None:
    change, thing, step = ROWS[name]
    change(pd.read_csv(small_data / "train.csv", dtype=str)).to_csv(tmp_path / "train.csv", index=False)
    config = small_config(small_data, tmp_path)
    message = command_error(capsys, "oof", "-c", str(config), "--set", f"data.train={tmp_path / 'train.csv'}")
    assert thing in message
    assert step in message
    assert unexpected_files(tmp_path) == []


@pytest.mark.parametrize("name", SETTINGS)
def test_a_bad_setting_is_named(name: str, config_path: Path, tmp_path: Path, capsys: Capture) -> None:
    setting, thing, step = SETTINGS[name]
    message = command_error(capsys, "oof", "-c", str(config_path), "--set", setting)
    assert thing in message
    assert step in message
    assert unexpected_files(tmp_path) == []


def test_every_fault_of_a_table_is_told_at_once(small_data: Path, tmp_path: Path, capsys: Capture) -> None:
    table = pd.read_csv(small_data / "train.csv", dtype=str)
    table.loc[3, "target"], table.loc[4, "age_approx"], table.loc[5, "patient_id"] = "yes", "old", ""
    table.to_csv(tmp_path / "train.csv", index=False)
    config = small_config(small_data, tmp_path)
    message = command_error(capsys, "oof", "-c", str(config), "--set", f"data.train={tmp_path / 'train.csv'}")
    assert [part in message for part in ("(row 5)", "(row 6)", "row 7 without a group")] == [True] * 3


def test_an_unreadable_image_is_named(small_data: Path, tmp_path: Path, capsys: Capture) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in (small_data / "images").iterdir():
        (images / path.name).symlink_to(path)
    broken = sorted(images.iterdir())[7]
    whole = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(whole[: len(whole) // 2])
    config = small_config(small_data, tmp_path)
    message = command_error(capsys, "oof", "-c", str(config), "--set", f"data.images={images}")
    assert str(broken) in message
    assert "1 image cannot be read; restore them, drop their rows" in message
    assert unexpected_files(tmp_path) == []


def test_a_missing_config_is_named(tmp_path: Path, capsys: Capture) -> None:
    path = str(tmp_path / "gone.yaml")
    imported = ["import-oof", "x", "--oof", "x.csv"]
    for command in (["oof"], ["stack"], ["tune", "blend"], ["report"], ["clean"], imported):
        message = command_error(capsys, *command, "-c", path)
        assert f"{path}: no such config: check the path; `dermstack demo-data" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["init", "gone"], "gone: no such file or folder: name the folder of the data"),
        (["init", ".", "--images", "gone"], "--images gone: no such file or folder: name the folder of the images"),
        (["init", ".", "--test", "gone"], "--test gone: no such file or folder"),
    ],
)
def test_init_names_what_is_missing_before_the_config_that_exists(
    command: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("mine")
    assert words in command_error(capsys, *command)
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize("command", [["stack"], ["tune", "blend"], ["tune", "gbdt"]])
def test_level_2_before_level_1_names_the_command(
    command: list[str], config_path: Path, tmp_path: Path, capsys: Capture
) -> None:
    message = command_error(capsys, *command, "-c", str(config_path))
    assert "image model tiny is not complete" in message
    assert f"run `dermstack oof --config {config_path}` first" in message
    assert unexpected_files(tmp_path) == []


def test_an_experiment_without_any_run_names_both_ways_to_one(tmp_path: Path, capsys: Capture) -> None:
    message = command_error(capsys, "stack", "-c", str(write_experiment(tmp_path)))
    assert "has no level-1 run" in message
    assert "dermstack import-oof" in message
    assert unexpected_files(tmp_path) == []


def test_a_report_before_the_blend_names_the_command(tmp_path: Path, capsys: Capture) -> None:
    config = write_experiment(tmp_path)
    assert f"run `dermstack stack --config {config}`" in command_error(capsys, "report", "-c", str(config))
    assert unexpected_files(tmp_path) == []


def test_an_unknown_study_is_named(config_path: Path, capsys: Capture) -> None:
    message = command_error(capsys, "tune", "images", "-c", str(config_path))
    assert "unknown study 'images': choose blend, gbdt or image" in message


def test_an_experiment_at_work_is_left_alone(tmp_path: Path, capsys: Capture) -> None:
    config = write_experiment(tmp_path)
    with locked(tmp_path / "runs" / "elsewhere"):
        message = command_error(capsys, "stack", "-c", str(config))
    assert f"another process is working on {tmp_path / 'runs' / 'elsewhere'}: wait for it" in message


def test_an_imported_run_is_not_lost_to_a_model_of_its_name(tmp_path: Path, capsys: Capture) -> None:
    """The config gets a stacker that is called as the import was."""
    config = write_experiment(tmp_path, stackers=[{"name": "gbdt", "kind": "lightgbm"}])
    experiment = opened_experiment(config)
    run = import_frames(experiment, "net", *predictions(experiment))
    message = command_error(capsys, "stack", "-c", str(config), "--set", "stackers.0.name=net")
    assert f"{run.folder} is an imported run" in message
    assert (run.folder / "oof.parquet").exists()


def test_ctrl_c_says_how_to_go_on(config_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stack.level1.image_runs.run_image_models", interrupted)
    assert run_cli("oof", "-c", str(config_path), "-q") == 130
    shown = capsys.readouterr()
    assert shown.err == "interrupted: run the same command again, it resumes from what is complete\n"
    assert shown.out == ""


def test_there_is_help_for_the_whole_and_every_command(capsys: Capture) -> None:
    assert run_cli("--help") == 0
    overview = capsys.readouterr().out
    names = [name for name, _ in commands()]
    assert {"oof", "stack", "import-oof", "tune", "report", "runs", "compare", "clean", "demo-data"} <= set(names)
    for name in names:
        assert name in overview
        assert run_cli(name, "--help") == 0
        assert f"dermstack {name}" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "command"), commands(), ids=[name for name, _ in commands()])
def test_every_command_option_and_argument_is_explained(name: str, command: Any) -> None:
    assert command.help, f"{name} has no docstring"
    for parameter in command.params:
        assert parameter.name == "help" or parameter.help, f"{name}: {parameter.name} has no help text"


def test_clean_asks_first(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_experiment(tmp_path)
    kept = tmp_path / "runs" / "elsewhere" / "old" / "net-1" / "run.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")
    asked = []

    def say_no(question: str) -> bool:
        asked.append(question)
        return False

    monkeypatch.setattr("typer.confirm", say_no)
    assert run_cli("clean", "-c", str(config)) == 0
    assert str(kept.parent) in capsys.readouterr().out
    assert len(asked) == 1
    assert kept.exists()


def test_where_nothing_was_made_runs_says_how_to_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)  # after `make demo` there are experiments in the working folder
    assert run_cli("runs", "--folder", str(tmp_path / "runs")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "holds no experiment yet: `dermstack oof" in said
    assert "the folder that the config's `runs` names, and --folder names another folder here" in said
    assert "there are experiments" not in said


@pytest.mark.parametrize("place", ["mine/runs", "data/mine/runs", "mine", "."])
def test_runs_and_compare_name_a_folder_nearby_that_holds_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, place: str
) -> None:
    folder = tmp_path / place / "demo"
    folder.mkdir(parents=True)
    for name in ("table.parquet", "fingerprints.json"):
        (folder / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert run_cli("runs") == 0
    assert f"there are experiments in {place};" in " ".join(capsys.readouterr().out.split())
    assert run_cli("compare") == 2
    assert f"there are experiments in {place}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_without_the_image_extra_oof_says_what_to_install(config_path: Path) -> None:
    code = (
        WITHOUT_IMAGE_EXTRA
        + """
from dermstack.cli.main import main
main()
"""
    )
    command = [sys.executable, "-c", code, "oof", "-c", str(config_path), "-q"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    assert made.returncode == 2
    assert "is not installed: pip install 'dermstack[image]'" in made.stderr
    assert "Traceback" not in made.stderr


@pytest.mark.parametrize(
    ("number", "said"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only")],
)
def test_a_disk_in_the_way_is_one_message_that_names_the_file(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int, said: str
) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "/somewhere/table.parquet")

    monkeypatch.setattr("stack.experiment.write_frame", write)
    monkeypatch.setattr("dermstack.pipeline.level1_runs", lambda experiment: [])
    assert run_cli("stack", "-c", str(config_path), "-q") == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: /somewhere/table.parquet: ")
    assert said in shown
    assert "run the same command again" in shown


@pytest.mark.parametrize(
    ("number", "status", "said"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_ends_what_is_begun_and_says_how_to_go_on(
    config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: int, status: int, said: str
) -> None:
    ended = []
    # A shell starts what it puts into the background with SIGINT ignored.
    at_first = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work(experiment: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            ended.append("as it should be")

    monkeypatch.setattr("dermstack.pipeline.level1_runs", work)
    before = signal.getsignal(signal.SIGTERM)
    assert run_cli("stack", "-c", str(config_path), "-q") == status
    assert ended
    assert capsys.readouterr().err.strip().startswith(f"{said}: run the same command again")
    assert signal.getsignal(signal.SIGTERM) == before
    with locked(config_path.parent / "runs" / "small"):
        pass  # the lock is free
    signal.signal(signal.SIGINT, at_first)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [("SIGKILL(-9)", "was killed, perhaps because memory ran out"), ("SIGSEGV(-11)", "crashed in compiled code")],
)
def test_a_killed_worker_is_no_traceback(
    codes: str, expected: str, config_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def work(experiment: object) -> None:
        raise TerminatedWorkerError(f"The exit codes of the workers are {{{codes}}}")

    monkeypatch.setattr("dermstack.pipeline.level1_runs", work)
    assert run_cli("stack", "-c", str(config_path), "-q") == 2
    assert f"a worker process {expected}" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "dermstack", "runs", "--folder", str(tmp_path)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the standard output: the disk is full")


def test_without_docstrings_one_message_says_why_nothing_runs() -> None:
    """LightGBM and torch read docstrings when they are imported, so `python -OO` ended in a traceback of theirs."""
    done = subprocess.run(
        [sys.executable, "-OO", "-m", "dermstack", "--version"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: python -OO removes docstrings that libraries need: unset PYTHONOPTIMIZE, or use -O\n"


def test_a_name_that_is_not_utf_8_is_one_message(capsys: Capture) -> None:
    """A folder of an old archive may be named in Latin-1; pyarrow refused it with a traceback."""
    with pytest.raises(SystemExit) as ended:
        run_app(lambda: pyarrow.OSFile(os.fsdecode(b"caf\xe9.parquet")))
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: 'caf\\udce9.parquet': the name holds bytes that are not UTF-8: re"
    )


def test_ctrl_c_after_a_finished_command_shows_no_traceback() -> None:
    """Python's own end waits for idle workers, and used to be interrupted there."""
    code = (
        "import os, signal, sys\nfrom dermstack.cli import main\nsys.argv = ['dermstack', 'runs', '--help']\n"
        "try: main.main()\nexcept SystemExit as ended: status = ended.code\n"
        "os.kill(os.getpid(), signal.SIGINT)\nsys.exit(status)"
    )
    signal_of_a_terminal = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    made = subprocess.run(
        [sys.executable, "-c", signal_of_a_terminal + code], capture_output=True, text=True, check=False
    )
    assert (made.returncode, made.stderr) == (0, "")

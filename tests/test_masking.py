"""No password or token leaves the process: in messages, hints, logs, tracebacks or the files of a report."""

from __future__ import annotations

import doctest
import logging
import pickle
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import patch

import pytest
from conftest import run_cli
from hypothesis import given
from hypothesis import strategies as st
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment

from dermstack import masking
from dermstack.errors import ConfigError, ImageError
from dermstack.masking import MaskedStream, mask_secrets, masked_streams
from stack.settings.config import read_config

SECRET = "Sup3rSecret"
PLACES = [
    f"postgresql://me:{SECRET}@host/db",
    f"postgresql+pg8000://me:p@ss/{SECRET}@host:5432/db",
    f"--set=storage=mysql://:{SECRET}@host/db",
    f"postgresql://host/db?user=me&password={SECRET}",
    f"postgresql://host/db?sslpassword={SECRET}&timeout=3",
    f"ray://me:{SECRET}@10.0.0.1:10001",
    f"host=localhost password={SECRET} dbname=x",
    f"{{'user': 'me', 'password': '{SECRET}'}}",
    f"connect(password='{SECRET}', host='x')",
    f'"passwd": "{SECRET}"',
    f"PGPASSWORD={SECRET} psql",
    f"https://x/?api_key={SECRET}&access_token={SECRET}",
    f"HF_TOKEN={SECRET}",
]


@pytest.mark.parametrize("text", PLACES)
def test_a_secret_is_masked_wherever_it_stands(text: str) -> None:
    assert SECRET not in mask_secrets(f"cannot open {text} (refused)")
    assert mask_secrets(mask_secrets(text)) == mask_secrets(text)


@given(st.text(alphabet=st.characters(blacklist_characters="\"'", blacklist_categories=("Z", "C")), min_size=1))
def test_whatever_the_password_of_a_url_holds_it_is_masked(password: str) -> None:
    marked = f"<{password}>"
    assert marked not in mask_secrets(f"error: postgresql://me:{marked}@host/db: refused")


@pytest.mark.parametrize("part", ["a", "a://:", "a://b", "://", "-", "a-", "password", "password ", "api_", "x='", "@"])
def test_a_long_message_is_masked_in_time_that_grows_with_its_length(part: str) -> None:
    def seconds(length: int) -> float:
        text = f"a@b {part * (length // len(part))} postgresql://me:{SECRET}@host/db"
        found = []
        for _ in range(3):
            start = time.process_time()
            assert SECRET not in mask_secrets(text)
            found.append(time.process_time() - start)
        return min(found)

    ratio = seconds(24_000) / max(seconds(3_000), 1e-5)
    assert ratio < 30, (
        "eight times the length takes about eight times the time, 64 times if begun anew at each character"
    )


@pytest.mark.parametrize(
    "text",
    [
        "https://sqlalche.me/e/21/rvf5", "postgresql://me@host:5432/db", "sqlite:////tmp/a.db", "http://[::1]:80/?fold=3",
        "open http://127.0.0.1:8000/", "12 positive, 0.97%", "features.tokens: unknown key", "a@b: c",
    ],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert mask_secrets(text) == text


def test_every_error_of_ours_masks_its_text() -> None:
    for kind in (ConfigError, ImageError):
        error = kind(f"cannot open {PLACES[0]}")
        assert SECRET not in str(error) + repr(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # as it comes from a worker


def test_prints_logs_and_warnings_are_masked_on_both_streams(capsys: pytest.CaptureFixture[str]) -> None:
    with masked_streams():
        handler = logging.StreamHandler()
        logger = logging.getLogger("test-masking")
        logger.addHandler(handler)
        print(f"out {PLACES[0]}")
        sys.stdout.writelines([f"lines {PLACES[3]}\n"])
        logger.warning("log %s", PLACES[3])
        print(f"err {PLACES[0]}", file=sys.stderr)
        assert not hasattr(sys.stdout, "buffer"), "a way past the mask"
        logger.removeHandler(handler)
    assert not isinstance(sys.stdout, MaskedStream)
    shown = capsys.readouterr()
    assert [line.split()[0] for line in (shown.out + shown.err).splitlines()] == ["out", "lines", "log", "err"]
    assert SECRET not in shown.out + shown.err


def test_an_uncaught_exception_is_printed_without_the_secret(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom dermstack.cli import main\n"
        "def app():\n    raise RuntimeError(sys.argv[1])\n"
        "main.app = app\nmain.main()\n"
    )
    made = subprocess.run([sys.executable, "-c", program, PLACES[0]], capture_output=True, text=True, check=False)
    assert made.returncode == 1
    assert "RuntimeError: postgresql://me:***@host/db" in made.stderr
    assert "Traceback" in made.stderr
    assert SECRET not in made.stderr + made.stdout


def _say() -> None:
    print(f"worker {PLACES[0]}", file=sys.stderr, flush=True)
    raise RuntimeError(PLACES[3])


@pytest.mark.slow
def test_a_worker_masks_what_it_prints(capfd: pytest.CaptureFixture[str]) -> None:
    import multiprocessing

    from image_models.processes import exit_with_parent

    process = multiprocessing.get_context("spawn").Process(target=exit_with_parent(_say))
    process.start()
    process.join()
    said = capfd.readouterr().err
    assert "worker postgresql://me:***@host/db" in said
    assert "RuntimeError" in said
    assert SECRET not in said


def test_the_config_shows_no_secret(tmp_path: Path) -> None:
    config = read_config(write_experiment(tmp_path, storage=PLACES[0]))
    assert SECRET not in repr(config) + str(config.model_dump(mode="json"))
    assert config.storage is not None
    assert config.storage.get_secret_value() == PLACES[0]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        (f"postgresql://me:{SECRET}@host:port/db", r"the port of postgresql://me:\*\*\*@host:port/db is no number"),
        (f"postgresql://me:{SECRET}@host:99999/db", r"storage: its port 99999 is not between 1 and 65535"),
        (f"me {SECRET}", r"storage: it is not the URL of a database"),
        ("", r"storage: it is not the URL of a database"),
    ],
)
def test_a_storage_that_is_no_url_is_named(
    storage: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(config, (f"storage='{storage}'",))
    assert SECRET not in str(caught.value)
    assert "sqlite:///studies.db" in command_error(
        capsys, "tune", "gbdt", "-c", str(config), "--set", f"storage='{storage}'"
    )


def test_hints_repeat_settings_without_their_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path)
    given = ("seed=3", f"storage={PLACES[0]}")
    said = command_error(capsys, "stack", "-c", str(config), "--set", given[0], "--set", given[1])
    assert "--set=seed=3" in said
    assert "postgresql://me:***@host/db" in said
    assert SECRET not in said


@pytest.mark.slow
def test_a_database_that_is_down_stops_no_stack_and_its_password_reaches_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path, storage=f"postgresql+pg8000://me:{SECRET}@127.0.0.1:1/db")
    experiment = opened_experiment(config)
    for seed, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "-c", str(config)) == 0
    shown = capsys.readouterr()
    assert "the report lacks its section on studies: storage: postgresql+pg8000://me:***@127.0.0.1:1/db" in shown.out
    assert SECRET not in shown.out + shown.err
    assert (experiment.folder / "report.html").is_file()
    for path in experiment.folder.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    for more in ("", f"?sslpassword={SECRET}"):  # the driver has no such option
        url = f"postgresql+pg8000://me:{SECRET}@127.0.0.1:1/db{more}"
        said = command_error(capsys, "tune", "blend", "-c", str(config), "--trials", "2", "--set", f"storage={url}")
        assert "cannot be opened" in said
        assert SECRET not in said


def test_a_drivers_error_is_masked_whatever_it_repeats(tmp_path: Path) -> None:
    from sqlalchemy.exc import SQLAlchemyError

    from stack.tune.studies import open_study

    experiment = opened_experiment(write_experiment(tmp_path, storage=f"postgresql://me:{SECRET}@host/db"))
    with (
        patch("stack.tune.studies._check_answers"),
        patch("stack.tune.studies.RDBStorage", side_effect=SQLAlchemyError(f"login as me/{SECRET} failed")),
        pytest.raises(ConfigError, match=r"login as me/\*\*\* failed") as caught,
    ):
        open_study(experiment, "x", {})
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(masking).attempted > 0
    assert doctest.testmod(masking).failed == 0

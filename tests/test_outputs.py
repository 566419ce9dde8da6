"""A file that a user names is written as a whole, and nothing else that has its name is replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from conftest import run_cli

from dermstack.errors import ConfigError
from stack.outputs import check_output, check_output_folder, output_file


def written(path: Path, text: str = "new") -> None:
    check_output(path, "--out")
    with output_file(path) as temporary:
        temporary.write_text(text)


def test_a_new_name_and_a_file_get_the_content(tmp_path: Path) -> None:
    for _ in range(2):
        written(tmp_path / "deep" / "p.csv")
        assert (tmp_path / "deep" / "p.csv").read_text() == "new"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["p.csv"]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    target, link, second = tmp_path / "disk" / "real.csv", tmp_path / "p.csv", tmp_path / "q.csv"
    target.parent.mkdir()
    if exists:
        target.write_text("old")
    link.symlink_to(target)
    second.symlink_to("p.csv")
    written(second)
    assert second.is_symlink()
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert not target.is_symlink()


def test_a_pipe_is_written_to_and_stays(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    written(pipe, "to a reader")
    reader.join(timeout=30)
    assert got == ["to a reader"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_and_stays() -> None:
    written(Path("/dev/null"))
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(OSError, match="No space left"):
        written(Path("/dev/full"))
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


@pytest.mark.parametrize("to_file", [True, False])
def test_stdout_gets_the_bytes_and_keeps_what_was_printed(tmp_path: Path, to_file: bool) -> None:
    code = (
        "from pathlib import Path; from stack.outputs import output_file\nprint('before', flush=True)\n"
        "with output_file(Path('/dev/stdout')) as part: part.write_text('rows\\n')\n"
    )
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    if to_file:
        with (tmp_path / "out").open("wb") as out:
            subprocess.run([sys.executable, "-c", code], stdout=out, check=True, env=environment)
        printed = (tmp_path / "out").read_text()
    else:
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True, env=environment)
        printed = made.stdout
    assert printed == "before\nrows\n"


def test_a_name_that_is_not_utf_8_is_refused_before_any_work(tmp_path: Path) -> None:
    """Parquet files beside the output could not be written there, which was found when all rows had been predicted."""
    name = tmp_path / os.fsdecode(b"out\xff.csv")
    for check in (check_output, check_output_folder):
        with pytest.raises(ConfigError, match=r"--out '.*udcff\.csv': the name holds bytes that are not UTF-8"):
            check(name, "--out")
    check_output(tmp_path / "größe.csv", "--out")


def test_what_cannot_be_a_file_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    for path, words in (
        (tmp_path, "is a folder: name a file"),
        (tmp_path / "file" / "p.csv", "file is a file: name a file in a folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_output(path, "--out")
    for path in (tmp_path / "file", tmp_path / "link"):
        with pytest.raises(ConfigError, match="also an input"):
            check_output(path, "--out", inputs=[None, tmp_path / "file"])
    (tmp_path / "bundle" / "deep").mkdir(parents=True)
    (tmp_path / "way").symlink_to("bundle")
    for place in (tmp_path / "bundle" / "p.csv", tmp_path / "way" / "deep" / "p.csv", tmp_path / "way"):
        with pytest.raises(ConfigError, match=r"lies in .*bundle, an input of this command: name a place outside"):
            check_output_folder(place, "--out", closed=[None, tmp_path / "bundle"])
    check_output(tmp_path / "bundle.csv", "--out", closed=[tmp_path / "bundle"])
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        check_output_folder(tmp_path / "file", "--out")
    assert (tmp_path / "file").read_text() == "mine"


def test_each_command_finds_a_wrong_output_before_it_reads_an_image(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere, csv = str(tmp_path / "no images"), small_data / "test.csv"
    bundle = ["--bundle", str(bundled_experiment / "bundle.zip"), "--images", nowhere]
    (tmp_path / "file").write_text("mine")
    content = csv.read_bytes()
    commands = [
        (["predict", *bundle, "--out", str(tmp_path)], "is a folder"),
        (["predict", *bundle, "--metadata", str(csv), "--out", str(csv)], "also an input"),
        (["predict", *bundle, "--out", str(tmp_path / "p"), "--submission", str(tmp_path)], "is a folder"),
        (["predict", *bundle, "--out", str(tmp_path / "p"), "--submission", str(tmp_path / "p")], "name two files"),
        (["predict", *bundle, "--out", str(tmp_path / "p"), "--work", str(tmp_path / "file")], "is a file"),
        (["import-dicom", nowhere, str(tmp_path)], "is a folder"),
        (["import-dicom", nowhere, str(tmp_path / "file")], "exists already"),
        (["import-tfrecord", nowhere, str(tmp_path)], "is a folder"),
        (["predict", *bundle, "--out", str(tmp_path / ("x" * 300))], "too long"),
    ]
    for command, words in commands:
        assert run_cli(*command) == 2, command
        assert words in capsys.readouterr().err, command
    assert csv.read_bytes() == content
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_no_command_replaces_what_it_reads(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle, its files, the images, the labels and the tables stay, whatever output they are named as."""
    files = {name: tmp_path / name for name in ("bundle.zip", "out/predictions.csv", "out/evaluation.html")}
    files["bundle.zip"].write_bytes((bundled_experiment / "bundle.zip").read_bytes())
    (tmp_path / "out").mkdir()
    table = pd.read_csv(small_data / "test.csv", dtype=str)
    for name in ("out/predictions.csv", "out/evaluation.html"):
        table.assign(target=[str(row % 2) for row in range(len(table))]).to_csv(files[name], index=False)
    with zipfile.ZipFile(files["bundle.zip"]) as archive:
        archive.extractall(tmp_path / "folder")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in table["image_name"].head(3):
        found = next((small_data / "images").rglob(f"{name}.*"))
        (pictures / found.name).write_bytes(found.read_bytes())
    picture = next(pictures.iterdir())
    contents = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    images = ["--images", str(small_data / "images")]
    labels = [str(path) for path in list(files.values())[1:]]
    zipped, opened = (["--bundle", str(tmp_path / name)] for name in ("bundle.zip", "folder"))
    for command, words in [
        (["predict", *zipped, *images, "--out", str(files["bundle.zip"])], "also an input"),
        (["predict", *zipped, *images, "--out", str(tmp_path / "p"), "--submission", zipped[1]], "also an input"),
        (["predict", *opened, *images, "--out", str(tmp_path / "folder" / "p.csv")], "lies in"),
        (["predict", *opened, *images, "--out", str(tmp_path / "folder" / "manifest.json")], "lies in"),
        (["predict", *opened, *images, "--out", str(tmp_path / "p"), "--work", str(tmp_path / "folder" / "w")], "lies"),
        (["predict", *zipped, "--images", str(pictures), "--out", str(picture)], "also an input"),
        (["evaluate", *zipped, *images, "--labels", labels[0], "--out", str(tmp_path / "out")], "also an input"),
        (["evaluate", *zipped, *images, "--labels", labels[1], "--out", str(tmp_path / "out")], "also an input"),
        (["evaluate", *opened, *images, "--labels", labels[1], "--out", str(tmp_path / "folder")], "lies in"),
        (["init", str(tmp_path / "out"), "--out", labels[0], "--replace"], "is no .yaml file"),
    ]:
        assert run_cli(*command) == 2, command
        assert words in capsys.readouterr().err, command
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == contents


def test_bundle_replaces_a_bundle_and_nothing_else(
    bundled_experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bundle", "-c", str(bundled_experiment / "small.yaml"), "--replace", "-q", "--out"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    (tmp_path / "letters.zip").write_text("no zip")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in ("thesis", "letters.zip", "pipe.zip"):
        assert run_cli(*command, str(tmp_path / name)) == 2
        assert "is not a bundle, so it is not replaced" in capsys.readouterr().err
    assert (tmp_path / "thesis" / "chapter").read_text() == "years of work"
    (tmp_path / "link.zip").symlink_to("real.zip")
    for _ in range(2):
        assert run_cli(*command, str(tmp_path / "link.zip")) == 0
        assert (tmp_path / "link.zip").is_symlink()
        assert (tmp_path / "real.zip").is_file()


def test_a_read_only_file_system_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_flag=os.ST_RDONLY))
    with pytest.raises(ConfigError, match=r"--out .*: the file system of .* is read-only: name another folder"):
        check_output(tmp_path / "p.csv", "--out")

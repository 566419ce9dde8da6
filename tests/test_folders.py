"""Files that are not an id's image by name: what an error says about them, and which setting accepts them."""

from __future__ import annotations

import os
import shutil
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli
from PIL import Image

from dermstack.errors import ImageError
from image_models.io.readers import FileNames, image_ids, image_sources, unused_files

SIMILAR, LINKS = FileNames(similar=True), FileNames(follow_links=True)


def folder_of(place: Path, *names: str) -> Path:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(place / name, format="PNG")
    return place


@pytest.mark.parametrize(
    ("row_id", "name", "words"),
    [
        ("IMG_1.jpg", "IMG_1.jpg", "the suffix inside the id only"),
        ("IMG_1.jpg", "IMG_1.png", "the suffix inside the id only"),
        ("IMG_1", "IMG_1.jpg.jpg", "the suffix inside the id only"),
        ("img_1", "IMG_1.jpg", "case only"),
        (unicodedata.normalize("NFC", "näv"), unicodedata.normalize("NFD", "näv") + ".jpg", "the Unicode form only"),
    ],
)
def test_a_name_that_differs_in_form_is_named_and_the_setting_accepts_it(
    tmp_path: Path, row_id: str, name: str, words: str
) -> None:
    place = folder_of(tmp_path / "images", "own.png", name)
    with pytest.raises(ImageError) as error:
        image_sources(place, ["own", row_id])
    assert f"{place / name} differs from the id {row_id} in {words}" in str(error.value)
    assert "set `data.similar_names: true`" in str(error.value)
    assert "restore" not in str(error.value)
    found = image_sources(place, ["own", row_id], files=SIMILAR)
    assert [source.path for source in found] == [place / "own.png", place / name]


def test_an_exact_name_comes_before_a_similar_one(tmp_path: Path) -> None:
    place = folder_of(tmp_path, "a.png", "A.png", "b.png")
    found = image_sources(place, ["a", "A", "B"], files=SIMILAR)
    assert [source.path.name for source in found] == ["a.png", "A.png", "b.png"]


@pytest.mark.parametrize(("names", "ids"), [(("a.png", "A.jpg"), ["a.jpg"]), (("a.png",), ["A", "a.png"])])
def test_what_two_names_or_two_ids_could_be_is_refused(tmp_path: Path, names: tuple[str, ...], ids: list[str]) -> None:
    with pytest.raises(ImageError, match="have more than one image"):
        image_sources(folder_of(tmp_path, *names), ids, files=SIMILAR)


def test_a_suffix_that_is_not_read_and_what_is_hidden_are_named(tmp_path: Path) -> None:
    place = folder_of(tmp_path, "a.heic", ".b.png", "c.jfif")
    with pytest.raises(ImageError, match=r"a\.heic has a suffix that is not read: rename or convert it"):
        image_sources(place, ["a", "c"])
    with pytest.raises(ImageError, match="restore the files"):
        image_sources(place, ["c", "nothing like it"])
    assert image_ids(place) == ["c"], "a jfif is a JPEG"


def test_linked_folders_are_named_and_entered_once_where_that_is_set(tmp_path: Path) -> None:
    folder_of(tmp_path / "elsewhere", "b.png", "deep/c.png")
    place = folder_of(tmp_path / "images", "a.png")
    (place / "disk").symlink_to(tmp_path / "elsewhere")
    (place / "again").symlink_to(tmp_path / "elsewhere")
    (place / "round").symlink_to(place)
    (tmp_path / "elsewhere" / "back").symlink_to(place)
    with pytest.raises(ImageError, match=r"b\.png lies in a linked folder.*set `data\.follow_links"):
        image_sources(place, ["a", "b", "c"])
    assert len(image_sources(place, ["a", "b", "c"], files=LINKS)) == 3
    assert image_ids(place, files=LINKS) == ["a", "b", "c"]
    assert image_ids(place) == ["a"]


def test_every_file_is_an_image_with_a_row_or_told_with_its_reason(tmp_path: Path) -> None:
    place = folder_of(tmp_path / "images", "a.png", "b.png", "c.heic", ".d.png", "deep/e.png", "._a.png")
    (place / "disk").symlink_to(tmp_path)
    (place / "gone.png").symlink_to(tmp_path / "gone.png")
    os.mkfifo(place / "pipe.png")
    told = {(skipped.path.name, skipped.reason) for skipped in unused_files(place, ["a", "e"])}
    assert told == {
        ("b.png", "no row in the csv"),
        ("c.heic", "suffix of no image"),
        (".d.png", "hidden"),
        ("disk", "linked folder"),
        ("gone.png", "broken link"),
        ("pipe.png", "no regular file"),
    }


def test_a_name_that_is_not_utf_8_is_refused_by_name_where_it_would_be_an_id(tmp_path: Path) -> None:
    folder_of(tmp_path, "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path / "a") + b"\xff.png")).write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(ImageError, match=r"a\\udcff\.png: its name is not UTF-8"):
        image_ids(tmp_path)
    assert len(image_sources(tmp_path, ["a"])) == 1, "no id can name it"


def test_predict_names_what_it_skips_and_strict_refuses_it(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = sorted((small_data / "images").iterdir())[:4]
    for name in ("new", "disk"):
        (tmp_path / name).mkdir()
    for picture, target in zip(pictures, ("new/a.png", "new/b.jfif", "disk/c.png", "new/d.heic"), strict=True):
        shutil.copy(picture, tmp_path / target)
    (tmp_path / "new" / "link").symlink_to(tmp_path / "disk")
    out = tmp_path / "p.csv"
    command = ["predict", "--bundle", str(bundled_experiment / "bundle.zip"), "--images", str(tmp_path / "new")]
    command += ["--out", str(out)]
    assert run_cli(*command, "--strict") == 2
    refused = capsys.readouterr().err
    assert not out.exists()
    assert run_cli(*command) == 0
    for told in (refused, capsys.readouterr().out):
        assert f"linked folder (--follow-links enters it): {tmp_path / 'new' / 'link'}" in told
        assert f"suffix of no image: {tmp_path / 'new' / 'd.heic'}" in told
    assert pd.read_csv(out)["id"].tolist() == ["a", "b"]
    (tmp_path / "new" / "d.heic").unlink()
    assert run_cli(*command, "--strict", "--follow-links") == 0
    assert pd.read_csv(out)["id"].tolist() == ["a", "b", "c"]

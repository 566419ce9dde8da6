"""Names that came from data, a bundle or a browser lead nowhere: no file outside the folder that was asked for."""

from __future__ import annotations

import io
import json
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fuzz_seeds_data import encoded
from fuzz_seeds_runs import manifest, zipped
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment

from dermstack.errors import BundleError, DataError, ImageError, StoreError
from dermstack.serve.bundle import read_bundle
from dermstack.serve.patient import Photo, _source
from dermstack.serve.predict import _start_job
from image_models.io.readers import image_ids, image_sources
from stack.tables.metadata import read_dicom_metadata
from stack.tables.table import read_table

OUTSIDE = [
    "../out",
    "../../out",
    "/tmp/out",
    "a/b",
    "a\\b",
    "..",
    ".",
    ".hidden",
    "a\x00b",
    "a\nb",
    "a\x1b[2Jb",
    " a",
    "a ",
]
FILES = {"blend/values.npy": b"values", "costs.json": b"[]"}


def tree(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*") if not path.is_dir()}


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_id_that_could_lead_somewhere_is_refused(name: str, tmp_path: Path) -> None:
    rows = pd.DataFrame({"i": ["a1", name], "g": ["p", "q"], "t": [0, 1]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError):
        read_table(tmp_path / "t.csv", None, columns={"id": "i", "group": "g", "target": "t"})


@pytest.mark.parametrize(
    "name", ["CON", "nul", "a:b", "ａ／ｂ", "a\u202eb", "a\u2028b", "é", "e\u0301", "=1+1", "-rf", "~", "$HOME"]
)
def test_an_odd_id_is_an_id_and_names_no_file(name: str, tmp_path: Path) -> None:
    """Pixels and predictions are found by an index, so that what another system can't write is no harm."""
    config = write_experiment(tmp_path, blend={"methods": ["mean"]})
    for part in ("train.csv", "test.csv", "sample.csv"):
        rows = pd.read_csv(tmp_path / part, dtype=str, keep_default_na=False)
        rows.loc[1, "isic"] = f"{part[:2]}{name}"
        rows.to_csv(tmp_path / part, index=False)
    if (tmp_path / "test.csv").exists():
        rows = pd.read_csv(tmp_path / "test.csv", dtype=str)
        rows[["isic"]].assign(malignant=0).to_csv(tmp_path / "sample.csv", index=False)
    before = tree(tmp_path)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    written = set(tree(tmp_path)) - set(before) - {"net-oof.csv", "net-test.csv"}
    assert written
    assert all(file.startswith("runs/elsewhere/") and name not in file for file in written)


@pytest.mark.parametrize("key", ["experiment", "runs of images", "stackers", "embeddings", "scales"])
@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/b", "..", "", "a\x1b[2Jb", "x" * 200])
def test_a_bundles_names_of_runs_are_no_paths(key: str, name: str, tmp_path: Path) -> None:
    """They become folders to read from."""
    content = json.loads(manifest(FILES))
    change: dict[str, Callable[[], Any]] = {
        "experiment": lambda: content.update(experiment=name),
        "runs of images": lambda: content["image_runs"][0].update(name=name),
        "stackers": lambda: content["stackers"][0].update(name=name),
        "embeddings": lambda: content.update(embeddings={name: "frozen"}),
        "scales": lambda: content.update(scales={name: {"0": [0.0, 1.0]}}),
    }
    change[key]()
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": json.dumps(content).encode(), **FILES}))
    with pytest.raises(BundleError, match="is invalid"):
        read_bundle(tmp_path / "b.zip")


@pytest.mark.parametrize(
    "name",
    ["../out", "/tmp/out", "a/../../out", "a\\..\\out", "C:/out", "C:out", "a//b", "", ".", "./a", "a/.", "a/", "NUL",
     "con.json", "x/aux.npy", "com1", "a.", "a ", ".a", "a\x00b", "a\nb", "a\u202eb", "a:b", "a*", "|a", "~/a/../../b"],
)  # fmt: skip
def test_a_name_in_a_manifest_that_leads_out_or_is_a_device_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {**FILES, name: b"out"}
    members = {"manifest.json": manifest(files), **FILES, name or "x": b"out"}
    (tmp_path / "b.zip").write_bytes(zipped(members))
    unpacked_in = tmp_path / "system" / "temporary"
    unpacked_in.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(unpacked_in))
    before = tree(tmp_path)
    with pytest.raises(BundleError, match="names a file outside the bundle"):
        read_bundle(tmp_path / "b.zip")
    assert tree(tmp_path) == before


def test_what_a_zip_holds_beside_its_manifest_is_not_unpacked(tmp_path: Path) -> None:
    extra = {"../out": b"x", "/tmp/out": b"x", "more/x.npy": b"x", "blend/../../../out": b"x"}
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": manifest(FILES), **FILES, **extra}))
    bundle = read_bundle(tmp_path / "b.zip")
    assert set(tree(bundle.folder)) == {"manifest.json", *FILES}
    assert set(tree(tmp_path)) == {"b.zip"}


def test_a_link_in_a_zip_is_no_link_when_it_is_unpacked(tmp_path: Path) -> None:
    target = b"/etc/passwd"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.json", manifest({"costs.json": target}))
        link = zipfile.ZipInfo("costs.json")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, target)
    (tmp_path / "b.zip").write_bytes(buffer.getvalue())
    bundle = read_bundle(tmp_path / "b.zip")
    unpacked = bundle.folder / "costs.json"
    assert not unpacked.is_symlink()
    assert unpacked.read_bytes() == target


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_a_file_that_is_a_folder_too_is_refused(names: tuple[str, str], tmp_path: Path) -> None:
    files = dict.fromkeys(names, b"x")
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": manifest(files), **files}))
    with pytest.raises(BundleError, match="cannot be read as a zip"):
        read_bundle(tmp_path / "b.zip")


def test_names_that_differ_in_case_alone_are_both_read_or_refused(tmp_path: Path) -> None:
    """Where they are one file, writing the second fails instead of taking the place of the first."""
    files = {"a.npy": b"small", "A.npy": b"large"}
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": manifest(files), **files}))
    try:
        bundle = read_bundle(tmp_path / "b.zip")
    except BundleError:
        return
    assert {name: (bundle.folder / name).read_bytes() for name in files} == files


def test_of_a_bundle_that_would_fill_the_disk_nothing_is_written(tmp_path: Path) -> None:
    bomb = bytes(1 << 26)
    said = manifest({"a.npy": bomb})
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": said, "a.npy": bomb}, zipfile.ZIP_DEFLATED))
    with pytest.raises(BundleError, match="as in a zip bomb"):
        read_bundle(tmp_path / "b.zip")
    huge = json.loads(said)
    huge["files"]["a.npy"]["bytes"] = 1 << 60
    (tmp_path / "b.zip").write_bytes(zipped({"manifest.json": json.dumps(huge).encode(), "a.npy": b""}))
    with pytest.raises(BundleError, match="as in a zip bomb"):
        read_bundle(tmp_path / "b.zip")


def folder_of(place: Path) -> Path:
    for name, content in {"manifest.json": manifest(FILES), **FILES}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


def test_links_and_strangers_in_a_bundles_folder_are_refused(tmp_path: Path) -> None:
    bundle, other = folder_of(tmp_path / "b"), folder_of(tmp_path / "other")
    (tmp_path / "link").symlink_to(bundle)
    (bundle / ".DS_Store").touch()
    assert read_bundle(bundle).fingerprint == read_bundle(tmp_path / "link").fingerprint, "a link to the whole is fine"
    (bundle / "model_1.txt").write_text("one that was not hashed")
    with pytest.raises(BundleError, match=r"files are not in its manifest\.json, such as .*model_1\.txt"):
        read_bundle(bundle)
    (bundle / "model_1.txt").unlink()
    (bundle / "blend" / "values.npy").unlink()
    (bundle / "blend").rmdir()
    (bundle / "blend").symlink_to(other / "blend")
    with pytest.raises(BundleError, match=r"blend/values\.npy is missing"):
        read_bundle(bundle)
    (bundle / "blend").unlink()
    (other / "manifest.json").rename(tmp_path / "m.json")
    (other / "manifest.json").symlink_to(tmp_path / "m.json")
    with pytest.raises(BundleError, match=r"holds no manifest\.json"):
        read_bundle(other)


@pytest.mark.parametrize("name", ["../../out.dcm", "/tmp/out.png", "a\x00.png", "con.dcm", "x" * 5_000, ""])
def test_an_upload_lies_under_a_name_of_ours(name: str, tmp_path: Path) -> None:
    source = _source(tmp_path, 3, Photo(name, b"content"), bits_stored=0)
    assert source.path == tmp_path / "3"
    assert set(tree(tmp_path)) == {"3"}


def test_a_folder_for_parts_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    """It would be removed at the end."""
    (tmp_path / "p.csv.parts").mkdir()
    (tmp_path / "p.csv.parts" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"holds thesis\.tex: move it away"):
        _start_job(tmp_path / "p.csv.parts", "job")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="holds a link"):
        _start_job(tmp_path / "link", "job")


def test_links_among_pictures_lead_into_no_other_folder_and_no_circle(tmp_path: Path) -> None:
    place, other = tmp_path / "images", tmp_path / "other"
    for folder in (place, other):
        folder.mkdir()
    (other / "secret.png").write_bytes(encoded("PNG"))
    (other / "linked.png").write_bytes(encoded("PNG"))
    (place / "own.png").write_bytes(encoded("PNG"))
    (place / "out").symlink_to(other)
    (place / "round").symlink_to(place)
    (place / "linked.png").symlink_to(other / "linked.png")  # one picture that lies elsewhere is fine
    (place / "nowhere.png").symlink_to(tmp_path / "nowhere.png")
    (place / "text.png").symlink_to("/etc/passwd")
    os.mkfifo(place / "pipe.dcm")  # nobody writes to it: whoever opens it waits
    assert image_ids(place) == ["linked", "own", "text"]
    with pytest.raises(ImageError, match="not an image") as error:
        image_sources(place, ["text"])[0].read(min_side=8)
    assert "/bin/" not in str(error.value), "what it holds is not told"
    with pytest.raises(DataError, match=r"holds no \.dcm"):
        read_dicom_metadata(place)


@pytest.mark.parametrize("name", ["../out", "a/b", "..", ".hidden", "a b", "-rf", "a\x1b[2J"])
def test_names_in_a_config_are_no_paths(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ({"experiment": name}, {"stackers": [{"name": name, "kind": "logistic"}]}):
        config = write_experiment(tmp_path, **change)
        before = tree(tmp_path)
        assert "a name has 1 to 64 letters (a to z), digits" in command_error(capsys, "stack", "-c", str(config))
        assert tree(tmp_path) == before

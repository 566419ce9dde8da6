"""What the pictures decide about the rows: unreadable ones leave, the same picture twice is one split_group."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pydicom
import pytest
import yaml
from conftest import run_cli, small_config
from imported_experiment import command_error, unexpected_files
from PIL import Image, ImageOps
from tfrecord.writer import TFRecordWriter

STILL = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def world(small_data: Path, tmp_path: Path) -> Path:
    """A copy of the small data set whose pictures a test may change, in ``data/``."""
    shutil.copytree(small_data, tmp_path / "data")
    return tmp_path


def config(world: Path, **data: object) -> Path:
    """One frozen model over the world, with these settings under `data`."""
    path = small_config(world / "data", world, image_models=[STILL], stackers=[])
    settings = yaml.safe_load(path.read_text())
    settings["data"].update(data)
    path.write_text(yaml.safe_dump(settings))
    return path


def rows(world: Path, name: str = "train") -> pd.DataFrame:
    return pd.read_csv(world / "data" / f"{name}.csv", dtype=str)


def picture(world: Path, row_id: str) -> Path:
    return next((world / "data" / "images").glob(f"{row_id}.*"))


def made(world: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(world / "runs" / "small" / name)


def strangers(world: Path) -> tuple[str, str]:
    """Two training images of different patients."""
    train = rows(world)
    first = train.iloc[0]
    other = train[train["patient_id"] != first["patient_id"]].iloc[0]
    return first["image_name"], other["image_name"]


def show_the_same(world: Path, a: str, b: str) -> None:
    """Image b becomes image a, mirrored and encoded anew."""
    with Image.open(picture(world, a)) as image:
        ImageOps.mirror(image.convert("RGB")).save(picture(world, b), quality=90)


def external(world: Path, n: int = 40) -> dict[str, Any]:
    """Settings of an external table of ``n`` generated rows with pictures of their own, without groups."""
    from dermstack.cli.demo_data import write_demo_data

    folder = world / "more"
    write_demo_data(folder, n_train=n, n_test=10, size=32, seed=7)
    table = pd.read_csv(folder / "train.csv", dtype=str)
    for row_id in table["image_name"]:
        path = next((folder / "images").glob(f"{row_id}.*"))
        path.rename(path.with_stem(f"EXT_{row_id}"))
    table.assign(image_name="EXT_" + table["image_name"]).to_csv(folder / "train.csv", index=False)
    columns = {"id": "image_name", "target": "target"}
    return {
        "name": "more",
        "table": str(folder / "train.csv"),
        "images": str(folder / "images"),
        "columns": columns,
    }


def test_pictures_of_different_patients_have_no_near_duplicates(world: Path) -> None:
    assert run_cli("oof", "-c", str(config(world)), "-q") == 0
    folds = made(world, "folds.parquet")
    assert (folds["split_group"] == folds["group"]).all()
    assert len(pd.read_csv(world / "runs" / "small" / "near_duplicates.csv")) == 0


def test_the_same_picture_twice_sits_in_one_fold_while_the_patients_stay(world: Path) -> None:
    a, b = strangers(world)
    show_the_same(world, a, b)
    path = config(world)
    assert run_cli("oof", "-c", str(path), "-q") == 0
    folds = made(world, "folds.parquet").set_index("id")
    assert folds.loc[a, "split_group"] == folds.loc[b, "split_group"]
    assert folds.loc[a, "fold"] == folds.loc[b, "fold"]
    assert folds.loc[a, "group"] != folds.loc[b, "group"], "aggregates keep the patient"
    pairs = pd.read_csv(world / "runs" / "small" / "near_duplicates.csv", dtype=str)
    assert {tuple(sorted(pair)) for pair in pairs[["id_1", "id_2"]].to_numpy()} == {tuple(sorted((a, b)))}


def test_what_was_decided_stays_for_the_steps_that_see_no_picture(world: Path, capsys: Capture) -> None:
    show_the_same(world, *strangers(world))
    path = config(world)
    assert run_cli("oof", "-c", str(path), "-q") == 0
    before = made(world, "folds.parquet")
    shutil.rmtree(world / "data" / "images")
    shutil.rmtree(world / "cache")
    assert run_cli("stack", "-c", str(path), "-q") == 0, capsys.readouterr().err
    assert made(world, "folds.parquet").equals(before)


def test_near_duplicates_can_be_left_alone(world: Path) -> None:
    show_the_same(world, *strangers(world))
    assert run_cli("oof", "-c", str(config(world, find_duplicates=False)), "-q") == 0
    folds = made(world, "folds.parquet")
    assert (folds["split_group"] == folds["group"]).all()


def test_looking_for_them_after_all_is_noticed(world: Path, capsys: Capture) -> None:
    """Else the runs beside would have been made on other folds."""
    show_the_same(world, *strangers(world))
    assert run_cli("oof", "-c", str(config(world, find_duplicates=False)), "-q") == 0
    assert "was made with other rows or folds" in command_error(capsys, "oof", "-c", str(config(world)))


def chained(world: Path) -> list[str]:
    """Images of three patients that look alike: a chain of three groups."""
    train = rows(world)
    ids = [str(row_id) for row_id in train.drop_duplicates("patient_id")["image_name"].iloc[:3]]
    for row_id in ids[1:]:
        show_the_same(world, ids[0], row_id)
    return ids


def test_a_merge_of_more_than_two_patients_stops_with_a_question(world: Path, capsys: Capture) -> None:
    ids = chained(world)
    train = rows(world).set_index("image_name")["patient_id"]
    message = command_error(capsys, "oof", "-c", str(config(world)), "-q")
    assert "would join more than two groups into one" in message
    for row_id in ids:
        assert repr(train[row_id]) in message
    for setting in ("data.on_chain: merge", "data.on_chain: ignore", "data.find_duplicates: false"):
        assert setting in message
    assert unexpected_files(world) == []


@pytest.mark.parametrize(("on_chain", "merged"), [("merge", True), ("ignore", False)])
def test_the_answer_decides_what_is_merged(world: Path, on_chain: str, merged: bool) -> None:
    ids = chained(world)
    assert run_cli("oof", "-c", str(config(world, on_chain=on_chain)), "-q") == 0
    folds = made(world, "folds.parquet").set_index("id").loc[ids]
    assert folds["split_group"].nunique() == (1 if merged else 3)
    assert folds["group"].nunique() == 3


def test_the_audit_shows_what_has_to_be_decided_as_images(world: Path, capsys: Capture) -> None:
    ids = chained(world)
    assert run_cli("audit", "-c", str(config(world))) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "images that look alike would join more than two groups" in shown
    page = (world / "runs" / "small" / "audit_pairs.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 6, "three pairs, two images each"
    assert page.count("Would join more than two groups") == 3
    assert all(f'alt="{row_id}"' in page for row_id in ids)
    assert "data.on_chain: merge" in page
    message = command_error(capsys, "oof", "-c", str(config(world)), "-q")
    assert "would join more than two groups" in message, "the audit decides nothing"


def test_two_patients_are_merged_without_a_question(world: Path, capsys: Capture) -> None:
    show_the_same(world, *strangers(world))
    assert run_cli("oof", "-c", str(config(world))) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 pairs of images look alike" in shown
    assert "`data.find_duplicates: false` switches the search off" in shown


def test_an_unreadable_training_image_leaves_the_table_on_the_record(world: Path) -> None:
    lost = rows(world)["image_name"].iloc[5]
    picture(world, lost).write_bytes(b"no image")
    assert run_cli("oof", "-c", str(config(world, on_unreadable="drop")), "-q") == 0
    dropped = pd.read_csv(world / "runs" / "small" / "dropped.csv", dtype=str)
    assert dropped[["id", "source"]].to_numpy().tolist() == [[lost, "train"]]
    assert lost not in set(made(world, "folds.parquet")["id"])
    assert len(pd.read_parquet(world / "runs" / "small" / "models" / "still" / "oof.parquet")) == 239


def test_an_unreadable_test_image_is_never_dropped(world: Path, capsys: Capture) -> None:
    lost = rows(world, "test")["image_name"].iloc[5]
    picture(world, lost).write_bytes(b"no image")
    message = command_error(capsys, "oof", "-c", str(config(world, on_unreadable="drop")))
    assert f"1 test images cannot be read, first: {lost}" in message
    assert unexpected_files(world) == []


def test_external_rows_train_every_fold_and_reach_nothing_else(world: Path) -> None:
    plain = config(world)
    assert run_cli("oof", "-c", str(plain), "-q") == 0
    alone = pd.read_parquet(world / "runs" / "small" / "models" / "still" / "oof.parquet")
    with_more = config(world, external=[external(world)])
    assert run_cli("oof", "-c", str(with_more), "--set", "experiment=more", "-q") == 0
    folder = world / "runs" / "more"
    together = pd.read_parquet(folder / "models" / "still" / "oof.parquet")
    assert together["id"].tolist() == alone["id"].tolist(), "external rows are not scored"
    assert together["fold"].tolist() == alone["fold"].tolist(), "nor do they move a fold"
    changed = (together["logit"] != alone["logit"]).groupby(together["fold"]).mean()
    assert (changed > 0.9).all(), "each fold's net has learned from them"
    for name in ("table.parquet", "folds.parquet"):
        assert not pd.read_parquet(folder / name)["id"].str.startswith("EXT_").any()


def test_a_change_of_the_external_rows_is_noticed(world: Path, capsys: Capture) -> None:
    more = external(world)
    path = config(world, external=[more])
    assert run_cli("oof", "-c", str(path), "-q") == 0
    table = pd.read_csv(more["table"], dtype=str)
    table.assign(target=np.where(table.index == 0, "1", table["target"])).iloc[:-3].to_csv(more["table"], index=False)
    assert "was made with other" in command_error(capsys, "oof", "-c", str(path))


@pytest.mark.parametrize("part", ["train", "test"])
def test_an_external_copy_of_a_scored_picture_is_refused_or_dropped(world: Path, capsys: Capture, part: str) -> None:
    more = external(world)
    copy = pd.read_csv(more["table"], dtype=str)["image_name"].iloc[3]
    with Image.open(picture(world, rows(world, part)["image_name"].iloc[0])) as image:
        file = next(Path(more["images"]).glob(f"{copy}.*"))
        image.convert("RGB").resize((60, 60)).save(file)
    message = command_error(capsys, "oof", "-c", str(config(world, external=[more])))
    assert copy in message
    assert "on_collision: drop" in message
    assert unexpected_files(world) == []
    assert run_cli("oof", "-c", str(config(world, external=[more | {"on_collision": "drop"}])), "-q") == 0
    dropped = pd.read_csv(world / "runs" / "small" / "dropped.csv", dtype=str)
    assert dropped[["id", "source"]].to_numpy().tolist() == [[copy, "more"]]


def in_hdf5(world: Path, files: list[Path]) -> Path:
    with h5py.File(world / "all.hdf5", "w") as file:
        for path in files:
            file[path.stem] = np.void(path.read_bytes())
    return world / "all.hdf5"


def in_shards(world: Path, files: list[Path]) -> Path:
    (world / "shards").mkdir()
    for number in range(2):
        writer = TFRecordWriter(str(world / "shards" / f"part{number}.tfrec"))
        for path in files[number::2]:
            writer.write({"image": (path.read_bytes(), "byte"), "image_name": (path.stem.encode(), "byte")})
        writer.close()
    return world / "shards"


def in_dicom(world: Path, files: list[Path]) -> Path:
    for path in files:
        data = path.read_bytes()
        with Image.open(path) as image:
            width, height = image.size
        tags = pydicom.Dataset()
        tags.file_meta = pydicom.dataset.FileMetaDataset()
        tags.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
        tags.file_meta.MediaStorageSOPClassUID = pydicom.uid.VLPhotographicImageStorage
        tags.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        tags.Rows, tags.Columns, tags.SamplesPerPixel, tags.PlanarConfiguration = height, width, 3, 0
        tags.BitsAllocated, tags.BitsStored, tags.HighBit, tags.PixelRepresentation = 8, 8, 7, 0
        tags.PhotometricInterpretation, tags.PixelData = "YBR_FULL_422", pydicom.encaps.encapsulate([data])
        (world / "dicom" / path.stem[-1]).mkdir(parents=True, exist_ok=True)
        tags.save_as(world / "dicom" / path.stem[-1] / f"{path.stem}.dcm", enforce_file_format=True)
    return world / "dicom"


@pytest.mark.slow
def test_the_same_pictures_make_the_same_run_wherever_they_lie(world: Path) -> None:
    """Named by a path in the config, nothing else said."""
    files = sorted((world / "data" / "images").iterdir())
    for number, path in enumerate(files):
        if path.suffix != ".jpg":
            with Image.open(path) as image:
                image.convert("RGB").save(path.with_suffix(".jpg"), quality=95)
            path.unlink()
            files[number] = path.with_suffix(".jpg")
    places = [world / "data" / "images", in_hdf5(world, files), in_shards(world, files), in_dicom(world, files)]
    made = []
    for number, place in enumerate(places):
        settings = ["--set", f"experiment=place{number}", "--set", f"cache={world / f'cache{number}'}"]
        assert run_cli("oof", "-c", str(config(world, images=str(place))), *settings, "-q") == 0
        made.append((world / "runs" / f"place{number}" / "models" / "still" / "oof.parquet").read_bytes())
    assert len(set(made)) == 1

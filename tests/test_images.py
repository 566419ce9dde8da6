"""What the pictures decide about the rows: unreadable ones leave, the same picture twice is one split_group."""

from __future__ import annotations

import os
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

from stack.console import Out
from stack.experiment import NO_CURATION, Curation, Experiment, open_experiment, write_curation, write_rows
from stack.images import existing_cache, with_images
from stack.settings.config import read_config
from stack.store import frame_fingerprint

QUIET = Out(quiet=True)

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


@pytest.mark.usefixtures("without_figures")
def test_what_was_decided_stays_for_the_steps_that_see_no_picture(world: Path, capsys: Capture) -> None:
    show_the_same(world, *strangers(world))
    path = config(world)
    assert run_cli("oof", "-c", str(path), "-q") == 0
    before = made(world, "folds.parquet")
    shutil.rmtree(world / "data" / "images")
    shutil.rmtree(world / "cache")
    assert run_cli("stack", "-c", str(path), "-q") == 0, capsys.readouterr().err
    assert made(world, "folds.parquet").equals(before)


def as_bmp(world: Path) -> None:
    """Every picture becomes a bmp of one size and time, whatever it shows."""
    for path in (world / "data" / "images").iterdir():
        Image.open(path).convert("RGB").save(path.with_suffix(".bmp"))
        os.utime(path.with_suffix(".bmp"), ns=(1, 1))
        path.unlink()


def looked_at(path: Path) -> Experiment:
    experiment = open_experiment(read_config(path), path, QUIET)
    experiment, _ = with_images(experiment, [32], QUIET)
    write_rows(experiment)
    return experiment


def test_other_pictures_of_the_same_size_and_time_are_looked_at_anew(world: Path) -> None:
    as_bmp(world)
    path, (a, b) = config(world), strangers(world)
    assert looked_at(path).curation.pairs.empty
    shutil.copy(picture(world, a), picture(world, b))
    os.utime(picture(world, b), ns=(1, 1))
    assert len(looked_at(path).curation.pairs) == 1


def test_what_an_earlier_version_decided_stays_while_sizes_are_the_same(world: Path) -> None:
    """It kept no contents; deciding again might move rows between folds and make trained nets stale."""
    as_bmp(world)
    path = config(world)
    experiment, caches = with_images(open_experiment(read_config(path), path, QUIET), [32], QUIET)
    ids = sorted([*experiment.as_read.train["id"], *experiment.as_read.test["id"]])
    columns = ["id", "source_height", "source_width", "source_bytes"]
    known = caches[32].index.iloc[caches[32].rows_for(ids)][columns].assign(find=True).reset_index(drop=True)
    decided = pd.DataFrame({"id_1": ids[:1], "id_2": ids[1:2], "turn": [0], "distance": [0.5]})
    write_curation(experiment.folder, Curation(NO_CURATION.dropped, decided, frame_fingerprint(known)))
    for _ in range(2):
        assert looked_at(path).curation.pairs[["id_1", "id_2"]].to_numpy().tolist() == [ids[:2]]
    picture(world, ids[0]).write_bytes(picture(world, ids[2]).read_bytes())
    assert len(looked_at(path).curation.pairs) == 1
    assert set(looked_at(path).curation.pairs.iloc[0][["id_1", "id_2"]]) == {ids[0], ids[2]}, "contents count by now"


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
    assert "1 pair of images that look alike" in shown
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


def deepen(world: Path, bits: int, n: int) -> None:
    """Writes n training pictures as 16-bit grey whose values take ``bits`` bits."""
    for row_id in rows(world)["image_name"].iloc[:n]:
        path = picture(world, row_id)
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L"), np.uint32)
        path.unlink()
        values = (grey * 257 >> (16 - bits)).astype(np.uint16)
        values[0, 0] = 2**bits - 1
        Image.fromarray(values).save(path.with_suffix(".png"))


def test_twelve_bits_in_sixteen_are_a_question_and_then_the_eight_bit_pictures(world: Path, capsys: Capture) -> None:
    deepen(world, 12, 30)
    message = command_error(capsys, "oof", "-c", str(config(world)))
    assert "set `data.bits_stored: 12`" in message
    assert "leaves 16 of 256 grey levels" in message
    assert unexpected_files(world) == []
    for bits, least in ((12, 100), (16, 0)):
        path = config(world, bits_stored=bits)
        assert run_cli("oof", "-c", str(path), "-q") == 0
        experiment = open_experiment(read_config(path), path, Out(quiet=True))
        cache = existing_cache(experiment, 32)
        darkest = cache.take(cache.rows_for(rows(world)["image_name"].iloc[:30])).max(axis=(1, 2, 3))
        assert (darkest > least).all()
        assert (darkest <= (255 if bits == 12 else 16)).all(), "the pixels of the other setting are not served"
        shutil.rmtree(world / "runs")


def test_one_image_of_all_sixteen_bits_answers_the_question(world: Path) -> None:
    deepen(world, 12, 10)
    values = np.full((40, 40), 65535, np.uint16)
    row_id = rows(world)["image_name"].iloc[20]
    picture(world, row_id).unlink()
    Image.fromarray(values).save(world / "data" / "images" / f"{row_id}.png")
    assert run_cli("oof", "-c", str(config(world, find_duplicates=False)), "-q") == 0


@pytest.mark.parametrize("part", ["train", "test"])
def test_what_decodes_to_the_end_is_used_where_that_is_declared(world: Path, capsys: Capture, part: str) -> None:
    row_id = rows(world, part)["image_name"].iloc[2]
    path = picture(world, row_id)
    with Image.open(path) as image:
        image = image.convert("RGB")
    path.unlink()
    path = path.with_suffix(".jpg")
    image.save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-2] + bytes(20) + b"\xff\xd9")
    message = command_error(capsys, "oof", "-c", str(config(world)))
    assert row_id in message
    assert "on_unreadable: tolerate" in message
    tolerant = config(world, on_unreadable="tolerate")
    assert run_cli("oof", "-c", str(tolerant)) == 0
    printed = capsys.readouterr()
    said = " ".join(f"{printed.out} {printed.err}".split())
    assert "1 damaged images decode to the end and are used" in said
    assert row_id in said
    shutil.rmtree(world / "runs")
    assert row_id in command_error(capsys, "oof", "-c", str(config(world))), "its cached pixels are not served"


def test_tolerance_does_not_cover_a_cut_off_file(world: Path, capsys: Capture) -> None:
    path = picture(world, rows(world)["image_name"].iloc[2])
    path.write_bytes(path.read_bytes()[:-200])
    assert path.stem in command_error(capsys, "oof", "-c", str(config(world, on_unreadable="tolerate")))

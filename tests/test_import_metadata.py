from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import run_cli
from PIL import Image
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from tfrecord.writer import TFRecordWriter

from dermstack.errors import DataError
from stack.settings.config import read_config
from stack.tables.metadata import dicom_files, read_dicom_metadata, read_tfrecord_metadata, write_metadata


def write_dicom(path: Path, **tags: str) -> None:
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
    meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data = pydicom.Dataset()
    data.file_meta = meta
    for name, value in tags.items():
        setattr(data, name, value)
    data.Rows = data.Columns = 4
    data.SamplesPerPixel, data.PhotometricInterpretation = 3, "RGB"
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.PlanarConfiguration = 7, 0, 0
    data.PixelData = np.arange(48, dtype=np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)


def write_records(path: Path, records: list[dict[str, tuple[object, str]]]) -> Path:
    writer = TFRecordWriter(str(path))
    for record in records:
        writer.write(record)
    writer.close()
    return path


def test_a_folder_of_dicom_implies_its_csv(tmp_path: Path) -> None:
    write_dicom(tmp_path / "b" / "ISIC_2.dcm", PatientID="IP_2", PatientSex="F", PatientAge="018M")
    write_dicom(
        tmp_path / "a" / "ISIC_1.dcm", PatientID="IP_1", PatientSex="M", PatientAge="045Y", BodyPartExamined="TORSO"
    )
    seen: list[int] = []
    frame = read_dicom_metadata(tmp_path, progress=seen.append)
    assert frame.to_numpy().tolist() == [
        ["ISIC_1", "IP_1", "male", "45", "torso"],
        ["ISIC_2", "IP_2", "female", "1.5", ""],
    ]
    assert sum(seen) == 2
    assert read_dicom_metadata(tmp_path, n_jobs=2).equals(frame)


def test_progress_counts_the_files_that_are_read(tmp_path: Path) -> None:
    for number, name in enumerate(("a.dcm", "b.DCM", "c.dicom", "d/e.dcm")):
        write_dicom(tmp_path / name, PatientID=f"IP_{number}")
    (tmp_path / "f.dcm").mkdir()
    (tmp_path / "notes.txt").write_text("no DICOM")
    seen: list[int] = []
    assert len(read_dicom_metadata(tmp_path, progress=seen.append)) == len(dicom_files(tmp_path)) == sum(seen) == 4


def test_no_other_field_of_a_patient_gets_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {
        "PatientName": "SECRET^NAME", "PatientBirthDate": "19570411", "PatientAddress": "SECRET STREET 5",
        "PatientTelephoneNumbers": "0555-SECRET", "OtherPatientIDs": "SECRET-ID", "PatientComments": "SECRET REMARK",
        "InstitutionName": "SECRET CLINIC", "ReferringPhysicianName": "SECRET^DOCTOR",
    }  # fmt: skip
    write_dicom(tmp_path / "ISIC_1.dcm", PatientID="IP_1", **secrets)
    assert run_cli("import-dicom", str(tmp_path), str(tmp_path / "out.csv")) == 0
    command = f"dermstack init {tmp_path / 'out.csv'} --images {tmp_path}"
    assert f"next: add a column with the target of each image, then {command}" in capsys.readouterr().out
    written = (tmp_path / "out.csv").read_text()
    assert "IP_1" in written
    assert "SECRET" not in written
    assert "1957" not in written


def test_files_that_cannot_be_read_are_told_together(tmp_path: Path) -> None:
    write_dicom(tmp_path / "ISIC_1.dcm", PatientID="IP_1")
    (tmp_path / "ISIC_2.dcm").write_bytes(b"no DICOM")
    (tmp_path / "ISIC_3.dcm").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 files cannot be read:(.|\n)*ISIC_2\.dcm(.|\n)*ISIC_3\.dcm"):
        read_dicom_metadata(tmp_path)
    write_dicom(tmp_path / "again" / "ISIC_1.dcm", PatientID="IP_1")
    for name in ("ISIC_2", "ISIC_3"):
        (tmp_path / f"{name}.dcm").unlink()
    with pytest.raises(DataError, match="1 row repeats an id, first: ISIC_1"):
        read_dicom_metadata(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read_dicom_metadata(tmp_path / "nowhere")


def test_kaggles_records_imply_their_csv(tmp_path: Path) -> None:
    place = write_records(
        tmp_path / "train.tfrec",
        [
            {"image": (b"x", "byte"), "image_name": (name, "byte"), "patient_id": (b"IP_1", "byte"),
             "sex": (1, "int"), "age_approx": (age, "int"), "target": (1, "int")}
            for name, age in ((b"ISIC_2", 45), (b"ISIC_1", -1))
        ],
    )  # fmt: skip
    frame, unused = read_tfrecord_metadata(place, features={}, codes={"sex": {0: "male", 1: "female"}})
    assert frame.columns.tolist() == ["image_name", "patient_id", "sex", "age_approx", "target"]
    assert frame.to_numpy().tolist() == [["ISIC_1", "IP_1", "female", "", "1"], ["ISIC_2", "IP_1", "female", "45", "1"]]
    assert unused == []
    plain, _ = read_tfrecord_metadata(tmp_path, features={}, codes={})
    assert plain["sex"].tolist() == ["1", "1"], "codes without any word stay numbers"


def test_the_next_command_that_is_told_drafts_a_config_that_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("shards").mkdir()
    encoded = io.BytesIO()
    Image.new("RGB", (32, 32), (120, 80, 60)).save(encoded, "JPEG")
    records = [
        {"image": (encoded.getvalue(), "byte"), "image_name": (f"I{row}".encode(), "byte"),
         "patient_id": (f"P{row // 2}".encode(), "byte"), "target": (int(row % 4 == 0), "int")}
        for row in range(60)
    ]  # fmt: skip
    write_records(Path("shards/a.tfrec"), records)
    assert run_cli("import-tfrecord", "shards", "rows.csv") == 0
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("next: "))
    program, *arguments = told.removeprefix("next: ").split()
    assert program == "dermstack"
    assert run_cli(*arguments) == 0
    assert read_config(Path("config.yaml")).data.columns.target == "target"


def test_unknown_features_and_codes_are_named(tmp_path: Path) -> None:
    place = write_records(tmp_path / "a.tfrec", [{"image_name": (b"ISIC_1", "byte"), "location": (3, "int")}])
    with pytest.raises(
        DataError, match=r"has no feature site; it has image_name, location: name the right ones under data\.tfrecord"
    ):
        read_tfrecord_metadata(place, features={"anatom_site_general_challenge": "site"}, codes={})
    named = {"anatom_site_general_challenge": "location"}
    with pytest.raises(DataError, match=r"codes 3, which are not in data\.tfrecord\.codes\.anatom_site.*add them"):
        read_tfrecord_metadata(place, features=named, codes={"anatom_site_general_challenge": {0: "torso"}})
    with pytest.raises(DataError, match="has the unknown columns ages: use image_name"):
        read_tfrecord_metadata(place, features={"ages": "x"}, codes={})
    with pytest.raises(DataError, match="is not a TFRecord file"):
        read_tfrecord_metadata(tmp_path / "none", features={}, codes={})


def test_a_csv_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image_name": ["a"]})
    write_metadata(frame, tmp_path / "a.csv")
    with pytest.raises(DataError, match="exists already: choose another name, or add --replace"):
        write_metadata(frame, tmp_path / "a.csv")
    write_metadata(frame.assign(image_name="b"), tmp_path / "a.csv", replace=True)
    assert "b" in (tmp_path / "a.csv").read_text()


def test_the_real_shards_imply_a_csv(shared_data: Path) -> None:
    shard = shared_data / "siim2020" / "tfrec" / "test38-21.tfrec"
    names = {"anatom_site_general_challenge": "anatom_site_general"}
    frame, unused = read_tfrecord_metadata(shard, features=names, codes={"sex": {0: "male", 1: "female"}})
    assert len(frame) == 21
    assert unused == []
    assert read_tfrecord_metadata(shard, features={}, codes={})[1] == ["anatom_site_general"]
    assert set(frame["sex"]) <= {"male", "female", ""}
    assert not frame.isin(["-1"]).any().any()

"""Readers of tables, configs and pictures, with small files that they read and ways to write nasty ones."""

from __future__ import annotations

import io
from pathlib import Path

import h5py
import numpy as np
import pydicom
import yaml
from fuzzing import Reader
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit
from tfrecord import TFRecordWriter, example_pb2

COLUMNS = {"id": "image", "group": "patient", "target": "y", "age": "age", "sex": "sex", "site": "site", "fold": "fold"}


def _csv_seeds() -> list[bytes]:
    head = "image,patient,y,age,sex,site,fold,p"
    rows = [f"i{n},p{n % 5},{n % 2},{20 + n},{'fm'[n % 2]},torso,{n % 3},0.{n}" for n in range(12)]
    whole = "\n".join([head, *rows, ""])
    quoted = whole.replace("torso", '"upper ""left"", arm\n2"')
    few = "image,p\na,0.5\nb,0.25\n"
    return [whole.encode(), quoted.encode(), ("\ufeff" + whole.replace("\n", "\r\n")).encode(), few.encode()]


def _read_table(path: Path) -> object:
    from stack.tables.table import read_table

    return read_table(path, None, columns=COLUMNS)


def _read_new(path: Path) -> object:
    from stack.tables.cells import read_cells
    from stack.tables.table import read_new_frame

    return read_cells(path), read_new_frame(path, COLUMNS)


def _read_external(path: Path) -> object:
    from stack.tables.table import read_external_frame

    return read_external_frame(path, {name: COLUMNS[name] for name in ("id", "target", "age", "sex", "site")})


def _read_predictions(path: Path) -> object:
    from stack.imported.prediction_files import ImportedColumns, read_predictions_file

    return read_predictions_file(path, ImportedColumns("image", "p", "fold"), needs_fold=False)


def _read_sample(path: Path) -> object:
    from stack.submission_csv import submission

    return submission(["a", "b"], [0.1, 0.2], id_column="image", target_column="p", sample=path)


def _read_pairs(path: Path) -> object:
    from stack.folds import read_duplicate_pairs

    return read_duplicate_pairs(path)


def _config_seeds() -> list[bytes]:
    small = {
        "experiment": "small",
        "data": {"name": "small", "train": "train.csv", "columns": {"id": "i", "group": "g", "target": "y"}},
        "stackers": [{"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 3, "monotone": [1, 0.5, None]}}],
    }
    anchored = (
        "a: &a [1, 2]\nexperiment: x\nb: *a\n<<: {c: !!str 3}\nd: 2001-01-01\ne: 0x1f\nf: 1:30\ng: !!binary aGk=\n"
    )
    shipped = (Path(__file__).parents[1] / "configs" / "demo.yaml").read_bytes()
    return [yaml.safe_dump(small).encode(), anchored.encode(), shipped]


def _read_config(path: Path) -> object:
    from stack.settings.config import read_config

    return read_config(path)


def _picture() -> Image.Image:
    ramp = np.linspace(0, 255, 12, dtype=np.uint8)
    return Image.fromarray(
        np.stack([np.tile(ramp, (10, 1)), np.full((10, 12), 90, np.uint8), np.tile(ramp, (10, 1))], 2)
    )


def encoded(kind: str, mode: str = "RGB") -> bytes:
    """A small picture as a file of this kind."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    _picture().convert(mode).save(buffer, kind, **({"exif": exif} if kind == "JPEG" else {}))
    return buffer.getvalue()


def _picture_seeds() -> list[bytes]:
    kinds = [
        ("JPEG", "RGB"),
        ("JPEG", "L"),
        ("JPEG", "CMYK"),
        ("PNG", "RGB"),
        ("PNG", "P"),
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
    ]
    kinds += [("BMP", "RGB"), ("TIFF", "RGB"), ("TIFF", "1"), ("WEBP", "RGBA")]
    return [encoded(kind, mode) for kind, mode in kinds]


def _read_picture(path: Path) -> object:
    from image_models.io.readers import Source

    return Source(path, "file").read(min_side=8)


def dicom(syntax: str, **tags: object) -> bytes:
    """A DICOM file of these tags."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    defaults = {
        "SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0,
        "PhotometricInterpretation": "MONOCHROME2", "Rows": 10, "Columns": 12, "PatientID": "p1", "PatientAge": "045Y",
    }  # fmt: skip
    for name, value in (defaults | tags).items():
        setattr(data, name, value)
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _dicom_seeds() -> list[bytes]:
    grey = bytes(range(120))
    rgb = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    shipped = ["MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm"]
    shipped += ["SC_rgb_jpeg_gdcm.dcm", "examples_palette.dcm", "SC_ybr_full_422_uncompressed.dcm"]
    jpeg = {"PlanarConfiguration": 0, "SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}
    return [
        dicom(ExplicitVRLittleEndian, PixelData=grey, WindowCenter=[60, 3], WindowWidth=[50, 9]),
        dicom(DeflatedExplicitVRLittleEndian, PixelData=grey, RescaleSlope=2, RescaleIntercept=-3),
        dicom(ExplicitVRLittleEndian, PixelData=grey * 3, **rgb),
        dicom(JPEGBaseline8Bit, PixelData=encapsulate([encoded("JPEG")]), **jpeg),
        *(path.read_bytes() for name in shipped if (path := folder / name).is_file()),
    ]


def _read_dicom(path: Path) -> object:
    from image_models.io.dicom import dicom_metadata, read_dicom

    about = dicom_metadata(path)
    return about, read_dicom(path, min_side=8)


def framed(*records: bytes) -> bytes:
    """TFRecords of these bytes, with right checksums."""
    parts = []
    for one in records:
        head = len(one).to_bytes(8, "little")
        parts += [head, TFRecordWriter.masked_crc(head), one, TFRecordWriter.masked_crc(one)]
    return b"".join(parts)


def _example_seeds() -> list[bytes]:
    made = []
    for name in (b"a", b"b"):
        example = example_pb2.Example()
        of = example.features.feature
        of["image"].bytes_list.value.append(encoded("PNG"))
        of["image_name"].bytes_list.value.append(name)
        of["age_approx"].float_list.value.extend([47.5, 1.0])
        of["target"].int64_list.value.extend([1, -1, 2**63 - 1])
        made.append(example.SerializeToString())
    return made


def _read_tfrecord(path: Path) -> object:
    from image_models.io.readers import image_ids, image_sources
    from stack.tables.metadata import read_tfrecord_metadata

    read_tfrecord_metadata(path, features={}, codes={"target": {1: "one"}})
    return [source.read(min_side=8) for source in image_sources(path, image_ids(path))]


def _read_example(path: Path) -> object:
    """Behind checksums that are right, as whoever means harm writes them."""
    path.write_bytes(framed(path.read_bytes()))
    return _read_tfrecord(path)


def _hdf5_seeds() -> list[bytes]:
    picture = encoded("PNG")
    made = []
    for options in ({}, {"chunks": (64,), "compression": "gzip"}):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset("a", data=np.frombuffer(picture, np.uint8), **options)
            file["b"] = np.void(picture)
        made.append(buffer.getvalue())
    return made


def _read_hdf5(path: Path) -> object:
    from image_models.io.readers import image_ids, image_sources

    return [source.read(min_side=8) for source in image_sources(path, image_ids(path))]


READERS = {
    "table": Reader("rows.csv", _csv_seeds, _read_table),
    "new rows": Reader("rows.csv", _csv_seeds, _read_new),
    "external rows": Reader("rows.csv", _csv_seeds, _read_external),
    "predictions": Reader("rows.csv", _csv_seeds, _read_predictions),
    "sample submission": Reader("rows.csv", lambda: _csv_seeds()[::-1], _read_sample),
    "duplicates": Reader("rows.csv", lambda: _csv_seeds()[::-1], _read_pairs),
    "config": Reader("config.yaml", _config_seeds, _read_config),
    "picture": Reader("a.jpg", _picture_seeds, _read_picture),
    "dicom": Reader("a.dcm", _dicom_seeds, _read_dicom),
    "tfrecord": Reader("a.tfrec", lambda: [framed(*_example_seeds())], _read_tfrecord),
    "example": Reader("a.tfrec", _example_seeds, _read_example),
    "hdf5": Reader("a.hdf5", _hdf5_seeds, _read_hdf5),
}

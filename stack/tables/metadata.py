"""Extracts a metadata csv from DICOM files or TFRecord shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from dermstack.errors import DataError
from dermstack.listing import counted
from image_models.processes import run_parallel
from stack.outputs import check_output, is_stream, output_file

# Kaggle's names, the id first, without the image itself.
COLUMNS = ("image_name", "patient_id", "sex", "age_approx", "anatom_site_general_challenge", "diagnosis", "target")
NUMBERS = ("age_approx", "target")
_MAX_LISTED = 5


def dicom_files(folder: Path) -> list[Path]:
    """Returns the files below ``folder`` with a DICOM suffix, sorted. Raises DataError where there are none."""
    from image_models.io.readers import DICOM_SUFFIXES

    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: name the one that holds the .dcm files")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in DICOM_SUFFIXES and path.is_file())
    if not paths:
        raise DataError(f"{folder} holds no {' or '.join(DICOM_SUFFIXES)} file: name the folder that does")
    return paths


def read_dicom_metadata(
    folder: Path, *, n_jobs: int = 1, progress: Callable[[int], object] = lambda done: None
) -> pd.DataFrame:
    """Reads image_name and the `image_models.io.dicom.ALLOWED_TAGS` of each of `dicom_files`, sorted by id.

    ``progress`` is called with 1 after each file. Raises DataError where there are no files or some cannot be read (it
    lists the first five), and for duplicated ids.
    """
    rows: list[dict[str, str]] = []
    faults: list[str] = []
    for row in run_parallel((partial(_row, path) for path in dicom_files(folder)), n_jobs):
        if isinstance(row, str):
            faults.append(row)
        else:
            rows.append(row)
        progress(1)
    if faults:
        more = f"\n  … {len(faults)} in all" if len(faults) > _MAX_LISTED else ""
        raise DataError(f"{len(faults)} files cannot be read:\n  " + "\n  ".join(faults[:_MAX_LISTED]) + more)
    return _by_id(pd.DataFrame(rows), folder)


def read_tfrecord_metadata(
    place: Path,
    *,
    features: Mapping[str, str],
    codes: Mapping[str, Mapping[int, str]],
    progress: Callable[[int], object] = lambda done: None,
) -> tuple[pd.DataFrame, list[str]]:
    """Reads one row from each record of the shard ``place``, or of the shards below it, sorted by id, Kaggle's columns.

    ``features`` maps columns to features with another name; ``codes`` maps the integers of a column to words. The
    number -1 is a missing value; integers of columns without codes are kept as text. The second value lists the
    features that were not used, without the image. Raises DataError for absent features, integers missing from the
    codes of their column, and duplicated ids.
    """
    from image_models.io.readers import TFRECORD_SUFFIXES
    from image_models.io.tfrecord import read_records

    inside = sorted(place.rglob("*")) if place.is_dir() else [place]
    shards = [path for path in inside if path.suffix.lower() in TFRECORD_SUFFIXES and path.is_file()]
    if not shards:
        raise DataError(
            f"{place} is not a TFRecord file and holds none ({', '.join(TFRECORD_SUFFIXES)}): name a file or its folder"
        )
    if unknown := sorted((set(features) | set(codes)) - {*COLUMNS, "image"}):
        raise DataError(f"data.tfrecord has the unknown columns {', '.join(unknown)}: use {', '.join(COLUMNS)}")
    rows: list[dict[str, object]] = []
    unused: set[str] = set()
    for shard in shards:
        for record in read_records(shard):
            feature_of = {column: features.get(column, column) for column in COLUMNS}
            asked = {"image_name", *features} - {"image"}
            if lost := [name for column, name in feature_of.items() if column in asked and name not in record.features]:
                raise DataError(
                    f"{shard}: the record at byte {record.start} has no feature {', '.join(lost)}; it has "
                    f"{', '.join(sorted(record.features))}: name the right ones under data.tfrecord.features"
                )
            rows.append(
                {
                    column: _value(record.features[name])
                    for column, name in feature_of.items()
                    if name in record.features
                }
            )
            unused |= set(record.features) - set(feature_of.values()) - {features.get("image", "image")}
            progress(1)
    frame = pd.DataFrame(rows)
    words = {column: _words(frame[column], column, codes) for column in COLUMNS if column in frame}
    return _by_id(pd.DataFrame(words), place), sorted(unused)


def check_metadata_csv(path: Path, *, replace: bool) -> None:
    """Raises DataError where the csv exists and ``replace`` is not set, ConfigError where it cannot be a file."""
    if path.is_file() and not is_stream(path) and not replace:
        raise DataError(f"{path} exists already: choose another name, or add --replace")
    check_output(path, "CSV")


def write_metadata(frame: pd.DataFrame, path: Path, *, replace: bool = False) -> Path:
    """Writes a csv atomically. Raises DataError where the file exists and ``replace`` is not set."""
    check_metadata_csv(path, replace=replace)
    with output_file(path) as temporary:
        frame.to_csv(temporary, index=False)
    return path


def _row(path: Path) -> dict[str, str] | str:
    from dermstack.errors import ImageError
    from image_models.io.dicom import dicom_metadata

    try:
        return dicom_metadata(path)
    except ImageError as error:
        return str(error)


def _value(values: list[bytes] | list[float] | list[int]) -> object:
    value: object = values[0] if len(values) == 1 else None
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _words(values: pd.Series, column: str, codes: Mapping[str, Mapping[int, str]]) -> pd.Series:
    """Converts values for the csv: integers to their words, -1 and missing values to an empty cell."""
    words = codes.get(column)
    is_number = values.map(lambda value: isinstance(value, int | float))
    missing = values.isna() | (is_number & (values.where(is_number, 0) == -1))
    if words is not None:
        lost = sorted({int(value) for value in values[~missing & is_number]} - set(words))
        if lost:
            raise DataError(
                f"{column} holds the codes {', '.join(map(str, lost))}, which are not in data.tfrecord.codes.{column}: "
                "add them"
            )
        values = values.map(lambda value: words.get(value, value))
    return values.astype("str").mask(missing, "")


def _by_id(frame: pd.DataFrame, place: Path) -> pd.DataFrame:
    doubled = frame["image_name"].duplicated()
    if doubled.any():
        first = ", ".join(frame["image_name"][doubled].iloc[:3])
        raise DataError(
            f"{place}: {counted(int(doubled.sum()), 'rows', 'repeat')} an id, first: {first}: keep one row of each"
        )
    return frame.sort_values("image_name", ignore_index=True)

"""Finds the image of each id in a folder of image or DICOM files, in TFRecord shards or in an HDF5 file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dermstack.errors import ImageError
from image_models.io.decode import MAX_ENCODED_BYTES, SUFFIXES, Picture, decode

if TYPE_CHECKING:
    import h5py

DICOM_SUFFIXES = (".dcm", ".dicom")
TFRECORD_SUFFIXES = (".tfrec", ".tfrecord", ".tfrecords")
HDF5_SUFFIXES = (".h5", ".hdf5")


@dataclass(frozen=True)
class TFRecordNames:
    """Names of the features of a record that hold the encoded image and its id; the defaults are Kaggle's."""

    image: str = "image"
    id: str = "image_name"


@dataclass(frozen=True)
class Source:
    """Location of one image's encoded bytes; small, so that it can be sent to another process."""

    path: Path
    kind: Literal["file", "dicom", "tfrecord", "hdf5"]
    start: int = 0  # tfrecord: where the encoded image begins in the file, and its length
    length: int = 0
    key: str = ""  # hdf5: the data set's name
    n_bytes: int = 0  # of the encoded image
    stamp: int = 0  # changes when the image does: a file's time in ns, a record's checksum
    swap_red_blue: bool = False
    bits_stored: int = 0  # bits that 16-bit values use; 0: all
    tolerate: bool = False  # accept a JPEG with stray bytes after its last pixel

    @property
    def name(self) -> str:
        """The name of the source in error messages."""
        if self.kind == "hdf5":
            return f"{self.path}[{self.key}]"
        return f"{self.path}, byte {self.start}" if self.kind == "tfrecord" else str(self.path)

    def read(self, *, min_side: int) -> Picture:
        """Decodes the image; a JPEG may be reduced to sides of at least ``min_side`` pixels. Raises ImageError."""
        picture = self._decode(min_side)
        if self.swap_red_blue:
            picture = picture._replace(image=np.ascontiguousarray(picture.image[..., ::-1]))
        return picture

    def _decode(self, min_side: int) -> Picture:
        if self.kind == "dicom":
            from image_models.io.dicom import read_dicom

            return read_dicom(
                self.path, min_side=min_side, bits_stored=self.bits_stored, tolerate=self.tolerate
            )
        try:
            data = self._encoded()
        except FileNotFoundError as error:
            raise ImageError(f"{self.path}: no such file: restore it or drop its rows from the csv") from error
        except OSError as error:
            raise ImageError(f"{self.name}: cannot be read ({error}): restore the file") from error
        return decode(
            data, name=self.name, min_side=min_side, bits_stored=self.bits_stored, tolerate=self.tolerate
        )

    def _encoded(self) -> bytes:
        if self.kind == "hdf5":
            with _open_hdf5(self.path) as file:
                return _hdf5_bytes(file, self.key, self.path)
        with self.path.open("rb") as file:
            if self.kind == "file":
                if (length := os.fstat(file.fileno()).st_size) > MAX_ENCODED_BYTES:
                    raise ImageError(
                        f"{self.path}: {length:,} bytes are more than an image file may have: restore the file"
                    )
                return file.read()
            file.seek(self.start)
            data = file.read(self.length)
        if zlib.crc32(data) != self.stamp:
            raise ImageError(f"{self.name}: changed since the shard was indexed: run the command again")
        return data


def image_sources(
    path: Path, ids: Sequence[str], *, names: TFRecordNames = TFRecordNames(), swap_red_blue: bool = False
) -> list[Source]:
    """Finds the image of each id, in the order of ``ids``.

    ``path`` is a folder, searched with its subfolders for <id>.jpg, .png, … or .dcm and for TFRecord shards, or one
    .hdf5 or .tfrec file. Raises ImageError for missing ids (how many, the first three) and for ids with two images.
    """
    requested = set(ids)
    found: dict[str, Source] = {}
    twice: list[str] = []
    for row_id, source in _iter_sources(path, requested, names, swap_red_blue):
        if row_id not in requested:
            continue
        if row_id in found:
            twice.append(f"{row_id}: {found[row_id].name} and {source.name}")
        found[row_id] = source
    if twice:
        raise ImageError(
            f"{len(twice)} ids have more than one image in {path}, first: {twice[0]}: keep one of them, or name the "
            "folder that holds the right ones"
        )
    missing = [row_id for row_id in ids if row_id not in found]
    if missing:
        raise ImageError(
            f"{len(missing)} of {len(ids)} images are missing in {path}, first: {', '.join(missing[:3])}: "
            "restore the files or drop the rows from the csv"
        )
    return [found[row_id] for row_id in ids]


def image_ids(path: Path, *, names: TFRecordNames = TFRecordNames()) -> list[str]:
    """Returns the sorted ids of all images in ``path`` (see `image_sources`); a file's id is its stem."""
    ids = sorted(row_id for row_id, _ in _iter_sources(path, None, names, swap=False))
    if not ids:
        raise ImageError(f"{path} holds no image: name a folder with {', '.join(SUFFIXES + DICOM_SUFFIXES)} files")
    if twice := sorted({a for a, b in pairwise(ids) if a == b}):
        raise ImageError(
            f"{len(twice)} ids have more than one image in {path}, first: {twice[0]}: keep one of them, or name the "
            "folder that holds the right ones"
        )
    return ids


def _iter_sources(
    path: Path, requested: set[str] | None, names: TFRecordNames, swap: bool
) -> Iterator[tuple[str, Source]]:
    """Yields ids with their images; skips those not ``requested`` where that is cheap."""
    if path.is_dir():
        shards = []
        for entry in _walk_files(path):
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a Path for each of 33,000 files costs seconds)
            suffix = suffix.lower()
            if suffix in TFRECORD_SUFFIXES:
                shards.append(Path(entry.path))
            elif (requested is None or stem in requested) and suffix in SUFFIXES + DICOM_SUFFIXES:
                stat = entry.stat()
                kind: Literal["dicom", "file"] = "dicom" if suffix in DICOM_SUFFIXES else "file"
                yield (
                    stem,
                    Source(Path(entry.path), kind, n_bytes=stat.st_size, stamp=stat.st_mtime_ns, swap_red_blue=swap),
                )
        for shard in sorted(shards):
            yield from _tfrecord_sources(shard, names, swap)
    elif path.is_file() and path.suffix.lower() in TFRECORD_SUFFIXES:
        yield from _tfrecord_sources(path, names, swap)
    elif path.is_file() and path.suffix.lower() in HDF5_SUFFIXES:
        yield from _hdf5_sources(path, requested, swap)
    else:
        raise ImageError(
            f"{path} is not a folder, .hdf5 or .tfrec file: set data.images to the folder or file that holds the images"
        )


def _walk_files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yields the files below ``folder``, sorted; skips hidden files and the __MACOSX folders of unpacked archives."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _walk_files(Path(entry.path))
        elif entry.is_file():
            yield entry


def _tfrecord_sources(shard: Path, names: TFRecordNames, swap: bool) -> Iterator[tuple[str, Source]]:
    from image_models.io.tfrecord import image_span, read_records

    with shard.open("rb") as file:
        for record in read_records(shard):
            values = record.features.get(names.id, [])
            if len(values) != 1 or not isinstance(values[0], bytes):
                raise ImageError(
                    f"{shard}: record at byte {record.start}: feature {names.id!r} holds no id: name the one that does "
                    f"under data.tfrecord.features.image_name (there are {', '.join(sorted(record.features))})"
                )
            start, length = image_span(record, names.image)
            file.seek(start)
            stamp = zlib.crc32(file.read(length))
            source = Source(shard, "tfrecord", start, length, n_bytes=length, stamp=stamp, swap_red_blue=swap)
            yield values[0].decode("utf-8", "replace"), source


def _hdf5_sources(path: Path, requested: set[str] | None, swap: bool) -> Iterator[tuple[str, Source]]:
    """Yields the images of a file in ISIC 2024's format: one data set of encoded bytes per id."""
    with _open_hdf5(path) as file:
        try:
            there = set(file)
            if unnamed := [
                key for key in there if not isinstance(key, str)
            ]:  # h5py returns names that are not UTF-8 as bytes
                raise ImageError(f"{path} holds the name {unnamed[0]!r}, which is not UTF-8: write the file again")
        except ImageError:
            raise
        except (OSError, RuntimeError, LookupError, ValueError) as error:
            raise ImageError(f"{path} cannot be listed ({error}): download or write the file again") from error
        mtime = path.stat().st_mtime_ns
        for key in sorted(there if requested is None else there & requested):
            length = int(_hdf5_dataset(file, key, path).nbytes)
            # The file's time: checksums would require reading the whole file before the first image is decoded.
            yield key, Source(path, "hdf5", key=key, n_bytes=length, stamp=mtime, swap_red_blue=swap)


def _open_hdf5(path: Path) -> h5py.File:
    import h5py

    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError, LookupError, ValueError) as error:
        raise ImageError(f"{path}: not a readable HDF5 file ({error}): download or write it again") from error


def _hdf5_bytes(file: h5py.File, key: str, path: Path) -> bytes:
    value = _hdf5_dataset(file, key, path)
    try:
        data = value[()]
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, MemoryError) as error:
        raise ImageError(f"{path}[{key}] cannot be read ({error}): download or write the file again") from error
    return data if isinstance(data, bytes) else np.asarray(data).tobytes()


def _hdf5_dataset(file: h5py.File, key: str, path: Path) -> h5py.Dataset:
    """Returns the encoded image under ``key``: a scalar of opaque bytes or a vector of uint8, stored in this file."""
    import h5py

    advice = "store the encoded bytes of one image there"
    try:
        is_own = isinstance(file.get(key, getlink=True), h5py.HardLink)  # other links may point outside the file
        value = file[key] if is_own else None
        if not isinstance(value, h5py.Dataset) or value.external or value.is_virtual:
            raise ImageError(f"{path}[{key}] is not a data set stored in this file: {advice}")
        if value.dtype.kind not in "VSOu" or value.ndim > 1 or value.nbytes > MAX_ENCODED_BYTES:
            raise ImageError(f"{path}[{key}] holds {value.dtype} of shape {value.shape}: {advice}")
    except ImageError:
        raise
    except (LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise ImageError(f"{path}[{key}] cannot be read ({error}): download or write the file again") from error
    return value

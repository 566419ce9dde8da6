"""Finds the image of each id in a folder of image or DICOM files, in TFRecord shards or in an HDF5 file."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from dermstack.errors import ImageError
from image_models.io.contents import UNKNOWN, content_as_read, content_of, file_content
from image_models.io.decode import MAX_ENCODED_BYTES, SUFFIXES, Picture, decode
from image_models.io.folders import (
    SimilarNames,
    Skipped,
    check_name,
    difference,
    printable,
    skipped_files,
    walk_files,
)
from image_models.io.hdf5 import hdf5_bytes, hdf5_dataset, open_hdf5

DICOM_SUFFIXES = (".dcm", ".dicom")
TFRECORD_SUFFIXES = (".tfrec", ".tfrecord", ".tfrecords")
HDF5_SUFFIXES = (".h5", ".hdf5")
_ALL_SUFFIXES = (*SUFFIXES, *DICOM_SUFFIXES, *TFRECORD_SUFFIXES)
_KINDS = ", ".join(SUFFIXES + DICOM_SUFFIXES)
_MAX_EXPLAINED, _MAX_HINTS = 10_000, 4  # missing ids for which similar files are looked for; hints in one error


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
    stamp: int = 0  # a file's time in ns, a record's CRC-32
    content: int = 0  # hash of what it held when `with_contents` read it; 0: not hashed
    swap_red_blue: bool = False
    bits_stored: int = 0  # bits that 16-bit values use; 0: all
    tolerate: bool = False  # accept a JPEG with stray bytes after its last pixel

    @property
    def name(self) -> str:
        """The name of the source in error messages."""
        path = printable(self.path)
        if self.kind == "hdf5":
            return f"{path}[{self.key}]"
        return f"{path}, byte {self.start}" if self.kind == "tfrecord" else path

    def read(self, *, min_side: int) -> Picture:
        """Decodes the image; a JPEG may be reduced to sides of at least ``min_side`` pixels. Raises ImageError."""
        picture = self._decode(min_side)
        if self.swap_red_blue:
            picture = picture._replace(image=np.ascontiguousarray(picture.image[..., ::-1]))
        return picture

    def _decode(self, min_side: int) -> Picture:
        if self.kind == "dicom":
            from image_models.io.dicom import read_dicom

            picture = read_dicom(self.path, min_side=min_side, bits_stored=self.bits_stored, tolerate=self.tolerate)
            self._check_content(lambda: file_content(self.path))
            return picture
        try:
            data = self._encoded()
        except FileNotFoundError as error:
            raise ImageError(f"{self.path}: no such file: restore it or drop its rows from the csv") from error
        except OSError as error:
            raise ImageError(f"{self.name}: cannot be read ({error}): restore the file") from error
        return decode(data, name=self.name, min_side=min_side, bits_stored=self.bits_stored, tolerate=self.tolerate)

    def _check_content(self, content: Callable[[], int]) -> None:
        if self.content != UNKNOWN and self.content != content():
            raise ImageError(f"{self.name}: changed while the images were read: run the command again")

    def _encoded(self) -> bytes:
        """Reads the encoded image. Raises ImageError where it is another one than was hashed or indexed."""
        if self.kind == "hdf5":
            with open_hdf5(self.path) as file:
                data = hdf5_bytes(file, self.key, self.path)
            self._check_content(lambda: content_of(data))
            return data
        with self.path.open("rb") as file:
            if self.kind == "file":
                if (length := os.fstat(file.fileno()).st_size) > MAX_ENCODED_BYTES:
                    raise ImageError(
                        f"{self.path}: {length:,} bytes are more than an image file may have: restore the file"
                    )
                data = file.read()
                self._check_content(lambda: content_as_read(data, os.fstat(file.fileno())))
                return data
            file.seek(self.start)
            data = file.read(self.length)
        if zlib.crc32(data) != self.stamp:
            raise ImageError(f"{self.name}: changed since the shard was indexed: run the command again")
        return data


@dataclass(frozen=True)
class FileNames:
    """How ids are matched to the names of files; ``options`` are the words by which a user sets both to True."""

    similar: bool = False  # also a name that differs in case, Unicode form or a suffix inside the id
    follow_links: bool = False  # also enter linked folders
    options: tuple[str, str] = ("data.similar_names: true", "data.follow_links: true")


PLAIN_NAMES = FileNames()


def image_sources(
    path: Path,
    ids: Sequence[str],
    *,
    names: TFRecordNames = TFRecordNames(),
    swap_red_blue: bool = False,
    files: FileNames = PLAIN_NAMES,
) -> list[Source]:
    """Finds the image of each id, in the order of ``ids``.

    ``path`` is a folder, searched with its subfolders for <id>.jpg, .png, … or .dcm and for TFRecord shards, or one
    .hdf5 or .tfrec file. Raises ImageError for missing ids (how many, the first three, what similar files there are and
    how to accept them) and for ids with two images.
    """
    requested = set(ids)
    found: dict[str, Source] = {}
    twice: list[str] = []
    for row_id, source in _iter_sources(path, requested, names, swap_red_blue, files):
        if row_id not in requested:
            continue
        if row_id in found:
            twice.append(f"{row_id}: {found[row_id].name} and {source.name}")
        found[row_id] = source
    missing = [row_id for row_id in ids if row_id not in found]
    if missing:
        similar = SimilarNames(missing if files.similar else missing[:_MAX_EXPLAINED], _ALL_SUFFIXES)
        pairs = [
            (row_id, name, source)
            for name, source in _iter_sources(path, similar, names, swap_red_blue, files)
            if name not in found
            for row_id in similar.ids(name)
        ]
        if not files.similar:
            raise ImageError(_missing_text(path, ids, missing, pairs, files))
        taken: dict[str, str] = {}
        for row_id, _, source in pairs:
            for known, what in ((found.get(row_id), row_id), (taken.get(source.name), source.name)):
                if known:
                    twice.append(f"{what}: {known if isinstance(known, str) else known.name} and {source.name}")
            found[row_id], taken[source.name] = source, row_id
    if twice:
        raise ImageError(
            f"{len(twice)} ids have more than one image in {path}, first: {twice[0]}: keep one of them, or name the "
            "folder that holds the right ones"
        )
    if missing := [row_id for row_id in missing if row_id not in found]:
        raise ImageError(_missing_text(path, ids, missing, [], files))
    return [found[row_id] for row_id in ids]


def _missing_text(
    path: Path, ids: Sequence[str], missing: list[str], pairs: list[tuple[str, str, Source]], files: FileNames
) -> str:
    """Returns the error for missing images: what similar files there are and what accepts them."""
    accept_similar, follow_links = files.options
    hints = []
    if pairs:
        row_id, name, source = pairs[0]
        hints.append(
            f"{printable(source.path)} differs from the id {row_id} in {difference(row_id, name, _ALL_SUFFIXES)} only "
            f"({len({row_id for row_id, _, _ in pairs}):,} such ids): correct the ids, or set `{accept_similar}`"
        )
    if path.is_dir():
        wanted = SimilarNames(missing[:_MAX_EXPLAINED], _ALL_SUFFIXES)
        for skipped in skipped_files(path, _ALL_SUFFIXES, follow_links=files.follow_links):
            if skipped.reason == "linked folder":
                inside = next((e for e in walk_files(skipped.path) if Path(e.name).stem in wanted), None)
                if inside is not None:
                    hints.append(
                        f"{printable(inside.path)} lies in a linked folder, which is not entered: set `{follow_links}`"
                    )
            elif skipped.path.stem in wanted:
                advice = {
                    "suffix of no image": f"has a suffix that is not read: rename or convert it to one of {_KINDS}",
                    "hidden": "is hidden: rename it",
                    "broken link": "is a broken link: restore its target",
                }.get(skipped.reason, f"is {skipped.reason}")
                hints.append(f"{printable(skipped.path)} {advice}")
            if len(hints) > _MAX_HINTS:
                break
    hints = hints or ["restore the files or drop the rows from the csv"]
    return f"{len(missing)} of {len(ids)} images are missing in {path}, first: {', '.join(missing[:3])}: " + "; ".join(
        hints
    )


def image_ids(path: Path, *, names: TFRecordNames = TFRecordNames(), files: FileNames = PLAIN_NAMES) -> list[str]:
    """Returns the sorted ids of all images in ``path`` (see `image_sources`); a file's id is its stem."""
    ids = sorted(row_id for row_id, _ in _iter_sources(path, None, names, False, files))
    if not ids:
        links = skipped_files(path, _ALL_SUFFIXES) if path.is_dir() and not files.follow_links else []
        linked = next((f"; {s.path} is a linked folder: {files.options[1]}" for s in links if "linked" in s.reason), "")
        raise ImageError(f"{path} holds no image: name a folder with {_KINDS} files{linked}")
    if twice := sorted({a for a, b in pairwise(ids) if a == b}):
        raise ImageError(
            f"{len(twice)} ids have more than one image in {path}, first: {twice[0]}: keep one of them, or name the "
            "folder that holds the right ones"
        )
    return ids


def unused_files(path: Path, ids: Sequence[str], *, files: FileNames = PLAIN_NAMES) -> list[Skipped]:
    """Returns the files of a folder that give no image to any of ``ids``, with the reason; of other places nothing."""
    if not path.is_dir():
        return []
    skipped, wanted = skipped_files(path, _ALL_SUFFIXES, follow_links=files.follow_links), set(ids)
    similar = SimilarNames(ids if files.similar else (), _ALL_SUFFIXES)
    for entry in walk_files(path, follow_links=files.follow_links):
        stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122
        if suffix.lower() in (*SUFFIXES, *DICOM_SUFFIXES) and stem not in wanted and stem not in similar:
            skipped.append(Skipped(Path(entry.path), "no row in the csv"))
    return skipped


_MIN_THREADS = 4  # that hash files: they wait for the disk more than they compute
_BATCH = 256  # files hashed between two calls of `progress`


def with_contents(
    sources: Sequence[Source], *, n_jobs: int = 1, progress: Callable[[int], object] = lambda done: None
) -> list[Source]:
    """Returns the sources with the hash of what each of them holds now, in the same order.

    The hash covers a whole file of up to 1 MiB; of a larger one its length, its time and 512 KiB at each end. It is
    `UNKNOWN` for a file that cannot be read. ``progress`` is called with the number of images just hashed.
    """
    contents = [source.stamp + 1 if source.kind == "tfrecord" else UNKNOWN for source in sources]  # a record's CRC-32
    progress(sum(source.kind == "tfrecord" for source in sources))
    files = [number for number, source in enumerate(sources) if source.kind in ("file", "dicom")]
    with ThreadPoolExecutor(max(n_jobs, _MIN_THREADS)) as pool:
        for start in range(0, len(files), _BATCH):
            batch = files[start : start + _BATCH]
            for number, content in zip(batch, pool.map(file_content, [sources[n].path for n in batch]), strict=True):
                contents[number] = content
            progress(len(batch))
    keys: dict[Path, list[int]] = {}
    for number, source in enumerate(sources):
        if source.kind == "hdf5":
            keys.setdefault(source.path, []).append(number)
    for path, numbers in keys.items():
        for number, content in zip(numbers, _hdf5_contents(path, [sources[n].key for n in numbers]), strict=True):
            contents[number] = content
            progress(1)
    return [replace(source, content=content) for source, content in zip(sources, contents, strict=True)]


def _hdf5_contents(path: Path, keys: Sequence[str]) -> Iterator[int]:
    with open_hdf5(path) as file:
        for key in keys:
            try:
                yield content_of(hdf5_bytes(file, key, path))
            except ImageError:
                yield UNKNOWN


def _iter_sources(
    path: Path, requested: Container[str] | None, names: TFRecordNames, swap: bool, files: FileNames
) -> Iterator[tuple[str, Source]]:
    """Yields ids with their images; skips those not ``requested`` where that is cheap."""
    if path.is_dir():
        shards = []
        for entry in walk_files(path, follow_links=files.follow_links):
            stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122 (a Path for each of 33,000 files costs seconds)
            suffix = suffix.lower()
            if suffix in TFRECORD_SUFFIXES:
                shards.append(Path(entry.path))
            elif (requested is None or stem in requested) and suffix in SUFFIXES + DICOM_SUFFIXES:
                check_name(entry)
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
            f"{path} is not a folder, .hdf5 or .tfrec file: name the folder or file that holds the images "
            "(in a config, data.images)"
        )


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


def _hdf5_sources(path: Path, requested: Container[str] | None, swap: bool) -> Iterator[tuple[str, Source]]:
    """Yields the images of a file in ISIC 2024's format: one data set of encoded bytes per id."""
    with open_hdf5(path) as file:
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
        for key in sorted(key for key in there if requested is None or key in requested):
            length = int(hdf5_dataset(file, key, path).nbytes)
            yield key, Source(path, "hdf5", key=key, n_bytes=length, stamp=mtime, swap_red_blue=swap)

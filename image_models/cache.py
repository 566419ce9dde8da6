"""Cache of decoded images on disk: one memory-mapped file of pixels and an index by id."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import BinaryIO, Literal

import cv2
import numpy as np
import pandas as pd
import simplejpeg
from numpy.typing import NDArray

from dermstack.errors import ImageError
from dermstack.files import atomic_write
from dermstack.listing import counted
from dermstack.parquet import FRAME_ERRORS, read_parquet
from image_models.io.contents import UNKNOWN
from image_models.io.decode import DECODER_VERSION
from image_models.io.readers import Source, with_contents
from image_models.locks import LOCK_FILE, locked
from image_models.processes import run_parallel
from image_models.settings import DoneBefore

Resize = Literal["square", "short_side"]
Format = Literal["raw", "jpeg"]

PIXELS_FILE, INDEX_FILE, UNREADABLE_FILE, SETTINGS_FILE = (
    "images.bin",
    "index.parquet",
    "unreadable.parquet",
    "settings.json",
)
STAMPS_KEY, CONTENT_STAMPS = "stamps", "contents"  # in the settings: what the stamps of the index are made of
INDEX_COLUMNS = {
    "id": "str", "offset": "int64", "length": "int64", "height": "int32", "width": "int32",
    "source_height": "int32", "source_width": "int32", "source_bytes": "int64", "stamp": "int64", "crc": "int64",
    "bits": "int64", "note": "str",
}  # fmt: skip
_READ_COLUMNS = ("offset", "length", "height", "width", "crc")  # columns needed to read one image


@dataclass(frozen=True)
class ImageCache:
    """Decoded images on disk, RGB uint8, resized to a square or so that the short side is ``size`` pixels.

    ``index`` has one row per image: id; offset and length in the file of pixels; height and width as stored;
    source_height, source_width and source_bytes of the original; its stamp, a hash of its content; the CRC-32 of the
    stored bytes; ``bits`` and ``note`` of its `Picture`.
    ``unreadable`` lists the dropped images: id, file, reason.
    The object is small and can be pickled: each process that reads pixels maps the file itself.
    """

    folder: Path
    size: int
    resize: Resize
    format: Format
    index: pd.DataFrame
    unreadable: pd.DataFrame
    is_hashed: bool = True  # False: made by a dermstack whose stamps were times of files

    @cached_property
    def indexed_end(self) -> int:
        """The offset in the file of pixels at which the indexed bytes end; each read of an image checks it."""
        return int((self.index["offset"] + self.index["length"]).max()) if len(self.index) else 0

    def rows_for(self, ids: Iterable[str]) -> NDArray[np.intp]:
        """Returns the row of each id. Raises ImageError for ids that are not in the cache."""
        requested = pd.Index(ids)
        rows: NDArray[np.intp] = pd.Index(self.index["id"]).get_indexer(requested)
        if (rows < 0).any():
            lost = requested[rows < 0]
            raise ImageError(
                f"{len(lost)} ids are not in {self.folder}, first: {', '.join(lost[:3])}: run `dermstack oof`"
            )
        return rows

    def image(self, row: int) -> NDArray[np.uint8]:
        """Returns the image of a row as stored: (height, width, 3)."""
        return self._decode_row(self._open_pixels(), row)

    def take(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """Returns a batch (n, size, size, 3); of a ``short_side`` image, the central square."""
        stored = self._open_pixels()
        if self.format == "raw" and self.resize == "square":
            stride = self.size * self.size * 3
            slots = self.index["offset"].to_numpy()[rows] // stride
            squares = stored[: len(stored) // stride * stride].reshape(-1, self.size, self.size, 3)
            taken = np.asarray(squares[slots])
            stored_crc = self.index["crc"].to_numpy()[rows]
            for row, image, crc in zip(rows, taken, stored_crc, strict=True):
                self._check_crc(image, crc, row)
            return taken
        batch = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for position, row in enumerate(rows):
            image = self._decode_row(stored, int(row))
            top, left = ((side - self.size) // 2 for side in image.shape[:2])
            batch[position] = image[top : top + self.size, left : left + self.size]
        return batch

    def checksum(self, ids: Iterable[str]) -> str:
        """Returns a SHA-256 for fingerprints, over ids, CRC-32 of the stored bytes, size, resize mode and format."""
        ids = list(ids)
        crc = self.index["crc"].to_numpy()[self.rows_for(ids)]
        lines = "\n".join(f"{row_id} {value}" for row_id, value in zip(ids, crc, strict=True))
        shape = "" if (self.resize, self.format) == ("square", "raw") else f" {self.resize} {self.format}"
        return hashlib.sha256(f"{self.size}{shape}\n{lines}".encode()).hexdigest()

    def _open_pixels(self) -> NDArray[np.uint8]:
        self.check_length()
        if not self.indexed_end:
            return np.empty(0, np.uint8)
        return np.memmap(self.folder / PIXELS_FILE, dtype=np.uint8, mode="r")

    def check_length(self) -> None:
        """Raises ImageError where the file of pixels is shorter than its index requires."""
        path = self.folder / PIXELS_FILE
        if (path.stat().st_size if path.exists() else 0) < self.indexed_end:
            raise ImageError(f"{path} is shorter than its index says: {_rebuild_advice(self.folder)}")

    def _check_crc(self, kept: NDArray[np.uint8], crc: int, row: int | np.intp) -> None:
        """Checks the CRC-32 of an image at every read: 0.05 ms for 224 px, far less than its further processing."""
        if zlib.crc32(kept.data) != crc:
            name = self.index["id"].iat[int(row)]
            raise ImageError(
                f"{self.folder / PIXELS_FILE} is damaged at the image {name}: {_rebuild_advice(self.folder)}"
            )

    def _decode_row(self, stored: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        offset, length, height, width, crc = (int(self.index[name].to_numpy()[row]) for name in _READ_COLUMNS)
        kept = stored[offset : offset + length]
        self._check_crc(kept, crc, row)
        if self.format == "jpeg":
            image: NDArray[np.uint8] = simplejpeg.decode_jpeg(kept.tobytes(), "RGB")
            return image
        return np.asarray(kept.reshape(height, width, 3))


def cache_name(data_set: str, size: int, resize: Resize, format: Format) -> str:
    """Returns the name of a cache folder: <data set>-<size>, and the resize mode and format unless they are default."""
    return f"{data_set}-{size}" + ("-short_side" if resize != "square" else "") + ("-jpeg" if format != "raw" else "")


def open_cache(folder: Path, *, size: int, resize: Resize, format: Format) -> ImageCache:
    """Opens the cache in ``folder``; empty unless images were cached with these settings.

    Raises ImageError for a damaged file of settings, index or unreadable images.
    """
    settings = {"size": size, "resize": resize, "format": format, "decoder": DECODER_VERSION}
    path = folder / SETTINGS_FILE
    try:
        known = json.loads(path.read_text()) if path.exists() else None
        is_hashed = isinstance(known, dict) and known.pop(STAMPS_KEY, None) == CONTENT_STAMPS
        found = []
        for path in (folder / INDEX_FILE, folder / UNREADABLE_FILE):
            found.append(_read_table(path) if known == settings and path.exists() else None)
        if found[0] is not None:
            path = folder / INDEX_FILE
            _check_index(found[0], format)
    except FRAME_ERRORS as error:  # JSON's are among them
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ImageError(f"{path} is damaged ({reason}): {_rebuild_advice(folder)}") from error
    index, unreadable = found
    if index is None:
        index = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in INDEX_COLUMNS.items()})
    if unreadable is None:
        unreadable = pd.DataFrame(columns=["id", "file", "reason", "source_bytes", "stamp"])
    return ImageCache(folder, size, resize, format, index, unreadable, is_hashed)


def table_bytes(frame: pd.DataFrame) -> bytes:
    """Returns a table of the cache as parquet bytes, with a checksum of its values that is verified on reading."""
    marked = pd.read_parquet(io.BytesIO(frame.to_parquet()))  # round trip: the dtypes that a reader gets
    marked.attrs = {"crc": _crc(marked)}
    return bytes(marked.to_parquet())


def _read_table(path: Path) -> pd.DataFrame:
    frame = read_parquet(path)
    if frame.attrs.pop("crc", None) not in (None, _crc(frame)):  # None: written by an earlier dermstack
        raise ValueError("its checksum does not match")
    return frame


def _crc(frame: pd.DataFrame) -> int:
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return zlib.crc32(rows.tobytes(), zlib.crc32(str(frame.dtypes.to_dict()).encode()))


def _rebuild_advice(folder: Path) -> str:
    return f"remove {folder} (`dermstack clean --cache`) and run `dermstack oof` again"


def _check_index(index: pd.DataFrame, format: Format) -> None:
    """Raises ValueError or KeyError for an index with impossible offsets or sizes, which only damage produces."""
    known = index[list(INDEX_COLUMNS)]
    offset, length, height, width = (known[name].to_numpy(np.int64) for name in ("offset", "length", "height", "width"))
    if (np.minimum.reduce([offset, length, height, width]) < 0).any() or ((offset | length) >= 1 << 53).any():
        raise ValueError("an image with an impossible offset or size")
    if format == "raw" and (length != height * width * 3).any():
        raise ValueError("an image whose length does not match its height and width")


CHUNK = 64  # images per job: enough to hide joblib's overhead
SAVE_EVERY = 32  # chunks between two saves of the index: the most work that a kill can lose
SIZE_SAMPLE = 24  # images decoded to estimate the size of the rest
JPEG_QUALITY = 95
_MAX_LISTED = 20

# Stored bytes, their height and width, those of the source, and the picture's bits and note.
StoredImage = tuple[bytes, int, int, int, int, int, str]

DROP_ADVICE = "restore them, drop their rows from the csv, or set `data.on_unreadable: drop`"


def build_cache(
    folder: Path,
    ids: list[str],
    sources: list[Source],
    *,
    size: int,
    resize: Resize = "square",
    format: Format = "raw",
    n_jobs: int = 1,
    drop_unreadable: bool = False,
    advice: str = DROP_ADVICE,
    progress: Callable[[int], object] = lambda done: None,
) -> ImageCache:
    """Decodes, resizes and appends the images that are not cached yet or whose source changed; keeps the rest.

    A source has changed when its content has (see `with_contents`, which is called here for sources without hashes): a
    cache made by an earlier dermstack, which knew sizes and times only, is made anew.
    ``progress`` is called with the number of images that each step finished. Pixels are appended first and indexed
    afterwards, so that a kill loses only the work since the last save. The old pixels of a changed source stay in the
    file until the cache is removed. With ``drop_unreadable``, images that cannot be decoded do not raise, but are
    listed in the cache's ``unreadable``.

    Raises ImageError where images cannot be read (with file, id and reason of the first 20, and ``advice``) or the disk
    is too small.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, wait=math.inf):  # two experiments may share a cache; the lock ends with its process
        cache = open_cache(folder, size=size, resize=resize, format=format)
        if unhashed := [number for number, source in enumerate(sources) if source.content == UNKNOWN]:
            sources = list(sources)
            for number, source in zip(unhashed, with_contents([sources[n] for n in unhashed]), strict=True):
                sources[number] = source
        requested = pd.DataFrame(
            {"id": ids, "source_bytes": [s.n_bytes for s in sources], "stamp": [_stamp(s) for s in sources]}
        )
        known = _known(cache, requested, sources, drop_unreadable)
        if not known.all() and not cache.is_hashed:
            cache = replace(cache, index=cache.index.iloc[:0], unreadable=cache.unreadable.iloc[:0], is_hashed=True)
            known = _known(cache, requested, sources, drop_unreadable)
        progress(DoneBefore(known.sum()))
        todo = np.flatnonzero(~known)
        if len(todo):
            _truncate_leftovers(cache)
            _check_disk_space(cache, [sources[i] for i in todo])
            cache = _decode_missing(cache, requested, sources, todo, n_jobs=n_jobs, progress=progress)
            lost = cache.unreadable[cache.unreadable["id"].isin(requested["id"].iloc[todo])]
            if len(lost) and not drop_unreadable:
                raise unreadable_error(lost, advice)
    lost = cache.unreadable[cache.unreadable["id"].isin(ids)]
    return replace(cache, unreadable=lost[["id", "file", "reason"]].reset_index(drop=True))


def resize_image(image: NDArray[np.uint8], size: int, resize: Resize) -> NDArray[np.uint8]:
    """Resizes to a square, or to the short side ``size`` with the aspect ratio kept; enlarges smaller images."""
    height, width = image.shape[:2]
    if resize == "square":
        target = (size, size)
    else:
        scale = size / min(height, width)
        target = (max(size, round(width * scale)), max(size, round(height * scale)))
    if target == (width, height):
        return image
    # Area averaging avoids aliasing when shrinking; it is not meant for enlarging.
    shrinks = height >= target[1] and width >= target[0]
    resized: NDArray[np.uint8] = cv2.resize(image, target, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return resized


def _decode_missing(
    cache: ImageCache,
    requested: pd.DataFrame,
    sources: list[Source],
    todo: NDArray[np.intp],
    *,
    n_jobs: int,
    progress: Callable[[int], object],
) -> ImageCache:
    """Decodes the rows ``todo``, appends them to the pixels and saves the index every ``SAVE_EVERY`` chunks."""
    chunks = [todo[start : start + CHUNK] for start in range(0, len(todo), CHUNK)]
    tasks = (
        partial(_decode_chunk, [sources[i] for i in chunk], cache.size, cache.resize, cache.format) for chunk in chunks
    )
    jobs = run_parallel(tasks, n_jobs)
    records = requested.to_dict("records")
    try:
        with (cache.folder / PIXELS_FILE).open("ab") as file:
            for number in range(0, len(chunks), SAVE_EVERY):
                batch = chunks[number : number + SAVE_EVERY]
                rows, lost = [], []
                for chunk, results in zip(batch, jobs, strict=False):
                    for i, result in zip(chunk, results, strict=True):
                        source = records[i]
                        if isinstance(result, str):
                            lost.append(source | {"file": sources[i].name, "reason": result})
                        else:
                            rows.append(source | _append(file, result))
                    progress(len(chunk))
                file.flush()
                os.fsync(file.fileno())
                cache = _update_index(cache, rows, lost)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ImageError(
            f"{cache.folder}: the disk is full: free some space and run the command again, which continues from the "
            "saved images, or set `data.cache_format: jpeg`"
        ) from error
    return cache


def _append(file: BinaryIO, result: StoredImage) -> dict[str, object]:
    kept, height, width, source_height, source_width, bits, note = result
    offset = file.tell()
    file.write(kept)
    return {
        "offset": offset, "length": len(kept), "height": height, "width": width,
        "source_height": source_height, "source_width": source_width, "crc": zlib.crc32(kept),
        "bits": bits, "note": note,
    }  # fmt: skip


def _decode_chunk(sources: list[Source], size: int, resize: Resize, format: Format) -> list[StoredImage | str]:
    """Returns for each image what to store, or why it cannot be read."""
    made: list[StoredImage | str] = []
    for source in sources:
        try:
            made.append(_encode_source(source, size, resize, format))
        except ImageError as error:
            made.append(str(error))
    return made


def _encode_source(source: Source, size: int, resize: Resize, format: Format) -> StoredImage:
    picture = source.read(min_side=size)
    small = np.ascontiguousarray(resize_image(picture.image, size, resize))
    # 4:4:4: at a network's input size, halving the colour resolution would be visible.
    kept = simplejpeg.encode_jpeg(small, JPEG_QUALITY, "RGB", "444") if format == "jpeg" else small.tobytes()
    return kept, small.shape[0], small.shape[1], picture.height, picture.width, picture.bits, picture.note


def _stamp(source: Source) -> int:
    content = source.stamp if source.kind == "tfrecord" else source.content
    return (content * 2 + source.swap_red_blue) ^ source.bits_stored << 32  # 0 where all bits are used


def _known(
    cache: ImageCache, requested: pd.DataFrame, sources: list[Source], drop_unreadable: bool
) -> NDArray[np.bool_]:
    """Marks the requested rows that need no decoding: cached, or known to be unreadable and dropped."""
    known = _unchanged(requested, cache.index)
    tolerated = requested["id"].isin(cache.index["id"][cache.index["note"] != ""])
    tolerates = np.array([source.tolerate for source in sources], bool)
    known &= ~tolerated.to_numpy(bool) | tolerates
    if drop_unreadable:
        known |= _unchanged(requested, cache.unreadable) & ~tolerates  # they may be readable in this way
    hashed: NDArray[np.bool_] = np.array([source.content != UNKNOWN for source in sources], bool)
    return np.logical_and(known, hashed)


def _unchanged(requested: pd.DataFrame, kept: pd.DataFrame) -> NDArray[np.bool_]:
    """Marks the requested rows that are cached with the same id, number of source bytes and stamp."""
    columns = ["id", "source_bytes", "stamp"]
    there = pd.MultiIndex.from_frame(kept[columns])
    same: NDArray[np.bool_] = pd.MultiIndex.from_frame(requested[columns]).isin(there)
    return same


def _truncate_leftovers(cache: ImageCache) -> None:
    """Removes leftovers of a kill, or of another cache with this name, and writes the settings."""
    settings: dict[str, object] = {
        "size": cache.size, "resize": cache.resize, "format": cache.format, "decoder": DECODER_VERSION
    }  # fmt: skip
    if cache.is_hashed:
        settings |= {STAMPS_KEY: CONTENT_STAMPS}
    if not len(cache.index):
        for path in cache.folder.iterdir():
            if path.is_file() and path.name != LOCK_FILE:
                path.unlink()
    cache.check_length()  # otherwise truncate() would extend the file by zeros: black images
    _write_atomically(cache.folder / SETTINGS_FILE, json.dumps(settings).encode())
    with (cache.folder / PIXELS_FILE).open("ab") as file:
        file.truncate(cache.indexed_end)


def _check_disk_space(cache: ImageCache, todo: list[Source]) -> None:
    """Raises ImageError where the remaining images need more disk space than is free, estimated before decoding."""
    each = cache.size * cache.size * 3.0
    if cache.format == "jpeg" or cache.resize == "short_side":
        results = _decode_chunk(todo[:: max(1, len(todo) // SIZE_SAMPLE)], cache.size, cache.resize, cache.format)
        each = float(np.mean([len(result[0]) for result in results if not isinstance(result, str)] or [int(each)]))
    needed, free = each * len(todo), shutil.disk_usage(cache.folder).free
    if needed > free:
        advice = "" if cache.format == "jpeg" else "set `data.cache_format: jpeg`, which takes about a tenth, or "
        raise ImageError(
            f"{cache.folder}: {len(todo):,} images will take {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are "
            f"free: {advice}set `cache:` to a folder on a larger disk"
        )


def _update_index(cache: ImageCache, rows: list[dict[str, object]], lost: list[dict[str, object]]) -> ImageCache:
    """Saves the index and the unreadable images with the new rows, which replace old rows of the same id."""
    done = {row["id"] for row in (*rows, *lost)}

    def updated(kept: pd.DataFrame, new: list[dict[str, object]]) -> pd.DataFrame:
        kept = kept[~kept["id"].isin(done)]
        return pd.concat([kept, pd.DataFrame(new)], ignore_index=True)[list(kept.columns)] if new else kept

    index = updated(cache.index, rows).astype(INDEX_COLUMNS).reset_index(drop=True)
    unreadable = updated(cache.unreadable, lost).reset_index(drop=True)
    for name, frame in ((UNREADABLE_FILE, unreadable), (INDEX_FILE, index)):
        _write_atomically(cache.folder / name, table_bytes(frame))
    return replace(cache, index=index, unreadable=unreadable)


def _write_atomically(path: Path, content: bytes) -> None:
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def unreadable_error(lost: pd.DataFrame, advice: str = DROP_ADVICE) -> ImageError:
    """Returns the error that names the images in ``lost`` (id, reason) and the next step."""
    lines = [f"id {row_id}: {reason}" for row_id, reason in zip(lost["id"], lost["reason"], strict=True)]
    shown = lines[:_MAX_LISTED] + [f"… and {len(lines) - _MAX_LISTED} more"] * (len(lines) > _MAX_LISTED)
    return ImageError("\n  ".join([f"{counted(len(lines), 'images')} cannot be read; {advice}:", *shown]))

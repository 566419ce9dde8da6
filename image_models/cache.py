"""Each image is decoded once in its life: one file of pixels, memory-mapped, and an index of ids beside it."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import simplejpeg
from numpy.typing import NDArray

from image_models.errors import ImageError

Resize = Literal["square", "short_side"]
Format = Literal["raw", "jpeg"]

PIXELS, INDEX, UNREADABLE, SETTINGS = "images.bin", "index.parquet", "unreadable.parquet", "settings.json"
INDEX_COLUMNS = {
    "id": "str", "offset": "int64", "length": "int64", "height": "int32", "width": "int32",
    "source_height": "int32", "source_width": "int32", "source_bytes": "int64", "stamp": "int64", "crc": "int64",
}  # fmt: skip
_WHERE = ("offset", "length", "height", "width", "crc")  # what reading one image takes of its row


@dataclass(frozen=True)
class ImageCache:
    """Decoded images on disk: RGB uint8, squeezed to a square or with their short side ``size``.

    ``index`` has a row for each image: id, offset and length in the file of pixels, height and width as stored,
    source_height, source_width and source_bytes of the original, its stamp, the crc of what is stored. ``unreadable``:
    id, file, reason of what was dropped.
    Small and picklable: the pixels are mapped anew by each process that reads them.
    """

    folder: Path
    size: int
    resize: Resize
    format: Format
    index: pd.DataFrame
    unreadable: pd.DataFrame

    def rows_for(self, ids: Iterable[str]) -> NDArray[np.intp]:
        """The row of each id; raises ImageError when one isn't cached."""
        wanted = pd.Index(ids)
        rows: NDArray[np.intp] = pd.Index(self.index["id"]).get_indexer(wanted)
        if (rows < 0).any():
            lost = wanted[rows < 0]
            raise ImageError(
                f"{len(lost)} ids are not in {self.folder}, first: {', '.join(lost[:3])}: run `dermstack oof`"
            )
        return rows

    def image(self, row: int) -> NDArray[np.uint8]:
        """The image of a row as stored: (height, width, 3)."""
        return self._decoded(self._bytes(), row)

    def take(self, rows: NDArray[np.intp]) -> NDArray[np.uint8]:
        """A batch: (n, size, size, 3). Of a ``short_side`` image the central square."""
        stored = self._bytes()
        if self.format == "raw" and self.resize == "square":
            stride = self.size * self.size * 3
            slots = self.index["offset"].to_numpy()[rows] // stride
            squares = stored[: len(stored) // stride * stride].reshape(-1, self.size, self.size, 3)
            taken = np.asarray(squares[slots])
            stored_crc = self.index["crc"].to_numpy()[rows]
            for row, image, crc in zip(rows, taken, stored_crc, strict=True):
                self._check(image, crc, row)
            return taken
        batch = np.empty((len(rows), self.size, self.size, 3), np.uint8)
        for place, row in enumerate(rows):
            image = self._decoded(stored, int(row))
            top, left = ((side - self.size) // 2 for side in image.shape[:2])
            batch[place] = image[top : top + self.size, left : left + self.size]
        return batch

    def checksum(self, ids: Iterable[str]) -> str:
        """What a fingerprint takes of these images: their ids, what is stored of each, the size."""
        ids = list(ids)
        crc = self.index["crc"].to_numpy()[self.rows_for(ids)]
        lines = "\n".join(f"{row_id} {value}" for row_id, value in zip(ids, crc, strict=True))
        shape = "" if (self.resize, self.format) == ("square", "raw") else f" {self.resize} {self.format}"
        return hashlib.sha256(f"{self.size}{shape}\n{lines}".encode()).hexdigest()

    def _bytes(self) -> NDArray[np.uint8]:
        self.check_length()
        if not end_of(self.index):
            return np.empty(0, np.uint8)
        return np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r")

    def check_length(self) -> None:
        """Raise ImageError where the file of pixels lacks bytes that the index names."""
        path = self.folder / PIXELS
        if (path.stat().st_size if path.exists() else 0) < end_of(self.index):
            raise ImageError(f"{path} is shorter than its index says: {_again(self.folder)}")

    def _check(self, kept: NDArray[np.uint8], crc: int, row: int | np.intp) -> None:
        """Whenever pixels are read: 0.05 ms an image of 224 px, far less than what is done with it."""
        if zlib.crc32(kept.data) != crc:
            name = self.index["id"].iat[int(row)]
            raise ImageError(f"{self.folder / PIXELS} is damaged at the image {name}: {_again(self.folder)}")

    def _decoded(self, stored: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        offset, length, height, width, crc = (int(self.index[name].to_numpy()[row]) for name in _WHERE)
        kept = stored[offset : offset + length]
        self._check(kept, crc, row)
        if self.format == "jpeg":
            image: NDArray[np.uint8] = simplejpeg.decode_jpeg(kept.tobytes(), "RGB")
            return image
        return np.asarray(kept.reshape(height, width, 3))


def cache_name(data_set: str, size: int, resize: Resize, format: Format) -> str:
    """The cache's folder, shared by experiments: <data set>-<pixels>, and how it is kept where not as usual."""
    return f"{data_set}-{size}" + ("-short_side" if resize != "square" else "") + ("-jpeg" if format != "raw" else "")


def open_cache(folder: Path, *, size: int, resize: Resize, format: Format) -> ImageCache:
    """What is cached in ``folder`` so far, perhaps nothing. Raises ImageError for a damaged index."""
    settings = {"size": size, "resize": resize, "format": format}
    path = folder / SETTINGS
    try:
        known = json.loads(path.read_text()) if path.exists() else None
        found = []
        for path in (folder / INDEX, folder / UNREADABLE):
            found.append(_read_table(path) if known == settings and path.exists() else None)
        if found[0] is not None:
            path = folder / INDEX
            _check_index(found[0], format)
    # What JSON, pyarrow and pandas raise for bytes that are none of theirs.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, MemoryError) as error:
        reason = next(iter(str(error).splitlines()), "")[:200]
        raise ImageError(f"{path} is damaged ({reason}): {_again(folder)}") from error
    index, unreadable = found
    if index is None:
        index = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in INDEX_COLUMNS.items()})
    if unreadable is None:
        unreadable = pd.DataFrame(columns=["id", "file", "reason", "source_bytes", "stamp"])
    return ImageCache(folder, size, resize, format, index, unreadable)


def table_bytes(frame: pd.DataFrame) -> bytes:
    """A table of the cache as parquet, with a checksum of its values that reading compares."""
    marked = pd.read_parquet(io.BytesIO(frame.to_parquet()))  # with the dtypes that the reader will meet
    marked.attrs = {"crc": _crc(marked)}
    return bytes(marked.to_parquet())


def _read_table(path: Path) -> pd.DataFrame:
    frame = pd.read_parquet(path)
    if frame.attrs.pop("crc", None) not in (None, _crc(frame)):  # None: of an earlier dermstack
        raise ValueError("it isn't what its checksum says")
    return frame


def _crc(frame: pd.DataFrame) -> int:
    rows = pd.util.hash_pandas_object(frame, index=False).to_numpy()
    return zlib.crc32(rows.tobytes(), zlib.crc32(str(frame.dtypes.to_dict()).encode()))


def _again(folder: Path) -> str:
    return f"remove {folder} (`dermstack clean --cache`) and run `dermstack oof` again"


def _check_index(index: pd.DataFrame, format: Format) -> None:
    """Raise ValueError or KeyError for an index that leads out of the file of pixels, as none that was written here."""
    known = index[list(INDEX_COLUMNS)]
    offset, length, height, width = (known[name].to_numpy(np.int64) for name in ("offset", "length", "height", "width"))
    if (np.minimum.reduce([offset, length, height, width]) < 0).any() or ((offset | length) >= 1 << 53).any():
        raise ValueError("a picture nowhere")
    if format == "raw" and (length != height * width * 3).any():
        raise ValueError("a picture of another length than its sides")


def end_of(index: pd.DataFrame) -> int:
    """Where the indexed bytes end in the file of pixels."""
    return int((index["offset"] + index["length"]).max()) if len(index) else 0

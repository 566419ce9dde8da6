"""Each image is decoded once in its life: one file of pixels, memory-mapped, and an index of ids beside it."""

from __future__ import annotations

import hashlib
import json
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
            return np.asarray(squares[slots])
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
        path = self.folder / PIXELS
        wanted = end_of(self.index)
        if not wanted:
            return np.empty(0, np.uint8)
        if not path.exists() or path.stat().st_size < wanted:
            raise ImageError(
                f"{path} is shorter than its index says: remove {self.folder} (`dermstack clean --cache`) and run "
                "`dermstack oof`"
            )
        return np.memmap(path, dtype=np.uint8, mode="r")

    def _decoded(self, stored: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        offset, length, height, width = self.index[["offset", "length", "height", "width"]].to_numpy()[row]
        kept = stored[offset : offset + length]
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
    try:
        known = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).exists() else None
        index, unreadable = (
            pd.read_parquet(folder / name) if known == settings and (folder / name).exists() else None
            for name in (INDEX, UNREADABLE)
        )
        if index is not None:
            _check_index(index, format)
    # What pyarrow and pandas raise for bytes that are no parquet.
    except (OSError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, MemoryError) as error:
        raise ImageError(
            f"{folder} is damaged ({error}): remove it (`dermstack clean --cache`) and run `dermstack oof`"
        ) from error
    if index is None:
        index = pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in INDEX_COLUMNS.items()})
    if unreadable is None:
        unreadable = pd.DataFrame(columns=["id", "file", "reason", "source_bytes", "stamp"])
    return ImageCache(folder, size, resize, format, index, unreadable)


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

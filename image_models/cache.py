"""Each image is decoded once in its life: one memory-mapped uint8 file and an id index beside it."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import joblib
import numpy as np
import pandas as pd
from filelock import FileLock
from numpy.typing import NDArray

from image_models.errors import ImageError
from image_models.readers import read_image

CHUNK = 64  # images a job: enough to hide joblib's overhead
SAVE_EVERY = 32  # chunks between two saves of the index: what a kill can cost
INDEX_COLUMNS = ["id", "bytes", "mtime_ns", "height", "width", "crc"]


@dataclass(frozen=True)
class ImageCache:
    """Decoded images on disk: ``pixels()[row]`` is the image of ``index.id[row]``, RGB uint8, ``size`` × ``size``."""

    folder: Path
    size: int
    index: pd.DataFrame  # id, bytes, mtime_ns, height, width (of the original), crc (of the pixels); row = position

    def pixels(self) -> NDArray[np.uint8]:
        """All images, memory-mapped: (n, size, size, 3)."""
        shape = (len(self.index), self.size, self.size, 3)
        return np.memmap(self.folder / "images.u8", dtype=np.uint8, mode="r", shape=shape)

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

    def checksum(self, ids: Iterable[str]) -> str:
        """What a fingerprint takes of these images: their ids, their pixels, the size."""
        crc = self.index["crc"].to_numpy()[self.rows_for(ids)]
        lines = "\n".join(f"{row_id} {value}" for row_id, value in zip(ids, crc, strict=True))
        return hashlib.sha256(f"{self.size}\n{lines}".encode()).hexdigest()


def build_cache(
    folder: Path,
    ids: list[str],
    paths: list[Path],
    *,
    size: int,
    n_jobs: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> ImageCache:
    """Decode what isn't cached yet or whose file changed since, squeeze it to ``size`` × ``size``, keep the rest.

    ``progress`` is told how many images each step finished. Killed in between, it goes on from the last saved index.
    Raises ImageError that lists every unreadable image with file, id and reason.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # two experiments may share a cache; the lock goes with its process
        index = _read_index(folder)
        stats = [path.stat() for path in paths]
        sources = pd.DataFrame(
            {"id": ids, "bytes": [s.st_size for s in stats], "mtime_ns": [s.st_mtime_ns for s in stats]}
        )
        known = sources.merge(index, on="id", how="left", suffixes=("", "_cached"))
        fresh = (known["bytes"] == known["bytes_cached"]) & (known["mtime_ns"] == known["mtime_ns_cached"])
        progress(int(fresh.sum()))
        todo = np.flatnonzero(~fresh.to_numpy())
        if len(todo):
            index = _fill(folder, index, sources, paths, todo, size=size, n_jobs=n_jobs, progress=progress)
    return ImageCache(folder, size, index)


def _fill(
    folder: Path,
    index: pd.DataFrame,
    sources: pd.DataFrame,
    paths: list[Path],
    todo: NDArray[np.intp],
    *,
    size: int,
    n_jobs: int,
    progress: Callable[[int], object],
) -> pd.DataFrame:
    """Decode the rows ``todo`` of ``sources`` into the pixel file and return the index that then holds."""
    row_of = {row_id: row for row, row_id in enumerate(index["id"])}
    for position in todo:
        row_of.setdefault(sources["id"].iat[position], len(row_of))
    pixels = folder / "images.u8"
    with pixels.open("ab") as file:
        file.truncate(len(row_of) * size * size * 3)

    chunks = [
        [(row_of[sources["id"].iat[i]], sources["id"].iat[i], paths[i]) for i in todo[start : start + CHUNK]]
        for start in range(0, len(todo), CHUNK)
    ]
    records = index.set_index("id").to_dict("index")
    stamps = sources.set_index("id")[["bytes", "mtime_ns"]].to_dict("index")
    unreadable: list[str] = []
    # Rows are positions, so the index has no holes: a row not decoded yet carries bytes = -1 and is redone.
    blank = {"bytes": -1, "mtime_ns": -1, "height": 0, "width": 0, "crc": 0}
    with joblib.Parallel(n_jobs=n_jobs) as workers:
        for start in range(0, len(chunks), SAVE_EVERY):
            jobs = (
                joblib.delayed(_decode_into)(pixels, len(row_of), size, chunk)
                for chunk in chunks[start : start + SAVE_EVERY]
            )
            results = workers(jobs)
            for done, errors in results:
                unreadable += errors
                for row_id, height, width, crc in done:
                    records[row_id] = {**stamps[row_id], "height": height, "width": width, "crc": crc}
            index = pd.DataFrame([{"id": row_id, **records.get(row_id, blank)} for row_id in row_of])
            _write_index(folder, index[INDEX_COLUMNS], pixels)
            progress(sum(len(done) for done, _ in results))
    if unreadable:
        shown = "\n  ".join(unreadable[:20])
        more = f"\n  … and {len(unreadable) - 20} more" if len(unreadable) > 20 else ""
        raise ImageError(
            f"{len(unreadable)} images cannot be read; restore them or drop their rows from the csv:\n  {shown}{more}"
        )
    return index


def _decode_into(
    pixels: Path, n: int, size: int, chunk: list[tuple[int, str, Path]]
) -> tuple[list[tuple[str, int, int, int]], list[str]]:
    """Decode a chunk straight into the pixel file: (id, height, width, crc) of each, and a line for each failure."""
    images = np.memmap(pixels, dtype=np.uint8, mode="r+", shape=(n, size, size, 3))
    done, errors = [], []
    for row, row_id, path in chunk:
        try:
            image = read_image(path, at_least=size)
        except ImageError as error:
            errors.append(f"id {row_id}: {error}")
            continue
        # Area averaging when shrinking (no aliasing); it has no meaning when growing.
        shrink = image.shape[0] >= size and image.shape[1] >= size
        images[row] = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_CUBIC)
        done.append((row_id, image.shape[0], image.shape[1], zlib.crc32(images[row].tobytes())))
    return done, errors


def _read_index(folder: Path) -> pd.DataFrame:
    path = folder / "index.parquet"
    return pd.read_parquet(path) if path.exists() else pd.DataFrame(columns=INDEX_COLUMNS)


def _write_index(folder: Path, index: pd.DataFrame, pixels: Path) -> None:
    """Pixels first, index after, each on the disk before the next: the index never names a row that isn't there."""
    with pixels.open("rb") as file:
        os.fsync(file.fileno())
    temporary = folder / "index.parquet.tmp"
    index.to_parquet(temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(folder / "index.parquet")

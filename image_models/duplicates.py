"""What a picture looks like at a glance: near-duplicates by perceptual hash, red and blue swapped, black, constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.fft import dct
from scipy.ndimage import gaussian_filter

from image_models.cache import ImageCache
from image_models.processes import in_processes

SIDE = 32  # pixels of a thumbnail
LOW = 8  # frequencies a side that the hash looks at
# Copies at 60 % size and JPEG quality 50 differ in at most 7 of 63 bits, correlate above 0.97, in detail 0.955.
# Different lesions under one microscope, a spot in a dark frame, reach 0.983 and 0.947 (docs/log.md).
MAX_BITS = 10
MIN_CORRELATION = 0.96  # of two thumbnails, each channel less its mean
MIN_DETAIL = 0.95  # of their grey less its blur: what a frame and a spot in the middle have not in common
BLUR = 2.0  # pixels of a thumbnail
DARK = 16  # grey levels: a picture whose brightest hundredth is darker shows nothing
FLAT = 2.0  # grey levels of standard deviation: less is no picture
BLUER = 14  # grey levels by which blue outshines red in a picture whose channels are swapped

GREY = np.array([0.299, 0.587, 0.114], np.float32)
TURNS = (
    "as it is", "mirrored", "upside down", "turned by 180°", "transposed", "turned by 90°", "turned by 270°",
    "transversed",
)  # fmt: skip

_Number = TypeVar("_Number", bound=np.generic)
_BLOCK = 1024  # pictures a block of the all-pairs search: 8 × 1024 × 33,000 bits are 270 MB as one byte each


@dataclass(frozen=True)
class Looks:
    """Of n pictures: ``thumbnails`` (n, 32, 32, 3) uint8 of the whole picture, ``hashes`` (n, 8) uint64.

    ``hashes[:, t]`` is the hash of the picture brought by symmetry ``t`` of the square, in the order of ``TURNS``.
    """

    thumbnails: NDArray[np.uint8]
    hashes: NDArray[np.uint64]


def read_looks(
    cache: ImageCache,
    rows: NDArray[np.intp],
    *,
    n_jobs: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> Looks:
    """Thumbnails and hashes of the cache's ``rows``, in their order. ``progress`` is told how many each step did."""
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    jobs = in_processes((partial(thumbnails_of, cache, block, side=SIDE) for block in blocks), n_jobs)
    thumbnails = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    start = 0
    for block in jobs:
        thumbnails[start : start + len(block)] = block
        start += len(block)
        progress(len(block))
    return Looks(thumbnails, hash_thumbnails(thumbnails))


def thumbnails_of(cache: ImageCache, rows: NDArray[np.intp], *, side: int) -> NDArray[np.uint8]:
    """The whole pictures squeezed to ``side`` × ``side`` pixels, so that one turned by 90° looks like itself."""
    small = [cv2.resize(cache.image(int(row)), (side, side), interpolation=cv2.INTER_AREA) for row in rows]
    return np.stack(small) if small else np.empty((0, side, side, 3), np.uint8)


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The signs of the 63 lowest cosine frequencies of grey, for each of the eight symmetries: (n, 8) uint64.

    As pHash (Zauner 2010), but with signs instead of the median, so that the hash of a mirrored picture needs no
    mirrored picture: mirroring changes the sign of every odd frequency, transposing exchanges the two axes.
    """
    odd = np.arange(LOW) % 2 == 1
    weights = np.uint64(1) << np.arange(LOW * LOW, dtype=np.uint64)
    weights[0] = 0  # the mean is no shape
    hashes = np.empty((len(thumbnails), len(TURNS)), np.uint64)
    for start in range(0, len(thumbnails), _BLOCK):
        grey = thumbnails[start : start + _BLOCK].astype(np.float32) @ GREY
        low = dct(dct(grey, axis=1)[:, :LOW], axis=2)[:, :, :LOW]
        for turn in range(len(TURNS)):
            brought = low.transpose(0, 2, 1) if turn >= 4 else low
            positive = brought > 0
            if turn in (1, 3, 5, 7):  # mirrored left to right: odd horizontal frequencies change their sign
                positive = np.where(odd[None, None, :], brought < 0, positive)
            if turn in (2, 3, 6, 7):
                positive = np.where(odd[None, :, None], ~positive & (brought != 0), positive)
            hashes[start : start + _BLOCK, turn] = (positive.reshape(len(grey), -1) * weights).sum(axis=1)
    return hashes


def near_duplicates(looks: Looks) -> pd.DataFrame:
    """Pairs of the same picture but for size, encoding, light, mirroring and turns: a < b (positions), turn, distance.

    ``turn`` names the symmetry that brings ``b`` to look like ``a``; ``distance`` is 1 less the correlation of the
    thumbnails' detail, 0 for the same. All pairs are compared by hash, those that are close by their thumbnails.
    """
    plain, n = looks.hashes[:, 0], len(looks.hashes)
    detail = _detail(looks.thumbnails)
    found = []
    for start in range(0, n, _BLOCK):
        block = plain[start : start + _BLOCK]
        for turn in range(len(TURNS)):
            bits = np.bitwise_count(block[:, None] ^ looks.hashes[None, start:, turn])
            a, b = np.nonzero(bits <= MAX_BITS)
            later = b > a
            a, b = a[later] + start, b[later] + start
            likeness = _likeness(detail, a, b, turn)
            close = np.flatnonzero(likeness >= MIN_DETAIL)
            whole = _correlation(looks.thumbnails[a[close]], turned(looks.thumbnails[b[close]], turn))
            same = close[whole >= MIN_CORRELATION]
            found.append(pd.DataFrame({"a": a[same], "b": b[same], "turn": turn, "distance": 1 - likeness[same]}))
    pairs = pd.concat(found, ignore_index=True).sort_values(["a", "b", "distance", "turn"])
    pairs = pairs.drop_duplicates(["a", "b"]).reset_index(drop=True)
    return pairs.assign(turn=np.array(TURNS, dtype=object)[pairs["turn"].to_numpy(np.intp)])


def strange(looks: Looks) -> pd.DataFrame:
    """Pictures that can't be what they should: position and fault, "black", "constant" or "red and blue swapped".

    Skin reflects more red than blue, whatever its colour and whoever holds the camera.
    """
    pixels = looks.thumbnails.reshape(len(looks.thumbnails), -1, 3).astype(np.float32)
    bright = np.percentile(pixels.max(axis=2), 99, axis=1)
    spread = pixels.std(axis=1).max(axis=1)
    middle = looks.thumbnails[:, SIDE // 4 : -SIDE // 4, SIDE // 4 : -SIDE // 4].reshape(len(pixels), -1, 3)
    blue_less_red = np.median(middle[..., 2].astype(np.int16) - middle[..., 0], axis=1)
    faults = [
        (bright < DARK, "black"),
        ((spread < FLAT) & (bright >= DARK), "constant"),
        ((blue_less_red > BLUER) & (spread >= FLAT) & (bright >= DARK), "red and blue swapped"),
    ]
    frames = [pd.DataFrame({"position": np.flatnonzero(where), "fault": fault}) for where, fault in faults]
    return pd.concat(frames, ignore_index=True).sort_values("position", ignore_index=True)


def turned(images: NDArray[_Number], turn: int) -> NDArray[_Number]:
    """Images (n, h, w, c) brought by a symmetry of the square, numbered as ``TURNS``."""
    if turn >= 4:
        images = images.transpose(0, 2, 1, 3)
    if turn in (1, 3, 5, 7):
        images = images[:, :, ::-1]
    if turn in (2, 3, 6, 7):
        images = images[:, ::-1]
    return images


def _detail(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey less its blur, of length one: (n, 32, 32). All zero where a picture is flat."""
    detail = np.empty(thumbnails.shape[:3], np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        images = thumbnails[start : start + _BLOCK].astype(np.float32)
        grey = images @ GREY
        grey -= gaussian_filter(grey, (0, BLUR, BLUR))
        length = np.sqrt((grey**2).sum(axis=(1, 2)))
        flat = images.std(axis=(1, 2)).max(axis=1) < FLAT
        detail[start : start + _BLOCK] = grey * np.where(flat, 0, 1 / np.maximum(length, 1e-9))[:, None, None]
    return detail


def _likeness(detail: NDArray[np.float32], a: NDArray[np.intp], b: NDArray[np.intp], turn: int) -> NDArray[np.float32]:
    """The correlation of each pair's detail, ``b`` brought by ``turn``: blurring and turning change places."""
    likeness = np.empty(len(a), np.float32)
    places = turned(np.arange(SIDE * SIDE).reshape(1, SIDE, SIDE, 1), turn).ravel()
    flat = detail.reshape(len(detail), -1)
    for start in range(0, len(a), _BLOCK):
        some = slice(start, start + _BLOCK)
        likeness[some] = np.einsum("ij,ij->i", flat[a[some]], flat[b[some]][:, places])
    return likeness


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of n thumbnails with their partners, each channel less its mean, so that casts and exposure don't count: (n,)."""
    x, y = (images.astype(np.float32) for images in (one, other))
    x, y = ((z - z.mean(axis=(1, 2), keepdims=True)).reshape(len(z), SIDE * SIDE * 3) for z in (x, y))
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    correlation: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(scale, 1e-9)
    return correlation

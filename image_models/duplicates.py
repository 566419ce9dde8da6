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
from image_models.processes import run_parallel

THUMBNAIL_SIDE = 32  # pixels of a thumbnail
HASH_SIDE = 8  # frequencies a side that the hash looks at
# Copies at 60 % size and JPEG quality 50 differ in at most 7 of 63 bits, correlate above 0.97, in detail 0.955.
# Different lesions under one microscope, a spot in a dark frame, reach 0.983 and 0.947 (docs/log.md).
MAX_HAMMING = 10
MIN_CORRELATION = 0.96  # of two thumbnails, each channel less its mean
MIN_DETAIL_CORRELATION = 0.95  # of their grey less its blur: what a frame and a spot in the middle have not in common
BLUR_SIGMA = 2.0  # pixels of a thumbnail
MIN_BRIGHTNESS = 16  # grey levels: a picture whose brightest hundredth is darker shows nothing
MIN_STD = 2.0  # grey levels of standard deviation: less is no picture
MIN_BLUE_EXCESS = 14  # grey levels by which blue outshines red in a picture whose channels are swapped

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
SYMMETRIES = (
    "as it is", "mirrored", "upside down", "turned by 180°", "transposed", "turned by 90°", "turned by 270°",
    "transversed",
)  # fmt: skip

_Number = TypeVar("_Number", bound=np.generic)
_BLOCK = 1024  # pictures a block of the all-pairs search: 8 × 1024 × 33,000 bits are 270 MB as one byte each


@dataclass(frozen=True)
class HashedImages:
    """Of n pictures: ``thumbnails`` (n, 32, 32, 3) uint8 of the whole picture, ``hashes`` (n, 8) uint64.

    ``hashes[:, t]`` is the hash of the picture brought by symmetry ``t`` of the square, in the order of ``SYMMETRIES``.
    """

    thumbnails: NDArray[np.uint8]
    hashes: NDArray[np.uint64]


def read_hashed_images(
    cache: ImageCache,
    rows: NDArray[np.intp],
    *,
    n_jobs: int = 1,
    progress: Callable[[int], object] = lambda done: None,
) -> HashedImages:
    """Thumbnails and hashes of the cache's ``rows``, in their order. ``progress`` is told how many each step did."""
    blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
    jobs = run_parallel((partial(thumbnails_of, cache, block, side=THUMBNAIL_SIDE) for block in blocks), n_jobs)
    thumbnails = np.empty((len(rows), THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
    start = 0
    for block in jobs:
        thumbnails[start : start + len(block)] = block
        start += len(block)
        progress(len(block))
    return HashedImages(thumbnails, hash_thumbnails(thumbnails))


def thumbnails_of(cache: ImageCache, rows: NDArray[np.intp], *, side: int) -> NDArray[np.uint8]:
    """The whole pictures squeezed to ``side`` × ``side`` pixels, so that one turned by 90° looks like itself."""
    small = [cv2.resize(cache.image(int(row)), (side, side), interpolation=cv2.INTER_AREA) for row in rows]
    return np.stack(small) if small else np.empty((0, side, side, 3), np.uint8)


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """The signs of the 63 lowest cosine frequencies of grey, for each of the eight symmetries: (n, 8) uint64.

    As pHash (Zauner 2010), but with signs instead of the median, so that the hash of a mirrored picture needs no
    mirrored picture: mirroring changes the sign of every odd frequency, transposing exchanges the two axes.
    """
    odd = np.arange(HASH_SIDE) % 2 == 1
    weights = np.uint64(1) << np.arange(HASH_SIDE * HASH_SIDE, dtype=np.uint64)
    weights[0] = 0  # the mean is no shape
    hashes = np.empty((len(thumbnails), len(SYMMETRIES)), np.uint64)
    for start in range(0, len(thumbnails), _BLOCK):
        grey = thumbnails[start : start + _BLOCK].astype(np.float32) @ GREY_WEIGHTS
        low = dct(dct(grey, axis=1)[:, :HASH_SIDE], axis=2)[:, :, :HASH_SIDE]
        for turn in range(len(SYMMETRIES)):
            oriented = low.transpose(0, 2, 1) if turn >= 4 else low
            positive = oriented > 0
            if turn in (1, 3, 5, 7):  # mirrored left to right: odd horizontal frequencies change their sign
                positive = np.where(odd[None, None, :], oriented < 0, positive)
            if turn in (2, 3, 6, 7):
                positive = np.where(odd[None, :, None], ~positive & (oriented != 0), positive)
            hashes[start : start + _BLOCK, turn] = (positive.reshape(len(grey), -1) * weights).sum(axis=1)
    return hashes


def near_duplicates(hashed: HashedImages) -> pd.DataFrame:
    """Pairs of the same picture but for size, encoding, light, mirroring and turns: a < b (positions), turn, distance.

    ``turn`` names the symmetry that brings ``b`` to look like ``a``; ``distance`` is 1 less the correlation of the
    thumbnails' detail, 0 for the same. All pairs are compared by hash, those that are close by their thumbnails.
    """
    plain, n = hashed.hashes[:, 0], len(hashed.hashes)
    detail = _detail(hashed.thumbnails)
    found = []
    for start in range(0, n, _BLOCK):
        block = plain[start : start + _BLOCK]
        for turn in range(len(SYMMETRIES)):
            bits = np.bitwise_count(block[:, None] ^ hashed.hashes[None, start:, turn])
            a, b = np.nonzero(bits <= MAX_HAMMING)
            later = b > a
            a, b = a[later] + start, b[later] + start
            detail_correlation = _detail_correlation(detail, a, b, turn)
            close = np.flatnonzero(detail_correlation >= MIN_DETAIL_CORRELATION)
            correlation = _correlation(hashed.thumbnails[a[close]], apply_symmetry(hashed.thumbnails[b[close]], turn))
            same = close[correlation >= MIN_CORRELATION]
            found.append(
                pd.DataFrame({"a": a[same], "b": b[same], "turn": turn, "distance": 1 - detail_correlation[same]})
            )
    pairs = pd.concat(found, ignore_index=True).sort_values(["a", "b", "distance", "turn"])
    pairs = pairs.drop_duplicates(["a", "b"]).reset_index(drop=True)
    return pairs.assign(turn=np.array(SYMMETRIES, dtype=object)[pairs["turn"].to_numpy(np.intp)])


def image_faults(hashed: HashedImages) -> pd.DataFrame:
    """Pictures that can't be what they should: position and fault, "black", "constant" or "red and blue swapped".

    Skin reflects more red than blue, whatever its colour and whoever holds the camera.
    """
    pixels = hashed.thumbnails.reshape(len(hashed.thumbnails), -1, 3).astype(np.float32)
    bright = np.percentile(pixels.max(axis=2), 99, axis=1)
    spread = pixels.std(axis=1).max(axis=1)
    middle = hashed.thumbnails[
        :, THUMBNAIL_SIDE // 4 : -THUMBNAIL_SIDE // 4, THUMBNAIL_SIDE // 4 : -THUMBNAIL_SIDE // 4
    ].reshape(len(pixels), -1, 3)
    blue_less_red = np.median(middle[..., 2].astype(np.int16) - middle[..., 0], axis=1)
    faults = [
        (bright < MIN_BRIGHTNESS, "black"),
        ((spread < MIN_STD) & (bright >= MIN_BRIGHTNESS), "constant"),
        ((blue_less_red > MIN_BLUE_EXCESS) & (spread >= MIN_STD) & (bright >= MIN_BRIGHTNESS), "red and blue swapped"),
    ]
    frames = [pd.DataFrame({"position": np.flatnonzero(where), "fault": fault}) for where, fault in faults]
    return pd.concat(frames, ignore_index=True).sort_values("position", ignore_index=True)


def apply_symmetry(images: NDArray[_Number], turn: int) -> NDArray[_Number]:
    """Images (n, h, w, c) brought by a symmetry of the square, numbered as ``SYMMETRIES``."""
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
        grey = images @ GREY_WEIGHTS
        grey -= gaussian_filter(grey, (0, BLUR_SIGMA, BLUR_SIGMA))
        length = np.sqrt((grey**2).sum(axis=(1, 2)))
        flat = images.std(axis=(1, 2)).max(axis=1) < MIN_STD
        detail[start : start + _BLOCK] = grey * np.where(flat, 0, 1 / np.maximum(length, 1e-9))[:, None, None]
    return detail


def _detail_correlation(
    detail: NDArray[np.float32], a: NDArray[np.intp], b: NDArray[np.intp], turn: int
) -> NDArray[np.float32]:
    """The correlation of each pair's detail, ``b`` brought by ``turn``: blurring and turning change places."""
    detail_correlation = np.empty(len(a), np.float32)
    pixel_order = apply_symmetry(
        np.arange(THUMBNAIL_SIDE * THUMBNAIL_SIDE).reshape(1, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 1), turn
    ).ravel()
    flat = detail.reshape(len(detail), -1)
    for start in range(0, len(a), _BLOCK):
        some = slice(start, start + _BLOCK)
        detail_correlation[some] = np.einsum("ij,ij->i", flat[a[some]], flat[b[some]][:, pixel_order])
    return detail_correlation


def _correlation(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Of n thumbnails with their partners, each channel less its mean, so that casts and exposure don't count: (n,)."""
    x, y = (images.astype(np.float32) for images in (one, other))
    x, y = (
        (z - z.mean(axis=(1, 2), keepdims=True)).reshape(len(z), THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3) for z in (x, y)
    )
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    correlation: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(scale, 1e-9)
    return correlation

"""Finds near-duplicates by perceptual hash, and images that are black, constant or have red and blue swapped."""

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
HASH_SIDE = 8  # frequencies per axis that the hash uses
# Copies at 60 % size and JPEG quality 50 differ in at most 7 of 63 bits; they correlate above 0.97, their detail above
# 0.955. Different lesions under the same microscope (a spot in a dark frame) reach 0.983 and 0.947 (docs/log.md).
MAX_HAMMING = 10
MIN_CORRELATION = 0.96  # of two thumbnails, each channel minus its mean
MIN_DETAIL_CORRELATION = 0.95  # of their grey minus its blur, so that a shared frame or central spot does not count
BLUR_SIGMA = 2.0  # pixels of a thumbnail
# Smooth pictures drawn independently agree in this detail by chance, up to 0.997; so two pictures of which one has less
# texture than 99.9 % of 10,015 real ones must be the same thumbnail. This loses 1 of 1,000 copies of real pictures and
# removes all false pairs among smooth ones (docs/log.md, benchmarks/look_alikes.py).
MIN_TEXTURE = 0.9  # grey levels: standard deviation of a thumbnail's grey minus its slight blur
TEXTURE_SIGMA = 0.7  # pixels of a thumbnail
MIN_POOR_DETAIL_CORRELATION = 0.999
MIN_BRIGHTNESS = 16  # grey levels: an image whose 99th percentile is darker counts as black
MIN_STD = 2.0  # grey levels: an image with a smaller standard deviation counts as constant
MIN_BLUE_EXCESS = 14  # grey levels: where blue exceeds red by more, the channels count as swapped

GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
SYMMETRIES = (
    "as it is", "mirrored", "upside down", "turned by 180°", "transposed", "turned by 90°", "turned by 270°",
    "transversed",
)  # fmt: skip

_Number = TypeVar("_Number", bound=np.generic)
_BLOCK = 1024  # images per block of the all-pairs search: 1024 × 33,000 hashes of 8 bytes are 270 MB


@dataclass(frozen=True)
class HashedImages:
    """Thumbnails (n, 32, 32, 3) uint8 of n whole images, and their ``hashes`` (n, 8) uint64.

    ``hashes[:, t]`` is the hash of the image under symmetry ``t`` of the square, in the order of ``SYMMETRIES``.
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
    """Computes thumbnails and hashes of the cache's ``rows``; ``progress`` gets each step's number of images."""
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
    """Squeezes whole images to ``side`` × ``side`` pixels: an image turned by 90° gives the turned thumbnail."""
    small = [cv2.resize(cache.image(int(row)), (side, side), interpolation=cv2.INTER_AREA) for row in rows]
    return np.stack(small) if small else np.empty((0, side, side, 3), np.uint8)


def hash_thumbnails(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Returns the signs of the 63 lowest cosine frequencies of grey for each of the eight symmetries: (n, 8) uint64.

    Like pHash (Zauner 2010), but with signs instead of a comparison with the median, so that the hash of a mirrored
    image follows from the original's: mirroring changes the sign of every odd frequency, transposing swaps the axes.
    """
    odd = np.arange(HASH_SIDE) % 2 == 1
    weights = np.uint64(1) << np.arange(HASH_SIDE * HASH_SIDE, dtype=np.uint64)
    weights[0] = 0  # the mean tells nothing about shape
    hashes = np.empty((len(thumbnails), len(SYMMETRIES)), np.uint64)
    for start in range(0, len(thumbnails), _BLOCK):
        grey = thumbnails[start : start + _BLOCK].astype(np.float32) @ GREY_WEIGHTS
        low = dct(dct(grey, axis=1)[:, :HASH_SIDE], axis=2)[:, :, :HASH_SIDE]
        for turn in range(len(SYMMETRIES)):
            oriented = low.transpose(0, 2, 1) if turn >= 4 else low
            positive = oriented > 0
            if turn in (1, 3, 5, 7):  # mirrored left to right: odd horizontal frequencies change sign
                positive = np.where(odd[None, None, :], oriented < 0, positive)
            if turn in (2, 3, 6, 7):
                positive = np.where(odd[None, :, None], ~positive & (oriented != 0), positive)
            hashes[start : start + _BLOCK, turn] = (positive.reshape(len(grey), -1) * weights).sum(axis=1)
    return hashes


def near_duplicates(hashed: HashedImages) -> pd.DataFrame:
    """Finds pairs of images that look alike but for size, encoding, exposure, mirroring or rotation.

    Where one of the two has little texture, their detail must be the same, since smooth pictures agree by chance.

    Returns positions a < b, turn and distance: ``turn`` names the symmetry that makes ``b`` look like ``a``, and
    ``distance`` is 1 minus the correlation of the thumbnails' detail, 0 for identical thumbnails. All pairs are
    compared by hash; the thumbnails decide on those whose hashes are close.
    """
    plain, n = hashed.hashes[:, 0], len(hashed.hashes)
    detail, texture = _detail(hashed.thumbnails), _texture(hashed.thumbnails)
    found = []
    for start in range(0, n, _BLOCK):
        block = plain[start : start + _BLOCK]
        for turn in range(len(SYMMETRIES)):
            bits = np.bitwise_count(block[:, None] ^ hashed.hashes[None, start:, turn])
            a, b = np.nonzero(bits <= MAX_HAMMING)
            later = b > a
            a, b = a[later] + start, b[later] + start
            detail_correlation = _detail_correlation(detail, a, b, turn)
            poor = np.minimum(texture[a], texture[b]) < MIN_TEXTURE
            least = np.where(poor, MIN_POOR_DETAIL_CORRELATION, MIN_DETAIL_CORRELATION)
            close = np.flatnonzero(detail_correlation >= least)
            correlation = _correlation(hashed.thumbnails[a[close]], apply_symmetry(hashed.thumbnails[b[close]], turn))
            same = close[correlation >= MIN_CORRELATION]
            found.append(
                pd.DataFrame({"a": a[same], "b": b[same], "turn": turn, "distance": 1 - detail_correlation[same]})
            )
    pairs = pd.concat(found, ignore_index=True).sort_values(["a", "b", "distance", "turn"])
    pairs = pairs.drop_duplicates(["a", "b"]).reset_index(drop=True)
    return pairs.assign(turn=np.array(SYMMETRIES, dtype=object)[pairs["turn"].to_numpy(np.intp)])


def image_faults(hashed: HashedImages) -> pd.DataFrame:
    """Lists faulty images: position and fault, which is "black", "constant" or "red and blue swapped".

    Skin of every colour reflects more red than blue.
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
    """Transforms images (n, h, w, c) by a symmetry of the square, as numbered in ``SYMMETRIES``."""
    if turn >= 4:
        images = images.transpose(0, 2, 1, 3)
    if turn in (1, 3, 5, 7):
        images = images[:, :, ::-1]
    if turn in (2, 3, 6, 7):
        images = images[:, ::-1]
    return images


def _detail(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns grey minus its blur, scaled to length one: (n, 32, 32); all zero where an image is constant."""
    detail = np.empty(thumbnails.shape[:3], np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        images = thumbnails[start : start + _BLOCK].astype(np.float32)
        grey = images @ GREY_WEIGHTS
        grey -= gaussian_filter(grey, (0, BLUR_SIGMA, BLUR_SIGMA))
        length = np.sqrt((grey**2).sum(axis=(1, 2)))
        flat = images.std(axis=(1, 2)).max(axis=1) < MIN_STD
        detail[start : start + _BLOCK] = grey * np.where(flat, 0, 1 / np.maximum(length, 1e-9))[:, None, None]
    return detail


def _texture(thumbnails: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the standard deviation (n,) of grey minus its slight blur: the amount of fine texture."""
    texture = np.empty(len(thumbnails), np.float32)
    for start in range(0, len(thumbnails), _BLOCK):
        grey = thumbnails[start : start + _BLOCK].astype(np.float32) @ GREY_WEIGHTS
        grey -= gaussian_filter(grey, (0, TEXTURE_SIGMA, TEXTURE_SIGMA))
        texture[start : start + _BLOCK] = grey.std(axis=(1, 2))
    return texture


def _detail_correlation(
    detail: NDArray[np.float32], a: NDArray[np.intp], b: NDArray[np.intp], turn: int
) -> NDArray[np.float32]:
    """Returns the correlation of each pair's detail, ``b`` transformed by ``turn``, which commutes with blurring."""
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
    """Returns the correlations (n,) of n thumbnail pairs, each channel minus its mean: exposure does not count."""
    x, y = (images.astype(np.float32) for images in (one, other))
    x, y = (
        (z - z.mean(axis=(1, 2), keepdims=True)).reshape(len(z), THUMBNAIL_SIDE * THUMBNAIL_SIDE * 3) for z in (x, y)
    )
    scale = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    correlation: NDArray[np.float64] = (x * y).sum(axis=1) / np.maximum(scale, 1e-9)
    return correlation

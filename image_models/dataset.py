"""Loads batches of uint8 images from the cache; the network normalises them on its own device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from dermstack.errors import ImageError
from image_models.cache import ImageCache
from image_models.processes import explain_death, own_packages_first

if TYPE_CHECKING:
    from image_models.transforms import Augment  # imports albumentations, which predictions do not need


class Batch(NamedTuple):
    """Some rows of a data set: images, metadata, allowed classes and positions."""

    images: torch.Tensor  # (n, h, w, 3) uint8
    metadata: torch.Tensor  # (n, m) float32; m = 0 where there is none
    allowed: torch.Tensor  # (n, c) bool: the classes that a row may belong to
    rows: torch.Tensor  # (n,) positions in the data set of N rows; plus N, 2 N, … for repeated draws
    soft: torch.Tensor | None = None  # (n,) float32 probability of target 1 in place of ``allowed``; NaN: none

    def to(self, device: torch.device) -> Batch:
        """Returns the same rows on another device."""
        images, metadata, allowed, rows = (part.to(device, non_blocking=True) for part in self[:4])
        soft = None if self.soft is None else self.soft.to(device, non_blocking=True)
        return Batch(images, metadata, allowed, rows, soft)


@dataclass(frozen=True)
class ColumnDropout:
    """Sets columns of the metadata to missing in training, so that a net learns to do without each of them."""

    share: float  # probability for each row and column
    missing: NDArray[np.float32]  # (m,) the encoding of a row without any value
    column_of: NDArray[np.intp]  # (m,) number of the column from which each encoded column comes

    def __call__(self, batch: Batch, rng: np.random.Generator) -> Batch:
        """Returns the batch with columns of its rows set to missing, drawn from ``rng``."""
        drawn = rng.random((len(batch.rows), int(self.column_of.max(initial=-1)) + 1)) < self.share
        device = batch.metadata.device
        dropped = torch.from_numpy(drawn[:, self.column_of]).to(device)
        missing = torch.from_numpy(self.missing).to(device)
        return batch._replace(metadata=torch.where(dropped, missing, batch.metadata))


class CachedImages(Dataset[Batch]):
    """Rows of an image cache, fetched a batch at a time: ``images[[3, 1, 2]]`` is the `Batch` of these three rows.

    In a data set of N rows, position N + 3 is row 3 drawn again, with another augmentation.

    ``pictures`` is a cache or an array of images (n, h, w, 3), and ``rows`` (n,) are rows of it. ``target`` holds for
    each of ``rows`` 0/1 (n,) or, with more classes, those that it may belong to, bool (n, c); ``metadata`` is (n, m).
    ``soft`` (n,) holds a probability of target 1 that replaces the target of a row, NaN where there is none.
    The draws of ``augment`` depend on ``epoch`` and position; validation uses no ``augment``.
    """

    def __init__(
        self,
        pictures: ImageCache | NDArray[np.uint8],
        rows: NDArray[np.intp],
        target: NDArray[np.int8] | NDArray[np.bool_] | None = None,
        *,
        metadata: NDArray[np.float32] | None = None,
        soft: NDArray[np.float32] | None = None,
        augment: Augment | None = None,
        epoch: int = 0,
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.allowed = allowed_classes(np.zeros(len(rows), np.int8) if target is None else target)
        self.metadata = np.empty((len(rows), 0), np.float32) if metadata is None else metadata
        self.soft = soft
        assert len(rows) == len(self.allowed) == len(self.metadata), "rows, target and metadata differ in length"
        self.augment = augment
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: list[int]) -> Batch:
        drawn = np.asarray(batch) % len(self)
        rows = self.rows[drawn]
        images = self.pictures.take(rows) if isinstance(self.pictures, ImageCache) else self.pictures[rows]
        if self.augment is not None:
            images = np.stack(
                [self.augment(image, epoch=self.epoch, row=i) for image, i in zip(images, batch, strict=True)]
            )
        parts = [images, self.metadata[drawn], self.allowed[drawn], np.asarray(batch)]
        parts += [] if self.soft is None else [self.soft[drawn]]
        return Batch(*map(torch.from_numpy, parts))


def allowed_classes(target: NDArray[np.int8] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Returns the allowed classes (n, c) bool of a target: 0/1 (n,) is one of two classes, (n, c) stays as it is."""
    if target.ndim == 2:
        return target.astype(bool)
    return np.stack([target == 0, target == 1], axis=1)


def train_batches(
    n: int, *, batch_size: int, seed: int, epoch: int, weights: NDArray[np.float64] | None = None
) -> list[list[int]]:
    """Returns an epoch's batches of positions: a random order of n rows, or n weighted draws with replacement.

    A row's second draw is n + row, its third 2 n + row, …: otherwise all its draws of an epoch would be augmented
    alike. A last batch of one row is dropped, because batch norm needs two.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(n)
    if weights is not None:
        drawn = pd.Series(rng.choice(n, n, p=weights / weights.sum()))
        order = (drawn + n * drawn.groupby(drawn).cumcount()).to_numpy()
    batches = [order[start : start + batch_size].tolist() for start in range(0, n, batch_size)]
    return batches[:-1] if len(batches[-1]) == 1 else batches


def eval_batches(n: int, *, batch_size: int) -> list[list[int]]:
    """Returns batches that hold every row once, in order."""
    return [list(range(start, min(start + batch_size, n))) for start in range(0, n, batch_size)]


def load_batches(images: CachedImages, batches: list[list[int]], *, workers: int, pin: bool) -> Iterator[Batch]:
    """Yields the batches in order, loaded by ``workers`` processes (0: this one). Raises ImageError where one dies."""
    # batch_size=None: the sampler passes whole batches to __getitem__, so nothing is left to collate.
    # The platform's start method: inside a worker of loky, loky's own is the default, which torch cannot use.
    start = multiprocessing.get_all_start_methods()[0] if workers else None
    loader = DataLoader(
        _ErrorsReturned(images), sampler=batches, batch_size=None, num_workers=workers, pin_memory=pin,
        multiprocessing_context=start,
    )  # fmt: skip
    try:
        with own_packages_first():
            batches_in_order = iter(loader)  # which starts the processes
        for batch in batches_in_order:
            if isinstance(batch, ImageError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        said = explain_death(
            str(error),
            memory_advice="lower `workers` or `batch_size`",
            crash_advice="an image was being read or augmented: update Pillow, OpenCV and torch, or set `workers: 0`",
        )
        raise ImageError(
            f"while images were loaded, {said}; then run the same command again ({str(error).splitlines()[0]})"
        ) from error


class _ErrorsReturned(Dataset[Batch | ImageError]):
    """Batches of a data set, or the ImageError that one raises: torch would add a worker's traceback to its message."""

    def __init__(self, images: CachedImages) -> None:
        self.images = images

    def __getitem__(self, batch: list[int]) -> Batch | ImageError:
        try:
            return self.images[batch]
        except ImageError as error:
            return error

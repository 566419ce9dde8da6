"""Batches out of the cache: uint8 from the memory map to the network, which normalises on its own device."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from image_models.cache import ImageCache
from image_models.errors import ImageError
from image_models.processes import own_packages_first
from image_models.transforms import Augment


class Batch(NamedTuple):
    """Some rows of a data set."""

    images: torch.Tensor  # (n, h, w, 3) uint8
    metadata: torch.Tensor  # (n, m) float32; m = 0 where there is none
    allowed: torch.Tensor  # (n, c) bool: the classes that a row may be of
    rows: torch.Tensor  # (n,) their places in the data set of N rows; N, 2 N … further on where drawn once more

    def to(self, device: torch.device) -> Batch:
        """The same rows on another device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class CachedImages(Dataset[Batch]):
    """Rows of an image cache, fetched a batch at a time: ``images[[3, 1, 2]]`` is the `Batch` of these three rows.

    Of N rows, place N + 3 is row 3 once more, augmented otherwise.

    ``pictures`` is a cache or the images themselves (n, h, w, 3), ``rows`` are its rows; ``target`` stands beside them,
    0/1 (n,) or, for more classes, which of them each row may be of, bool (n, c); so does ``metadata`` (n, m). With
    ``augment``, ``epoch`` says which draw each row gets; validation has none.
    """

    def __init__(
        self,
        pictures: ImageCache | NDArray[np.uint8],
        rows: NDArray[np.intp],
        target: NDArray[np.int8] | NDArray[np.bool_] | None = None,
        *,
        metadata: NDArray[np.float32] | None = None,
        augment: Augment | None = None,
        epoch: int = 0,
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.allowed = allowed_classes(np.zeros(len(rows), np.int8) if target is None else target)
        self.metadata = np.empty((len(rows), 0), np.float32) if metadata is None else metadata
        assert len(rows) == len(self.allowed) == len(self.metadata), "rows, targets and metadata stand side by side"
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
        parts = (images, self.metadata[drawn], self.allowed[drawn], np.asarray(batch))
        return Batch(*map(torch.from_numpy, parts))


def allowed_classes(target: NDArray[np.int8] | NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n, c): of a target 0/1 (n,), which is one of two classes, or as it is."""
    if target.ndim == 2:
        return target.astype(bool)
    return np.stack([target == 0, target == 1], axis=1)


def train_batches(
    n: int, *, batch_size: int, seed: int, epoch: int, weights: NDArray[np.float64] | None = None
) -> list[list[int]]:
    """The epoch's order of rows, or with ``weights`` (n,) as many draws with replacement.

    A row's second draw is n + row, its third 2 n + row …: else all its pictures of an epoch would be augmented alike.
    A last batch of one is dropped: batch norm can't take it.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(n)
    if weights is not None:
        drawn = pd.Series(rng.choice(n, n, p=weights / weights.sum()))
        order = (drawn + n * drawn.groupby(drawn).cumcount()).to_numpy()
    batches = [order[start : start + batch_size].tolist() for start in range(0, n, batch_size)]
    return batches[:-1] if len(batches[-1]) == 1 else batches


def eval_batches(n: int, *, batch_size: int) -> list[list[int]]:
    """Every row once, in order."""
    return [list(range(start, min(start + batch_size, n))) for start in range(0, n, batch_size)]


def load_batches(images: CachedImages, batches: list[list[int]], *, workers: int, pin: bool) -> Iterator[Batch]:
    """Fetch the batches in their order, by ``workers`` processes (0: this one). Raises ImageError where one dies."""
    # batch_size=None: the "sampler" hands whole batches to __getitem__, so there is nothing left to collate.
    # The system's own way to start processes: inside a task's process loky's is the default, which torch can't take.
    start = multiprocessing.get_all_start_methods()[0] if workers else None
    loader = DataLoader(
        images, sampler=batches, batch_size=None, num_workers=workers, pin_memory=pin, multiprocessing_context=start
    )
    try:
        with own_packages_first():
            batches_in_order = iter(loader)  # which starts the processes
        yield from batches_in_order
    except ImageError as error:  # torch writes a worker's traceback before the message
        raise ImageError(str(error).rpartition("ImageError: ")[2].strip()) from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ImageError(
            f"a process that loads pictures died ({str(error).splitlines()[0]}), as when memory runs out: lower "
            "`workers` or `batch_size` where that is why, and run the same command again"
        ) from error

"""Batches out of the cache: uint8 from the memory map to the network, which normalises on its own device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from image_models.cache import ImageCache
from image_models.transforms import Augment


class CachedImages(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Rows of an image cache, fetched a batch at a time: ``images[[3, 1, 2]]`` is (uint8 (3, h, w, 3), float32 (3,)).

    ``pictures`` is a cache or the images themselves (n, h, w, 3), ``rows`` are its rows, ``target`` stands beside them
    (zeros where there is none). With ``augment``, ``epoch`` says which draw each row gets; validation has none.
    """

    def __init__(
        self,
        pictures: ImageCache | NDArray[np.uint8],
        rows: NDArray[np.intp],
        target: NDArray[np.int8] | None = None,
        *,
        augment: Augment | None = None,
        epoch: int = 0,
    ) -> None:
        self.pictures = pictures
        self.rows = rows
        self.target = np.zeros(len(rows), np.float32) if target is None else target.astype(np.float32)
        self.augment = augment
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, batch: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        rows = self.rows[batch]
        images = self.pictures.take(rows) if isinstance(self.pictures, ImageCache) else self.pictures[rows]
        if self.augment is not None:
            images = np.stack(
                [self.augment(image, epoch=self.epoch, row=i) for image, i in zip(images, batch, strict=True)]
            )
        return torch.from_numpy(images), torch.from_numpy(self.target[batch])


def train_batches(n: int, *, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The epoch's order of rows. A last batch of one is dropped: batch norm can't take it."""
    order = np.random.default_rng((seed, epoch)).permutation(n)
    batches = [order[start : start + batch_size].tolist() for start in range(0, n, batch_size)]
    return batches[:-1] if len(batches[-1]) == 1 else batches


def eval_batches(n: int, *, batch_size: int) -> list[list[int]]:
    """Every row once, in order."""
    return [list(range(start, min(start + batch_size, n))) for start in range(0, n, batch_size)]


def load(
    images: CachedImages, batches: list[list[int]], *, workers: int, pin: bool
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Fetch the batches in their order, by ``workers`` processes (0: this one)."""
    # batch_size=None: the "sampler" hands whole batches to __getitem__, so there is nothing left to collate.
    return iter(DataLoader(images, sampler=batches, batch_size=None, num_workers=workers, pin_memory=pin))

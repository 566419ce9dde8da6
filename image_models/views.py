"""Test-time augmentation: the views of a picture that are averaged in logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch

VIEWS = {"none": 1, "flips": 4, "d4": 8}


def views(images: torch.Tensor, kind: str) -> Iterator[torch.Tensor]:
    """Of pictures (n, h, w, 3): themselves; their flips; the eight symmetries of the square (needs h = w)."""
    for transposed in (False, True) if kind == "d4" else (False,):
        turned = images.transpose(1, 2) if transposed else images
        for axes in ((), (1,), (2,), (1, 2)) if kind != "none" else ((),):
            # contiguous: the network's channels_last starts from whole pixels, and moving bytes is cheap.
            yield turned.flip(axes).contiguous()

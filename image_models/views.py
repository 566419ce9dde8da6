"""Test-time augmentation: the views of a picture that are averaged in logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.nn.functional import interpolate, pad

VIEWS = {"none": 1, "flips": 4, "d4": 8, "d4_scales": 16}
MARGIN = 0.075  # of a side, on each side of the smaller scale


def views(images: torch.Tensor, kind: str) -> Iterator[torch.Tensor]:
    """Of pictures (n, h, w, 3): themselves; their flips; the eight symmetries of the square (needs h = w), or these at
    two scales, whole and within a margin, as networks are asked about several crops (Gessert et al. 2020,
    doi:10.1016/j.mex.2020.100864)."""
    for scaled in (images, within_margin(images)) if kind == "d4_scales" else (images,):
        for transposed in (False, True) if kind in ("d4", "d4_scales") else (False,):
            turned = scaled.transpose(1, 2) if transposed else scaled
            for axes in ((), (1,), (2,), (1, 2)) if kind != "none" else ((),):
                # contiguous: the network's channels_last starts from whole pixels, and moving bytes is cheap.
                yield turned.flip(axes).contiguous()


def within_margin(images: torch.Tensor) -> torch.Tensor:
    """Pictures uint8 (n, h, w, 3), each drawn smaller in the middle of a mirrored margin: as large as before."""
    height, width = images.shape[1:3]
    y, x = (max(1, round(MARGIN * side)) for side in (height, width))
    wider = pad(images.permute(0, 3, 1, 2).float(), (x, x, y, y), mode="reflect")
    smaller = interpolate(wider, size=(height, width), mode="bilinear", antialias=True, align_corners=False)
    return smaller.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

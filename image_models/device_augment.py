"""Augments whole batches on the training device, for GPUs that a few CPU cores cannot keep busy.

The random draws depend on (seed, epoch, row); kornia transforms the pixels. One warp does all of the geometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import kornia.enhance as enhance
import numpy as np
import torch
from kornia.geometry.transform import warp_affine


@dataclass(frozen=True)
class Limits:
    """Limits of a recipe's random changes; the eight symmetries of the square are always drawn too."""

    scale: float = 0.0  # ±, share of the size
    degrees: float = 0.0  # ±
    shift: float = 0.0  # ±, share of the side
    light: float = 0.0  # ±, of brightness and contrast
    hue: float = 0.0  # ±, share of the colour wheel
    saturation: float = 0.0  # ±
    hole: tuple[float, float] = (0.0, 0.0)  # range of its sides, as shares of the image's; half of the images get one


# As close to the recipes of the same name in transforms.py as whole batches allow.
LIMITS = {
    "none": Limits(),
    "light": Limits(light=0.15, hue=0.014, saturation=0.06),
    "standard": Limits(0.2, 45, 0.06, light=0.2, hue=0.022, saturation=0.08, hole=(0.15, 0.35)),
}


class DeviceAugment:
    """Applies recipes to batches: uint8 or float (n, s, s, 3) in 0..255 → float32 of the same shape."""

    def __init__(self, *recipes: str, seed: int) -> None:
        self.limits = [LIMITS[name] for name in recipes if name != "none"]
        self.seed = seed

    def __call__(self, images: torch.Tensor, *, epoch: int, rows: Sequence[int]) -> torch.Tensor:
        """Augments square RGB images; ``rows`` are their positions in the training set."""
        rngs = [np.random.default_rng((self.seed, epoch, row)) for row in rows]
        x = images.permute(0, 3, 1, 2).float().div_(255)
        side = x.shape[2]
        for limits in self.limits:
            matrices = np.stack([_affine_matrix(rng, limits, side) for rng in rngs])
            x = warp_affine(x, _to_device(x, matrices)[:, :2], (side, side), padding_mode="reflection")
            light, contrast, hue, saturation = _to_device(x, np.stack([_colour_jitter(rng, limits) for rng in rngs])).T
            x = enhance.adjust_brightness(enhance.adjust_contrast(x, 1 + contrast), light)
            x = enhance.adjust_hue(enhance.adjust_saturation(x, 1 + saturation), hue * 2 * math.pi)
            if limits.hole[1]:
                x = x * ~_hole_mask(_to_device(x, np.stack([_hole(rng, limits, side) for rng in rngs])), side)[:, None]
        return x.mul(255).permute(0, 2, 3, 1)


def _to_device(x: torch.Tensor, drawn: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(drawn.astype(np.float32)).to(x.device, non_blocking=True)


def _affine_matrix(rng: np.random.Generator, limits: Limits, side: int) -> np.ndarray:
    """Draws a matrix (3, 3) from old to new pixel positions: a linear map about the centre, then a shift."""
    turn = math.radians(90 * int(rng.integers(4)) + limits.degrees * rng.uniform(-1, 1))
    size = 1 + limits.scale * rng.uniform(-1, 1)
    mirror = -1 if rng.random() < 0.5 else 1
    shift = side * limits.shift * rng.uniform(-1, 1, 2)
    linear = (
        size * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) @ np.diag([mirror, 1])
    )
    middle = np.full(2, (side - 1) / 2)
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = middle - linear @ middle + shift
    return matrix


def _colour_jitter(rng: np.random.Generator, limits: Limits) -> np.ndarray:
    return rng.uniform(-1, 1, 4) * [limits.light, limits.light, limits.hue, limits.saturation]


def _hole(rng: np.random.Generator, limits: Limits, side: int) -> np.ndarray:
    """Draws a hole (4,): top, bottom, left and right in pixels; all 0 where there is none."""
    height, width = (rng.uniform(*limits.hole, 2) * side).astype(int)
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    if rng.random() >= 0.5:
        return np.zeros(4)
    return np.array([top, top + height, left, left + width])


def _hole_mask(holes: torch.Tensor, side: int) -> torch.Tensor:
    """Marks the pixels (n, side, side) inside the holes (n, 4)."""
    pixel_index = torch.arange(side, device=holes.device)
    top, bottom, left, right = holes.T[:, :, None]
    rows, columns = (pixel_index >= top) & (pixel_index < bottom), (pixel_index >= left) & (pixel_index < right)
    inside: torch.Tensor = rows[:, :, None] & columns[:, None]
    return inside

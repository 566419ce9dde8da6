"""Augmentation recipes by name: each draw depends on (seed, epoch, row) alone."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from albumentations import ImageOnlyTransform
from numpy.typing import NDArray

from image_models.errors import ImageError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read at import: else it asks a server for its newest version
import albumentations as A


class Microscope(ImageOnlyTransform):  # type: ignore[misc]  # albumentations comes without types
    """Black outside a circle about as wide as the picture, as many a dermatoscope leaves it."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Radius and middle, as shares of the shorter side."""
        return {
            "radius": self.py_random.uniform(0.46, 0.58),
            "middle": [self.py_random.uniform(0.47, 0.53) for _ in range(2)],
        }

    def apply(self, img: NDArray[np.uint8], radius: float, middle: list[float], **_: Any) -> NDArray[np.uint8]:
        """Of one RGB image."""
        height, width = img.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        centre = (round(middle[0] * width), round(middle[1] * height))
        cv2.circle(mask, centre, round(radius * min(height, width)), 255, thickness=-1, lineType=cv2.LINE_AA)
        lit: NDArray[np.uint8] = cv2.multiply(img, cv2.merge([mask] * 3), scale=1 / 255)
        return lit


class Hair(ImageOnlyTransform):  # type: ignore[misc]
    """A few dark, thin, bent hairs across the picture."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Each hair: three points of a quadratic curve in shares of the sides, thickness and shade."""
        draw = self.py_random
        hairs = []
        for _ in range(draw.randint(2, 9)):
            start, end = [(draw.uniform(-0.1, 1.1), draw.uniform(-0.1, 1.1)) for _ in range(2)]
            bend = [(a + b) / 2 + draw.uniform(-0.2, 0.2) for a, b in zip(start, end, strict=True)]
            hairs.append((start, bend, end, draw.uniform(0.004, 0.012), draw.randint(10, 70)))
        return {"hairs": hairs}

    def apply(self, img: NDArray[np.uint8], hairs: list[Any], **_: Any) -> NDArray[np.uint8]:
        """Of one RGB image."""
        drawn = img.copy()
        height, width = img.shape[:2]
        t = np.linspace(0, 1, 24)[:, None]
        for start, bend, end, thickness, shade in hairs:
            curve = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
            # 4 binary places after the point: hairs bend smoothly in small pictures too.
            points = np.round(curve * (width, height) * 16).astype(np.int32)
            colour = (shade, round(shade * 0.8), round(shade * 0.7))  # a brownish black
            cv2.polylines(
                drawn, [points], False, colour, max(1, round(thickness * width)), lineType=cv2.LINE_AA, shift=4
            )
        return drawn


RECIPES: dict[str, list[A.BasicTransform]] = {
    "none": [],
    # The square's symmetries and a little light: skin has no up, and cameras differ in exposure.
    "light": [
        A.D4(p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.75),
        A.HueSaturationValue(hue_shift_limit=5, sat_shift_limit=15, val_shift_limit=10, p=0.5),
    ],
    # Any rotation and scale, more colour, and a hole: for ten epochs and more.
    "standard": [
        A.D4(p=1.0),
        A.Affine(scale=(0.8, 1.2), rotate=(-45, 45), translate_percent=(-0.06, 0.06), border_mode=4, p=0.8),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.75),
        A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=20, val_shift_limit=10, p=0.6),
        A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.15, 0.35), hole_width_range=(0.15, 0.35), p=0.5),
    ],
    # That of SIIM-ISIC 2020's first place (Ha, Liu, Liu 2020, arXiv:2010.05351): large networks, fifteen epochs.
    "heavy": [
        A.Transpose(p=0.5),
        A.VerticalFlip(p=0.5),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.75),
        A.OneOf(
            [
                A.MotionBlur(blur_limit=(3, 5)),
                A.MedianBlur(blur_limit=(3, 5)),
                A.GaussianBlur(blur_limit=(3, 5)),
                A.GaussNoise(std_range=(0.01, 0.03)),
            ],
            p=0.7,
        ),
        A.OneOf(
            [
                A.OpticalDistortion(distort_limit=0.4),
                A.GridDistortion(num_steps=5, distort_limit=0.3),  # 1.0, as it was called then, smears the lesion
                A.ElasticTransform(alpha=3),
            ],
            p=0.7,
        ),
        A.CLAHE(clip_limit=4.0, p=0.7),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.5),
        A.Affine(translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), rotate=(-15, 15), border_mode=0, p=0.85),
        A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.3, 0.375), hole_width_range=(0.3, 0.375), p=0.7),
    ],
    # After any of these: what instruments and skin put over the lesion.
    "microscope": [Microscope(p=0.3)],
    "hair": [Hair(p=0.3)],
}


def check_recipe(names: Sequence[str]) -> None:
    """Raise ImageError for a recipe that doesn't exist."""
    for name in names:
        if name not in RECIPES:
            raise ImageError(f"unknown augmentation {name!r}: choose of {', '.join(RECIPES)}")


class Augment:
    """Recipes, one after the other, whose draw for a picture is the same whoever loads it and in whatever order.

    Left alone, albumentations 2.0.8 gives every loader process the same draws and a resumed training others.
    """

    def __init__(self, *recipes: str, seed: int) -> None:
        check_recipe(recipes)
        self.seed = seed
        self._compose = A.Compose([transform for name in recipes for transform in RECIPES[name]])

    def __call__(self, image: NDArray[np.uint8], *, epoch: int, row: int) -> NDArray[np.uint8]:
        """Augment one RGB image (h, w, 3); ``row`` is its place in the training set."""
        # One state for all transforms: set_random_seed gives each the same, and whoever is turned is darkened too.
        rng = np.random.default_rng((self.seed, epoch, row))
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        augmented: NDArray[np.uint8] = self._compose(image=image)["image"]
        return augmented

"""Augmentation recipes by name, with random draws that depend only on (seed, epoch, row)."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dermstack.errors import ImageError

# Read at its first import: otherwise it asks a server for its newest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A


class Microscope(A.ImageOnlyTransform):  # type: ignore[misc]  # albumentations has no types
    """Blackens the image outside a circle about as wide as the image, like many dermatoscopes."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws the radius, as a share of the shorter side, and the centre, as shares of width and height."""
        return {
            "radius": self.py_random.uniform(0.46, 0.58),
            "middle": [self.py_random.uniform(0.47, 0.53) for _ in range(2)],
        }

    def apply(self, img: NDArray[np.uint8], radius: float, middle: list[float], **_: Any) -> NDArray[np.uint8]:
        """Blackens one RGB image outside the circle."""
        height, width = img.shape[:2]
        mask = np.zeros((height, width), np.uint8)
        centre = (round(middle[0] * width), round(middle[1] * height))
        cv2.circle(mask, centre, round(radius * min(height, width)), 255, thickness=-1, lineType=cv2.LINE_AA)
        lit: NDArray[np.uint8] = cv2.multiply(img, cv2.merge([mask] * 3), scale=1 / 255)
        return lit


class Hair(A.ImageOnlyTransform):  # type: ignore[misc]
    """Draws 2 to 9 dark, thin, bent hairs across the image."""

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draws for each hair three points of a quadratic curve, as shares of the sides, a thickness and a shade."""
        draw = self.py_random
        hairs = []
        for _ in range(draw.randint(2, 9)):
            start, end = [(draw.uniform(-0.1, 1.1), draw.uniform(-0.1, 1.1)) for _ in range(2)]
            bend = [(a + b) / 2 + draw.uniform(-0.2, 0.2) for a, b in zip(start, end, strict=True)]
            hairs.append((start, bend, end, draw.uniform(0.004, 0.012), draw.randint(10, 70)))
        return {"hairs": hairs}

    def apply(self, img: NDArray[np.uint8], hairs: list[Any], **_: Any) -> NDArray[np.uint8]:
        """Draws the hairs on a copy of one RGB image."""
        drawn = img.copy()
        height, width = img.shape[:2]
        t = np.linspace(0, 1, 24)[:, None]
        for start, bend, end, thickness, shade in hairs:
            curve = (1 - t) ** 2 * np.array(start) + 2 * t * (1 - t) * np.array(bend) + t**2 * np.array(end)
            # 4 fractional bits, so that hairs bend smoothly in small images too.
            points = np.round(curve * (width, height) * 16).astype(np.int32)
            colour = (shade, round(shade * 0.8), round(shade * 0.7))  # a brownish black
            cv2.polylines(
                drawn, [points], False, colour, max(1, round(thickness * width)), lineType=cv2.LINE_AA, shift=4
            )
        return drawn


RECIPES: dict[str, list[A.BasicTransform]] = {
    "none": [],
    # The square's symmetries and slight colour changes: skin has no upright direction, and cameras differ in exposure.
    "light": [
        A.D4(p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.75),
        A.HueSaturationValue(hue_shift_limit=5, sat_shift_limit=15, val_shift_limit=10, p=0.5),
    ],
    # Any rotation, a change of scale, more colour, and a hole: for ten or more epochs.
    "standard": [
        A.D4(p=1.0),
        A.Affine(scale=(0.8, 1.2), rotate=(-45, 45), translate_percent=(-0.06, 0.06), border_mode=4, p=0.8),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.75),
        A.HueSaturationValue(hue_shift_limit=8, sat_shift_limit=20, val_shift_limit=10, p=0.6),
        A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.15, 0.35), hole_width_range=(0.15, 0.35), p=0.5),
    ],
    # The recipe of SIIM-ISIC 2020's first place (Ha, Liu, Liu 2020, arXiv:2010.05351): large networks, fifteen epochs.
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
                A.GridDistortion(num_steps=5, distort_limit=0.3),  # their 1.0 smears the lesion in this version
                A.ElasticTransform(alpha=3),
            ],
            p=0.7,
        ),
        A.CLAHE(clip_limit=4.0, p=0.7),
        A.HueSaturationValue(hue_shift_limit=10, sat_shift_limit=20, val_shift_limit=10, p=0.5),
        A.Affine(translate_percent=(-0.1, 0.1), scale=(0.9, 1.1), rotate=(-15, 15), border_mode=0, p=0.85),
        A.CoarseDropout(num_holes_range=(1, 1), hole_height_range=(0.3, 0.375), hole_width_range=(0.3, 0.375), p=0.7),
    ],
    # To be used after any of these: artefacts of instruments and hair over the lesion.
    "microscope": [Microscope(p=0.3)],
    "hair": [Hair(p=0.3)],
}


def check_recipe(names: Sequence[str]) -> None:
    """Raises ImageError for a recipe that does not exist."""
    for name in names:
        if name not in RECIPES:
            raise ImageError(f"unknown augmentation {name!r}: choose from {', '.join(RECIPES)}")


class Augment:
    """Applies recipes in order; the draws for an image do not depend on the loading process or the order of loading.

    By default, albumentations 2.0.8 gives every loader process the same draws and a resumed training different ones.
    """

    def __init__(self, *recipes: str, seed: int) -> None:
        check_recipe(recipes)
        self.seed = seed
        self._compose = A.Compose([transform for name in recipes for transform in RECIPES[name]])

    def __call__(self, image: NDArray[np.uint8], *, epoch: int, row: int) -> NDArray[np.uint8]:
        """Augments one RGB image (h, w, 3); ``row`` is its position in the training set."""
        # One state for all transforms: set_random_seed gives each the same draws, so turned images would be darkened.
        rng = np.random.default_rng((self.seed, epoch, row))
        self._compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        augmented: NDArray[np.uint8] = self._compose(image=image)["image"]
        return augmented

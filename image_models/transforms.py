"""Augmentation recipes by name: each draw depends on (seed, epoch, row) alone. Only this file knows albumentations."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from image_models.errors import ImageError

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read at import: else it asks a server for its newest version
import albumentations as A

RECIPES: dict[str, list[A.BasicTransform]] = {
    "none": [],
    # The square's symmetries and a little light: skin has no up, and cameras differ in exposure.
    "light": [
        A.D4(p=1.0),
        A.RandomBrightnessContrast(brightness_limit=0.15, contrast_limit=0.15, p=0.75),
        A.HueSaturationValue(hue_shift_limit=5, sat_shift_limit=15, val_shift_limit=10, p=0.5),
    ],
}


def check_recipe(name: str) -> None:
    """Raise ImageError for a recipe that doesn't exist."""
    if name not in RECIPES:
        raise ImageError(f"unknown augmentation {name!r}: choose one of {', '.join(RECIPES)}")


class Augment:
    """A recipe whose draw for a picture is the same whoever loads it, in whatever order, before or after a resume."""

    def __init__(self, recipe: str, *, seed: int) -> None:
        check_recipe(recipe)
        self.seed = seed
        self._compose = A.Compose(RECIPES[recipe])

    def __call__(self, image: NDArray[np.uint8], *, epoch: int, row: int) -> NDArray[np.uint8]:
        """Augment one RGB image (h, w, 3); ``row`` is its place in the training set."""
        draw = np.random.SeedSequence((self.seed, epoch, row)).generate_state(1)[0]
        self._compose.set_random_seed(int(draw))
        augmented: NDArray[np.uint8] = self._compose(image=image)["image"]
        return augmented

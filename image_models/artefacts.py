"""What dermatoscopes and skin put over a lesion, drawn: the dark rim of a tube's field of view, and hair."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from albumentations import ImageOnlyTransform
from numpy.typing import NDArray


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

"""Times the search for near-duplicates among 33,000 images on one core: hashing thumbnails, comparing all pairs.

python benchmarks/duplicates.py
"""

from __future__ import annotations

import time

import cv2
import numpy as np

from image_models.duplicates import THUMBNAIL_SIDE, HashedImages, apply_symmetry, hash_thumbnails, near_duplicates

N, COPIES = 33_000, 425


def lesions(n: int) -> np.ndarray:
    """Generates thumbnails of dark blots on rough skin, which resemble each other as dermoscopy images do."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1 : 1 : THUMBNAIL_SIDE * 1j, -1 : 1 : THUMBNAIL_SIDE * 1j]
    made = np.empty((n, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3), np.uint8)
    for number in range(n):
        cx, cy = rng.normal(0, 0.15, 2)
        blot = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / rng.uniform(0.05, 0.3)) ** 2))
        rough = cv2.GaussianBlur(rng.normal(0, 1, (THUMBNAIL_SIDE, THUMBNAIL_SIDE)).astype(np.float32), (0, 0), 2.5)
        made[number] = np.clip(
            (190 - 80 * blot + 12 * rough / rough.std())[..., None] * np.array([1.0, 0.8, 0.75]), 0, 255
        )
    return made


def main() -> None:
    thumbnails = lesions(N)
    for number in range(COPIES):
        thumbnails[N - 1 - number] = apply_symmetry(thumbnails[number : number + 1], number % 8)[0]
    started = time.perf_counter()
    hashed_images = HashedImages(thumbnails, hash_thumbnails(thumbnails))
    hashed = time.perf_counter()
    pairs = near_duplicates(hashed_images)
    compared = time.perf_counter()
    right = (pairs["a"] + pairs["b"] == N - 1).sum()
    print("| images | hashing | all pairs | copies found | other pairs |")
    print("|---|---|---|---|---|")
    print(
        f"| {N:,} | {hashed - started:.1f} s | {compared - hashed:.1f} s | {right} of {COPIES} | {len(pairs) - right} |"
    )


if __name__ == "__main__":
    main()

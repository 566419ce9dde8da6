"""Compares the image cache with plain code on one core: building it, and reading it in random order.

python benchmarks/cache.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from image_models.cache import build_cache
from image_models.io.readers import image_sources

N, SIDE, SIZE, REPEATS = 256, 1024, 256, 5
COARSENESS = (2, 4, 8, 16, 32, 64)  # pixels: photographs have structure at every scale, strongest at coarse ones


def write_pictures(folder: Path) -> list[Path]:
    """Writes 1024 × 1024 JPEGs of quality 90 with the spectrum of a photograph."""
    rng = np.random.default_rng(0)
    picture = np.full((SIDE, SIDE, 3), 128.0, np.float32)
    for sigma in COARSENESS:
        layer = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE, 3)).astype(np.float32), (0, 0), sigma)
        grey = cv2.GaussianBlur(rng.normal(0, 1, (SIDE, SIDE)).astype(np.float32), (0, 0), sigma)[..., None]
        picture += sigma**0.5 * (3 * grey / grey.std() + layer / layer.std())
    rough = np.clip(picture, 0, 255).astype(np.uint8)
    paths = [folder / f"i{number}.jpg" for number in range(N)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(rough, 37 * number, axis=1)).save(path, quality=90)
    return paths


def by_opencv(path: Path) -> np.ndarray:
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def by_pillow(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BOX))


def images_per_second(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return N / (time.perf_counter() - started)


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_pictures(folder)
        kilobytes = statistics.mean(path.stat().st_size for path in paths) / 1000
        ids = [path.stem for path in paths]
        sources = image_sources(folder, ids)
        order = np.random.default_rng(1).permutation(N)
        rates: dict[str, list[float]] = {}
        for repeat in range(REPEATS):
            caches = {format: folder / f"{format}-{repeat}" for format in ("raw", "jpeg")}
            jobs: dict[str, Callable[[], object]] = {
                "build raw": lambda caches=caches: build_cache(caches["raw"], ids, sources, size=SIZE),
                "build jpeg": lambda caches=caches: build_cache(caches["jpeg"], ids, sources, size=SIZE, format="jpeg"),
                "OpenCV": lambda: [by_opencv(path) for path in paths],
                "Pillow": lambda: [by_pillow(path) for path in paths],
            }
            for job, work in jobs.items():
                rates.setdefault(job, []).append(images_per_second(work))
            made = {
                format: build_cache(path, ids, sources, size=SIZE, format=format) for format, path in caches.items()
            }
            for format, cache in made.items():
                reading = [cache.rows_for([ids[i] for i in order[start : start + 32]]) for start in range(0, N, 32)]
                read = images_per_second(lambda cache=cache, reading=reading: [cache.take(rows) for rows in reading])
                rates.setdefault(f"read {format}", []).append(read)
    middle = {job: statistics.median(values) for job, values in rates.items()}
    print(f"{N} JPEGs of {SIDE} × {SIDE} pixels, {kilobytes:.0f} kB each, to {SIZE} × {SIZE}")
    print("| what | images/s | against OpenCV | against Pillow |")
    print("|---|---|---|---|")
    for job in ("build raw", "build jpeg", "read raw", "read jpeg", "OpenCV", "Pillow"):
        ours = middle[job]
        print(f"| {job} | {ours:,.0f} | {ours / middle['OpenCV']:.1f} × | {ours / middle['Pillow']:.1f} × |")


if __name__ == "__main__":
    main()

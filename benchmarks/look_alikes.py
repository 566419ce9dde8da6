"""Measures the search for near-duplicates on real pictures: copies found by kind, and false pairs among smooth ones.

python benchmarks/look_alikes.py ../shared/data [--pictures 1000]

Copies are made of photographs of HAM10000: encoded anew, shrunk, turned, and all at once, also of pictures that were
blurred first, which have no fine texture. False pairs are those of different lesions (nothing but ISIC_0025226 and
ISIC_0030074 is one picture under two lesions), and all pairs of smooth pictures drawn independently.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from image_models import duplicates
from image_models.duplicates import HashedImages, apply_symmetry, hash_thumbnails, near_duplicates
from image_models.io.decode import decode

TEXTURES = (0.0, 0.9, 1.5, 3.0)  # limits below which a picture counts as smooth; 0: the rule is off
SAME_PICTURE = {"ISIC_0025226", "ISIC_0030074"}
Picture = np.ndarray


def encoded(picture: Picture, quality: int) -> Picture:
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def resized(picture: Picture, scale: float) -> Picture:
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=how)


def turned(picture: Picture, turn: int) -> Picture:
    return np.ascontiguousarray(apply_symmetry(picture[None], turn)[0])


def cropped(picture: Picture, share: float) -> Picture:
    height, width = picture.shape[:2]
    return picture[
        round(share * height) : height - round(share * height), round(share * width) : width - round(share * width)
    ]


COPIES: dict[str, Callable[[Picture, int], Picture]] = {
    "JPEG quality 75": lambda picture, _: encoded(picture, 75),
    "JPEG quality 30": lambda picture, _: encoded(picture, 30),
    "shrunk to 60 %": lambda picture, _: resized(picture, 0.6),
    "shrunk to 30 %": lambda picture, _: resized(picture, 0.3),
    "enlarged to 150 %": lambda picture, _: resized(picture, 1.5),
    "turned or mirrored": turned,
    "turned, 60 %, quality 50": lambda picture, turn: encoded(resized(turned(picture, turn), 0.6), 50),
    "brighter by 15": lambda picture, _: np.clip(picture.astype(np.int16) + 15, 0, 255).astype(np.uint8),
    "cropped by 2 % a side": lambda picture, _: cropped(picture, 0.02),
}  # fmt: skip


def thumbnails(pictures: list[Picture]) -> np.ndarray:
    side = duplicates.THUMBNAIL_SIDE
    return np.stack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in pictures])


def pairs_of(small: np.ndarray, texture: float) -> pd.DataFrame:
    with mock.patch.object(duplicates, "MIN_TEXTURE", texture):
        return near_duplicates(HashedImages(small, hash_thumbnails(small)))


def smooth(rng: np.random.Generator) -> Picture:
    """A soft blot on plain skin, without any texture, as in tests/test_duplicates.py."""
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    cx, cy = rng.normal(0, 0.2, 2)
    blot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2 * rng.uniform(0.6, 1.6)) / rng.uniform(0.05, 0.4))
    grey = 190 - rng.uniform(40, 120) * blot
    return np.clip(grey[..., None] * np.array([1.0, 0.8, 0.75]), 0, 255).astype(np.uint8)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("data", type=Path)
    arguments.add_argument("--pictures", type=int, default=1000)
    given = arguments.parse_args()
    folder, rng = given.data / "ham10000", np.random.default_rng(0)
    rows = pd.concat([pd.read_csv(folder / f"{part}.csv") for part in ("train", "test")], ignore_index=True)
    read = [decode((folder / "jpeg" / f"{i}.jpg").read_bytes(), name=i, min_side=144).image for i in rows["image_name"]]
    everything = thumbnails(read)
    texture = duplicates._texture(everything)
    low = np.quantile(texture, [0, 0.001, 0.01, 0.1, 0.5])
    print(f"texture of {len(rows):,} photographs, minimum, 0.1, 1, 10 and 50 %: {', '.join(f'{v:.2f}' for v in low)}")
    print(f"with less than 0.9, 1.5, 3: {[int((texture < limit).sum()) for limit in TEXTURES[1:]]}\n")

    chosen = np.sort(rng.choice(len(read), given.pictures, replace=False))
    turns = rng.integers(1, 8, len(read))
    sharp = {number: read[number] for number in chosen}
    blurred = {number: cv2.GaussianBlur(read[number], (0, 0), 12) for number in chosen[: given.pictures // 2]}
    columns = " | ".join(f"MIN_TEXTURE {limit:g}" for limit in TEXTURES)
    print(f"| copies found, and pairs of different pictures beside | {columns} |")
    print("|---|" + "---|" * len(TEXTURES))
    for kind, originals in (("", sharp), ("blurred, then ", blurred)):
        first = thumbnails(list(originals.values()))
        n = len(first)
        poor = (duplicates._texture(first) < duplicates.MIN_TEXTURE).sum()
        for name, make in COPIES.items():
            copies = thumbnails([make(picture, int(turns[number])) for number, picture in originals.items()])
            cells = []
            for limit in TEXTURES:
                pairs = pairs_of(np.concatenate([first, copies]), limit)
                right = (pairs["b"] - pairs["a"]) == n
                lesion = rows["lesion_id"].to_numpy()[list(originals)]
                others = pairs[~right]
                false = (lesion[others["a"] % n] != lesion[others["b"] % n]).sum()
                cells.append(f"{right.sum():,} of {n:,}, {false} false")
            print(f"| {kind}{name}{f' ({poor} below 0.9)' if kind else ''} | {' | '.join(cells)} |", flush=True)

    lesion, names = rows["lesion_id"].to_numpy(), rows["image_name"].to_numpy()
    same_lesion = sum(int(size * (size - 1) / 2) for size in rows["lesion_id"].value_counts())
    cells = []
    for limit in TEXTURES:
        pairs = pairs_of(everything, limit)
        of_one = lesion[pairs["a"]] == lesion[pairs["b"]]
        across = [{names[a], names[b]} for a, b in zip(pairs["a"][~of_one], pairs["b"][~of_one], strict=True)]
        false = sum(pair != SAME_PICTURE for pair in across)
        cells.append(f"{of_one.sum()} of {same_lesion:,}, {false} false")
    print(f"| all {len(rows):,} photographs: pairs of one lesion found | {' | '.join(cells)} |", flush=True)
    for kind, make in (("drawn", None), ("real, blurred", blurred)):
        small = thumbnails([smooth(rng) for _ in range(2000)] if make is None else list(make.values()))
        cells = [f"0 to find, {len(pairs_of(small, limit))} false" for limit in TEXTURES]
        print(f"| {len(small):,} smooth pictures, {kind} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

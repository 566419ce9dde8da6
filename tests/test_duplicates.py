from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from image_models.cache import ImageCache, build_cache
from image_models.duplicates import (
    SYMMETRIES,
    HashedImages,
    apply_symmetry,
    hash_thumbnails,
    image_faults,
    near_duplicates,
    read_hashed_images,
)
from image_models.io.decode import decode
from image_models.io.readers import image_sources


def thumbnails(pictures: list[np.ndarray]) -> np.ndarray:
    return np.stack([cv2.resize(picture, (32, 32), interpolation=cv2.INTER_AREA) for picture in pictures])


def looks(pictures: list[np.ndarray]) -> HashedImages:
    small = thumbnails(pictures)
    return HashedImages(small, hash_thumbnails(small))


def lesion(rng: np.random.Generator) -> np.ndarray:
    """A dark blot on skin with some texture: what all dermoscopy has in common."""
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    cx, cy = rng.normal(0, 0.15, 2)
    blot = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2 * rng.uniform(0.6, 1.6)) / rng.uniform(0.05, 0.3)) ** 2))
    texture = cv2.GaussianBlur(rng.normal(0, 60, (96, 128)).astype(np.float32), (0, 0), 4.0)
    grey = 200 - 120 * blot + 2.5 * texture
    return np.clip(grey[..., None] * np.array([1.0, 0.8, 0.75]), 0, 255).astype(np.uint8)


def copy(picture: np.ndarray, turn: int, *, scale: float = 0.6, quality: int = 50) -> np.ndarray:
    """Turned, shrunk and encoded anew."""
    image = np.ascontiguousarray(apply_symmetry(picture[None], turn)[0])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]


def test_the_hash_of_a_symmetry_is_that_of_the_picture_so_brought(rng: np.random.Generator) -> None:
    small = thumbnails([lesion(rng) for _ in range(40)])
    hashes = hash_thumbnails(small)
    for turn in range(len(SYMMETRIES)):
        again = hash_thumbnails(np.ascontiguousarray(apply_symmetry(small, turn)))[:, 0]
        assert np.bitwise_count(again ^ hashes[:, turn]).max() <= 1, "but for a frequency that is almost nothing"


def test_the_symmetries_are_eight_and_named_after_what_they_do() -> None:
    picture = np.arange(27, dtype=np.uint8).reshape(1, 3, 3, 3)
    made = {SYMMETRIES[turn]: apply_symmetry(picture, turn)[0] for turn in range(8)}
    assert len({image.tobytes() for image in made.values()}) == 8
    assert (made["mirrored"] == np.fliplr(picture[0])).all()
    assert (made["upside down"] == np.flipud(picture[0])).all()
    for name, quarters in (("turned by 90°", 3), ("turned by 180°", 2), ("turned by 270°", 1)):
        assert (made[name] == np.rot90(picture[0], quarters)).all(), name


def test_copies_are_found_with_their_turn_and_look_alikes_are_not() -> None:
    rng = np.random.default_rng(0)
    originals = [lesion(rng) for _ in range(120)]
    turns = rng.integers(0, 8, 120)
    pairs = near_duplicates(looks(originals + [copy(o, int(t)) for o, t in zip(originals, turns, strict=True)]))
    assert sorted(pairs["b"] - pairs["a"]) == [120] * 120, "each copy, and nothing else"
    back = {int(a): turn for a, turn in zip(pairs["a"], pairs["turn"], strict=True)}
    undo = [SYMMETRIES[{5: 6, 6: 5}.get(int(turn), int(turn))] for turn in turns]
    assert [back[number] for number in range(120)] == undo, "the turn that brings the copy back"


def microscope(rng: np.random.Generator) -> np.ndarray:
    """A small spot in the middle of skin, in the same dark frame every time: alike, and another lesion each."""
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    frame = 1 / (1 + np.exp(40 * (x**2 + y**2 - 1.1)))
    angle = np.arctan2(y, x)
    edge = 0.02 * (1 + 0.5 * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6)))
    spot = 1 / (1 + np.exp(300 * (x**2 + y**2 - edge)))
    texture = cv2.GaussianBlur(rng.normal(0, 1, (96, 128)).astype(np.float32), (0, 0), 4.0)
    grey = frame * (200 - 90 * spot + 14 * texture / texture.std())
    return np.clip(grey[..., None] * np.array([1.0, 0.8, 0.75]), 0, 255).astype(np.uint8)


def test_lesions_under_one_microscope_are_not_the_same_picture() -> None:
    rng = np.random.default_rng(0)
    frames = thumbnails([microscope(rng) for _ in range(40)]).astype(float).reshape(40, -1)
    assert np.corrcoef(frames)[np.triu_indices(40, 1)].max() > 0.96, "their thumbnails alone would say so"
    rng = np.random.default_rng(0)
    originals = [microscope(rng) for _ in range(40)]
    pairs = near_duplicates(looks(originals + [copy(original, 0) for original in originals]))
    assert (pairs["b"] - pairs["a"]).tolist() == [40] * 40


def test_light_and_a_colour_cast_make_no_other_picture(rng: np.random.Generator) -> None:
    picture = lesion(rng)
    brighter = np.clip(picture * np.array([0.95, 0.9, 0.8]) + 12, 0, 255).astype(np.uint8)
    assert len(near_duplicates(looks([picture, brighter]))) == 1


def test_flat_pictures_are_no_duplicates_of_each_other() -> None:
    assert near_duplicates(looks([np.full((40, 40, 3), value, np.uint8) for value in (90, 90, 91)])).empty


def smooth(rng: np.random.Generator) -> np.ndarray:
    """A soft blot on plain skin, without any texture."""
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    cx, cy = rng.normal(0, 0.2, 2)
    blot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2 * rng.uniform(0.6, 1.6)) / rng.uniform(0.05, 0.4))
    grey = 190 - rng.uniform(40, 120) * blot
    return np.clip(grey[..., None] * np.array([1.0, 0.8, 0.75]), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_smooth_pictures_drawn_independently_are_no_pairs_and_the_same_file_is_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pictures = [smooth(rng) for _ in range(400)]
    pairs = near_duplicates(looks([*pictures, pictures[7].copy(), np.fliplr(pictures[9]).copy()]))
    assert pairs[["a", "b"]].to_numpy().tolist() == [[7, 400], [9, 401]]
    assert pairs["turn"].tolist() == ["as it is", "mirrored"]


def test_strange_pictures_are_named(rng: np.random.Generator) -> None:
    skin = lesion(rng)
    odd = image_faults(looks([skin, skin[..., ::-1].copy(), np.zeros_like(skin), np.full_like(skin, 128)]))
    assert odd.to_numpy().tolist() == [[1, "red and blue swapped"], [2, "black"], [3, "constant"]]


@pytest.fixture
def cache(tmp_path: Path, rng: np.random.Generator) -> ImageCache:
    (tmp_path / "images").mkdir()
    for number in range(30):
        Image.fromarray(lesion(rng)).save(tmp_path / "images" / f"i{number}.png")
    sources = image_sources(tmp_path / "images", [f"i{number}" for number in range(30)])
    return build_cache(tmp_path / "c", [f"i{n}" for n in range(30)], sources, size=64, resize="short_side")


def test_a_cache_is_looked_at_in_the_order_of_the_rows(cache: ImageCache) -> None:
    """Whole pictures, not their central squares."""
    seen: list[int] = []
    rows = np.array([7, 3, 29])
    made = read_hashed_images(cache, rows, progress=seen.append)
    assert sum(seen) == 3
    assert (made.thumbnails == thumbnails([cache.image(int(row)) for row in rows])).all()
    assert (read_hashed_images(cache, rows, n_jobs=2).hashes == made.hashes).all()


@pytest.mark.slow
def test_copies_of_real_photographs_are_found_and_nothing_else(shared_data: Path) -> None:
    rng = np.random.default_rng(0)
    files = rng.choice(sorted((shared_data / "siim2020" / "jpeg").iterdir()), 300, replace=False)
    originals = [decode(file.read_bytes(), name=file.name, min_side=192).image for file in files]
    copies = [copy(picture, int(rng.integers(8))) for picture in originals]
    pairs = near_duplicates(looks(originals + copies))
    right = pairs["b"] - pairs["a"] == 300
    assert right.sum() >= 297
    assert pairs[~right].empty


@pytest.mark.slow
def test_ham10000_has_one_picture_under_two_lesions(shared_data: Path) -> None:
    """ISIC_0025226 and ISIC_0030074, one in test and one in train; the other pairs are of one lesion each."""
    folder = shared_data / "ham10000"
    rows = pd.concat([pd.read_csv(folder / f"{part}.csv") for part in ("train", "test")])
    lesions = rows.set_index("image_name")["lesion_id"]
    ids = list(lesions.index)
    small = thumbnails([decode((folder / "jpeg" / f"{i}.jpg").read_bytes(), name=i, min_side=32).image for i in ids])
    pairs = near_duplicates(HashedImages(small, hash_thumbnails(small)))
    across = [
        {ids[a], ids[b]} for a, b in zip(pairs["a"], pairs["b"], strict=True) if lesions[ids[a]] != lesions[ids[b]]
    ]
    assert {"ISIC_0025226", "ISIC_0030074"} in across
    assert len(across) <= 2
    assert len(pairs) > 60

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import product

import numpy as np
import pytest
from sources import ROOT

from dermstack.errors import ImageError
from image_models.dataset import CachedImages, eval_batches, load_batches, train_batches
from image_models.processes import run_parallel
from image_models.transforms import Augment


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def test_a_draw_depends_on_seed_epoch_and_row_alone(pixels: np.ndarray) -> None:
    image = pixels[0]
    once = {
        key: Augment("light", seed=key[0])(image, epoch=key[1], row=key[2]) for key in product((0, 1), (0, 1), (0, 1))
    }
    again = Augment("light", seed=0)
    for key in [(0, 1, 1), (0, 0, 0), (0, 0, 1)]:  # another order, the same object
        assert (again(image, epoch=key[1], row=key[2]) == once[key]).all()
    drawn = {value.tobytes() for value in once.values()}
    assert len(drawn) == len(once), "seeds, epochs and rows must differ"


def test_light_keeps_the_shape_and_none_the_bytes(pixels: np.ndarray) -> None:
    assert Augment("light", seed=0)(pixels[0], epoch=0, row=0).shape == pixels[0].shape
    assert (Augment("none", seed=0)(pixels[0], epoch=3, row=7) == pixels[0]).all()


@pytest.mark.parametrize("recipe", ["standard", "heavy", "microscope", "hair"])
def test_a_recipe_changes_pictures_and_keeps_their_form(pixels: np.ndarray, recipe: str) -> None:
    made = [Augment(recipe, seed=0)(pixels[0], epoch=0, row=row) for row in range(20)]
    assert all(image.shape == pixels[0].shape and image.dtype == np.uint8 for image in made)
    assert len({image.tobytes() for image in made}) > 3


def test_what_one_transform_draws_says_nothing_about_the_next() -> None:
    """albumentations' own set_random_seed gives every transform of a recipe the same state: all apply, or none."""
    grey = np.full((48, 48, 3), 128, np.uint8)
    augment = Augment("microscope", "hair", seed=0)
    made = [augment(grey, epoch=0, row=row) for row in range(400)]
    rim = np.array([(image[0, 0] == 0).all() for image in made])
    hair = np.array([((image != 128) & (image != 0)).any() and image[16:32, 16:32].min() < 128 for image in made])
    assert 0.2 < rim.mean() < 0.4
    assert 0.1 < hair.mean() < 0.4  # not every hair crosses the middle
    assert abs(np.corrcoef(rim, hair)[0, 1]) < 0.2


def test_a_microscope_is_black_outside_and_untouched_within() -> None:
    grey = np.full((64, 64, 3), 200, np.uint8)
    made = [Augment("microscope", seed=0)(grey, epoch=0, row=row) for row in range(60)]
    rims = [image for image in made if (image != grey).any()]
    assert rims
    for image in rims:
        assert (image[0, 0] == 0).all()
        assert (image[24:40, 24:40] == 200).all()


def test_recipes_follow_one_another(pixels: np.ndarray) -> None:
    rows = range(30)
    alone = [Augment("hair", seed=0)(pixels[0], epoch=0, row=row) for row in rows]
    both = [Augment("hair", "microscope", seed=0)(pixels[0], epoch=0, row=row) for row in rows]
    assert any((a != b).any() for a, b in zip(alone, both, strict=True))


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(ImageError, match="'hevy': choose from none, light"):
        Augment("hevy", seed=0)


def test_albumentations_does_not_phone_home() -> None:
    """It asks PyPI for its newest version when it is imported, unless the variable was set before."""
    code = """
import socket
def refuse(*address, **options):
    print("asked", address)
    raise OSError("no network")
socket.getaddrinfo = refuse
import image_models.transforms
"""
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert made.stdout == b""


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["light", "heavy"])
def test_batches_are_the_same_with_and_without_loader_processes(pixels: np.ndarray, recipe: str) -> None:
    """Also where the process that starts them is one of several that work on tasks."""
    alone = _epoch(pixels, recipe, 0)
    assert alone == _epoch(pixels, recipe, 2)
    assert list(run_parallel([partial(_epoch, pixels, recipe, 1)] * 2, 2)) == [alone, alone]


def _epoch(pixels: np.ndarray, recipe: str, workers: int) -> list[bytes]:
    images = CachedImages(pixels, np.arange(12), np.zeros(12, np.int8), augment=Augment(recipe, seed=0), epoch=2)
    batches = train_batches(12, batch_size=5, seed=0, epoch=2, weights=np.arange(12.0))
    return [batch.images.numpy().tobytes() for batch in load_batches(images, batches, workers=workers, pin=False)]


def test_a_batch_holds_its_rows_pictures_and_targets(pixels: np.ndarray) -> None:
    rows, target = np.array([7, 3, 5]), np.array([1, 0, 1], np.int8)
    columns = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
    batch = CachedImages(pixels, rows, target, metadata=columns)[[2, 1]]
    assert (batch.images.numpy() == pixels[[5, 3]]).all()
    assert batch.allowed.tolist() == [[False, True], [True, False]]
    assert batch.metadata.tolist() == [[5.0, 6.0], [3.0, 4.0]]
    assert batch.rows.tolist() == [2, 1]


def test_every_row_is_trained_on_once_an_epoch_in_another_order_each_time() -> None:
    orders = [[row for batch in train_batches(23, batch_size=4, seed=0, epoch=e) for row in batch] for e in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_row_that_is_drawn_again_is_another_picture_of_it(pixels: np.ndarray) -> None:
    weights = np.full(12, 1.0)
    weights[3] = 20.0
    places = [place for batch in train_batches(12, batch_size=5, seed=0, epoch=0, weights=weights) for place in batch]
    assert len(set(places)) == len(places) == 12
    assert sum(place % 12 == 3 for place in places) > 4
    target = (np.arange(12) == 3).astype(np.int8)
    images = CachedImages(pixels, np.arange(12), target, augment=Augment("standard", seed=0))
    batch = images[[3, 15, 27, 4]]
    assert batch.allowed[:, 1].tolist() == [True, True, True, False]
    assert len({picture.numpy().tobytes() for picture in batch.images}) == 4
    assert (images[[3]].images == batch.images[:1]).all(), "the first draw is as ever"
    images.augment = None
    assert (images[[3, 15]].images.numpy() == pixels[[3, 3]]).all()


def test_a_last_batch_of_one_is_dropped_in_training_and_kept_in_prediction() -> None:
    assert sum(map(len, train_batches(9, batch_size=4, seed=0, epoch=0))) == 8
    assert [row for batch in eval_batches(9, batch_size=4) for row in batch] == list(range(9))

from __future__ import annotations

import os
from itertools import product

import numpy as np
import pytest

from image_models.dataset import CachedImages, eval_batches, load, train_batches
from image_models.errors import ImageError
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


def test_an_unknown_recipe_is_named_with_the_known_ones() -> None:
    with pytest.raises(ImageError, match="'hevy': choose one of none, light"):
        Augment("hevy", seed=0)


def test_albumentations_does_not_phone_home() -> None:
    assert os.environ["NO_ALBUMENTATIONS_UPDATE"] == "1"


@pytest.mark.slow
def test_batches_are_the_same_with_and_without_loader_processes(pixels: np.ndarray) -> None:
    def epoch(workers: int) -> list[bytes]:
        images = CachedImages(pixels, np.arange(12), np.zeros(12, np.int8), augment=Augment("light", seed=0), epoch=2)
        batches = train_batches(12, batch_size=5, seed=0, epoch=2)
        return [batch.numpy().tobytes() for batch, _ in load(images, batches, workers=workers, pin=False)]

    assert epoch(0) == epoch(2)


def test_a_batch_holds_its_rows_pictures_and_targets(pixels: np.ndarray) -> None:
    rows, target = np.array([7, 3, 5]), np.array([1, 0, 1], np.int8)
    batch, y = CachedImages(pixels, rows, target)[[2, 0]]
    assert (batch.numpy() == pixels[[5, 7]]).all()
    assert y.tolist() == [1.0, 1.0]


def test_every_row_is_trained_on_once_an_epoch_in_another_order_each_time() -> None:
    orders = [[row for batch in train_batches(23, batch_size=4, seed=0, epoch=e) for row in batch] for e in range(3)]
    assert all(sorted(order) == list(range(23)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_a_last_batch_of_one_is_dropped_in_training_and_kept_in_prediction() -> None:
    assert sum(map(len, train_batches(9, batch_size=4, seed=0, epoch=0))) == 8
    assert [row for batch in eval_batches(9, batch_size=4) for row in batch] == list(range(9))

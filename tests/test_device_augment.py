from __future__ import annotations

import numpy as np
import pytest
import torch

from image_models.device_augment import LIMITS, DeviceAugment, Limits
from image_models.predict import views


@pytest.fixture
def images(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (6, 17, 17, 3), dtype=np.uint8))


def test_a_draw_depends_on_seed_epoch_and_row_and_on_no_neighbour(images: torch.Tensor) -> None:
    augment = DeviceAugment("standard", seed=3)
    together = augment(images, epoch=1, rows=range(6))
    alone = augment(images[4:5], epoch=1, rows=[4])
    torch.testing.assert_close(together[4:5], alone)
    same = images[:1].expand(6, -1, -1, -1)
    made = augment(same, epoch=1, rows=range(6))
    assert len({image.numpy().tobytes() for image in made}) == 6
    for other in (
        augment(same, epoch=2, rows=range(6)),
        DeviceAugment("standard", seed=4)(same, epoch=1, rows=range(6)),
    ):
        assert not any(torch.equal(a, b) for a, b in zip(made, other, strict=True))


def test_without_limits_every_picture_is_one_of_its_eight_symmetries(
    images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LIMITS, "turns", Limits())
    seen = set()
    for epoch in range(12):
        made = DeviceAugment("turns", seed=0)(images, epoch=epoch, rows=range(6))
        for i, image in enumerate(made):
            errors = [float((image - view[i].float()).abs().max()) for view in views(images, "d4")]
            assert min(errors) < 0.5
            seen.add(int(np.argmin(errors)))
    assert seen == set(range(8))


def test_none_is_the_picture_itself(images: torch.Tensor) -> None:
    torch.testing.assert_close(DeviceAugment("none", seed=0)(images, epoch=0, rows=range(6)), images.float())


@pytest.mark.parametrize("recipe", ["light", "standard"])
def test_pictures_keep_their_form_and_range(recipe: str, images: torch.Tensor) -> None:
    made = DeviceAugment(recipe, seed=0)(images, epoch=0, rows=range(6))
    assert made.shape == images.shape
    assert made.dtype == torch.float32
    assert made.min() >= -1e-3
    assert made.max() <= 255 + 1e-3
    assert (made - images.float()).abs().mean() > 1


def test_colour_stays_within_its_limits() -> None:
    grey = torch.full((64, 8, 8, 3), 128, dtype=torch.uint8)
    made = DeviceAugment("light", seed=0)(grey, epoch=0, rows=range(64))
    level = made.mean(dim=(1, 2, 3))
    assert level.std() > 5
    assert ((level > 128 * 0.85 - 0.15 * 255 - 1) & (level < 128 * 1.15 + 0.15 * 255 + 1)).all()
    torch.testing.assert_close(made.amax(dim=3), made.amin(dim=3))  # grey has no hue to turn


def test_every_second_picture_has_a_hole_of_its_limits() -> None:
    white = torch.full((200, 40, 40, 3), 200, dtype=torch.uint8)
    made = DeviceAugment("standard", seed=0)(white, epoch=0, rows=range(200))
    share = (made.sum(dim=3) == 0).float().mean(dim=(1, 2))
    assert 0.35 < (share > 0).float().mean() < 0.65
    assert share[share > 0].min() >= 0.14**2
    assert share.max() <= 0.36**2

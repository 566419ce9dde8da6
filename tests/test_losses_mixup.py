from __future__ import annotations

import numpy as np
import pytest
import torch

from image_models.dataset import Batch, allowed_classes
from image_models.losses import mix_batch


@pytest.fixture
def batch(rng: np.random.Generator) -> Batch:
    images = torch.from_numpy(rng.integers(0, 256, (8, 20, 30, 3), dtype=np.uint8))
    allowed = torch.from_numpy(allowed_classes((np.arange(8) % 2).astype(np.int8)))
    return Batch(images, torch.randn(8, 3), allowed, torch.arange(8))


def test_mixup_is_the_weighted_mean_with_the_partner(batch: Batch) -> None:
    mixed = mix_batch(batch, mixup=0.4, cutmix=0.0, rng=np.random.default_rng(1))
    expected = mixed.share * batch.images + (1 - mixed.share) * batch.images[mixed.partner].float()
    torch.testing.assert_close(mixed.images, expected)
    torch.testing.assert_close(
        mixed.metadata, mixed.share * batch.metadata + (1 - mixed.share) * batch.metadata[mixed.partner]
    )
    assert sorted(mixed.partner.tolist()) == list(range(8))


def test_cutmix_keeps_as_much_of_a_picture_as_its_share_says(batch: Batch) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        mixed = mix_batch(batch, mixup=0.0, cutmix=1.0, rng=rng)
        own = (mixed.images == batch.images).all(dim=3)
        others = (mixed.images == batch.images[mixed.partner]).all(dim=3)
        assert (own | others).all()
        moved = mixed.partner != torch.arange(8)
        torch.testing.assert_close(
            own[moved].float().mean(dim=(1, 2)), torch.full((int(moved.sum()),), mixed.share), atol=0.01, rtol=0
        )


def test_with_both_on_each_batch_is_mixed_in_one_way(batch: Batch) -> None:
    rng = np.random.default_rng(0)
    kinds = [mix_batch(batch, mixup=1.0, cutmix=1.0, rng=rng).images.is_floating_point() for _ in range(60)]
    assert 15 < sum(kinds) < 45


def test_the_loss_is_mixed_as_the_pictures_are(batch: Batch) -> None:
    mixed = mix_batch(batch, mixup=1.0, cutmix=0.0, rng=np.random.default_rng(0))
    own, other = torch.rand(8), torch.rand(8)
    torch.testing.assert_close(mixed.loss(own, other), mixed.share * own + (1 - mixed.share) * other)

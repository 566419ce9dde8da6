from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from image_models.dataset import CachedImages
from image_models.net import build_net
from image_models.predict import VIEW_COUNTS, predict, views

CPU = torch.device("cpu")


def test_the_eight_views_are_the_squares_symmetries_each_once(rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.integers(0, 256, (3, 5, 5, 3), dtype=np.uint8))
    made = {view.numpy().tobytes() for view in views(images, "d4")}
    by_numpy = {
        np.ascontiguousarray(np.rot90(images.numpy()[:, :, ::flip], turns, axes=(1, 2))).tobytes()
        for turns, flip in product(range(4), (1, -1))
    }
    assert made == by_numpy
    assert len(made) == 8


@pytest.mark.parametrize("kind", VIEW_COUNTS)
def test_the_first_view_is_the_picture_and_their_number_is_known(kind: str, rng: np.random.Generator) -> None:
    images = torch.from_numpy(rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8))
    made = list(views(images, kind))
    assert len(made) == VIEW_COUNTS[kind]
    assert torch.equal(made[0], images)
    assert all(view.is_contiguous() for view in made)


def test_views_are_averaged_in_logits_and_in_features(rng: np.random.Generator) -> None:
    net = build_net(
        "test_resnet", pretrained=False, frozen=False, timm_args={}, size=32, mean=None, std=None, prior=(0.5, 0.5),
        seed=0,
    )  # fmt: skip
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(1))
    pixels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    whole = predict(net, CachedImages(pixels, np.arange(6)), batch_size=4, device=CPU, tta="flips")
    singles = [
        predict(net, CachedImages(np.ascontiguousarray(turned), np.arange(6)), batch_size=4, device=CPU)
        for turned in (pixels, pixels[:, ::-1], pixels[:, :, ::-1], pixels[:, ::-1, ::-1])
    ]
    np.testing.assert_allclose(whole.logit, np.mean([single.logit for single in singles], axis=0), atol=1e-4)
    np.testing.assert_allclose(whole.z, np.mean([single.z for single in singles], axis=0), atol=2e-3)


def test_every_view_counts_in_the_progress(rng: np.random.Generator) -> None:
    net = build_net(
        "test_resnet", pretrained=False, frozen=False, timm_args={}, size=32, mean=None, std=None, prior=(0.5, 0.5),
        seed=0,
    )  # fmt: skip
    seen: list[int] = []
    pixels = rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    predict(net, CachedImages(pixels, np.arange(6)), batch_size=4, device=CPU, tta="d4", progress=seen.append)
    assert sum(seen) == 8 * 6

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dermstack.errors import ImageError
from image_models.explain import CAM_BATCH_SIZE, pixel_risk_maps, risk_maps
from image_models.net import Net, build_net


@pytest.fixture
def red_seer() -> Net:
    """Redness, patch by patch, averaged: the logit grows with red and falls with blue."""
    patches = nn.Conv2d(3, 2, 4, stride=4, bias=False)
    with torch.no_grad():
        patches.weight.zero_()
        patches.weight[0, 0] = 1 / 16
        patches.weight[1, 2] = 1 / 16
    body = nn.Sequential(patches, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = Net(body, features=2, mean=(0.0,) * 3, std=(1.0,) * 3, frozen=False)
    with torch.no_grad():
        net.head.weight[:] = torch.tensor([[3.0, -3.0]])
        net.head.bias.zero_()
    return net


def test_the_heat_lies_where_the_risk_is(red_seer: Net) -> None:
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    images[0, 4:12, 20:28, 0] = 255
    images[1, 20:28, 4:12, 0] = 255
    images[1, 4:12, 4:12, 2] = 255  # lowers the logit: no heat
    heat = risk_maps(red_seer, images)
    assert heat.shape == (2, 32, 32)
    assert heat.dtype == np.float32
    assert heat[0, 8, 24] == pytest.approx(1)
    assert heat[1, 24, 8] == pytest.approx(1)
    assert heat[0, 20:, :16].max() == heat[1, :12, :12].max() == 0
    assert heat.min() == 0


def test_a_picture_without_risk_has_no_heat(red_seer: Net) -> None:
    assert (risk_maps(red_seer, torch.zeros(1, 32, 32, 3, dtype=torch.uint8)) == 0).all()


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_any_convolutional_backbone_has_a_map(backbone: str, rng: np.random.Generator) -> None:
    net = build_net(
        backbone, pretrained=False, frozen=False, timm_args={}, size=96, mean=None, std=None, prior=(0.5, 0.3, 0.2),
        positive=(False, True, True), metadata=2, seed=0,
    )  # fmt: skip
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    images = torch.from_numpy(rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8))
    heat = risk_maps(net, images, torch.zeros(3, 2))
    assert heat.shape == (3, 96, 96)
    assert np.isfinite(heat).all()
    assert heat.min() >= 0
    assert heat.max() <= 1
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_a_transformer_is_refused(rng: np.random.Generator) -> None:
    net = build_net(
        "test_vit",
        pretrained=False,
        frozen=False,
        timm_args={},
        size=160,
        mean=None,
        std=None,
        prior=(0.5, 0.5),
        seed=0,
    )
    with pytest.raises(ImageError, match="needs a convolutional backbone"):
        risk_maps(net, torch.from_numpy(rng.integers(0, 256, (1, 160, 160, 3), dtype=np.uint8)))


def test_maps_of_pixels_come_a_few_at_a_time(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build_net(
        "test_resnet", pretrained=False, frozen=False, timm_args={}, size=64, mean=None, std=None, prior=(0.5, 0.5),
        metadata=2, seed=0,
    )  # fmt: skip
    pixels = rng.integers(0, 256, (CAM_BATCH_SIZE + 1, 64, 64, 3), dtype=np.uint8)
    metadata = rng.normal(size=(CAM_BATCH_SIZE + 1, 2)).astype(np.float32)
    seen: list[int] = []

    def noted(net: Net, images: torch.Tensor, known: torch.Tensor) -> np.ndarray:
        seen.append(len(images))
        return risk_maps(net, images, known)

    monkeypatch.setattr("image_models.explain.risk_maps", noted)
    made = pixel_risk_maps(net, pixels, metadata)
    assert seen == [CAM_BATCH_SIZE, 1]
    whole = risk_maps(net, torch.from_numpy(pixels), torch.from_numpy(metadata))
    np.testing.assert_allclose(made, whole, atol=1e-4)
    assert all(parameter.grad is None for parameter in net.parameters())

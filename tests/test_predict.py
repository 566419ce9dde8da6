from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dermstack.errors import ImageError
from image_models.dataset import CachedImages
from image_models.net import Net, build_net
from image_models.predict import NetOutput, predict
from image_models.transforms import Augment

N = 17
CPU = torch.device("cpu")


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)


def tiny(*, frozen: bool = False, **timm_args: float) -> Net:
    """A net with a head large enough for rounding and order to show in its logits."""
    net = build_net(
        "test_resnet", pretrained=False, frozen=frozen, timm_args=timm_args, size=32, mean=None, std=None,
        prior=(0.9, 0.1), seed=0,
    )  # fmt: skip
    nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    return net


class Scaled(nn.Module):
    """Features that are the mean of the picture's channels, times ``factor``."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3)) * self.factor


def scaled(factor: float, *, weight: float) -> Net:
    net = Net(Scaled(factor), features=3, mean=(0.0,) * 3, std=(1.0,) * 3, frozen=False)
    nn.init.constant_(net.head.weight, weight)
    return net


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 16, 100])
def test_a_prediction_does_not_depend_on_its_batch(frozen: bool, batch_size: int, pixels: np.ndarray) -> None:
    net = tiny(frozen=frozen)
    made = predict(net, CachedImages(pixels, np.arange(N)), batch_size=batch_size, device=CPU)
    with torch.inference_mode():
        alone = [net(torch.from_numpy(picture[None])) for picture in pixels]
    # A float16 rounding may fall to the other side, which a frozen net's logit then shows.
    np.testing.assert_allclose(made.logit, np.concatenate([x for x, _ in alone]), atol=2e-3 if frozen else 1e-5)
    np.testing.assert_allclose(made.z, np.concatenate([z for _, z in alone]), atol=1e-3)
    assert made.logit.dtype == np.float32
    assert made.z.dtype == np.float16


def test_predictions_stand_in_the_order_of_the_rows(pixels: np.ndarray, rng: np.random.Generator) -> None:
    net, rows = tiny(), rng.integers(0, N, 40)  # a row may come twice
    every = predict(net, CachedImages(pixels, np.arange(N)), batch_size=4, device=CPU)
    some = predict(net, CachedImages(pixels, rows), batch_size=6, device=CPU)
    assert len(np.unique(every.logit)) == N
    np.testing.assert_allclose(some.logit, every.take(rows).logit, atol=1e-5)
    np.testing.assert_allclose(some.z, every.take(rows).z, atol=1e-3)


def test_predictions_are_never_augmented(pixels: np.ndarray) -> None:
    with pytest.raises(AssertionError, match="without augmentation"):
        predict(tiny(), CachedImages(pixels, np.arange(N), augment=Augment("none", seed=0)), batch_size=4, device=CPU)


def test_predicting_teaches_the_net_nothing_and_drops_nothing_out(pixels: np.ndarray) -> None:
    net, images = tiny(drop_rate=0.5), CachedImages(pixels, np.arange(N))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    made = [predict(net.train(), images, batch_size=4, device=CPU) for _ in range(2)]
    assert not net.training
    assert made[0].logit.tobytes() == made[1].logit.tobytes()
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_no_rows_are_no_predictions(pixels: np.ndarray) -> None:
    made = predict(tiny(), CachedImages(pixels, np.empty(0, np.intp)), batch_size=4, device=CPU)
    assert made.logit.shape == (0,)
    assert made.z.shape == (0, 96)
    assert made.logit.dtype == np.float32
    assert made.z.dtype == np.float16


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_logit_that_is_no_number_is_an_error(value: float, pixels: np.ndarray) -> None:
    net = tiny()
    nn.init.constant_(net.head.bias, value)
    with pytest.raises(ImageError, match=f"not finite.*for {N} of {N} images.*lower `lr`"):
        predict(net, CachedImages(pixels, np.arange(N)), batch_size=4, device=CPU)


def test_a_feature_beyond_float16_is_an_error_that_counts_the_images() -> None:
    """Stored as float16 it would be infinite, and level 2 would meet it."""
    pixels = np.zeros((5, 8, 8, 3), np.uint8)
    pixels[[1, 3]] = 255
    images = CachedImages(pixels, np.arange(5))
    fits = predict(scaled(65_000.0 / 255, weight=1e-6), images, batch_size=2, device=CPU)
    assert np.isfinite(fits.z).all()
    with pytest.raises(ImageError, match="beyond float16, for 2 of 5 images"):
        predict(scaled(70_000.0, weight=1e-6), images, batch_size=2, device=CPU)


def test_every_image_is_counted_in_the_progress(pixels: np.ndarray) -> None:
    seen: list[int] = []
    predict(tiny(), CachedImages(pixels, np.arange(N)), batch_size=5, device=CPU, progress=seen.append)
    assert seen == [5, 5, 5, 2]


def test_taking_rows_takes_logits_and_features_together() -> None:
    taken = NetOutput(np.arange(4, dtype=np.float32), np.eye(4, dtype=np.float16)).take(np.array([2, 0]))
    assert taken.logit.tolist() == [2, 0]
    assert taken.z.argmax(axis=1).tolist() == [2, 0]

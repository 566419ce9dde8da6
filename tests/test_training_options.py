"""What each option of the training loop does, against what it should do written out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_training import CPU, N, tiny, toy, train

from image_models.dataset import CachedImages
from image_models.ema import Average
from image_models.net import Net
from image_models.predict import predict
from image_models.settings import Training
from image_models.train import class_weights, prior_shift, training_prior

POSITIVE = np.array([False, True])
TARGET = (np.arange(N) % 2).astype(np.int8)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return toy(rng)[0]


class MeanColour(torch.nn.Module):
    """A backbone without weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=(2, 3))


def weights(net: Net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_average_follows_the_weights_with_its_decay() -> None:
    net = torch.nn.Linear(2, 1)
    average = Average(net, 0.5)
    expected = net.weight.detach().clone()
    for step in range(1, 8):
        with torch.no_grad():
            net.weight += step
        average.update(net)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * net.weight.detach()
    torch.testing.assert_close(average.tensors["weight"], expected)
    last = net.weight.detach().clone()
    average.swap(net)
    torch.testing.assert_close(net.weight.detach(), expected)
    average.swap(net)
    assert torch.equal(net.weight.detach(), last)


def test_the_average_is_the_model_and_lies_between(pixels: np.ndarray) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)
    plain, averaged, start = tiny(), tiny(), tiny()
    train(plain, images)
    train(averaged, images, ema=0.9)
    assert (weights(averaged) - weights(start)).norm() < (weights(plain) - weights(start)).norm()
    running = "backbone.layer1.0.bn1.running_mean"
    assert not torch.equal(averaged.state_dict()[running], plain.state_dict()[running]), "statistics are averaged too"


def test_rows_are_drawn_by_the_size_of_their_class() -> None:
    allowed = np.repeat(np.eye(3, dtype=bool), [90, 9, 1], axis=0)
    full, root = class_weights(allowed, "full"), class_weights(allowed, "sqrt")
    assert full is not None
    assert root is not None
    np.testing.assert_allclose([full[:90].sum(), full[90:99].sum(), full[99:].sum()], 1)
    np.testing.assert_allclose([root[:90].sum(), root[90:99].sum(), root[99:].sum()], np.sqrt([90, 9, 1]))
    assert class_weights(allowed, "none") is None


@pytest.mark.parametrize("options", [{"balance": "full"}, {"balance": "sqrt"}, {"positive_weight": 8.0}])
def test_the_prior_that_training_changed_is_put_back(options: dict[str, Any], rng: np.random.Generator) -> None:
    """Pictures that say nothing: the best that a net can say is the prevalence, whatever rows it was shown."""
    pixels = np.full((200, 32, 32, 3), 128, np.uint8)
    target = (np.arange(200) < 20).astype(np.int8)
    images = CachedImages(pixels, np.arange(200), target)
    prior = training_prior(images.allowed, Training()) * np.exp(
        prior_shift(images.allowed, POSITIVE, Training(**options))
    )
    net = Net(MeanColour(), features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)
    torch.nn.init.zeros_(net.head.weight)
    with torch.no_grad():
        net.head.bias[:] = float(np.log(prior[1] / prior[0]))
    train(net, images, epochs=20, batch_size=50, lr=0.01, **options)
    logit = predict(net, CachedImages(pixels[:2], np.arange(2)), batch_size=2, device=CPU).logit
    assert 1 / (1 + np.exp(-logit[0])) == pytest.approx(0.1, abs=0.035)


def test_a_positive_row_weighs_as_much_as_so_many(pixels: np.ndarray) -> None:
    """With weight 2 each positive row acts as two of it would: the gradients of one whole batch are the same."""
    doubled = np.concatenate([np.arange(N), np.flatnonzero(TARGET == 1)])

    def gradient(rows: np.ndarray, **options: Any) -> torch.Tensor:
        net = Net(MeanColour(), features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)  # rows don't interact
        torch.nn.init.zeros_(net.head.weight)
        torch.nn.init.zeros_(net.head.bias)
        # One step of AdamW forgets the length of the gradient: its direction is what is compared.
        kept: list[torch.Tensor] = []
        net.head.weight.register_hook(lambda grad: kept.append(grad.clone()))
        train(net, CachedImages(pixels, rows, TARGET[rows]), epochs=1, batch_size=len(rows), **options)
        return torch.nn.functional.normalize(kept[0], dim=1)

    torch.testing.assert_close(gradient(np.arange(N), positive_weight=2.0), gradient(doubled), atol=1e-4, rtol=1e-3)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(pixels: np.ndarray) -> None:
    """But for batch norm, which sees the parts; these nets have none."""

    def trained(parts: int) -> torch.Tensor:
        net = tiny()
        net.backbone = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )
        for p in net.backbone.parameters():
            torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(p.numel()))
        net.head = torch.nn.Linear(4, 1)
        torch.nn.init.ones_(net.head.weight)
        torch.nn.init.zeros_(net.head.bias)
        train(net, CachedImages(pixels, np.arange(N), TARGET), accumulate=parts)
        return weights(net)

    torch.testing.assert_close(trained(4), trained(1), atol=1e-5, rtol=1e-4)


def test_out_of_memory_halves_the_batch_and_says_so(pixels: np.ndarray) -> None:
    sizes: list[int] = []

    class Small(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 3:
                raise torch.OutOfMemoryError("the device has room for three")
            sizes.append(len(x))
            return x.mean(dim=(2, 3))

    net = Net(Small(), features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)
    said: list[str] = []
    train(net, CachedImages(pixels, np.arange(N), TARGET), epochs=1, say=said.append)
    assert said == [
        "out of memory on cpu: batches of 8 now go through in 2 parts",
        "out of memory on cpu: batches of 8 now go through in 4 parts",
    ]
    assert sum(sizes) == N
    hopeless = Net(Small(), features=3, mean=(0.5,) * 3, std=(0.2,) * 3, frozen=False)
    hopeless.backbone.forward = lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("none"))  # type: ignore[method-assign]
    with pytest.raises(torch.OutOfMemoryError):
        train(hopeless, CachedImages(pixels, np.arange(N), TARGET), epochs=1)


def test_lower_layers_learn_slower(pixels: np.ndarray) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)

    def moved(name: str, layer_decay: float) -> float:
        net = tiny()
        before = net.get_parameter(name).detach().clone()
        train(net, images, epochs=1, batch_size=N, layer_decay=layer_decay, weight_decay=0.0)
        return float((net.get_parameter(name) - before).abs().mean())

    first, last = "backbone.conv1.0.weight", "backbone.layer4.0.bn2.weight"
    assert moved(first, 0.5) < 0.5 * moved(first, 1.0)
    assert moved(first, 0.5) / moved(first, 1.0) < moved(last, 0.5) / moved(last, 1.0) <= 1
    assert moved("head.weight", 0.5) == pytest.approx(moved("head.weight", 1.0), rel=1e-3)


def test_gradients_are_clipped(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW) -> None:
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    images = CachedImages(pixels, np.arange(N), TARGET)
    train(tiny(), images)
    free = max(norms)
    norms.clear()
    train(tiny(), images, clip_norm=free / 10)
    assert max(norms) <= free / 10 * 1.001


def test_the_best_epoch_is_chosen_on_the_rows_set_aside(pixels: np.ndarray, rng: np.random.Generator) -> None:
    images = CachedImages(pixels[:16], np.arange(16), TARGET[:16])
    choose = CachedImages(pixels[16:], np.arange(8), TARGET[16:])
    net = tiny()
    history = train(net, images, epochs=6, choose=choose, lr=0.02)
    logit = predict(net, choose, batch_size=8, device=CPU).logit
    assert roc_auc_score(TARGET[16:], logit) == pytest.approx(history["auc"].max())


def test_a_net_of_classes_and_metadata_learns_from_both(rng: np.random.Generator) -> None:
    """Class 2 is red, and class 1 is told apart from class 0 by metadata alone."""
    kind = np.arange(48) % 3
    pixels = rng.integers(0, 128, (48, 32, 32, 3), dtype=np.uint8)
    pixels[kind == 2, :, :, 0] += 100
    metadata = np.stack([(kind == 1) * 2.0 - 1, rng.normal(size=48)], axis=1).astype(np.float32)
    allowed = np.eye(3, dtype=bool)[kind]
    net = tiny(prior=(1 / 3,) * 3, positive=(False, True, True), metadata=2)
    images = CachedImages(pixels, np.arange(48), allowed, metadata=metadata)
    train(net, images, epochs=20, lr=0.01)
    logit = predict(net, images, batch_size=16, device=CPU).logit
    assert roc_auc_score(kind > 0, logit) > 0.98
    blind = predict(
        net, CachedImages(pixels, np.arange(48), metadata=np.zeros((48, 2), np.float32)), batch_size=16, device=CPU
    ).logit
    assert roc_auc_score(kind[kind < 2] == 1, blind[kind < 2]) < 0.8, "metadata told them apart"


def test_half_precision_stays_out_of_head_and_logits(pixels: np.ndarray) -> None:
    net = tiny().eval()
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(pixels)
    with torch.inference_mode():
        exact, _ = net(images)
        net.precision = torch.bfloat16
        logit, z = net(images)
    assert logit.dtype == z.dtype == torch.float32
    assert not torch.equal(logit, exact)
    assert (logit != logit.bfloat16().float()).any(), "logits have more digits than bfloat16"
    torch.testing.assert_close(logit, exact, atol=0.3, rtol=0.1)

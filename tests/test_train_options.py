"""What each option of the training loop does, against what it should do written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from tiny_training import CPU, MeanColour, N, state, tiny_net, toy_pictures, train

import image_models.train
from image_models.dataset import CachedImages
from image_models.net import Net, read_weights, write_weights
from image_models.predict import predict
from image_models.train import WeightAverage

TARGET = (np.arange(N) % 2).astype(np.int8)


@pytest.fixture
def pixels(rng: np.random.Generator) -> np.ndarray:
    return toy_pictures(rng)[0]


def weights(net: Net) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_average_follows_the_weights_with_its_decay() -> None:
    net = torch.nn.Linear(2, 1)
    average = WeightAverage(net, 0.5)
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


def test_layers_that_share_their_weights_are_averaged_and_put_back_once() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    net[1].weight = net[0].weight
    average = WeightAverage(net, 0.5)
    with torch.no_grad():
        net[0].weight += 1
    average.update(net)
    own, expected = net[0].weight.detach().clone(), average.tensors["0.weight"].clone()
    average.swap(net)
    assert torch.equal(net[1].weight, expected)
    average.swap(net)
    assert torch.equal(net[1].weight, own)


def test_the_average_is_the_model_and_lies_between(pixels: np.ndarray) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)
    plain, averaged, start = tiny_net(), tiny_net(), tiny_net()
    train(plain, images)
    train(averaged, images, ema=0.9)
    assert (weights(averaged) - weights(start)).norm() < (weights(plain) - weights(start)).norm()
    running = "backbone.layer1.0.bn1.running_mean"
    assert not torch.equal(averaged.state_dict()[running], plain.state_dict()[running]), "statistics are averaged too"


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
        net = tiny_net()
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


def test_what_augments_on_the_device_is_told_each_picture_once_an_epoch(pixels: np.ndarray) -> None:
    told: list[tuple[int, int]] = []

    def augment(images: torch.Tensor, *, epoch: int, rows: list[int]) -> torch.Tensor:
        told.extend((epoch, row) for row in rows)
        assert torch.equal(images, torch.from_numpy(pixels[rows]))
        return images.float()

    plain, augmented = tiny_net(), tiny_net()
    train(plain, CachedImages(pixels, np.arange(N), TARGET))
    train(augmented, CachedImages(pixels, np.arange(N), TARGET), batch_augment=augment)
    assert sorted(told) == [(epoch, row) for epoch in range(2) for row in range(N)]
    torch.testing.assert_close(weights(augmented), weights(plain))


@pytest.mark.slow
def test_a_compiled_backbone_trains_to_the_same_weights(pixels: np.ndarray, tmp_path: Path) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)
    plain, compiled, read = tiny_net(), tiny_net(), tiny_net()
    train(plain, images)
    train(compiled, images, compile=True)
    write_weights(compiled, tmp_path / "weights.safetensors")
    read_weights(read, tmp_path / "weights.safetensors")
    assert torch.equal(weights(read), weights(compiled)), "the file is that of a plain net"
    made, expected = (predict(net, images, batch_size=8, device=CPU).logit for net in (read, plain))
    np.testing.assert_allclose(made, expected, atol=0.05)


def test_lower_layers_learn_slower(pixels: np.ndarray) -> None:
    images = CachedImages(pixels, np.arange(N), TARGET)

    def moved(name: str, layer_decay: float) -> float:
        net = tiny_net()
        before = net.get_parameter(name).detach().clone()
        train(net, images, epochs=1, batch_size=N, layer_decay=layer_decay, weight_decay=0.0)
        return float((net.get_parameter(name).detach() - before).abs().mean())

    first, last = "backbone.conv1.0.weight", "backbone.layer4.0.bn2.weight"
    assert moved(first, 0.5) < 0.5 * moved(first, 1.0)
    assert moved(first, 0.5) / moved(first, 1.0) < moved(last, 0.5) / moved(last, 1.0) <= 1
    assert moved("head.weight", 0.5) == pytest.approx(moved("head.weight", 1.0), rel=1e-3)


@pytest.mark.parametrize(("rows", "parts"), [(7, 3), (13, 4), (21, 5), (5, 9)])
def test_no_part_of_a_batch_is_a_single_row(rows: int, parts: int, rng: np.random.Generator) -> None:
    """Batch norm can't take one."""
    pixels, target = toy_pictures(rng, rows)
    train(tiny_net(), CachedImages(pixels, np.arange(rows), target), epochs=1, batch_size=rows, accumulate=parts)


def test_gradients_are_clipped(pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW) -> None:
        grads = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(grads).norm()))
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    images = CachedImages(pixels, np.arange(N), TARGET)
    train(tiny_net(), images)
    free = max(norms)
    norms.clear()
    train(tiny_net(), images, clip_norm=free / 10)
    assert max(norms) <= free / 10 * 1.001


def test_the_best_epoch_is_chosen_on_the_rows_set_aside(pixels: np.ndarray, rng: np.random.Generator) -> None:
    images = CachedImages(pixels[:16], np.arange(16), TARGET[:16])
    inner_val = CachedImages(pixels[16:], np.arange(8), TARGET[16:])
    net = tiny_net()
    history = train(net, images, epochs=6, inner_val=inner_val, lr=0.02)
    logit = predict(net, inner_val, batch_size=8, device=CPU).logit
    assert roc_auc_score(TARGET[16:], logit) == pytest.approx(history["auc"].max())


def test_the_epoch_is_chosen_by_the_model_that_is_handed_over(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Balanced drawing raises classes by different amounts: putting the prior back changes the order of rows."""
    judged: list[dict[str, bytes]] = []
    honest = image_models.train._auc

    def noted(net: Net, *given: Any, **named: Any) -> float:
        judged.append(state(net))
        return honest(net, *given, **named)

    monkeypatch.setattr(image_models.train, "_auc", noted)
    kind = rng.choice(4, 60, p=[0.6, 0.25, 0.1, 0.05])
    pixels = rng.integers(0, 200, (60, 32, 32, 3), dtype=np.uint8)
    for k in range(1, 4):
        pixels[kind == k, :, :, k % 3] //= 2
    allowed, positive = np.eye(4, dtype=bool)[kind], (False, False, True, True)
    images = CachedImages(pixels[:40], np.arange(40), allowed[:40])
    inner_val = CachedImages(pixels[40:], np.arange(20), allowed[40:])
    nets = [tiny_net(prior=(0.25,) * 4, positive=positive) for _ in range(2)]
    history = train(nets[0], images, epochs=4, inner_val=inner_val, balance="full", ema=0.9, lr=0.003)
    assert state(nets[0]) == judged[history["auc"].argmax()]
    plain = train(nets[1], images, epochs=4, balance="full", ema=0.9, lr=0.003)
    assert history["loss"].tolist() == plain["loss"].tolist(), "looking on leaves the training as it is"
    assert judged[-1] == state(nets[1]), "and is at what the last epoch hands over where none is chosen"


def test_a_net_of_classes_and_metadata_learns_from_both(rng: np.random.Generator) -> None:
    """Class 2 is red, and class 1 is told apart from class 0 by metadata alone."""
    kind = np.arange(48) % 3
    pixels = rng.integers(0, 128, (48, 32, 32, 3), dtype=np.uint8)
    pixels[kind == 2, :, :, 0] += 100
    metadata = np.stack([(kind == 1) * 2.0 - 1, rng.normal(size=48)], axis=1).astype(np.float32)
    allowed = np.eye(3, dtype=bool)[kind]
    net = tiny_net(prior=(1 / 3,) * 3, positive=(False, True, True), metadata=2)
    images = CachedImages(pixels, np.arange(48), allowed, metadata=metadata)
    train(net, images, epochs=20, lr=0.01)
    logit = predict(net, images, batch_size=16, device=CPU).logit
    assert roc_auc_score(kind > 0, logit) > 0.98
    blind = predict(
        net, CachedImages(pixels, np.arange(48), metadata=np.zeros((48, 2), np.float32)), batch_size=16, device=CPU
    ).logit
    assert roc_auc_score(kind[kind < 2] == 1, blind[kind < 2]) < 0.8, "metadata told them apart"


def test_half_precision_stays_out_of_head_and_logits(pixels: np.ndarray) -> None:
    net = tiny_net().eval()
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

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import CPU, N, state, tiny_net, toy_pictures, train

from dermstack.errors import ImageError
from image_models.dataset import Batch, CachedImages
from image_models.net import Net
from image_models.predict import predict
from image_models.transforms import Augment


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_the_loss_falls_and_fresh_images_are_separated(backbone: str, rng: np.random.Generator) -> None:
    (pixels, target), (new, new_target) = toy_pictures(rng), toy_pictures(rng)
    net = tiny_net(backbone)
    history = train(net, CachedImages(pixels, np.arange(N), target, augment=Augment("none", seed=0)), epochs=6)
    assert history["loss"].iloc[-1] < 0.3 * history["loss"].iloc[0]
    logit = predict(net, CachedImages(new, np.arange(N)), batch_size=8, device=CPU).logit
    # Not at 0: after 18 steps the running means of batch norm still lag behind.
    assert logit[new_target == 1].min() > logit[new_target == 0].max()


@pytest.mark.parametrize("augment", ["none", "light"])
def test_a_seed_decides_every_byte_of_the_weights(augment: str, rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)

    def weights(seed: int, *, drawn_before: int) -> dict[str, bytes]:
        net = tiny_net(timm_args={"drop_rate": 0.5})  # dropout draws too
        torch.rand(drawn_before)
        train(net, CachedImages(pixels, np.arange(N), target, augment=Augment(augment, seed=seed)), seed=seed, epochs=1)
        return state(net)

    first = weights(1, drawn_before=3)
    assert weights(1, drawn_before=7) == first
    assert weights(2, drawn_before=3) != first, "the order of the rows is the seed's"


def test_the_history_has_a_row_an_epoch_and_the_rate_warms_up_and_falls_to_zero(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    seen: list[int] = []
    history = train(tiny_net(), CachedImages(pixels, np.arange(N), target), epochs=10, lr=0.004, progress=seen.append)
    assert history.columns.tolist() == ["epoch", "loss", "lr", "images_per_s"]
    assert history["epoch"].tolist() == list(range(1, 11))
    assert sum(seen) == 10 * N
    # 30 steps, the first 3 of them warm-up: PyTorch's own schedule is the oracle.
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.004)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=27)
    rates = [0.004 / 3, 0.008 / 3, 0.004]
    for _ in range(27):
        rates.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        cosine.step()
    np.testing.assert_allclose(history["lr"], rates[2:30:3])
    assert (history["images_per_s"] > 0).all()


def test_the_rate_of_the_history_is_the_rate_of_the_steps(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels, target = toy_pictures(rng)
    used: list[float] = []
    step = torch.optim.AdamW.step

    def recorded(self: torch.optim.AdamW) -> None:
        used.append(self.param_groups[0]["lr"])
        assert {group["lr"] for group in self.param_groups} == {used[-1]}
        step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", recorded)
    history = train(tiny_net(), CachedImages(pixels, np.arange(N), target), epochs=4)
    assert len(used) == 12
    assert history["lr"].tolist() == used[2::3]


def test_training_is_adamw_written_out_by_hand(rng: np.random.Generator) -> None:
    """On the mean colour, where the gradient of the logistic loss is known (Loshchilov & Hutter 2019, Algorithm 2)."""

    class MeanColour(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    (pixels, target), steps, lr, weight_decay = toy_pictures(rng), 20, 0.1, 0.5
    net = Net(MeanColour(), features=3, mean=(0.4,) * 3, std=(0.1,) * 3, frozen=False)
    x = np.c_[(pixels.mean(axis=(1, 2)) / 255 - 0.4) / 0.1, np.ones(N)]
    weight = np.r_[net.head.weight.detach().numpy()[0], net.head.bias.item()].astype(np.float64)
    images = CachedImages(pixels, np.arange(N), target)
    train(net, images, epochs=steps, batch_size=N, lr=lr, weight_decay=weight_decay)

    first, second = np.zeros(4), np.zeros(4)
    for step in range(1, steps + 1):
        rate = lr * (step / 2 if step <= 2 else (1 + np.cos(np.pi * (step - 3) / 18)) / 2)
        gradient = x.T @ (1 / (1 + np.exp(-x @ weight)) - target) / N
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        weight *= 1 - rate * weight_decay * np.array([1, 1, 1, 0])  # the bias isn't shrunk
        weight -= rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose([*net.head.weight.detach().numpy()[0], net.head.bias.item()], weight, atol=1e-4)


def test_the_loss_of_the_history_is_the_mean_cross_entropy(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    target[:] = rng.random(N) < 0.3
    net = tiny_net()
    torch.nn.init.normal_(net.head.weight, generator=torch.Generator().manual_seed(0))
    logits: list[np.ndarray] = []
    net.head.register_forward_hook(lambda _, __, out: logits.append(out.detach().numpy()[:, 0].astype(np.float64)))
    rows: list[int] = []

    class Watched(CachedImages):
        def __getitem__(self, batch: list[int]) -> Batch:
            rows.extend(batch)
            return super().__getitem__(batch)

    history = train(net, Watched(pixels, np.arange(N), target), epochs=1)
    y, p = target[rows], 1 / (1 + np.exp(-np.concatenate(logits)))
    assert history["loss"].iloc[0] == pytest.approx(-np.log(np.where(y, p, 1 - p)).mean(), rel=1e-4)


def test_each_epoch_draws_its_own_augmentation_of_each_row(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    drawn: list[tuple[int, int]] = []

    class Recorded(Augment):
        def __call__(self, image: np.ndarray, *, epoch: int, row: int) -> np.ndarray:
            drawn.append((epoch, row))
            return super().__call__(image, epoch=epoch, row=row)

    train(tiny_net(), CachedImages(pixels, np.arange(N), target, augment=Recorded("light", seed=0)), epochs=3)
    assert sorted(drawn) == [(epoch, row) for epoch in range(3) for row in range(N)]


def test_weight_decay_shrinks_weights_but_no_bias_and_no_norm(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    kept, shrunk = tiny_net(), tiny_net()
    for net, weight_decay in ((kept, 0.0), (shrunk, 10.0)):  # one step: the gradients are still the same
        train(net, CachedImages(pixels, np.arange(N), target), epochs=1, batch_size=N, weight_decay=weight_decay)
    for name, parameter in kept.named_parameters():
        same = torch.equal(parameter, shrunk.get_parameter(name))
        assert same == (parameter.ndim <= 1), name
    # AdamW decays apart from the gradient: one step takes lr × weight_decay of the weight itself.
    start, weight = tiny_net().get_parameter("head.weight"), shrunk.get_parameter("head.weight")
    torch.testing.assert_close(weight, kept.get_parameter("head.weight") - 0.01 * 10.0 * start)


def test_the_net_is_trained_in_training_mode_wherever_it_came_from(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    net = tiny_net().eval()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items() if "running_mean" in key}
    train(net, CachedImages(pixels, np.arange(N), target), epochs=1)
    assert before
    assert all(not torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_a_last_batch_of_one_does_not_stop_the_training(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng, 9)
    seen: list[int] = []
    # At 32 px the deepest features of this backbone are 1 × 1: batch norm can't take one image.
    train(tiny_net(), CachedImages(pixels, np.arange(9), target), batch_size=4, epochs=2, progress=seen.append)
    assert seen == [0, 4, 4, 4, 4]


def test_a_collapsed_training_names_epoch_loss_and_rate(rng: np.random.Generator) -> None:
    pixels, target = toy_pictures(rng)
    with pytest.raises(ImageError, match=r"collapsed in epoch \d \(loss nan\): lower `lr`, now 1e\+20"):
        train(tiny_net(), CachedImages(pixels, np.arange(N), target), lr=1e20)

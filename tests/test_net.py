from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn

from dermstack.errors import ImageError
from image_models.dataset import CachedImages
from image_models.net import Net, build_net, check_backbone, read_weights, write_weights
from image_models.predict import predict

BACKBONES = ["test_resnet", "test_efficientnet"]


def tiny(backbone: str = "test_resnet", **changes: Any) -> Net:
    settings: dict[str, Any] = {
        "pretrained": False,
        "frozen": False,
        "timm_args": {},
        "size": 32,
        "mean": None,
        "std": None,
        "prior": (0.9, 0.1),
        "seed": 0,
    }
    return build_net(backbone, **(settings | changes)).eval()


@pytest.fixture
def pictures(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.integers(0, 256, (16, 32, 32, 3), dtype=np.uint8))


def state_bytes(module: nn.Module) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in module.state_dict().values()]


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("prevalence", [0.0176, 0.3])
def test_an_untrained_net_starts_at_the_prevalence(backbone: str, prevalence: float, pictures: torch.Tensor) -> None:
    entropy = -prevalence * np.log(prevalence) - (1 - prevalence) * np.log(1 - prevalence)
    for seed in range(3):
        with torch.inference_mode():
            logit, _ = tiny(backbone, prior=(1 - prevalence, prevalence), seed=seed)(pictures)
        assert logit.sigmoid().mean().item() == pytest.approx(prevalence, rel=0.05)
        loss = nn.functional.binary_cross_entropy_with_logits(logit, torch.full_like(logit, prevalence))
        assert loss.item() == pytest.approx(entropy, rel=0.01)


@pytest.mark.parametrize("given", [None, ((0.7, 0.5, 0.2), (0.1, 0.2, 0.3))])
def test_the_backbone_sees_normalised_channels_first_pictures(
    given: tuple[tuple[float, ...], tuple[float, ...]] | None, pictures: torch.Tensor
) -> None:
    net = tiny(mean=given[0], std=given[1]) if given else tiny()
    seen: list[torch.Tensor] = []
    net.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        logit, z = net(pictures)
    config = timm.get_pretrained_cfg("test_resnet")
    mean, std = (np.array(value) for value in given or (config.mean, config.std))
    by_hand = (pictures.numpy().astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(seen[0].numpy(), by_hand.transpose(0, 3, 1, 2), atol=1e-5)
    with torch.inference_mode():
        body = timm.create_model("test_resnet", num_classes=0).eval()
        body.load_state_dict(net.backbone.state_dict())
        np.testing.assert_allclose(z, body(torch.from_numpy(by_hand.transpose(0, 3, 1, 2)).float()), atol=1e-4)
    np.testing.assert_allclose(logit, z.numpy() @ net.head.weight[0].detach().numpy() + net.head.bias.item(), rtol=1e-5)


def test_a_frozen_net_gives_its_head_the_float16_features_that_are_stored(pictures: torch.Tensor) -> None:
    frozen, free = tiny(frozen=True), tiny()
    for net in (frozen, free):
        nn.init.normal_(net.head.weight, std=100.0, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (logit, z), (free_logit, free_z) = frozen(pictures), free(pictures)
    assert torch.equal(z, free_z.half().float())
    assert not torch.equal(free_z, z)
    of_stored = z.numpy().astype(np.float16).astype(np.float64) @ frozen.head.weight[0].double().detach().numpy()
    np.testing.assert_allclose(logit, of_stored + frozen.head.bias.item(), atol=1e-4)
    assert (logit - free_logit).abs().max() > 1e-3, "rounding must be visible for this test to say anything"


def test_logit_and_features_are_float32_whatever_the_body_runs_in() -> None:
    class Halved(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3)).bfloat16()

    net = Net(Halved(), features=3, mean=(0.5,) * 3, std=(0.5,) * 3, frozen=False)
    logit, z = net(torch.full((2, 4, 4, 3), 255, dtype=torch.uint8))
    assert logit.dtype == z.dtype == torch.float32
    assert logit.shape == (2,)
    assert z.shape == (2, 3)


def test_a_net_depends_on_its_seed_and_not_on_what_was_drawn_before() -> None:
    torch.manual_seed(1)
    first = tiny(seed=3)
    torch.rand(7)
    assert state_bytes(tiny(seed=3)) == state_bytes(first)
    assert state_bytes(tiny(seed=4)) != state_bytes(first)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("frozen", [False, True])
def test_weights_read_back_predict_the_same_bits(
    backbone: str, frozen: bool, pictures: torch.Tensor, tmp_path: Path
) -> None:
    def predictions(net: Net) -> tuple[bytes, bytes]:
        images = CachedImages(pictures.numpy(), np.arange(len(pictures)))
        made = predict(net, images, batch_size=5, device=torch.device("cpu"))
        return made.logit.tobytes(), made.z.tobytes()

    written, other = tiny(backbone, frozen=frozen, seed=1), tiny(backbone, frozen=frozen, seed=2)
    with torch.no_grad():  # batch norm's statistics must travel too
        written.train()(pictures)
    write_weights(written, tmp_path / "weights.safetensors")
    assert predictions(other) != predictions(written)
    read_weights(other, tmp_path / "weights.safetensors")
    assert predictions(other) == predictions(written)


@pytest.mark.parametrize("made_by", ["nobody", "another backbone", "a crash"])
def test_weights_that_do_not_fit_are_named_with_the_reason(made_by: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    if made_by == "another backbone":
        write_weights(tiny("test_efficientnet"), path)
    elif made_by == "a crash":
        path.write_bytes(b"\x00" * 20)
    reason = {"nobody": "No such file", "another backbone": "tensors missing", "a crash": "eader"}[made_by]
    with pytest.raises(ImageError, match=f"weights.safetensors.*({reason}).*make them again"):
        read_weights(tiny(), path)


@pytest.mark.parametrize(
    ("backbone", "nearest"),
    [("test_resnt", "test_resnet"), ("test_resnet.r160_in1", "test_resnet.r160_in1k"), ("", "list_models")],
)
def test_an_unknown_backbone_is_named_with_the_nearest(backbone: str, nearest: str) -> None:
    with pytest.raises(ImageError, match=rf"unknown backbone '{backbone}'.*{nearest}"):
        check_backbone(backbone, False)
    with pytest.raises(ImageError, match="unknown backbone"):
        tiny(backbone)


def test_a_backbone_with_its_tag_is_known() -> None:
    check_backbone("test_resnet.r160_in1k", False)
    assert tiny("test_resnet.r160_in1k").head.in_features == tiny("test_resnet").head.in_features


@pytest.mark.parametrize(
    "timm_args",
    [
        {"nonsense": 1},
        {"act_layer": "swosh"},
        {"global_pool": "sometimes"},
        {"num_classes": 5},
        {"drop_rate": "half"},
        {"in_chans": 1},
        {"features_only": True},
        {"global_pool": ""},
    ],
    ids=str,
)
def test_timm_args_that_the_backbone_does_not_take_are_named(timm_args: dict[str, Any]) -> None:
    with pytest.raises(ImageError) as caught:
        tiny(timm_args=timm_args)
    assert f"test_resnet cannot be built with timm_args {timm_args}" in str(caught.value) or (
        f"test_resnet with timm_args {timm_args}" in str(caught.value)
    )
    assert "pretrained" not in str(caught.value), "no weights were asked for"


def test_a_transformer_is_asked_with_pictures_of_the_size_to_come(pictures: torch.Tensor) -> None:
    with pytest.raises(ImageError, match=r"test_vit.*images of 32 px.*change `size` or timm_args"):
        tiny("test_vit", timm_args={"img_size": 64, "dynamic_img_size": False})
    logit, _ = tiny("test_vit", timm_args={"img_size": 32, "dynamic_img_size": False})(pictures)
    assert logit.shape == (16,)


TRAIN_THREE_STEPS = """
import sys, torch
from image_models.net import build_net
torch.set_num_threads(1)
net = build_net(sys.argv[1], pretrained=False, frozen=False, timm_args={}, size=64, mean=None, std=None,
                prior=(0.5, 0.5), seed=0).train()
for _ in range(3):
    net(torch.randint(0, 255, (4, 64, 64, 3), dtype=torch.uint8))[0].mean().backward()
"""


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["fastvit_t8", "repvgg_a0", "mobileone_s0"])
def test_no_backbone_writes_beyond_its_memory_in_training(backbone: str) -> None:
    """glibc checks its heap: a write beyond a block is an abort, where otherwise it may go unseen."""
    checked = dict(os.environ, MALLOC_CHECK_="3", MALLOC_PERTURB_="165")
    made = subprocess.run([sys.executable, "-c", TRAIN_THREE_STEPS, backbone], env=checked, capture_output=True)
    assert made.returncode == 0


@pytest.mark.parametrize(("backbone", "crashes"), [("repvgg_a0", True), ("test_resnet", False)])
def test_both_layouts_give_the_same_predictions(backbone: str, crashes: bool, pictures: torch.Tensor) -> None:
    net = tiny(backbone)
    assert net.plain_backward == crashes
    with torch.inference_mode():
        ours, z = net(pictures)
        kept, kept_z = net.to(memory_format=torch.channels_last)(pictures)
    assert torch.equal(ours, kept)
    assert torch.equal(z, kept_z)

"""A network is compared with its weights on torch's meta device, before memory is allocated for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from dermstack.errors import ImageError
from image_models import saved
from image_models.net import build_net, shapes_of, write_weights
from image_models.net_size import MAX_SUM, check_timm_args, planned
from image_models.saved import read_fold_net

SETTINGS: dict[str, Any] = {
    "backbone": "test_resnet", "size": 32, "timm_args": {}, "normalise": None, "frozen": False, "precision": "float32",
    "batch_size": 16, "seeds": [0],
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "pretrained": False, "frozen": False, "mean": None, "std": None, "prior": [0.5, 0.5], "seed": 0,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    write_weights(build_net("test_resnet", timm_args={}, size=32, **ARGUMENTS), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


@pytest.fixture
def _nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """Building a network outside the meta device fails."""
    build = saved.build_net

    def checked(*arguments: Any, **settings: Any) -> torch.nn.Module:
        assert torch.empty(1).is_meta, "memory was allocated"
        return build(*arguments, **settings)

    monkeypatch.setattr(saved, "build_net", checked)
    saved._planned_shapes.cache_clear()


@pytest.mark.usefixtures("_nothing_built")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"timm_args": {"layers": [100_000_000]}}, "timm_args has more than"),
        ({"timm_args": {"layers": [60_000, 1, 1, 1]}}, "far more than its weights file"),
        ({"timm_args": {"channels": [60_000, 60_000, 8, 8]}}, "far more than its weights file"),
        ({"backbone": "vit_7b_patch16_dinov3"}, "far more than its weights file"),
        ({"backbone": "vit_giant_patch14_224", "size": 224}, "far more than its weights file"),
        ({"backbone": "test_vit", "size": 160}, "weights cannot be loaded"),
        ({"timm_args": {"channels": [24, 48, 48, 96]}}, "weights cannot be loaded"),
        ({"batch_size": 10**15}, "an activation takes"),
    ],
)
def test_a_network_of_other_size_is_refused_before_it_is_allocated(changes: dict, says: str, weights: Path) -> None:
    with pytest.raises(ImageError, match=says):
        read_fold_net(weights, {**SETTINGS, **changes})


def test_the_right_network_has_the_same_weights(weights: Path) -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    net = read_fold_net(weights, SETTINGS)
    assert torch.equal(torch.random.get_rng_state(), before)
    expected = build_net("test_resnet", timm_args={}, size=32, **ARGUMENTS).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "arguments", [{"a": "x" * 201}, {"a": 10**7}, {"a": float("nan")}, {"a": [[[[[1]]]]]}, {"a": list(range(300))}]
)
def test_arguments_beyond_those_of_any_backbone_are_refused(arguments: dict) -> None:
    with pytest.raises(ImageError, match="timm_args has more than"):
        check_timm_args(arguments)


def test_only_the_value_beyond_the_limit_makes_usual_arguments_wrong() -> None:
    usual = {"img_size": [384, 384], "drop_path_rate": 0.1, "act_layer": "silu", "layers": [3, 4, 23, 3], "a": None}
    refused = []
    for layers in (usual["layers"], [3, 4, 23, MAX_SUM]):
        try:
            check_timm_args({**usual, "layers": layers})
        except ImageError:
            refused.append(layers)
    assert refused == [[3, 4, 23, MAX_SUM]]


@pytest.mark.slow
def test_the_plan_of_a_backbone_is_the_backbone() -> None:
    """Shapes compared with those of the allocated network."""
    names = [*timm.list_models("test_*"), "resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"]
    for name in names:
        size = timm.get_pretrained_cfg(name).input_size[1]

        def build(name: str = name, size: int = size) -> torch.nn.Module:
            return build_net(name, timm_args={}, size=size, **ARGUMENTS)

        net = build()
        tensors = net.state_dict().values()
        plan = planned(build, elements=sum(t.numel() for t in tensors), tensors=len(tensors), batch_size=32)
        found, expected = shapes_of(plan), shapes_of(net)
        assert {key: of[:2] for key, of in found.items()} == {key: of[:2] for key, of in expected.items()}, name

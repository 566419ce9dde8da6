"""Pretrained weights, from a file or from the hub, come in whole or not at all."""

from __future__ import annotations

import os
import pickle
import sys
import urllib.error
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.errors as hub
import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from dermstack.errors import ImageError
from image_models.net import Net, build_net


def tiny(backbone: str = "test_resnet", *, pretrained: bool | Path, **timm_args: Any) -> Net:
    return build_net(
        backbone, pretrained=pretrained, frozen=False, timm_args=timm_args, size=32, mean=None, std=None,
        prior=(0.9, 0.1), seed=0,
    )  # fmt: skip


def with_classifier(backbone: str, **timm_args: Any) -> dict[str, torch.Tensor]:
    """What ImageNet training leaves: a state dict with its classifier."""
    torch.manual_seed(9)
    state: dict[str, torch.Tensor] = timm.create_model(backbone, pretrained=False, **timm_args).state_dict()
    return state


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_pretrained_weights_fill_the_body_and_leave_their_classifier_behind(
    backbone: str, ending: str, tmp_path: Path
) -> None:
    state, path = with_classifier(backbone), tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    body = tiny(backbone, pretrained=path).backbone.state_dict()
    assert len(state) == len(body) + 2
    assert all(torch.equal(tensor, state[key]) for key, tensor in body.items())


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_another_pickle_protocol_is_read_or_named_without_a_warning_of_torch(protocol: int, tmp_path: Path) -> None:
    """torch reads protocol 3, but not 4, and asks its user for an issue in both cases."""
    state, path = with_classifier("test_resnet"), tmp_path / "weights.pth"
    torch.save(state, path, pickle_protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if protocol == 4:
            with pytest.raises(ImageError, match=r"weights.pth .*pickle_protocol other than torch\.save's"):
                tiny(pretrained=path)
            return
        body = tiny(pretrained=path).backbone.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in body.items())


def test_a_backbone_with_two_classifiers_leaves_both_behind(tmp_path: Path) -> None:
    state = with_classifier("deit_tiny_distilled_patch16_224", img_size=32)
    assert {"head.weight", "head_dist.weight"} < set(state)
    torch.save(state, tmp_path / "weights.pth")
    tiny("deit_tiny_distilled_patch16_224", pretrained=tmp_path / "weights.pth", img_size=32)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: with_classifier("test_efficientnet"),
        lambda state: {key: tensor for key, tensor in state.items() if key != "stem.0.weight" and "layer1" not in key},
        lambda state: state | {"fcx.weight": torch.zeros(1)},  # not the classifier, whose name is fc
        lambda state: {f"module.{key}": tensor for key, tensor in state.items()},
        lambda state: {key: tensor[..., None] for key, tensor in state.items()},
    ],
    ids=["another backbone", "some missing", "one unknown", "a prefix", "other shapes"],
)
def test_weights_of_another_backbone_are_refused(
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(change(with_classifier("test_resnet")), path)
    with pytest.raises(ImageError, match=r"weights.pth does not fit test_resnet.*name the backbone"):
        tiny(pretrained=path)


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"test_resnet: pretrained weights .*gone.pth do not exist"):
        tiny(pretrained=tmp_path / "gone.pth")


class Bomb:
    """Unpickling this runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("saved_by", ["torch", "pickle"])
def test_a_weights_file_that_would_run_code_is_refused_and_runs_nothing(saved_by: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    bomb = with_classifier("test_resnet") | {"bomb": Bomb(f"touch {trace}")}
    with path.open("wb") as file:
        torch.save(bomb, file) if saved_by == "torch" else pickle.dump(bomb["bomb"], file, protocol=2)
    with pytest.raises(ImageError, match=r"weights.pth holds something other than tensors") as caught:
        tiny(pretrained=path)
    assert not trace.exists()
    assert "weights_only" not in str(caught.value), "the message must not advise to switch the guard off"


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04", b"\x80\x02", b"0", b"\xc2ab", b"h\x07"])
def test_a_damaged_weights_file_is_an_error_that_names_it(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name} .*: fetch it again"):
        tiny(pretrained=tmp_path / name)


@pytest.mark.parametrize("saved", [[1.0], {"state_dict": {}}, {1: torch.zeros(1)}, torch.zeros(3)], ids=repr)
def test_a_file_without_a_state_dict_is_refused(saved: object, tmp_path: Path) -> None:
    torch.save(saved, tmp_path / "weights.pth")
    with pytest.raises(ImageError, match=r"weights.pth holds no state dict"):
        tiny(pretrained=tmp_path / "weights.pth")


CLIENT = sys.modules[hub.HTTPError.__module__.split(".")[0]]  # type: ignore[attr-defined]  # the hub's http library


@pytest.mark.parametrize(
    "error",
    [
        hub.LocalEntryNotFoundError("cannot be reached"),
        hub.OfflineModeIsEnabled("cannot be reached"),
        *(
            getattr(CLIENT, name)("cannot be reached")
            for name in ("ConnectError", "ReadError", "ReadTimeout", "ProxyError", "UnsupportedProtocol")
            if hasattr(CLIENT, name)
        ),
        urllib.error.URLError("cannot be reached"),
        ConnectionResetError("cannot be reached"),
        RuntimeError("cannot be reached"),
        ValueError("cannot be reached"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_pretrained_without_network_names_the_option(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **settings: object) -> None:
        assert settings["pretrained"] is True
        raise error

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(ImageError, match=r"test_resnet: no pretrained weights .*cannot be reached.*`pretrained:`"):
        tiny(pretrained=True)


@pytest.mark.parametrize("from_file", [False, True])
def test_nothing_is_fetched_unless_asked(from_file: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(with_classifier("test_resnet"), tmp_path / "weights.pth")
    asked, create = [], timm.create_model

    def recorded(*args: Any, **settings: Any) -> nn.Module:
        asked.append(settings["pretrained"])
        body: nn.Module = create(*args, **settings)
        return body

    monkeypatch.setattr(timm, "create_model", recorded)
    tiny(pretrained=from_file and tmp_path / "weights.pth")
    assert asked == [False]

"""Builds, reads and writes the network: a timm backbone, optional metadata fusion and a linear head."""

from __future__ import annotations

import difflib
import math
import pickle
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # from the http client that the hub uses
from safetensors.torch import load as parse_safetensors
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.nn import functional as F

from dermstack.errors import ImageError
from dermstack.files import apply_umask, atomic_write
from dermstack.user_code import USER_ERRORS
from image_models.losses import risk_logit
from image_models.own_backbone import build_own_backbone, find_builder
from image_models.settings import is_own_backbone

# Arguments of `timm.create_model` that are not the network's own and may load unchecked files.
_REFUSED_TIMM_ARGS = frozenset({
    "cache_dir", "checkpoint_path", "model_name", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict", "weights_only",
})  # fmt: skip
_MIN_STRIDED_CHANNELS = 16  # input channels with which oneDNN's strided 1 × 1 convolution is sound
_SIZE_ERRORS = (  # of timm's backbones for a size that they refuse
    RuntimeError, AssertionError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError, MemoryError,
)  # fmt: skip
FUSION_WIDTH = 32  # features that the metadata adds to the image's


class Net(nn.Module):
    """The network: ``backbone`` gives pooled features z (n, d), ``head`` the outputs from z and encoded metadata.

    Two classes have one output, the log odds of the second. ``positive`` (c,) marks the classes whose probabilities add
    up to p. Head and logits are float32 whatever ``precision`` the backbone runs in: in bfloat16, 32,691 logits of
    SIIM-ISIC have only about 1,300 distinct values. A ``frozen`` net rounds z to float16 before the head, because the
    store keeps float16 and the head was fitted on it.
    """

    mean: torch.Tensor
    std: torch.Tensor
    positive: torch.Tensor

    def __init__(
        self,
        backbone: nn.Module,
        *,
        features: int,
        mean: Sequence[float],
        std: Sequence[float],
        frozen: bool,
        positive: Sequence[bool] = (False, True),
        metadata: int = 0,
        dropout: float = 0.0,
        dropout_samples: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.fusion = _fusion(metadata) if metadata else None
        joined = features + (FUSION_WIDTH if metadata else 0)
        self.head = nn.Linear(joined, 1 if len(positive) == 2 else len(positive))
        self.features = features
        self.frozen = frozen
        self.dropout = dropout
        self.dropout_samples = dropout_samples
        self.precision = torch.float32
        self.plain_backward = crashes_in_channels_last(backbone)
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("positive", torch.tensor(positive), persistent=False)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps ``images`` uint8 (n, h, w, 3) to the logit of p (n,) and z (n, d), both float32."""
        outputs, z = self.outputs(images, metadata)
        return risk_logit(outputs, self.positive), z

    def outputs(self, images: torch.Tensor, metadata: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the head's outputs (n, c or 1), from which the loss is computed, and z (n, d)."""
        # The permuted view of NHWC bytes is channels_last already; subtracting converts it to float in the same pass.
        x = images.permute(0, 3, 1, 2).sub(self.mean).div_(self.std)
        if self.plain_backward and x.device.type == "cpu" and torch.is_grad_enabled():
            x = x.contiguous()
        with torch.autocast(x.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            z = self.backbone(x)
        z = z.float()
        if self.frozen:
            z = z.half().float()
        joined = z
        if self.fusion is not None:
            assert metadata is not None, "a net with metadata fusion needs each row's metadata"
            joined = torch.cat([z, self.fusion(metadata)], dim=1)
        if not self.training or not self.dropout:
            return self.head(joined), z
        samples = [self.head(F.dropout(joined, self.dropout)) for _ in range(self.dropout_samples)]
        return torch.stack(samples).mean(dim=0), z

    @torch.no_grad()
    def shift_prior(self, shift: Sequence[float]) -> None:
        """Adds ``shift`` (c,) to the classes' log probabilities, up to normalisation: corrects training's prior."""
        change = torch.tensor(shift, dtype=torch.float32, device=self.head.bias.device)
        self.head.bias.add_(change[1] - change[0] if len(self.head.bias) == 1 else change)


def build_net(
    backbone: str,
    *,
    pretrained: bool | Path,
    frozen: bool,
    timm_args: Mapping[str, Any],
    size: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    prior: Sequence[float],
    seed: int,
    positive: Sequence[bool] = (False, True),
    metadata: int = 0,
    dropout: float = 0.0,
    dropout_samples: int = 1,
) -> Net:
    """Builds a net that starts by predicting ``prior`` (c,), the classes' shares: bias = log odds, small weights.

    timm initialises a one-output head uniformly in ±1, which on 1,280 features starts at a loss above 4 instead of 0.3
    and costs an epoch. ``size`` is the side of the images in pixels; ``mean``/``std`` (of pixels in [0, 1]) default to
    those of the backbone's training; ``metadata`` is the number of encoded columns beside the image. Raises ImageError
    for an unknown backbone, for weights that are missing or do not fit, and for timm_args or a size that the backbone
    does not accept.
    """
    check_backbone(backbone, pretrained)
    torch.manual_seed(seed)
    body = _build_body(backbone, timm_args, fetch=pretrained is True)
    if isinstance(pretrained, Path):
        _load_body(body, pretrained, backbone)
    features = _count_features(body, backbone, timm_args, size)
    config = _pretrained_config(body)
    net = Net(
        body, features=features, mean=mean or config["mean"], std=std or config["std"], frozen=frozen,
        positive=positive, metadata=metadata, dropout=dropout, dropout_samples=dropout_samples,
    )  # fmt: skip
    nn.init.normal_(net.head.weight, std=0.01 / math.sqrt(net.head.in_features))
    nn.init.zeros_(net.head.bias)
    net.shift_prior([math.log(share) for share in prior])
    return net.to(memory_format=torch.contiguous_format if net.plain_backward else torch.channels_last)


def crashes_in_channels_last(body: nn.Module) -> bool:
    """Tells whether training ``body`` on a CPU in channels_last writes beyond its memory.

    oneDNN's backward pass of a strided 1 × 1 convolution of fewer than 16 channels does (torch 2.14 on AVX-512: a
    segmentation fault, or none and wrong numbers; akin to https://github.com/pytorch/pytorch/issues/136348). The stems
    of FastViT, MobileOne and RepVGG have one. Plain NCHW has no such fault, and neither has the forward pass.
    """
    return any(
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and max(layer.stride) > 1
        and layer.in_channels < _MIN_STRIDED_CHANNELS
        for layer in body.modules()
    )


def check_backbone(backbone: str, pretrained: bool | Path) -> None:
    """Raises ImageError for a name (or its tag) that timm does not know or a weights file that does not exist.

    The function of a user's own backbone is imported, with the same error where there is none.
    """
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise ImageError(f"{backbone}: pretrained weights {pretrained} do not exist: give a file, true or false")
    if is_own_backbone(backbone):
        find_builder(backbone)
        return
    names = timm.list_models(include_tags="." in backbone)
    if backbone not in names:
        near = difflib.get_close_matches(backbone, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists them"
        raise ImageError(f"unknown backbone {backbone[:80]!r}: {hint}")


def write_weights(net: nn.Module, path: Path) -> None:
    """Writes all parameters and buffers as safetensors, from which loading executes nothing."""
    with atomic_write(path) as partial:
        safetensors.torch.save_model(net, str(partial))
        apply_umask(partial)


Shape = tuple[tuple[int, ...], bool, int]  # of a tensor: its shape, whether it is a float, and its identity


def read_weights(net: nn.Module, path: Path) -> None:
    """Loads a file of `write_weights` into ``net``. Raises ImageError where the two do not fit."""
    load_weights(net, read_tensors(path), path)


def read_tensors(path: Path, read: Callable[[Path], bytes] = Path.read_bytes) -> dict[str, torch.Tensor]:
    """Returns the tensors in a file of `write_weights`, whose bytes ``read`` returns. Raises ImageError if damaged."""
    try:
        tensors: dict[str, torch.Tensor] = parse_safetensors(read(path))
    except (
        RuntimeError, safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError, AssertionError,
    ) as error:  # fmt: skip
        raise _unfit(path, _reason(error)) from error
    return tensors


def load_weights(net: nn.Module, tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Copies tensors of the file ``path`` into ``net``. Raises ImageError where the two do not fit."""
    check_weights(shapes_of(net), tensors, path)
    try:
        net.load_state_dict(tensors, strict=False)  # of tensors that share memory, the file has one
    except RuntimeError as error:
        raise _unfit(path, _reason(error)) from error


def shapes_of(net: nn.Module) -> dict[str, Shape]:
    """Returns the shape of each parameter and stored buffer by name."""
    own: dict[str, torch.Tensor] = net.state_dict(keep_vars=True)
    return {name: (tuple(value.shape), value.is_floating_point(), id(value)) for name, value in own.items()}


def check_weights(shapes: Mapping[str, Shape], tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """Raises ImageError unless the file's tensors are those of a network, each of its shape."""
    there = {shapes[name][2] for name in tensors if name in shapes}
    missing = [name for name, (_, _, identity) in shapes.items() if identity not in there]
    unknown = [name for name in tensors if name not in shapes]
    if missing or unknown:
        first = ", ".join([*missing, *unknown][:3])[:200]
        raise _unfit(path, f"{len(missing)} tensors missing, {len(unknown)} unknown, first: {first}")
    for name, value in tensors.items():
        shape, is_float, _ = shapes[name]
        if tuple(value.shape) != shape or value.is_floating_point() != is_float:
            raise _unfit(path, f"{name[:80]} is {value.dtype} of shape {tuple(value.shape)}, not {shape}")


def _unfit(path: Path, reason: str) -> ImageError:
    return ImageError(f"{path}: weights cannot be loaded ({reason}): damaged, or of another network; make them again")


def _fusion(columns: int) -> nn.Module:
    """Layers from encoded metadata (n, columns) to (n, FUSION_WIDTH); layer norm, because a batch may be small."""
    return nn.Sequential(
        nn.Linear(columns, 64), nn.LayerNorm(64), nn.SiLU(), nn.Dropout(0.2), nn.Linear(64, FUSION_WIDTH), nn.SiLU()
    )


def _build_body(backbone: str, timm_args: Mapping[str, Any], *, fetch: bool) -> nn.Module:
    """Creates a timm model without classifier, with weights from its hub if ``fetch``, or a user's own backbone."""
    if is_own_backbone(backbone):
        return build_own_backbone(backbone, timm_args, pretrained=fetch)
    if odd := sorted(_REFUSED_TIMM_ARGS & set(timm_args)):
        raise ImageError(f"{backbone}: timm_args may not contain {', '.join(odd)}: set `pretrained:` instead")
    try:
        body: nn.Module = timm.create_model(backbone, pretrained=fetch, num_classes=0, **timm_args)
    # timm's backbones raise any of these for an argument that they do not accept; all but the first three may also mean
    # that the hub cannot be reached or has no such file.
    except (
        TypeError, LookupError, AssertionError, OSError, RuntimeError, ValueError, HTTPError, AttributeError, NameError,
        ArithmeticError, MemoryError,
    ) as error:  # fmt: skip
        if fetch and not isinstance(
            error, TypeError | LookupError | AssertionError | AttributeError | NameError | ArithmeticError | MemoryError
        ):
            raise ImageError(
                f"{backbone}: no pretrained weights could be fetched ({_reason(error)}): "
                "set `pretrained:` to a weights file, or to false"
            ) from error
        raise ImageError(
            f"{backbone} cannot be built with timm_args {dict(timm_args)} ({_reason(error)}): change or drop them"
        ) from error
    return body


def _count_features(body: nn.Module, backbone: str, timm_args: Mapping[str, Any], size: int) -> int:
    """Returns the length of z, measured on an empty image of this size; raises ImageError where the size is refused."""
    try:
        with torch.no_grad():
            z = body.eval()(torch.zeros(1, 3, size, size))
    except USER_ERRORS as error:
        # A transformer of fixed size asserts it; a user's own code may raise anything.
        if not is_own_backbone(backbone) and not isinstance(error, _SIZE_ERRORS):
            raise
        raise ImageError(
            f"{backbone} with timm_args {dict(timm_args)} does not accept RGB images of {size} px ({_reason(error)}): "
            "change `size` or timm_args"
        ) from error
    if not isinstance(z, torch.Tensor) or z.ndim != 2:
        raise ImageError(
            f"{backbone} with timm_args {dict(timm_args)} gives no pooled features (n, d): "
            "drop the argument that changes its output"
        )
    return z.shape[1]


def _load_body(body: nn.Module, path: Path, backbone: str) -> None:
    """Loads pretrained weights from a file; only the classifier, which `num_classes=0` removed, may be left over."""
    state = _read_pretrained(path)
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the names fit, but not the shapes
        raise ImageError(
            f"{path} does not fit {backbone} ({_reason(error)}): name the backbone that the weights belong to"
        ) from error
    classifier = _pretrained_config(body).get("classifier") or ()  # some have two, some none
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    unknown_keys = [key for key in unexpected if not key.startswith(tuple(f"{head}." for head in heads))]
    if missing or unknown_keys:
        raise ImageError(
            f"{path} does not fit {backbone}: {len(missing)} tensors missing, {len(unknown_keys)} unknown, first: "
            f"{', '.join([*missing, *unknown_keys][:3])}: name the backbone that the weights belong to"
        )


def _read_pretrained(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a .safetensors file or of a state dict saved by torch.save, and executes nothing in it."""
    try:
        with warnings.catch_warnings():
            # What torch cannot read is an error below.
            warnings.filterwarnings("ignore", message="Detected pickle protocol", category=UserWarning)
            state = (
                safetensors.torch.load_file(path)
                if path.suffix == ".safetensors"
                else torch.load(path, weights_only=True)
            )
    except pickle.UnpicklingError as error:  # torch's own text advises switching weights_only off
        raise ImageError(
            f"{path} holds something other than tensors, which may run code and is not loaded, or was saved with a "
            "pickle_protocol other than torch.save's: fetch it again, or save the model's state_dict()"
        ) from error
    # Files with a few flipped bytes raised each of these.
    except (
        safetensors.SafetensorError, EOFError, OSError, RuntimeError, ValueError, LookupError, AttributeError,
        AssertionError,
    ) as error:  # fmt: skip
        raise ImageError(f"{path} cannot be read ({_reason(error)}): fetch it again") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ImageError(f"{path} holds no state dict (tensors by name): save the model's state_dict()")
    return state


def _pretrained_config(body: nn.Module) -> dict[str, Any]:
    """Returns mean and std of the pixels in training, and what else timm notes; ImageNet's for a body without any."""
    config: Any = getattr(body, "pretrained_cfg", None)
    return {"mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD} | dict(config or {})


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

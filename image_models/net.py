"""A timm backbone, metadata beside it, a linear head: uint8 pictures in, a float32 logit and pooled features out."""

from __future__ import annotations

import difflib
import math
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of the http client that the hub uses
from torch import nn
from torch.nn import functional as F

from image_models.errors import ImageError
from image_models.files import apply_umask, atomic_write
from image_models.losses import risk_logit

# What `timm.create_model` takes besides the network's own arguments: it would load files that nobody has looked at.
_REFUSED_TIMM_ARGS = frozenset({
    "cache_dir", "checkpoint_path", "model_name", "pretrained", "pretrained_cfg",
    "pretrained_cfg_overlay", "pretrained_model_args", "pretrained_strict", "weights_only",
})  # fmt: skip
FUSION_WIDTH = 32  # features that metadata adds to the image's


class Net(nn.Module):
    """``backbone`` gives pooled features z (n, d), ``head`` the classes' outputs of them and of encoded metadata.

    Two classes have one output, the log odds of the second. ``positive`` (c,) are the classes whose probability is p.
    Head and logits are float32 whatever ``precision`` the body runs in: in bfloat16, 32,691 logits of SIIM-ISIC leave
    some 1,300 distinct scores. A ``frozen`` net has its z rounded to float16 before the head: that is what the store
    keeps and the head was fitted on.
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
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("positive", torch.tensor(positive), persistent=False)

    def forward(self, images: torch.Tensor, metadata: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """``images`` uint8 (n, h, w, 3) → logit of p (n,), z (n, d), both float32."""
        outputs, z = self.outputs(images, metadata)
        return risk_logit(outputs, self.positive), z

    def outputs(self, images: torch.Tensor, metadata: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's outputs (n, c or 1) and z (n, d): what the loss is taken of."""
        # The permuted view of NHWC bytes is channels_last already; subtracting makes it float in the same pass.
        x = images.permute(0, 3, 1, 2).sub(self.mean).div_(self.std)
        with torch.autocast(x.device.type, dtype=self.precision, enabled=self.precision != torch.float32):
            z = self.backbone(x)
        z = z.float()
        if self.frozen:
            z = z.half().float()
        joined = z
        if self.fusion is not None:
            assert metadata is not None, "a net with metadata fusion is given each row's metadata"
            joined = torch.cat([z, self.fusion(metadata)], dim=1)
        if not self.training or not self.dropout:
            return self.head(joined), z
        samples = [self.head(F.dropout(joined, self.dropout)) for _ in range(self.dropout_samples)]
        return torch.stack(samples).mean(dim=0), z

    @torch.no_grad()
    def shift_prior(self, shift: Sequence[float]) -> None:
        """Add to each class's log probability, before they are normalised again: a prior that differed in training."""
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
    """A net that starts at ``prior`` (c,), the classes' shares: bias = log odds, small weights.

    timm draws a one-output head uniformly in ±1, which on 1,280 features starts at a loss above 4 instead of 0.3 and
    costs an epoch. ``size`` is the pixels a side of the pictures to come; ``mean``/``std`` (of pixels in [0, 1])
    default to what the backbone was trained with; ``metadata`` is the number of encoded columns beside the image.
    Raises ImageError for an unknown backbone, weights that are not there or don't fit, timm_args or a size that the
    backbone doesn't take.
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
    return net.to(memory_format=torch.channels_last)


def check_backbone(backbone: str, pretrained: bool | Path) -> None:
    """Raise ImageError for a name (or its tag) that timm doesn't know or a weights file that isn't there."""
    names = timm.list_models(include_tags="." in backbone)
    if backbone not in names:
        near = difflib.get_close_matches(backbone, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "`timm.list_models()` lists them"
        raise ImageError(f"unknown backbone {backbone!r}: {hint}")
    if isinstance(pretrained, Path) and not pretrained.is_file():
        raise ImageError(f"{backbone}: pretrained weights {pretrained} are not there: give a file, true or false")


def write_weights(net: nn.Module, path: Path) -> None:
    """All parameters and buffers as safetensors: nothing in the file is executed on load."""
    with atomic_write(path) as partial:
        safetensors.torch.save_model(net, str(partial))
        apply_umask(partial)


def read_weights(net: nn.Module, path: Path) -> None:
    """Fill ``net`` from `write_weights`'s file; raises ImageError where the two don't fit."""
    try:
        safetensors.torch.load_model(net, str(path))
    except (RuntimeError, safetensors.SafetensorError, OSError) as error:
        raise ImageError(
            f"{path}: weights can't be loaded ({_reason(error)}): damaged, or of another network; make them again"
        ) from error


def _fusion(columns: int) -> nn.Module:
    """Encoded metadata (n, columns) → (n, FUSION_WIDTH); layer norm, since a batch may be small."""
    return nn.Sequential(
        nn.Linear(columns, 64), nn.LayerNorm(64), nn.SiLU(), nn.Dropout(0.2), nn.Linear(64, FUSION_WIDTH), nn.SiLU()
    )


def _build_body(backbone: str, timm_args: Mapping[str, Any], *, fetch: bool) -> nn.Module:
    """The timm model without classifier, with weights from its hub where ``fetch`` says so."""
    if odd := sorted(_REFUSED_TIMM_ARGS & set(timm_args)):
        raise ImageError(f"{backbone}: timm_args {', '.join(odd)} says where weights come from: use `pretrained:`")
    try:
        body: nn.Module = timm.create_model(backbone, pretrained=fetch, num_classes=0, **timm_args)
    # The first three: how timm's backbones answer an argument they don't take. The others: that too, but also the hub
    # where there is no network or no such file.
    except (TypeError, LookupError, AssertionError, OSError, RuntimeError, ValueError, HTTPError) as error:
        if fetch and not isinstance(error, TypeError | LookupError | AssertionError):
            raise ImageError(
                f"{backbone}: no pretrained weights could be fetched ({_reason(error)}): "
                "set `pretrained:` to a weights file, or to false"
            ) from error
        raise ImageError(
            f"{backbone} can't be built with timm_args {dict(timm_args)} ({_reason(error)}): change or drop them"
        ) from error
    return body


def _count_features(body: nn.Module, backbone: str, timm_args: Mapping[str, Any], size: int) -> int:
    """How long z is, asked of the backbone itself with a picture of the size to come."""
    try:
        with torch.no_grad():
            z = body.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:  # a transformer's fixed size asserts
        raise ImageError(
            f"{backbone} with timm_args {dict(timm_args)} doesn't take RGB pictures of {size} px ({_reason(error)}): "
            "change `size` or timm_args"
        ) from error
    if not isinstance(z, torch.Tensor) or z.ndim != 2:
        raise ImageError(
            f"{backbone} with timm_args {dict(timm_args)} gives no pooled features (n, d): drop what changes its output"
        )
    return z.shape[1]


def _load_body(body: nn.Module, path: Path, backbone: str) -> None:
    """Pretrained weights from a file; the classifier, which `num_classes=0` removed, may stay behind, nothing else."""
    state = _read_tensors(path)
    try:
        missing, unexpected = body.load_state_dict(state, strict=False)
    except RuntimeError as error:  # the names fit, the shapes don't
        raise ImageError(
            f"{path} is not of a {backbone} ({_reason(error)}): name the backbone that the weights belong to"
        ) from error
    classifier = _pretrained_config(body).get("classifier") or ()  # some have two, some none
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    unknown_keys = [key for key in unexpected if not key.startswith(tuple(f"{head}." for head in heads))]
    if missing or unknown_keys:
        raise ImageError(
            f"{path} is not of a {backbone}: {len(missing)} tensors missing, {len(unknown_keys)} unknown, first: "
            f"{', '.join([*missing, *unknown_keys][:3])}: name the backbone that the weights belong to"
        )


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors file or of a state dict saved by torch.save; nothing in it is executed."""
    try:
        state = (
            safetensors.torch.load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        )
    except pickle.UnpicklingError as error:  # its own text advises to switch weights_only off
        raise ImageError(
            f"{path} holds something other than tensors, which may run code and is not loaded: fetch it again, "
            "or save the model's state_dict()"
        ) from error
    # A few flipped bytes made each of these.
    except (
        safetensors.SafetensorError, EOFError, OSError, RuntimeError, ValueError, LookupError, AttributeError,
        AssertionError,
    ) as error:  # fmt: skip
        raise ImageError(f"{path} can't be read ({_reason(error)}): fetch it again") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items()
    ):
        raise ImageError(f"{path} holds no state dict, tensors by name: save the model's state_dict()")
    return state


def _pretrained_config(body: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = body.pretrained_cfg  # type: ignore[assignment]  # torch types every attribute as a tensor
    return config


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Settings of how a network is built, trained and run, named as in the config; needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dermstack.errors import ImageError

Balance = Literal["none", "sqrt", "full"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Select = Literal["last", "best"]
AugmentOn = Literal["cpu", "device"]


def is_own_backbone(backbone: str) -> bool:
    """Whether a backbone is a user's function, `package.module:function`, not a name of timm."""
    return ":" in backbone


@dataclass(frozen=True)
class Network:
    """The network to build, and the weights from which training starts."""

    backbone: str  # its name in timm, or package.module:function
    pretrained: bool | Path  # True: timm's ImageNet weights; False: random weights; or a file
    timm_args: Mapping[str, Any]  # further arguments of `timm.create_model` or of the function
    mean: Sequence[float] | None  # of red, green and blue in [0, 1]; None: as the backbone was trained
    std: Sequence[float] | None  # of red, green and blue in [0, 1]; None: as the backbone was trained


@dataclass(frozen=True)
class Training:
    """Settings of `image_models.train.train_net`; every default is the simplest choice."""

    epochs: int = 4  # passes over the training rows; with `balance`, as many draws per pass as rows
    batch_size: int = 32  # images a step
    lr: float = 1e-3  # highest learning rate, that of the head; reached after the warm-up
    weight_decay: float = 0.01  # weight decay of AdamW
    warmup: float = 0.1  # share of the steps in which the rate rises; then it falls to zero as a cosine
    layer_decay: float = 1.0  # learning rate of each layer group, relative to the group above it; 1: one rate for all
    balance: Balance = "none"  # `sqrt`, `full`: a row of a class with n rows is drawn with weight 1/√n or 1/n
    positive_weight: float = 1.0  # weight of positive rows in the loss
    label_smoothing: float = 0.0  # share of each target that is spread evenly over all classes
    focal_gamma: float = 0.0  # gamma of the focal loss, which gives easy rows less weight; 0: cross-entropy
    mixup: float = 0.0  # alpha of mixup's Beta distribution; 0: off
    cutmix: float = 0.0  # alpha of cutmix's Beta distribution; 0: off; if mixup is on too, each batch gets one of them
    ema: float = 0.0  # decay of the weights' moving average, which becomes the model; 0: the model is the last weights
    dropout: float = 0.0  # share of the features that is dropped before the head
    dropout_samples: int = 1  # dropout masks on the same features, whose outputs are averaged
    metadata_dropout: float = 0.0  # probability with which each metadata column of a row is set to missing in training
    accumulate: int = 1  # parts in which a batch is processed, if memory is short
    clip_norm: float = 0.0  # largest norm of the gradient; 0: no limit
    precision: Precision = "auto"  # precision of the backbone; `auto`: bfloat16 on GPUs that have it, else float32
    compile: bool = False  # use `torch.compile`: takes minutes once, then steps are faster on a GPU
    select: Select = "last"  # `best`: the epoch with the highest AUC on an inner, grouped fifth of the training rows
    augment: tuple[str, ...] = ("light",)  # recipes, applied in this order; see image_models/transforms.py
    augment_on: AugmentOn = "cpu"  # `cpu`: each image as it is loaded; `device`: whole batches, where the network runs


@dataclass(frozen=True)
class Compute:
    """Where a network runs. On a CPU, only the number of threads can change the last digit of a result."""

    device: str  # `auto`, `cpu`, `cuda`, `cuda:1`, …
    threads: int  # of torch and BLAS
    workers: int  # processes that load images


class DoneBefore(int):
    """Units of work that an earlier process finished, for functions that are called with the units just finished."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls while it runs."""

    progress: Callable[[int], object] = lambda images: None  # images done since the last call
    say: Callable[[str], object] = lambda line: None  # messages for the user
    # each epoch's AUC on the rows that choose the epoch
    report: Callable[[int, float], object] = lambda epoch, auc: None


SILENT = Callbacks()


@dataclass(frozen=True)
class SetTransformerSettings:
    """Settings of `image_models.set_transformer`, the `params` of a stacker of kind `set_transformer`."""

    width: int = 32  # numbers that describe a row inside the network
    blocks: int = 2  # set attention blocks, one after another
    heads: int = 4  # attention heads of a block; they divide the width
    dropout: float = 0.1  # share of each block's output that is dropped in training
    lr: float = 5e-4  # learning rate of AdamW
    weight_decay: float = 0.1  # weight decay of AdamW
    ema: float = 0.99  # decay of the weights' moving average, which becomes the model
    batch_rows: int = 256  # rows a step; groups are not divided, so a step may have more
    epochs: int = 12  # most passes over the training rows
    patience: int = 3  # passes without a smaller log loss on the inner rows after which the training ends
    alone: float = 0.25  # share of the groups of which, in an epoch, each row is seen alone
    subsets: float = 0.25  # share of the groups that are seen, in an epoch, as random parts


_SET_BOUNDS: dict[str, tuple[float, float]] = {
    "width": (4, 256), "blocks": (1, 8), "heads": (1, 16), "dropout": (0, 0.9), "lr": (1e-6, 1),
    "weight_decay": (0, 10), "ema": (0, 0.9999), "batch_rows": (8, 65_536), "epochs": (1, 10_000),
    "patience": (1, 10_000), "alone": (0, 1), "subsets": (0, 1),
}  # fmt: skip


def set_transformer_settings(params: Mapping[str, Any]) -> SetTransformerSettings:
    """Returns the defaults with ``params`` over them. Raises ImageError for a name or a value that it cannot have."""
    for name, value in params.items():
        if name not in _SET_BOUNDS:
            near = difflib.get_close_matches(name, _SET_BOUNDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(_SET_BOUNDS)}"
            raise ImageError(f"a set transformer has no parameter {str(name)[:80]!r}: {hint}")
        low, high = _SET_BOUNDS[name]
        whole = isinstance(getattr(SetTransformerSettings, name), int)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise ImageError(f"{name} of a set transformer is {str(value)[:80]}: give {kind} from {low:g} to {high:g}")
    made = SetTransformerSettings(**params)
    if made.width % made.heads:
        raise ImageError(f"a set transformer's width {made.width} is not a multiple of its {made.heads} heads")
    if made.alone + made.subsets > 1:
        raise ImageError(f"alone {made.alone:g} and subsets {made.subsets:g} are together more than 1: lower one")
    return made

"""Settings of how a network is built, trained and run, named as in the config; needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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


@dataclass(frozen=True)
class Callbacks:
    """Functions that a training calls while it runs."""

    progress: Callable[[int], object] = lambda images: None  # images done since the last call
    say: Callable[[str], object] = lambda line: None  # messages for the user
    report: Callable[[int, float], object] = lambda epoch, auc: (
        None
    )  # each epoch's AUC on the rows that choose the epoch


SILENT = Callbacks()

"""How a network is built, trained and run: frozen values, named as in the config. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Balance = Literal["none", "sqrt", "full"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Select = Literal["last", "best"]
AugmentOn = Literal["cpu", "device"]


@dataclass(frozen=True)
class Network:
    """Which network is built, and from which weights training starts."""

    backbone: str  # timm's name
    pretrained: bool | Path  # timm's ImageNet weights, none, or a file
    timm_args: Mapping[str, Any]  # further arguments of `timm.create_model`
    mean: Sequence[float] | None  # of red, green and blue in [0, 1]; None: as the backbone was trained
    std: Sequence[float] | None  # of red, green and blue in [0, 1]; None: as the backbone was trained


@dataclass(frozen=True)
class Training:
    """Settings of `image_models.train.train_net`; every default is the plain choice."""

    epochs: int = 4  # times that each training row is seen, or drawn where classes are balanced
    batch_size: int = 32  # images a step
    lr: float = 1e-3  # the highest learning rate, of the head; reached after the warm-up
    weight_decay: float = 0.01  # AdamW's
    warmup: float = 0.1  # share of the steps in which the rate rises; a cosine down to zero follows
    layer_decay: float = 1.0  # each layer group's rate is this times that of the group above it; 1: one rate for all
    balance: Balance = "none"  # `sqrt`, `full`: each class is drawn with weight 1/√rows or 1/rows
    positive_weight: float = 1.0  # of positive rows in the loss
    label_smoothing: float = 0.0  # share of each target that is spread over all classes
    focal_gamma: float = 0.0  # of the focal loss, which gives easy rows less weight; 0: cross-entropy
    mixup: float = 0.0  # alpha of its Beta distribution; 0: off
    cutmix: float = 0.0  # alpha, as of mixup; where both are on, each batch is mixed in one of the two ways
    ema: float = 0.0  # decay of the moving average of the weights, which becomes the model; 0: the last weights are
    dropout: float = 0.0  # share of the features that are dropped before the head
    dropout_samples: int = 1  # dropouts of the same features, whose outputs are averaged
    accumulate: int = 1  # parts in which a batch goes through the network, where memory is short
    clip_norm: float = 0.0  # the largest norm of a gradient; 0: no limit
    precision: Precision = "auto"  # of the backbone; `auto`: bfloat16 on GPUs that have it
    compile: bool = False  # `torch.compile`: minutes once, then faster steps on a GPU
    select: Select = "last"  # `best`: the epoch with the best AUC on an inner, grouped fifth of the training rows
    augment: tuple[str, ...] = ("light",)  # recipes, applied one after the other; see image_models/transforms.py
    augment_on: AugmentOn = "cpu"  # `device`: a batch at a time, where the network runs


@dataclass(frozen=True)
class Compute:
    """Where a network runs. The number of threads can change the last digit of a result; the rest cannot on a CPU."""

    device: str  # `auto`, `cpu`, `cuda`, `cuda:1`, …
    threads: int  # of torch and BLAS
    workers: int  # processes that load images


@dataclass(frozen=True)
class Callbacks:
    """What a training tells its caller while it runs."""

    progress: Callable[[int], object] = lambda images: None  # images done since the last call
    say: Callable[[str], object] = lambda line: None  # what a user should know
    report: Callable[[int, float], object] = lambda epoch, auc: None  # each epoch's AUC on the rows that choose it


SILENT = Callbacks()

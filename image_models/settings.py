"""How a net is trained: one frozen value, named as in the config. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Training:
    """Settings of `image_models.train.train_net`; every default is the plain choice."""

    epochs: int = 4  # times that each training row is seen, or drawn where classes are balanced
    batch_size: int = 32  # images a step
    lr: float = 1e-3  # the peak, for the head; reached after the warm-up
    weight_decay: float = 0.01  # AdamW's
    warmup: float = 0.1  # share of the steps; a cosine down to zero follows
    layer_decay: float = 1.0  # each layer group's rate is this times that of the group above it; 1: one rate for all
    balance: Literal["none", "sqrt", "full"] = "none"  # classes are drawn with weight 1/√rows or 1/rows
    positive_weight: float = 1.0  # of the loss of positive rows
    label_smoothing: float = 0.0  # share of each target that is spread over all classes
    focal_gamma: float = 0.0  # of the focal loss, which cares less for what is easy; 0: cross-entropy
    mixup: float = 0.0  # alpha of its Beta distribution; 0: off
    cutmix: float = 0.0  # alpha, as of mixup; where both are on, each batch is mixed in one of the two ways
    ema: float = 0.0  # decay of the average of weights, which then is the model; 0: the last weights are
    dropout: float = 0.0  # share of the features before the head
    dropout_samples: int = 1  # heads on so many dropouts of the same features, averaged
    accumulate: int = 1  # parts in which a batch goes through the network, where it doesn't fit at once
    clip_norm: float = 0.0  # the largest norm of a gradient; 0: any
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the backbone; `auto`: bfloat16 on GPUs
    compile: bool = False  # `torch.compile`: minutes once, then faster steps on a GPU
    select: Literal["last", "best"] = "last"  # `best`: the epoch of the best AUC on an inner, grouped fifth
    augment_on: Literal["cpu", "device"] = "cpu"  # `device`: drawn a batch at a time, where the net is

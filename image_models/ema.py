"""An exponential moving average of a net's weights and running statistics."""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """Follows ``net`` with `update`; `swap` exchanges the two, so that the average can be used and put back.

    The decay starts at 2/11 and rises to ``decay`` with the steps, as TensorFlow's does: early weights are forgotten.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = {key: tensor.detach().clone() for key, tensor in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """After a step of the optimiser."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        floats, targets = [], []
        for key, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                floats.append(self.tensors[key])
                targets.append(tensor)
            else:
                self.tensors[key].copy_(tensor)
        torch._foreach_lerp_(floats, targets, 1 - decay)

    @torch.no_grad()
    def swap(self, net: nn.Module) -> None:
        """The net gets the average and this keeps what the net had; once more puts both back."""
        for key, tensor in net.state_dict().items():
            kept = tensor.clone()
            tensor.copy_(self.tensors[key])
            self.tensors[key].copy_(kept)

"""Heat maps of where an image raises a convolutional net's risk: Grad-CAM (Selvaraju et al. 2017), by torchcam."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from torchcam.methods import GradCAM

from dermstack.errors import ImageError
from image_models.device import use_threads
from image_models.net import Net

CAM_BATCH_SIZE = 4  # images whose gradients are in memory at once


class _RiskLogit(nn.Module):
    """A net with fixed metadata: maps images uint8 (n, h, w, 3) to the logit of p as a single class (n, 1)."""

    def __init__(self, net: Net, metadata: torch.Tensor | None) -> None:
        super().__init__()
        self.net = net
        self.metadata = metadata

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit: torch.Tensor = self.net(images, self.metadata)[0]
        return logit[:, None]


def risk_maps(net: Net, images: torch.Tensor, metadata: torch.Tensor | None = None) -> NDArray[np.float32]:
    """Returns heat maps (n, h, w) in 0..1 of images uint8 (n, h, w, 3): where the last feature map raises the logit.

    All zero for an image in which nothing raises it. Raises ImageError for a backbone without a late feature map, such
    as a transformer.
    """
    net = net.eval()
    layer = _last_map_layer(net, images[:1], metadata[:1] if metadata is not None else None)
    risk = _RiskLogit(net, metadata)
    with torch.enable_grad(), GradCAM(risk, target_layer=layer) as extractor:
        scores = risk(images)
        maps = extractor([0] * len(images), scores)[0].float()
    heat = F.interpolate(torch.nan_to_num(maps)[:, None], size=images.shape[1:3], mode="bilinear")[:, 0]
    top = heat.amax(dim=(1, 2), keepdim=True)
    scaled: NDArray[np.float32] = torch.where(top > 0, heat / top, heat).detach().cpu().numpy()
    return scaled


def pixel_risk_maps(
    net: Net, pixels: NDArray[np.uint8], metadata: NDArray[np.float32], *, threads: int = 1
) -> NDArray[np.float32]:
    """Computes `risk_maps` of images (n, h, w, 3) and encoded metadata (n, m) in small batches on the net's device."""
    use_threads(threads)
    device = net.head.weight.device
    parts = [np.empty((0, *pixels.shape[1:3]), np.float32)]
    for start in range(0, len(pixels), CAM_BATCH_SIZE):
        some = slice(start, start + CAM_BATCH_SIZE)
        encoded = torch.from_numpy(metadata[some]).to(device) if metadata.shape[1] else None
        parts.append(risk_maps(net, torch.from_numpy(pixels[some]).to(device), encoded))
    return np.concatenate(parts)


def _last_map_layer(net: Net, images: torch.Tensor, metadata: torch.Tensor | None) -> nn.Module:
    """Finds the module that outputs the last feature map (1, c, s, s), s > 1; raises ImageError where none does."""
    ran: list[tuple[nn.Module, tuple[int, ...]]] = []

    def record_output(module: nn.Module, _: object, output: object) -> None:
        ran.append((module, tuple(output.shape) if isinstance(output, torch.Tensor) else ()))

    leaves = [module for module in net.backbone.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(record_output) for module in leaves]
    with torch.no_grad():
        net(images, metadata)
    for hook in hooks:
        hook.remove()
    spread = [(module, shape) for module, shape in ran if math.prod(shape[2:]) > 1]
    # A transformer ends in tokens (1, t, d), or in a map with the channels last.
    if not spread or len(spread[-1][1]) != 4 or spread[-1][1][2] != spread[-1][1][3]:
        raise ImageError(
            "Grad-CAM needs a convolutional backbone whose last feature map is larger than 1 × 1: "
            "use larger images or another backbone"
        )
    return spread[-1][0]

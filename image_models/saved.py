"""The networks of a finished run, read back from its weights: for heat maps, and for images that come later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from image_models.device import pick_device, pick_precision
from image_models.errors import ImageError
from image_models.net import Net, build_net, read_weights

BODY = "backbone.safetensors"  # of a frozen run: one for all its folds, beside them


class NetStore:
    """`read_fold_nets` for one set of pictures after the other: what it read is kept as long as there is room."""

    def __init__(self, room: int) -> None:
        """``room``: bytes of weights that may be kept."""
        self._room = room
        self._kept: dict[tuple[Path, str], list[Net]] = {}

    def read(
        self, fold: Path, settings: Mapping[str, Any], *, positive: Sequence[bool], metadata: int, device: str
    ) -> list[Net]:
        """The nets in the folder ``fold``, arguments and errors as those of `read_fold_nets`."""
        if (fold, device) in self._kept:
            return self._kept[fold, device]
        nets = read_fold_nets(fold, settings, positive=positive, metadata=metadata, device=device)
        weight = sum(tensor.nbytes for net in nets for tensor in (*net.parameters(), *net.buffers()))
        if weight <= self._room:
            self._room -= weight
            self._kept[fold, device] = nets
        return nets


def read_fold_nets(
    fold: Path,
    settings: Mapping[str, Any],
    *,
    positive: Sequence[bool] = (False, True),
    metadata: int = 0,
    device: str = "cpu",
) -> list[Net]:
    """The nets in the folder ``fold`` (…/<run>/fold_<k>), one a seed, the first seed's first; ready for `predict`.

    ``settings`` and ``positive`` are those of the run's run.json, ``metadata`` is the number of encoded columns that
    the net saw beside the picture. Raises ImageError for weights that are missing, damaged or of other settings.
    """
    further = [] if settings["frozen"] else settings["seeds"][1:]  # a frozen run has one head, whatever its seeds
    return [
        read_fold_net(path, settings, positive=positive, metadata=metadata, device=device)
        for path in (fold / "weights.safetensors", *_further_weights(fold, further))
    ]


def read_fold_net(
    weights: Path,
    settings: Mapping[str, Any],
    *,
    positive: Sequence[bool] = (False, True),
    metadata: int = 0,
    body: Path | None = None,
    device: str = "cpu",
) -> Net:
    """The net whose weights lie in one file, in eval mode and in the precision that it was validated in.

    A frozen run keeps only its heads in ``weights``: its ``body`` is by default the file backbone.safetensors one
    folder up. Arguments and errors as those of `read_fold_nets`.
    """
    normalise, where = settings["normalise"] or {}, pick_device(device)
    frozen: bool = settings["frozen"]
    with torch.random.fork_rng(devices=[]):  # the draws that start a net are overwritten: they shall not move others'
        net = build_net(
            settings["backbone"],
            pretrained=False,
            frozen=frozen,
            timm_args=settings["timm_args"],
            size=settings["size"],
            mean=normalise.get("mean"),
            std=normalise.get("std"),
            prior=[1.0] * len(positive),
            seed=0,
            positive=positive,
            metadata=metadata,
        )
    if frozen:
        read_weights(net.backbone, body or weights.parent.parent / BODY)
        read_weights(nn.ModuleDict({"head": net.head}), weights)
    else:
        read_weights(net, weights)
        net.precision = pick_precision(settings["precision"], where)
    return net.to(where).eval()


def _further_weights(fold: Path, seeds: Sequence[int]) -> list[Path]:
    """The files of the second seed and those after it, in the order of ``seeds``.

    They are named by seed plus the experiment's own, which the run doesn't tell: the order is the same.
    """
    found = sorted(fold.glob("weights_*.safetensors"), key=lambda path: int(path.stem.removeprefix("weights_")))
    if len(found) != len(seeds):
        raise ImageError(
            f"{fold} has the weights of {len(found) + 1} seeds where its settings name {len(seeds) + 1}: restore the "
            "run's files, or make it again with `dermstack oof --rebuild`"
        )
    by_seed = dict(zip(sorted(seeds), found, strict=True))
    return [by_seed[seed] for seed in seeds]

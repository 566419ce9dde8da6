"""Reads the networks of a finished run from its weights and predicts with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load
from torch import nn

from dermstack.errors import ImageError
from image_models.cache import ImageCache
from image_models.dataset import CachedImages
from image_models.device import pick_device, pick_precision, use_threads
from image_models.frozen_head import LinearHead
from image_models.losses import risk_logit
from image_models.net import Net, Shape, build_net, check_weights, load_weights, read_tensors, shapes_of
from image_models.net_files import BACKBONE, WEIGHTS, net_files
from image_models.net_size import check_timm_args, planned
from image_models.predict import NetOutput, mean_over_seeds, predict
from image_models.settings import Compute

ReadFile = Callable[[Path], bytes]  # returns the content of a file; that of a bundle checks its hash


class NetCache:
    """Reads nets with `read_fold_nets` and keeps them in memory, up to a limit, for the next images."""

    def __init__(self, max_bytes: int, *, read: ReadFile = Path.read_bytes) -> None:
        """``max_bytes``: bytes of weights that may be kept; ``read`` returns the bytes of a file."""
        self._bytes_left = max_bytes
        self.read_file = read
        self._kept: dict[tuple[Path, str], list[Net]] = {}

    def read(
        self, fold: Path, settings: Mapping[str, Any], *, positive: Sequence[bool], metadata: int, device: str
    ) -> list[Net]:
        """Returns the nets in the folder ``fold``; arguments and errors as for `read_fold_nets`."""
        if (fold, device) in self._kept:
            return self._kept[fold, device]
        nets = read_fold_nets(fold, settings, positive=positive, metadata=metadata, device=device, read=self.read_file)
        weight = sum(tensor.nbytes for net in nets for tensor in (*net.parameters(), *net.buffers()))
        if weight <= self._bytes_left:
            self._bytes_left -= weight
            self._kept[fold, device] = nets
        return nets


def read_fold_nets(
    fold: Path,
    settings: Mapping[str, Any],
    *,
    positive: Sequence[bool] = (False, True),
    metadata: int = 0,
    device: str = "cpu",
    read: ReadFile = Path.read_bytes,
) -> list[Net]:
    """Reads the nets in the folder ``fold`` (…/<run>/fold_<k>), one per seed in the run's order, ready for `predict`.

    ``settings`` and ``positive`` are those of the run's run.json; ``metadata`` is the number of encoded columns that
    the net uses beside the image; ``read`` returns the bytes of a weights file. Raises ImageError for weights that are
    missing, damaged or of other settings.
    """
    seeds = settings["seeds"][:1] if settings["frozen"] else settings["seeds"]  # a frozen run has one head
    return [
        read_fold_net(path, settings, positive=positive, metadata=metadata, device=device, read=read)
        for path in net_files(fold, seeds)
    ]


def read_fold_net(
    weights: Path,
    settings: Mapping[str, Any],
    *,
    positive: Sequence[bool] = (False, True),
    metadata: int = 0,
    device: str = "cpu",
    read: ReadFile = Path.read_bytes,
) -> Net:
    """Reads the net of one weights file, in eval mode and in the precision in which it was validated.

    The file's tensors are compared with those of the settings' network before memory for the network is allocated.

    A frozen run has only a head in ``weights``; its backbone is the file backbone.safetensors in the run's folder, one
    above the fold's. Other arguments and errors as for `read_fold_nets`.
    """
    normalise, torch_device = settings["normalise"] or {}, pick_device(device)
    frozen: bool = settings["frozen"]
    files = {weights: read_tensors(weights, read)}
    if frozen:
        path = weights.parent.parent / BACKBONE
        files[path] = read_tensors(path, read)
    tensors = [tensor for of_file in files.values() for tensor in of_file.values()]
    arguments = {
        "backbone": settings["backbone"], "frozen": frozen, "timm_args": dict(settings["timm_args"]),
        "size": settings["size"], "mean": normalise.get("mean"), "std": normalise.get("std"),
        "prior": [1.0] * len(positive), "positive": list(positive), "metadata": metadata,
    }  # fmt: skip
    check_timm_args(settings["timm_args"])
    with torch.random.fork_rng(devices=[]):  # building a net draws weights, which are overwritten
        shapes = _planned_shapes(
            json.dumps(arguments), sum(tensor.numel() for tensor in tensors), len(tensors), settings["batch_size"]
        )
        for (path, of_file), of_part in zip(files.items(), shapes, strict=True):
            check_weights(of_part, of_file, path)
        net = build_net(**arguments, pretrained=False, seed=0)
    for (path, of_file), part in zip(files.items(), _stored_parts(net), strict=True):
        load_weights(part, of_file, path)
    if not frozen:
        net.precision = pick_precision(settings["precision"], torch_device)
    return net.to(torch_device).eval()


@lru_cache(maxsize=64)  # the nets of all folds and seeds of a run are alike
def _planned_shapes(arguments: str, elements: int, tensors: int, batch_size: int) -> list[dict[str, Shape]]:
    """Returns the shapes of a net's stored parts, from the JSON of the arguments of `build_net`; as `planned`."""
    build = partial(build_net, **json.loads(arguments), pretrained=False, seed=0)
    plan = planned(build, elements=elements, tensors=tensors, batch_size=batch_size)
    return [shapes_of(part) for part in _stored_parts(plan)]


def _stored_parts(net: Net) -> list[nn.Module]:
    """Returns the parts of a net that have a weights file: all of it; of a frozen one, its head and its backbone."""
    return [nn.ModuleDict({"head": net.head}), net.backbone] if net.frozen else [net]


def predict_trained(
    fold: Path,
    settings: Mapping[str, Any],
    cache: ImageCache,
    rows: NDArray[np.intp],
    metadata: NDArray[np.float32],
    *,
    positive: Sequence[bool],
    store: NetCache,
    compute: Compute,
    progress: Callable[[int], object],
) -> NetOutput:
    """Predicts rows of a cache with the nets in the folder ``fold``: mean logits over the seeds, z of the first seed.

    ``settings`` are those of the run's run.json; ``metadata`` (n, m) holds the encoded columns; ``store`` reads the
    nets. Raises ImageError as `read_fold_nets` and `predict` do.
    """
    use_threads(compute.threads)
    device = str(pick_device(compute.device))
    nets = store.read(fold, settings, positive=positive, metadata=metadata.shape[1], device=device)
    return mean_over_seeds(predict_by_seed(nets, settings, cache, rows, metadata, compute=compute, progress=progress))


def predict_by_seed(
    nets: Sequence[Net],
    settings: Mapping[str, Any],
    cache: ImageCache,
    rows: NDArray[np.intp],
    metadata: NDArray[np.float32],
    *,
    compute: Compute,
    progress: Callable[[int], object],
) -> list[NetOutput]:
    """Predicts rows of a cache with each of a fold's nets, using batch size and views as in ``settings``."""
    images = CachedImages(cache, rows, metadata=metadata)
    return [
        predict(
            net, images, batch_size=settings["batch_size"], device=pick_device(compute.device), tta=settings["tta"],
            workers=compute.workers, progress=progress,
        )
        for net in nets
    ]  # fmt: skip


def predict_frozen(
    folds: Sequence[Path],
    settings: Mapping[str, Any],
    cache: ImageCache,
    rows: NDArray[np.intp],
    *,
    store: NetCache,
    compute: Compute,
    progress: Callable[[int], object],
) -> Iterator[NetOutput]:
    """Computes z of rows of a cache once with the frozen backbone; yields each fold's predictions from its head."""
    use_threads(compute.threads)
    device, weights = pick_device(compute.device), [fold / WEIGHTS for fold in folds]
    (net,) = store.read(folds[0], settings, positive=(False, True), metadata=0, device=str(device))
    z = predict(
        net, CachedImages(cache, rows), batch_size=settings["batch_size"], device=device, tta=settings["tta"],
        workers=compute.workers, progress=progress,
    ).z  # fmt: skip
    for path in weights:
        try:
            tensors = load(store.read_file(path))
            head = LinearHead(tensors["head.weight"][0], tensors["head.bias"][0], np.nan)
            if head.weight.shape != z.shape[1:] or not np.isfinite([*head.weight, head.bias]).all():
                raise ValueError(f"weights of shape {head.weight.shape} for {z.shape[1]} features, or not finite")
        except (SafetensorError, OSError, LookupError, ValueError, TypeError) as error:
            raise ImageError(f"{path} holds no readable head ({error}): make the run again") from error
        yield NetOutput(head.logit(z), z)


def head_logits(
    weights: Path,
    settings: Mapping[str, Any],
    z: NDArray[np.float16],
    metadata: Sequence[NDArray[np.float32]],
    *,
    positive: Sequence[bool],
    read: ReadFile = Path.read_bytes,
) -> list[NDArray[np.float32]]:
    """Returns logits (n,) of stored embeddings (n, d) with each of ``metadata`` (n, m), from a net's head only."""
    net = read_fold_net(weights, settings, positive=positive, metadata=metadata[0].shape[1], read=read)
    assert net.fusion is not None, "the net has no metadata fusion"
    images, made = torch.from_numpy(z.astype(np.float32)), []
    with torch.inference_mode():
        for known in metadata:
            joined = torch.cat([images, net.fusion(torch.from_numpy(known))], dim=1)
            made.append(risk_logit(net.head(joined), net.positive).numpy())
    return made

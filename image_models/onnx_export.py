"""Exports a network to ONNX, for runtimes without torch, and checks on images that both give the same predictions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as runtime_errors
from scipy.special import expit
from torch import nn

from dermstack.errors import ImageError
from image_models.dataset import Batch, CachedImages
from image_models.losses import risk_logit
from image_models.net import Net

OPSET = 18  # what torch's exporter writes without conversion; onnxruntime has read it since 1.14
P_TOLERANCE = 1e-4  # absolute
LOGIT_TOLERANCE = 1e-4  # absolute
Z_TOLERANCE = 1e-4  # relative to the largest |z| of the images
# A frozen net rounds z to float16. Float32 sums in another order may round to the next float16 value: the feature is
# then off by a whole step, and the logit by that step times its weight (5e-4 was seen), in any runtime. So a frozen
# net's z may differ by one step, and its logit is compared with torch's head on the z from ONNX. Its p is compared with
# torch's p, as for every net.
FLOAT16_STEP = 2.0**-10  # largest step, relative to the rounded value


@dataclass(frozen=True)
class OnnxDifferences:
    """Largest differences between ONNX and torch on ``images`` images."""

    images: int
    p: float  # absolute
    logit: float  # absolute
    logit_of_z: float  # absolute, with torch's head on the z from ONNX
    z: float  # relative to the largest |z|; for a frozen net, what exceeds one step of float16


def write_onnx(net: Net, path: Path, *, size: int, metadata: int) -> None:
    """Writes ``net``, in eval mode and float32, as an ONNX file.

    Inputs are ``images`` uint8 (n, size, size, 3) and, if the net uses any, ``metadata`` float32 (n, metadata); outputs
    are ``logit`` (n,) and ``z`` (n, d) as from `Net.forward`, for any n, without test-time augmentation. Raises
    ImageError where the backbone cannot be expressed in ONNX or needs more than the 2 GB that one file holds.
    """
    assert not net.training, "set the net to eval mode: dropout and batch norm are exported as they are"
    assert net.precision == torch.float32, "read the net for the cpu, in float32"
    device = net.head.weight.device
    example = [torch.zeros(2, size, size, 3, dtype=torch.uint8, device=device)]
    if metadata:
        example.append(torch.zeros(2, metadata, device=device))
    # The batch axis is named once: that of metadata must be the same, and a second name would only cause a warning.
    shapes = [{0: torch.export.Dim("n", min=1)}, {0: torch.export.Dim.DYNAMIC}]
    try:
        program = torch.onnx.export(
            _Traceable(net).eval(),
            tuple(example),
            input_names=["images", "metadata"][: len(example)],
            output_names=["logit", "z"],
            dynamic_shapes=tuple(shapes[: len(example)]),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None, "the exporter returns a program with dynamo=True"
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # stack traces, with paths of the exporting machine
        program.save(path, external_data=False)
    # ValueError: also from protobuf, for a file beyond 2 GB. RuntimeError: also the exporter's own errors.
    except (RuntimeError, ValueError) as error:
        path.unlink(missing_ok=True)
        cause = error.__cause__ or error  # the exporter's own message addresses its developers
        reason = next((line for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
        raise ImageError(f"cannot be expressed in ONNX ({reason[:200]}): bundle without `--onnx`") from error


def check_onnx(path: Path, net: Net, images: CachedImages) -> OnnxDifferences:
    """Compares the ONNX file with ``net`` on all ``images`` at once and on the first one as a batch of one.

    Raises ImageError where the file cannot be run, or p, logit or z differ by more than the tolerances.
    """
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = [_compare(session, net, images[rows]) for rows in (list(range(len(images))), [0])]
    except _RUNTIME_ERRORS as error:
        raise ImageError(f"onnxruntime cannot run the exported file ({str(error)[:200]}): bundle again") from error
    worst = OnnxDifferences(
        len(images),
        p=max(one.p for one in found),
        logit=max(one.logit for one in found),
        logit_of_z=max(one.logit_of_z for one in found),
        z=max(one.z for one in found),
    )
    logit = worst.logit_of_z if net.frozen else worst.logit
    # In this form a NaN fails.
    if not (worst.p <= P_TOLERANCE and logit <= LOGIT_TOLERANCE and worst.z <= Z_TOLERANCE):
        raise ImageError(
            f"ONNX and torch differ by {worst.p:.2g} in p, {logit:.2g} in logits and {worst.z:.2g} of the largest z, "
            f"where {P_TOLERANCE:g}, {LOGIT_TOLERANCE:g} and {Z_TOLERANCE:g} are allowed, on {worst.images} images: "
            "bundle without `--onnx`"
        )
    return worst


class _Traceable(nn.Module):
    """`Net.forward` with lists of class numbers instead of a mask, whose data-dependent shapes ONNX refuses."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.positive_classes: list[int] = net.positive.nonzero()[:, 0].tolist()
        self.negative_classes: list[int] = (~net.positive).nonzero()[:, 0].tolist()

    def forward(self, images: torch.Tensor, metadata: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, z = self.net.outputs(images, metadata)
        if outputs.shape[1] == 1:
            return outputs[:, 0], z
        return torch.logsumexp(outputs[:, self.positive_classes], dim=1) - torch.logsumexp(
            outputs[:, self.negative_classes], dim=1
        ), z


def _compare(session: onnxruntime.InferenceSession, net: Net, batch: Batch) -> OnnxDifferences:
    feeds = {"images": batch.images.numpy()}
    if batch.metadata.shape[1]:
        feeds["metadata"] = batch.metadata.numpy()
    logit, z = session.run(["logit", "z"], feeds)
    device_batch = batch.to(net.head.weight.device)
    with torch.inference_mode():
        torch_logit, torch_z = (one.cpu().numpy() for one in net(device_batch.images, device_batch.metadata))
        joined = torch.from_numpy(z).to(device_batch.images.device)
        if net.fusion is not None:
            joined = torch.cat([joined, net.fusion(device_batch.metadata)], dim=1)
        of_z = risk_logit(net.head(joined), net.positive).cpu().numpy()
    if logit.shape != torch_logit.shape or z.shape != torch_z.shape:
        raise ImageError(
            f"ONNX gives shapes {logit.shape} and {z.shape}, torch {torch_logit.shape} and {torch_z.shape}: "
            "bundle without `--onnx`"
        )
    z_difference = np.abs(z - torch_z) - (FLOAT16_STEP * np.abs(torch_z) if net.frozen else 0.0)
    return OnnxDifferences(
        len(logit),
        p=_largest(expit(logit.astype(np.float64)) - expit(torch_logit.astype(np.float64))),
        logit=_largest(logit - torch_logit),
        logit_of_z=_largest(logit - of_z),
        z=float(np.maximum(z_difference, 0.0).max()) / (_largest(torch_z) or 1.0),
    )


def _largest(values: NDArray[np.floating]) -> float:
    return float(np.abs(values).max())


_RUNTIME_ERRORS = (
    runtime_errors.Fail,
    runtime_errors.InvalidArgument,
    runtime_errors.InvalidGraph,
    runtime_errors.InvalidProtobuf,
    runtime_errors.NotImplemented,
    runtime_errors.RuntimeException,
)

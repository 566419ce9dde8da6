"""Trains one net on one fold's training rows, in one straight loop.

The model is the last weights or their moving average, unless `select: best` chooses an epoch on separate rows.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from timm.optim import param_groups_layer_decay
from torch import nn

from dermstack.errors import ImageError
from dermstack.files import atomic_write
from image_models.dataset import Batch, CachedImages, ColumnDropout, load_batches, train_batches
from image_models.device import freed_memory_kept, pick_precision, retry_on_oom
from image_models.losses import MixedBatch, class_weights, mix_batch, prior_shift, row_losses, soft_losses
from image_models.net import Net
from image_models.predict import predict
from image_models.settings import DoneBefore, Training

if TYPE_CHECKING:
    from image_models.device_augment import DeviceAugment


class WeightAverage:
    """Moving average of a net's weights; `swap` exchanges the two, so that the average can be used and put back.

    The decay starts at 2/11 and rises to ``decay`` with the steps, as in TensorFlow: early weights count little.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.tensors = {key: tensor.detach().clone() for key, tensor in net.state_dict().items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Moves the average towards the net; to be called after each step of the optimiser."""
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
        """Exchanges the net's weights and the average; a second call restores both."""
        exchanged = set[int]()
        for key, tensor in net.state_dict(keep_vars=True).items():
            if id(tensor) in exchanged:  # layers may share a tensor
                continue
            exchanged.add(id(tensor))
            kept = tensor.clone()
            tensor.copy_(self.tensors[key])
            self.tensors[key].copy_(kept)


def write_state(path: Path, state: dict[str, Any]) -> None:
    """Writes a state of tensors, numbers and strings by name, preceded by the SHA-256 of its bytes."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with atomic_write(path) as partial:
        partial.write_bytes(hashlib.sha256(content).digest() + content)


def read_state(path: Path, *, identity: str) -> dict[str, Any] | None:
    """Reads the state that `write_state` wrote for the same ``identity``; None if missing or of another training.

    Raises ImageError for a damaged file.
    """
    if not path.is_file():
        return None
    content = path.read_bytes()
    damaged = ImageError(
        f"{path}, the state of an unfinished training, is damaged: remove {path} and run "
        "`dermstack oof` again, which trains this fold from the start"
    )
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        raise damaged
    try:
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise damaged from error
    return state if isinstance(state, dict) and state.get("identity") == identity else None


@freed_memory_kept()
def train_net(
    net: Net,
    images: CachedImages,
    *,
    training: Training,
    seed: int,
    device: torch.device,
    batch_augment: DeviceAugment | None = None,
    column_dropout: ColumnDropout | None = None,
    inner_val: CachedImages | None = None,
    state: Path | None = None,
    identity: str = "",
    workers: int = 0,
    report: Callable[[int, float], object] = lambda epoch, auc: None,
    progress: Callable[[int], object] = lambda done: None,
    say: Callable[[str], object] = lambda line: None,
) -> pd.DataFrame:
    """Fine-tunes ``net`` in place with AdamW, a warm-up and a cosine decay of the learning rate to zero.

    Held-out rows are not used. ``batch_augment`` augments batches on the device, unless ``images`` augments its rows.
    ``column_dropout`` sets metadata columns to missing. ``inner_val`` are the rows on which `select: best` chooses the
    epoch; ``report`` is called with each epoch's AUC on them. ``state`` is a file that is written after each epoch, and
    from which a training of the same ``identity`` resumes: every draw comes from (seed, epoch), so that a resumed
    training ends with the same weights. ``progress`` is called with the number of images of each step, ``say`` with
    messages for the user.

    Returns the history, one row per epoch: epoch, loss (mean training loss), lr (at its end), images_per_s, and auc on
    ``inner_val``. Raises ImageError when the loss is not finite.
    """
    net = net.to(device).train()
    net.precision = pick_precision(training.precision, device)
    if training.compile:
        net.backbone.compile()
    optimiser = torch.optim.AdamW(_parameter_groups(net, training), lr=training.lr)
    average = WeightAverage(net, training.ema) if training.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=net.precision == torch.float16)
    positive = net.positive.cpu().numpy()
    weights = class_weights(images.allowed, training.balance)
    prior_correction = (-prior_shift(images.allowed, positive, training)).tolist()
    batch_loss = _BatchLoss(net, training, optimiser, scaler)
    parts, history, best, start = training.accumulate, [], None, 0
    if state and (kept := read_state(state, identity=identity)):
        net.load_state_dict(kept["net"])
        optimiser.load_state_dict(kept["optimiser"])
        if kept["scaler"]:  # empty unless the training began in float16
            scaler.load_state_dict(kept["scaler"])
        if average:
            average.tensors = {key: tensor.to(device) for key, tensor in kept["average"].items()}
            average.steps = kept["average_steps"]
        parts, history, best, start = kept["parts"], kept["history"], kept["best"], kept["epoch"]
        if start < training.epochs:
            say(f"seed {seed} resumes after epoch {start} of {training.epochs}")

    def epoch_batches(epoch: int) -> list[list[int]]:
        return train_batches(len(images), batch_size=training.batch_size, seed=seed, epoch=epoch, weights=weights)

    def report_split(parts: int) -> None:
        say(f"out of memory on {device}: batches of {training.batch_size} are now processed in {parts} parts")

    progress(DoneBefore(start * len(images)))
    step_count = training.epochs * len(epoch_batches(0))
    warmup = max(1, int(step_count * training.warmup))
    step = start * len(epoch_batches(0))
    for epoch in range(start, training.epochs):
        started, losses, batches = time.perf_counter(), [], epoch_batches(epoch)
        images.epoch = epoch
        mix_rng = np.random.default_rng((seed, epoch, 1))  # for mixup and cutmix; (seed, epoch) draws the order of rows
        column_rng = np.random.default_rng((seed, epoch, 2))
        torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]))  # dropout
        for batch in load_batches(images, batches, workers=workers, pin=device.type == "cuda"):
            rate = training.lr * _schedule(step, warmup=warmup, steps=step_count)
            for group in optimiser.param_groups:
                group["lr"] = rate * group.get("lr_scale", 1.0)
            rows, batch = batch.rows.tolist(), batch.to(device)
            if batch_augment:
                batch = batch._replace(images=batch_augment(batch.images, epoch=epoch, rows=rows))
            if column_dropout:
                batch = column_dropout(batch, column_rng)
            mixed = None
            if training.mixup or training.cutmix:
                mixed = mix_batch(batch, mixup=training.mixup, cutmix=training.cutmix, rng=mix_rng)
            loss, parts = retry_on_oom(
                partial(batch_loss.backward, batch, mixed), parts, max_parts=len(rows) // 2, say=report_split
            )
            losses.append(loss)
            scaler.unscale_(optimiser)
            if training.clip_norm:
                torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip_norm)
            scaler.step(optimiser)
            scaler.update()
            if average:
                average.update(net)
            step += 1
            progress(len(rows))
        mean_loss = float(torch.stack(losses).mean())
        if not np.isfinite(mean_loss):
            raise ImageError(
                f"training collapsed in epoch {epoch + 1} (loss {mean_loss}): lower `lr`, now {training.lr}"
            )
        seconds = time.perf_counter() - started
        row = {"epoch": epoch + 1, "loss": mean_loss, "lr": rate, "images_per_s": sum(map(len, batches)) / seconds}
        if inner_val is not None:
            with _as_final_net(net, average, prior_correction):
                row["auc"] = _auc(
                    net, inner_val, positive, batch_size=training.batch_size, device=device, workers=workers
                )
                if best is None or row["auc"] > best["auc"]:
                    made = {key: tensor.detach().cpu().clone() for key, tensor in net.state_dict().items()}
                    best = {"auc": row["auc"], "net": made}
            report(epoch + 1, row["auc"])
        history.append(row)
        if state:
            write_state(state, {
                "identity": identity, "epoch": epoch + 1, "net": net.state_dict(), "history": history, "best": best,
                "optimiser": optimiser.state_dict(), "scaler": scaler.state_dict(), "parts": parts,
                "average": average.tensors if average else {}, "average_steps": average.steps if average else 0,
            })  # fmt: skip
    if best is not None:
        net.load_state_dict(best["net"])
        return pd.DataFrame(history)
    if average:
        average.swap(net)
    net.shift_prior(prior_correction)
    return pd.DataFrame(history)


@contextmanager
def _as_final_net(net: Net, average: WeightAverage | None, prior_correction: list[float]) -> Iterator[None]:
    """Turns the net into this epoch's final one (averaged, prior corrected), and back before training continues."""
    if average:
        average.swap(net)
    bias = net.head.bias.detach().clone()
    net.shift_prior(prior_correction)
    yield
    with torch.no_grad():
        net.head.bias.copy_(bias)  # adding and subtracting would not give the same bits
    if average:
        average.swap(net)
    net.train()


class _BatchLoss:
    """Computes the mean loss of a batch and its gradient, in parts where the batch does not fit into memory."""

    def __init__(
        self, net: Net, training: Training, optimiser: torch.optim.Optimizer, scaler: torch.amp.GradScaler
    ) -> None:
        self.net = net
        self.training = training
        self.optimiser = optimiser
        self.scaler = scaler

    def backward(self, batch: Batch, mixed: MixedBatch | None, parts: int) -> torch.Tensor:
        self.optimiser.zero_grad(set_to_none=True)
        n = len(batch.rows)
        images, metadata = (mixed.images, mixed.metadata) if mixed else (batch.images, batch.metadata)
        total = torch.zeros((), device=images.device)
        parts = max(1, min(parts, n // 2))  # batch norm needs two rows
        ends = [n * part // parts for part in range(parts + 1)]
        for rows in map(slice, ends, ends[1:]):
            outputs, _ = self.net.outputs(images[rows], metadata[rows])
            loss = self._rows(outputs, batch, rows)
            if mixed:
                loss = mixed.loss(loss, self._rows(outputs, batch, mixed.partner[rows]))
            part = loss.sum() / n
            self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            total += part.detach()
        return total

    def _rows(self, outputs: torch.Tensor, batch: Batch, rows: slice | torch.Tensor) -> torch.Tensor:
        """Returns the losses of ``outputs`` against the labels of these ``rows`` of the batch."""
        allowed, smoothing, gamma = batch.allowed[rows], self.training.label_smoothing, self.training.focal_gamma
        loss = row_losses(outputs, allowed, label_smoothing=smoothing, focal_gamma=gamma)
        if batch.soft is not None:
            p = batch.soft[rows]
            # A loss of NaN, though it is not chosen, would make its gradient NaN.
            soft = soft_losses(
                outputs, torch.nan_to_num(p, nan=0.5), self.net.positive, label_smoothing=smoothing, focal_gamma=gamma
            )
            loss = torch.where(p.isnan(), loss, soft)
        if self.training.positive_weight == 1:
            return loss
        is_positive = ~(allowed & ~self.net.positive).any(dim=1)
        return torch.where(is_positive, self.training.positive_weight * loss, loss)


def _parameter_groups(net: Net, training: Training) -> list[dict[str, Any]]:
    """Groups parameters: no weight decay of biases and norm scales; lower rates of lower layers by ``layer_decay``."""
    groups: list[dict[str, Any]] = []
    own = [net.head, *([net.fusion] if net.fusion is not None else [])]
    if training.layer_decay < 1:
        groups += param_groups_layer_decay(
            net.backbone, weight_decay=training.weight_decay, layer_decay=training.layer_decay
        )
    else:
        own.insert(0, net.backbone)
    parameters = [p for module in own for p in module.parameters()]
    groups.append({"params": [p for p in parameters if p.ndim > 1], "weight_decay": training.weight_decay})
    groups.append({"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0})
    return groups


def _schedule(step: int, *, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _auc(
    net: Net, images: CachedImages, positive: NDArray[np.bool_], *, batch_size: int, device: torch.device, workers: int
) -> float:
    made = predict(net, images, batch_size=batch_size, device=device, workers=workers)
    is_positive = ~(images.allowed & ~positive).any(axis=1)
    return float(roc_auc_score(is_positive, made.logit))

"""The training loop of one net on one fold's training rows, straight down. The last weights are the model."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F

from image_models.dataset import CachedImages, load, train_batches
from image_models.errors import ImageError
from image_models.net import Net


def train_net(
    net: Net,
    images: CachedImages,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    device: torch.device,
    workers: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> pd.DataFrame:
    """Fine-tune ``net`` in place with AdamW, a warm-up of a tenth of the steps and a cosine down to zero.

    No validation rows come in here: no epoch is chosen, so the fold that is scored has chosen nothing. ``progress`` is
    told the images of each step. Returns the history, a row an epoch: epoch, loss (mean training cross-entropy), lr (at
    its end), images_per_s. Raises ImageError when the loss is no number any more.
    """
    net = net.to(device).train()
    decay = [p for p in net.parameters() if p.ndim > 1]
    no_decay = [p for p in net.parameters() if p.ndim <= 1]  # biases and norm scales: shrinking them only hurts
    optimiser = torch.optim.AdamW(
        [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}], lr=lr
    )
    steps = epochs * len(train_batches(len(images), batch_size=batch_size, seed=seed, epoch=0))
    warmup = max(1, steps // 10)

    def rate(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    torch.manual_seed(seed)  # dropout, where a backbone has it
    step, history = 0, []
    for epoch in range(epochs):
        started, losses = time.perf_counter(), []
        images.epoch = epoch
        batches = train_batches(len(images), batch_size=batch_size, seed=seed, epoch=epoch)
        for batch, target in load(images, batches, workers=workers, pin=device.type == "cuda"):
            for group in optimiser.param_groups:
                group["lr"] = lr * rate(step)
            logit, _ = net(batch.to(device, non_blocking=True))
            loss = F.binary_cross_entropy_with_logits(logit, target.to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.detach())
            step += 1
            progress(len(batch))
        mean_loss = float(torch.stack(losses).mean())
        if not np.isfinite(mean_loss):
            raise ImageError(f"training collapsed in epoch {epoch + 1} (loss {mean_loss}): lower `lr`, now {lr}")
        seen = sum(map(len, batches))
        history.append((epoch + 1, mean_loss, lr * rate(step - 1), seen / (time.perf_counter() - started)))
    return pd.DataFrame(history, columns=["epoch", "loss", "lr", "images_per_s"])

"""Fits a set transformer: groups are seen as a whole, in parts or row by row, and inner groups choose when it stops."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

from dermstack.errors import ImageError
from image_models.set_transformer import (
    ROWS_AT_ONCE,
    Codes,
    Floats,
    SetNet,
    SetTransformer,
    linear_features,
    one_thread,
    whole_groups,
)
from image_models.settings import SetTransformerSettings

MAX_PART = 256  # rows of a group that are seen together in training; a larger group is parted at random in each epoch
_STRENGTHS = (1e-3, 1e-2, 1e-1)  # inverse ridge strengths of the linear term, for standardised columns


def fit_set_net(
    x: Floats,
    y: NDArray[np.generic],
    group: Codes,
    inner: NDArray[np.bool_],
    *,
    columns: tuple[str, ...],
    settings: SetTransformerSettings,
    seed: int,
    positive_weight: float = 1.0,
    epochs: int | None = None,
) -> SetNet:
    """Fits a set transformer to rows ``x`` (n, columns), ``y`` (n,) of 0 and 1, of the groups ``group`` (n,).

    The ridge strength of the linear term and the number of epochs are those of the least log loss on the rows that
    ``inner`` (n,) marks, whole groups, after a fit to the others; then it is fitted to all rows for as many epochs.
    With ``epochs`` it is that number, and the strength alone is chosen. The loss of positive rows has the weight
    ``positive_weight``.

    In each epoch every row is seen once: a group as a whole, as random parts, or each row alone, so that the model is
    right for a row that comes without its group. Raises ImageError where no finite loss is reached.
    """
    target = np.asarray(y, np.float32)
    draws = _Draws(settings, seed, positive_weight)
    # Torch's own generator serves the initial weights and dropout, and no thread count but one: the bytes of a result
    # must not depend on where it was computed.
    with one_thread(), torch.random.fork_rng(devices=[]):
        strength, epochs = _chosen(x, target, group, inner, draws, epochs)
        fit = _Training(x, target, group, draws)
        fit.start(strength)
        for _ in range(epochs):
            fit.epoch()
    return SetNet(fit.averaged.double().eval(), columns, settings, epochs)


@dataclass(frozen=True)
class _Draws:
    settings: SetTransformerSettings
    seed: int
    positive_weight: float


class _Line:
    """The linear term: a ridge logistic regression of rows in their groups and, in the share ``alone``, of rows alone.

    The network learns what it lacks, so that few positive rows, from which attention learns little, cost nothing.
    """

    def __init__(self, rows: _Rows, alone: float) -> None:
        with_others = np.flatnonzero((np.bincount(rows.group)[rows.group] > 1) & (alone > 0))
        x = [linear_features(rows.x, group).numpy() for group in (rows.group, np.arange(len(rows.group)))]
        weight = rows.weight.numpy().astype(np.float64)
        self.x = np.concatenate([x[0], x[1][with_others]]).astype(np.float64)
        self.y = np.concatenate([rows.y.numpy(), rows.y.numpy()[with_others]])
        self.weight = np.concatenate([weight, alone * weight[with_others]])
        self.weight[with_others] *= 1 - alone

    def fit(self, strength: float) -> LogisticRegression:
        """Returns the regression with this inverse ridge strength."""
        seen = self.weight > 0
        model = LogisticRegression(C=strength, max_iter=1000)
        return model.fit(self.x[seen], self.y[seen], sample_weight=self.weight[seen])


class _Rows:
    """Standardised rows, sorted by group, with targets and weights of the loss."""

    def __init__(self, net: SetTransformer, x: Floats, y: NDArray[np.float32], group: Codes, draws: _Draws) -> None:
        order = np.argsort(group, kind="stable")
        self.group = np.unique(group[order], return_inverse=True)[1]
        self.x = net.standardised(torch.from_numpy(x[order].astype(np.float32)))
        self.y = torch.from_numpy(y[order])
        self.weight = torch.where(self.y == 1, draws.positive_weight, 1.0)


class _Training:
    """A training in progress: the network, its moving average, and the rows."""

    def __init__(self, x: Floats, y: NDArray[np.float32], group: Codes, draws: _Draws) -> None:
        self.settings, self.draws, self.done, self.steps = draws.settings, draws, 0, 0
        torch.manual_seed(draws.seed)
        self.net = SetTransformer(x.shape[1], draws.settings)
        mean, scale = _moments(x)
        self.net.mean.copy_(torch.from_numpy(mean))
        self.net.scale.copy_(torch.from_numpy(scale))
        self.net.line.requires_grad_(False)
        self.rows = _Rows(self.net, x, y, group, draws)
        self.line = _Line(self.rows, self.settings.alone)

    def start(self, strength: float) -> None:
        """Sets the linear term, with this inverse ridge strength, from which the training starts."""
        fitted = self.line.fit(strength)
        self.net.line.weight.copy_(torch.from_numpy(fitted.coef_))
        self.net.line.bias.copy_(torch.from_numpy(fitted.intercept_))
        self.averaged = copy.deepcopy(self.net).eval()
        trained = [value for value in self.net.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [value for value in trained if value.ndim > 1], "weight_decay": self.settings.weight_decay},
                {"params": [value for value in trained if value.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self.settings.lr,
        )

    def epoch(self) -> None:
        """Trains one epoch; its draws depend on the seed and the number of the epoch only."""
        rng = np.random.default_rng((self.draws.seed, self.done))
        self.net.train()
        for drawn, parts in batches(self.rows.group, self.settings, rng):
            at = torch.from_numpy(drawn)
            made = self.net(self.rows.x[at], parts)
            loss = F.binary_cross_entropy_with_logits(made, self.rows.y[at], self.rows.weight[at])
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
            nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
            self.optimizer.step()
            self.steps += 1
            self._average()
        self.done += 1

    @torch.no_grad()
    def _average(self) -> None:
        """Moves the average of the weights; its memory grows with the number of steps."""
        decay = min(self.settings.ema, (1 + self.steps) / (10 + self.steps))
        for kept, now in zip(self.averaged.parameters(), self.net.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)


def batches(
    group: Codes, settings: SetTransformerSettings, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yields the rows of each batch of an epoch and the part of each row; rows of one part see each other.

    ``group`` (n,) holds codes 0, 1, … in ascending order. Each row is in one batch. A group is seen as a whole, or, in
    the share ``alone`` of all cases, each of its rows alone, or, in the share ``subsets``, as random parts of it. Those
    of more than `MAX_PART` rows are always parted.
    """
    sizes = np.bincount(group)
    mode, several = rng.random(len(sizes)), rng.integers(2, np.maximum(sizes, 2) + 1)
    fewest = -(-sizes // MAX_PART)
    count = np.where(mode < settings.alone + settings.subsets, np.maximum(several, fewest), fewest)
    place = np.floor(rng.random(len(group)) * count[group]).astype(np.intp)
    within = np.arange(len(group)) - (np.cumsum(sizes) - sizes)[group]
    place = np.where((mode < settings.alone)[group], within, place)
    part = np.unique(group * (int(sizes.max()) + 1) + place, return_inverse=True)[1]
    key = rng.permutation(int(part.max()) + 1)[part]  # the place of a row's part in this epoch
    rows = np.argsort(key, kind="stable")
    key = key[rows]
    starts = np.searchsorted(key, np.arange(int(key[-1]) + 1))  # first row of each part
    batch = (starts // settings.batch_rows)[key]  # parts are never divided
    for one in np.split(np.arange(len(rows)), np.flatnonzero(np.diff(batch)) + 1):
        yield rows[one], key[one]


def _chosen(
    x: Floats, y: NDArray[np.float32], group: Codes, inner: NDArray[np.bool_], draws: _Draws, epochs: int | None
) -> tuple[float, int]:
    """Returns the ridge strength and number of epochs with the least loss on ``inner`` of a fit to the other rows.

    The number is ``epochs`` where that is given.
    """
    fit = _Training(x[~inner], y[~inner], group[~inner], draws)
    held = _Rows(fit.net, x[inner], y[inner], group[inner], draws)
    losses = []
    for strength in _STRENGTHS:
        fit.start(strength)
        losses.append(_loss(fit.averaged, held, draws.settings.alone))
    best, chosen = min(losses), 0
    strength = _STRENGTHS[losses.index(best)]
    if epochs is not None:
        return strength, epochs
    fit.start(strength)
    for epoch in range(1, draws.settings.epochs + 1):
        fit.epoch()
        loss = _loss(fit.averaged, held, draws.settings.alone)
        if not np.isfinite(loss):
            raise ImageError(f"the set transformer's loss is {loss} after epoch {epoch}: lower `params.lr`")
        if loss < best:
            best, chosen = loss, epoch
        elif epoch - chosen >= draws.settings.patience:
            break
    return strength, chosen


@torch.inference_mode()
def _loss(net: SetTransformer, rows: _Rows, alone: float) -> float:
    """Returns the mean log loss of the rows in their groups and, in the share ``alone``, of the same rows alone."""
    total = 0.0
    for group, share in ((rows.group, 1 - alone), (np.arange(len(rows.group)), alone)):
        if share > 0:
            logit = torch.cat([net(rows.x[one], group[one]) for one in whole_groups(group, ROWS_AT_ONCE)])
            loss = F.binary_cross_entropy_with_logits(logit.double(), rows.y.double(), rows.weight.double())
            total += share * float(loss)
    return total


def _moments(x: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns mean and standard deviation of each column's known values, 1 for a column that is constant."""
    values = x.astype(np.float64)
    known = np.maximum((~np.isnan(values)).sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / known
    std = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / known)
    return mean, np.where(std > 1e-9, std, 1.0)

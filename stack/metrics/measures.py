"""What scores and probabilities are worth on some rows, in plain numbers: the same for training and for validation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stack.errors import DataError
from stack.metrics.calibration import recalibration
from stack.metrics.curve import checked
from stack.metrics.delong import clustered_auc
from stack.metrics.intervals import Interval, interval
from stack.metrics.proportion import proportion
from stack.metrics.scores import brier, expected_calibration_error

_CHANCES = 20  # data sets drawn to see what a perfectly calibrated p has for an ECE


@dataclass(frozen=True)
class Measures:
    """Intervals are 95 %, by group; those of scores by bootstrap, stratified by groups with and without positives."""

    rows: int
    groups: int
    positives: int
    prevalence: Interval
    auc: Interval
    auc_se: float  # DeLong's, clustered by group
    pauc80: Interval
    ap: Interval
    log_loss: Interval
    brier: float
    ece: float
    ece_by_chance: float  # what the same p would have for an ECE if it were right: not 0 on few rows
    in_the_large: Interval
    slope: Interval  # NaN where p parts the classes
    intercept: float


def measure(y: ArrayLike, score: ArrayLike, p: ArrayLike, group: ArrayLike, *, draws: int = 1000) -> Measures:
    """Of scores (n,) and calibrated `p` (n,) for targets `y` (n,) in groups (n,). Raises as `check_classes`."""
    check_classes(y, group)
    positive, p = checked(y, p)
    line = recalibration(positive, p, group)
    loss = interval("logloss", positive, p, group, draws=draws)  # of its negative
    return Measures(
        rows=len(positive),
        groups=len(pd.unique(np.asarray(group, dtype=object))),
        positives=int(positive.sum()),
        prevalence=proportion(positive, group),
        auc=interval("auc", positive, score, group, draws=draws),
        auc_se=clustered_auc(positive, score, group).interval().se,
        pauc80=interval("pauc80", positive, score, group, draws=draws),
        ap=interval("ap", positive, score, group, draws=draws),
        log_loss=Interval(-loss.value, -loss.high, -loss.low, loss.se),
        brier=brier(positive, p),
        ece=expected_calibration_error(positive, p),
        ece_by_chance=_ece_by_chance(p),
        in_the_large=line.in_the_large,
        slope=line.slope,
        intercept=line.intercept,
    )


def check_classes(y: ArrayLike, group: ArrayLike) -> None:
    """Raise DataError where fewer than two groups hold a positive, or a negative: there is no interval then."""
    positive, group = np.asarray(y) == 1, np.asarray(group, dtype=object)
    for name, rows in (("positive", positive), ("negative", ~positive)):
        if not rows.any():
            raise DataError(f"a single class: none of the {len(positive):,} rows is {name}; AUC needs both classes")
        if (n := len(pd.unique(group[rows]))) < 2:
            raise DataError(
                f"all {int(rows.sum())} {name} rows are of {n} group ({group[rows][0]}): an interval by group needs "
                "two groups with each class, gather more rows"
            )


def plain(value: Any) -> Any:
    """Dataclasses, tuples and NaN as JSON has them: dicts, lists and null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measures_of(content: Mapping[str, Any]) -> Measures:
    """What `plain` made JSON of."""
    return Measures(**{name: _restored(value) for name, value in content.items()})


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Interval(**{name: _restored(entry) for name, entry in value.items()})
    return math.nan if value is None else value


def _ece_by_chance(p: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([expected_calibration_error(rng.random(p.size) < p, p) for _ in range(_CHANCES)]))

"""Metrics of one set of rows with their intervals, and how they are kept as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dermstack.errors import DataError
from stack.metrics.calibration import recalibration
from stack.metrics.intervals import Interval, clustered_auc, interval, proportion
from stack.metrics.scores import brier, checked, expected_calibration_error

_ECE_DRAWS = 20  # data sets drawn to estimate the ECE of a perfectly calibrated p


@dataclass(frozen=True)
class Measures:
    """Metrics of one set of rows, with 95 % intervals by group.

    Intervals of scores are bootstrapped, stratified by groups with and without positives.
    """

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
    ece_by_chance: float  # mean ECE of the same p if it were calibrated; not 0 on few rows
    in_the_large: Interval
    slope: Interval  # NaN where p separates the classes
    intercept: float


def measure(y: ArrayLike, score: ArrayLike, p: ArrayLike, group: ArrayLike, *, draws: int = 1000) -> Measures:
    """Returns the metrics of scores (n,) and calibrated `p` (n,) for targets `y` (n,) in groups (n,).

    Raises DataError as `check_classes` does.
    """
    check_classes(y, group)
    positive, p = checked(y, p)
    line = recalibration(positive, p, group)
    loss = interval("logloss", positive, p, group, draws=draws)  # negated
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


Purpose = Literal["evaluation", "recalibration"]
_NEEDS: dict[Purpose, tuple[str, str]] = {  # of rows of each class, and of groups with each class
    "evaluation": (
        "AUC needs both classes, add such rows",
        "an interval by group needs two groups with each class, add rows of other groups",
    ),
    "recalibration": (
        "recalibration by labels compares the risks with how many rows are positive, and needs two groups with each "
        "class: label more images (without --labels and --out, recalibrate says how many), or give --prevalence "
        "instead of --labels",
        "recalibration needs two groups with each class, to tell a wrong risk from one odd group: label images of "
        "other groups, or give --prevalence instead of --labels",
    ),
}


def check_classes(y: ArrayLike, group: ArrayLike, *, purpose: Purpose = "evaluation") -> None:
    """Raises DataError where fewer than two groups have a positive, or a negative, which ``purpose`` needs."""
    of_rows, of_groups = _NEEDS[purpose]
    positive, group = np.asarray(y) == 1, np.asarray(group, dtype=object)
    for name, rows in (("positive", positive), ("negative", ~positive)):
        if not rows.any():
            raise DataError(f"a single class: none of the {len(positive):,} rows is {name}; {of_rows}")
        if (n := len(pd.unique(group[rows]))) < 2:
            raise DataError(f"all {int(rows.sum())} {name} rows are of {n} group ({group[rows][0]}): {of_groups}")


def jsonable(value: Any) -> Any:
    """Returns `value` for JSON: dataclasses as dicts, tuples as lists, NaN and inf as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def measures_from_json(content: Mapping[str, Any]) -> Measures:
    """Returns the Measures that `jsonable` stored."""
    return Measures(**{name: _restored(value) for name, value in content.items()})


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Interval(**{name: _restored(entry) for name, entry in value.items()})
    return math.nan if value is None else value


def _ece_by_chance(p: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([expected_calibration_error(rng.random(p.size) < p, p) for _ in range(_ECE_DRAWS)]))

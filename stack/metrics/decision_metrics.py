"""Decisions as the field counts them: reviews and biopsies for each positive, top images of a patient, net benefit.

Each is a ratio of sums over rows, so that its interval comes from sums over groups. A name holds its argument:

- ``reviews@0.9``: images reviewed for each positive found, where images are reviewed from the highest score down until
  90 % of the positives are found. Unit: images.
- ``nnb@0.05``: number needed to biopsy, the images called positive for each true positive among them (1 / PPV), where
  every image with a risk of 5 % or more is biopsied. Unit: images.
- ``net_benefit@0.05``: true positives minus the exchange rate 0.05 / 0.95 times false positives, for each image
  (Vickers & Elkin 2006). Unit: true positives for each image.
- ``top@3``: share of positive images that are among the 3 highest scores of their own patient ("ugly duckling").
  Patients with 3 images or fewer are left out, as nothing is chosen there; equal scores count against the score.
  Unit: positive images of the other patients.

``reviews`` and ``nnb`` are negated, so that higher is better.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError, DataError

Floats = NDArray[np.float64]
Kind = Literal["reviews", "nnb", "net_benefit", "top"]

EXAMPLES = ("reviews@0.9", "nnb@0.05", "net_benefit@0.05", "top@3")
NEGATED: tuple[Kind, ...] = ("reviews", "nnb")
_OF_RISK: tuple[Kind, ...] = ("nnb", "net_benefit")  # they compare a probability with a threshold
_ARGUMENT = {
    "reviews": r"0?\.\d+|1|1\.0*", "nnb": r"0?\.\d+", "net_benefit": r"0?\.\d+", "top": r"[1-9]\d{0,3}",
}  # fmt: skip


@dataclass(frozen=True)
class DecisionMetric:
    """A metric of decisions: its kind and the sensitivity, risk or number of images in its name."""

    kind: Kind
    at: float

    @property
    def name(self) -> str:
        """Its name, as `decision_metric` takes it."""
        return f"{self.kind}@{self.at:g}"

    @property
    def needs_p(self) -> bool:
        """Whether it needs probabilities, not just the order of scores."""
        return self.kind in _OF_RISK

    @property
    def needs_patients(self) -> bool:
        """Whether it needs the patient of each row."""
        return self.kind == "top"

    @property
    def label(self) -> str:
        """What it measures, for pages; negated ones say so."""
        return {
            "reviews": f"images reviewed per positive found at {self.at:.0%} sensitivity, negated",
            "nnb": f"number needed to biopsy at a risk of {self.at:.3g}, negated",
            "net_benefit": f"net benefit at a risk of {self.at:.3g}",
            "top": f"top-{self.at:.0f} sensitivity within a patient",
        }[self.kind]


def decision_metric(name: str) -> DecisionMetric | None:
    """Returns the metric of a name such as ``top@3``; None for a name of another kind of metric.

    Raises ConfigError for an argument that is no sensitivity, risk or number.
    """
    kind, at, argument = name.partition("@")
    if kind not in _ARGUMENT or not at:
        return None
    if not re.fullmatch(_ARGUMENT[kind], argument) or float(argument) == 0:
        example = next(one for one in EXAMPLES if one.startswith(f"{kind}@"))
        what = "a whole number from 1" if kind == "top" else "a number between 0 and 1"
        raise ConfigError(f"metric {name!r}: {kind}@ is followed by {what}, such as {example}")
    return DecisionMetric(kind, float(argument))  # type: ignore[arg-type]  # a key of _ARGUMENT


def row_parts(
    metric: DecisionMetric, positive: NDArray[np.bool_], s: NDArray[np.float64], patient: ArrayLike | None
) -> Floats:
    """Returns what each row adds to the sums (n, c) of which `ratio` makes the metric; not for ``reviews``.

    Raises DataError for values outside of 0 to 1 where these are needed, and without patients where these are.
    """
    if metric.needs_p:
        if ((s < 0) | (s > 1)).any():
            raise DataError(f"{metric.name} needs risks in [0, 1]: give calibrated probabilities")
        called = s >= metric.at
        return np.column_stack([called & positive, called & ~positive, np.ones(len(s))]).astype(np.float64)
    if patient is None:
        raise DataError(f"{metric.name} needs the patient of each row: give the groups")
    codes, _ = pd.factorize(np.asarray(patient, dtype=object))
    rank = pd.Series(np.asarray(s, np.float64)).groupby(codes).rank(method="max", ascending=False).to_numpy()
    counted = positive & (np.bincount(codes)[codes] > metric.at)
    return np.column_stack([counted & (rank <= metric.at), counted]).astype(np.float64)


def ratio(metric: DecisionMetric, sums: Floats) -> Floats:
    """Returns the metric from sums (c, …) of `row_parts`; NaN where none is called positive, or no patient counts."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if metric.kind == "top":
            made = np.where(sums[1] > 0, sums[0] / sums[1], np.nan)
        elif metric.kind == "nnb":
            made = np.where(sums[0] > 0, -(sums[0] + sums[1]) / sums[0], np.nan)
        else:
            made = (sums[0] - sums[1] * metric.at / (1 - metric.at)) / sums[2]
    return np.asarray(made, np.float64)


def by_chance(metric: DecisionMetric, y: ArrayLike, patient: ArrayLike) -> float:
    """Returns what the metric is on average for scores without any information; NaN for net benefit."""
    positive = np.asarray(y) == 1
    if metric.kind == "net_benefit":
        return float("nan")
    if metric.kind != "top":
        return float(-1 / positive.mean())
    codes, _ = pd.factorize(np.asarray(patient, dtype=object))
    rows = np.bincount(codes)[codes]
    counted = positive & (rows > metric.at)
    return float((metric.at / rows[counted]).mean()) if counted.any() else float("nan")

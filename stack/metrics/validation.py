"""External validation: what an ensemble is worth on rows it never met, against what training promised."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stack.errors import DataError
from stack.metrics.calibration import recalibration, reliability
from stack.metrics.decisions import AIMS, OperatingPoint, operating_point_at, operating_points
from stack.metrics.intervals import Z95, Interval, clustered_auc, interval, proportion
from stack.metrics.scores import auc, brier, checked, expected_calibration_error
from stack.metrics.subgroups import find_subgroups, subgroups

_ECE_DRAWS = 20  # data sets drawn to see what a perfectly calibrated p has for an ECE


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


def jsonable(value: Any) -> Any:
    """Dataclasses, tuples and NaN as JSON has them: dicts, lists and null."""
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
    """What `jsonable` made JSON of."""
    return Measures(**{name: _restored(value) for name, value in content.items()})


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Interval(**{name: _restored(entry) for name, entry in value.items()})
    return math.nan if value is None else value


def _ece_by_chance(p: np.ndarray) -> float:
    rng = np.random.default_rng(0)
    return float(np.mean([expected_calibration_error(rng.random(p.size) < p, p) for _ in range(_ECE_DRAWS)]))


AGREES, LOWER, HIGHER = "agrees", "lower than promised, beyond noise", "higher than promised, beyond noise"
UNDECIDED, NOT_COMPARABLE = "can't be told", "doesn't compare: the prevalence differs"


@dataclass(frozen=True)
class InternalValidation:
    """What training says of new rows, from out-of-fold rows that neither blend nor calibration had seen."""

    objective: str
    measures: Measures
    points: tuple[OperatingPoint, ...]
    subgroups: tuple[dict[str, Any], ...]  # the columns of `stack.metrics.subgroups`


@dataclass(frozen=True)
class Comparison:
    """A quantity as promised and as found. They agree where they differ by less than ``noise``."""

    quantity: str
    promised: float
    promised_se: float
    found: float
    found_se: float
    difference: float  # found less promised
    noise: float  # 1.96 √(promised_se² + found_se²)
    verdict: str


@dataclass(frozen=True)
class PointOutcome:
    """One threshold that training fixed: what it promised there, what it does here."""

    promised: OperatingPoint
    found: OperatingPoint
    sensitivity: Comparison
    specificity: Comparison


@dataclass(frozen=True)
class SelectedThreshold:
    """What the best threshold of these very rows reaches: selected on them, so it flatters."""

    aim: str  # what is held: sensitivity or specificity
    level: float
    other: Interval  # the highest value of the other one


@dataclass(frozen=True)
class OutOfDistribution:
    """Images that lie further out than 99 % of the training images, and the AUC of the rest; NaN where it has none."""

    rows: int
    positives: int
    share: float
    auc_near: Interval
    auc_far: float


@dataclass(frozen=True)
class Validation:
    """All that external validation found. Plain numbers: `stack.metrics.validation.jsonable` makes JSON of it."""

    experiment: str
    bundle: str  # its fingerprint
    promise: InternalValidation
    found: Measures
    comparisons: tuple[Comparison, ...]
    points: tuple[PointOutcome, ...]
    selected_on_these_rows: tuple[SelectedThreshold, ...]
    reliability: tuple[dict[str, float], ...]  # the columns of `stack.metrics.calibration`
    subgroups: tuple[dict[str, Any], ...]  # those of `stack.metrics.subgroups`, and ``promised_auc``
    far: OutOfDistribution | None  # None where the bundle can't tell
    dropped: int  # rows whose image can't be read
    notes: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Whether the AUC is as promised."""
        return self.comparison("auc").verdict

    @property
    def prevalence_differs(self) -> bool:
        """Whether the share of positives is another than in training, beyond noise."""
        return self.comparison("prevalence").verdict in (LOWER, HIGHER)

    def comparison(self, quantity: str) -> Comparison:
        """One of ``comparisons`` by its name."""
        return next(entry for entry in self.comparisons if entry.quantity == quantity)


def internal_validation(
    objective: str,
    y: ArrayLike,
    score: ArrayLike,
    p: ArrayLike,
    split_group: ArrayLike,
    rows: pd.DataFrame,
    *,
    draws: int = 1000,
) -> InternalValidation:
    """From training rows (n,) that were scored by what had not seen them; ``rows``: age, sex, site of each."""
    table = subgroups(y, score, split_group, find_subgroups(rows), draws=draws)
    measures = measure(y, score, p, split_group, draws=draws)
    return InternalValidation(objective, measures, operating_points(y, p, split_group), _records(table))


def internal_validation_from_json(content: Mapping[str, Any]) -> InternalValidation:
    """What `stack.metrics.validation.jsonable` made JSON of."""
    points = []
    for entry in content["points"]:
        shares = {name: entry[name] for name in ("sensitivity", "specificity", "ppv", "npv")}
        shares = {
            name: Interval(**{k: math.nan if v is None else v for k, v in of.items()}) for name, of in shares.items()
        }
        points.append(OperatingPoint(entry["aim"], entry["level"], entry["threshold"], **shares))
    return InternalValidation(
        content["objective"], measures_from_json(content["measures"]), tuple(points), tuple(content["subgroups"])
    )


def validate(
    promise: InternalValidation,
    made: pd.DataFrame,
    y: ArrayLike,
    rows: pd.DataFrame,
    *,
    experiment: str,
    bundle: str,
    dropped: int = 0,
    notes: Sequence[str] = (),
    draws: int = 1000,
) -> Validation:
    """Judge predictions ``made`` (n: score, p_calibrated, perhaps far) by their targets `y` (n,).

    ``rows`` has group, age, sex and site of each, in the same order. Raises DataError as `check_classes`.
    """
    y = np.asarray(y)
    score, p = made["score"].to_numpy(np.float64), made["p_calibrated"].to_numpy(np.float64)
    group = rows["group"].to_numpy(object)
    found = measure(y, score, p, group, draws=draws)
    parts = _records(subgroups(y, score, group, find_subgroups(rows), draws=draws))
    return Validation(
        experiment=experiment,
        bundle=bundle,
        promise=promise,
        found=found,
        comparisons=tuple(_comparisons(promise.measures, found)),
        points=tuple(_outcome(point, y, p, group) for point in promise.points),
        selected_on_these_rows=tuple(_selected(y, score, group, draws)),
        reliability=tuple(_records(reliability(y, p, group))),
        subgroups=tuple(_with_promised_auc(parts, promise)),
        far=_out_of_distribution(y, score, group, made["far"].to_numpy(bool), draws) if "far" in made else None,
        dropped=dropped,
        notes=tuple(notes),
    )


def compare(quantity: str, promised: float, promised_se: float, found: float, found_se: float) -> Comparison:
    """Whether two independent estimates differ by more than noise; a standard error of 0 or NaN says nothing."""
    difference, noise = found - promised, Z95 * math.hypot(promised_se, found_se)
    if not (promised_se > 0 and found_se > 0 and math.isfinite(difference)):
        verdict = UNDECIDED
    elif abs(difference) < noise:
        verdict = AGREES
    else:
        verdict = HIGHER if difference > 0 else LOWER
    return Comparison(quantity, promised, promised_se, found, found_se, difference, noise, verdict)


def _comparisons(promised: Measures, found: Measures) -> list[Comparison]:
    """Another prevalence moves AP, log loss and the mean of p by itself; AUC and slope it leaves alone.

    The logit of a true p moves by a constant then, which the slope doesn't see.
    """

    def of(name: str) -> Comparison:
        a, b = getattr(promised, name), getattr(found, name)
        return compare(name, a.value, a.se, b.value, b.se)

    prevalence = of("prevalence")
    made = [
        prevalence,
        compare("auc", promised.auc.value, promised.auc_se, found.auc.value, found.auc_se),
        *(of(name) for name in ("pauc80", "slope", "ap", "log_loss", "in_the_large")),
    ]
    if prevalence.verdict == AGREES:
        return made
    moved = {"ap", "log_loss", "in_the_large"}
    return [
        Comparison(**{**vars(entry), "verdict": NOT_COMPARABLE}) if entry.quantity in moved else entry for entry in made
    ]


def _outcome(point: OperatingPoint, y: np.ndarray, p: np.ndarray, group: np.ndarray) -> PointOutcome:
    here = operating_point_at(y, p, group, point.aim, point.level, point.threshold)
    pairs = ((name, getattr(point, name), getattr(here, name)) for name in ("sensitivity", "specificity"))
    return PointOutcome(point, here, *(compare(name, a.value, a.se, b.value, b.se) for name, a, b in pairs))


def _selected(y: np.ndarray, score: np.ndarray, group: np.ndarray, draws: int) -> list[SelectedThreshold]:
    other = {"sensitivity": "specificity", "specificity": "sensitivity"}
    return [
        SelectedThreshold(aim, level, interval(f"{other[aim]}@{level}", y, score, group, draws=draws))
        for aim, level in AIMS
    ]


def _out_of_distribution(
    y: np.ndarray, score: np.ndarray, group: np.ndarray, far: np.ndarray, draws: int
) -> OutOfDistribution:
    near = ~far
    has_both = len(pd.unique(group[near & (y == 1)])) >= 2 and bool((near & (y == 0)).any())
    of_near = interval("auc", y[near], score[near], group[near], draws=draws) if has_both else Interval(*[math.nan] * 4)
    of_far = auc(y[far], score[far]) if 0 < y[far].sum() < far.sum() else math.nan
    return OutOfDistribution(int(far.sum()), int(y[far].sum()), float(far.mean()), of_near, of_far)


def _with_promised_auc(found: Sequence[dict[str, Any]], promise: InternalValidation) -> list[dict[str, Any]]:
    promised = {(entry["by"], entry["subgroup"]): entry["auc"] for entry in promise.subgroups}
    return [{**entry, "promised_auc": promised.get((entry["by"], entry["subgroup"]))} for entry in found]


def _records(frame: pd.DataFrame) -> tuple[dict[str, Any], ...]:
    """Rows of a table, what is NaN as None."""
    return tuple(
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    )

"""External validation: compares the metrics of an ensemble on new rows to the estimates from training."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from stack.metrics.calibration import reliability
from stack.metrics.decisions import AIMS, OperatingPoint, operating_point_at, operating_points
from stack.metrics.expected_positives import CalibrationNoise, expected_positives, noise_of
from stack.metrics.gaps import AIMS_OF_GAPS, gaps
from stack.metrics.intervals import Z95, Interval, interval
from stack.metrics.joint import JointTest, correlation_of, joint_test, paired_draws
from stack.metrics.measures import Measures, measure, measures_from_json
from stack.metrics.review_band import ReviewCheck
from stack.metrics.scores import auc
from stack.metrics.subgroups import find_subgroups, subgroups

AGREES, LOWER, HIGHER = "agrees", "lower than expected, beyond noise", "higher than expected, beyond noise"
DIFFERS = "differs from the expectation, beyond noise"
UNDECIDED, NOT_COMPARABLE = "cannot be determined", "not comparable: the prevalence differs"
COLUMNS_MISSING = "not comparable: the expectation was made with columns that these rows lack"
_OBJECTIVES = {"auc": "auc", "pauc80": "pauc80", "ap": "ap", "logloss": "log_loss"}  # their names among quantities


@dataclass(frozen=True)
class InternalValidation:
    """Metrics expected on new rows: those of training rows held out from models, blend and calibration."""

    objective: str
    measures: Measures
    points: tuple[OperatingPoint, ...]
    subgroups: tuple[dict[str, Any], ...]  # the columns of `stack.metrics.subgroups.subgroups`


@dataclass(frozen=True)
class Comparison:
    """One quantity as estimated in training and on the new rows; they agree if they differ by less than ``noise``.

    Within a `Validation`, the noise of all compared metrics is that of one joint test.
    """

    quantity: str
    promised: float  # estimate from training
    promised_se: float
    found: float  # estimate on the new rows
    found_se: float
    difference: float  # found minus expected
    noise: float  # c √(promised_se² + found_se²); c is 1.96, or the joint test's critical value
    verdict: str


@dataclass(frozen=True)
class PointOutcome:
    """Operating point of one threshold chosen in training: as estimated there, and on the new rows."""

    promised: OperatingPoint
    found: OperatingPoint
    sensitivity: Comparison
    specificity: Comparison


@dataclass(frozen=True)
class SelectedThreshold:
    """Result of the best threshold for these rows; optimistic, since it was selected on them."""

    aim: str  # measure that reaches the level: sensitivity or specificity
    level: float
    other: Interval  # highest value of the other measure


@dataclass(frozen=True)
class OutOfDistribution:
    """Images with a larger distance to the training images than 99 % of those, and the AUC with and without them."""

    rows: int
    positives: int
    share: float
    auc_near: Interval  # AUC of the other images; NaN where they have too few of a class
    auc_far: float  # NaN where these images have a single class


@dataclass(frozen=True)
class Validation:
    """Result of external validation; `stack.metrics.measures.jsonable` converts it for JSON."""

    experiment: str
    bundle: str  # fingerprint of the bundle
    promise: InternalValidation
    found: Measures
    comparisons: tuple[Comparison, ...]
    points: tuple[PointOutcome, ...]
    selected_on_these_rows: tuple[SelectedThreshold, ...]
    reliability: tuple[dict[str, float], ...]  # the columns of `stack.metrics.calibration.reliability`
    subgroups: tuple[dict[str, Any], ...]  # the columns of `stack.metrics.subgroups.subgroups`, and ``promised_auc``
    far: OutOfDistribution | None  # None where the bundle does not measure the distance
    dropped: int  # rows whose image cannot be read
    notes: tuple[str, ...]
    joint: JointTest  # of all metrics that can be compared; the prevalence is not among them
    lacking: tuple[str, ...]  # columns that the expectation was made with, and that no row has here
    verdict: str  # AGREES or DIFFERS by the joint test; COLUMNS_MISSING or UNDECIDED where nothing can be compared
    expected_positives: Interval  # sum of p_calibrated, with the prediction interval of the positives
    review: ReviewCheck | None = None  # of the bundle's review band; None where it has none
    gaps: tuple[dict[str, Any], ...] = ()  # the columns of `stack.metrics.gaps.Gaps.table`, at thresholds of training
    gaps_critical: float = math.nan  # standard errors of their simultaneous intervals
    unit: str = "image"  # what a row is: an image, or a unit of several
    estimate: str = "nested"  # how the training estimate was made

    @property
    def apart(self) -> list[str]:
        """Names the metrics that differ from the expectation beyond noise; empty exactly where none does."""
        found = [entry for entry in self.comparisons if entry.quantity != "prevalence"]
        names = {"in_the_large": "calibration in the large"}
        named = [(names.get(entry.quantity, entry.quantity.replace("_", " ")), entry.verdict) for entry in found]
        for of in self.points:
            aim = f"{of.promised.aim} {of.promised.level:.0%}"
            named += [
                (f"{entry.quantity} at the threshold for {aim}", entry.verdict)
                for entry in (of.sensitivity, of.specificity)
            ]
        words = {LOWER: "lower", HIGHER: "higher"}
        return [f"{name} ({words[verdict]})" for name, verdict in named if verdict in words]

    @property
    def summary(self) -> str:
        """Returns the verdict as one sentence, with the joint test that it follows from."""
        tested = f"joint test of {self.joint.values} metrics, p = {self.joint.p:.2g}"
        if self.verdict == AGREES:
            partly = f", as far as rows without {' and '.join(self.lacking)} can be compared" if self.lacking else ""
            return f"agrees with the training estimate{partly} ({tested})"
        if self.verdict == DIFFERS:
            return f"differs from the training estimate beyond noise in {', '.join(self.apart)} ({tested})"
        if self.verdict == COLUMNS_MISSING:
            return f"cannot be compared with the training estimate, which was made with {' and '.join(self.lacking)}"
        return "it cannot be determined whether this agrees with the training estimate"

    @property
    def prevalence_differs(self) -> bool:
        """Whether the share of positives differs from training beyond noise."""
        return self.comparison("prevalence").verdict in (LOWER, HIGHER)

    @property
    def risks_are(self) -> str:
        """Returns "low" or "high" where the positives found lie outside the interval of those expected; else ""."""
        number, positives = self.expected_positives, self.found.positives
        if number.low <= positives <= number.high:
            return ""
        return "low" if positives > number.value else "high"

    def comparison(self, quantity: str) -> Comparison:
        """Returns the entry of ``comparisons`` for this quantity."""
        return next(entry for entry in self.comparisons if entry.quantity == quantity)


def internal_validation(
    objective: str,
    y: ArrayLike,
    score: ArrayLike,
    p: ArrayLike,
    split_group: ArrayLike,
    rows: pd.DataFrame,
    *,
    further: Mapping[str, str] | None = None,
    draws: int = 1000,
) -> InternalValidation:
    """Returns the metrics of training rows (n,) with held-out scores; ``rows`` has their age, sex and site.

    There are also subgroups by the ``further`` columns of words, as in `find_subgroups`.
    """
    table = subgroups(y, score, split_group, find_subgroups(rows, further), draws=draws)
    measures = measure(y, score, p, split_group, draws=draws)
    return InternalValidation(objective, measures, operating_points(y, p, split_group), _records(table))


def internal_validation_from_json(content: Mapping[str, Any]) -> InternalValidation:
    """Returns the InternalValidation that `jsonable` stored."""
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
    lacking: Sequence[str] = (),
    cost: Interval | None = None,
    further: Mapping[str, str] | None = None,
    noise: CalibrationNoise | None = None,
    draws: int = 1000,
) -> Validation:
    """Compares predictions ``made`` (n rows: score, p_calibrated, optionally far) to their targets `y` (n,).

    ``rows`` has group, age, sex and site in the same order. ``lacking`` names columns that the expectation was made
    with and that no row has here: then only the objective is compared, after ``cost``, its measured change on training
    rows without these columns, is added to the expectation. There are also subgroups by the ``further`` columns of
    words, as in `find_subgroups`. ``noise`` is that of the calibration of p; by default that of the training estimate.
    Raises DataError as `check_classes` does.
    """
    y = np.asarray(y)
    score, p = made["score"].to_numpy(np.float64), made["p_calibrated"].to_numpy(np.float64)
    group = rows["group"].to_numpy(object)
    found = measure(y, score, p, group, draws=draws)
    cut = find_subgroups(rows, further)
    parts = _records(subgroups(y, score, group, cut, draws=draws))
    fixed = [point for point in promise.points if (point.aim, point.level) in AIMS_OF_GAPS]
    between = gaps(y, score, p, group, cut, points=fixed)
    comparisons = _comparisons(promise.measures, found)
    points = [_outcome(point, y, p, group) for point in promise.points]
    if lacking:
        comparisons = _without_columns(comparisons, _OBJECTIVES.get(promise.objective, ""), cost)
        points = [_replaced(point, lambda entry: replace(entry, verdict=COLUMNS_MISSING)) for point in points]
    joint = _joint_test(comparisons, points, y, score, p, group, found, draws)
    comparisons = [entry if entry.quantity == "prevalence" else _rejudged(entry, joint) for entry in comparisons]
    points = [_replaced(point, lambda entry: _rejudged(entry, joint)) for point in points]
    judged = AGREES if joint.p >= 0.05 else DIFFERS
    return Validation(
        experiment=experiment,
        bundle=bundle,
        promise=promise,
        found=found,
        comparisons=tuple(comparisons),
        points=tuple(points),
        selected_on_these_rows=tuple(_selected(y, score, group, draws)),
        reliability=tuple(_records(reliability(y, p, group))),
        subgroups=tuple(_with_promised_auc(parts, promise)),
        far=_out_of_distribution(y, score, group, made["far"].to_numpy(bool), draws) if "far" in made else None,
        dropped=dropped,
        notes=tuple(notes),
        joint=joint,
        lacking=tuple(lacking),
        verdict=judged if joint.values else COLUMNS_MISSING if lacking else UNDECIDED,
        expected_positives=expected_positives(p, noise or noise_of(promise.measures)),
        gaps=_records(between.table),
        gaps_critical=between.critical,
    )


def compare(
    quantity: str, promised: float, promised_se: float, found: float, found_se: float, *, critical: float = Z95
) -> Comparison:
    """Compares two independent estimates; the verdict is undecided where a standard error is 0 or NaN."""
    difference, noise = found - promised, critical * math.hypot(promised_se, found_se)
    if not (promised_se > 0 and found_se > 0 and math.isfinite(difference)):
        verdict = UNDECIDED
    elif abs(difference) < noise:
        verdict = AGREES
    else:
        verdict = HIGHER if difference > 0 else LOWER
    return Comparison(quantity, promised, promised_se, found, found_se, difference, noise, verdict)


def _comparisons(promised: Measures, found: Measures) -> list[Comparison]:
    """Compares each quantity, except those that a different prevalence changes by itself.

    These are AP, log loss and calibration in the large; AUC and slope do not change: the logit of a calibrated p moves
    by a constant.
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


def _without_columns(comparisons: list[Comparison], objective: str, cost: Interval | None) -> list[Comparison]:
    """Leaves the prevalence and, if its cost is known, the objective to compare, with the cost added to its promise."""
    made = []
    for entry in comparisons:
        if entry.quantity == objective and cost is not None and entry.verdict != NOT_COMPARABLE:
            change = -cost.value if objective == "log_loss" else cost.value
            se = math.hypot(entry.promised_se, cost.se)
            made.append(compare(objective, entry.promised + change, se, entry.found, entry.found_se))
        else:
            made.append(entry if entry.quantity == "prevalence" else replace(entry, verdict=COLUMNS_MISSING))
    return made


def _joint_test(
    comparisons: Sequence[Comparison],
    points: Sequence[PointOutcome],
    y: np.ndarray,
    score: np.ndarray,
    p: np.ndarray,
    group: np.ndarray,
    found: Measures,
    draws: int,
) -> JointTest:
    """Tests all metrics that can be compared at once; their correlation is that of bootstrap draws of these rows."""
    named = {entry.quantity: entry for entry in comparisons if entry.quantity != "prevalence"}
    for number, of in enumerate(points):
        named |= {f"sensitivity {number}": of.sensitivity, f"specificity {number}": of.specificity}
    named = {name: entry for name, entry in named.items() if entry.verdict in (AGREES, LOWER, HIGHER)}
    if not named:
        return joint_test([], np.empty((0, 0)))
    drawn = paired_draws(
        y, score, p, group, thresholds=[of.promised.threshold for of in points],
        in_the_large=found.in_the_large.value, line=(found.intercept, found.slope.value), draws=draws,
    )  # fmt: skip
    z = [entry.difference / math.hypot(entry.promised_se, entry.found_se) for entry in named.values()]
    return joint_test(z, correlation_of([drawn[name] for name in named]))


def _rejudged(entry: Comparison, joint: JointTest) -> Comparison:
    """Returns the comparison with the noise and the verdict of the joint test, if it took part in it."""
    if entry.verdict not in (AGREES, LOWER, HIGHER):
        return entry
    return compare(
        entry.quantity, entry.promised, entry.promised_se, entry.found, entry.found_se, critical=joint.critical
    )


def _replaced(point: PointOutcome, change: Callable[[Comparison], Comparison]) -> PointOutcome:
    return replace(point, sensitivity=change(point.sensitivity), specificity=change(point.specificity))


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
    """Returns the rows of a table as dicts, with None for NaN."""
    return tuple(
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.to_dict("records")
    )

"""Metrics of decisions by a threshold of p: the decision curve (net benefit) and operating points."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import sparse

from dermstack.errors import DataError
from stack.metrics.decision_metrics import NEGATED, by_chance, decision_metric
from stack.metrics.intervals import Interval, bootstrap_sums, interval, proportion
from stack.metrics.scores import Bools, Floats, checked

N_THRESHOLDS = 60
_ROUND_RISKS = np.array([1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])


def decision_curve(
    y: ArrayLike,
    p: ArrayLike,
    split_group: ArrayLike,
    *,
    thresholds: ArrayLike | None = None,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the net benefit of acting where `p` (n,) reaches a threshold t (Vickers & Elkin 2006).

    Net benefit is the share of true positives among all rows minus t / (1 - t) times the share of false positives: a
    user who acts from t on accepts (1 - t) / t false positives for one true positive. Acting on no row has net benefit
    0. Columns: threshold; net_benefit with its 95 % interval low and high; treat_all, the net benefit of acting on
    all rows; gain, net_benefit minus the larger of treat_all and 0, with gain_low and gain_high; sensitivity; called,
    the share of rows acted on. Intervals are bootstrapped over split_groups. `thresholds` must be ascending; the
    default is `sensible_thresholds`.
    """
    positive, p = checked(y, p)
    cutoffs = sensible_thresholds(positive) if thresholds is None else np.asarray(thresholds, np.float64)
    # One sparse entry for each row, at the number of thresholds that p reaches; positives come after negatives.
    reached = np.searchsorted(cutoffs, np.asarray(p, np.float64), "right")
    place = reached + positive * (len(cutoffs) + 1)
    values = sparse.csr_array((np.ones(len(p)), (np.arange(len(p)), place)), shape=(len(p), 2 * (len(cutoffs) + 1)))
    counts = values.sum(axis=0)[None, :]
    sums = bootstrap_sums(positive, values, split_group, draws=draws, seed=seed)
    found, alarms = _true_and_false_positives(counts, len(cutoffs))
    benefit, everybody = _benefits(counts, cutoffs)
    drawn, drawn_everybody = _benefits(sums, cutoffs)
    gain, drawn_gain = (one - np.maximum(other, 0) for one, other in ((benefit, everybody), (drawn, drawn_everybody)))
    (low, high), (gain_low, gain_high) = (np.percentile(values, [2.5, 97.5], axis=0) for values in (drawn, drawn_gain))
    return pd.DataFrame({
        "threshold": cutoffs, "net_benefit": benefit[0], "low": low, "high": high, "treat_all": everybody[0],
        "gain": gain[0], "gain_low": gain_low, "gain_high": gain_high,
        "sensitivity": found[0] / positive.sum(), "called": (found[0] + alarms[0]) / len(p),
    })  # fmt: skip


def net_benefit_change(
    y: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    split_group: ArrayLike,
    *,
    thresholds: ArrayLike,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns the net benefit of two risks (n,) at ascending `thresholds`, and what the second one adds.

    Columns: threshold; before; after; change with its 95 % interval low and high, from shared bootstrap draws of
    split_groups; treat_all, the net benefit of acting on all rows.
    """
    positive, before = checked(y, before)
    _, after = checked(y, after)
    cutoffs = np.asarray(thresholds, np.float64)
    k, rows = len(cutoffs), len(positive)
    width = 2 * (k + 1)
    places = [
        np.searchsorted(cutoffs, np.asarray(p, np.float64), "right") + positive * (k + 1) + part * width
        for part, p in enumerate((before, after))
    ]
    at = (np.tile(np.arange(rows), 2), np.concatenate(places))
    values = sparse.csr_array((np.ones(2 * rows), at), shape=(rows, 2 * width))
    counts = values.sum(axis=0)[None, :]
    sums = bootstrap_sums(positive, values, split_group, draws=draws, seed=seed)
    (old, everybody), (new, _) = (_benefits(counts[:, part], cutoffs) for part in (slice(width), slice(width, None)))
    changes = _benefits(sums[:, width:], cutoffs)[0] - _benefits(sums[:, :width], cutoffs)[0]
    low, high = np.percentile(changes, [2.5, 97.5], axis=0)
    return pd.DataFrame({
        "threshold": cutoffs, "before": old[0], "after": new[0], "change": new[0] - old[0], "low": low, "high": high,
        "treat_all": everybody[0],
    })  # fmt: skip


def sensible_thresholds(positive: Bools) -> Floats:
    """Returns (N_THRESHOLDS,) thresholds from a tenth of the prevalence to five times it, at most 0.9.

    Thresholds far below the average risk, or so high that hardly any row reaches them, are not used in practice.
    """
    prevalence = float(np.mean(positive))
    return np.linspace(prevalence / 10, min(0.9, 5 * prevalence), N_THRESHOLDS)


def round_thresholds(positive: ArrayLike) -> Floats:
    """Returns the round risks (0.01, 0.02, 0.05, …) in the range of `sensible_thresholds`."""
    span = sensible_thresholds(np.asarray(positive, bool))
    within: Floats = _ROUND_RISKS[(span[0] <= _ROUND_RISKS) & (span[-1] >= _ROUND_RISKS)]
    return within


def _true_and_false_positives(counts: Floats, k: int) -> tuple[Floats, Floats]:
    """Returns true and false positives (draws, k) at each of k thresholds, from counts by thresholds reached."""
    negative, positive = (counts[:, part : part + k + 1] for part in (0, k + 1))
    found, alarms = (np.cumsum(part[:, ::-1], axis=1)[:, -2::-1] for part in (positive, negative))
    return found, alarms


def _benefits(counts: Floats, cutoffs: Floats) -> tuple[Floats, Floats]:
    """Returns the net benefit of the model and of acting on all rows, each (draws, thresholds)."""
    k, odds = len(cutoffs), cutoffs / (1 - cutoffs)
    found, alarms = _true_and_false_positives(counts, k)
    negatives, positives = (counts[:, part : part + k + 1].sum(axis=1, keepdims=True) for part in (0, k + 1))
    rows = negatives + positives
    return (found - alarms * odds) / rows, (positives - negatives * odds) / rows


_NUMBERS = ("reviews@0.8", "reviews@0.9", "reviews@0.95")
_TOPS = ("top@1", "top@3", "top@5", "top@15")
_MOST_RISKS = 3  # thresholds of risk at which biopsies are counted
_SHOWN = {
    "reviews": ("images reviewed for each positive found, until {at:.3g} % of the positives are found", "images"),
    "nnb": ("number needed to biopsy, if images with a risk of {at:.3g} % or more are biopsied", "images"),
    "top": (
        "share of positives among the {at:.0f} highest scores of their patient",
        "positive images",
    ),
}


def decision_numbers(
    y: ArrayLike,
    score: ArrayLike,
    p: ArrayLike,
    split_group: ArrayLike,
    patient: ArrayLike | None,
    *,
    draws: int = 500,
    seed: int = 0,
) -> pd.DataFrame:
    """Returns what decisions by scores (n,) or calibrated ``p`` (n,) cost and find (`stack.metrics.decision_metrics`).

    Columns: measure; value with its 95 % interval low and high, not negated; by_chance, that of scores without
    information; unit. Lines of the top images are left out without patients (n,), where no patient with a positive has
    more images, and where no such patient has a negative image too: any scores would find as many there, as where
    groups are lesions. Risks that no positive reaches are left out.
    """
    positive = np.asarray(y) == 1
    risks = round_thresholds(positive)
    risks = risks[:: max(1, -(-len(risks) // _MOST_RISKS))]
    names = [*_NUMBERS, *(f"nnb@{risk:g}" for risk in risks), *(_TOPS if patient is not None else ())]
    groups = split_group if patient is None else patient
    rows = []
    for name in names:
        metric = decision_metric(name)
        assert metric is not None
        if metric.kind == "top" and not _ranking_matters(positive, groups, metric.at):
            continue
        scores = p if metric.needs_p else score
        try:
            found = interval(name, y, scores, split_group, draws=draws, seed=seed, patient=patient)
        except DataError:  # undefined on these rows
            continue
        value, low, high, chance = found.value, found.low, found.high, by_chance(metric, y, groups)
        if metric.kind in NEGATED:
            value, low, high, chance = -value, -high, -low, -chance
        words, unit = _SHOWN[metric.kind]
        at = metric.at if metric.kind == "top" else 100 * metric.at
        rows.append([words.format(at=at), value, low, high, chance, unit])
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "by_chance", "unit"])


def _ranking_matters(positive: Bools, patient: ArrayLike, most: float) -> bool:
    """Whether a patient with more than ``most`` images has a positive one and a negative one, which can be ranked."""
    codes, _ = pd.factorize(np.asarray(patient, dtype=object))
    images, positives = np.bincount(codes), np.bincount(codes, weights=positive)
    return bool(((images > most) & (positives > 0) & (positives < images)).any())


AIMS = (
    ("sensitivity", 0.90),
    ("sensitivity", 0.95),
    ("specificity", 0.80),
    ("specificity", 0.90),
    ("specificity", 0.95),
)


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, which calls rows with p ≥ threshold positive, and its metrics with 95 % intervals by group."""

    aim: str  # sensitivity or specificity
    level: float  # value of the aim that the threshold reaches on the rows it was chosen on
    threshold: float
    sensitivity: Interval
    specificity: Interval
    ppv: Interval  # positive predictive value, at the prevalence of these rows; NaN where no row is called positive
    npv: Interval


def operating_points(y: ArrayLike, p: ArrayLike, group: ArrayLike) -> tuple[OperatingPoint, ...]:
    """Returns, for each of AIMS, the threshold of `p` (n,) that reaches it on targets `y` (n,).

    Of the thresholds that reach it, the one with the best other measure (specificity or sensitivity) is taken. Raises
    DataError where a class is missing.
    """
    return tuple(operating_point_at(y, p, group, aim, level, _threshold(y, p, aim, level)) for aim, level in AIMS)


def operating_point_at(
    y: ArrayLike, p: ArrayLike, group: ArrayLike, aim: str, level: float, threshold: float
) -> OperatingPoint:
    """Returns the operating point on these rows of a threshold that was chosen on other rows."""
    positive, p = checked(y, p)
    group, called = np.asarray(group, dtype=object), p >= threshold
    shares = {
        "sensitivity": (called, positive), "specificity": (~called, ~positive),
        "ppv": (positive, called), "npv": (~positive, ~called),
    }  # fmt: skip
    made = {name: proportion(hit[of], group[of]) for name, (hit, of) in shares.items()}
    return OperatingPoint(aim, level, float(threshold), **made)


def _threshold(y: ArrayLike, p: ArrayLike, aim: str, level: float) -> float:
    positive, p = checked(y, p)
    if positive.all() or not positive.any():
        raise DataError("the targets have a single class: a threshold needs both, add rows of the other class")
    steps = np.unique(p[positive])  # sensitivity changes only at these values
    negatives, found = np.sort(p[~positive]), np.sort(p[positive])
    if aim == "sensitivity":
        reached = found.size - np.searchsorted(found, steps, "left") >= level * found.size * (1 - 1e-12)
        return float(steps[reached][-1])
    reached = np.searchsorted(negatives, steps, "left") >= level * negatives.size * (1 - 1e-12)
    # If too many negatives reach even the highest positive, the threshold is above every p.
    return float(steps[reached][0]) if reached.any() else float(np.nextafter(p.max(), np.inf))

"""Gaps between each subgroup and all other rows: simultaneous intervals, and the smallest gap that would be seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import ndtri

from stack.metrics.decisions import OperatingPoint, operating_points
from stack.metrics.intervals import auc_components
from stack.metrics.joint import joint_test
from stack.metrics.scores import Bools, Floats, checked
from stack.metrics.subgroups import MIN_GROUPS, Subgroup, variance_components

DIFFERS, BOUNDED, TOO_FEW = "differs", "no larger gap is compatible", "too few to say"
AUC, SENSITIVITY, SPECIFICITY, RATIO = "AUC", "sensitivity", "specificity", "expected / observed"
AIMS_OF_GAPS = (("sensitivity", 0.90), ("specificity", 0.90))  # of the operating points; those of the model card
MARGINS = {AUC: 0.10, SENSITIVITY: 0.10, SPECIFICITY: 0.10, RATIO: 1.5}  # a larger gap must be seen, or excluded
POWER = 0.80  # probability with which the smallest gap that counts as seen is found
_NORMAL_POWER = 0.85  # of the normal approximation at which POWER is reached: benchmarks/promises/fairness.py
_LEVEL = 0.05
_MAX_CORRELATION = 0.95  # of the two sides; an estimate from few groups can exceed any possible value


class Measure(NamedTuple):
    """What is compared: its kind (AUC, SENSITIVITY, SPECIFICITY or RATIO), and the aim and value of its threshold."""

    kind: str
    aim: str = ""  # such as "sensitivity 90 %"
    threshold: float = math.nan


@dataclass(frozen=True)
class Gaps:
    """All gaps of a data set, judged together.

    ``table`` has a line for each subgroup and measure: by, subgroup, measure, aim, threshold; rows, the rows that the
    measure is computed from, and groups, their split groups; value in the subgroup and rest, that of all other rows;
    gap with its simultaneous interval low and high; seen, the smallest gap that would be found with a probability of
    POWER; verdict (DIFFERS, BOUNDED or TOO_FEW). A gap is value minus rest; of RATIO, it is value divided by rest. NaN
    where either side has fewer than MIN_GROUPS groups, and in seen where no gap would be found.
    """

    table: pd.DataFrame
    tested: int  # number of gaps with an interval
    critical: float  # standard errors of the simultaneous intervals; NaN without gaps


def gaps(
    y: ArrayLike,
    score: ArrayLike,
    p: ArrayLike,
    split_group: ArrayLike,
    parts: Sequence[Subgroup],
    *,
    points: Sequence[OperatingPoint] | None = None,
    seed: int = 0,
) -> Gaps:
    """Compares each subgroup with all other rows in AUC, sensitivity, specificity and expected / observed positives.

    AUC is that of ``score`` (n,); sensitivity and specificity are those at the thresholds of ``points`` for calibrated
    probabilities ``p`` (n,); by default, thresholds that reach AIMS_OF_GAPS on these rows. One threshold holds for all
    subgroups. Expected / observed is the sum of ``p`` divided by the number of positives.

    With a probability of 95 %, all intervals together contain their gaps. Their width is the critical value of the
    largest of all standardised gaps (single-step max-T; Westfall & Young 1993): a normal distribution with the
    correlation of the gaps' influence functions, summed within split groups. Bonferroni's correction would ignore that
    the measures of one subgroup, and the two halves of one column, go together. Each side has a score interval (Wilson
    1927; for expected / observed, that of a Poisson count) on its effective number of rows, which has a width where a
    small subgroup has no error at all. Both sides are joined by the method of variance estimates recovery (Newcombe
    1998; Zou & Donner 2008), with the correlation of split groups that have rows on both sides. The effective number of
    rows is the smaller of that of the side itself and that of a side of this size in all rows.

    ``seen`` is the smallest gap to the worse side (lower AUC, sensitivity or specificity; fewer expected per observed
    positive) at which the interval would exclude "no gap" with a probability of POWER, in a subgroup of this size while
    the other rows stay as they are.
    """
    positive, p = checked(y, p)
    score = np.asarray(checked(y, score)[1], np.float64)
    p = np.asarray(p, np.float64)
    group, _ = pd.factorize(np.asarray(split_group, dtype=object))
    if points is None:
        points = [point for point in operating_points(positive, p, group) if (point.aim, point.level) in AIMS_OF_GAPS]
    measures = _measures(points)
    everywhere = {measure: _side(measure, positive, score, p, group, np.ones(len(p), bool)) for measure in measures}
    spread = variance_components(positive, score, group) if _has_both(positive, group) else (np.nan, np.nan)
    records: list[dict[str, Any]] = []
    pairs: list[_Pair | None] = []
    influences = []
    for part in parts:
        for measure in measures:
            counted = _rows_of(measure, positive)
            records.append({
                "by": part.by, "subgroup": part.name, "measure": measure.kind, "aim": measure.aim,
                "threshold": measure.threshold, "rows": int((counted & part.rows).sum()),
                "groups": len(np.unique(group[counted & part.rows])),
            })  # fmt: skip
            if not _is_comparable(measure, positive, group, part.rows):
                pairs.append(None)
                continue
            sides = [_side(measure, positive, score, p, group, rows) for rows in (part.rows, ~part.rows)]
            pairs.append(_pair(measure, sides, everywhere[measure], spread, positive, part.rows))
            influences.append((sides[0].influence - sides[1].influence).astype(np.float32))
    tested = joint_test(np.zeros(len(influences)), _correlation(influences), level=_LEVEL, seed=seed)
    for record, pair in zip(records, pairs, strict=True):
        record |= _judged(str(record["measure"]), pair, tested.critical)
    return Gaps(pd.DataFrame(records, columns=_COLUMNS), tested.values, tested.critical)


def gaps_of_records(records: Sequence[Mapping[str, Any]], critical: float) -> Gaps:
    """Returns gaps whose table was stored as records with None for NaN."""
    table = pd.DataFrame(list(records), columns=_COLUMNS)
    table = table.astype(dict.fromkeys(("threshold", "value", "rest", "gap", "low", "high", "seen"), "float64"))
    return Gaps(table, int(table["gap"].notna().sum()), critical)


_COLUMNS = ["by", "subgroup", "measure", "aim", "threshold", "rows", "groups"]
_COLUMNS += ["value", "rest", "gap", "low", "high", "seen", "verdict"]


class _Side(NamedTuple):
    """An estimate on some rows: a share, or the logarithm of observed / expected."""

    value: float
    influence: Floats  # (groups,) sums of the rows' influence on the value
    variance: float  # of the value, for sampled groups
    base: float  # rows of a share, or positives
    groups: int  # with such rows


@dataclass(frozen=True)
class _Pair:
    """A subgroup's value and that of the rest, with the effective size of both and the correlation of their errors."""

    values: tuple[float, float]
    sizes: tuple[float, float]
    correlation: float
    is_ratio: bool

    @property
    def gap(self) -> float:
        return self.values[0] - self.values[1]

    def se(self, value: float) -> float:
        """Standard error of the gap if the subgroup has this value."""
        own, rest = (
            _spread(of, size, is_ratio=self.is_ratio)
            for of, size in zip((value, self.values[1]), self.sizes, strict=True)
        )
        return math.sqrt(max(own**2 + rest**2 - 2 * self.correlation * own * rest, 1e-18))

    def bounds(self, value: float, critical: float) -> tuple[float, float]:
        """Returns the interval of the gap if the subgroup has this value (method of variance estimates recovery)."""
        (low, high), (rest_low, rest_high) = (
            _limits(of, size, critical, is_ratio=self.is_ratio)
            for of, size in zip((value, self.values[1]), self.sizes, strict=True)
        )
        gap = value - self.values[1]
        return (
            gap - _joined(value - low, rest_high - self.values[1], self.correlation),
            gap + _joined(high - value, self.values[1] - rest_low, self.correlation),
        )

    def smallest_seen(self, critical: float) -> float:
        """Returns the smallest gap to the worse side that is found with a probability of POWER; NaN without any."""
        rest = self.values[1]
        # Worse is less; of observed / expected it is more, without an upper limit.
        end = rest + math.log(1e3) if self.is_ratio else 0.0

        def is_flagged(value: float) -> float:  # negative where an estimate of this value is flagged
            low, high = self.bounds(value, critical)
            return -low if self.is_ratio else high

        if is_flagged(end) >= 0:
            return math.nan
        edge = float(brentq(is_flagged, rest, end))

        def lacking(value: float) -> float:  # negative where the power is more than POWER
            beyond = value - edge if self.is_ratio else edge - value
            return float(ndtri(_NORMAL_POWER)) * self.se(value) - beyond

        if lacking(end) >= 0:
            return math.nan
        return abs(float(brentq(lacking, edge, end)) - rest)


def _measures(points: Sequence[OperatingPoint]) -> list[Measure]:
    made = [Measure(AUC)]
    for point in points:
        aim = f"{point.aim} {100 * point.level:g} %"
        made += [Measure(kind, aim, point.threshold) for kind in (SENSITIVITY, SPECIFICITY)]
    return [*made, Measure(RATIO)]


def _rows_of(measure: Measure, positive: Bools) -> Bools:
    """Returns the rows (n,) whose number limits the precision of a measure."""
    return ~positive if measure.kind == SPECIFICITY else positive


def _has_both(positive: Bools, group: NDArray[np.intp]) -> bool:
    return all(len(np.unique(group[rows])) > 1 for rows in (positive, ~positive))


def _is_comparable(measure: Measure, positive: Bools, group: NDArray[np.intp], rows: Bools) -> bool:
    """Returns whether both sides have at least MIN_GROUPS groups with each class that the measure is computed from."""
    classes = (positive, ~positive) if measure.kind == AUC else (_rows_of(measure, positive),)
    return all(len(np.unique(group[side & of])) >= MIN_GROUPS for side in (rows, ~rows) for of in classes)


def _side(measure: Measure, positive: Bools, score: Floats, p: Floats, group: NDArray[np.intp], rows: Bools) -> _Side:
    """Returns the estimate of a measure on these rows, with the influence of each split group."""
    groups = int(group.max()) + 1
    within, y = group[rows], positive[rows]
    if measure.kind == AUC:
        if y.all() or not y.any():
            return _Side(math.nan, np.zeros(groups), math.nan, 0.0, 0)
        above, below = auc_components(score[rows], y)
        value = float(above.mean())
        influence = np.empty(len(y))
        influence[y], influence[~y] = (above - value) / len(above), (below - value) / len(below)
        base = float(len(y))
    elif measure.kind == RATIO:
        expected, observed = float(p[rows].sum()), float(y.sum())
        value = math.log(observed / expected) if observed and expected else math.nan
        influence = y / max(observed, 1.0) - p[rows] / max(expected, 1e-300)
        base = observed
    else:
        of = y if measure.kind == SENSITIVITY else ~y
        hit = (p[rows] >= measure.threshold) == y
        base = float(of.sum())
        value = float(hit[of].mean()) if base else math.nan
        influence = np.where(of, hit - value, 0.0) / max(base, 1.0)
    sums: Floats = np.bincount(within, influence, groups).astype(np.float64)
    n = len(np.unique(within))
    counted = len(np.unique(within[_rows_of(measure, y)]))
    return _Side(value, sums, n / max(n - 1, 1) * float(sums @ sums), base, counted)


def _pair(
    measure: Measure,
    sides: Sequence[_Side],
    everywhere: _Side,
    spread: tuple[float, float],
    positive: Bools,
    rows: Bools,
) -> _Pair:
    sizes = [
        _size(measure, side, everywhere, spread, positive[of]) for side, of in zip(sides, (rows, ~rows), strict=True)
    ]
    shared = float(sides[0].influence @ sides[1].influence)  # 0 unless a split group has rows on both sides
    scale = math.sqrt(sides[0].variance * sides[1].variance)
    correlation = float(np.clip(shared / scale, -_MAX_CORRELATION, _MAX_CORRELATION)) if scale > 0 else 0.0
    return _Pair((sides[0].value, sides[1].value), (sizes[0], sizes[1]), correlation, measure.kind == RATIO)


def _size(measure: Measure, side: _Side, everywhere: _Side, spread: tuple[float, float], positive: Bools) -> float:
    """Returns the effective number of rows of a share, or of positives for observed / expected.

    It is the smaller of two estimates: from the rows of the side, and from the scatter in all rows. The first is too
    large where few rows agree by chance, the second where the side scatters more than the rest.
    """
    if measure.kind == RATIO:
        dispersions = [of.variance * of.base for of in (side, everywhere)]  # 1 for a Poisson count
        return side.base / max(1e-9, *dispersions)
    value, of_all = side.value, everywhere.value
    if measure.kind == AUC:
        pooled = spread[0] / positive.sum() + spread[1] / (~positive).sum()
        sizes = [_binomial(of_all) / pooled if pooled > 0 else math.inf]
        sizes += [_binomial(value) / side.variance] if side.variance > 0 and _binomial(value) > 0 else []
        least = float(min(positive.sum(), (~positive).sum()))  # an AUC is more certain than a share of the rarer class
        return least if math.isinf(min(sizes)) else min(sizes)
    effects = [
        of.variance * of.base / _binomial(of.value) for of in (side, everywhere) if of.base and _binomial(of.value) > 0
    ]
    # Where neither has an error, or a hit, the effect of groups is unknown, and each group counts as one row.
    return side.base / max([1.0, *effects]) if effects else float(side.groups)


def _binomial(value: float) -> float:
    return value * (1 - value)


def _correlation(influences: Sequence[NDArray[np.float32]]) -> Floats:
    """Returns the correlation (m, m) of the gaps from the influence of each split group; a constant one has none."""
    if not influences:
        return np.empty((0, 0))
    table = np.stack(influences)
    products = (table @ table.T).astype(np.float64)
    scale = np.sqrt(np.diag(products))
    scale = np.where(scale > 0, scale, np.inf)
    found: Floats = products / scale / scale[:, None]
    np.fill_diagonal(found, 1.0)
    return found


def _limits(value: float, size: float, critical: float, *, is_ratio: bool) -> tuple[float, float]:
    """Returns the score interval of a share (Wilson 1927), or of the logarithm of observed / expected."""
    square = critical**2 / size
    if is_ratio:  # the logarithms of both roots of (observed - expected · ratio)² = critical² · expected · ratio
        half = 2 * math.asinh(math.sqrt(square) / 2)
        return value - half, value + half
    centre = (value + square / 2) / (1 + square)
    half = math.sqrt(square * _binomial(value) + square**2 / 4) / (1 + square)
    return min(max(centre - half, 0.0), value), max(min(centre + half, 1.0), value)


def _spread(value: float, size: float, *, is_ratio: bool) -> float:
    """Returns the standard error of a share of ``size`` rows, or of log(observed / expected) of ``size`` positives."""
    return math.sqrt(1 / size if is_ratio else max(_binomial(value), 0.0) / size)


def _joined(own: float, rest: float, correlation: float) -> float:
    return math.sqrt(max(own**2 + rest**2 - 2 * correlation * own * rest, 0.0))


def _judged(kind: str, pair: _Pair | None, critical: float) -> dict[str, object]:
    """Returns the columns of a gap that the critical value decides; for RATIO as expected / observed."""
    if pair is None:
        return {**dict.fromkeys(("value", "rest", "gap", "low", "high", "seen"), math.nan), "verdict": TOO_FEW}
    low, high = pair.bounds(pair.values[0], critical)
    seen = pair.smallest_seen(critical)
    margin = math.log(MARGINS[kind]) if pair.is_ratio else MARGINS[kind]
    is_large_enough = seen <= margin or max(-low, high) <= margin  # NaN is not
    verdict = DIFFERS if low > 0 or high < 0 else BOUNDED if is_large_enough else TOO_FEW
    numbers = [*pair.values, pair.gap, low, high, seen]
    if pair.is_ratio:  # observed / expected on a logarithmic scale becomes expected / observed
        own, rest, gap, low, high, seen = (math.exp(-number) for number in numbers)
        numbers = [own, rest, gap, high, low, seen]
    return {**dict(zip(("value", "rest", "gap", "low", "high", "seen"), numbers, strict=True)), "verdict": verdict}

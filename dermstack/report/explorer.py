"""Report section with a movable threshold of `p_calibrated`: its confusion matrix and rates at any prevalence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.tables import shared_decimals
from stack.metrics.decisions import operating_point_at
from stack.metrics.intervals import Interval
from stack.metrics.scores import checked

MAX_POINTS = 2_000
SENSITIVITIES = (0.80, 0.90, 0.95, 0.99)
SPECIFICITIES = (0.80, 0.90, 0.95)
_START_SENSITIVITY = 0.90  # the threshold shown first reaches this sensitivity


@dataclass(frozen=True)
class Thresholds:
    """Exact counts at ascending thresholds; an image is called positive if its p is at or above the threshold."""

    threshold: NDArray[np.float64]  # (k,)
    true_positives: NDArray[np.int64]  # (k,)
    false_positives: NDArray[np.int64]  # (k,)
    positives: int
    negatives: int

    def index_reaching(self, *, sensitivity: float = 0.0, specificity: float = 0.0) -> int:
        """Returns the index of the best threshold with at least this sensitivity or this specificity (give one).

        Best is the highest value of the other one. If no threshold is specific enough, the last index.
        """
        if sensitivity:
            return int(np.flatnonzero(self.true_positives >= sensitivity * self.positives * (1 - 1e-12))[-1])
        spared = self.negatives - self.false_positives
        enough = np.flatnonzero(spared >= specificity * self.negatives * (1 - 1e-12))
        return int(enough[0]) if enough.size else len(self.threshold) - 1


class OperatingPoint(NamedTuple):
    """Rates in 0..1; PPV or NPV is None if no image is called positive or negative."""

    sensitivity: float
    specificity: float
    accuracy: float
    ppv: float | None
    npv: float | None
    biopsies: float | None  # number needed to biopsy: 1 / ppv


class _Aim(NamedTuple):
    """A row of the static table of thresholds."""

    words: str
    threshold: str
    shares: list[Interval]  # sensitivity, specificity, ppv, npv
    biopsies: float | None


def explorer(y: ArrayLike, p: ArrayLike, split_group: ArrayLike, unit: str = "image") -> Section:
    """Returns the section for targets (n,) and calibrated probabilities (n,), with intervals by ``split_group`` (n,).

    ``unit`` is what a row is called on the page. The script computes rates from counts at up to MAX_POINTS thresholds;
    without JavaScript the page still has a table of some operating points. Raises DataError for targets other than 0
    and 1 and for missing probabilities.
    """
    points = count_at_thresholds(y, p)
    start = points.index_reaching(sensitivity=_START_SENSITIVITY)
    table = {
        "threshold": points.threshold.tolist(),
        "truePositives": points.true_positives.tolist(),
        "falsePositives": points.false_positives.tolist(),
        "positives": points.positives,
        "negatives": points.negatives,
    }
    script = (TEMPLATE_FOLDER / "explorer.js").read_text(encoding="utf-8").replace(" images", f" {unit}s")
    markup = render_template(
        "explorer.html.j2",
        unit=unit,
        points=points,
        prevalence=points.positives / (points.positives + points.negatives),
        start=start,
        aims=(aims := _aims(points, y, p, split_group)),
        # A `<` in the JSON could end the script element, so it is written as an escape.
        table=Markup(json.dumps(table, separators=(",", ":")).replace("<", "\\u003c")),
        script=Markup(script),
    )
    style = (TEMPLATE_FOLDER / "explorer.css").read_text(encoding="utf-8")
    return Section(markup, style, script, tables={"explorer-aims": pd.DataFrame(map(_aim_line, aims))})


def _aim_line(aim: _Aim) -> dict[str, object]:
    """Returns the numbers of one row of the static table."""
    line: dict[str, object] = {}
    for name, of in zip(("sensitivity", "specificity", "ppv", "npv"), aim.shares, strict=True):
        line |= {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}
    return {
        "aim": aim.words.replace("\N{NO-BREAK SPACE}", " "), "threshold": float(aim.threshold),
        **line, "number_needed_to_biopsy": aim.biopsies,
    }  # fmt: skip


def operating_point(
    true_positives: int, false_positives: int, positives: int, negatives: int, *, prevalence: float | None = None
) -> OperatingPoint:
    """Computes the rates from counts at a given ``prevalence`` (default: that of the counted images).

    Sensitivity and specificity do not depend on the prevalence; the other rates follow from Bayes' theorem. The script
    of the page computes the same.
    """
    if prevalence is None:
        prevalence = positives / (positives + negatives)
    sensitivity, specificity = true_positives / positives, 1 - false_positives / negatives
    found, missed = sensitivity * prevalence, (1 - sensitivity) * prevalence
    alarms, spared = (1 - specificity) * (1 - prevalence), specificity * (1 - prevalence)
    ppv = found / (found + alarms) if found + alarms > 0 else None
    npv = spared / (spared + missed) if spared + missed > 0 else None
    return OperatingPoint(sensitivity, specificity, found + spared, ppv, npv, 1 / ppv if ppv else None)


def count_at_thresholds(y: ArrayLike, p: ArrayLike, *, limit: int = MAX_POINTS) -> Thresholds:
    """Counts true and false positives at every distinct p; if there are over ``limit``, only at the p of positives.

    A threshold between the p of two positives only adds false alarms, so no better one is left out. If the positives
    have more than ``limit`` values, ``limit`` of them are taken, evenly spaced. Each threshold is a p rounded down to a
    short decimal that splits the rows in the same way.
    """
    positive, p = checked(y, p)
    p = p.astype(np.float64)
    steps = np.unique(p)
    if len(steps) > limit:
        steps = np.union1d(np.unique(p[positive]), steps[:1])
    if len(steps) > limit:
        steps = steps[np.linspace(0, len(steps) - 1, limit).round().astype(np.intp)]
    ordered = np.sort(p)
    before = np.searchsorted(ordered, steps, "left") - 1
    below = np.where(before >= 0, ordered[before], -np.inf)
    return Thresholds(
        threshold=_rounded_down(steps, below),
        true_positives=_at_or_above(np.sort(p[positive]), steps),
        false_positives=_at_or_above(np.sort(p[~positive]), steps),
        positives=int(positive.sum()),
        negatives=int((~positive).sum()),
    )


def _at_or_above(ordered: NDArray[np.float64], steps: NDArray[np.float64]) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = len(ordered) - np.searchsorted(ordered, steps, "left").astype(np.int64)
    return counts


def _rounded_down(steps: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounds each step down to the fewest decimals, at least three, that keep it above the next lower p."""
    short = steps.copy()
    left = np.ones(len(steps), bool)
    for decimals in range(3, 16):
        shorter = np.floor(steps * 10.0**decimals) / 10.0**decimals
        fits = left & (shorter > below) & (shorter <= steps)
        short[fits] = shorter[fits]
        left &= ~fits
    return short


def _aims(points: Thresholds, y: ArrayLike, p: ArrayLike, split_group: ArrayLike) -> list[_Aim]:
    """Returns the thresholds for common sensitivities and specificities, with intervals for fixed thresholds."""
    aims = {("sensitivity", share): points.index_reaching(sensitivity=share) for share in SENSITIVITIES}
    aims |= {("specificity", share): points.index_reaching(specificity=share) for share in SPECIFICITIES}
    decimals = shared_decimals(points.threshold[list(aims.values())], least=3)
    highest, made = float(points.threshold[-1]), []
    for (aim, share), place in aims.items():
        threshold, shown = _shown_threshold(
            float(points.threshold[place]), decimals, rise=aim == "specificity", highest=highest
        )
        point = operating_point_at(y, p, split_group, aim, share, threshold)
        shares = [point.sensitivity, point.specificity, point.ppv, point.npv]
        biopsies = 1 / point.ppv.value if point.ppv.value > 0 else None
        made.append(_Aim(f"{aim} {100 * share:.0f}\N{NO-BREAK SPACE}%", shown, shares, biopsies))
    return made


def _shown_threshold(exact: float, decimals: int, *, rise: bool, highest: float) -> tuple[float, str]:
    """Rounds a threshold to ``decimals``: down, which keeps its sensitivity, or with ``rise`` up, its specificity.

    Returns the value, of which the table shows the rates, and its text. A value that would rise above ``highest``, and
    then call no image positive, stays as it is.
    """
    scaled = exact * 10.0**decimals
    if abs(scaled - round(scaled)) > 1e-6:  # else only the last bit differs from a short decimal
        scaled = math.ceil(scaled) if rise else math.floor(scaled)
    text = f"{scaled / 10.0**decimals:.{decimals}f}"
    return (exact, f"{exact:.15g}") if float(text) > highest else (float(text), text)

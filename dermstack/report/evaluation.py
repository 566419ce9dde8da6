"""Builds the external validation page: performance on new images compared with the estimates from training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment
from markupsafe import Markup
from numpy.typing import ArrayLike

from dermstack.report.figures import (
    ACCENT,
    INK,
    LINE,
    MUTED,
    WIDTH,
    Drawing,
    Estimate,
    blank_figure,
    interval_figure,
    page_style,
    page_svg,
    reliability_figure,
    roc_points,
    unit_axes,
)
from dermstack.report.gaps import gaps_section
from dermstack.report.report import TEMPLATE_FOLDER, environment, percent
from dermstack.report.review import band_sentences, kept_table, per_thousand_table, review_subgroup_table
from dermstack.report.tables import HtmlTable, shared_decimals
from dermstack.report.tables import number as formatted
from stack.metrics.gaps import gaps_of_records
from stack.metrics.intervals import Interval
from stack.metrics.own_metric import own_label
from stack.metrics.review_band import ReviewCheck
from stack.metrics.validation import (
    AGREES,
    COLUMNS_MISSING,
    DIFFERS,
    HIGHER,
    LOWER,
    UNDECIDED,
    Comparison,
    PointOutcome,
    Validation,
)

FOUND_DOT, PROMISED_DOT = Markup('<span class="dot found"></span>'), Markup('<span class="dot hollow"></span>')


def auc_comparison_figure(name: str, found: Validation) -> Drawing:
    """Draws the AUC expected from training and the AUC on these rows, each with its interval."""
    here, promised = found.found.auc, found.promise.measures.auc
    estimates = [
        Estimate("expected from training", promised.value, promised.low, promised.high),
        Estimate(f"found on these {found.unit}s", here.value, here.low, here.high, strong=True),
    ]
    return interval_figure(name, estimates, axis="AUC", reference=promised.value)


def threshold_roc_figure(name: str, y: ArrayLike, score: ArrayLike, points: Sequence[PointOutcome]) -> Drawing:
    """Draws the ROC curve of scores (n,), with each threshold's position in training and here joined by a line."""
    with page_style():
        figure = blank_figure(height=WIDTH)
        axes = unit_axes(figure, "1 − specificity (false positive rate)", "sensitivity (true positive rate)")
        axes.plot([0, 1], [0, 1], color=LINE, linewidth=1)
        axes.plot(*roc_points(y, score), color=ACCENT, linewidth=2.4)
        alt_text = []
        for point in points:
            (x0, y0), (x1, y1) = (
                (1 - of.specificity.value, of.sensitivity.value) for of in (point.promised, point.found)
            )
            axes.plot([x0, x1], [y0, y1], color=MUTED, linewidth=1)
            axes.plot(x0, y0, "o", markersize=6.5, markerfacecolor="none", markeredgecolor=INK, clip_on=False)
            axes.plot(x1, y1, "o", markersize=6.5, color=ACCENT, markeredgewidth=0, clip_on=False)
            alt_text.append(
                f"threshold for {point.promised.aim} {point.promised.level:.0%}: "
                f"sensitivity {y0:.3f} expected, {y1:.3f} found, specificity {1 - x0:.3f} expected, {1 - x1:.3f} found"
            )
        legend = [("in training, at the chosen threshold", PROMISED_DOT), ("here, at the same threshold", FOUND_DOT)]
        return Drawing(page_svg(figure, name, f"ROC curve. {'; '.join(alt_text)}."), legend)


_QUANTITIES = {
    "prevalence": "prevalence",
    "auc": "AUC",
    "pauc80": "partial AUC above 80\N{NO-BREAK SPACE}% sensitivity",
    "slope": "calibration slope (ideal: 1)",
    "ap": "average precision",
    "log_loss": "log loss of p (lower is better)",
    "in_the_large": "calibration in the large, log odds (ideal: 0)",
}
_IN_PERCENT = {"prevalence"}
_SHORT_VERDICTS = {
    AGREES: "agrees",
    LOWER: "lower",
    HIGHER: "higher",
    UNDECIDED: "–",
    COLUMNS_MISSING: "–",
}  # for a narrow column


class _Table(NamedTuple):
    heads: list[tuple[str, bool]]  # text, whether the cells are numbers
    rows: list[tuple[bool, list[str | Markup]]]  # whether the row is highlighted, cells


def evaluation_html(found: Validation, y: ArrayLike, score: ArrayLike, *, created: str) -> str:
    """Returns the page as HTML; it needs no network and no scripts, and has no ids of rows.

    Targets ``y`` (n,) and ``score`` (n,) are needed for the ROC curve.
    """
    bins, metric = pd.DataFrame(list(found.reliability)), own_label(found.promise.objective)
    between = gaps_section(
        gaps_of_records(found.gaps, found.gaps_critical),
        thresholds="were chosen in training",
        source="evaluation.json",
        unit=found.unit,
    )
    page = (TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8")  # shared with the report
    template = _templates().get_template("evaluation.html.j2")
    return template.render(
        style=Markup(page + (between.style if between else "")),
        gaps=between.markup if between else "",
        found=found,
        unit=found.unit,
        here=found.found,
        promised=found.promise.measures,
        auc=found.comparison("auc"),
        prevalence=found.comparison("prevalence"),
        columns_missing=COLUMNS_MISSING,
        lower=LOWER,
        differs=DIFFERS,
        objective=_QUANTITIES.get("log_loss" if metric == "logloss" else metric, metric),
        created=created,
        tables={
            "comparisons": _comparisons(found.comparisons),
            "points": _points(found),
            "predictive": _predictive(found),
            "selected": _selected(found),
            "calibration": _calibration(found),
            "subgroups": _subgroups(found.subgroups, found.unit),
            **_review_tables(found.review, found.unit),
        },
        review=found.review,
        review_sentences=band_sentences(found.review.band, found.unit) if found.review else [],
        figures={
            "promise": auc_comparison_figure("promise", found),
            "roc": threshold_roc_figure("roc", y, score, found.points),
            "reliability": reliability_figure("reliability", bins, axis="calibrated p"),
        },
    )


@cache
def _templates() -> Environment:
    templates = environment()
    templates.filters |= {"number": number, "percent": percent}
    return templates


def _review_tables(review: ReviewCheck | None, unit: str) -> dict[str, HtmlTable]:
    if review is None:
        return {}
    return {
        "review_decisions": per_thousand_table(review.found, unit),
        "review_kept": kept_table(review.found.kept, unit),
        "review_subgroups": review_subgroup_table(review.subgroups, unit),
    }


def number(value: float | None, digits: int = 4) -> str:
    """Formats a number with a minus sign (−); None and NaN are a dash."""
    return formatted(None if value is None else float(value), f",.{digits}f")


def _comparisons(comparisons: Sequence[Comparison]) -> _Table:
    heads = [("quantity", False), ("expected", True), ("found", True), ("found minus expected", True), ("noise", True)]
    rows = []
    for entry in comparisons:
        show = percent if entry.quantity in _IN_PERCENT else number
        plus = "+" if entry.difference > 0 else ""
        rows.append((
            entry.verdict in (LOWER, HIGHER),
            [
                _QUANTITIES[entry.quantity], show(entry.promised), show(entry.found),
                plus + show(entry.difference), "± " + show(entry.noise), _verdict_text(entry),
            ],
        ))  # fmt: skip
    return _Table([*heads, ("verdict", False)], rows)


def _points(found: Validation) -> _Table:
    heads = [("chosen for", False), ("threshold of p", True)]
    for share in ("sensitivity", "specificity"):
        heads += [(f"{share} expected", True), (f"{share} found", True), ("verdict", False)]
    rows = []
    decimals = shared_decimals((100 * of.found.threshold for of in found.points), least=1)
    for of in found.points:
        cells: list[str | Markup] = [
            f"{of.promised.aim} {percent(of.promised.level, 0)}", percent(of.found.threshold, decimals)
        ]  # fmt: skip
        for compared, here in ((of.sensitivity, of.found.sensitivity), (of.specificity, of.found.specificity)):
            cells += [percent(compared.promised), _with_bounds(here), _SHORT_VERDICTS[compared.verdict]]
        apart = {of.sensitivity.verdict, of.specificity.verdict} & {LOWER, HIGHER}
        rows.append((bool(apart), cells))
    return _Table(heads, rows)


def _predictive(found: Validation) -> _Table:
    heads = [("chosen for", False), ("positive predictive value", True), ("negative predictive value", True)]
    rows: list[tuple[bool, list[str | Markup]]] = []
    for of in found.points:
        name = f"{of.promised.aim} {percent(of.promised.level, 0)}"
        rows.append((False, [name, _with_bounds(of.found.ppv), _with_bounds(of.found.npv)]))
    return _Table(heads, rows)


def _selected(found: Validation) -> _Table:
    other = {"sensitivity": "specificity", "specificity": "sensitivity"}
    rows: list[tuple[bool, list[str | Markup]]] = [
        (False, [f"{of.aim} of at least {percent(of.level, 0)}", f"{other[of.aim]} {percent(of.other.value)}",
                 f"{percent(of.other.low)} to {percent(of.other.high)}"])
        for of in found.selected_on_these_rows
    ]  # fmt: skip
    return _Table([("given", False), ("reached at best", True), ("95 % interval", True)], rows)


def _calibration(found: Validation) -> _Table:
    def line(name: str, promised: str, here: str) -> tuple[bool, list[str | Markup]]:
        return False, [name, promised, here]

    both = (found.promise.measures, found.found)
    rows = [
        line("calibration in the large", *(_interval(of.in_the_large, 3) for of in both)),
        line("slope", *(_interval(of.slope, 3) for of in both)),
        line("log loss", *(_interval(of.log_loss) for of in both)),
        line("Brier score", *(number(of.brier) for of in both)),
        line("expected calibration error", *(number(of.ece) for of in both)),
        line("expected calibration error if p were correct", *(number(of.ece_by_chance) for of in both)),
    ]
    return _Table([("of calibrated p", False), ("in training", True), ("here", True)], rows)


def _subgroups(subgroups: Sequence[dict[str, Any]], unit: str) -> _Table:
    heads = [("subgroup", False), (f"{unit}s", True), ("groups", True), ("positive", True), ("AUC", True)]
    heads += [("95 % interval", True), ("in training", True), ("minus the rest", True), ("beyond noise", False)]
    rows = []
    for of in subgroups:
        bounds = "–" if of["low"] is None else f"{number(of['low'], 3)} to {number(of['high'], 3)}"
        apart = "–" if of["auc"] is None else "no"
        rows.append((
            bool(of["apart"]),
            [
                f"{of['by']}: {of['subgroup']}", f"{of['rows']:,}", f"{of['groups']:,}", f"{of['positives']:,}",
                number(of["auc"], 3), bounds, number(of["promised_auc"], 3), number(of["difference"], 3),
                "yes" if of["apart"] else apart,
            ],
        ))  # fmt: skip
    return _Table(heads, rows)


def _verdict_text(entry: Comparison) -> str:
    """Returns the verdict as text; for the prevalence, it is about training instead of an expectation."""
    if entry.quantity != "prevalence":
        return entry.verdict
    return {HIGHER: "higher than in training, beyond noise", LOWER: "lower than in training, beyond noise"}.get(
        entry.verdict, entry.verdict
    )


def _with_bounds(of: Interval) -> str:
    return "–" if math.isnan(of.value) else f"{percent(of.value)} ({100 * of.low:.1f} to {100 * of.high:.1f})"


def _interval(of: Interval, digits: int = 4) -> str:
    if math.isnan(of.value):
        return "–"
    return f"{number(of.value, digits)} ({number(of.low, digits)} to {number(of.high, digits)})"

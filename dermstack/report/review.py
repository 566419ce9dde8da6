"""Tables and sentences of the review band: its rule, its promise, what became of images, overall and by subgroup."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dermstack.report.tables import HtmlTable
from stack.metrics.intervals import Interval
from stack.metrics.review_band import (
    AIM_WORDS,
    FAILED,
    TOO_FEW,
    Band,
    Decisions,
    Kept,
    SubgroupDecisions,
    guarantee_text,
    percent_text,
)
from stack.metrics.risk_control import UPPER_AIMS

_TEST_WORDS = {
    "binomial": "the exact binomial test",
    "betting": "a test that holds for every number of patients, as long as none has more than {most} such {unit}s",
    "approximate": "a binomial test with the effective number of {unit}s, which is approximate",
}


def band_sentences(band: Band, unit: str = "image") -> list[str]:
    """Returns which risks of a ``unit`` are decided and with which guarantee, a sentence for each end of the band."""
    made = []
    for of, cut in ((band.low, band.below), (band.high, band.above)):
        if of is None:
            continue
        rule = guarantee_text(of, cut, "rule", unit)
        text = rule if of.threshold is None else f"{rule}. Promise: {guarantee_text(of, cut, 'promise', unit)}"
        made.append(f"{text[0].upper()}{text[1:]}.")
    if band.above is not None and band.above == band.below:
        made.append("Both promises can be kept for every risk, so no risk goes to a person.")
    return made


def sentences_on_tests(band: Band, unit: str = "image") -> list[str]:
    """Returns by which test the threshold of each promise was chosen, and on how many patients.

    Where the two overlap, the rule decides by one threshold between them.
    """
    made = []
    for of in band.guarantees:
        if of.threshold is not None:
            test = _TEST_WORDS[of.test].format(most=f"{of.most:,}", unit=unit)
            counts = f"{of.rows:,} {unit}s of {of.groups:,} patients"
            wrong = f"with a threshold of {percent_text(of.threshold)}, {of.errors:,} of them are decided wrongly"
            made.append(f"{AIM_WORDS[of.aim][0].upper()}{AIM_WORDS[of.aim][1:]}: {test}, on {counts}; {wrong}.")
    return made


def review_doubts(subgroups: Sequence[SubgroupDecisions], unit: str = "image") -> list[str]:
    """Returns a sentence for each subgroup whose own 95 % interval lies below what was promised.

    Among many subgroups one such interval may be chance, which the sentence says; where the verdict is that the promise
    failed, it is not.
    """
    made = []
    for of in subgroups:
        for kept in of.found.kept:
            if kept.verdict == TOO_FEW or not kept.value.high < kept.level:
                continue
            sure = "" if kept.verdict == FAILED else f"; among {len(subgroups)} subgroups this may be chance"
            made.append(
                f"{of.by} {of.subgroup}: {AIM_WORDS[kept.aim]} {_with_interval(kept.value)}, promised was "
                f"{percent_text(kept.level)} ({kept.errors:,} wrong of {kept.rows:,} {unit}s){sure}."
            )
    return made


def per_thousand_table(found: Decisions, unit: str = "image") -> HtmlTable:
    """Formats how many of 1,000 rows, each a ``unit``, get each decision, and how many of these are positive.

    A decision that no promise is about has no line.
    """
    decided_positive = round(found.positive.value * found.rows)
    of_positive = decided_positive - found.false_alarms
    lines = [
        ("negative", found.negative, found.missed, "missed"),
        ("for a person", found.review, found.positives - found.missed - of_positive, "found by the person"),
        ("positive", found.positive, of_positive, "found"),
    ]
    if not any(kept.aim in UPPER_AIMS for kept in found.kept):
        lines = lines[:2]
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("", (name, f"{1000 * share.value:,.0f}", f"{1000 * share.low:,.0f} to {1000 * share.high:,.0f}",
              f"{found.per_thousand(positives):,.1f} {what}"))
        for name, share, positives, what in lines
    ]  # fmt: skip
    heads = [("decision", False), (f"{unit}s of 1,000", True), ("95 % interval", True), (f"positive {unit}s", True)]
    frame = pd.DataFrame([
        {"decision": name, **_parts("share", share), "positives": positives, "of_images": found.rows}
        for name, share, positives, _ in lines
    ])  # fmt: skip
    return HtmlTable(heads, rows, max(len(line[0]) for line in lines), [], frame)


def kept_table(kept: Sequence[Kept], unit: str = "image") -> HtmlTable:
    """Formats what was promised, what was found and whether the promise held."""
    heads = [("promise", False), ("at least", True), ("found", True), ("95 % interval", True)]
    heads += [("wrong", True), (f"of {unit}s", True), ("of patients", True), ("the promise", False)]
    rows: list[tuple[str, tuple[str, ...]]] = [
        ("failed" if of.verdict == FAILED else "",
         (AIM_WORDS[of.aim], percent_text(of.level), *_percent(of.value), f"{of.errors:,}", f"{of.rows:,}",
          f"{of.groups:,}", of.verdict))
        for of in kept
    ]  # fmt: skip
    frame = pd.DataFrame(map(_kept_line, kept))
    return HtmlTable(heads, rows, max((len(cells[0]) for _, cells in rows), default=0), [], frame)


def review_subgroup_table(subgroups: Sequence[SubgroupDecisions], unit: str = "image") -> HtmlTable:
    """Formats the decisions in each subgroup: the share for a person, and each promise with its verdict."""
    aims = [kept.aim for kept in subgroups[0].found.kept] if subgroups else []
    heads = [("subgroup", False), (f"{unit}s", True), ("patients", True), ("positive", True)]
    heads += [("for a person (95 % interval)", True)]
    for aim in aims:
        heads += [(f"{AIM_WORDS[aim]} (95 % interval)", True), ("the promise", False)]
    rows: list[tuple[str, tuple[str, ...]]] = []
    for of in subgroups:
        found = of.found
        cells = [f"{of.by}: {of.subgroup}", f"{found.rows:,}", f"{found.groups:,}", f"{found.positives:,}"]
        cells.append(_with_interval(found.review))
        for kept in found.kept:
            cells += [_with_interval(kept.value), kept.verdict]
        rows.append(("failed" if any(kept.verdict == FAILED for kept in found.kept) else "", tuple(cells)))
    frame = pd.DataFrame([
        {
            "by": of.by, "subgroup": of.subgroup, "images": of.found.rows, "patients": of.found.groups,
            "positives": of.found.positives, **_parts("review", of.found.review), **_kept_line(kept),
        }
        for of in subgroups
        for kept in of.found.kept
    ])  # fmt: skip
    return HtmlTable(heads, rows, max((len(cells[0]) for _, cells in rows), default=0), [], frame)


def _kept_line(kept: Kept) -> dict[str, object]:
    """Returns the numbers of one promise: what was promised, what was found, and the counts of the latter."""
    return {
        "promise": AIM_WORDS[kept.aim], "at_least": kept.level, **_parts("found", kept.value), "wrong": kept.errors,
        "of_images": kept.rows, "of_patients": kept.groups, "verdict": kept.verdict,
    }  # fmt: skip


def _parts(name: str, of: Interval) -> dict[str, float]:
    return {name: of.value, f"{name}_low": of.low, f"{name}_high": of.high}


def _with_interval(of: Interval) -> str:
    value, bounds = _percent(of)
    return value if value == bounds else f"{value} ({bounds})"


def _percent(of: Interval) -> tuple[str, str]:
    if of.value != of.value:
        return "–", "–"
    return f"{100 * of.value:.1f} %", f"{100 * of.low:.1f} to {100 * of.high:.1f}"

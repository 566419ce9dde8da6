"""Report section on sources (hospitals, cameras): the score where they were held out, and what differs between them."""

from __future__ import annotations

import math

import pandas as pd
from markupsafe import Markup

from dermstack.report.figures import Drawing, Estimate, interval_figure
from dermstack.report.report import Section, page_templates
from dermstack.report.tables import HtmlTable, table
from stack.metrics.scores import objective_label
from stack.sources.estimates import (
    HELD_OUT,
    SEEN,
    TRAINED_AGAIN,
    LeaveSourceOut,
    SourceEstimate,
    source_sentences,
)

_NO_NUMBER = "–"


def sources_section(found: LeaveSourceOut, *, from_file: str = "", unit: str = "image") -> Section:
    """Returns the section: the estimates side by side, the AUC of each source, and what differs between sources.

    ``from_file`` names the file of sources (`data.sources`), if they are from one; ``unit`` is what has a score.
    """
    best, figure = found.strictest, None
    if math.isfinite(best.over.mean):
        figure = _figure(best)
    tables = {
        "source-estimates": _estimates(found),
        "source-aucs": _by_source(found),
        "source-facts": _facts(found.facts),
    }
    if found.runs:
        tables["source-runs"] = _runs(found)
    text = (
        page_templates()
        .get_template("sources.html.j2")
        .render(
            found=found,
            from_file=from_file,
            unit=unit,
            own=found.own,
            best=best,
            compares=len(found.estimates) > 1,
            objective=objective_label(found.objective),
            sentences=source_sentences(found),
            same=_same(best),
            estimates=tables["source-estimates"],
            runs=tables.get("source-runs"),
            figure=figure,
            by_source=tables["source-aucs"],
            facts=tables["source-facts"],
            seen=SEEN,
        )
    )
    frames = {name: made.frame for name, made in tables.items()}
    return Section(Markup(text), tables=frames, figures={} if figure is None else {"by-source": figure})


def _estimates(found: LeaveSourceOut) -> HtmlTable:
    records = []
    for one in found.estimates:
        over = one.over
        records.append({
            "what the folds hold out": _name(one),
            "images": one.rows,
            found.objective: one.pooled.value, "low": one.pooled.low, "high": one.pooled.high,
            "typical": over.mean, "typical_low": over.low, "typical_high": over.high,
            "next": f"{over.next_low:.3f} to {over.next_high:.3f}" if one.predicts_next else _NO_NUMBER,
            "change": one.difference.value if one.difference else math.nan,
            "change_low": one.difference.low if one.difference else math.nan,
            "change_high": one.difference.high if one.difference else math.nan,
        })  # fmt: skip
    shown = pd.DataFrame(records)
    intervals = {
        found.objective: ("low", "high"), "typical": ("typical_low", "typical_high"),
        "change": ("change_low", "change_high"),
    }  # fmt: skip
    if len(found.estimates) == 1:
        shown, intervals = (
            shown.drop(columns=["change", "change_low", "change_high"]),
            dict(list(intervals.items())[:2]),
        )
    bounds = [
        (one.over.next_low, one.over.next_high) if one.predicts_next else (math.nan,) * 2 for one in found.estimates
    ]
    numbers = shown.drop(columns="next").assign(
        next_low=[low for low, _ in bounds], next_high=[high for _, high in bounds]
    )
    return table(
        shown,
        intervals=intervals,
        heads={
            "images": "images (all)", found.objective: f"{objective_label(found.objective)}, all images",
            "typical": "AUC within a typical source", "typical_low": "95 % interval over sources",
            "next": "AUC in the next source, 95 % prediction interval",
            "change": "difference within a source, same images", "change_low": "its 95 % interval",
        },
        formats={found.objective: ".3f", "typical": ".3f", "change": "+.3f"},
    )._replace(frame=numbers)  # fmt: skip


def _name(one: SourceEstimate) -> str:
    everything = one.origin == TRAINED_AGAIN and one.held_out == HELD_OUT
    return one.label + (", everything trained again" if everything else "")


def _runs(found: LeaveSourceOut) -> HtmlTable:
    """Returns one row an image model that was trained again: its scores with groups and with sources held out."""
    records = []
    for one in found.runs:
        change = one.difference
        records.append({
            "model": one.name + (" (settings selected on these rows)" if one.selected else ""), "images": one.rows,
            "groups": one.groups.value, "groups_low": one.groups.low, "groups_high": one.groups.high,
            "sources": one.sources.value, "sources_low": one.sources.low, "sources_high": one.sources.high,
            "pooled": one.pooled_difference.value, "pooled_low": one.pooled_difference.low,
            "pooled_high": one.pooled_difference.high, "change": change.value if change else math.nan,
            "change_low": change.low if change else math.nan, "change_high": change.high if change else math.nan,
        })  # fmt: skip
    objective = objective_label(found.objective)
    names = ("groups", "sources", "pooled", "change")
    heads = {
        "groups": f"{objective}, groups held out", "sources": f"{objective}, sources held out",
        "pooled": "difference", "change": "difference within a typical source",
    }  # fmt: skip
    return table(
        pd.DataFrame(records),
        intervals={name: (f"{name}_low", f"{name}_high") for name in names},
        heads=heads,
        formats={"groups": ".3f", "sources": ".3f", "pooled": "+.3f", "change": "+.3f"},
    )


def _by_source(found: LeaveSourceOut) -> HtmlTable:
    best, own = found.strictest.over.sources, found.own.over.sources.set_index("source")["auc"]
    shown = best[["source", "rows", "groups", "positives", "prevalence"]].copy()
    if len(found.estimates) > 1:
        shown["before"] = own.reindex(best["source"]).to_numpy()
    shown = shown.assign(auc=best["auc"], low=best["low"], high=best["high"])
    if (best["note"] != "").any():
        shown["note"] = best["note"]
    return table(
        shown,
        intervals={"auc": ("low", "high")},
        heads={"before": f"AUC, {found.own.label}", "auc": f"AUC, {found.strictest.label}", "rows": "images"},
        formats={"auc": ".3f", "before": ".3f", "prevalence": ".1%"},
    )


def _facts(facts: pd.DataFrame) -> HtmlTable:
    shown = facts[["source", "age", "sex", "site"]].copy()
    if (facts["size"] != "").any():
        shown["size"] = facts["size"]
    shown["prevalence"], shown["positives"], shown["expected"] = (
        facts["prevalence"],
        facts["positives"],
        facts["expected"],
    )
    shown["logit_negatives"] = facts["logit_negatives"]
    for key in ("in_the_large", "slope"):
        shown = shown.assign(**{f"{key}{end}": facts[f"{key}{end}"] for end in ("", "_low", "_high")})
    for name in ("age", "sex", "site"):
        if not (shown[name].notna() & (shown[name] != "")).any():
            shown = shown.drop(columns=name)
    return table(
        shown,
        intervals={"in_the_large": ("in_the_large_low", "in_the_large_high"), "slope": ("slope_low", "slope_high")},
        heads={
            "age": "median age", "sex": "most frequent sex", "site": "most frequent site",
            "size": "median size of the original in pixels", "positives": "positives found",
            "expected": "positives expected from p", "logit_negatives": "mean logit of p, negatives",
            "in_the_large": "logit to add to p", "in_the_large_low": "its 95 % interval",
            "slope": "calibration slope", "slope_low": "its 95 % interval",
        },
        formats={
            "age": ".0f", "prevalence": ".1%", "expected": ".1f", "logit_negatives": ".2f", "in_the_large": "+.2f",
            "slope": ".2f",
        },
    )  # fmt: skip


def _figure(best: SourceEstimate) -> Drawing:
    known = best.over.sources[best.over.sources["auc"].notna()]
    entries = [
        Estimate(str(row["source"]), float(row["auc"]), float(row["low"]), float(row["high"]))
        for row in known.to_dict("records")
    ]
    over = best.over
    entries.append(Estimate("typical source", over.mean, over.low, over.high, strong=True))
    if best.predicts_next:
        entries.append(Estimate("next source (prediction)", over.mean, over.next_low, over.next_high, strong=True))
    return interval_figure("by_source", entries, axis="AUC", reference=over.mean)


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.2g}"


def _same(best: SourceEstimate) -> str:
    """Says whether the AUCs of the sources differ by more than chance."""
    over = best.over
    if not math.isfinite(over.p_same):
        return ""
    if over.p_same < 0.05:
        return f"The sources differ in AUC by more than chance explains (p {_p_text(over.p_same)})."
    return (
        f"The differences in AUC between the sources are within chance (p {_p_text(over.p_same)}), which does not show "
        "that the sources are alike: with few sources, only large differences can be seen."
    )

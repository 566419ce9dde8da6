"""Builds the page and the JSON of `dermstack forensics`: findings on out-of-fold files and their blend."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from dermstack.audit.finding import SEVERITIES, Finding, Severity
from dermstack.audit.forensics import Examined, FileFinding, Forensics, runs_with_errors
from dermstack.report.figures import Drawing, Estimate, interval_figure
from dermstack.report.report import TEMPLATE_FOLDER, page_templates, script_policy
from dermstack.report.tables import HtmlTable, table
from stack.forensics.claim import BlendClaim
from stack.metrics.intervals import Interval
from stack.metrics.measures import jsonable
from stack.predictions.plausibility import facts_table

MAX_DRAWN = 30  # files in the figure; the tables have all
_LONG_TABLE = 20  # rows from which a table scrolls
_NOT_RUNS = ("labels", "blend")  # what a finding is about where it is about no run


def forensics_html(found: Forensics, *, created: str | None = None) -> str:
    """Returns the page; it names files and columns, and no row of the data."""
    script = (TEMPLATE_FOLDER / "sort.js").read_text(encoding="utf-8")
    style = "".join((TEMPLATE_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "sort.css"))
    template = page_templates().get_template("forensics.html.j2")
    return template.render(
        found=found,
        files="1 file" if len(found.examined) == 1 else f"{len(found.examined)} runs",
        counts=[(_number_of(found, severity), severity) for severity in SEVERITIES],
        verdict=verdict(found),
        tall=len(found.examined) > _LONG_TABLE,
        findings=_findings(found),
        read=_read(found.examined),
        folds=_folds(found.examined),
        values=_values(found.examined),
        figure=_figure(found.examined, found.claim),
        drawn=min(len(found.examined), MAX_DRAWN),
        claim=found.claim,
        claim_sentence=None if found.claim is None else claim_sentence(found.claim),
        compared=None if found.claim is None else _compared(found.claim),
        methods=None if found.claim is None else _methods(found.claim),
        created=created or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(style),
        script=Markup(script),
        scripts=Markup(script_policy(script)),
    )


def verdict(found: Forensics) -> str:
    """Says in words what to do with the files."""
    if runs := sorted(runs_with_errors(found.findings)):
        files = ", ".join(map(_run_name, runs))
        return f"Do not use {files} before the errors below are corrected: until then, an AUC means nothing"
    if _number_of(found, "error"):
        return "No file has an error, but what is claimed of the blend is not what it has on these rows"
    if warnings := _number_of(found, "warning"):
        many = f"{warnings} warnings" if warnings > 1 else "warning"
        return f"No error was found. Read the {many} below before you rely on an AUC of this page"
    return "Nothing was found that speaks against these files"


def _number_of(found: Forensics, severity: Severity) -> int:
    return sum(one.finding.severity == severity for one in found.findings)


def _run_name(name: str) -> str:
    """Returns the name of a run as it is, unless it would be taken for the labels or the blend."""
    return f"run {name}" if name in _NOT_RUNS else name


def claim_sentence(claim: BlendClaim) -> str:
    """Says in words what the files give, and what is left of the claim."""
    gain, parts = claim.nested_gain, []
    if gain.low > 0:
        parts.append(f"a blend of these files is better than the best of them alone ({claim.best_file})")
    elif gain.high < 0:
        parts.append(f"a blend of these files is worse than the best of them alone ({claim.best_file})")
    else:
        parts.append(f"no gain of a blend over the best file alone ({claim.best_file}) is shown")
    if claim.claimed is not None:
        where = (
            "above the interval of" if claim.claimed > claim.nested.high
            else "below the interval of" if claim.claimed < claim.nested.low else "inside the interval of"
        )  # fmt: skip
        parts.append(f"the claimed AUC of {claim.claimed:g} lies {where} the nested one")
    return "; ".join(parts)


def about(one: FileFinding) -> tuple[str, str]:
    """Returns what a finding is about (runs, the labels or the blend), and what it says of it."""
    if not one.runs:
        of, _, what = one.finding.what.partition(": ")
        return of, what
    what = one.finding.what.removeprefix(f"{' and '.join(one.runs)}: ")
    return " and ".join(map(_run_name, one.runs)), what


def named_findings(found: Forensics) -> list[Finding]:
    """Returns the findings; those about a run called `labels` or `blend` begin with `run labels` or `run blend`."""
    return [replace(one.finding, what=": ".join(about(one))) for one in found.findings]


def forensics_json(found: Forensics) -> str:
    """Returns all numbers and findings as JSON text; examples of findings name ids."""
    content: dict[str, Any] = {
        "labels": {
            "file": str(found.labels), "columns": dict(found.columns), "rows": found.rows,
            "positives": found.positives, "groups": found.groups, "has_groups": found.has_groups,
        },
        "verdict": verdict(found),
        "reference_folds": found.reference,
        "findings": jsonable(named_findings(found)),
        "not_read": dict(found.not_read),
        "runs": [_run_json(one) for one in found.examined],
    }  # fmt: skip
    if found.claim is not None:
        claim = {name: value for name, value in vars(found.claim).items() if name != "methods"}
        methods = found.claim.methods.astype({"chosen": bool}).to_dict("records")
        content["blend"] = jsonable({
            **claim, "methods": methods, "left_out": list(found.left_out_of_blend), "says": claim_sentence(found.claim),
        })  # fmt: skip
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _run_json(one: Examined) -> dict[str, Any]:
    run = one.run
    made: dict[str, Any] = jsonable({
        "run": run.name, "files": [str(path) for path in run.paths], "read_as": run.columns, "scale": run.scale,
        "rows": run.counts, "folds": list(run.folds), "folds_from": one.folds_from or "not known",
        "groups_in_several_folds": one.torn, "auc": one.facts.auc, "auc_within_nets": one.within,
        "within_minus_pooled": one.difference, "auc_by_fold": one.by_fold, "scale_shift": one.shift,
        "scale_shift_p": one.shift_p, "held_out": one.held_out, "distinct": one.facts.distinct,
        "resolution": one.facts.resolution, "likest": one.facts.likest, "test_predictions": len(run.test),
    })  # fmt: skip
    return made


def _findings(found: Forensics) -> HtmlTable | None:
    if not found.findings:
        return None
    rows = []
    for one in found.findings:
        of, what = about(one)
        finding, remedy = one.finding, "–" if one.finding.remedy == "none" else one.finding.remedy
        rows.append(
            {
                "about": of,
                "severity": finding.severity,
                "finding": what,
                "evidence": finding.evidence,
                "next": remedy,
            }
        )
    return table(pd.DataFrame(rows), heads={"next": "next step"})


def _read(examined: Sequence[Examined]) -> HtmlTable:
    rows = []
    for one in examined:
        counts = one.run.counts
        rows.append({
            "run": one.run.name, "files": ", ".join(path.name for path in one.run.paths[:3])
            + (f", … {len(one.run.paths)}" if len(one.run.paths) > 3 else ""),
            "read": one.run.columns, "rows": str(counts.rows), "used": counts.used, "lacking": counts.lacking,
            "unknown": counts.unknown, "again": counts.repeated + counts.contradicting, "test": len(one.run.test),
        })  # fmt: skip
    frame = pd.DataFrame(rows).astype({"rows": np.int64})
    return table(
        frame,
        heads={
            "read": "columns that were read", "used": "labelled rows with a prediction",
            "lacking": "labelled rows without one", "unknown": "rows without a label",
            "again": "rows that repeat an id", "test": "test predictions",
        },
        formats=dict.fromkeys(("rows", "used", "lacking", "unknown", "again", "test"), ",.0f"),
    )  # fmt: skip


def _folds(examined: Sequence[Examined]) -> HtmlTable:
    rows = []
    for one in examined:
        pooled, within, gap = one.facts.auc or _NONE, one.within or _NONE, one.difference or _NONE
        by_fold = [value for value in one.by_fold if not np.isnan(value)]
        rows.append({
            "run": one.run.name, "folds": len(one.run.folds) or np.nan, "known": one.folds_from or "not known",
            "torn": one.torn if one.run.folds else np.nan, "auc": pooled.value, "low": pooled.low, "high": pooled.high,
            "within": within.value, "mean": float(np.mean(by_fold)) if by_fold else np.nan,
            "gap": gap.value, "gap_low": gap.low, "gap_high": gap.high, "shift": one.shift, "held_out": one.held_out,
        })  # fmt: skip
    return table(
        pd.DataFrame(rows),
        intervals={"auc": ("low", "high"), "gap": ("gap_low", "gap_high")},
        heads={
            "known": "how the folds are known", "torn": "groups in several folds", "auc": "AUC, pooled",
            "within": "AUC of ranks within nets", "mean": "mean AUC of folds", "gap": "within nets − pooled",
            "gap_low": "paired interval", "shift": "scale shift of nets", "held_out": "rows held out",
        },
        formats={"folds": ".0f", "torn": ",.0f", "gap": "+.4f", "shift": ".1f"},
    )  # fmt: skip


def _values(examined: Sequence[Examined]) -> HtmlTable:
    frame = facts_table([one.facts for one in examined]).drop(columns="AUC")
    frame = frame.rename(columns={"oof p 5/50/95 %": "oof", "test p": "test"})
    frame.insert(1, "scale", [one.run.scale for one in examined])
    return table(
        frame,
        heads={
            "scale": "written as", "distinct": "different values", "oof": "out-of-fold p at 5 / 50 / 95 %",
            "test": "test p", "distance": "distance out-of-fold to test", "corr.": "rank correlation",
            "on test": "the same on test rows",
        },
        formats={"distinct": ",.0f", "distance": ".2f", "corr.": ".3f", "on test": ".3f"},
    )  # fmt: skip


_NONE = Interval(np.nan, np.nan, np.nan, np.nan)


def _figure(examined: Sequence[Examined], claim: BlendClaim | None) -> Drawing | None:
    drawn = []
    if claim is not None:
        drawn.append(Estimate("blend, nested", *_bounds(claim.nested), strong=True))
        if claim.given is not None:
            drawn.append(Estimate("blend as given", *_bounds(claim.given)))
    with_auc = [(one.run.name, one.facts.auc) for one in examined[:MAX_DRAWN] if one.facts.auc is not None]
    drawn += [Estimate(name, *_bounds(value)) for name, value in with_auc if not np.isnan(value.low)]
    if not drawn:
        return None
    reference = claim.claimed if claim is not None else None
    return interval_figure("aucs", drawn, axis="AUC", reference=reference)


def _bounds(found: Interval) -> tuple[float, float, float]:
    return found.value, found.low, found.high


def _compared(claim: BlendClaim) -> HtmlTable:
    """Returns the AUCs of the blend by what was chosen on the rows that are scored."""
    rows: list[tuple[str, Interval, str, Interval]] = []
    if claim.claimed is not None:
        stated = Interval(claim.claimed, np.nan, np.nan, np.nan)
        gain = Interval(claim.claimed - claim.best.value, np.nan, np.nan, np.nan)
        rows.append(("claimed", stated, "as its author states", gain))
    if claim.given is not None and claim.given_gain is not None:
        rows.append(("blend as given", claim.given, "by its author, with these rows at hand", claim.given_gain))
    rows.append((
        f"nested ({claim.chosen} on all rows)", claim.nested, "method and weights, on the other folds",
        claim.nested_gain,
    ))  # fmt: skip
    rows.append((f"best file alone: {claim.best_file}", claim.best, "the file, on these rows", _NONE))
    frame = pd.DataFrame([
        {
            "estimate": name, "auc": value.value, "low": value.low, "high": value.high, "chosen_how": how,
            "gain": gain.value, "gain_low": gain.low, "gain_high": gain.high,
        }
        for name, value, how, gain in rows
    ])  # fmt: skip
    return table(
        frame,
        intervals={"auc": ("low", "high"), "gain": ("gain_low", "gain_high")},
        heads={
            "chosen_how": "what was chosen, and on what",
            "gain": "gain over the best file",
            "gain_low": "paired interval",
        },
        formats={"gain": "+.4f"},
    )  # fmt: skip


def _methods(claim: BlendClaim) -> HtmlTable:
    return table(
        claim.methods,
        intervals={"nested": ("low", "high")},
        tags={claim.chosen: "chosen"},
        formats={"gap": "+.4f"},
    )

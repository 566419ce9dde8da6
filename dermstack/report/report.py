"""Builds the report page of a blend: its performance, the evidence for it, and its parts."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dermstack.report.figures import Drawing
from dermstack.report.report_data import (
    Calibration,
    Comparison,
    DataFacts,
    Decision,
    ReportData,
    Training,
)
from dermstack.report.report_parts import Parts, report_parts, subgroup_verdicts
from dermstack.report.review import band_sentences, review_doubts, sentences_on_tests
from dermstack.report.tables import breakable, head_width, number, signed, with_code_spans
from dermstack.report.training import MAX_RUNS, at_the_limit, missing_curves
from stack.metrics.intervals import Interval
from stack.settings.level2 import UNEXPLAINED

TEMPLATE_FOLDER = Path(__file__).parent


class Section(NamedTuple):
    """One `<section>` of the page; ``style`` goes into the page's style sheet, ``script`` is already in ``markup``.

    ``tables`` are the numbers of its tables, by their ids on the page, and ``figures`` its figures by name, for files.
    """

    markup: Markup
    style: str = ""
    script: str = ""
    tables: Mapping[str, pd.DataFrame] = {}
    figures: Mapping[str, Drawing] = {}


def script_policy(*scripts: str) -> str:
    """Returns the `script-src` value of a Content-Security-Policy that lets only these scripts run."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts if text]
    return " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"


def render_template(template: str, **values: object) -> Markup:
    """Renders a template of this folder; text in ``values`` is escaped, and a missing name is an error."""
    return Markup(page_templates().get_template(template).render(**values))


@cache
def page_templates() -> Environment:
    """Returns the Jinja environment of the pages, with the filters of their tables.

    It is kept, as compiling the templates takes longer than rendering them; a changed template is compiled again.
    """
    templates = environment()
    templates.filters |= {
        "percent": percent, "count": count, "number": number, "signed": signed, "verdict": _verdict,
        "breakable": breakable, "head_width": head_width, "with_code_spans": with_code_spans,
    }  # fmt: skip
    return templates


def environment(*, autoescape: bool = True) -> Environment:
    """Returns the Jinja environment for this folder: missing names are errors, block tags leave no blank lines."""
    return Environment(
        loader=FileSystemLoader(TEMPLATE_FOLDER),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def percent(share: float | None, digits: int = 1) -> str:
    """Formats a share: 0.9021 → 90.2 %; None and NaN are a dash."""
    return number(None if share is None else float(share), f".{digits}%")


def count(number: float) -> str:
    """Formats a count: 1234 → 1,234."""
    return f"{number:,.0f}"


__all__ = ["Calibration", "Comparison", "DataFacts", "Decision", "ReportData", "Training", "report_html"]

# Sections that are rendered elsewhere and passed in with their markup. Below: id and title of all, in page order.
OPTIONAL_SECTIONS = ("participants", "sources", "explorer", "gaps", "hard-cases", "second-look")
CONTENTS = {
    "result": "Result",
    "participants": "Rows and patients",
    "sources": "Other sources",
    "curves": "Curves",
    "explorer": "Threshold",
    "calibration": "Calibration",
    "decision": "Decision curve",
    "review": "Images for a person",
    "runs": "Runs",
    "methods": "Blend methods",
    "subgroups": "Subgroups",
    "gaps": "Gaps between subgroups",
    "hard-cases": "Most confident errors",
    "second-look": "Labels to check",
    "importance": "Features used",
    "training": "Training",
    "studies": "Studies",
    "data": "Data and folds",
    "settings": "Settings",
}


class _Entry(NamedTuple):
    """A section of the page; if `markup` is None, it is rendered from its template."""

    name: str
    title: str
    markup: Markup | None


def report_html(data: ReportData, sections: Mapping[str, Section] | None = None, parts: Parts | None = None) -> str:
    """Returns the page as HTML: it needs no network, is the same for the same data, and escapes text in `data`.

    `sections` maps names of OPTIONAL_SECTIONS to a `<section>` whose id is that name, with its style and script. The
    page's policy lets only these scripts run; without them the page has no JavaScript. `parts` are the figures and
    tables of `data`, where they were made already.
    """
    sections, parts = sections or {}, parts or report_parts(data)
    for place, section in sections.items():
        assert place in OPTIONAL_SECTIONS, f"{place}: the page has places for {', '.join(OPTIONAL_SECTIONS)}"
        assert f'id="{place}"' in section.markup, f"{place}: a section of another id"
    entries = [
        _Entry(name, title, sections[name].markup if name in sections else None)
        for name, title in page_sections(data, sections).items()
    ]
    prevalence = float(np.mean(data.y))
    page = (TEMPLATE_FOLDER / "page.css").read_text(encoding="utf-8")
    template = page_templates().get_template("report.html.j2")
    return template.render(
        data=data,
        entries=entries,
        style=Markup("\n".join(dict.fromkeys([page, *(section.style for section in sections.values())]))),
        scripts=script_policy(*(section.script for section in sections.values())),
        objective=parts.objective,
        prevalence=prevalence,
        prevalence_loss=prevalence * math.log(prevalence) + (1 - prevalence) * math.log(1 - prevalence),
        within=parts.within,
        chosen_alone=_chosen_alone(data),
        worsened=_worsened_log_loss(data.calibration),
        made_of=_made_of(data),
        tables=parts.tables,
        figures=parts.figures,
        verdicts=subgroup_verdicts(data.subgroups, data.unit),
        review_sentences=band_sentences(data.review.band, data.unit) if data.review else [],
        review_doubts=review_doubts(data.review.subgroups, data.unit) if data.review else [],
        review_tests=sentences_on_tests(data.review.band, data.unit) if data.review else [],
        most_training=MAX_RUNS,
        without_curves=missing_curves(data.training) if data.training else [],
        at_the_limit=at_the_limit(data.training) if data.training else [],
        unexplained=data.runs.loc[data.runs["kind"].isin(UNEXPLAINED), "run"].tolist(),
    )


def page_sections(data: ReportData, sections: Mapping[str, Section]) -> dict[str, str]:
    """Returns the titles of the sections that the page has, by their ids, in its order."""
    empty = _empty_sections(data) | (set(OPTIONAL_SECTIONS) - set(sections))
    titles = CONTENTS | {"review": f"{data.unit.capitalize()}s for a person"}
    return {name: title for name, title in titles.items() if name not in empty}


def _empty_sections(data: ReportData) -> set[str]:
    """Returns the names of the sections that have nothing to show."""
    given = {
        "calibration": data.calibration is not None,
        "decision": data.decision is not None,
        "review": data.review is not None,
        "methods": len(data.methods) > 0,
        "subgroups": data.subgroups is not None and len(data.subgroups) > 0,
        "importance": data.importance is not None,
        "training": data.training is not None,
        "studies": len(data.studies) > 0,
    }
    return {name for name, there in given.items() if not there}


def _chosen_alone(data: ReportData) -> float | None:
    """Returns the nested value of the chosen method in every fold, if it is not the headline itself."""
    own = (
        data.methods.loc[data.methods["method"] == data.chosen, "nested"]
        if len(data.methods)
        else pd.Series(dtype=float)
    )
    differs = len(own) and number(float(own.iloc[0])) != number(data.headline.value)  # as they are shown
    return float(own.iloc[0]) if differs else None


def _worsened_log_loss(calibration: Calibration | None) -> tuple[float, float, str] | None:
    """Returns the log loss of the best probability before calibration, that after it, and which was the best.

    None where the calibration lowered it.
    """
    if calibration is None:
        return None
    scores = calibration.scores
    best = (
        scores.iloc[:-1].sort_values("log loss", kind="stable").iloc[0] if len(scores) > 1 else None
    )  # last: calibrated
    after = float(scores["log loss"].iloc[-1])
    if best is None or after <= best["log loss"] + 5e-5:
        return None
    return float(best["log loss"]), after, str(best["probability"])


def _made_of(data: ReportData) -> str:
    """Lists the runs of the blend with their share of the weights, the largest first."""
    shares = data.weights.set_index("run")["weight"].sort_values(ascending=False)
    total = float(shares.sum())
    named = [
        f"{run} ({100 * share / total:.0f}\N{NO-BREAK SPACE}%)"
        for run, share in shares.items()
        if total and share / total >= 0.005
    ]
    return ", ".join(named)


def _verdict(difference: Interval) -> str:
    """Describes a paired difference (this blend minus another score) by its interval."""
    if difference.low > 0:
        return "better, beyond noise"
    return "worse, beyond noise" if difference.high < 0 else "no difference beyond noise"

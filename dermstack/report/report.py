"""The report: one page that says how good the blend is, how that is known and what it is made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jinja2 import Environment
from markupsafe import Markup

from dermstack.report.report_data import Calibration, Comparison, DataFacts, Decision, ReportData
from dermstack.report.report_panels import OBJECTIVES, panels, subgroup_verdicts, tables
from dermstack.report.section import HERE, Section, environment, script_policy
from dermstack.report.tables import breakable, coded, number, signed
from stack.metrics.intervals import Interval
from stack.metrics.scores import auc_by_fold

__all__ = ["Calibration", "Comparison", "DataFacts", "Decision", "ReportData", "report_html"]

# The page from top to bottom: id and title of each section. Of these the ones that bring their own markup:
PLACES = ("explorer", "hard-cases", "second-look")
_CONTENTS = {
    "result": "Result",
    "curves": "Curves",
    "explorer": "Threshold",
    "calibration": "Calibration",
    "decision": "Decision curve",
    "runs": "Runs",
    "methods": "Ways to blend",
    "subgroups": "Subgroups",
    "hard-cases": "Misses and false alarms",
    "second-look": "Labels to look at",
    "importance": "What it looks at",
    "studies": "Studies",
    "data": "Data and folds",
    "settings": "Settings",
}


class _Entry(NamedTuple):
    """A section of the page; without `markup` it has a template."""

    name: str
    title: str
    markup: Markup | None


def report_html(data: ReportData, sections: Mapping[str, Section] | None = None) -> str:
    """The page as text: no network, the same for the same data; text in `data` is escaped.

    `sections` stand at their PLACES: a `<section>` whose id is the place's name, with its style and its script, which
    the page's policy lets run and nothing else. Without them the page has no JavaScript.
    """
    sections = sections or {}
    for place, section in sections.items():
        assert place in PLACES, f"{place}: the page has places for {', '.join(PLACES)}"
        assert f'id="{place}"' in section.markup, f"{place}: a section of another id"
    empty = _empty(data) | (set(PLACES) - set(sections))
    entries = [
        _Entry(name, title, sections[name].markup if name in sections else None)
        for name, title in _CONTENTS.items()
        if name not in empty
    ]
    prevalence = float(np.mean(data.y))
    within = auc_by_fold(data.y, next(iter(data.curves.values())), data.fold).rename("auc_of_blend")
    objective = OBJECTIVES.get(data.objective, data.objective)
    page = (HERE / "page.css").read_text(encoding="utf-8")
    template = _templates().get_template("report.html.j2")
    return template.render(
        data=data,
        entries=entries,
        style=Markup("\n".join(dict.fromkeys([page, *(section.style for section in sections.values())]))),
        scripts=script_policy(*(section.script for section in sections.values())),
        objective=objective,
        prevalence=prevalence,
        prevalence_loss=prevalence * math.log(prevalence) + (1 - prevalence) * math.log(1 - prevalence),
        within=within,
        made_of=_made_of(data),
        tables=tables(data, within),
        figures=panels(data, objective),
        verdicts=subgroup_verdicts(data.subgroups),
    )


def _empty(data: ReportData) -> set[str]:
    """The sections that have nothing to show."""
    given = {
        "calibration": data.calibration is not None,
        "decision": data.decision is not None,
        "methods": len(data.methods) > 0,
        "subgroups": data.subgroups is not None and len(data.subgroups) > 0,
        "importance": data.importance is not None,
        "studies": len(data.studies) > 0,
    }
    return {name for name, there in given.items() if not there}


def _made_of(data: ReportData) -> str:
    """The runs that the blend lives on, by their share of the weights."""
    shares = data.weights.set_index("run")["weight"].sort_values(ascending=False)
    total = float(shares.sum())
    named = [f"{run} {100 * share / total:.0f} %" for run, share in shares.items() if total and share / total >= 0.005]
    return ", ".join(named)


def _templates() -> Environment:
    templates = environment()
    templates.filters |= {"number": number, "signed": signed, "verdict": _verdict, "breakable": breakable}
    templates.filters["coded"] = coded
    return templates


def _verdict(difference: Interval) -> str:
    """Whether a paired difference, this blend less another, stands out of the noise."""
    if difference.low > 0:
        return "better, beyond noise"
    return "worse, beyond noise" if difference.high < 0 else "no difference beyond noise"

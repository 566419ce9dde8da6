"""Renders an answered checklist as a page whose answers link to their evidence in the report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from markupsafe import Markup

from dermstack.report.pack.answer import Answer
from dermstack.report.pack.checklist import AUTHOR, FROM_RUN, IN_PART, Checklist, Line
from dermstack.report.pack.run_evidence import Evidence
from dermstack.report.report import TEMPLATE_FOLDER, render_template

PAGE = "report.html"


class Link(NamedTuple):
    """A place where evidence stands."""

    label: str
    href: str


def evidence_links(
    answer: Answer, sections: Mapping[str, str], anchors: Collection[str], tables: Collection[str] = ()
) -> list[Link]:
    """Returns links to the places of an answer that exist.

    ``sections`` are the titles of the report's sections by their ids, ``anchors`` all ids of its page, ``tables`` the
    names of the csv files in `tables/`.
    """
    made = []
    for place in dict.fromkeys(answer.places):
        if place in sections:
            made.append(Link(sections[place], f"{PAGE}#{place}"))
        elif f"{place}-caption" in anchors:
            made.append(Link(f"table {place.replace('-', ' ')}", f"{PAGE}#{place}-caption"))
        if place in tables:
            made.append(Link(f"{place}.csv", f"tables/{place}.csv"))
    return made


def checklist_html(
    checklist: Checklist,
    lines: Sequence[Line],
    evidence: Evidence,
    *,
    anchors: Collection[str],
    tables: Collection[str] = (),
) -> str:
    """Returns the page: every item with its answer and links, or with what is left to the author."""
    counted = {status: sum(line.status == status for line in lines) for status in (FROM_RUN, IN_PART, AUTHOR)}
    style = [(TEMPLATE_FOLDER / name).read_text(encoding="utf-8") for name in ("page.css", "checklist.css")]
    return str(
        render_template(
            "checklist.html.j2",
            checklist=checklist,
            experiment=evidence.data.experiment,
            created=evidence.data.created,
            style=Markup("\n".join(style)),
            counted=counted,
            total=len(lines),
            page=PAGE,
            sections=[(section, list(of)) for section, of in groupby(lines, key=lambda line: line.section)],
            links=lambda line: list(
                dict.fromkeys(
                    link
                    for answer in line.answers
                    for link in evidence_links(answer, evidence.sections, anchors, tables)
                )
            ),
        )
    )

"""Reads the item lists of reporting checklists and answers each item from a run, or leaves it to the author by name."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dermstack.errors import ConfigError
from dermstack.report.pack import answers_data, answers_model, answers_results
from dermstack.report.pack.answer import Answer
from dermstack.report.pack.run_evidence import Evidence

FACTS = answers_data.FACTS | answers_model.FACTS | answers_results.FACTS

FROM_RUN, IN_PART, AUTHOR = "answered from the run", "answered in part", "for the author"


class Checklist(NamedTuple):
    """A published checklist: its name in the command, its title, where it is published, and what it is for."""

    name: str
    title: str
    source: str
    doi: str
    purpose: str  # what it asks
    judged: bool = False  # whether each item is a question that an assessor judges

    @property
    def items(self) -> list[dict[str, str]]:
        """The items in their published order: item, section, topic, asks, facts and author.

        Numbers, order and sections are those of the publication; topics and wording are shortened and ours. ``facts``
        are names in FACTS, ``author`` is what no run can know.
        """
        path = Path(__file__).with_name(f"{self.name}.csv")
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))


CHECKLISTS = {
    one.name: one
    for one in (
        Checklist(
            "tripod-ai",
            "TRIPOD+AI",
            "Collins GS, Moons KGM, Dhiman P, et al. TRIPOD+AI statement: updated guidance for reporting clinical "
            "prediction models that use regression or machine learning methods. BMJ 2024;385:e078378 (CC BY 4.0)",
            "10.1136/bmj-2023-078378",
            "what a report of a prediction model should say (27 items, 52 with their parts)",
        ),
        Checklist(
            "claim",
            "CLAIM, 2024 update",
            "Tejani AS, Klontzas ME, Gatti AA, et al. Checklist for Artificial Intelligence in Medical Imaging "
            "(CLAIM): 2024 update. Radiology: Artificial Intelligence 2024;6(4):e240300",
            "10.1148/ryai.240300",
            "what a report of artificial intelligence in medical imaging should say (44 items)",
        ),
        Checklist(
            "probast-ai",
            "PROBAST+AI",
            "Moons KGM, Damen JAA, Kaul T, et al. PROBAST+AI: an updated quality, risk of bias, and applicability "
            "assessment tool for prediction models using regression or artificial intelligence methods. "
            "BMJ 2025;388:e082505",
            "10.1136/bmj-2024-082505",
            "for the quality of development (16 questions, D) and the risk of bias of evaluation (18 questions, E)",
            judged=True,
        ),
    )
}


@dataclass(frozen=True)
class Line:
    """One item with what the run says to it, and what is left to the author."""

    item: str
    section: str
    topic: str
    asks: str
    answers: tuple[Answer, ...]
    author: tuple[str, ...]

    @property
    def status(self) -> str:
        """Whether the run answers the item: wholly, in part, or not at all."""
        if not self.answers:
            return AUTHOR
        return IN_PART if self.author else FROM_RUN


def checklists_named(names: Iterable[str]) -> list[Checklist]:
    """Returns the checklists with these names, each once; raises ConfigError for an unknown name."""
    for name in (names := list(dict.fromkeys(names))):
        if name not in CHECKLISTS:
            *others, last = CHECKLISTS
            raise ConfigError(f"unknown checklist {name!r}: choose {', '.join(others)} or {last}")
    return [CHECKLISTS[name] for name in names]


def answered(checklist: Checklist, evidence: Evidence) -> list[Line]:
    """Answers every item of a checklist; where the run has no evidence of a kind, the item says what then lacks."""
    lines = []
    for item in checklist.items:
        answers, lacking = [], []
        for name in item["facts"].split():
            fact = FACTS[name]
            found = fact.answer(evidence)
            if found is None:
                lacking.append(fact.lacking)
            else:
                answers.append(found)
                lacking += found.author
        left = dict.fromkeys([*([item["author"]] if item["author"] else []), *lacking])
        lines.append(Line(item["item"], item["section"], item["topic"], item["asks"], tuple(answers), tuple(left)))
    return lines


def checklist_table(lines: Iterable[Line]) -> pd.DataFrame:
    """Returns one row for each item, as text: its question, status, answer, evidence and what is left to the author."""
    return pd.DataFrame(
        [
            {
                "item": line.item, "section": line.section, "topic": line.topic, "question": line.asks,
                "status": line.status, "answer": " ".join(answer.text for answer in line.answers),
                "evidence": "; ".join(dict.fromkeys(place for answer in line.answers for place in answer.places)),
                "for the author": "; ".join(line.author),
            }
            for line in lines
        ]
    )  # fmt: skip

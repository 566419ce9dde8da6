"""Reporting checklists: their item lists, answers that come from a run only, and blanks that are named."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
from test_report_sections import make_full_data

from dermstack.errors import ConfigError
from dermstack.report.pack.answer import Answer
from dermstack.report.pack.checklist import AUTHOR, CHECKLISTS, FACTS, FROM_RUN, answered, checklists_named
from dermstack.report.pack.checklist_page import evidence_links
from dermstack.report.pack.run_evidence import Counts, Evidence, Model
from dermstack.report.report import page_sections
from dermstack.report.report_parts import page_tables
from stack.config import config_of
from stack.metrics.scores import auc_by_fold


def made_evidence(**changes: object) -> Evidence:
    """What a run with a stacker, a network made elsewhere, subgroups and calibration leaves behind."""
    return replace(_made_evidence(), **changes)  # type: ignore[arg-type]


@cache
def _made_evidence() -> Evidence:
    data = make_full_data()
    rows, positives = len(data.y), int(data.y.sum())
    flow = [
        ["Training", "rows in the training table", rows + 3, 3, "image cannot be read"],
        ["Training", "scored", rows, 0, ""],
    ]
    line = {
        "by": "split",
        "part": "training rows",
        "rows": rows,
        "groups": 300,
        "positives": positives,
        "prevalence": 0.2,
    }
    within = auc_by_fold(data.y, next(iter(data.curves.values())), data.fold).rename("auc_of_blend")
    frames = {name.replace("_", "-"): made.frame for name, made in page_tables(data, within).items()}
    frames |= {
        "row-flow": pd.DataFrame(flow, columns=["table", "step", "rows", "excluded", "reason"]),
        "characteristics": pd.DataFrame([line]),
    }
    return Evidence(
        data=data,
        config=config_of({
            "experiment": "made", "stackers": [{"name": "lightgbm", "kind": "lightgbm"}],
            "data": {"name": "made", "train": "t.csv", "columns": {"id": "i", "group": "p", "target": "y"}},
        }),
        blend={
            "selected": [], "tuned_in_sample": 0.87, "fingerprint": "abc",
            "calibration": {"chosen": "platt", "chosen_by_fold": {"0": "platt"}},
        },
        runs=[Model("net_a", "imported", 1, {}), Model("lightgbm", "lightgbm", 2, {"settings": {"bags": 3}})],
        counts=Counts(rows, 300, 0),
        tables=frames,
        sections=page_sections(data, {}),
        groups_known=True,
        sources=None,
        shows_images=False,
    )  # fmt: skip


def told(evidence: Evidence, fact: str) -> str:
    found = FACTS[fact].answer(evidence)
    assert found is not None
    return found.text


def test_the_lists_have_the_items_of_the_publications() -> None:
    items = {name: [item["item"] for item in checklist.items] for name, checklist in CHECKLISTS.items()}
    assert all(len(set(numbers)) == len(numbers) for numbers in items.values())
    assert len(items["tripod-ai"]) == 52
    assert list(dict.fromkeys(int(re.sub(r"\D", "", one)) for one in items["tripod-ai"])) == list(range(1, 28))
    assert items["claim"] == [str(number) for number in range(1, 45)]
    sizes = {"D1": 3, "D2": 4, "D3": 4, "D4": 5, "E1": 3, "E2": 4, "E3": 4, "E4": 7}
    assert items["probast-ai"] == [f"{domain}.{n}" for domain, size in sizes.items() for n in range(1, size + 1)]


def test_every_item_asks_for_known_facts_or_for_the_author_and_every_fact_is_asked_for() -> None:
    asked = set()
    for checklist in CHECKLISTS.values():
        for item in checklist.items:
            assert all([item["asks"], item["topic"], item["facts"] or item["author"]]), item
            asked |= set(item["facts"].split())
    assert asked == set(FACTS)


@pytest.mark.parametrize("name", CHECKLISTS)
def test_no_item_is_lost_between_the_run_and_the_author(name: str) -> None:
    for line in answered(CHECKLISTS[name], made_evidence()):
        assert line.answers or line.author, line.item
        assert (line.status == FROM_RUN) == bool(line.answers and not line.author)
        assert (line.status == AUTHOR) == (not line.answers)
        assert all(answer.text.strip() for answer in line.answers)


def test_what_a_run_lacks_is_left_blank_by_name() -> None:
    full, without = made_evidence(), made_evidence(data=replace(made_evidence().data, calibration=None, decision=None))
    before, after = (
        {line.item: line for line in answered(CHECKLISTS["probast-ai"], of)}["E4.7"] for of in (full, without)
    )
    assert "slope" in " ".join(answer.text for answer in before.answers)
    assert "slope" not in " ".join(answer.text for answer in after.answers)
    assert [blank.partition(" (")[0] for blank in after.author] == ["calibration", "net benefit"]


def test_what_then_lacks_is_named_by_each_answer_that_can_be_missing_and_by_no_other() -> None:
    for name, fact in FACTS.items():
        can_be_missing = "None" in fact.answer.__annotations__["return"]
        assert bool(fact.lacking) == can_be_missing, name


def test_the_training_of_imported_runs_is_the_authors_and_no_answer_of_the_run() -> None:
    evidence = made_evidence()
    own = replace(evidence, runs=evidence.runs[1:])
    for fact in ("training", "imbalance", "missing", "leakage", "software"):
        with_imported, alone = FACTS[fact].answer(evidence), FACTS[fact].answer(own)
        assert with_imported is not None
        assert alone is not None
        assert any("net_a" in blank for blank in with_imported.author), fact
        assert alone.author == (), fact


def test_answers_have_the_numbers_of_the_run() -> None:
    evidence = made_evidence()
    data, headline = evidence.data, evidence.data.headline
    assert f"Of {len(data.y)} images that are scored, {data.y.sum()} (" in told(evidence, "outcome")
    interval = f"{headline.value:.3f} (95 % interval {headline.low:.3f} to {headline.high:.3f})"
    assert interval in told(evidence, "performance")
    assert "3 of the table Training (image cannot be read)" in told(evidence, "exclusions")
    slope = float(data.calibration.scores["slope"].iloc[-1])  # type: ignore[union-attr]
    assert f"slope {slope:.2f}" in told(evidence, "calibration")


def test_only_what_the_headline_says_to_be_nested_is_called_so() -> None:
    evidence = made_evidence()
    plain = replace(evidence, data=replace(evidence.data, headline_label="measured once"))
    for name in FACTS:
        found = FACTS[name].answer(plain)
        assert found is None or "nested" not in found.text, name


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"negatives": 0.5}, "50.0 % of the negatives"), ({"positive_weight": 3.0}, "weighted by 3"), ({}, "No model")],
)
def test_class_imbalance_is_what_the_run_was_fitted_with(settings: dict[str, float], words: str) -> None:
    runs = [Model("lightgbm", "lightgbm", 2, {"settings": settings})]
    assert words in told(made_evidence(runs=runs), "imbalance")


def test_what_cannot_be_bundled_is_not_said_to_be() -> None:
    table_alone = made_evidence(runs=made_evidence().runs[1:])
    assert "no image model" in told(table_alone, "specification")
    with_net = made_evidence(runs=[Model("net", "image", 1, {})])
    assert "`dermstack bundle` writes" in told(with_net, "specification")


def test_sections_have_the_titles_of_the_page() -> None:
    sections = {"review": "Units for a person"}
    evidence = made_evidence(sections=sections)
    assert "Units for a person" in told(evidence, "measures")
    labels = [link.label for link in evidence_links(Answer("x", ("review",)), sections, {"review"})]
    assert labels == ["Units for a person"]


def test_links_lead_to_places_that_exist_only() -> None:
    answer = Answer("x", ("result", "folds", "row-flow", "gaps"))
    links = evidence_links(answer, {"result": "Result"}, {"result", "folds-caption"}, ("folds", "row-flow"))
    assert [link.href for link in links] == [
        "report.html#result", "report.html#folds-caption", "tables/folds.csv", "tables/row-flow.csv",
    ]  # fmt: skip


def test_an_unknown_checklist_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown checklist 'stard': choose tripod-ai, claim or probast-ai"):
        checklists_named(["claim", "stard"])

"""Reporting checklists: their item lists, answers that come from a run only, and blanks that are named."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

import pandas as pd
import pytest
from test_report_sections import make_full_data
from test_source_estimates import estimates

from dermstack.errors import ConfigError
from dermstack.report.pack.answer import Answer
from dermstack.report.pack.checklist import AUTHOR, CHECKLISTS, FACTS, FROM_RUN, answered, checklists_named
from dermstack.report.pack.checklist_page import evidence_links
from dermstack.report.pack.run_evidence import Counts, Evidence, Model
from dermstack.report.report import page_sections
from dermstack.report.report_parts import page_tables
from stack.metrics.scores import auc_by_fold
from stack.settings.config import config_of
from stack.sources.estimates import LEVEL_2_ONLY

# The published lists: section, then the number of each item with a word of its text. They were typed in November 2026
# from sources other than the csv files that are tested:
# - TRIPOD+AI, table 2 of BMJ 2024;385:e078378, from three transcriptions (one of them Aperivue/medsci-skills,
#   skills/check-reporting/references/checklists/TRIPOD_AI.md, compared there with the official supplements);
# - CLAIM 2024, from the guideline's text in the publisher's repository RSNA/CLAIM (docs/checklist.md, docs/item-*.md);
# - PROBAST+AI, BMJ 2025;388:e082505, from cekahn/ROADMAP (supports-audit.md) and raphaelfh/prumo
#   (backend/app/seed_probast_ai.py); the numbers of questions, 16 and 18, are those of the article's abstract.
PUBLISHED = {
    "tripod-ai": """
        Title | 1 outcome
        Abstract | 2 abstracts
        Introduction | 3a context, 3b pathway, 3c inequalities, 4 objectives
        Methods | 5a representative, 5b dates, 6a centres, 6b eligibility, 6c treatments, 7 quality, 8a horizon
        Methods | 8b demographic, 8c blinding, 9a initial, 9b measured, 9c demographic, 10 size, 11 missing
        Methods | 12a partitions, 12b transformation, 12c tuning, 12d heterogeneity, 12e plots, 12f updating
        Methods | 12g calculated, 13 imbalance, 14 fairness, 15 thresholds, 16 differences, 17 consent
        Open science | 18a funders, 18b conflicts, 18c protocol, 18d registration, 18e data, 18f code
        Patient and public involvement | 19 public
        Results | 20a flow, 20b characteristics, 20c distribution, 21 events, 22 restrictions, 23a performance
        Results | 23b heterogeneity, 24 updating
        Discussion | 25 interpretation, 26 limitations, 27a input, 27b expertise, 27c next
    """,
    "claim": """
        Title or abstract | 1 technology
        Abstract | 2 summary
        Introduction | 3 background, 4 hypotheses
        Methods: study design | 5 retrospective, 6 goal
        Methods: data | 7 sources, 8 exclusion, 9 preprocessing, 10 subsets, 11 de-identification, 12 missing
        Methods: data | 13 acquisition
        Methods: reference standard | 14 definition, 15 rationale, 16 annotators, 17 test, 18 variability
        Methods: data partitions | 19 partitions, 20 disjoint
        Methods: testing data | 21 size
        Methods: model | 22 description, 23 libraries, 24 parameters
        Methods: training | 25 training, 26 selected, 27 ensembling
        Methods: evaluation | 28 metrics, 29 significance, 30 robustness, 31 explainability, 32 internal, 33 external
        Methods: evaluation | 34 registration
        Results: data | 35 excluded, 36 demographic
        Results: model performance | 37 metrics, 38 diagnostic, 39 incorrect
        Discussion | 40 limitations, 41 practice
        Other information | 42 protocol, 43 availability, 44 funders
    """,
    "probast-ai": """
        Development 1: participants and data sources | D1.1 sources, D1.2 design, D1.3 inclusions
        Development 2: predictors | D2.1 defined, D2.2 pre-processing, D2.3 knowledge, D2.4 available
        Development 3: outcome | D3.1 appropriately, D3.2 participants, D3.3 knowledge, D3.4 time
        Development 4: analysis | D4.1 size, D4.2 continuous, D4.3 censored, D4.4 recalibrated, D4.5 overfitting
        Evaluation 1: participants and data sources | E1.1 sources, E1.2 design, E1.3 inclusions
        Evaluation 2: predictors | E2.1 defined, E2.2 pre-processing, E2.3 knowledge, E2.4 available
        Evaluation 3: outcome | E3.1 appropriately, E3.2 participants, E3.3 knowledge, E3.4 time
        Evaluation 4: analysis | E4.1 apparent, E4.2 size, E4.3 censored, E4.4 imbalance, E4.5 leakage, E4.6 resampling
        Evaluation 4: analysis | E4.7 calibration
    """,
}


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


def published(name: str) -> list[tuple[str, str, str]]:
    """The section, number and word of each item in PUBLISHED."""
    items = []
    for line in PUBLISHED[name].strip().splitlines():
        section, _, listed = line.partition("|")
        for item in listed.split(","):
            number, word = item.split()
            items.append((section.strip(), number, word))
    return items


@pytest.mark.parametrize("name", CHECKLISTS)
def test_the_lists_are_complete_and_in_the_published_order(name: str) -> None:
    items = CHECKLISTS[name].items
    assert [(item["section"], item["item"]) for item in items] == [of[:2] for of in published(name)]
    assert len({item["item"] for item in items}) == len(items)


def test_the_lists_have_the_numbers_of_items_that_their_publications_state() -> None:
    numbers = {name: [item["item"] for item in checklist.items] for name, checklist in CHECKLISTS.items()}
    assert len(numbers["tripod-ai"]) == 52
    assert list(dict.fromkeys(int(re.sub(r"\D", "", one)) for one in numbers["tripod-ai"])) == list(range(1, 28))
    assert numbers["claim"] == [str(number) for number in range(1, 45)]
    parts = [one[0] for one in numbers["probast-ai"]]
    assert (parts.count("D"), parts.count("E")) == (16, 18)


@pytest.mark.parametrize("name", CHECKLISTS)
def test_each_item_asks_what_the_published_item_of_its_number_asks(name: str) -> None:
    for item, (_, number, word) in zip(CHECKLISTS[name].items, published(name), strict=True):
        assert word in f"{item['topic']} {item['asks']}".lower(), number


def test_the_first_three_domains_ask_the_same_of_development_and_evaluation() -> None:
    asked = {item["item"]: item for item in CHECKLISTS["probast-ai"].items}
    for number, item in asked.items():
        if number[:2] in ("D1", "D2", "D3"):
            other = asked[f"E{number[1:]}"]
            assert (other["topic"], other["asks"], other["author"]) == (item["topic"], item["asks"], item["author"])
            assert set(item["facts"].split()) <= set(other["facts"].split()), number


def test_the_questions_that_can_be_not_applicable_are_those_with_an_asterisk_in_the_official_form() -> None:
    # The page that maps the form in raphaelfh/prumo names them, from table 3 of the article's supplement.
    items = CHECKLISTS["probast-ai"].items
    assert [item["item"] for item in items if item["asks"].startswith("If ")] == ["D4.4", "E4.4", "E4.5", "E4.6"]


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


def test_the_estimate_by_source_is_told_without_advice_how_to_set_a_config() -> None:
    found = estimates(0.6)
    seen = replace(found.strictest, held_out=LEVEL_2_ONLY, seen_by=("net_a",))
    text = told(replace(made_evidence(), sources=replace(found, estimates=(found.own, seen))), "clusters")
    assert "net_a had been trained on other images of it. Expect less." in text
    assert "train_by_source" not in text
    assert "See the section" not in text


def test_the_blend_is_chosen_and_weighted_as_the_run_did_it() -> None:
    """Of several methods that gain over the reference, the highest bound is taken, not the simplest that none beats."""
    data = make_full_data()
    weights = pd.DataFrame({"run": ["net_a", "lightgbm"], "weight": [0.0, 0.8]})
    for chosen in ("rank_logistic", "averaged_logistic", "mean/logistic", "mean", "hill_climb"):
        evidence = made_evidence(data=replace(data, chosen=chosen, weights=weights))
        assert "the one whose gain has the highest lower bound" in told(evidence, "building")
        assert "no other beats" not in told(evidence, "building")
        assert ("shrunk towards equal ones" in told(evidence, "overfitting")) == chosen.endswith("logistic")
        assert "Weights on all rows: lightgbm 100.0 % (net_a has weight 0)" in told(evidence, "ensembling")


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


def test_the_features_that_contribute_most_are_named_largest_first_and_unused_ones_are_not() -> None:
    found = told(made_evidence(), "predictive")
    assert found.endswith("level 2: lightgbm: `net_a`, `site` and `age_group_min`; logistic: `net_a`.")


def test_the_part_of_an_image_that_is_used_is_that_of_the_settings_and_named_only_for_networks() -> None:
    evidence = made_evidence()
    assert "No network" in told(evidence, "cropping")
    given = {"train": "t.csv", "images": "i", "columns": {"id": "i", "group": "p", "target": "y"}}
    for resize, words in (("square", "as a whole"), ("short_side", "central square")):
        data = {"name": "made", **given, "resize": resize}
        config = config_of(
            {"experiment": "made", "data": data, "image_models": [{"name": "net", "backbone": "resnet18"}]}
        )
        net = replace(evidence, config=config, runs=[Model("net", "image", 1, {})])
        assert words in told(net, "cropping")


def test_a_network_is_described_with_loss_schedule_and_every_detail_that_is_not_off() -> None:
    data = {"name": "made", "train": "t.csv", "images": "i", "columns": {"id": "i", "group": "p", "target": "y"}}
    plain = {"name": "net", "backbone": "resnet18"}
    full = {**plain, "warmup": 0.2, "focal_gamma": 2, "label_smoothing": 0.05, "layer_decay": 0.8, "clip_norm": 1}

    def said(model: dict[str, object]) -> str:
        config = config_of({"experiment": "made", "data": data, "image_models": [model]})
        return told(made_evidence(config=config, runs=[Model("net", "image", 1, {})]), "training")

    for part in (
        "20.0 % of the steps",
        "focal loss with gamma 2",
        "label smoothing 0.05, layer decay 0.8, clip norm 1",
    ):
        assert part in said(full)
    assert "cross-entropy as loss" in said(plain)
    assert not re.search("smoothing|decay 1|clip|mixup|focal", said(plain))


def test_doubts_of_models_are_no_agreement_between_raters() -> None:
    lines = {line.item: line for line in answered(CHECKLISTS["claim"], made_evidence())}
    assert lines["18"].status == AUTHOR
    assert "label_doubts" in CHECKLISTS["claim"].items[14]["facts"]


def test_what_cannot_be_bundled_is_not_said_to_be() -> None:
    imported = made_evidence(runs=[Model("net", "imported", 1, {})])
    assert "The models behind net are not in it: their predictions must be given." in told(imported, "specification")
    table_alone, with_net = (
        made_evidence(runs=made_evidence().runs[1:]),
        made_evidence(runs=[Model("net", "image", 1, {})]),
    )
    for bundled in (table_alone, with_net):
        assert "`dermstack bundle` writes" in told(bundled, "specification")


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

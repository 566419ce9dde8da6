"""The report's sections on rows, patients and gaps, of experiments with and without what they are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml
from html_page import Page
from imported_experiment import COLUMNS, opened_experiment, write_experiment
from test_report import hold_together, make_data

from dermstack.report.fairness import fairness_sections
from dermstack.report.gaps import gaps_section, verdict_text
from dermstack.report.report import report_html
from dermstack.report.row_flow import SAME_ID, SAME_IMAGE, UNREADABLE, Flow, Step, flow_table, row_flows
from dermstack.report.units import Scored
from stack.console import Out
from stack.experiment import Curation, Experiment, open_experiment
from stack.metrics.gaps import AUC, BOUNDED, DIFFERS, RATIO, SENSITIVITY, SPECIFICITY, TOO_FEW, Gaps
from stack.metrics.subgroups import shown_subgroups


def made_blend(experiment: Experiment, *, without: int = 0) -> SimpleNamespace:
    """Scores of a made-up model for the training rows, the first ``without`` left out."""
    rng = np.random.default_rng(0)
    score = experiment.target + rng.normal(0, 1, len(experiment.target))
    oof = pd.DataFrame({
        "id": experiment.table.train["id"], "score": score, "p_calibrated": 1 / (1 + np.exp(1.5 - 1.5 * score)),
    }).iloc[without:]  # fmt: skip
    return SimpleNamespace(frame=lambda part: oof, meta={})


def opened(config: Path, **curated: str) -> Experiment:
    """The experiment without the rows ``curated``: reason by id."""
    given = opened_experiment(config)
    dropped = pd.DataFrame({"id": list(curated), "source": "train", "reason": list(curated.values())}, dtype="str")
    return open_experiment(
        given.config, config, Out(quiet=True), curation=Curation(dropped, given.curation.pairs, "fingerprint")
    )


def rendered(experiment: Experiment, **changes: int) -> Page:
    made = fairness_sections(experiment, made_blend(experiment, **changes), [], Scored(experiment, []))  # type: ignore[arg-type]
    page = Page(report_html(make_data(), {name: section for name, section in made.items() if section}))
    hold_together(page)
    return page


def read(experiment: Experiment, name: str) -> pd.DataFrame:
    return pd.read_csv(experiment.folder / "report" / f"{name}.csv", dtype={"part": str}, keep_default_na=True)


def test_given_rows_are_used_or_excluded_with_a_reason(tmp_path: Path) -> None:
    experiment = opened(write_experiment(tmp_path), **{"0003": "cut short", "0004": "cut short"})
    given = len(pd.read_csv(tmp_path / "train.csv"))
    runs = [SimpleNamespace(name="net", meta={"excluded": 3}), SimpleNamespace(name="other", meta={"excluded": 0})]
    flows = row_flows(experiment, np.arange(given - 2) >= 3, runs)  # type: ignore[arg-type]
    training, test = flows
    assert training.steps[0].rows == given
    assert training.excluded == {UNREADABLE: 2, "not covered by the imported run net (as declared)": 3}
    assert training.steps[-1].rows == given - 5 == given - sum(training.excluded.values())
    assert [step.rows for step in test.steps] == [len(pd.read_csv(tmp_path / "test.csv"))] * 2
    table = flow_table(flows)
    assert table["excluded"].sum() == 5
    assert list(table.columns) == ["table", "step", "rows", "excluded", "reason"]


def test_test_rows_and_external_rows_are_counted_too(tmp_path: Path) -> None:
    experiment = opened(write_experiment(tmp_path))
    test = experiment.table.test
    names = [f"e{number}" for number in range(10)]
    external = pd.DataFrame({"id": names, "source": "more", "group": names, "target": 0})
    dropped = pd.DataFrame({
        "id": ["e1", "e2", "e3", test["id"].iloc[0]], "source": ["more"] * 3 + ["test"],
        "reason": ["the same image as 0001", "the same image as 0002", "cut short", "cut short"],
    })  # fmt: skip
    data = experiment.config.data.model_copy(update={"external": (SimpleNamespace(name="more"),)})
    experiment = replace(
        experiment, external_as_read=external, collided={"more": 4},
        curation=replace(experiment.curation, dropped=dropped),
        table=replace(experiment.table, test=test.iloc[1:].reset_index(drop=True)),
        config=experiment.config.model_copy(update={"data": data}),
    )  # fmt: skip
    _, of_test, of_external = row_flows(experiment, np.ones(len(experiment.target), bool), [])
    assert of_external.excluded == {SAME_ID: 4, SAME_IMAGE: 2, UNREADABLE: 1}
    assert [step.rows for step in of_external.steps] == [14, 7]
    assert [step.rows for step in of_test.steps] == [len(test), len(test) - 1]
    assert sum(of_test.excluded.values()) == 1


def test_numbers_that_do_not_add_up_are_never_shown() -> None:
    Flow("Training", (Step("given", 10, {"a": 2, "b": 1}), Step("used", 7)))
    with pytest.raises(AssertionError, match="not the 8 of 'used'"):
        Flow("Training", (Step("given", 10, {"a": 2, "b": 1}), Step("used", 8)))


def test_characteristics_are_those_of_the_rows(tmp_path: Path) -> None:
    experiment = opened(write_experiment(tmp_path))
    page = rendered(experiment, without=3)
    assert {"participants", "gaps"} <= {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    found, train = read(experiment, "characteristics"), experiment.table.train.iloc[3:]
    lines = found.set_index(["by", "part"])
    whole = lines.loc[("split", "training rows that are scored")]
    assert whole[["rows", "groups", "positives"]].tolist() == [
        len(train), train["group"].nunique(), train["target"].sum(),
    ]  # fmt: skip
    assert whole[["age_low", "age", "age_high"]].tolist() == pytest.approx(np.percentile(train["age"], [25, 50, 75]))
    assert whole["sex_missing"] == train["sex"].isna().sum() > 0
    male = train[train["sex"] == "male"]
    assert lines.loc[("sex", "male"), "prevalence"] == pytest.approx(male["target"].mean())
    assert lines.loc[("sex", "not known"), "rows"] == whole["sex_missing"]
    for by in ("fold", "sex", "age", "site"):
        assert found.loc[found["by"] == by, "rows"].sum() == len(train)
    test = lines.loc[("split", "test rows")]
    assert test["rows"] == len(experiment.table.test)
    assert np.isnan(test["positives"])


@pytest.mark.parametrize("lacking", [("age", "sex", "site"), ("age", "sex", "site", "group"), ("test",), ("sex",)])
def test_pages_without_columns_or_test_rows_hold_together(tmp_path: Path, lacking: tuple[str, ...]) -> None:
    config = write_experiment(tmp_path)
    settings = yaml.safe_load(config.read_text())
    settings["data"]["columns"] = {name: csv for name, csv in COLUMNS.items() if name not in lacking}
    if "test" in lacking:
        settings["data"].pop("test")
        settings["data"].pop("sample_submission")
    config.write_text(yaml.safe_dump(settings))
    experiment = opened_experiment(config)
    page = rendered(experiment)
    sections = {attributes.get("id") for tag, attributes in page.tags if tag == "section"}
    assert "participants" in sections
    assert ("gaps" in sections) == ("site" not in lacking)
    found = read(experiment, "characteristics")
    assert ("sex_missing" in found) == ("sex" not in lacking)
    assert found["groups"].notna().all() == ("group" not in lacking)
    assert ("test rows" in found["part"].tolist()) == ("test" not in lacking)
    assert (len(read(experiment, "gaps")) > 0) == ("site" not in lacking)


def test_codes_of_a_skin_tone_are_subgroups() -> None:
    rows = pd.DataFrame({
        "fitzpatrick": [1.0, 2.0, 2.0, np.nan], "age_of_camera": [1.0, 2.0, 3.0, 3.0], "words": ["a", "b", "b", "b"],
        "skin_tone": [0.11, 0.25, 0.3, 0.31],
    })  # fmt: skip
    numeric = {"fitzpatrick": "Fitzpatrick type", "age_of_camera": "age_of_camera", "skin_tone": "skin_tone"}
    parts, left = shown_subgroups(rows, {"words": "words"}, numeric)
    assert {(part.by, part.name, int(part.rows.sum())) for part in parts} == {
        ("Fitzpatrick type", "1", 1), ("Fitzpatrick type", "2", 2), ("Fitzpatrick type", "not known", 1),
        ("words", "a", 1), ("words", "b", 3),
    }  # fmt: skip
    assert left == 0


def test_a_bound_is_never_rounded_below_the_interval() -> None:
    line = {"verdict": BOUNDED, "measure": AUC, "low": -0.08121, "high": 0.03}
    assert verdict_text(line) == "no gap larger than 0.082 is compatible"
    share = {"verdict": BOUNDED, "measure": SENSITIVITY, "low": -0.08121, "high": 0.03}
    assert verdict_text(share) == "no gap larger than 8.2 points is compatible"
    ratio = {"verdict": BOUNDED, "measure": RATIO, "low": 0.74, "high": 1.2}
    assert verdict_text(ratio) == "no gap beyond a factor of 1.36 is compatible"


def test_missed_positives_come_first_and_higher_values_are_folded_away() -> None:
    measures = [(SPECIFICITY, "specificity 90 %"), (AUC, ""), (SENSITIVITY, "specificity 90 %"), (RATIO, "")]
    differing = {
        ("head", SPECIFICITY): -0.2, ("neck", AUC): -0.1, ("hand", SENSITIVITY): -0.3, ("foot", SENSITIVITY): 0.2,
        ("nose", RATIO): 2.0,
    }  # fmt: skip
    lines = [
        ("site", name, kind, aim, differing.get((name, kind), 0.5), DIFFERS if (name, kind) in differing else TOO_FEW)
        for name in ("head", "neck", "hand", "foot", "nose")
        for kind, aim in measures
    ]
    frame = pd.DataFrame(lines, columns=["by", "subgroup", "measure", "aim", "gap", "verdict"]).assign(
        threshold=0.1, rows=50, groups=40, value=0.8, rest=0.7, seen=0.1
    )
    frame = frame.assign(low=frame["gap"] - 0.05, high=frame["gap"] + 0.05)
    section = gaps_section(Gaps(frame, 20, 3.0), thresholds="were chosen", source="gaps.csv")
    assert section is not None
    page = str(section.markup)
    places = [page.index(f"<li>site {name}: ") for name in ("hand", "nose", "neck", "head", "foot")]
    assert places == sorted(places)
    assert places[3] < page.index("1 gaps where") < places[4]
    assert "+20.0" in page
    assert "30.0 percentage points lower" in page
    of_units = gaps_section(Gaps(frame, 20, 3.0), thresholds="were chosen", source="gaps.csv", unit="unit")
    assert of_units is not None
    assert Page(of_units.markup).text == Page(page).text.replace("an image", "a unit").replace("images", "units")
    assert "image" not in of_units.markup

"""A table of hundreds of columns, whose names hold any character, through bundle, report, EDA and app."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from markupsafe import escape
from wide_experiment import ODD, PART, TELLING, WORDS, write_wide_experiment

from dermstack.errors import DataError
from dermstack.serve.bundle import Bundle, read_bundle
from dermstack.serve.expectations import MAX_MEASURED, cost_notes, lacking_columns, read_costs, read_promise
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.patient import Ensemble, Photo, read_patient
from dermstack.serve.predict import predict_rows
from stack.console import Out
from stack.experiment import open_experiment
from stack.level2.importance import TOP_COLUMNS
from stack.settings.config import read_config
from stack.store import read_run

pytestmark = pytest.mark.slow
QUIET = Out(quiet=True)


@pytest.fixture(scope="module")
def config(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wide_experiment(small_data, tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def bundle(config: Path) -> Bundle:
    path = config.parent / "bundle"
    assert run_cli("bundle", "-c", str(config), "--out", str(path), "-q") == 0
    return read_bundle(path)


def test_the_columns_that_are_used_most_are_measured_alone_and_the_rest_together(bundle: Bundle) -> None:
    costs = read_costs(bundle)
    inputs = bundle.table_inputs
    assert set(costs.order) == set(inputs)
    assert {*ODD, TELLING, WORDS, PART} <= set(inputs.values())
    assert costs.order[0] == TELLING
    alone = [names[0] for names in costs.by_columns if len(names) == 1 and names[0] in inputs]
    assert alone == costs.order[:MAX_MEASURED]
    told = costs.of([TELLING])
    assert told is not None
    assert told.value < -0.02
    rest, everything = costs.of(costs.order[MAX_MEASURED:]), costs.of(costs.order)
    assert rest is not None
    assert everything is not None
    assert everything.value < rest.value
    assert costs.of([TELLING, costs.order[1]]) is None


def test_a_missing_column_is_named_once_as_in_the_csv_with_its_cost(
    bundle: Bundle, config: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    test = pd.read_csv(config.parent / "test.csv", dtype=str, keep_default_na=False)
    command = ["predict", "--bundle", str(bundle.folder), "--images", str(small_data / "images")]
    for number, absent in enumerate(([TELLING], [PART], [TELLING, PART, ODD[1], WORDS], [])):
        test.drop(columns=absent).to_csv(tmp_path / "new.csv", index=False)
        out = tmp_path / f"p{number}.csv"
        assert run_cli(*command, "--metadata", str(tmp_path / "new.csv"), "--out", str(out)) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("further columns of training are missing") == bool(absent)
        for name in absent:
            assert repr(name) in said
        assert pd.read_csv(out)["score"].notna().all()
    (note,) = cost_notes(bundle, [TELLING])
    cost = read_costs(bundle).of([TELLING])
    assert cost is not None
    assert f"without it, AUC on the training rows changes by {cost.value:+.4f}" in note
    (note,) = cost_notes(bundle, [TELLING, read_costs(bundle).order[-1]])
    assert "the change without all of them was not measured" in note
    every = cost_notes(bundle, list(bundle.table_inputs))
    assert len(every) == 1
    assert len(every[0]) < 600
    assert f"… {len(bundle.table_inputs)} in all" in every[0]


def test_without_a_csv_all_columns_are_missing_and_the_cost_is_that_of_all_together(
    bundle: Bundle, small_data: Path
) -> None:
    rows = read_new_rows(bundle, small_data / "images", None)
    *_, last = cost_notes(bundle, rows.missing)
    whole = max(read_costs(bundle).by_columns, key=len)
    assert set(rows.missing) == set(whole)
    cost = read_costs(bundle).of(whole)
    assert cost is not None
    assert last == f"without all of these, AUC on the training rows changes by {cost.value:+.4f} " + (
        f"(95 % interval {cost.low:+.4f} to {cost.high:+.4f})"
    )
    lacking, found = lacking_columns(bundle, rows.frame, rows.missing)
    assert found == cost
    assert TELLING in lacking


def test_an_empty_column_counts_as_lacking_and_one_that_no_model_uses_does_not(bundle: Bundle, config: Path) -> None:
    table = open_experiment(read_config(config), config, QUIET).table
    frame = table.test.assign(**{TELLING: np.float32(np.nan)})
    lacking, cost = lacking_columns(bundle, frame, [])
    assert lacking == [TELLING]
    assert cost == read_costs(bundle).of([TELLING])
    assert lacking_columns(bundle, table.test, []) == ([], None)


def test_evaluate_shows_subgroups_by_further_columns_of_words_beside_those_of_training(
    bundle: Bundle, config: Path, small_data: Path, tmp_path: Path
) -> None:
    command = ["evaluate", "--bundle", str(bundle.folder), "--images", str(small_data / "images"), "--device", "cpu"]
    labels = config.parent / "train.csv"
    assert run_cli(*command, "--labels", str(labels), "--out", str(tmp_path / "out"), "-q") == 0
    parts = json.loads((tmp_path / "out" / "evaluation.json").read_text(encoding="utf-8"))["subgroups"]
    rows = pd.read_csv(labels, dtype=str, keep_default_na=False)
    found = {part["subgroup"]: part for part in parts if part["by"] == WORDS}
    assert {word: part["rows"] for word, part in found.items()} == rows[WORDS].value_counts().to_dict()
    page = (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")
    assert str(escape(f"{WORDS}: <two>")) in page
    promised = {(part["by"], part["subgroup"]): part for part in read_promise(bundle).subgroups}
    assert "ward" in {by for by, _ in promised}
    for word, part in found.items():  # an AUC is missing where a subgroup has too few groups of a class
        assert part["promised_auc"] == promised[WORDS, word]["auc"]
        assert part["rows"] == promised[WORDS, word]["rows"]  # the same rows, which are those of training


def test_the_report_has_a_bar_for_each_column_that_matters_and_one_for_all_others(config: Path) -> None:
    assert run_cli("report", "-c", str(config), "-q") == 0
    experiment = open_experiment(read_config(config), config, QUIET)
    kept = read_run(experiment.folder / "report" / "importance")
    assert kept is not None
    frame = kept.frame("importance")
    for stacker in ("gbdt", "line"):
        columns = frame[(frame["stacker"] == stacker) & (frame["of"] == "column")]
        assert columns["name"].iloc[0] == TELLING
        assert columns["size"].is_monotonic_decreasing
        assert {*ODD, WORDS, "ward", "age", "sex", "site", "twice <it>"} <= set(columns["name"])
        (rest,) = frame.loc[(frame["stacker"] == stacker) & (frame["of"] == "rest"), "name"]
        assert rest == f"{len(columns) - TOP_COLUMNS:,} other columns"
    path = experiment.folder / "report.html"
    page = path.read_text(encoding="utf-8")
    assert "<script>alert(1)" not in page
    assert "<b>bold</b>" not in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "scanner “A/B”: &lt;two&gt;" in page  # a subgroup
    assert path.stat().st_size < 2e6
    card = (experiment.folder / "model_card.md").read_text(encoding="utf-8")
    assert "299 columns of numbers and 2 columns of words of the table" in card
    (line,) = re.findall(r"\| columns of numbers \(299\) \|.*", card)
    assert line.count("`, `") == 49, "the first fifty"
    assert line.endswith(", … 299 in all |")
    assert "`<script>alert(1)</script>`" in card
    assert "`twice <it>` = `` 2 * `only in an [expression]` ``" in card


def test_the_eda_page_lists_all_columns_and_why_others_were_left_out(config: Path) -> None:
    assert run_cli("eda", "-c", str(config), "-q") == 0
    experiment = open_experiment(read_config(config), config, QUIET)
    page = (experiment.folder / "eda.html").read_text(encoding="utf-8")
    table = page.partition('id="number-columns-caption"')[2].partition("</table>")[0]
    assert table.count("<tr>") == 1 + 300  # with the head
    first = table.partition("<tbody>")[2].partition("</tr>")[0]
    assert "diameter &lt;mm&gt;" in first
    for name in (*ODD, "measure 288"):
        assert str(escape(name)) in table.replace("<wbr>", ""), name
    assert "<script>alert(1)" not in page
    left_out = page.partition("not used</summary>")[2].partition("</dl>")[0]
    assert "only features.derived uses it" in left_out
    assert "the config does not name it" in left_out
    assert len(page) < 2e6


def test_the_app_asks_for_the_columns_that_matter_most_and_scores_as_predict_does(
    bundle: Bundle, config: Path, small_data: Path, tmp_path: Path
) -> None:
    ensemble = Ensemble(bundle, device="cpu")
    assert ensemble.questions[0].csv == TELLING
    assert ensemble.questions[0].low is not None
    words = {question.csv: question.words for question in ensemble.questions}
    assert words[WORDS] == ["<two>", 'one "1"', "three"]
    assert len(words["ward"] or []) == 30  # the rare ones too
    test = pd.read_csv(config.parent / "test.csv", dtype=str, keep_default_na=False).iloc[6:7]  # without an empty cell
    values = {question.csv: test[question.csv].iloc[0] for question in ensemble.questions}
    (picture,) = (small_data / "images").glob(f"{test['image_name'].iloc[0]}.*")
    reading = read_patient(ensemble, [Photo(picture.name, picture.read_bytes())], values=values)
    assert not any("further columns" in note for note in reading.notes)
    columns = [*values, "image_name", "patient_id"]
    test[columns].to_csv(tmp_path / "new.csv", index=False)
    made = predict_rows(
        bundle, read_new_rows(bundle, small_data / "images", tmp_path / "new.csv"), tmp_path / "w", QUIET
    )
    assert reading.lesions[0].score == made["score"].iloc[0]
    poor = read_patient(ensemble, [Photo(picture.name, picture.read_bytes())], values={TELLING: "1234"})
    assert any(f"the value 1234 of {TELLING} lies outside" in note for note in poor.notes)
    assert sum("further columns" in note for note in poor.notes) == 1
    for bad in ({TELLING: "wide"}, {WORDS: "four"}, {"strange": "1"}, {TELLING: "inf"}):
        with pytest.raises(DataError, match=r"not a number|does not occur|no column"):
            read_patient(ensemble, [Photo(picture.name, picture.read_bytes())], values=bad)

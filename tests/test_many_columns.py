"""A table of hundreds of columns, whose names hold any character, through bundle, report, EDA and app."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from wide_experiment import ODD, PART, TELLING, WORDS, write_wide_experiment

from dermstack.serve.bundle import Bundle, read_bundle
from dermstack.serve.expectations import MAX_MEASURED, cost_notes, lacking_columns, read_costs
from dermstack.serve.predict import read_new_rows
from stack.config import read_config
from stack.console import Out
from stack.experiment import open_experiment

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
        assert said.count("columns of training without a role are missing") == bool(absent)
        for name in absent:
            assert repr(name) in said
        assert pd.read_csv(out)["score"].notna().all()
    (note,) = cost_notes(bundle, [TELLING])
    cost = read_costs(bundle).of([TELLING])
    assert cost is not None
    assert f"changes auc by {cost.value:+.4f}" in note
    (note,) = cost_notes(bundle, [TELLING, read_costs(bundle).order[-1]])
    assert "together was not measured" in note
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
    assert last == f"without all of these: on the training rows, this changes auc by {cost.value:+.4f} " + (
        f"[{cost.low:+.4f}, {cost.high:+.4f}]"
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

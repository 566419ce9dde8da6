"""Law: rows are joined by id. A row that has no place, or two, is an error that names it, never another row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imported_experiment import opened_experiment, write_experiment

from dermstack.errors import StoreError
from stack.store import row_positions


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30, unique=True), st.data())
def test_each_id_is_found_where_it_stands(among: list[str], data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.sampled_from(among), max_size=40))
    assert [among[place] for place in row_positions(ids, among, "rows")] == ids


def test_a_stranger_is_named_and_takes_no_row() -> None:
    with pytest.raises(StoreError, match="2 ids are not among the rows of net, first 'x': make the run again"):
        row_positions(["a", "x", "y"], ["a", "b"], "the rows of net")


def test_a_double_is_named() -> None:
    with pytest.raises(StoreError, match="the rows of net hold the id 'b' twice"):
        row_positions(["a"], ["a", "b", "b"], "the rows of net")


def test_an_experiment_finds_its_training_rows_and_no_test_row(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path))
    ids = experiment.table.train["id"]
    np.testing.assert_array_equal(experiment.rows_of(ids[::-1]), np.arange(len(ids))[::-1])
    with pytest.raises(StoreError, match="are not among the training rows of"):
        experiment.rows_of(experiment.table.test["id"])

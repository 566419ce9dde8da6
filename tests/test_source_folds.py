from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dermstack.errors import DataError
from stack.folds import Folds
from stack.source_folds import folds_by_source, main_sources, read_sources, source_units, torn_units


def made(group: list[object], source: list[object], target: list[int], *, k: int = 5, seed: int = 0) -> Folds:
    ids = [f"i{number}" for number in range(len(group))]
    frame = pd.DataFrame({"id": ids, "group": group, "split_group": group, "fold": 0})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return folds_by_source(Folds(frame), pd.DataFrame({"source": source, "target": target}), k=k, seed=seed)


rows_of = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 7), st.integers(0, 1)), min_size=8, max_size=120)


@settings(max_examples=60)
@given(rows_of, st.integers(2, 6), st.integers(0, 2))
def test_no_source_and_no_group_is_in_two_folds(rows: list[tuple[int, int, int]], k: int, seed: int) -> None:
    group, source, target = (list(values) for values in zip(*rows, strict=True))
    unit = source_units([f"s{one}" for one in source], group).unit
    holding = [len(set(unit[np.array(target) == label])) for label in (0, 1)]
    assume(min(holding) >= 2)
    folds = made(group, [f"s{one}" for one in source], target, k=k, seed=seed)
    fold = folds.frame["fold"].to_numpy()
    for values in (group, source):
        assert (pd.Series(fold).groupby(values).nunique() == 1).all()
    assert folds.k == min(k, *holding)
    for number in range(folds.k):
        assert set(np.array(target)[fold == number]) == {0, 1}


def test_there_are_as_many_folds_as_sources_where_these_are_fewer() -> None:
    source = ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    folds = made(list(range(12)), source, [0, 1] * 6, k=5)
    assert folds.k == 3
    assert folds.frame["fold"].groupby(source).nunique().tolist() == [1, 1, 1]
    frame = folds.frame.assign(fold=0)
    with pytest.warns(UserWarning, match="3 folds instead of 5"):
        folds_by_source(Folds(frame), pd.DataFrame({"source": source, "target": [0, 1] * 6}), k=5, seed=0)


def test_sources_that_share_a_patient_are_one_unit_also_along_chains() -> None:
    units = source_units(["a", "b", "b", "c", "d"], ["p", "p", "q", "q", "r"])
    assert units.unit.tolist() == ["a + b + c"] * 4 + ["d"]
    assert units.joined == ("a + b + c",)
    assert units.shared_groups == 2


def test_one_source_alone_cannot_be_held_out() -> None:
    with pytest.raises(DataError, match="1 of 1 sources"):
        made(["p", "q", "r", "s"], ["a"] * 4, [0, 1, 0, 1])
    with pytest.raises(DataError, match="after those that share 1 split groups were joined"):
        made(["p", "p", "r", "s"], ["a", "b", "a", "b"], [0, 1, 0, 1])


def test_a_row_without_a_source_may_come_from_the_one_that_is_held_out() -> None:
    for refuses in (source_units, main_sources):
        with pytest.raises(DataError, match="1 of 3 training rows have no source"):
            refuses(["a", None, "b"], ["p", "q", "r"])


@settings(max_examples=60)
@given(rows_of)
def test_what_is_kept_of_main_sources_has_whole_groups_and_whole_sources(rows: list[tuple[int, int, int]]) -> None:
    group, source, _ = (np.array(values) for values in zip(*rows, strict=True))
    found = main_sources(source, group)
    kept = ~found.left_out
    assert (found.unit[kept] == source[kept].astype(str)).all()
    assert (pd.Series(found.unit).groupby(group).nunique() == 1).all()
    assert (pd.Series(source[kept]).groupby(group[kept]).nunique() == 1).all()
    assert set(group[kept]) == set(group), "every group keeps its main source"
    for one in set(group):
        counts = pd.Series(source[group == one]).value_counts()
        assert (kept & (group == one)).sum() == counts.max()


def test_torn_units_are_those_in_two_folds() -> None:
    assert torn_units(["a", "a", "b", "c", "c"], [0, 1, 1, 2, 2]) == ["a"]


def test_sources_of_a_file_are_joined_by_id(tmp_path: Path) -> None:
    path = tmp_path / "sources.csv"
    path.write_text("image,source\nz,Basel\ny,\nx,Vienna\n", encoding="utf-8")
    found = read_sources(path, "image", pd.Series(["x", "y", "z"]))
    assert found.tolist()[::2] == ["Vienna", "Basel"]
    assert pd.isna(found[1])
    with pytest.raises(DataError, match=r"data\.sources .* lacks 1 of 2 training ids, first 'w'"):
        read_sources(path, "image", pd.Series(["x", "w"]))


def test_sources_of_a_file_are_read_as_those_of_a_column(tmp_path: Path) -> None:
    path, ids = tmp_path / "sources.csv", pd.Series(list("uvwxyz"))
    path.write_text("image,source\nu,1\nv,1.0\nw,2.0\nx,NA\ny,nan\nz,None\n", encoding="utf-8")
    found = read_sources(path, "image", ids)
    assert found[0] == found[1] == "1", "a source in two spellings would be trained on while it is held out"
    assert found[2] == "2.0"
    assert found[3:].isna().all(), "a word for an unknown source is no source"

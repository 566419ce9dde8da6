from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from imported_experiment import opened_experiment, write_experiment
from numpy.typing import NDArray
from pandas._typing import ArrayLike
from pandas.arrays import ArrowStringArray

from dermstack.audit.rows import listed_duplicate_findings
from dermstack.errors import ConfigError, DataError, StoreError
from dermstack.report.row_flow import LISTED, UNREADABLE, row_flows
from stack.level1.image_runs import check_fresh
from stack.store import write_run
from stack.tables.external import ExternalRows, duplicates_of_primary, read_external
from stack.tables.table import Table

COLUMNS = {"id": "isic", "group": "patient", "target": "malignant", "age": "years"}


@pytest.fixture
def primary() -> Table:
    rows = {"age": np.float32(50), "sex": "male", "site": "torso"}
    return Table(
        pd.DataFrame({"id": ["a", "b"], "group": ["p1", "p2"], "target": [0, 1], **rows}),
        pd.DataFrame({"id": ["t"], "group": ["p3"], **rows}),
    )


def read(folder: Path, primary: Table, *, on_collision: str = "refuse", **changes: list[str]) -> ExternalRows:
    cells = {
        "isic": ["x", "y", "z"],
        "patient": ["p1", "", "-1"],
        "malignant": ["1", "1", "1"],
        "years": ["", "3", "4"],
    }
    pd.DataFrame(cells | changes).to_csv(folder / "more.csv", index=False)
    columns = {name: column for name, column in COLUMNS.items() if column in cells | changes}
    return read_external(folder / "more.csv", name="more", columns=columns, primary=primary, on_collision=on_collision)


def test_a_patient_number_used_twice_is_two_patients(tmp_path: Path, primary: Table) -> None:
    rows = read(tmp_path, primary)
    assert set(rows.frame["group"]).isdisjoint(primary.train["group"])
    assert rows.shared == 1
    assert "1 row has a group with the name" in str(rows.warnings()), "they may be one patient after all"
    assert read(tmp_path, primary, patient=["p7", "", "-1"]).warnings() == []


@pytest.mark.parametrize(("known", "given"), [("17", "17.0"), ("17.0", "17"), ("caf\u00e9", "cafe\u0301")])
def test_a_patient_number_is_used_twice_in_any_spelling(tmp_path: Path, primary: Table, known: str, given: str) -> None:
    primary = replace(
        primary, train=primary.train.assign(group=[known, known]), test=primary.test.assign(group=[known])
    )
    assert read(tmp_path, primary, patient=[given, "", "-1"]).shared == 1


def test_rows_without_a_patient_are_one_each(tmp_path: Path, primary: Table) -> None:
    rows = read(tmp_path, primary)
    assert rows.ungrouped == 2
    assert rows.frame["group"].nunique() == 3
    assert "2 without a group are groups of one" in rows.summary()


def test_a_table_without_groups_and_of_one_class_will_do(tmp_path: Path, primary: Table) -> None:
    pd.DataFrame({"isic": ["x", "y"], "malignant": [1, 1]}).to_csv(tmp_path / "more.csv", index=False)
    columns = {"id": "isic", "target": "malignant"}
    rows = read_external(tmp_path / "more.csv", name="more", columns=columns, primary=primary, on_collision="refuse")
    assert rows.frame["target"].tolist() == [1, 1]
    assert rows.ungrouped == 2


@pytest.mark.parametrize("taken", ["a", "t"])
def test_ids_of_train_and_test_are_refused_or_dropped_and_counted(tmp_path: Path, primary: Table, taken: str) -> None:
    with pytest.raises(DataError, match=rf"1 ids are also in train or test, first: {taken}: .*on_collision: drop"):
        read(tmp_path, primary, isic=["x", taken, "z"])
    rows = read(tmp_path, primary, isic=["x", taken, "z"], on_collision="drop")
    assert rows.frame["id"].tolist() == ["x", "z"]
    assert rows.collided == 1
    assert "1 dropped, as their ids are in train or test" in rows.summary()


def test_rows_are_checked_as_those_of_train(tmp_path: Path, primary: Table) -> None:
    with pytest.raises(DataError, match=r"target '7' \(row 3\)(.|\n)*age 'old'"):
        read(tmp_path, primary, malignant=["0", "7", "1"], years=["old", "", ""])
    with pytest.raises(DataError, match="in more than one row"):
        read(tmp_path, primary, isic=["x", "x", "z"])
    with pytest.raises(ConfigError, match=r"columns\.target"):
        read_external(tmp_path / "more.csv", name="m", columns={"id": "isic"}, primary=primary, on_collision="drop")


def test_copies_of_scored_pictures_go_and_copies_among_themselves_stay() -> None:
    external = pd.DataFrame({"id": ["x", "y", "z"], "source": ["more", "more", "other"]})
    pairs = pd.DataFrame({"id_1": ["a", "x", "a", "t"], "id_2": ["b", "y", "x", "z"]})
    with pytest.raises(DataError, match=r"external more: 1 images are also in train or test, first: x \(as a\)"):
        duplicates_of_primary(external, pairs, {"more": "refuse", "other": "drop"})
    gone = duplicates_of_primary(external, pairs, {"more": "drop", "other": "drop"})
    assert gone.to_numpy().tolist() == [["x", "more", "the same image as a"], ["z", "other", "the same image as t"]]


def test_a_run_made_with_external_rows_is_stale_without_them(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path))
    meta = {"inputs": {"settings": "a", "images": "b", "external rows": "c"}}
    run = write_run(experiment.models / "net", meta, frames={})
    with pytest.raises(StoreError, match="net was made with other external rows: undo the change, or rebuild"):
        check_fresh(experiment, run.folder, {"settings": "a"})
    check_fresh(experiment, run.folder, {"settings": "a", "external rows": "c"})  # level 2 has no pictures at hand


def test_a_code_that_is_declared_by_role_is_missing_under_the_external_name_of_the_column(tmp_path: Path) -> None:
    """Else a code such as 0 would be an age of the external rows, but a missing value of all others."""
    rows = pd.DataFrame({"id": ["x1", "x2"], "label": ["1", "0"], "alter": ["0", "30"]})
    rows.to_csv(tmp_path / "more.csv", index=False)
    external = {
        "name": "more", "table": "more.csv", "images": ".",
        "columns": {"id": "id", "target": "label", "age": "alter"},
    }  # fmt: skip
    config = write_experiment(tmp_path)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"] |= {"external": [external], "missing": {"age": [0]}}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    experiment = opened_experiment(config)
    np.testing.assert_array_equal(experiment.external["age"], [np.nan, 30])


def test_codes_declared_by_the_role_and_by_the_name_of_a_column_are_both_missing(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    for name in ("train.csv", "test.csv"):
        frame = pd.read_csv(tmp_path / name, dtype=str, keep_default_na=False)
        frame.loc[[0, 1, 2], "years"] = ["0", "99", "40"]
        frame.to_csv(tmp_path / name, index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    for missing in ({"age": 0, "years": 99}, {"years": 99, "age": 0}):
        settings["data"]["missing"] = missing
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        table = opened_experiment(config).table
        for frame in (table.train, table.test):
            np.testing.assert_array_equal(frame["age"][:3], [np.nan, np.nan, 40])


def test_a_listed_copy_of_a_row_of_train_or_test_trains_nothing(tmp_path: Path) -> None:
    """Else its target would train the nets that score the same lesion."""
    names = [f"x{number}" for number in range(6)]
    pd.DataFrame({"id": names, "label": ["0", "1"] * 3}).to_csv(tmp_path / "more.csv", index=False)
    external = {"name": "more", "table": "more.csv", "images": ".", "columns": {"id": "id", "target": "label"}}
    config = write_experiment(tmp_path)
    train, test = (pd.read_csv(tmp_path / f"{name}.csv", dtype=str)["isic"] for name in ("train", "test"))
    pairs = [("x0", train[3]), (test[0], "x1"), ("x2", "x3"), ("x4", "elsewhere"), (train[0], train[1])]
    pd.DataFrame(pairs, columns=["a", "b"]).to_csv(tmp_path / "pairs.csv", index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"] |= {"external": [external], "duplicates": "pairs.csv"}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(DataError, match=rf"external more: 2 images are also in .* x0 \(as {train[3]}\)"):
        opened_experiment(config)
    external["on_collision"] = "drop"
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    experiment = opened_experiment(config)
    assert experiment.external["id"].tolist() == names[2:]
    flow = row_flows(experiment, np.ones(len(train), bool), [])[-1]
    assert (flow.excluded, [step.rows for step in flow.steps]) == ({LISTED: 2}, [6, 4])
    unreadable = pd.DataFrame({"id": ["x0"], "source": ["more"], "reason": ["cut short"]})
    lost = replace(experiment, curation=replace(experiment.curation, dropped=unreadable))
    flow = row_flows(lost, np.ones(len(train), bool), [])[-1]
    assert (flow.excluded, [step.rows for step in flow.steps]) == ({LISTED: 1, UNREADABLE: 1}, [6, 4])
    without_effect = listed_duplicate_findings(experiment)[-1]
    assert without_effect.what == "listed duplicates with an id in neither csv"
    assert without_effect.evidence == "2 of 5 pairs"


def test_no_table_of_ids_is_looked_up_by_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its isin makes a Python object of each known key, which took half the time in which a million rows open."""
    config = write_experiment(tmp_path)
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)["isic"]
    pd.DataFrame({"id": "x" + train, "label": "0"}).to_csv(tmp_path / "more.csv", index=False)
    pd.DataFrame({"a": train[:3], "b": train[3:6].to_numpy()}).to_csv(tmp_path / "pairs.csv", index=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    external = {"name": "more", "table": "more.csv", "images": ".", "columns": {"id": "id", "target": "label"}}
    settings["data"] |= {"external": [external], "duplicates": "pairs.csv"}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    isin, sizes = ArrowStringArray.isin, []

    def counted(self: ArrowStringArray, values: ArrayLike) -> NDArray[np.bool_]:
        sizes.append(len(values))
        return isin(self, values)

    monkeypatch.setattr(ArrowStringArray, "isin", counted)
    opened_experiment(config)
    assert 0 < max(sizes) < len(train) / 4

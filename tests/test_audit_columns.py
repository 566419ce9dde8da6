"""The audit of columns without a role: proxies, drift and codes for "unknown", by their names in the csv."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from audited_experiment import COLUMNS, audited_experiment
from hypothesis import given, settings
from hypothesis import strategies as st

from dermstack.audit.acquisition import acquisition_facts, shortcut_columns
from dermstack.audit.drift import drift_findings
from dermstack.audit.finding import Finding
from dermstack.audit.rows import missing_code_findings, proxy_findings
from stack.level2.features import csv_of_models, metadata_of_models
from stack.settings.config import read_config
from stack.tables.columns import TableColumns, fits
from stack.tables.missing_codes import isolated_codes, missing_code_warnings, missing_codes

ODD = 'wi"dth [mm] <b>{"µ": 1}</b>'
MANY = 300


def data(numeric: Any = "auto", categorical: Any = "auto", **more: Any) -> dict[str, object]:
    return {"columns": COLUMNS | {"numeric": numeric, "categorical": categorical}, **more}


def noise(train: pd.DataFrame, test: pd.DataFrame, number: int = 5) -> None:
    rng = np.random.default_rng(0)
    for part in (train, test):
        drawn = pd.DataFrame(rng.normal(size=(len(part), number)).round(3), columns=[f"c{k}" for k in range(number)])
        with warnings.catch_warnings(action="ignore", category=pd.errors.PerformanceWarning):
            part[drawn.columns] = drawn


def named(found: list[Finding], words: str) -> Finding:
    (one,) = [finding for finding in found if words in finding.what]
    return one


def test_which_columns_models_use_follows_the_blocks_of_features(tmp_path: Path) -> None:
    columns = TableColumns({"csv.source": "source", "a": "a"}, {"w": "w"}, {"twice": "2 * once", "once": "`b [1]` + a"})
    path = tmp_path / "c.yaml"
    path.write_text(
        "experiment: e\ndata: {name: d, train: t.csv, columns: {id: i, target: t, site: place}}\n", encoding="utf-8"
    )

    def used(*overrides: str) -> set[str]:
        return metadata_of_models(read_config(path, overrides), columns)

    off = ["features.columns=false", "features.relative=[]", "features.outliers=false"]
    none = [*off, "features.metadata=false", "features.aggregates=false"]
    assert used() == {"age", "sex", "site", "csv.source", "a", "w", "twice", "once"}
    assert used(*none) == set()
    assert used(*none, "features.outliers=true") == {"csv.source", "a", "twice", "once"}
    assert used(*none, "features.relative_site=[z]") == {"site", "csv.source", "a", "twice", "once"}
    assert used(*none, "features.cohort_columns=true") == {"age", "sex", "site", "csv.source", "a", "twice", "once"}
    config = read_config(path, none)
    assert csv_of_models(config, columns) == set()
    assert csv_of_models(read_config(path), columns) == {"place", "source", "a", "w", "b [1]"}


def test_a_proxy_that_is_named_as_a_feature_is_an_error_by_its_csv_name(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        noise(train, test)
        rng = np.random.default_rng(1)
        train[ODD] = train["target"] * 9 + rng.normal(size=len(train))
        train["code"] = np.where(train["target"] == 1, "M", "N")
        train["half"] = train["target"] * 7 + rng.normal(size=len(train))
        test[ODD], test["code"], test["half"] = rng.normal(size=len(test)), "N", 1.5

    found = proxy_findings(audited_experiment(tmp_path / "a", plant, data=data([ODD, "c*"], ["code"])))
    assert named(found, f"`{ODD}`").severity == named(found, "`code`").severity == "error"
    assert "remove it from data.columns" in named(found, f"`{ODD}`").remedy
    assert named(found, "`half`").severity == "warning"
    derived = {"derived": {"twice": "2 * half"}}
    found = proxy_findings(audited_experiment(tmp_path / "b", plant, data=data(["c*"], ["code"]), features=derived))
    assert named(found, "`half`").severity == "error"
    assert "features.derived" in named(found, "`half`").remedy
    off = {"columns": False, "relative": [], "outliers": False}
    found = proxy_findings(audited_experiment(tmp_path / "c", plant, data=data([ODD], ["code"]), features=off))
    assert {finding.severity for finding in found} == {"warning"}
    assert "no model uses it" in named(found, "`code`").remedy


def test_a_declared_code_is_no_value_when_proxies_are_sought(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        for part in (train, test):
            part["size [mm]"] = np.random.default_rng(2).normal(5, 1, len(part)).round(2)
        train.loc[train["target"] == 1, "size [mm]"] = [999, *train.loc[train["target"] == 1, "size [mm]"][1:]]
        train.loc[train.index[:20], "size [mm]"] = 999

    experiment = audited_experiment(tmp_path, plant, data=data(missing={"size [mm]": [999]}))
    assert experiment.table.train["size [mm]"].max() < 100
    assert proxy_findings(experiment) == []
    assert missing_code_findings(experiment) == []


@pytest.mark.slow
def test_drift_names_its_drivers_among_hundreds_of_columns_and_lists_few_of_the_others(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        noise(train, test, MANY)
        rng = np.random.default_rng(3)
        for part, centre in ((train, 0), (test, 1.5)):
            part["c7"] = rng.normal(centre, 1, len(part))
            part.columns = [{"c7": ODD, "c8": "camera"}.get(name, name) for name in part]
        train["camera"], test["camera"] = rng.choice(["A", "B"], len(train)), rng.choice(["B", "C"], len(test))

    found = drift_findings(audited_experiment(tmp_path, plant, data=data()))
    drift = named(found, "columns that models use")
    assert drift.severity == "warning"
    drivers = drift.evidence.partition("driven by ")[2]
    assert ODD in drivers
    assert "camera (AUC" in drivers
    assert "columns in all" in drift.evidence
    assert len(drift.evidence) < 1500


def test_a_code_in_many_columns_is_one_finding_that_says_how_to_declare_it(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        noise(train, test, 40)
        for column in [f"c{k}" for k in range(30)]:
            train.loc[train.sample(frac=0.05, random_state=1).index, column] = -999
        train[ODD] = "fine"
        train.loc[train.index[::9], ODD] = "Unknown"
        test[ODD] = "fine"

    experiment = audited_experiment(tmp_path, plant, data=data())
    found = missing_code_findings(experiment)
    code = named(found, "-999 in columns of numbers")
    assert code.severity == "warning"
    assert "30 columns in all" in code.evidence
    assert 'data.missing: {"c0": [-999]}' in code.remedy
    word = named(found, "'Unknown' in columns of words")
    assert word.severity == "note"
    assert ODD in word.evidence
    (warning,) = missing_code_warnings({"train.csv": experiment.table.train}, experiment.table.columns)
    assert "train.csv: c" in warning
    assert "far from the other values" in warning


@pytest.mark.parametrize(
    ("values", "codes"),
    [
        ([*np.linspace(0, 5, 90), *[999] * 6], {999: 6}),
        ([*np.linspace(0, 5, 90), *[-9] * 6, *[99] * 7], {-9: 6, 99: 7}),
        ([*np.linspace(0, 100, 90), *[-1] * 10], {-1: 10}),  # the only negative value, and frequent
        ([*np.linspace(0, 100, 90), *[999] * 4], {}),  # too few rows
        ([*np.linspace(-5, 5, 90), *[-1] * 10], {}),  # within the others
        ([-1, 0, 1] * 40, {}),  # a sign
        (list(range(100)) * 6, {}),  # 9, 88 and 99 are counts here
        ([*np.geomspace(1, 2000, 200), *[999] * 9], {}),  # within a long tail
        ([0, 1, 2, 3] * 20 + [9] * 8, {9: 8}),
        ([1.0, 999.0] * 40, {}),  # two values say nothing
        ([], {}),
    ],
)
def test_a_number_is_a_code_where_it_is_isolated(values: list[float], codes: dict[float, int]) -> None:
    assert isolated_codes(np.array(values, float)) == codes
    assert isolated_codes(np.array([*values, np.nan], float)) == codes


@given(st.lists(st.floats(-1e6, 1e6, width=32), max_size=60), st.sampled_from([-1, -9, 99, 999, 9999]))
@settings(max_examples=60)
def test_a_reported_code_is_a_value_of_the_column_with_its_rows(values: list[float], code: float) -> None:
    given_values = np.array([*values, *[code] * 7], float)
    for found, rows in isolated_codes(given_values).items():
        assert rows == (given_values == found).sum()


def test_a_column_is_named_as_it_is_in_the_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame({"age": [50.0] * 60, "sex": "male", "site": "torso", "csv.source": [*range(50), *[-999] * 10]})
    (code,) = missing_codes(frame, columns=TableColumns({"csv.source": "source"}))
    assert code.column == "source"
    assert fits("size [mm]", "size [mm]")
    assert fits("c12", "c*")
    assert not fits("c12", "d*")


def test_a_feature_that_restates_how_an_image_was_taken_is_a_warning(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        noise(train, test)
        rng = np.random.default_rng(4)
        for part in (train, test):
            part["kilobytes"] = -part["bytes"] / 1000
            part["site code"] = (part["source"] if "source" in part else pd.Series("vienna", part.index)).str.upper()
            part["side"] = rng.choice(["left", "right"], len(part))

    experiment = audited_experiment(tmp_path, plant, data=data(["kilobytes", "c*"], ["site code", "side"]))
    found = shortcut_columns(experiment, acquisition_facts(experiment))
    assert {finding.severity for finding in found} == {"warning"}
    (size,) = [finding for finding in found if finding.what.endswith(": file size")]
    assert size.evidence == "`kilobytes` (rank correlation -1.000)"
    (source,) = [finding for finding in found if finding.what.endswith(": source")]
    assert "`site code` (100.0% of the rows)" in source.evidence
    assert len(found) == 2
    off = {"columns": False, "relative": [], "outliers": False}
    unused = audited_experiment(tmp_path / "off", plant, data=data(["kilobytes"], ["site code"]), features=off)
    assert shortcut_columns(unused, acquisition_facts(unused)) == []

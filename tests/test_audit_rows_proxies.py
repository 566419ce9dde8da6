"""A column that gives the target away is found, and is as bad as what is done with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from audited_experiment import COLUMNS, audited_experiment

from dermstack.audit.finding import Finding
from dermstack.audit.rows import numbers_or_words, proxy_findings


def named(found: list[Finding], column: str) -> Finding:
    (one,) = [finding for finding in found if f"`{column}`" in finding.what]
    return one


def test_a_clean_set_has_no_proxy(tmp_path: Path) -> None:
    assert proxy_findings(audited_experiment(tmp_path)) == []


def test_the_target_in_words_is_found_whether_mapped_or_not(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["benign_malignant"] = np.where(train["target"] == 1, "malignant", "benign")
        train["finding"] = np.where(train["target"] == 1, "melanoma", "nevus")

    found = proxy_findings(audited_experiment(tmp_path, plant, data={"columns": COLUMNS | {"diagnosis": "finding"}}))
    assert [finding.severity for finding in found] == ["note", "note"]
    assert "dermstack does not read it" in named(found, "benign_malignant").remedy
    assert "learned as a target" in named(found, "finding").remedy
    assert "only in train" in named(found, "finding").evidence


def test_a_proxy_that_models_are_given_is_an_error_and_one_in_test_a_warning(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["site"] = np.where(train["target"] == 1, "excised", train["site"])
        train["code"] = train["target"] * 3 + np.random.default_rng(0).integers(0, 2, len(train))
        test["code"] = 1

    found = proxy_findings(audited_experiment(tmp_path, plant))
    assert named(found, "site").severity == "error"
    assert "data.columns.site" in named(found, "site").remedy
    assert named(found, "code").severity == "warning"


def test_a_number_that_is_measured_of_positives_alone_is_one(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        depth = np.random.default_rng(0).gamma(2, 1, len(train)).round(2)
        train["breslow"] = np.where(train["target"] == 1, depth, np.nan)

    (found,) = proxy_findings(audited_experiment(tmp_path, plant))
    assert "`breslow`" in found.what


def test_columns_that_name_rows_or_groups_are_no_proxies(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        for part in (train, test):
            part["file"] = part["image"] + ".jpg"
            part["study"] = "S" + part["patient"]

    assert proxy_findings(audited_experiment(tmp_path, plant)) == []


def test_columns_of_train_alone_are_listed_in_one_note(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["reader"] = np.random.default_rng(0).choice(["x", "y"], len(train))
        train["hint"] = np.where(np.random.default_rng(1).random(len(train)) < 0.8, train["target"], 0)

    (found,) = proxy_findings(audited_experiment(tmp_path, plant))
    assert found.what == "columns that the test csv lacks"
    assert found.evidence.startswith("2, each with its own AUC: ")
    assert found.severity == "note"
    assert "`reader` AUC 0." in found.evidence
    assert "`hint` AUC 0.8" in found.evidence


def test_a_column_is_of_numbers_where_all_that_is_not_empty_is_one() -> None:
    assert numbers_or_words(pd.Series(["1", " 2.5", ""])).tolist()[:2] == [1, 2.5]
    assert numbers_or_words(pd.Series(["1", "two", ""])).tolist()[:2] == ["1", "two"]


def test_infinite_cells_of_a_column_that_nothing_uses_are_missing_values(tmp_path: Path) -> None:
    assert np.isnan(numbers_or_words(pd.Series(["1", "inf", "-inf", "1e39"])).tolist()[1:]).all()

    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        for part in (train, test):
            part["ratio"] = np.random.default_rng(0).normal(size=len(part))
            part.loc[part.index[:3], "ratio"] = np.inf

    assert proxy_findings(audited_experiment(tmp_path, plant)) == []

"""What leaks can be seen without pictures: each planted one is found, and what folds settle already is said so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited_experiment import COLUMNS, Change, audited_experiment

from dermstack.audit.finding import Finding
from dermstack.audit.rows import fold_findings, group_findings, listed_duplicate_findings, row_findings
from dermstack.errors import DataError
from stack.experiment import Experiment


def with_pairs(folder: Path, pick: str, change: Change | None = None) -> Experiment:
    """A list of one pair of the kind asked for, and one of a stranger."""

    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        if change:
            change(train, test)
        negative, positive = train[train["target"] == 0], train[train["target"] == 1]
        first = negative.iloc[0]
        others = negative[negative["patient"] != first["patient"]]
        second = {
            "targets": positive["image"].iloc[0], "test": test["image"].iloc[0], "groups": others["image"].iloc[0],
        }[pick]  # fmt: skip
        folder.mkdir(exist_ok=True)
        pairs = pd.DataFrame([(first["image"], second), ("ISIC_gone", second)], columns=["a", "b"])
        pairs.to_csv(folder / "pairs.csv", index=False)

    return audited_experiment(folder, plant, data={"duplicates": "pairs.csv"})


@pytest.mark.parametrize(
    ("pick", "severity", "what"),
    [
        ("targets", "error", "listed duplicates with different targets"),
        ("test", "warning", "listed duplicates across train and test"),
        ("groups", "note", "listed duplicates across groups"),
    ],
)
def test_listed_pairs_are_as_bad_as_their_kind(pick: str, severity: str, what: str, tmp_path: Path) -> None:
    pair, stranger = listed_duplicate_findings(with_pairs(tmp_path, pick))
    assert (pair.severity, pair.what, pair.evidence) == (severity, what, "1 of 2 pairs")
    assert stranger.what == "listed duplicates with an id in neither csv"
    assert "ISIC" not in pair.evidence + pair.remedy
    assert pair.example.startswith("first ISIC_")


def test_a_pair_that_the_pictures_show_is_not_reported_twice(tmp_path: Path) -> None:
    from dataclasses import replace

    experiment = with_pairs(tmp_path, "targets")
    listed = pd.read_csv(tmp_path / "pairs.csv", dtype=str).iloc[[0]]
    seen = pd.DataFrame({"id_1": listed["b"], "id_2": listed["a"], "turn": "", "distance": 0.0})
    found = listed_duplicate_findings(replace(experiment, curation=replace(experiment.curation, pairs=seen)))
    assert [finding.what for finding in found] == ["listed duplicates with an id in neither csv"]


def of(found: list[Finding], what: str) -> list[Finding]:
    return [finding for finding in found if what in finding.what]


@pytest.mark.parametrize("part", ["train", "test"])
def test_a_group_named_unknown_is_a_warning_below_the_size_that_is_refused(part: str, tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        frame = train if part == "train" else test
        frame.loc[:7, "patient"] = "Unknown"

    (finding,) = group_findings(audited_experiment(tmp_path, plant))
    assert finding.severity == "warning"
    assert f"in {part} have the group 'Unknown'" in finding.evidence
    assert finding.evidence.startswith("8 of")


def test_one_row_of_an_unknown_patient_harms_nobody(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train.loc[3, "patient"] = "unknown"

    assert group_findings(audited_experiment(tmp_path, plant)) == []


def test_a_group_far_larger_than_the_others_is_looked_at(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train.loc[:150, "patient"] = "IP_000000"

    (finding,) = group_findings(audited_experiment(tmp_path, plant))
    assert finding.severity == "warning"
    assert finding.example == "group 'IP_000000'"
    assert "IP_" not in finding.evidence


def test_groups_in_train_and_test_are_counted(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        test.loc[:4, "patient"] = train["patient"].iloc[0]

    (finding,) = of(group_findings(audited_experiment(tmp_path, plant)), "groups in train and test")
    assert finding.severity == "warning"
    assert finding.evidence.startswith("1 of ")
    assert "5 of " in finding.evidence


def test_folds_that_are_made_hold_everything_together_and_torn_ones_are_seen(tmp_path: Path) -> None:
    from dataclasses import replace

    experiment = with_pairs(tmp_path, "groups")
    (clean,) = fold_findings(experiment)
    assert clean.severity == "note"
    assert "0 of 1 pairs" in clean.evidence
    frame = experiment.folds.frame
    torn = replace(experiment, folds=replace(experiment.folds, frame=frame.assign(fold=np.arange(len(frame)) % 5)))
    assert fold_findings(torn)[0].severity == "error"


def test_an_own_fold_column_that_tears_groups_never_gets_here(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["fold"] = np.arange(len(train)) % 5

    with pytest.raises(DataError, match="the fold column splits"):
        audited_experiment(tmp_path, plant, data={"columns": COLUMNS | {"fold": "fold"}})
    (finding,) = of(row_findings(audited_experiment(tmp_path, plant)), "`fold`")
    assert finding.severity == "warning"
    assert "splits groups between folds" in finding.what


def test_rows_that_other_folds_leave_out_tear_nothing(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["fold"] = pd.factorize(train["patient"])[0] % 5
        train.loc[:30, "fold"] = -1

    assert not of(row_findings(audited_experiment(tmp_path, plant)), "`fold`")


def test_a_clean_set_has_no_alarm(tmp_path: Path) -> None:
    assert [finding.severity for finding in row_findings(audited_experiment(tmp_path))] == ["note"]


def test_columns_without_any_value_are_named_where_models_use_them(tmp_path: Path) -> None:
    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        for frame in (train, test):
            frame["blank"], frame["blank words"] = "", "NA"
            frame["size"] = np.arange(len(frame)) + 1.0

    def evidence(**features: object) -> list[str]:
        columns = {**COLUMNS, "numeric": ["size", "blank"], "categorical": ["blank words"]}
        derived = {"twice": "2 * size", "nothing": "size / (size - size)"}
        made = audited_experiment(tmp_path, plant, data={"columns": columns}, features={"derived": derived, **features})
        return [finding.evidence for finding in row_findings(made) if "any training row" in finding.what]

    (found,) = evidence()
    assert found.startswith("blank, nothing, blank words; ")
    assert evidence(columns=False, relative=[], outliers=False) == []

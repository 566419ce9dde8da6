"""Train against test by a classifier: planted drift is found and its column named, dealing at random is not drift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited_experiment import COLUMNS, Change, audited_experiment
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

import dermstack.audit.adversarial_validation
from dermstack.audit.adversarial_validation import adversarial_validation, adversarial_validation_p
from dermstack.audit.drift import drift_findings


def older(train: pd.DataFrame, test: pd.DataFrame) -> None:
    test["age"] += 20


def wider(train: pd.DataFrame, test: pd.DataFrame) -> None:
    test["width"] = 640


def test_older_patients_in_test_are_a_warning_that_names_the_age(tmp_path: Path) -> None:
    used, unused = drift_findings(audited_experiment(tmp_path, older))
    assert used.severity == "warning"
    assert used.what == "train and test differ in columns that models use"
    assert "driven by age (AUC −" in used.evidence
    assert "site (" not in used.evidence
    assert "[" in used.evidence
    assert "do not differ significantly" in unused.what


@pytest.mark.slow
def test_drift_of_what_no_model_uses_is_harmless_until_one_does(tmp_path: Path) -> None:
    used, unused = drift_findings(audited_experiment(tmp_path, wider))
    assert "do not differ" in used.what
    assert (unused.severity, unused.what) == ("note", "train and test differ in columns that no model uses")
    assert "driven by width" in unused.evidence
    assert "harmless" in unused.remedy
    used, unused = drift_findings(audited_experiment(tmp_path, wider, features={"shortcuts": True}))
    assert used.severity == "warning"
    assert "driven by width" in used.evidence
    assert "do not differ" in unused.what


def test_a_drift_that_no_column_has_alone_is_found(rng: np.random.Generator) -> None:
    x = rng.normal(size=(800, 2))
    in_test = (x[:, 0] * x[:, 1] > 0).astype(int)
    apart, worth = adversarial_validation(x, in_test, np.arange(800).astype(object), seed=0)
    assert apart.value > 0.9
    assert apart.low < apart.value < apart.high
    assert (worth > 0.2).all()
    assert adversarial_validation_p(x, in_test, np.arange(800).astype(object), seed=0) < 1e-4
    plain, none = adversarial_validation(x, in_test, np.arange(800).astype(object), seed=0, shuffle=False)
    assert plain == apart  # what is not shown is not computed, and changes nothing
    assert none.shape == (0,)


def test_only_columns_that_a_tree_splits_are_scored_again_and_the_losses_are_those_of_all(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.zeros((300, 400))  # constant columns, which no tree can split, among five that vary
    x[:, ::80] = rng.normal(size=(300, 5))
    in_test, group = (x[:, 80] + rng.normal(size=300) > 0).astype(int), np.arange(300).astype(object)
    scored: list[np.ndarray] = []
    score = HistGradientBoostingClassifier.decision_function

    def spy(model: HistGradientBoostingClassifier, rows: np.ndarray) -> np.ndarray:
        scored.append(rows.copy())
        return score(model, rows)

    monkeypatch.setattr(HistGradientBoostingClassifier, "decision_function", spy)
    _, loss = adversarial_validation(x, in_test, group, seed=0)
    assert len(scored) <= 5 * (1 + 5)  # folds, each with its own rows and five columns
    monkeypatch.setattr(dermstack.audit.adversarial_validation, "_split_columns", lambda model: set(range(400)))
    _, of_all = adversarial_validation(x, in_test, group, seed=0)
    assert len(scored) > 5 * 400
    assert np.array_equal(loss, of_all)
    assert np.argmax(loss) == 80


def test_what_marks_a_group_does_not_tell_train_from_test(rng: np.random.Generator) -> None:
    """A classifier that saw a patient's other rows would be sure: whole groups are held out."""
    group = np.repeat(np.arange(60), 10)
    in_test = (group % 3 == 0).astype(int)
    x = rng.normal(size=60)[group][:, None]
    apart, _ = adversarial_validation(x, in_test, group.astype(object), seed=0)
    assert apart.value < 0.65
    assert adversarial_validation_p(x, in_test, group.astype(object), seed=0) > 0.01
    from sklearn.tree import DecisionTreeClassifier

    rows = rng.permutation(600)
    tree = DecisionTreeClassifier().fit(x[rows[:300]], in_test[rows[:300]])
    assert roc_auc_score(in_test[rows[300:]], tree.predict_proba(x[rows[300:]])[:, 1]) > 0.95


def test_without_test_rows_or_with_few_groups_nothing_is_claimed(tmp_path: Path) -> None:
    experiment = audited_experiment(tmp_path, older, test_groups=6)
    assert {finding.severity for finding in drift_findings(experiment)} == {"note"}
    assert all("too few groups" in finding.what for finding in drift_findings(experiment))
    assert drift_findings(audited_experiment(tmp_path, data={"test": None})) == []


@pytest.mark.slow
def test_groups_of_any_size_that_are_dealt_at_random_are_no_drift() -> None:
    """The size of a group, which a deal of groups by rows would give away, and three columns of no meaning."""
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        group = np.repeat(np.arange(150), rng.geometric(0.1, 150))
        dealt = rng.random(150) < 0.3
        x = np.column_stack([np.bincount(group)[group], rng.normal(size=150)[group], rng.normal(size=len(group))])
        alarms += adversarial_validation_p(x, dealt[group].astype(int), group.astype(object), seed=seed) < 0.01
    assert alarms <= 3  # of 60 at one in a hundred: seen by chance once in 400 times


def test_a_column_that_is_empty_in_test_is_a_warning_unless_it_is_rare_or_unused(tmp_path: Path) -> None:
    def emptied(train: pd.DataFrame, test: pd.DataFrame) -> None:
        test["age"] = np.nan
        train["rare"], test["rare"] = np.where(train.index < 3, train["bytes"], np.nan), np.nan

    def kept(train: pd.DataFrame, test: pd.DataFrame) -> None:
        emptied(train, test)
        test.loc[test.index[:1], "age"] = 40.0

    def words(change: Change, **features: bool) -> list[str]:
        data = {"columns": {**COLUMNS, "numeric": ["rare"]}}
        found = drift_findings(audited_experiment(tmp_path, change, data=data, features=features))
        return [finding.evidence for finding in found if finding.what.endswith("have no value in any test row")]

    (evidence,) = words(emptied)
    assert evidence.startswith("age (known in 100% of train); ")
    assert words(emptied, metadata=False, aggregates=False) == words(kept) == []

"""Settings of runs are compared by config key; keys of later versions and lists of models make no false differences."""

from __future__ import annotations

from pathlib import Path

import pytest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from stack.history import append_ledger
from stack.ledger import flat_settings
from stack.run_settings import ABSENT, by_name, differing_settings, settings_of
from stack.store import Run


def test_models_go_by_name_and_lists_are_one_value() -> None:
    flat = flat_settings({
        "seed": 1,
        "blend": {"methods": ["mean", "optuna"], "power": False},
        "stackers": [{"name": "a.b", "params": {"leaves": 8}}, {"name": "c", "bags": 2}],
        "tuned": {"blend": None},
    })  # fmt: skip
    assert by_name(flat) == {
        "seed": "1",
        "blend.methods": "mean, optuna",
        "blend.power": "false",
        "stackers.a.b.params.leaves": "8",
        "stackers.c.bags": "2",
        "tuned.blend": "null",
    }


def test_more_than_ten_models_keep_their_names() -> None:
    flat = flat_settings({"stackers": [{"name": f"s{number}", "bags": number} for number in range(12)]})
    assert by_name(flat)["stackers.s11.bags"] == "11"
    assert by_name(flat)["stackers.s1.bags"] == "1"


def test_passwords_are_masked() -> None:
    assert by_name({"tuned.blend": "postgresql://me:Secret@host/db"}) == {"tuned.blend": "postgresql://me:***@host/db"}


def test_only_keys_that_differ_are_kept() -> None:
    settings = {
        "a": {"experiment": "a", "seed": "1", "objective": "auc"},
        "b": {"experiment": "b", "seed": "2", "objective": "auc"},
    }
    found = differing_settings(settings)
    assert found.to_dict("index") == {"seed": {"a": "1", "b": "2"}}


def test_a_key_that_an_older_record_lacks_has_its_default() -> None:
    assert differing_settings({"a": {"seed": "0"}, "b": {"seed": "0", "blend.preselect": "true"}}).empty
    found = differing_settings({"a": {"seed": "0"}, "b": {"seed": "0", "blend.preselect": "false"}})
    assert found.loc["blend.preselect"].tolist() == ["true", "false"]


def test_an_empty_list_is_a_dash_and_not_the_default() -> None:
    found = differing_settings({"a": {"seed": "0"}, "b": {"seed": "0", "folds.stratify": "age"}})
    assert found.loc["folds.stratify"].tolist() == [ABSENT, "age"]


def test_a_model_that_only_one_has_is_one_row() -> None:
    settings = {
        "a": {"stackers.x.kind": "lightgbm", "stackers.x.bags": "1"},
        "b": {
            "stackers.x.kind": "lightgbm",
            "stackers.x.bags": "2",
            "stackers.y.kind": "xgboost",
            "stackers.y.bags": "1",
        },
        "c": {"stackers.x.kind": "lightgbm", "stackers.x.bags": "1"},
    }
    found = differing_settings(settings)
    assert found.to_dict("index") == {
        "stackers.x.bags": {"a": "1", "b": "2", "c": "1"},
        "stackers.y": {"a": "absent", "b": "present", "c": "absent"},
    }


def test_a_key_of_a_model_that_an_older_record_lacks_has_its_default() -> None:
    old, new = {"stackers.x.kind": "lightgbm"}, {"stackers.x.kind": "lightgbm", "stackers.x.repeats": "1"}
    assert differing_settings({"a": old, "b": new}).empty
    found = differing_settings({"a": old, "b": new | {"stackers.x.repeats": "3"}})
    assert found.loc["stackers.x.repeats"].tolist() == ["1", "3"]


def test_a_blend_and_a_single_run_are_compared_in_the_keys_that_both_records_have() -> None:
    """The record of a single run has no folds: it is not one of the default folds, and no model is absent from it."""
    blend = {
        "folds.k": "4", "blend.trials": "15", "runs": "../runs", "device": "auto", "features.cohort": "false",
        "stackers.x.kind": "lightgbm", "stackers.x.bags": "2",
    }  # fmt: skip
    single = {"kind": "lightgbm", "bags": "2", "runs": "null", "device": "cpu", "features.cohort": "true"}
    found = differing_settings({"e": blend, "e/x": single})
    assert found.to_dict("index") == {"features.cohort": {"e": "false", "e/x": "true"}}
    other, second = {**blend, "folds.k": "5"}, {**single, "bags": "3", "runs": "net_a"}
    found = differing_settings({"e": blend, "e/x": single, "f": other, "f/x": second}).drop("features.cohort")
    assert found.T.to_dict("list") == {
        "folds.k": ["4", ABSENT, "5", ABSENT],
        "runs": [ABSENT, "null", ABSENT, "net_a"],
        "bags": [ABSENT, "2", ABSENT, "3"],
    }


def test_nothing_differs_for_one_run_or_none() -> None:
    assert differing_settings({}).empty
    assert differing_settings({"a": {"seed": "1"}}).empty


def test_a_blend_has_the_settings_of_the_ledger_line_with_its_fingerprint(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    for seed, print_ in ((3, "aaa"), (4, "bbb"), (5, "aaa")):
        experiment = opened_experiment(config, f"seed={seed}")
        meta = {"kind": "blend", "fingerprint": print_, "objective": "auc", "tuned_in_sample": 0.9, "chosen": "mean"}
        append_ledger(experiment, Run(experiment.folder / "blend", meta | {"headline": {}}))
    of = {name: Run(experiment.folder / name, {"kind": "blend", "fingerprint": name}) for name in ("aaa", "bbb", "ccc")}
    found = {name: settings_of(experiment.config.runs, f"elsewhere/old/{name}", run) for name, run in of.items()}
    assert found["aaa"] is not None
    assert found["aaa"]["seed"] == "5"
    assert found["bbb"] is not None
    assert found["bbb"]["seed"] == "4"
    assert found["ccc"] is None


@pytest.mark.parametrize("settings", [{"lr": 0.1, "size": 32, "name": "net"}])
def test_a_single_run_has_its_own_settings(tmp_path: Path, settings: dict[str, object]) -> None:
    run = Run(tmp_path, {"kind": "image", "settings": settings, "made_with": {"seed": 1}})
    assert settings_of(tmp_path, "a/net", run) == {"lr": "0.1", "size": "32", "name": "net", "seed": "1"}
    experiment = opened_experiment(write_experiment(tmp_path))
    imported = import_frames(experiment, "net", *predictions(experiment))
    assert settings_of(experiment.config.runs, "elsewhere/net", imported) is None

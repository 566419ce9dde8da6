"""What a stacker depends on: where GBDTs are fitted in another way, they and their studies are stale, and no other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from stack import fallback, study_inputs
from stack.level2 import inputs as level2_inputs
from stack.level2.inputs import stacker_inputs
from stack.study_inputs import changed_inputs, gbdt_study_inputs


def test_another_way_of_fitting_gbdts_makes_them_stale_and_nothing_else(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = ("lightgbm", "xgboost", "catboost", "logistic")
    config = write_experiment(tmp_path, stackers=[{"name": kind, "kind": kind} for kind in kinds])
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment, seed=0))
    sources, stackers = experiment.finished(level=1), experiment.config.stackers

    def inputs() -> list[object]:
        found: list[object] = [stacker_inputs(experiment, stacker, sources) for stacker in stackers]
        return [*found, fallback.fallback_inputs(experiment)]

    before, study = inputs(), gbdt_study_inputs(experiment, stackers[0], sources)
    version = level2_inputs.FIT_VERSION
    for module in (level2_inputs, study_inputs, fallback):
        monkeypatch.setattr(module, "FIT_VERSION", version + 1)
    changed = [one != other for one, other in zip(before, inputs(), strict=True)]
    assert changed == [True, True, True, False, True], "the fallback is a GBDT"
    now = gbdt_study_inputs(experiment, stackers[0], sources)
    assert changed_inputs(study, now) == [f"version of GBDT fits ({version}, now {version + 1})"]
    unnoted = {name: value for name, value in study.items() if name != "version of GBDT fits"}
    assert changed_inputs(unnoted, now) == [f"version of GBDT fits (1, now {version + 1})"], (
        "of a study before it was noted"
    )


def test_only_stackers_that_see_cohorts_of_columns_with_missing_values_are_stale(tmp_path) -> None:
    """Where no value is missing, cohorts chosen by each column are those that were chosen by the first one."""
    features = {"cohort_columns": True}
    stackers = [
        {"name": "sees", "kind": "lightgbm"}, {"name": "not", "kind": "lightgbm", "features": {"cohort_columns": False}}
    ]  # fmt: skip
    config = write_experiment(tmp_path, stackers=stackers, features=features)
    train = pd.read_csv(tmp_path / "train.csv", keep_default_na=False)
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings["data"]["columns"]["numeric"] = ["width"]
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")

    def cohorts(width: np.ndarray) -> list[str | None]:
        train.assign(width=width).to_csv(tmp_path / "train.csv", index=False)
        experiment = opened_experiment(config)
        every = [stacker_inputs(experiment, stacker, []) for stacker in experiment.config.stackers]
        every.append(gbdt_study_inputs(experiment, experiment.config.stackers[0], []))
        return [one.get("cohorts") for one in every]

    whole = np.arange(len(train)) / 7
    test = pd.read_csv(tmp_path / "test.csv", keep_default_na=False)
    test.assign(width=np.where(np.arange(len(test)) % 2, np.nan, 1.0)).to_csv(tmp_path / "test.csv", index=False)
    assert cohorts(whole) == [None, None, None], "cohorts are fitted on training rows"
    assert cohorts(np.where(whole == 3, np.nan, whole)) == ["of each column", None, "of each column"]

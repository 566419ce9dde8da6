"""What a stacker depends on: where GBDTs are fitted in another way, they and their studies are stale, and no other."""

from __future__ import annotations

import pytest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from stack import fallback, level2_inputs, study_inputs
from stack.level2_inputs import stacker_inputs
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

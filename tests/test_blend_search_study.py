"""A study of weights: on the simplex, continued with the same result, better than where it began."""

from __future__ import annotations

import logging.handlers
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from dermstack.errors import DataError
from stack.blend.blender import Blender
from stack.blend.columns import NetScaler, Weighting
from stack.blend.search import (
    _Climb,
    best_weighting,
    completed,
    quiet_optuna,
    search_trials,
    weighting_from_parameters,
)
from stack.blend.transformed import TransformedRuns
from stack.metrics.scores import Floats, auc

ALLOWED = [("probability", "logit", "rank")] * 4


def simulated_rows() -> tuple[dict[str, Floats], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.25).astype(int)
    P = 1 / (1 + np.exp(-np.outer(y, [1, 1.5, 0.5, 0]) - rng.normal(size=(400, 4))))
    nets = np.zeros(400, int)
    columns = TransformedRuns(NetScaler().fit(P, nets), P, nets)
    return {kind: columns.matrix([kind] * 4, standard=True) for kind in ALLOWED[0]}, y


EQUAL = Weighting.of(["rank"] * 4, np.ones(4))


def found_weighting(columns: dict[str, Floats], y: NDArray[np.int64], **settings: Any) -> Weighting:
    """The weighting of the best trial of a search that starts from equal weights."""
    return best_weighting(search_trials(columns, ALLOWED, y, warm_starts=[lambda: EQUAL], **settings), ALLOWED)


@given(parameters=st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_every_trial_lies_on_the_simplex(parameters: list[float]) -> None:
    named = {f"weight_{run}": parameter for run, parameter in enumerate(parameters)}
    weighting = weighting_from_parameters(named, [("rank",)] * len(parameters))
    assert min(weighting.weights) >= 0
    assert sum(weighting.weights) == pytest.approx(1, abs=1e-12)


def test_an_interrupted_study_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    """Whatever killed it: a trial is in the journal whole or not at all."""
    columns, y = simulated_rows()
    whole = optuna.create_study(direction="maximize")
    expected = found_weighting(columns, y, trials=40, seed=3, study=whole)
    with quiet_optuna():
        for until in (1, 5, 17, 40):
            storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal.log")))
            torn = optuna.create_study(study_name="torn", storage=storage, direction="maximize", load_if_exists=True)
            found = found_weighting(columns, y, trials=until, seed=3, study=torn)
            torn.ask({"weight_0": optuna.distributions.FloatDistribution(0, 1)})  # killed before it was told
    assert found == expected
    assert [trial.params for trial in completed(torn)] == [trial.params for trial in whole.trials]


def test_a_study_gets_further_than_it_began_and_the_best_trial_is_its_result() -> None:
    columns, y = simulated_rows()
    study = optuna.create_study(direction="maximize")
    found = found_weighting(columns, y, trials=60, study=study)
    scores = [trial.value for trial in study.trials]
    total = sum(found.weights[run] * columns[found.transforms[run]][:, run] for run in range(4))
    assert auc(y, total) == pytest.approx(max(scores), abs=1e-12)
    assert max(scores) > scores[0] + 0.005
    assert found.weights[3] < 0.1, "noise"
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 60


def test_trials_reach_every_transform() -> None:
    columns, y = simulated_rows()
    study = optuna.create_study(direction="maximize")
    found_weighting(columns, y, trials=80, study=study)
    for run in range(4):
        assert {trial.params[f"transform_{run}"] for trial in study.trials} == set(ALLOWED[0])


def test_the_same_seed_makes_the_same_weights() -> None:
    columns, y = simulated_rows()
    first, again, other = (found_weighting(columns, y, trials=20, seed=seed) for seed in (1, 1, 9))
    assert first == again != other


def test_studies_are_silent_and_leave_optunas_log_as_it_was() -> None:
    logger, before = logging.getLogger("optuna"), optuna.logging.get_verbosity()
    said = logging.handlers.BufferingHandler(capacity=1000)
    logger.addHandler(said)
    columns, y = simulated_rows()
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        Blender("optuna", trials=5).fit(columns["rank"] * 0.1 + 0.5, y)
        with pytest.raises(ValueError, match="no such trial"), quiet_optuna():
            raise ValueError("no such trial")
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
        assert said.buffer == []
    finally:
        logger.removeHandler(said)
        optuna.logging.set_verbosity(before)


def test_steps_grow_with_success_and_shrink_without() -> None:
    def step_after(*values: float) -> float:
        climb = _Climb(warm_starts=1)
        for value in values:
            climb.add({}, value)
        return climb.step

    assert step_after(0.5, 0.6, 0.1, 0.1, 0.1, 0.1) == pytest.approx(step_after(0.5))
    assert step_after(0.5, 0.6) > step_after(0.5) > step_after(0.5, 0.1)
    assert step_after(0.5, 0.5) == step_after(0.5, 0.1), "an equal value is no success"


def test_a_study_of_other_data_is_refused_by_what_differs() -> None:
    rng = np.random.default_rng(0)
    y = (rng.random(300) < 0.3).astype(int)
    P = 1 / (1 + np.exp(-np.outer(y, [1, 2]) - rng.normal(size=(300, 2))))
    study = optuna.create_study(direction="maximize")
    first = Blender("optuna", trials=8).fit(P, y, study=study)
    again = Blender("optuna", trials=12).fit(P, y, study=study)
    assert len(again.trial_values_) == 12
    np.testing.assert_array_equal(again.trial_values_[:8], first.trial_values_)
    noise = np.column_stack([rng.random(300), P[:, 1]])
    for other, data, targets, what in (
        ({}, noise, y, "predictions"),
        ({}, P[:, ::-1], y, "predictions"),
        ({}, P, 1 - y, "targets"),
        ({}, np.column_stack([P, P[:, 0]]), y, r"runs \(2, now 3\), predictions"),
        ({}, P[1:], y[1:], r"rows \(300, now 299\)"),
        ({"objective": "ap"}, P, y, r"objective \(auc, now ap\)"),
        ({"power": True}, P, y, r"powers \(no, now yes\)"),
    ):
        with pytest.raises(DataError, match=rf"has trials on other .*{what}.*: give a new study"):
            Blender("optuna", trials=15, **other).fit(data, targets, study=study)
    assert len(study.trials) == 12, "a refused fit adds no trial"


def test_a_study_that_does_not_say_what_it_is_about_is_refused() -> None:
    columns, y = simulated_rows()
    old = optuna.create_study(direction="maximize")
    old.add_trial(optuna.trial.create_trial(params={}, distributions={}, value=0.9))
    with pytest.raises(DataError, match="does not say which predictions its trials are about: give a new study"):
        found_weighting(columns, y, trials=5, study=old)
    with pytest.raises(DataError, match="create it with direction='maximize'"):
        found_weighting(columns, y, trials=5, study=optuna.create_study(direction="minimize"))

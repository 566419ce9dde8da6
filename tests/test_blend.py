"""The Blender: scikit-learn's contract, weights on the simplex, one study however often interrupted."""

from __future__ import annotations

import doctest
import logging.handlers
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from optuna.trial import FixedTrial, TrialState
from scipy.stats import rankdata
from sklearn.utils.estimator_checks import parametrize_with_checks

from stack import blend
from stack.blend import METHODS, Blender, optuna_weights, suggest_weights, weighted_sum
from stack.errors import ConfigError, DataError
from stack.intervals import interval
from stack.metrics import auc, log_loss
from stack.ranks import NetRanks

EVERY_METHOD = [Blender(method, trials=8) for method in METHODS]


def runs(*strengths: float, rows: int = 200, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Predictions of runs that carry the target this strongly, and the targets."""
    rng = np.random.default_rng(seed)
    y = (rng.random(rows) < 0.25).astype(int)
    logits = np.outer(y, strengths) + rng.normal(size=(rows, len(strengths)))
    return 1 / (1 + np.exp(-logits)), y


@parametrize_with_checks(EVERY_METHOD)
def test_scikit_learns_checks_pass_without_exception(estimator: Blender, check: Any) -> None:
    check(estimator)


def test_rank_mean_is_the_mean_of_ranks() -> None:
    P, y = runs(1, 0.5, 2)
    expected = (rankdata(P, axis=0).mean(axis=1) - 0.5) / len(P)
    np.testing.assert_allclose(Blender("rank_mean").fit(P, y).predict_proba(P)[:, 1], expected)


def test_mean_is_the_mean_of_probabilities() -> None:
    P, y = runs(1, 0.5, 2)
    np.testing.assert_allclose(Blender("mean").fit(P, y).predict_proba(P)[:, 1], P.mean(axis=1))


def test_a_run_outside_0_and_1_enters_a_mean_by_its_rank() -> None:
    P, y = runs(1, 2)
    logits = np.column_stack([P[:, 0], 10 * np.log(P[:, 1])])
    blender = Blender("mean").fit(logits, y)
    assert blender.transforms_.tolist() == ["probability", "rank"]
    expected = (P[:, 0] + (rankdata(P[:, 1]) - 0.5) / len(P)) / 2
    np.testing.assert_allclose(blender.predict_proba(logits)[:, 1], expected)
    with pytest.raises(DataError, match=r"run 0: probabilities in fit, outside \[0, 1\] now"):
        blender.predict_proba(logits + 1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_lie_on_the_simplex(method: str) -> None:
    blender = Blender(method, trials=15).fit(*runs(1, 0, 2, 0))
    assert (blender.weights_ >= 0).all()
    assert blender.weights_.sum() == pytest.approx(1, abs=1e-12)


@given(parameters=st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(deadline=None)
def test_every_trial_lies_on_the_simplex(parameters: list[float]) -> None:
    trial = FixedTrial({f"weight_{run}": parameter for run, parameter in enumerate(parameters)})
    weights = suggest_weights(trial, len(parameters))
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)


def test_a_study_starts_from_equal_weights_and_each_run_alone() -> None:
    P, y = runs(1, 0.5, 2)
    U = NetRanks().fit_transform(P, np.zeros(len(P)))
    values = Blender("optuna", trials=4).fit(P, y).trial_values_
    expected = [auc(y, U.mean(axis=1)), *(auc(y, column) for column in U.T)]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_tuned_weights_score_best_of_all_trials_and_leave_noise_out() -> None:
    P, y = runs(2, 2, 0, 0, 0, rows=2000)
    blender = Blender("optuna", trials=60).fit(P, y)
    assert auc(y, blender.predict_proba(P)[:, 1]) == pytest.approx(blender.trial_values_.max(), abs=1e-12)
    assert blender.trial_values_.max() > blender.trial_values_[:6].max()
    assert blender.weights_[2:].sum() < 0.15


def test_log_loss_is_tuned_on_probabilities() -> None:
    P, y = runs(2, 1, rows=1000)
    blender = Blender("optuna", objective="logloss", trials=20).fit(P, y)
    assert set(blender.transforms_) == {"probability"}
    assert log_loss(y, blender.predict_proba(P)[:, 1]) == pytest.approx(-blender.trial_values_.max())


@pytest.mark.parametrize("method", METHODS)
def test_one_run_keeps_its_order(method: str) -> None:
    P, y = runs(1)
    blender = Blender(method, trials=3).fit(P, y)
    assert blender.weights_.tolist() == [1]
    np.testing.assert_array_equal(np.argsort(blender.predict_proba(P)[:, 1]), np.argsort(P[:, 0]))


@pytest.mark.parametrize("method", METHODS)
def test_identical_runs_score_as_one(method: str) -> None:
    P, y = runs(1)
    blended = Blender(method, trials=8).fit(np.tile(P, 3), y).predict_proba(np.tile(P, 3))[:, 1]
    assert auc(y, blended) == auc(y, P[:, 0])


@pytest.mark.parametrize("method", METHODS)
def test_constant_runs_change_no_order(method: str) -> None:
    P, y = runs(1)
    P = np.column_stack([np.full(len(P), 0.3), P])
    blended = Blender(method, trials=12).fit(P, y).predict_proba(P)[:, 1]
    assert auc(y, blended) == auc(y, P[:, 1])
    nothing = Blender(method, trials=8).fit(P[:, [0, 0]], y).predict_proba(P[:, [0, 0]])[:, 1]
    assert len(np.unique(nothing)) == 1


def test_gaps_are_refused_by_the_name_of_the_run() -> None:
    P, y = runs(1, 1, 1)
    frame = pd.DataFrame(P, columns=["net_a", "net_b", "net_c"])
    fitted = Blender().fit(frame, y)
    frame.iloc[[4, 9], 1] = np.nan
    for call in (lambda: Blender().fit(frame, y), lambda: fitted.predict_proba(frame)):
        with pytest.raises(DataError, match=r"run net_b: 2 predictions are NaN or inf \(first in row 4\)"):
            call()


def test_unknown_settings_are_refused_by_name() -> None:
    P, y = runs(1, 1)
    with pytest.raises(ConfigError, match="unknown blend method 'median': choose one of rank_mean"):
        Blender("median").fit(P, y)
    with pytest.raises(ConfigError, match="unknown objective 'f1'"):
        Blender(objective="f1").fit(P, y)


def test_labels_of_any_kind_come_back() -> None:
    P, y = runs(3)
    labels = np.array(["benign", "melanoma"])[y]
    blender = Blender().fit(P, labels)
    assert blender.classes_.tolist() == ["benign", "melanoma"]
    assert set(blender.predict(P)) == {"benign", "melanoma"}


@pytest.mark.parametrize("method", METHODS)
def test_a_row_alone_scores_as_among_others(method: str) -> None:
    P, y = runs(1, 2, 1)
    blender = Blender(method, trials=8).fit(P, y)
    alone = np.concatenate([blender.predict_proba(row[None]) for row in P])
    np.testing.assert_array_equal(alone, blender.predict_proba(P))


def test_nets_of_different_scales_blend_as_if_they_had_one() -> None:
    P, y = runs(1, 2)
    nets = np.stack([np.arange(len(P)) % 5, np.arange(len(P)) % 3], axis=1)
    scaled = P / (1 + 10 * nets)
    blender, same = Blender().fit(scaled, y, nets=nets), Blender().fit(P, y, nets=nets)
    np.testing.assert_allclose(blender.predict_proba(scaled, nets=nets), same.predict_proba(P, nets=nets))
    assert auc(y, blender.predict_proba(scaled, nets=nets)[:, 1]) > auc(
        y, Blender().fit(scaled, y).predict_proba(scaled)[:, 1]
    )


def test_ranks_come_from_the_reference_that_is_named() -> None:
    P, y = runs(1, 2)
    nets = np.arange(len(P)) % 4
    few = nets > 0
    named = Blender().fit(P[few], y[few], nets=nets[few], ranks_from=(P, nets))
    fitted = Blender().fit(P[few], y[few], nets=nets[few], ranks_from=NetRanks().fit(P, nets))
    ranks = NetRanks().fit_transform(P, nets).mean(axis=1)
    for blender in (named, fitted):
        np.testing.assert_allclose(blender.predict_proba(P, nets=nets)[:, 1], ranks)


def test_the_in_sample_interval_runs_over_groups() -> None:
    P, y = runs(1, 2)
    groups = np.arange(len(P)) // 4
    blender = Blender().fit(P, y, groups)
    assert blender.in_sample_ == interval("auc", y, blender.predict_proba(P)[:, 1], groups)
    assert Blender().fit(P, y).in_sample_ is None


def test_weights_that_a_study_found_are_taken_as_they_are() -> None:
    P, y = runs(1, 2)
    blender = Blender("optuna").fit(P, y, weights=[0.25, 0.75])
    assert blender.weights_.tolist() == [0.25, 0.75]
    assert blender.trial_values_.size == 0
    for bad in ([0.5, 0.6], [1.5, -0.5], [1.0], [np.nan, 1.0]):
        with pytest.raises(DataError, match="give 2, one a run, none negative, with sum 1"):
            Blender("optuna").fit(P, y, weights=bad)


def test_equal_rows_tie_whatever_their_place() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(18))
    V = np.tile(np.random.default_rng(1).random(18), (8022, 1))
    assert len(np.unique(weighted_sum(V, weights))) == 1


def test_an_interrupted_study_ends_where_an_uninterrupted_one_does() -> None:
    P, y = runs(1, 1.5, 0.5, 0)
    U = NetRanks().fit_transform(P, np.zeros(len(P)))
    whole, torn = (optuna.create_study(direction="maximize") for _ in range(2))
    expected = optuna_weights(U, y, trials=30, seed=3, study=whole)
    for until in (2, 5, 17, 30):  # before, at the end of and after the trials it starts from
        weights = optuna_weights(U, y, trials=until, seed=3, study=torn)
        torn.ask({"weight_0": optuna.distributions.FloatDistribution(0, 1)})  # killed before it was told
    np.testing.assert_array_equal(weights, expected)
    done = [trial for trial in torn.trials if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in done] == [trial.params for trial in whole.trials]
    assert optuna_weights(U, y, trials=30, seed=3, study=torn).tolist() == expected.tolist()
    assert len(torn.trials) == 30 + 4


def test_no_two_trials_are_alike() -> None:
    P, y = runs(1, 1.5, 0.5)
    study = optuna.create_study(direction="maximize")
    Blender("optuna", trials=25).fit(P, y, study=study)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 25


def test_the_same_seed_makes_the_same_weights() -> None:
    P, y = runs(1, 1.5, 0.5)
    first, again, other = (Blender("optuna", trials=20, seed=seed).fit(P, y) for seed in (1, 1, 100))
    np.testing.assert_array_equal(first.trial_values_, again.trial_values_)
    assert (first.trial_values_ != other.trial_values_).any()


def test_studies_are_silent_and_leave_optunas_log_as_it_was() -> None:
    logger, before = logging.getLogger("optuna"), optuna.logging.get_verbosity()
    said = logging.handlers.BufferingHandler(capacity=1000)
    logger.addHandler(said)
    try:
        optuna.logging.set_verbosity(optuna.logging.DEBUG)
        Blender("optuna", trials=5).fit(*runs(1, 2))
        with pytest.raises(ValueError, match="no such trial"), blend._quiet_optuna():
            raise ValueError("no such trial")
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
        assert said.buffer == []
    finally:
        logger.removeHandler(said)
        optuna.logging.set_verbosity(before)


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(blend).attempted > 0
    assert doctest.testmod(blend).failed == 0

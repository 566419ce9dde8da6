"""The Blender: scikit-learn's contract, weights on the simplex, one study however often interrupted."""

from __future__ import annotations

import doctest
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import rankdata
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from dermstack.errors import ConfigError, DataError
from stack.blend import blender as blender_module
from stack.blend.blender import Blender, PredictionsError
from stack.blend.columns import NetScaler, Weighting, weighted_sum
from stack.blend.state import blender_from_state, blender_state
from stack.blend.weights import METHODS
from stack.metrics.intervals import interval
from stack.metrics.scores import auc, log_loss
from stack.predictions.ranks import NetRanks

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
    with pytest.raises(DataError, match=r"run 0: probabilities in the fit, but now outside \[0, 1\]"):
        blender.predict_proba(logits + 1)


@pytest.mark.parametrize("method", METHODS)
def test_weights_lie_on_the_simplex(method: str) -> None:
    blender = Blender(method, trials=15).fit(*runs(1, 0, 2, 0))
    assert (blender.weights_ >= 0).all()
    assert blender.weights_.sum() == pytest.approx(1, abs=1e-12)


def test_tuned_weights_score_best_of_all_trials_and_leave_noise_out() -> None:
    P, y = runs(2, 2, 0, 0, 0, rows=2000)
    blender = Blender("optuna", trials=60).fit(P, y)
    assert auc(y, blender.predict_proba(P)[:, 1]) == pytest.approx(blender.trial_values_.max(), abs=1e-12)
    assert blender.trial_values_.max() > blender.trial_values_[:3].max() + 0.1
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


def logits_and_targets(n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    y = np.arange(n) % 2
    return rng.normal(0, 2, (n, 3)) + 1.5 * y[:, None], y


@pytest.mark.parametrize("method", METHODS)
def test_a_blend_of_logits_refuses_probabilities_and_the_other_way_round(method: str) -> None:
    z, y = logits_and_targets()
    p = expit(z)
    of_logits, of_probabilities = (Blender(method, trials=3).fit(values, y) for values in (z, p))
    one_run = np.column_stack([p[:, 0], z[:, 1:]])
    for blender in (of_logits, blender_from_state(*blender_state(of_logits))):
        with pytest.raises(PredictionsError, match=r"runs 0, 1, 2: not all in \[0, 1\] in the fit, as logits are"):
            blender.predict_proba(p)
        with pytest.raises(PredictionsError, match=r"run 0: .*scipy\.special\.logit"):
            blender.predict_proba(one_run)
        assert blender.predict_proba(z).shape == (300, 2)
        assert blender.predict_proba(np.abs(z[:5]) / 100).shape == (5, 2), "of a few rows it cannot be told"
    with pytest.raises(PredictionsError, match="outside"):
        of_probabilities.predict_proba(z)
    with pytest.raises(PredictionsError, match="in columns_from, as logits are"):
        Blender(method, trials=3).fit(p, y, columns_from=(z, np.zeros(300, int)))


def test_a_weighting_of_probabilities_is_refused_for_logits() -> None:
    z, y = logits_and_targets()
    third = (1 / 3,) * 3
    for kinds in (("probability", "rank", "rank"), ("logit", "rank", "rank")):
        with pytest.raises(PredictionsError, match="run 0: the weighting was found on probabilities"):
            Blender("optuna").fit(z, y, weighting=Weighting(kinds, third))
        assert Blender("optuna").fit(expit(z), y, weighting=Weighting(kinds, third)).weights_[0] == third[0]
    assert Blender("optuna").fit(z, y, weighting=Weighting(("rank",) * 3, third)).weights_[0] == third[0]


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.integers(1, 300), st.floats(0.3, 5), st.floats(-3, 3))
def test_rows_of_the_fitted_scale_are_never_refused(seed: int, n: int, spread: float, centre: float) -> None:
    rng = np.random.default_rng(seed)
    z, y = rng.normal(centre, spread, (400, 2)), np.arange(400) % 2
    blender = Blender().fit(z, y)
    assert len(blender.predict_proba(rng.normal(centre, spread, (n, 2)))) == n


def test_nets_of_different_scales_blend_as_if_they_had_one() -> None:
    P, y = runs(1, 2)
    nets = np.stack([np.arange(len(P)) % 5, np.arange(len(P)) % 3], axis=1)
    scaled = P / (1 + 10 * nets)
    blender, same = Blender().fit(scaled, y, nets=nets), Blender().fit(P, y, nets=nets)
    np.testing.assert_allclose(blender.predict_proba(scaled, nets=nets), same.predict_proba(P, nets=nets))
    assert auc(y, blender.predict_proba(scaled, nets=nets)[:, 1]) > auc(
        y, Blender().fit(scaled, y).predict_proba(scaled)[:, 1]
    )


def test_the_in_sample_interval_runs_over_groups() -> None:
    P, y = runs(1, 2)
    groups = np.arange(len(P)) // 4
    blender = Blender().fit(P, y, groups=groups)
    assert blender.in_sample_ == interval("auc", y, blender.predict_proba(P)[:, 1], groups)
    assert Blender().fit(P, y).in_sample_ is None


def test_equal_rows_tie_whatever_their_place() -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(18))
    V = np.tile(np.random.default_rng(1).random(18), (8022, 1))
    assert len(np.unique(weighted_sum(V, weights))) == 1


def test_the_docstrings_example_runs() -> None:
    assert doctest.testmod(blender_module).attempted > 0
    assert doctest.testmod(blender_module).failed == 0


def test_columns_come_from_the_reference_that_is_named() -> None:
    P, y = runs(1, 2)
    nets = np.arange(len(P)) % 4
    few = nets > 0
    named = Blender().fit(P[few], y[few], nets=nets[few], columns_from=(P, nets))
    fitted = Blender().fit(P[few], y[few], nets=nets[few], columns_from=NetScaler().fit(P, nets))
    ranks = NetRanks().fit_transform(P, nets).mean(axis=1)
    for blender in (named, fitted):
        np.testing.assert_allclose(blender.predict_proba(P, nets=nets)[:, 1], ranks)


def test_a_weighting_that_a_study_found_is_taken_as_it_is() -> None:
    P, y = runs(1, 2)
    found = Weighting(("rank", "logit"), (0.25, 0.75))
    blender = Blender("optuna").fit(P, y, weighting=found)
    assert (blender.weighting_, blender.weights_.tolist(), blender.transforms_.tolist()) == (
        found, [0.25, 0.75], ["rank", "logit"],
    )  # fmt: skip
    assert blender.trial_values_.size == 0
    for bad in ([0.5, 0.6], [1.5, -0.5], [1.0], [np.nan, 1.0]):
        with pytest.raises(DataError, match="give 2 weights, one for each run, none negative, with sum 1"):
            Blender("optuna").fit(P, y, weighting=Weighting(("rank", "rank"), tuple(bad)))
    with pytest.raises(DataError, match="transforms root"):
        Blender("optuna").fit(P, y, weighting=Weighting(("rank", "root"), (0.5, 0.5)))


def test_a_study_begins_with_the_simpler_methods() -> None:
    P, y = runs(1, 0.5, 2, rows=1000)
    values = Blender("optuna", trials=6).fit(P, y).trial_values_
    simpler = {method: auc(y, Blender(method).fit(P, y).predict_proba(P)[:, 1]) for method in METHODS}
    logits = np.log(P / (1 - P))
    expected = [simpler["rank_mean"], simpler["mean"], auc(y, (logits / logits.std(axis=0)).mean(axis=1))]
    # Sums of three ranks tie, but for their rounding.
    np.testing.assert_allclose(
        values, [*expected, simpler["rank_logistic"], simpler["logistic"], simpler["hill_climb"]], atol=1e-4
    )


def test_the_score_of_a_study_is_the_rank_of_its_weighted_sum_among_the_rows_of_the_fit() -> None:
    P, y = runs(1, 2, 0.5)
    found = Weighting(("rank", "logit", "probability"), (0.2, 0.3, 0.5), (2.0, 1.0, 1.0))
    score = Blender("optuna").fit(P, y, weighting=found).predict_proba(P)[:, 1]
    n = len(P)
    rank, logits = (rankdata(P[:, 0]) - 0.5) / n, np.log(P[:, 1] / (1 - P[:, 1]))
    columns = [
        (rank**2 - 1 / 3) / np.sqrt(1 / 5 - 1 / 9),
        (logits - logits.mean()) / logits.std(),
        (P[:, 2] - P[:, 2].mean()) / P[:, 2].std(),
    ]
    np.testing.assert_allclose(score, (rankdata(np.array([0.2, 0.3, 0.5]) @ columns) - 0.5) / n)


def test_logistic_is_scikit_learns_where_no_weight_is_negative_and_data_outweigh_the_ridge() -> None:
    P, y = runs(1, 2, 0.5, rows=20_000)
    blender = Blender("logistic").fit(P, y)
    logits = np.log(P / (1 - P))
    standard = (logits - logits.mean(axis=0)) / logits.std(axis=0)
    expected = LogisticRegression(C=1e6).fit(standard, y).predict_proba(standard)[:, 1]
    np.testing.assert_allclose(blender.predict_proba(P)[:, 1], expected, atol=2e-3)
    assert log_loss(y, blender.predict_proba(P)[:, 1]) < log_loss(y, P.mean(axis=1))


def test_logistic_leaves_out_a_run_that_points_the_wrong_way() -> None:
    P, y = runs(2, -1, rows=2000)
    assert Blender("logistic").fit(P, y).weights_[1] == 0
    wrong = Blender("logistic").fit(1 - P[:, [0]], y)
    assert auc(y, wrong.predict_proba(1 - P[:, [0]])[:, 1]) < 0.5, "one that is all there is keeps its order"


def test_a_study_may_raise_ranks_to_a_power() -> None:
    P, y = runs(1, 1, rows=500)
    blender = Blender("optuna", trials=40, power=True).fit(P, y)
    assert len(blender.weighting_.powers) == 2
    again = Blender("optuna").fit(P, y, weighting=blender.weighting_)
    assert auc(y, again.predict_proba(P)[:, 1]) == pytest.approx(blender.trial_values_.max(), abs=1e-12)


def test_logits_are_taken_on_each_nets_own_scale() -> None:
    P, y = runs(1, 2, rows=900)
    nets = np.arange(900) % 3
    logits = np.log(P / (1 - P))
    for net in range(3):  # every net's logits with one mean and spread, so that other scales are all that differs
        logits[nets == net] = (logits[nets == net] - logits[nets == net].mean(axis=0)) / logits[nets == net].std(axis=0)
    scaled = logits * np.array([0.5, 1, 2])[nets, None] + nets[:, None]
    same, other = (
        Blender("logistic").fit(p, y, nets=nets).predict_proba(p, nets=nets)
        for p in (1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-scaled)))
    )
    np.testing.assert_allclose(same, other, atol=1e-5)


@pytest.mark.parametrize("objective", ["auc", "logloss"])
@pytest.mark.parametrize("method", METHODS)
def test_runs_that_are_not_used_are_as_if_they_were_absent(method: str, objective: str) -> None:
    P, y = runs(2, 0.3, 1.2, 0)
    nets = np.column_stack([np.arange(200) % 2, np.arange(200) % 3, np.arange(200) % 2, np.arange(200) % 3])
    used = np.array([True, False, True, False])
    blender = Blender(method, objective, trials=15, power=True)
    all_runs = clone(blender).fit(P, y, nets=nets, use_runs=used)
    few = clone(blender).fit(P[:, used], y, nets=nets[:, used])
    np.testing.assert_array_equal(all_runs.weights_[used], few.weights_)
    assert all_runs.weights_[~used].tolist() == [0, 0]
    np.testing.assert_array_equal(all_runs.trial_values_, few.trial_values_)
    scores = all_runs.predict_proba(P, nets=nets), few.predict_proba(P[:, used], nets=nets[:, used])
    np.testing.assert_array_equal(*scores)
    changed = P.copy()
    changed[:, ~used] = changed[::-1, ~used]
    np.testing.assert_array_equal(all_runs.predict_proba(changed, nets=nets), scores[0])


def test_a_mask_of_runs_that_does_not_fit_is_refused() -> None:
    P, y = runs(2, 1)
    for mask in ([True], [False, False], [0, 1]):
        with pytest.raises(DataError, match=r"use_runs .* give True or False for each of the 2 runs"):
            Blender().fit(P, y, use_runs=mask)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_probabilities_is_refused_as_logits_by_every_method(method: str) -> None:
    P, y = runs(1, 2)
    other = np.column_stack([np.log(P[:, 0] / (1 - P[:, 0])), P[:, 1]])
    blender = Blender(method, trials=6).fit(P, y)
    for call in (
        lambda: blender.predict_proba(other),
        lambda: blender.predict_proba(100 * P[:, [0, 1]] * [1, 0.01]),  # per cent
        lambda: Blender(method, trials=6).fit(other, y, columns_from=(P, np.zeros(len(P), int))),
    ):
        with pytest.raises(DataError, match=r"run 0: probabilities in .*, but now outside \[0, 1\]"):
            call()
    logits = Blender(method, trials=6).fit(other, y)
    assert len(logits.predict_proba(2 * other * [1, 0.5])) == len(y), "what was fitted as logits has no bounds"


@pytest.mark.parametrize(
    ("name", "value"),
    [("bags", 0), ("bags", -1), ("bags", 2.5), ("bags", True), ("bags", "3"), ("trials", 0), ("trials", None),
     ("seed", -1), ("seed", 0.5), ("power", "no"), ("power", 1), ("replacement", None), ("timeout", -1.0),
     ("timeout", float("nan"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused_by_name(name: str, value: object) -> None:
    P, y = runs(1, 1)
    for method in METHODS:
        with pytest.raises(ConfigError, match=rf"{name}={value!r}: give "):
            Blender(method).set_params(**{name: value}).fit(P, y)


def test_sample_weights_are_not_taken_for_groups() -> None:
    P, y = runs(1, 1)
    for third in (np.where(y == 1, 10, 1), np.random.default_rng(0).random(len(y)), np.arange(len(y)) // 4):
        with pytest.raises(ConfigError, match=r"give groups=… for the groups; it has no sample weights"):
            Blender().fit(P, y, third)


@pytest.mark.parametrize("nets", [["0"] * 200, ["fold_0"] * 200, [0.5] * 200, [np.nan] * 200, [None] * 200])
def test_nets_are_whole_numbers(nets: list[object]) -> None:
    P, y = runs(1, 1)
    for call in (
        lambda: Blender().fit(P, y, nets=nets),
        lambda: Blender().fit(P, y).predict_proba(P, nets=nets),
        lambda: Blender().fit(P, y, columns_from=(P, nets)),
    ):
        with pytest.raises(DataError, match=r"nets holds .*: give whole numbers, for example with .*factorize"):
            call()
    with pytest.raises(DataError, match=r"nets have shape \(3,\), predictions \(200, 2\)"):
        Blender().fit(P, y, nets=[0, 0, 0])
    expected = Blender().fit(P, y, nets=np.arange(200) % 3).predict_proba(P, nets=np.arange(200) % 3)
    same = np.array([int(net) for net in np.arange(200) % 3], object)
    np.testing.assert_array_equal(Blender().fit(P, y, nets=same).predict_proba(P, nets=same * 1.0), expected)


def test_two_runs_of_one_name_are_refused() -> None:
    rows = np.random.default_rng(0).random((20, 3))
    with pytest.raises(PredictionsError, match="more than one column named a: give each run its own name"):
        Blender().fit(pd.DataFrame(rows, columns=["a", "b", "a"]), np.arange(20) % 2)

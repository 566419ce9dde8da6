"""Nested blending: what was chosen on a row is not scored on that row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import rankdata

from dermstack.errors import ConfigError, DataError
from stack.blend.blender import Blender
from stack.blend.nested import NestedBlend, blend_nested, left_out_sets
from stack.blend.weights import METHODS
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import auc
from stack.predictions.ranks import Ecdf, NetRanks

Rows = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


def simulated_rows(
    strengths: list[float], *, rows: int = 240, positives: int = 60, folds: int = 3, seed: int = 0
) -> Rows:
    """Probabilities of runs that carry the target this strongly, the targets, and folds with as many positives each."""
    rng = np.random.default_rng(seed)
    y = (np.arange(rows) < positives).astype(int)
    logits = np.outer(y, strengths) + rng.normal(size=(rows, len(strengths)))
    return 1 / (1 + np.exp(-logits)), y, np.arange(rows) % folds


def blended(rows: Rows, **settings: Any) -> NestedBlend:
    """Every row its own split_group; few trials; no pre-selection, since some of the simulated runs carry nothing."""
    P, y, fold = rows
    settings = {
        "nets": fold, "split_group": np.arange(len(y)), "trials": 12, "preselect": False, "methods": METHODS
    } | settings  # fmt: skip
    return blend_nested(P, y, fold=fold, **settings)


def assert_same(one: NestedBlend, other: NestedBlend) -> None:
    assert (one.chosen, one.chosen_by_fold) == (other.chosen, other.chosen_by_fold)
    np.testing.assert_array_equal(one.score, other.score)
    for method, scores in one.by_method.items():
        np.testing.assert_array_equal(scores, other.by_method[method])
        np.testing.assert_array_equal(one.comparable[method], other.comparable[method])
        np.testing.assert_array_equal(one.tuned[method], other.tuned[method])


def test_no_choice_has_seen_the_targets_that_it_is_scored_on() -> None:
    """Turning the targets of one large fold turns the final choice, but nothing about the scores of its own rows."""
    P, y, _ = simulated_rows([4, 0, 0, 0])
    fold = np.where(np.arange(len(y)) % 4 < 2, 0, np.arange(len(y)) % 4 - 1)
    held, turned = fold == 0, y.copy()
    noise = P[held][:, 1:].mean(axis=1)
    turned[held] = noise > np.quantile(noise, 0.75)  # in this fold the noise is right now
    methods = ("rank_mean", "optuna")
    before, after = blended((P, y, fold), methods=methods), blended((P, turned, fold), methods=methods)
    assert before.chosen == "optuna" != after.chosen
    assert before.chosen_by_fold[0] == after.chosen_by_fold[0] == "optuna"
    for method in methods:
        np.testing.assert_array_equal(before.by_method[method][held], after.by_method[method][held])
        np.testing.assert_array_equal(before.comparable[method][held], after.comparable[method][held])
    np.testing.assert_array_equal(before.score[held], after.score[held])
    assert (before.tuned["optuna"][held] != after.tuned["optuna"][held]).any()


def test_each_fold_is_scored_by_a_blender_fitted_to_the_others() -> None:
    P, y, fold = rows = simulated_rows([2, 1, 0])
    found, scaler = blended(rows), (P, fold, np.arange(len(y)))
    for method in METHODS:
        for k in range(3):
            seen, held = fold != k, fold == k
            blender = Blender(method, trials=12).fit(P[seen], y[seen], nets=fold[seen], columns_from=scaler)
            np.testing.assert_array_equal(
                found.by_method[method][held], blender.predict_proba(P[held], nets=fold[held])[:, 1]
            )


def test_the_final_blend_and_the_tuned_scores_come_from_all_rows() -> None:
    P, y, fold = rows = simulated_rows([2.5, 2, 0, 0])
    found = blended(rows, trials=20, methods=("rank_mean", "optuna"))
    again = Blender("optuna", trials=20).fit(P, y, nets=fold, groups=np.arange(len(y)))
    assert (found.chosen, found.final.method) == ("optuna", "optuna")
    assert 0 < found.final.weights_[0] < 1  # several fits of a single run would look alike
    np.testing.assert_array_equal(found.final.weights_, again.weights_)
    np.testing.assert_array_equal(found.final.predict_proba(P, nets=fold)[:, 1], found.tuned["optuna"])
    np.testing.assert_array_equal(
        found.tuned["rank_mean"],
        Blender().fit(P, y, nets=fold, groups=np.arange(len(y))).predict_proba(P, nets=fold)[:, 1],
    )


def test_the_choice_without_a_fold_is_nested_in_the_folds_that_are_left() -> None:
    P, y, fold = rows = simulated_rows([1.2, 0.6, 0.6], folds=4, seed=2)
    found, rest = blended(rows), fold != 3
    inner = blend_nested(
        P[rest],
        y[rest],
        nets=fold[rest],
        fold=fold[rest],
        split_group=np.flatnonzero(rest),
        trials=12,
        preselect=False,
        methods=METHODS,
    )
    assert found.chosen_by_fold[3] == inner.chosen


def test_the_headline_is_made_of_what_each_fold_chose() -> None:
    _, _, fold = rows = simulated_rows([3, 0, 0])
    found = blended(rows, methods=("rank_mean", "hill_climb"))
    assert set(found.chosen_by_fold.values()) == {"hill_climb"}
    for k, method in found.chosen_by_fold.items():
        np.testing.assert_array_equal(found.score[fold == k], found.comparable[method][fold == k])


def test_a_row_is_scored_by_its_rank_among_all_rows_as_its_folds_blend_scores_them() -> None:
    P, y, fold = rows = simulated_rows([2, 1, 0.5])
    found, scaler = blended(rows), (P, fold, np.arange(len(y)))
    for method in METHODS:
        for k in range(3):
            seen, held = fold != k, fold == k
            blender = Blender(method, trials=12).fit(P[seen], y[seen], nets=fold[seen], columns_from=scaler)
            score = blender.predict_proba(P, nets=fold)[:, 1]
            expected = (rankdata(score) - 0.5) / len(y)
            np.testing.assert_allclose(found.comparable[method][held], expected[held], rtol=1e-12)


def test_folds_that_chose_different_methods_lose_nothing_by_pooling() -> None:
    """A mean of probabilities lies near the prevalence, a mean of ranks near one half: together they order nothing.

    Here both methods order the rows in the same way, so any mixture of folds has their AUC. Ranks within the fold, the
    scale used before, lose some of it: the folds differ in their share of positives.
    """
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1, 2], 200)
    y = (rng.random(600) < np.array([0.05, 0.2, 0.5])[fold]).astype(int)
    p = 1 / (1 + np.exp(-2 * y - rng.normal(size=600)))
    found = blended((p[:, None] ** 3, y, fold), nets=np.full(600, -1), methods=("rank_mean", "mean"))
    mixed = np.where(fold == 1, found.comparable["mean"], found.comparable["rank_mean"])
    assert auc(y, mixed) == auc(y, p)
    within = np.concatenate([Ecdf().fit(p[fold == k])(p[fold == k]) for k in range(3)])
    assert auc(y, within) < auc(y, p) - 0.01


def test_log_loss_is_measured_on_the_scores_themselves() -> None:
    found = blended(simulated_rows([2, 1]), objective="logloss", methods=("mean", "logistic"))
    for method, scores in found.by_method.items():
        np.testing.assert_array_equal(scores, found.comparable[method])


def test_ranks_of_a_fold_are_taken_within_its_net() -> None:
    P, y, fold = simulated_rows([1, 2])
    nets = np.stack([fold, (fold + np.arange(len(y))) % 2], axis=1)  # the second run has folds of its own
    found = blended((P / (1 + 5 * nets), y, fold), nets=nets, methods=("rank_mean",))
    own = NetRanks().fit_transform(P, nets).mean(axis=1)
    pooled = NetRanks().fit_transform(P / (1 + 5 * nets), np.zeros(len(y), int)).mean(axis=1)
    score = found.by_method["rank_mean"]
    assert np.abs(score - own).max() < 0.02 < 0.2 < np.abs(score - pooled).max()
    np.testing.assert_array_equal(np.argsort(found.score, kind="stable"), np.argsort(score, kind="stable"))


def test_one_method_leaves_nothing_to_choose() -> None:
    rows = simulated_rows([1, 2], folds=2)
    found = blended(rows, methods=("rank_mean",))
    assert (found.chosen, found.chosen_by_fold) == ("rank_mean", {0: "rank_mean", 1: "rank_mean"})
    np.testing.assert_array_equal(found.score, found.comparable["rank_mean"])


def test_a_frame_names_the_runs_of_the_final_blend() -> None:
    P, y, fold = simulated_rows([1, 2])
    found = blended((pd.DataFrame(P, columns=["net_a", "net_b"]), y, fold), methods=("mean",))
    assert found.final.feature_names_in_.tolist() == ["net_a", "net_b"]


def test_tuned_weights_stand_in_for_the_studies() -> None:
    P, y, fold = rows = simulated_rows([2, 1, 0])
    tuned, scaler = {}, (P, fold, np.arange(len(y)))
    for without in left_out_sets(range(3)):
        seen = ~np.isin(fold, list(without))
        blender = Blender("optuna", trials=12).fit(P[seen], y[seen], nets=fold[seen], columns_from=scaler)
        tuned[without] = blender.weighting_
    assert_same(blended(rows, tuned=tuned), blended(rows))
    del tuned[frozenset({0, 2})]
    with pytest.raises(ConfigError, match=r"no tuned weights that leave out the folds \[0, 2\]"):
        blended(rows, tuned=tuned)


def test_two_folds_share_the_study_that_sees_neither() -> None:
    assert len(left_out_sets(range(5))) == 1 + 5 + 10
    assert left_out_sets([2, 0], methods=("mean",)) == [frozenset(), frozenset({0}), frozenset({2})]


@pytest.mark.slow
def test_the_number_of_jobs_changes_nothing() -> None:
    rows = simulated_rows([1, 1, 0])
    assert_same(blended(rows, n_jobs=1), blended(rows, n_jobs=2))


def test_what_cannot_be_nested_is_refused_by_name() -> None:
    P, y, fold = simulated_rows([1, 2])
    with pytest.raises(DataError, match=r"1 split_groups sit in more than one fold \(patient 7\)"):
        blended((P, y, fold), split_group=[f"patient {max(row, 7)}" if row < 9 else str(row) for row in range(len(y))])
    with pytest.raises(DataError, match=r"2 folds: .* needs 3; make more folds, or name one method"):
        blended((P, y, fold // 2))
    with pytest.raises(ConfigError, match="blend methods median: choose from rank_mean"):
        blended((P, y, fold), methods=("median",))
    P[3, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        blended((P, y, fold))


def test_a_run_that_carries_nothing_is_left_out_by_what_the_other_folds_show() -> None:
    """Turning the targets of fold 0 makes its noise a signal there, but changes nothing in its own scores."""
    P, y, fold = simulated_rows([2, 2, 0], rows=600, positives=150)
    found = blended((P, y, fold), methods=("rank_mean", "logistic"), preselect=True)
    assert found.used_runs.tolist() == [True, True, False]
    assert found.final.weights_.tolist() == [0.5, 0.5, 0]
    pair = blended((P[:, :2], y, fold), methods=("rank_mean", "logistic"))
    for method in found.by_method:
        np.testing.assert_array_equal(found.by_method[method], pair.by_method[method])
        np.testing.assert_array_equal(found.comparable[method], pair.comparable[method])
    assert (found.chosen, found.chosen_by_fold) == (pair.chosen, pair.chosen_by_fold)
    turned, held = y.copy(), fold == 0
    turned[held] = P[held, 2] > np.quantile(P[held, 2], 0.75)
    after = blended((P, turned, fold), methods=("rank_mean", "logistic"), preselect=True)
    assert after.used_runs.tolist() == [True, True, True]
    np.testing.assert_array_equal(after.score[held], found.score[held])


def test_the_summary_sets_nested_beside_tuned() -> None:
    _, y, _ = rows = simulated_rows([3, 0, 0])
    found, group = blended(rows, methods=("optuna", "rank_mean")), np.arange(len(y))
    table = found.summary(y, group).set_index("method")
    assert table.index.tolist() == ["rank_mean", "optuna"]
    assert table["chosen"].tolist() == [False, True]
    assert table.loc["rank_mean", ["gap", "difference", "difference_low", "difference_high"]].tolist() == [0] * 4
    nested, tuned = found.comparable["optuna"], found.tuned["optuna"]
    value = interval("auc", y, nested, group)
    assert table.loc["optuna", ["nested", "low", "high"]].tolist() == [value.value, value.low, value.high]
    assert table.loc["optuna", "tuned"] == auc(y, tuned)
    assert table.loc["optuna", "gap"] == auc(y, tuned) - auc(y, nested)
    gain = paired_difference("auc", y, nested, found.comparable["rank_mean"], group)
    assert table.loc["optuna", "difference_low"] == gain.low > 0


def noisy_rows(seed: int) -> Rows:
    """15 runs of which 12 are noise at AUC 0.5 to 0.6; 300 rows, 15 positives."""
    strengths = np.random.default_rng(seed).uniform([0.9] * 3 + [0.0] * 12, [1.3] * 3 + [0.35] * 12)
    return simulated_rows(list(strengths), rows=300, positives=15, seed=seed)


def test_tuning_on_the_rows_that_are_scored_flatters() -> None:
    _, y, _ = rows = noisy_rows(0)
    found = blended(rows, methods=("optuna",), trials=30)
    assert auc(y, found.tuned["optuna"]) > auc(y, found.score) + 0.03


@pytest.mark.slow
def test_the_honest_number_shows_the_optimism_and_keeps_up_with_the_rank_average() -> None:
    gaps, gains = [], []
    for seed in range(8):
        _, y, _ = rows = noisy_rows(seed)
        found = blended(rows, trials=30)
        gaps.append(auc(y, found.tuned["optuna"]) - auc(y, found.by_method["optuna"]))
        gains.append(auc(y, found.score) - auc(y, found.by_method["rank_mean"]))
    assert np.mean(gaps) > 0.04
    assert np.mean(gains) > -2 * np.std(gains) / np.sqrt(len(gains))


@pytest.mark.slow
def test_shuffled_targets_end_at_one_half_where_tuned_scores_do_not() -> None:
    """Law 7, as far as the blend goes."""
    nested, tuned = [], []
    for seed in range(12):
        _, y, _ = rows = simulated_rows([0] * 6, rows=600, positives=120, seed=seed)
        found = blended(rows, trials=30)
        nested.append(auc(y, found.score))
        tuned.append(auc(y, found.tuned["optuna"]))
    noise = 0.03 / np.sqrt(len(nested))  # 0.03: the standard error of one AUC of 120 against 480 rows
    assert abs(np.mean(nested) - 0.5) < 2.5 * noise
    assert np.mean(tuned) - 0.5 > 4 * noise


@pytest.mark.parametrize("spelled", [str, lambda k: f"fold_{k}", lambda k: k + 0.5, lambda k: k or np.nan])
def test_folds_are_whole_numbers(spelled: Any) -> None:
    P, y, fold = simulated_rows([2, 1])
    with pytest.raises(DataError, match=r"fold holds .*: give whole numbers, for example with .*factorize"):
        blended((P, y, np.array([spelled(k) for k in fold])), nets=fold, methods=("rank_mean",))


@pytest.mark.parametrize("spelled", [float, np.int8, object])
def test_whole_folds_of_any_type_give_the_same(spelled: Any) -> None:
    P, y, fold = rows = simulated_rows([2, 1])
    assert_same(
        blended(rows, methods=("rank_mean", "mean")),
        blended((P, y, fold.astype(spelled)), methods=("rank_mean", "mean")),
    )


def test_folds_numbered_from_anything_are_the_same_folds() -> None:
    P, y, fold = rows = simulated_rows([2, 1])
    one, other = blended(rows, methods="mean"), blended((P, y, fold * 7 - 3), nets=fold, methods="mean")
    np.testing.assert_array_equal(one.score, other.score)


@pytest.mark.parametrize("name", ["y", "nets", "fold", "split_group"])
def test_arrays_of_another_length_are_refused_by_name(name: str) -> None:
    P, y, fold = simulated_rows([2, 1])
    arrays = {"y": y, "nets": fold, "fold": fold, "split_group": np.arange(len(y))}
    with pytest.raises(DataError, match=rf"{name} has shape \(239,\), but P has 240 rows"):
        blend_nested(P, **arrays | {name: arrays[name][1:]})  # type: ignore[arg-type]


@pytest.mark.parametrize("labels", [[1, 2], ["benign", "melanoma"], [0.0, np.nan], [-1, 1]])
def test_targets_other_than_0_and_1_are_refused(labels: list[Any]) -> None:
    P, y, fold = simulated_rows([2, 1])
    with pytest.raises(DataError, match=r"y holds .*: give targets of 0 and 1"):
        blended((P, np.array(labels)[y], fold), methods=("mean",))


def test_predictions_that_cannot_be_blended_are_refused_by_the_name_of_the_run() -> None:
    n = 40
    fold = np.arange(n) // 2 % 4
    rest = {"nets": fold, "fold": fold, "split_group": np.arange(n) // 2, "methods": ["mean"]}
    frame = pd.DataFrame({"a": np.linspace(0, 1, n), "b": np.where(np.arange(n) == 7, np.nan, 0.5)})
    for bad, message in (
        (frame, r"b: 1 predictions are NaN or inf \(first in row 7\)"),
        (frame[["a"]].replace(1.0, np.inf), r"a: 1 predictions are NaN or inf \(first in row 39\)"),
        (frame[[]], "P has no columns"),
        (frame[["a", "a"]], "more than one column named a"),
    ):
        with pytest.raises(DataError, match=message):
            blend_nested(bad, np.arange(n) % 2, **rest)

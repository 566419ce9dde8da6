"""Fold models and the folds that they claim: gap, interval and verdict, where the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu

from benchmarks.held_out import SimulatedRun, simulated, verdict
from dermstack.audit.folds import RENUMBERED_FOLDS, UNKNOWN_FOLDS, HeldOutVerdict, held_out_verdict, unknown_folds_p
from dermstack.errors import DataError


def small(seed: int, *, memory: float, **changes: float) -> SimulatedRun:
    """About 4,800 rows of 600 groups, 290 of them positive."""
    settings = {"groups": 600, "rows": 8, "prevalence": 0.06} | changes
    return simulated(np.random.default_rng(seed), memory=memory, **settings)  # type: ignore[arg-type]


def audited(world: SimulatedRun, claim: np.ndarray | None = None, scores: np.ndarray | None = None) -> HeldOutVerdict:
    return held_out_verdict(
        world.scores if scores is None else scores, world.true if claim is None else claim, world.y, world.group
    )


def slow_gap(world: SimulatedRun, rows: np.ndarray) -> float:
    """By scipy, fold by fold."""
    gaps = []
    for fold in range(5):
        held = rows[world.true[rows] == fold]
        y = world.y[held] == 1
        aucs = mannwhitneyu(world.scores[held][y], world.scores[held][~y]).statistic / (y.sum() * (~y).sum())
        gaps.append(aucs[fold] - np.mean(np.delete(aucs, fold)))
    return float(np.mean(gaps))


def test_the_gap_is_that_of_a_loop_and_its_interval_that_of_a_bootstrap_over_groups() -> None:
    world = small(0, memory=0.4)
    found = audited(world)
    assert found.gap.value == pytest.approx(slow_gap(world, np.arange(len(world.y))), abs=1e-12)
    assert found.by_fold["gap"].mean() == pytest.approx(found.gap.value, abs=1e-12)
    members = pd.Series(range(len(world.group))).groupby(world.group).indices
    fold_of = pd.Series(world.true).groupby(world.group).first()
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(200):
        dealt = [rng.choice(fold_of.index[fold_of == fold], (fold_of == fold).sum()) for fold in range(5)]
        drawn.append(slow_gap(world, np.concatenate([members[group] for group in np.concatenate(dealt)])))
    assert (found.gap.high - found.gap.low) / 2 / 2.33 == pytest.approx(np.std(drawn), rel=0.15)


def test_only_the_order_of_each_models_scores_counts() -> None:
    world = small(0, memory=0.4)
    stretched = np.exp(world.scores * [0.1, 0.5, 1, 2, 3]) + np.arange(5)
    pd.testing.assert_frame_equal(audited(world).by_fold, audited(world, scores=stretched).by_fold)


def test_a_model_that_is_better_on_all_rows_has_no_wider_gap_for_it() -> None:
    world = small(2, memory=0.0, style=0)
    better = world.scores.copy()
    better[:, 0] += 1.0 * world.y
    found, plain = audited(world, scores=better).by_fold, audited(world).by_fold
    assert found["auc"][0] > plain["auc"][0] + 0.05
    assert np.abs(found["gap"] - plain["gap"]).max() < 0.02
    assert not found["unlike"].any()


def test_models_that_overfit_and_held_out_are_believed_and_those_without_a_gap_are_not() -> None:
    assert audited(small(0, memory=0.6)).verdict == "held out"
    found = audited(small(0, memory=0.0))
    assert found.verdict == "cannot tell"
    assert found.gap.low < 0 < found.gap.high
    assert found.better_explanation == ""


def test_folds_under_other_numbers_are_found_and_numbered() -> None:
    world = small(0, memory=1.0)
    turned = audited(world, world.claims["renumbered"])
    assert turned.verdict == "another partition"
    assert turned.better_explanation == RENUMBERED_FOLDS
    assert turned.best_numbering == (4, 0, 1, 2, 3), "claimed fold 0 is what model 4 held out"
    assert turned.gap.value > 0
    swapped = audited(world, world.claims["two swapped"])
    assert swapped.better_explanation == RENUMBERED_FOLDS
    assert swapped.best_numbering == (1, 0, 2, 3, 4)


def test_folds_that_another_run_names_are_found() -> None:
    world = small(0, memory=0.6)
    found = verdict(world, "known elsewhere")
    assert (found.verdict, found.better_explanation) == ("another partition", "another run")
    chance = np.random.default_rng(5).permutation(600)[world.group] % 5
    other = held_out_verdict(world.scores, world.true, world.y, world.group, other_folds={"chance": chance})
    assert other.verdict == "held out"
    assert other.p_values["chance"] > 0.01


def test_unknown_folds_are_found_where_groups_have_several_positives() -> None:
    world = small(0, memory=3.0)
    found = audited(world, world.claims["unknown"])
    assert (found.verdict, found.better_explanation) == ("another partition", UNKNOWN_FOLDS)


def test_a_models_liking_for_a_patient_is_no_partition() -> None:
    """All pictures of a patient scored higher by one model: better on one class, worse on the other."""
    world = small(3, memory=0.0, style=1.5, ability=0)
    rng = np.random.default_rng(0)
    p = unknown_folds_p(world.scores, world.y == 1, world.group, world.true, draws=500, rng=rng)
    assert p is not None
    assert p > 0.01
    lone = np.arange(len(world.y))
    assert unknown_folds_p(world.scores, world.y == 1, lone, world.true, draws=500, rng=rng) is None


def test_one_model_that_has_seen_everything_is_named() -> None:
    world = small(1, memory=1.0)
    scores = world.scores.copy()
    unseen = world.true == 3
    scores[unseen, 3] += np.where(world.y[unseen] == 1, 1.0, -0.3)
    found = audited(world, scores=scores)
    assert found.verdict == "held out"
    assert np.flatnonzero(found.by_fold["unlike"]).tolist() == [3]


def test_what_can_not_be_compared_is_refused() -> None:
    world = small(0, memory=0.5)
    with pytest.raises(DataError, match="two or more fold models"):
        audited(world, scores=world.scores[:, :1])
    with pytest.raises(DataError, match="they must be 0 to 3"):
        audited(world, scores=world.scores[:, :4])
    torn = world.true.copy()
    torn[0] = (torn[0] + 1) % 5
    with pytest.raises(DataError, match="split 1 groups"):
        audited(world, torn)
    with pytest.raises(DataError, match="fold 2: 0 groups hold positives"):
        held_out_verdict(world.scores, world.true, np.where(world.true == 2, 0, world.y), world.group)
    with pytest.raises(DataError, match=r"torn: .* exactly one fold"):
        held_out_verdict(world.scores, world.true, world.y, world.group, other_folds={"torn": torn})


@pytest.mark.slow
def test_clean_runs_raise_no_alarm_and_those_without_a_gap_can_not_tell() -> None:
    """200 runs with a true gap of 0.02 or more: at most 10 false alarms; 200 without: 1 % in either direction."""
    made = {}
    for memory in (0.18, 0.0):
        found = [audited(small(seed, memory=memory)) for seed in range(200)]
        made[memory] = pd.Series([one.verdict for one in found]).value_counts()
        gap = np.mean([one.gap.value for one in found])
        print(f"memory {memory}: mean gap {gap:.4f}, {made[memory].to_dict()}")
        assert gap < -0.02 if memory else abs(gap) < 0.002
    assert made[0.18].get("another partition", 0) <= 10
    assert made[0.0].get("another partition", 0) <= 8
    assert made[0.0].get("held out", 0) <= 8, "2 are expected of 200; more than 8 in 1 of 4,000 tries"


@pytest.mark.slow
def test_of_three_real_networks_one_held_out_what_it_claims(shared_data: Path) -> None:
    frame = pd.read_parquet(shared_data / "siim2020" / "leaky" / "fold_model_predictions.parquet")
    made = {}
    for net in ("net1", "net2", "net3"):
        scores = frame[[f"{net}_fold{fold}" for fold in range(5)]]
        made[net] = held_out_verdict(scores, frame["fold"], frame["target"], frame["patient_id"])
    assert sum(found.verdict == "held out" for found in made.values()) == 1
    assert sum(found.gap.high >= 0 for found in made.values()) == 2

"""Law 7: shuffled targets end at AUC 0.5, and a leak by group does not; a shuffle by row would not see it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from imported_experiment import opened_experiment, write_experiment
from scipy.stats import ttest_1samp

import dermstack.audit.shuffled
from dermstack.audit.shuffled import ShuffledAucs, shuffled_findings, shuffled_target_aucs, with_shuffled_targets
from dermstack.errors import ConfigError, DataError
from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import FoldFeatures
from stack.metrics.scores import auc
from stack.metrics.shuffle import shuffle_targets
from stack.store import Run, prediction_frame, write_run
from stack.tables.table import Table

QUIET = Out(quiet=True)


def world(folder: Path, sizes: list[int], *, mixed: float = 0.3, seed: int = 0) -> tuple[Experiment, Run]:
    """Groups of these sizes and a frozen run, whose z tells each row's risk, and which group it is of.

    The rows of a group have the more different targets, the larger ``mixed``, and stand with positives first.
    """
    rng = np.random.default_rng(seed)
    config = write_experiment(folder, features={"frozen_z": 4})
    n, group = sum(sizes), np.repeat(np.arange(len(sizes)), sizes)
    risk = rng.normal(size=len(sizes))[group] + mixed * rng.normal(size=n)
    target = (risk > np.quantile(risk, 0.7)).astype(int)
    rows = pd.DataFrame({
        "isic": [f"i{number}" for number in rng.permutation(n)], "patient": [f"p{number}" for number in group],
        "years": rng.integers(20, 90, n), "sex": "male", "site": rng.choice(["torso", "head/neck"], n),
        "malignant": target,
    })  # fmt: skip
    order = np.lexsort((-target, group))
    rows.iloc[order].to_csv(folder / "train.csv", index=False)
    experiment = opened_experiment(config)
    z = np.column_stack([risk, rng.normal(size=(len(sizes), 63))[group]]) + rng.normal(scale=0.1, size=(n, 64))
    ids = experiment.table.test["id"]
    test = pd.concat([prediction_frame(ids, k, np.zeros(len(ids))) for k in range(3)])
    frames = {"oof": prediction_frame(experiment.table.train["id"], 0, np.zeros(n)), "test": test}
    arrays = {"oof_z": z[order], "test_z": np.zeros((len(ids), 64))}
    meta = {"fingerprint": "", "level": 1, "kind": "frozen", "inputs": {}}
    return experiment, write_run(experiment.models / "still", meta, frames=frames, arrays=arrays)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Run]:
    return world(tmp_path_factory.mktemp("clean"), [1, 2, 3, 4] * 20)


def with_row_folds(experiment: Experiment) -> Experiment:
    """With rows, not groups, dealt to folds."""
    frame = experiment.folds.frame
    fold = np.random.default_rng(0).permutation(np.arange(len(frame)) % experiment.folds.k)
    return replace(experiment, folds=replace(experiment.folds, frame=frame.assign(fold=fold.astype(np.int8))))


def shuffle_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(train: pd.DataFrame, _: Any, *, seed: int) -> pd.DataFrame:
        return shuffle_targets(train, np.arange(len(train)), seed=seed)

    monkeypatch.setattr(dermstack.audit.shuffled, "shuffle_targets", rows)


def add_a_telling_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    """Level 2 learns the mean target of the other rows of the group, as a careless aggregate would give it."""
    honest = FoldFeatures.transform

    def telling(self: FoldFeatures, frame: pd.DataFrame, *parts: Any) -> pd.DataFrame:
        others = frame.groupby("group")["target"]
        mean = (others.transform("sum") - frame["target"]) / (others.transform("size") - 1)
        return honest(self, frame, *parts).assign(told=mean.to_numpy(np.float32))

    monkeypatch.setattr(FoldFeatures, "transform", telling)


def test_clean_rows_end_at_one_half(clean: tuple[Experiment, Run]) -> None:
    made = shuffled_target_aucs(*clean, QUIET, shuffles=4)
    assert made.p > 0.05
    assert 0.4 < made.mean < 0.6
    assert [finding.severity for finding in shuffled_findings(made)] == ["note", "note"]


@pytest.mark.slow
@pytest.mark.parametrize("leak", ["groups in two folds", "a feature of the group's targets"])
def test_a_leak_by_group_shows_and_a_shuffle_by_row_would_not_see_it(
    leak: str, clean: tuple[Experiment, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, run = clean
    if leak == "groups in two folds":
        experiment = with_row_folds(experiment)
    else:
        add_a_telling_feature(monkeypatch)
    made = shuffled_target_aucs(experiment, run, QUIET, shuffles=5)
    assert made.z > 5
    assert made.p < 0.01
    assert made.mean > 0.6
    assert made.excess > 0.1
    assert shuffled_findings(made)[0].severity == "error"
    shuffle_by_row(monkeypatch)
    blind = shuffled_target_aucs(experiment, run, QUIET, shuffles=5)
    assert blind.p > 0.05
    assert abs(blind.mean - 0.5) < 0.06


@pytest.mark.slow
def test_rare_sizes_and_sorted_rows_are_no_leak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Most groups keep their own targets here, which z tells: a plain exchange finds them again."""
    experiment, run = world(tmp_path, list(range(2, 17)), mixed=2.0)
    made = shuffled_target_aucs(experiment, run, QUIET, shuffles=12)
    assert made.p > 0.05
    assert 0.4 < made.mean < 0.6

    def plain(train: pd.DataFrame, group: Any, *, seed: int) -> pd.DataFrame:
        """Each vector in the order that its rows had: positives first."""
        drawn = shuffle_targets(train, group, seed=seed)
        return drawn.assign(target=-(-drawn["target"]).groupby(group).transform(np.sort))

    monkeypatch.setattr(dermstack.audit.shuffled, "shuffle_targets", plain)
    assert shuffled_target_aucs(experiment, run, QUIET, shuffles=2).mean > 0.7


@pytest.mark.slow
def test_false_alarms_are_as_rare_as_promised(tmp_path: Path) -> None:
    """Of clean worlds, whose targets z tells: the mean of all shuffles is 0.5, and p is below 0.01 in 1 % of worlds."""
    values, alarms = [], 0
    for seed in range(12):
        (folder := tmp_path / str(seed)).mkdir()
        made = shuffled_target_aucs(
            *world(folder, [1, 2, 3, 4] * 8, mixed=0.5, seed=seed), QUIET, shuffles=10, seed=seed
        )
        values.append(made.nested)
        alarms += made.p < 0.01
    assert alarms <= 1
    assert ttest_1samp(np.concatenate(values), 0.5).pvalue > 0.01


def test_no_level_has_seen_the_targets_of_the_fold_that_is_scored(
    clean: tuple[Experiment, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment, run = clean
    scored: list[np.ndarray] = []

    def spy(y: np.ndarray, s: np.ndarray, stratum: np.ndarray) -> float:
        scored.append(s)
        return auc(y, s)

    monkeypatch.setattr(dermstack.audit.shuffled, "auc_within_strata", spy)
    monkeypatch.setattr(dermstack.audit.shuffled, "with_shuffled_targets", lambda experiment, seed: experiment)
    shuffled_target_aucs(experiment, run, QUIET, shuffles=2)
    held = experiment.folds.frame["fold"].to_numpy() == 1
    train = experiment.table.train
    turned = train.assign(target=np.where(held, 1 - train["target"], train["target"]).astype(np.int8))
    shuffled_target_aucs(replace(experiment, table=Table(turned, experiment.table.test)), run, QUIET, shuffles=2)
    nested, ordinary, changed, changed_ordinary = scored[0], scored[1], scored[4], scored[5]
    assert (nested[held] == changed[held]).all()
    assert (nested[~held] != changed[~held]).any()
    assert (ordinary[held] != changed_ordinary[held]).any(), "one set of folds: level 2 has met nets that saw the fold"


@pytest.mark.slow
def test_two_processes_find_the_same_as_one(clean: tuple[Experiment, Run]) -> None:
    experiment, run = clean
    beside = replace(experiment, config=experiment.config.model_copy(update={"n_jobs": 2}))
    one, two = (shuffled_target_aucs(part, run, QUIET, shuffles=2, seed=7) for part in (experiment, beside))
    assert one.nested.tobytes() == two.nested.tobytes()
    assert one.ordinary.tobytes() == two.ordinary.tobytes()


def test_z_and_p_are_those_of_a_t_test(rng: np.random.Generator) -> None:
    for off in (0.0, 0.02, -0.03):
        made = ShuffledAucs(rng.normal(0.5 + off, 0.02, 20), rng.normal(0.51, 0.02, 20))
        expected = ttest_1samp(made.nested, 0.5)
        assert made.z == pytest.approx(expected.statistic)
        assert made.p == pytest.approx(expected.pvalue)
        assert made.excess / made.excess_se == pytest.approx(ttest_1samp(made.ordinary, 0.5).statistic)
        assert (shuffled_findings(made)[0].severity == "error") == (expected.pvalue < 0.01)
    assert ShuffledAucs(np.full(3, 0.5), np.full(3, 0.5)).p == 1
    assert ShuffledAucs(np.full(3, 0.6), np.full(3, 0.5)).p == 0


def test_what_cannot_be_shuffled_is_refused(clean: tuple[Experiment, Run]) -> None:
    experiment, run = clean
    with pytest.raises(ConfigError, match="--shuffles 1 gives no standard error: use 20 or more"):
        shuffled_target_aucs(experiment, run, QUIET, shuffles=1)
    with pytest.raises(ConfigError, match="still is of kind image, but shuffles need a frozen image model: name one"):
        shuffled_target_aucs(experiment, replace(run, meta={**run.meta, "kind": "image"}), QUIET)
    two = experiment.folds.frame.assign(fold=experiment.folds.frame["fold"].clip(upper=1))
    with pytest.raises(ConfigError, match=r"folds\.k to 3"):
        shuffled_target_aucs(replace(experiment, folds=replace(experiment.folds, frame=two)), run, QUIET)
    train = experiment.table.train.assign(target=(experiment.split_group == experiment.split_group[0]).astype(np.int8))
    with pytest.raises(DataError):
        shuffled_target_aucs(replace(experiment, table=Table(train, experiment.table.test)), run, QUIET, shuffles=2)


def few(experiment: Experiment, groups: int) -> Experiment:
    """Positives in so many groups of one alone."""
    train = experiment.table.train
    alone = train["group"].map(train["group"].value_counts()) == 1
    target = np.zeros(len(train), np.int8)
    target[np.flatnonzero(alone)[:groups]] = 1
    return replace(experiment, table=Table(train.assign(target=target), experiment.table.test))


def test_a_draw_that_leaves_nothing_to_fit_is_drawn_again(clean: tuple[Experiment, Run]) -> None:
    """With six groups of positives on three folds, two are often left with fewer than two of them."""
    experiment, lacking = few(clean[0], 6), 0
    fold = experiment.folds.frame["fold"].to_numpy()
    for seed in range(30):
        drawn = dermstack.audit.shuffled._usable_shuffle(experiment, seed)
        by_fold = np.bincount(fold[drawn.target == 1], minlength=3)
        assert by_fold.min() >= 2, "a fold alone is what is left without the two others"
        assert by_fold.sum() == 6
        lacking += np.bincount(fold[with_shuffled_targets(experiment, seed=seed).target == 1], minlength=3).min() < 2
    assert lacking > 5
    with pytest.raises(DataError, match=r"50 shuffles in a row .* folds.k"):
        dermstack.audit.shuffled._usable_shuffle(few(clean[0], 5), 0)

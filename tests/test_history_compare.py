"""Two scores on the same rows: the paired difference of the rows that both cover, or a refusal."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import average_precision_score, roc_auc_score

from dermstack.errors import ConfigError, DataError, StoreError
from stack.experiment import Experiment
from stack.history import compare
from stack.metrics.intervals import paired_difference
from stack.store import set_aside, write_run


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """With the runs good and fair, fair in another order and without two rows, and a blend."""
    experiment = opened_experiment(write_experiment(tmp_path))
    import_frames(experiment, "good", *predictions(experiment, noise=0.8, seed=1))
    oof, test = predictions(experiment, noise=3.0, seed=2)
    import_frames(experiment, "fair", oof.drop([0, 60]).sample(frac=1, random_state=0), test, exclude=2)
    score = pd.DataFrame({"id": experiment.table.train["id"], "score": blend_score(experiment)})
    write_run(experiment.folder / "blend", {"kind": "blend", "objective": "ap"}, frames={"oof": score})
    return experiment


def blend_score(experiment: Experiment) -> np.ndarray:
    return np.random.default_rng(3).random(len(experiment.target)) / 2 + experiment.target / 4


def test_it_is_the_paired_difference_on_the_rows_that_both_cover(experiment: Experiment) -> None:
    made = compare(experiment.config.runs, "elsewhere/good", "elsewhere/fair")
    difference, rows, objective = made.difference, made.rows, made.objective
    kept = np.delete(np.arange(len(experiment.target)), [0, 60])
    y = experiment.target[kept]
    a = predictions(experiment, noise=0.8, seed=1)[0]["p"].to_numpy()[kept]
    b = predictions(experiment, noise=3.0, seed=2)[0]["p"].to_numpy()[kept]
    assert (rows, objective) == (len(kept), "auc")
    assert difference.value == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b), abs=1e-6)
    expected = paired_difference("auc", y, a.astype(np.float32), b.astype(np.float32), experiment.split_group[kept])
    assert difference == expected
    assert difference.low > 0, "0.8 is far less noise than 3"


def test_swapped_it_changes_its_sign(experiment: Experiment) -> None:
    made = compare(experiment.config.runs, "elsewhere/good", "elsewhere/fair")
    one, n = made.difference, made.rows
    made = compare(experiment.config.runs, "elsewhere/fair", "elsewhere/good")
    other, m = made.difference, made.rows
    assert n == m
    assert (other.value, other.low, other.high, other.se) == pytest.approx((-one.value, -one.high, -one.low, one.se))


def test_a_run_does_not_differ_from_itself(experiment: Experiment) -> None:
    difference = compare(experiment.config.runs, "elsewhere/good", "elsewhere/good").difference
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_an_experiment_stands_for_its_blend_and_its_objective(experiment: Experiment) -> None:
    made = compare(experiment.config.runs, "elsewhere", "elsewhere/good")
    difference, objective = made.difference, made.objective
    y, good = experiment.target, predictions(experiment, noise=0.8, seed=1)[0]["p"]
    assert objective == "ap"
    assert difference.value == pytest.approx(
        average_precision_score(y, blend_score(experiment)) - average_precision_score(y, good), abs=1e-5
    )
    chosen = compare(experiment.config.runs, "elsewhere", "elsewhere/good", objective="logloss").objective
    assert chosen == "logloss"


def test_runs_of_two_experiments_on_the_same_rows_compare(experiment: Experiment) -> None:
    other = opened_experiment(experiment.config_path, "experiment=another", "folds.seed=5")
    import_frames(other, "net", *predictions(other, noise=0.8, seed=1))
    made = compare(experiment.config.runs, "elsewhere/good", "another/net")
    difference, rows = made.difference, made.rows
    assert rows == len(experiment.target)
    assert difference.value == 0, "the same predictions, whatever the folds"


def test_the_folder_may_be_given_by_its_parent(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    below = experiment.config.runs / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert compare(Path(".."), "elsewhere/good", "elsewhere/good").rows == len(experiment.target)


def test_a_run_set_aside_compares_with_the_one_in_its_place(experiment: Experiment) -> None:
    old = set_aside(experiment.models / "good", experiment.old)
    assert old is not None
    import_frames(experiment, "good", *predictions(experiment, noise=0.8, seed=9))
    difference = compare(experiment.config.runs, "elsewhere/good", f"elsewhere/old/{old.name}").difference
    a, b = (predictions(experiment, noise=0.8, seed=seed)[0]["p"] for seed in (9, 1))
    y = experiment.target
    assert difference.value == pytest.approx(roc_auc_score(y, a) - roc_auc_score(y, b), abs=1e-6)


def test_a_shuffled_twin_is_refused(experiment: Experiment) -> None:
    twin = opened_experiment(experiment.config_path, shuffle_target=True)
    import_frames(twin, "good", *predictions(twin))
    differ = int((twin.target != experiment.target).sum())
    assert differ > 0
    with pytest.raises(DataError, match=rf"target of {differ} rows.*shuffled"):
        compare(experiment.config.runs, "elsewhere/good", f"{twin.name}/good")


def test_other_groups_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.assign(patient=train["patient"] + "x").to_csv(tmp_path / "renamed.csv", index=False)
    other = opened_experiment(experiment.config_path, "experiment=another", "data.train=renamed.csv")
    import_frames(other, "net", *predictions(other))
    with pytest.raises(DataError, match="disagree on the split_group"):
        compare(experiment.config.runs, "elsewhere/good", "another/net")


def test_runs_without_a_common_row_are_refused(experiment: Experiment, tmp_path: Path) -> None:
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.assign(isic="other" + train["isic"]).to_csv(tmp_path / "other.csv", index=False)
    other = opened_experiment(experiment.config_path, "experiment=another", "data.train=other.csv")
    import_frames(other, "net", *predictions(other))
    with pytest.raises(DataError, match="no id in common"):
        compare(experiment.config.runs, "elsewhere/good", "another/net")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("elsewhere/god", "elsewhere has fair, good"),
        ("elsewhere/old/good-1", "elsewhere has fair, good"),
        ("nowhere", "`dermstack runs` lists"),
        ("nowhere/good", "`dermstack runs` lists"),
        ("elsewhere/../models/good", "elsewhere has fair, good"),
        ("elsewhere/old/../models/good", "no complete run"),
        ("../runs/elsewhere", "no complete run"),
        ("", "no complete run"),
    ],
)
def test_an_unknown_run_is_named_with_those_that_there_are(experiment: Experiment, name: str, hint: str) -> None:
    for pair in ((name, "elsewhere/good"), ("elsewhere/good", name)):
        with pytest.raises(StoreError) as error:
            compare(experiment.config.runs, *pair)
        assert str(error.value).startswith(f"{name}: no complete run")
        assert hint in str(error.value)


def test_an_experiment_without_a_blend_says_so(experiment: Experiment) -> None:
    shutil.rmtree(experiment.folder / "blend")
    with pytest.raises(StoreError, match=r"elsewhere has no blend: run `dermstack stack`.*such as elsewhere/fair"):
        compare(experiment.config.runs, "elsewhere", "elsewhere/good")


def test_an_unknown_objective_is_named(experiment: Experiment) -> None:
    with pytest.raises(ConfigError, match="unknown objective 'accuracy'"):
        compare(experiment.config.runs, "elsewhere/good", "elsewhere/fair", objective="accuracy")


def test_a_run_that_covers_no_row_of_the_table_any_more_is_not_scored(experiment: Experiment, tmp_path: Path) -> None:
    """The table was changed under the runs: nothing of it joins."""
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.assign(isic="other" + train["isic"]).to_csv(tmp_path / "other.csv", index=False)
    opened_experiment(experiment.config_path, "data.train=other.csv")
    with pytest.raises(DataError, match="no id in common"):
        compare(experiment.config.runs, "elsewhere/good", "elsewhere/fair")

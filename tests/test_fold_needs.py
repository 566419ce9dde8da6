"""Too few groups for what is fitted on the folds: found before anything is trained, with a remedy that works."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from imported_experiment import write_experiment

from dermstack.errors import DataError
from stack.blend.weights import DEFAULT_METHODS, METHODS
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.fold_needs import (
    blend_methods,
    check_blend_needs,
    check_fold_needs,
    check_study_needs,
    groups_left,
    warn_of_two_folds,
)
from stack.folds import inner_split
from stack.level1.image_runs import check_image_models, level1_runs
from stack.settings.config import Blend, BlendMethod, read_config

STACKER = {"name": "lgb", "kind": "lightgbm"}


def experiment(folder: Path, positive_groups: int, *overrides: str, **changes: object) -> Experiment:
    """The generated rows, of which only these groups have a positive (two rows each, and one negative)."""
    folder.mkdir(exist_ok=True)
    path = write_experiment(folder, **{"stackers": [STACKER], **changes})
    train = pd.read_csv(folder / "train.csv", dtype=str, keep_default_na=False)
    sizes = train["patient"].value_counts()
    chosen = sorted(sizes.index[sizes >= 3])[:positive_groups]
    positive = train["patient"].isin(chosen) & (train.groupby("patient").cumcount() < 2)
    train.assign(malignant=positive.astype(int)).to_csv(folder / "train.csv", index=False)
    return open_experiment(read_config(path, overrides), path, Out(quiet=True))


def can_split(made: Experiment) -> bool:
    """Whether early stopping works in every fold: the oracle."""
    try:
        for _, train, _ in made.folds.pairs():
            inner_split(made.target[train], made.split_group[train], seed=0)
    except DataError:
        return False
    return True


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("groups", [2, 3, 4, 5])
def test_the_check_refuses_exactly_what_early_stopping_cannot_split(tmp_path: Path, groups: int, k: int) -> None:
    if groups < k:
        return
    made = experiment(tmp_path, groups, f"folds.k={k}", blend={"methods": ["mean"]})
    if can_split(made):
        check_fold_needs(made)
    else:
        with pytest.raises(DataError, match=f"{groups} groups hold positives, of which only 1 may be left"):
            check_fold_needs(made)


def test_the_remedy_works(tmp_path: Path) -> None:
    made = experiment(tmp_path, 3, "folds.k=2")
    with pytest.raises(DataError, match=r"by stacker lgb: set folds\.k: 3, or disable it"):
        check_fold_needs(made)
    again = experiment(tmp_path, 3, "folds.k=3")
    check_fold_needs(again)
    assert can_split(again)
    check_fold_needs(experiment(tmp_path, 3, "folds.k=2", "stackers.0.enabled=false", blend={"methods": ["mean"]}))


def test_where_no_number_of_folds_works_that_is_said(tmp_path: Path) -> None:
    made = experiment(tmp_path, 2, "folds.k=2")
    with pytest.raises(DataError, match="no number of folds leaves enough, so add rows of other groups, or disable it"):
        check_fold_needs(made)


def test_a_fold_column_is_not_told_to_set_k(tmp_path: Path) -> None:
    experiment(tmp_path, 3)
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    number = pd.factorize(train["patient"])[0]
    positive = train["malignant"].astype(int).groupby(train["patient"]).transform("max").astype(bool)
    rank = train["patient"].where(positive).rank(method="dense").fillna(0).astype(int)
    train["mine"] = np.where(positive, np.minimum(rank - 1, 1), number % 2)
    train.to_csv(tmp_path / "train.csv", index=False)
    path = tmp_path / "elsewhere.yaml"
    made = open_experiment(read_config(path, ("folds.k=2", "data.columns.fold=mine")), path, Out(quiet=True))
    with pytest.raises(DataError, match=r"make more folds in the column of data\.columns\.fold") as error:
        check_fold_needs(made)
    assert "folds.k" not in str(error.value)


def test_two_folds_leave_the_simplest_blend_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def methods(k: int, **settings: object) -> tuple[str, ...]:
        return blend_methods(experiment(tmp_path, 20, f"folds.k={k}", **settings))

    listed = {"blend": {"methods": ["logistic", "rank_mean", "mean"]}}
    assert methods(3, **listed) == ("logistic", "rank_mean", "mean")
    assert methods(2, **listed) == ("rank_mean",)
    assert methods(2, **listed, objective="logloss") == ("mean",)
    assert methods(2, blend={"methods": ["logistic"]}) == ("logistic",)
    for k, said in ((2, "`stack` uses rank_mean alone"), (3, "")):
        made = experiment(tmp_path, 20, f"folds.k={k}", **listed)
        check_fold_needs(made)
        warn_of_two_folds(made, Out())
        assert said in (printed := capsys.readouterr().out)
        assert bool(printed) == bool(said)


def test_the_config_lists_the_methods_in_the_order_of_the_blend() -> None:
    assert get_args(BlendMethod) == METHODS
    assert Blend().methods == DEFAULT_METHODS


def test_weights_of_a_study_are_among_the_methods(tmp_path: Path) -> None:
    tuned = {"tuned": {"blend": "study.json"}}
    default = {"blend": {"methods": DEFAULT_METHODS}}
    assert blend_methods(experiment(tmp_path, 20, "folds.k=3", **tuned, **default)) == (*DEFAULT_METHODS, "optuna")
    listed = {"blend": {"methods": ["optuna", "mean"]}}
    assert blend_methods(experiment(tmp_path, 20, "folds.k=3", **tuned, **listed)) == ("optuna", "mean")
    assert blend_methods(experiment(tmp_path, 20, "folds.k=2", **tuned, **default)) == ("rank_mean",)


def test_rows_that_are_left_out_are_not_counted(tmp_path: Path) -> None:
    made = experiment(tmp_path, 4, "folds.k=3")
    check_fold_needs(made)
    positive_groups = np.unique(made.split_group[made.target == 1])
    kept = np.flatnonzero(~np.isin(made.split_group, positive_groups[:2]))
    with pytest.raises(DataError, match="2 groups hold positives, of which only"):
        check_fold_needs(made, kept)


def test_a_study_of_gbdts_needs_groups_without_two_folds(tmp_path: Path) -> None:
    made = experiment(tmp_path, 3, "folds.k=3")
    check_study_needs(made, "blend")
    with pytest.raises(DataError, match=r"by `tune gbdt`, which leaves out two folds at a time: no number of folds"):
        check_study_needs(made, "gbdt")
    with pytest.raises(DataError, match=r"`tune blend` needs 3 folds"):
        check_study_needs(experiment(tmp_path, 20, "folds.k=2"), "blend")
    check_study_needs(experiment(tmp_path, 4, "folds.k=4"), "gbdt")


def test_oof_and_stack_check_before_anything_else(tmp_path: Path) -> None:
    made = experiment(tmp_path, 3, "folds.k=2")
    for step in (check_image_models, level1_runs):
        with pytest.raises(DataError, match=r"set folds\.k: 3"):
            step(made)


def test_a_class_in_two_folds_is_too_few_for_a_choice_but_enough_for_one_method() -> None:
    """Units of many rows are nearly all positive, though as many rows are negative as positive."""
    fold, group = np.arange(20) % 5, np.arange(20)
    target = np.ones(20, int)
    target[[0, 1]] = 0  # in folds 0 and 1
    check_blend_needs(target, group, fold, candidates=1, of_units=True)
    with pytest.raises(DataError, match=r"predict_per: only 2 groups have a negative unit.* units are smaller"):
        check_blend_needs(target, group, fold, candidates=4, of_units=True)
    with pytest.raises(DataError, match=r"^only 2 groups have a positive row, and all may be in 2 folds.*folds\.k"):
        check_blend_needs(1 - target, group, fold, candidates=4, of_units=False)
    target[2] = 0
    check_blend_needs(target, group, fold, candidates=4, of_units=True)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.booleans()), min_size=1), st.sampled_from([1, 2]))
def test_groups_are_counted_as_by_hand(rows: list[tuple[int, int, bool]], left_out: int) -> None:
    fold = [fold for fold, _, _ in rows]
    group = [f"{fold}-{number}" for fold, number, _ in rows]  # no group in two folds
    target = [int(label) for _, _, label in rows]
    found = groups_left(target, np.array(group, object), fold, left_out=left_out).set_index("label")
    for label in (0, 1):
        holding = {(f, g) for f, g, t in zip(fold, group, target, strict=True) if t == label}
        counts = sorted((sum(f == k for f, _ in holding) for k in range(6)), reverse=True)
        assert found["groups"][label] == len(holding)
        assert found["left"][label] == sum(counts[left_out:])

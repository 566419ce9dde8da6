"""The level-2 matrix of a fold is made once for all stackers, and its files do not stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

import stack.level2.matrices
from stack.console import Out
from stack.experiment import Experiment
from stack.history import leftovers
from stack.level1.image_runs import level1_runs
from stack.level2.features import FoldMatrix, fold_matrix
from stack.level2.matrices import MATRICES_FOLDER, filed_matrices
from stack.predictions.joined import predictions_of, standardised
from stack.settings.config import read_config
from stack.views import with_all_features

STACKERS = [
    {"name": "gbdt", "kind": "lightgbm", "bags": 2, "params": {"rounds": 5, "patience": 2}},
    {"name": "again", "kind": "lightgbm", "bags": 1, "repeats": 2, "params": {"rounds": 5, "patience": 2}},
    {"name": "line", "kind": "logistic"},
]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    experiment = opened_experiment(write_experiment(tmp_path, stackers=STACKERS))
    import_frames(experiment, "net_a", *predictions(experiment, seed=0))
    return experiment


def test_what_is_read_from_the_files_is_what_was_made(experiment: Experiment) -> None:
    joined = standardised(predictions_of(experiment, level1_runs(experiment)))
    with filed_matrices(experiment, {}, joined, Out(quiet=True), repeats=2) as made:
        assert len(made) == 2
        for fold, filed in enumerate(made[0]):
            expected = fold_matrix(with_all_features(experiment), {}, joined, fold)
            read, test = filed.read()
            pd.testing.assert_frame_equal(read.train, expected.train)
            pd.testing.assert_frame_equal(read.held, expected.held)
            x_test = expected.features.transform(experiment.table.test, joined.test[fold], {})
            pd.testing.assert_frame_equal(test, x_test)
            assert read.features.source_ == expected.features.source_
            assert read.features.unseen == expected.features.unseen
            np.testing.assert_array_equal(read.held_rows, expected.held_rows)
        assert not np.array_equal(made[0][0].matrix.held_rows, made[1][0].matrix.held_rows), "another repeat"
    assert not (experiment.folder / MATRICES_FOLDER).exists()


def test_each_matrix_is_made_once_for_all_stackers(experiment: Experiment, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def counted(*arguments: Any, **settings: Any) -> FoldMatrix:
        made.append(arguments[-1])
        return fold_matrix(*arguments, **settings)

    monkeypatch.setattr(stack.level2.matrices, "fold_matrix", counted)
    assert run_cli("stack", "--no-report", "-q", "-c", str(experiment.config_path)) == 0
    assert made == [0, 1, 2] * 2  # of both repeats
    assert not (experiment.folder / MATRICES_FOLDER).exists()


def test_files_that_a_killed_command_left_are_named_and_removed(experiment: Experiment) -> None:
    left = experiment.folder / MATRICES_FOLDER / "repeat_0" / "fold_0"
    left.mkdir(parents=True)
    found = leftovers(read_config(experiment.config_path), cache=False)
    assert [one.path.name for one in found] == [MATRICES_FOLDER]
    assert run_cli("stack", "--no-report", "-q", "-c", str(experiment.config_path)) == 0
    assert not left.exists()
    assert leftovers(read_config(experiment.config_path), cache=False) == []

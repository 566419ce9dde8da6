"""What level 2 lives on: exact contributions on held-out rows, kept until a stacker changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

import stack.level2.importance
from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import fold_matrix
from stack.level2.importance import importance
from stack.parallel import Pending, ready
from stack.predictions.joined import predictions_of, standardised
from stack.store import Run, read_run, sha256
from tabular.models import read_bag

STACKERS = [
    {"name": "trees", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5, "min_data_in_leaf": 5}, "bags": 2},
    {"name": "line", "kind": "logistic"},
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder = tmp_path_factory.mktemp("importance")
    config = write_experiment(folder, stackers=STACKERS)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    return experiment


def runs(experiment: Experiment) -> tuple[list[Run], list[Run]]:
    stackers = [run for name in ("trees", "line") if (run := read_run(experiment.models / name))]
    return stackers, experiment.finished(level=1)


@pytest.fixture
def found(experiment: Experiment) -> pd.DataFrame:
    frame = importance(experiment, *runs(experiment), Out(quiet=True))
    assert frame is not None
    return frame


def test_it_is_of_rows_that_the_model_has_not_seen_and_adds_up_to_their_out_of_fold_logit(
    experiment: Experiment, found: pd.DataFrame
) -> None:
    stackers, sources = runs(experiment)
    rows = standardised(predictions_of(experiment, sources))
    for run in stackers:
        oof = run.frame("oof").set_index("id")
        added = []
        for fold in range(experiment.folds.k):
            matrix = fold_matrix(experiment, {}, rows, fold)
            kept = read_run(run.folder / f"fold_{fold}")
            assert kept is not None
            one, bias = read_bag(run.meta["kind"], kept.folder, shift=kept.meta["shift"]).contributions(matrix.held)
            held = oof.loc[experiment.table.train["id"].iloc[matrix.held_rows]]
            assert set(held["fold"]) == {fold}
            np.testing.assert_allclose(one.sum(axis=1) + bias, held["logit"], atol=1e-4)
            added.append(one)
        together = pd.concat(added)
        mine = found[(found["stacker"] == run.name) & (found["of"] == "feature")].set_index("name")
        for column in ("net_a", "net_b_group_max"):
            assert mine.loc[column, "size"] == pytest.approx(together[column].abs().mean())
        site = together[[column for column in together if column.startswith("site")]]
        assert site.shape[1] > 2
        assert mine.loc["site", "size"] == pytest.approx(site.sum(axis=1).abs().mean())
        blocks = found[(found["stacker"] == run.name) & (found["of"] == "block")].set_index("name")
        images = together[["net_a", "net_b"]].sum(axis=1).abs().mean()
        assert blocks.loc["image models", "size"] == pytest.approx(images)


def test_what_the_targets_were_made_of_matters_most_and_goes_up(found: pd.DataFrame) -> None:
    line = found[(found["stacker"] == "line") & (found["of"] == "feature")]
    assert line["size"].is_monotonic_decreasing
    assert line["name"].iloc[0] in {"net_a", "net_b"}
    assert line["trend"].iloc[0] > 0.99
    assert not line["name"].str.contains("=").any()


def test_it_is_made_once_and_again_when_a_stacker_is_another(
    experiment: Experiment, found: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    stackers, sources = runs(experiment)
    before = {path: sha256(path) for path in experiment.models.rglob("*") if path.is_file()}
    made = []

    def again(*_: object) -> list[Pending[pd.DataFrame]]:
        made.append(1)
        return [ready(found.head(3))]

    monkeypatch.setattr(stack.level2.importance, "_start_stages", again)
    pd.testing.assert_frame_equal(importance(experiment, stackers, sources, Out(quiet=True)), found)
    assert made == []
    other = Run(stackers[0].folder, {**stackers[0].meta, "fingerprint": "another"})
    assert len(importance(experiment, [other, stackers[1]], sources, Out(quiet=True))) == 3
    assert made == [1]
    assert {path: sha256(path) for path in experiment.models.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    pd.testing.assert_frame_equal(importance(experiment, stackers, sources, Out(quiet=True)), found)


def test_without_a_stacker_there_is_none(experiment: Experiment, tmp_path: Path) -> None:
    assert importance(experiment, [], experiment.finished(level=1), Out(quiet=True)) is None

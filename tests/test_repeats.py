"""Repeats of a stacker over other folds: honest, averaged, bundled, and refused where they cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import assert_predicts_as_submitted, run_cli, small_config
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.level1.image_runs import level1_runs
from stack.level2.features import early_stopping_rows, fold_matrix, view_columns
from stack.predictions.joined import predictions_of, standardised
from stack.predictions.repeats import mean_of_repeats, repeated
from stack.store import prediction_frame, read_run
from tabular.fit_bag import BagSettings, fit_bag

QUICK = {"rounds": 15, "min_data_in_leaf": 5}
GBDT = {"name": "gbdt", "kind": "lightgbm", "params": QUICK, "bags": 1}


def _stacked(folder: Path, *stackers: dict[str, object], **changes: object) -> Experiment:
    folder.mkdir(exist_ok=True)
    config = write_experiment(folder, stackers=list(stackers), **changes)
    experiment = opened_experiment(config)
    import_frames(experiment, "net", *predictions(experiment))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    return experiment


def _frames(experiment: Experiment, name: str) -> dict[str, pd.DataFrame]:
    run = read_run(experiment.models / name)
    assert run is not None
    return {part: run.frame(part) for part in ("oof", "test")}


def test_each_repeat_holds_out_every_row_once_and_no_group_is_on_both_sides(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path, folds={"k": 3, "stratify": ["age"]}))
    import_frames(experiment, "net", *predictions(experiment))
    made = standardised(predictions_of(experiment, level1_runs(experiment)))
    assert repeated(experiment, 0) is experiment
    assigned = []
    for repeat in range(4):
        other = repeated(experiment, repeat)
        held = []
        for fold in range(3):
            matrix = fold_matrix(other, {}, made, fold)
            sides = [set(experiment.split_group[rows]) for rows in (matrix.train_rows, matrix.held_rows)]
            assert not sides[0] & sides[1]
            assert len(matrix.train_rows) + len(matrix.held_rows) == len(experiment.target)
            held += list(matrix.held_rows)
        assert sorted(held) == list(range(len(experiment.target)))
        assigned.append(tuple(other.folds.frame["fold"]))
        assert other.folds.frame["id"].equals(experiment.folds.frame["id"])
    assert len(set(assigned)) == 4
    assert len({repeated(experiment, repeat).config.seed for repeat in range(4)}) == 4


def test_the_logits_are_the_means_over_the_repeats(tmp_path: Path) -> None:
    """The oracle fits each repeat by hand."""
    experiment = _stacked(tmp_path, GBDT | {"repeats": 3})
    made = standardised(predictions_of(experiment, level1_runs(experiment)))
    stacker, n = experiment.config.stackers[0], len(experiment.target)
    oof, test = np.zeros((3, n)), np.zeros((3, 3, len(experiment.table.test)))
    for repeat in range(3):
        other = repeated(experiment, repeat)
        for fold in range(3):
            matrix = fold_matrix(other, {}, made, fold)
            columns = view_columns(other.config, stacker, matrix.features)
            bag = fit_bag(
                BagSettings("lightgbm", QUICK),
                matrix.train[columns],
                experiment.target[matrix.train_rows],
                early_stopping_rows(other, matrix.train_rows),
                seed=other.config.seed,
                threads=1,
            )
            oof[repeat, matrix.held_rows] = bag.logit(matrix.held[columns])
            x = matrix.features.transform(experiment.table.test, made.test[fold], {})
            test[repeat, fold] = bag.logit(x[columns])
    found = _frames(experiment, "gbdt")
    own = found["oof"].set_index("id").loc[experiment.table.train["id"]]
    np.testing.assert_allclose(own["logit"], oof.mean(axis=0), atol=1e-6)
    np.testing.assert_array_equal(own["fold"], experiment.folds.frame["fold"])
    for fold in range(3):
        rows = found["test"][found["test"]["fold"] == fold].set_index("id").loc[experiment.table.test["id"]]
        np.testing.assert_allclose(rows["logit"], test[:, fold].mean(axis=0), atol=1e-6)
    assert (oof.std(axis=0) > 0).any()


def test_one_repeat_and_the_repeats_of_another_stacker_change_nothing(tmp_path: Path) -> None:
    plain = _stacked(tmp_path / "a", GBDT)
    beside = _stacked(tmp_path / "b", GBDT | {"repeats": 1}, GBDT | {"name": "often", "repeats": 3})
    runs = [read_run(one.models / "gbdt") for one in (plain, beside)]
    assert runs[0] is not None
    assert runs[1] is not None
    assert runs[0].meta["inputs"] == runs[1].meta["inputs"]
    for part, frame in _frames(plain, "gbdt").items():
        pd.testing.assert_frame_equal(frame, _frames(beside, "gbdt")[part])
    assert (_frames(beside, "often")["oof"]["logit"] != _frames(beside, "gbdt")["oof"]["logit"]).any()


def test_repeats_are_joined_by_id(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [f"r{number}" for number in range(6)]
    oof = [prediction_frame(ids, rng.integers(0, 3, 6), rng.normal(size=6).astype(np.float32)) for _ in range(2)]
    turned = oof[1].iloc[::-1]
    made = mean_of_repeats([oof[0], turned], by_fold=False)
    np.testing.assert_allclose(made["logit"], (oof[0]["logit"] + oof[1]["logit"]) / 2, rtol=1e-6)
    assert list(made["id"]) == ids
    with pytest.raises(StoreError, match="twice"):  # test rows have an id once for each fold
        mean_of_repeats([pd.concat(oof), pd.concat(oof)], by_fold=False)
    with pytest.raises(StoreError, match="not among"):
        mean_of_repeats([oof[0], oof[1].iloc[1:]], by_fold=False)


def test_targets_without_signal_are_not_predicted(tmp_path: Path) -> None:
    """Level-1 predictions that know nothing and 80 groups whose rows share a word: repeats must not leak the target."""
    config = write_experiment(tmp_path, stackers=[GBDT | {"repeats": 4}])
    experiment = opened_experiment(config)
    oof, test = predictions(experiment)
    rng = np.random.default_rng(3)
    import_frames(experiment, "net", oof.assign(p=rng.random(len(oof))), test)
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    from stack.metrics.scores import auc

    logit = _frames(experiment, "gbdt")["oof"].set_index("id")["logit"]
    assert abs(auc(experiment.target, logit[experiment.table.train["id"]].to_numpy(np.float64)) - 0.5) < 0.12


def test_a_study_beside_repeats_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_experiment(tmp_path, stackers=[GBDT | {"repeats": 2}], tuned={"gbdt": {"gbdt": "study.yaml"}})
    assert run_cli("stack", "-c", str(config)) == 2
    assert "gbdt has `repeats` and a study in tuned.gbdt" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_bundle_has_the_models_of_every_repeat(small_data: Path, tmp_path: Path) -> None:
    """With image models, whose embeddings and logits are those of the first folds in every repeat."""
    stackers = [GBDT | {"repeats": 2}, {"name": "line", "kind": "logistic", "positives": 2.5, "negatives": 0.8}]
    config = small_config(small_data, tmp_path, stackers=stackers)
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(config), "-q") == 0
    assert_predicts_as_submitted(config, small_data / "images", small_data / "test.csv")

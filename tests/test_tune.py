"""Studies choose without the rows that their choice is used on, continue where they stopped, and are read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_cli
from elsewhere import bring_in, mistake, opened, predictions, write_world

from stack.console import Out
from stack.embeddings import read_embeddings
from stack.errors import ConfigError
from stack.fold_matrix import fold_matrix
from stack.matrix import predictions_of, standardised
from stack.sources import level1_runs
from stack.tune import tune_gbdt

STACKER = {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 12, "patience": 4}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An experiment of two imported runs and one stacker."""
    return make(tmp_path)


def make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = write_world(folder, stackers=[STACKER], blend={"methods": ["rank_mean", "optuna"], "trials": 4})
    experiment = opened(path)
    for seed, name in enumerate(("a", "b")):
        bring_in(experiment, name, *predictions(experiment, seed=seed))
    return path


def studies(config: Path) -> Path:
    return config.parent / "runs" / "elsewhere" / "studies"


def test_a_study_for_a_fold_sees_none_of_its_rows(config: Path) -> None:
    experiment = opened(config)
    fold_of = experiment.folds.frame["fold"].to_numpy()
    sources = level1_runs(experiment)
    for outer, inner in [(0, 1), (2, 0)]:
        matrix = fold_matrix(
            experiment,
            read_embeddings(experiment, sources),
            standardised(predictions_of(experiment, sources)),
            inner,
            without=outer,
        )
        assert outer not in fold_of[np.concatenate([matrix.train_rows, matrix.held_rows])]
        assert set(fold_of[matrix.held_rows]) == {inner}
        assert inner not in fold_of[matrix.train_rows]
        assert (len(matrix.train), len(matrix.held)) == (len(matrix.train_rows), len(matrix.held_rows))


@pytest.mark.parametrize("study", ["gbdt", "blend"])
def test_interrupted_and_continued_a_study_chooses_the_same(study: str, config: Path, tmp_path: Path) -> None:
    for trials in ("2", "5"):
        assert run_cli("tune", study, "-c", str(config), "--trials", trials, "-q") == 0
    at_once = make(tmp_path / "other")
    assert run_cli("tune", study, "-c", str(at_once), "--trials", "5", "-q") == 0
    file = "gbdt-gbdt.yaml" if study == "gbdt" else "blend.yaml"
    assert (studies(config) / file).read_text() == (studies(at_once) / file).read_text()


def test_a_journal_with_a_torn_last_line_goes_on(config: Path) -> None:
    tune = ["tune", "gbdt", "-c", str(config), "-q", "--trials"]
    assert run_cli(*tune, "2") == 0
    with (studies(config) / "journal.log").open("a") as journal:
        journal.write('{"op_code": 4, "worker_id": "ab')
    assert run_cli(*tune, "3") == 0
    assert run_cli(*tune, "4") == 0
    assert yaml.safe_load((studies(config) / "gbdt-gbdt.yaml").read_text())["trials"] == 4


def test_stack_uses_what_each_folds_study_chose(config: Path) -> None:
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "4", "-q") == 0
    path = studies(config) / "gbdt-gbdt.yaml"
    study = yaml.safe_load(path.read_text())
    for fold, leaves in enumerate((5, 6, 7)):
        study["folds"][fold]["num_leaves"] = leaves
    path.write_text(yaml.safe_dump(study))
    assert run_cli("stack", "-c", str(config), "-q", "--set", f"tuned.gbdt.gbdt={path}") == 0
    for fold, leaves in enumerate((5, 6, 7)):
        model = (config.parent / f"runs/elsewhere/models/gbdt/fold_{fold}/model.txt").read_text()
        assert f"[num_leaves: {leaves}]" in model


def test_stack_blends_with_the_weights_that_were_tuned(config: Path) -> None:
    assert run_cli("tune", "blend", "-c", str(config), "--trials", "4", "-q") == 0
    path = studies(config) / "blend.yaml"
    study = yaml.safe_load(path.read_text())
    study["weights"] = [entry | {"weights": [0.5, 0.25, 0.25]} for entry in study["weights"]]
    path.write_text(yaml.safe_dump(study))
    use = ["-c", str(config), "-q", "--set", f"tuned.blend={path}", "--set", "blend.methods=[optuna]"]
    assert run_cli("stack", *use) == 0
    blend = json.loads((config.parent / "runs/elsewhere/blend/run.json").read_text())
    assert blend["weights"] == {"a": 0.5, "b": 0.25, "gbdt": 0.25}


def test_a_study_of_other_rows_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "1", "-q") == 0
    path = studies(config) / "gbdt-gbdt.yaml"
    path.write_text(path.read_text().replace("rows_or_folds: ", "rows_or_folds: x"))
    use = ["stack", "-c", str(config), "--set", f"tuned.gbdt.gbdt={path}"]
    assert "was tuned on other rows or folds" in mistake(capsys, *use)
    assert "run `dermstack tune`" in mistake(capsys, "stack", "-c", str(config), "--set", "tuned.gbdt.gbdt=gone.yaml")
    assert "choose blend, gbdt or image" in mistake(capsys, "tune", "images", "-c", str(config))
    assert "no enabled image model that is trained" in mistake(capsys, "tune", "image", "-c", str(config))


def test_a_stacker_without_parameters_has_no_study(tmp_path: Path) -> None:
    path = write_world(tmp_path, stackers=[{"name": "line", "kind": "logistic"}], blend={"trials": 4})
    experiment = opened(path)
    bring_in(experiment, "a", *predictions(experiment, seed=0))
    with pytest.raises(ConfigError, match="line is a logistic model: studies are for lightgbm, xgboost, catboost"):
        tune_gbdt(experiment, experiment.config.stackers[0], Out(quiet=True), trials=2, timeout=None)

"""Studies choose without the rows that their choice is used on, continue where they stopped, and are read back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment

from dermstack.errors import ConfigError
from stack.console import Out
from stack.tune.run import _inner_splits, tune_gbdt
from stack.tuned import config_line

STACKER = {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 12, "patience": 4}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """An experiment of two imported runs and one stacker."""
    return make(tmp_path)


def make(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    path = write_experiment(folder, stackers=[STACKER], blend={"methods": ["rank_mean", "optuna"], "trials": 4})
    experiment = opened_experiment(path)
    for seed, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, seed=seed))
    return path


def studies(config: Path) -> Path:
    return config.parent / "runs" / "elsewhere" / "studies"


def test_a_study_for_a_fold_sees_none_of_its_rows(config: Path) -> None:
    experiment = opened_experiment(config)
    fold_of = experiment.folds.frame["fold"].to_numpy()
    for outer in (0, 2, None):
        splits = _inner_splits(experiment, experiment.config.stackers[0], outer)
        inner_folds = sorted({0, 1, 2} - {outer})
        assert len(splits) == len(inner_folds)
        for inner, matrix in zip(inner_folds, splits, strict=True):
            used = np.concatenate([matrix.train_rows, matrix.held_rows])
            assert set(fold_of[used]) == {0, 1, 2} - {outer}
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


def test_rows_are_scored_by_their_folds_parameters_and_submitted_by_those_of_all_rows(config: Path) -> None:
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "1", "-q") == 0
    path = studies(config) / "gbdt-gbdt.yaml"
    study = yaml.safe_load(path.read_text())
    used = {"num_leaves": 31, "min_data_in_leaf": 5, "bagging_fraction": 1.0, "feature_fraction": 1.0, "lambda_l2": 0.1}
    leaves = {0: 3, 1: 5, 2: 9, "all": 13}
    study["folds"] = {fold: used | {"num_leaves": leaves[fold]} for fold in range(3)}
    study["all"] = used | {"num_leaves": leaves["all"]}
    path.write_text(yaml.safe_dump(study))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q", "--set", f"tuned.gbdt.gbdt={path}") == 0
    run = config.parent / "runs/elsewhere/models/gbdt"
    tuned = {part: pd.read_parquet(run / f"{part}.parquet") for part in ("oof", "test")}
    for fold in range(3):
        assert "[num_leaves: 13]" in (run / f"fold_{fold}" / "model.txt").read_text()
    for fold, number in leaves.items():
        settings = json.dumps({**STACKER["params"], **used, "num_leaves": number})
        assert run_cli("stack", "--no-report", "-c", str(config), "-q", "--set", f"stackers.0.params={settings}") == 0
        part = "test" if fold == "all" else "oof"
        expected, made = pd.read_parquet(run / f"{part}.parquet"), tuned[part]
        alike = made["fold"] == fold if part == "oof" else made["fold"] >= 0
        pd.testing.assert_frame_equal(made[alike], expected[alike])
        if part == "oof":
            assert not made[~alike]["logit"].equals(expected[~alike]["logit"])


def test_a_study_on_all_rows_that_is_missing_is_named(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "1", "-q") == 0
    path = studies(config) / "gbdt-gbdt.yaml"
    study = yaml.safe_load(path.read_text())
    del study["all"]
    path.write_text(yaml.safe_dump(study))
    use = ["stack", "-c", str(config), "--set", f"tuned.gbdt.gbdt={path}"]
    assert "lacks the study on all rows: run `dermstack tune gbdt` again" in command_error(capsys, *use)


def test_the_blends_studies_are_the_same_by_several_workers(config: Path, tmp_path: Path) -> None:
    tune = ["tune", "blend", "-q", "--trials", "6", "-c"]
    assert run_cli(*tune, str(config), "--workers", "2") == 0
    at_once = make(tmp_path / "other")
    assert run_cli(*tune, str(at_once)) == 0
    assert (studies(config) / "blend.yaml").read_text() == (studies(at_once) / "blend.yaml").read_text()


def test_a_study_without_time_says_so_and_goes_on(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["tune", "blend", "-c", str(config), "--trials", "5"]
    assert run_cli(*tune, "--timeout", "0") == 0
    assert "7 of 7 studies have fewer than 5 trials for lack of time: run the same command to continue them" in said(
        capsys
    )
    study = yaml.safe_load((studies(config) / "blend.yaml").read_text())
    assert [entry["trials"] for entry in study["weights"]] == [1] * 7
    assert run_cli(*tune, "-q") == 0
    study = yaml.safe_load((studies(config) / "blend.yaml").read_text())
    assert [entry["trials"] for entry in study["weights"]] == [5] * 7


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """What was printed, its lines joined."""
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def test_stack_blends_with_the_weights_that_were_tuned(config: Path) -> None:
    assert run_cli("tune", "blend", "-c", str(config), "--trials", "4", "-q") == 0
    path = studies(config) / "blend.yaml"
    study = yaml.safe_load(path.read_text())
    study["weights"] = [entry | {"weights": [0.5, 0.25, 0.25]} for entry in study["weights"]]
    path.write_text(yaml.safe_dump(study))
    use = ["-c", str(config), "-q", "--set", f"tuned.blend={path}", "--set", "blend.methods=[optuna]"]
    assert run_cli("stack", "--no-report", *use) == 0
    blend = json.loads((config.parent / "runs/elsewhere/blend/run.json").read_text())
    assert blend["weights"] == {"a": 0.5, "b": 0.25, "gbdt": 0.25}


@pytest.mark.parametrize("preselect", [True, False])
def test_tuned_weights_are_those_that_the_blend_would_find_itself(config: Path, preselect: bool) -> None:
    """With a run that carries nothing: its weight is 0 in every study where the blend pre-selects runs."""
    experiment = opened_experiment(config)
    oof, test = predictions(experiment, seed=5)
    oof["p"] = np.random.default_rng(1).random(len(oof))
    import_frames(experiment, "nothing", oof, test)
    settings = ["-c", str(config), "-q", "--set", "stackers=[]", "--set", f"blend.preselect={preselect}"]
    assert run_cli("tune", "blend", *settings, "--trials", "12") == 0
    found = yaml.safe_load((studies(config) / "blend.yaml").read_text())["weights"]
    weights = np.array([entry["weights"] for entry in found])
    nothing = weights[:, experiment_runs(config).index("nothing")]
    assert (nothing == 0).all() == preselect
    blends = []
    for more in (["--set", f"tuned.blend={studies(config) / 'blend.yaml'}"], ["--set", "blend.trials=12"]):
        assert run_cli("stack", "--no-report", *settings, "--set", "blend.methods=[mean, optuna]", *more) == 0
        blend = config.parent / "runs/elsewhere/blend"
        meta = json.loads((blend / "run.json").read_text())
        blends.append((pd.read_parquet(blend / "oof.parquet"), meta["chosen_by_fold"], meta["weights"]))
    pd.testing.assert_frame_equal(blends[0][0], blends[1][0])
    assert blends[0][1:] == blends[1][1:]


def experiment_runs(config: Path) -> list[str]:
    runs: list[str] = yaml.safe_load((studies(config) / "blend.yaml").read_text())["runs"]
    return runs


def test_a_study_of_other_rows_is_refused(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "1", "-q") == 0
    path = studies(config) / "gbdt-gbdt.yaml"
    _, _, study = path.read_text().partition("\n")  # whoever changes it drops the line with the digest
    path.write_text(study.replace("rows_or_folds: ", "rows_or_folds: x"))
    use = ["stack", "-c", str(config), "--set", f"tuned.gbdt.gbdt={path}"]
    assert "was tuned on other rows or folds" in command_error(capsys, *use)
    assert "run `dermstack tune`" in command_error(
        capsys, "stack", "-c", str(config), "--set", "tuned.gbdt.gbdt=gone.yaml"
    )
    assert "choose blend, gbdt or image" in command_error(capsys, "tune", "images", "-c", str(config))
    assert "no enabled image model that is trained" in command_error(capsys, "tune", "image", "-c", str(config))


def test_a_stacker_without_parameters_has_no_study(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, stackers=[{"name": "line", "kind": "logistic"}], blend={"trials": 4})
    experiment = opened_experiment(path)
    import_frames(experiment, "a", *predictions(experiment, seed=0))
    with pytest.raises(
        ConfigError, match=r"line is a logistic model, .*: choose a stacker of kind lightgbm, xgboost, catboost"
    ):
        tune_gbdt(experiment, experiment.config.stackers[0], Out(quiet=True), trials=2, timeout=None)


def test_a_logistic_regression_beside_gbdts_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gbdt = {"name": "gbdt", "kind": "lightgbm", "params": {"patience": 5}}
    path = write_experiment(tmp_path, stackers=[{"name": "line", "kind": "logistic"}, gbdt], blend={"trials": 4})
    experiment = opened_experiment(path)
    import_frames(experiment, "a", *predictions(experiment, seed=0))
    assert run_cli("tune", "gbdt", "-c", str(path), "--trials", "1") == 0
    assert "line: a logistic regression has nothing to tune, skipped" in capsys.readouterr().out
    assert (studies(path) / "gbdt-gbdt.yaml").is_file()


def test_one_line_of_the_config_uses_all_results_of_studies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """YAML takes a key once only, so a line for each result could not be pasted beside the others."""
    stackers = [{"name": name, "kind": "lightgbm", "params": {"patience": 5}} for name in ("one", "two")]
    path = write_experiment(tmp_path, stackers=stackers, blend={"trials": 4})
    import_frames(opened_experiment(path), "a", *predictions(opened_experiment(path), seed=0))
    text = path.read_text(encoding="utf-8")

    def printed_line(study: str, tuned: str) -> str:
        path.write_text(f"{text}\n{tuned}\n", encoding="utf-8")
        assert run_cli("tune", study, "-c", str(path), "--trials", "1") == 0
        said = " ".join(capsys.readouterr().out.split())
        assert (" in place of its key `tuned`: " in said) == bool(tuned)
        assert said.endswith(f"next: dermstack stack --config {path}")
        return said.partition(f"write into {path}")[2].split("`tuned: ")[1].partition("`")[0]

    gbdts = yaml.safe_load(printed_line("gbdt", ""))
    assert gbdts == {"gbdt": {name: str(studies(path) / f"gbdt-{name}.yaml") for name in ("one", "two")}}
    both = yaml.safe_load(printed_line("blend", f"tuned: {gbdts}"))
    assert both == {**gbdts, "blend": str(studies(path) / "blend.yaml")}
    path.write_text(f"{text}\ntuned: {both}\n", encoding="utf-8")
    assert run_cli("stack", "-c", str(path), "--no-report") == 0
    assert yaml.safe_load(printed_line("gbdt", f"tuned: {both}")) == gbdts  # weights are tuned after the GBDTs


def test_a_tuned_network_leaves_out_what_was_tuned_without_it(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, stackers=[STACKER], tuned={"blend": "b.yaml", "gbdt": {"gbdt": "g.yaml"}})
    line = config_line(opened_experiment(path), "image", {"net": tmp_path / "n e.yaml"})
    assert f"`tuned: {{image: {{net: {tmp_path / 'n e.yaml'}}}}}`" in line
    assert line.endswith("with this line, tune tuned.gbdt, tuned.blend again")

"""`dermstack runs`: every experiment with its runs, what each is worth, and what is unfinished or damaged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import roc_auc_score

from stack.experiment import Experiment
from stack.history import list_experiments
from stack.store import write_run

HEADLINE = {"value": 0.91234, "low": 0.9, "high": 0.92, "se": 0.005}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """With two imported runs of different worth."""
    experiment = opened_experiment(write_experiment(tmp_path))
    for name, noise in (("good", 0.8), ("fair", 3.0)):
        import_frames(experiment, name, *predictions(experiment, noise=noise))
    return experiment


def listed(experiment: Experiment) -> pd.DataFrame:
    return list_experiments(experiment.config.runs).set_index("run")


def test_each_run_shows_its_out_of_fold_auc(experiment: Experiment) -> None:
    shown = listed(experiment)
    for name, noise in (("good", 0.8), ("fair", 3.0)):
        oof, _ = predictions(experiment, noise=noise)
        assert shown.loc[name, "auc"] == pytest.approx(roc_auc_score(experiment.target, oof["p"]), abs=1e-6)
        assert shown.loc[name, "kind"] == "imported"
        assert shown.loc[name, "headline"] == ""
    assert set(shown["experiment"]) == {"elsewhere"}


def test_a_run_of_fewer_rows_is_scored_on_those(experiment: Experiment) -> None:
    oof, test = predictions(experiment)
    part = oof.iloc[5:].sample(frac=1, random_state=0)
    import_frames(experiment, "part", part, test, exclude=5)
    expected = roc_auc_score(experiment.target[5:], oof["p"].iloc[5:])
    assert listed(experiment).loc["part", "auc"] == pytest.approx(expected, abs=1e-6)


def test_a_blend_stands_first_with_its_headline(experiment: Experiment) -> None:
    score = np.random.default_rng(0).random(len(experiment.target))
    oof = pd.DataFrame({"id": experiment.table.train["id"], "score": score})
    write_run(experiment.folder / "blend", {"kind": "blend", "headline": HEADLINE}, frames={"oof": oof})
    shown = list_experiments(experiment.config.runs)
    assert shown["run"].tolist() == ["blend", "fair", "good"]
    assert shown["headline"].tolist() == ["0.9123 [0.9000, 0.9200] nested", "", ""]
    assert shown["auc"].iloc[0] == pytest.approx(roc_auc_score(experiment.target, score))


@pytest.mark.parametrize("content", [b"", b"PAR1 damaged", None])
def test_a_damaged_table_is_named_and_the_other_experiments_are_listed(
    experiment: Experiment, content: bytes | None
) -> None:
    other = opened_experiment(experiment.config_path, "experiment=another")
    import_frames(other, "net", *predictions(other))
    table = experiment.folder / "table.parquet"
    if content is None:
        pd.DataFrame({"other": [1]}).to_parquet(table)  # a table, but not of an experiment
    else:
        table.write_bytes(content)
    shown = list_experiments(experiment.config.runs).set_index(["experiment", "run"])
    assert shown.loc[("elsewhere", "table.parquet"), "kind"] == "damaged: run `dermstack stack`"
    assert shown.loc[("elsewhere", "good"), "kind"] == "imported"
    assert np.isnan(shown.loc[("elsewhere", "good"), "auc"])
    assert shown.loc[("another", "net"), "auc"] > 0.5
    assert run_cli("runs", "--folder", str(experiment.config.runs)) == 0


def test_unfinished_and_damaged_runs_are_named_so_beside_the_others(experiment: Experiment) -> None:
    net = experiment.models / "net"
    write_run(net / "fold_0", {}, frames={})
    write_run(net / "fold_1", {}, frames={})
    (net / "fold_2").mkdir()
    import_frames(experiment, "flipped", *predictions(experiment))
    (experiment.models / "flipped" / "oof.parquet").write_bytes(b"")
    import_frames(experiment, "torn", *predictions(experiment))
    (experiment.models / "torn" / "run.json").write_text('{"files": ')
    shown = listed(experiment)
    assert shown["kind"].to_dict() == {
        "fair": "imported",
        "flipped": "damaged",
        "good": "imported",
        "net": "unfinished, 2 folds",
        "torn": "damaged",
    }
    assert shown["auc"].notna().to_dict() == {"fair": True, "flipped": False, "good": True, "net": False, "torn": False}


def test_a_run_of_other_rows_has_no_auc(experiment: Experiment, tmp_path: Path) -> None:
    """The table has lost rows since: a number over the rest would be of something else."""
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    train.iloc[3:].to_csv(tmp_path / "shorter.csv", index=False)
    opened_experiment(experiment.config_path, "data.train=shorter.csv")
    assert listed(experiment)["auc"].isna().all()


def test_experiments_are_listed_one_by_one(experiment: Experiment, tmp_path: Path) -> None:
    other = opened_experiment(experiment.config_path, "experiment=another")
    import_frames(other, "net", *predictions(other))
    (experiment.config.runs / "no-experiment").mkdir()
    shown = list_experiments(experiment.config.runs)
    assert shown[["experiment", "run"]].to_numpy().tolist() == [
        ["another", "net"],
        ["elsewhere", "fair"],
        ["elsewhere", "good"],
    ]
    assert list_experiments(tmp_path / "nowhere").empty

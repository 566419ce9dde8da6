"""Probes of a stacker: what it gains from a shortcut and loses without the group, each against the same without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import roc_auc_score

import stack.level2.probes
from stack.console import Out
from stack.experiment import Experiment
from stack.level1.image_runs import level1_runs
from stack.level2.probes import Probe, Probed, _plain_fold, make_probes, probe_table, stored_probes
from stack.level2.stored_features import stored_matrix
from stack.predictions.joined import predictions_of, standardised, stored_scales
from stack.store import Run, read_run

GBDT = {"name": "gbdt", "kind": "lightgbm", "bags": 2, "params": {"rounds": 25, "patience": 5}}
LINE = {"name": "line", "kind": "logistic"}


def stacked(folder: Path, *stackers: dict[str, object], **changes: object) -> Experiment:
    folder.mkdir(exist_ok=True)
    config = write_experiment(folder, stackers=list(stackers), **changes)
    experiment = opened_experiment(config)
    for seed, name in enumerate(("net_a", "net_b")):
        if read_run(experiment.models / name) is None:
            import_frames(experiment, name, *predictions(experiment, seed=seed))
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    made = [run_of(experiment, str(stacker["name"])) for stacker in stackers]
    make_probes(experiment, made, level1_runs(experiment), Out(quiet=True))  # as the report does
    return experiment


def run_of(experiment: Experiment, name: str) -> Run:
    run = read_run(experiment.models / name)
    assert run is not None
    return run


def probes_of(experiment: Experiment, name: str) -> pd.DataFrame:
    found = stored_probes(experiment, run_of(experiment, name))
    assert found is not None
    return found.set_index("what")


def auc_of(experiment: Experiment, name: str) -> float:
    oof = run_of(experiment, name).frame("oof").set_index("id").loc[experiment.table.train["id"]]
    return float(roc_auc_score(experiment.target, oof["logit"]))


def test_a_logistic_probe_is_the_stacker_of_a_config_with_the_shortcut(tmp_path: Path) -> None:
    plain = stacked(tmp_path / "plain", LINE)
    changed = stacked(tmp_path / "changed", LINE, features={"context_counts": True})
    probe = probes_of(plain, "line").loc["context_counts"]
    assert probe["auc"] == pytest.approx(auc_of(changed, "line"), abs=1e-12)
    assert probe["difference"] == pytest.approx(auc_of(changed, "line") - auc_of(plain, "line"), abs=1e-12)
    assert "context_counts" not in probes_of(changed, "line").index, "it is a feature there"


def test_only_the_first_stacker_is_probed_and_the_probes_end_with_it(tmp_path: Path) -> None:
    experiment = stacked(tmp_path, GBDT, LINE)
    gbdt, line = run_of(experiment, "gbdt"), run_of(experiment, "line")
    assert stored_probes(experiment, line) is None
    assert list(probes_of(experiment, "gbdt").index) == ["alone", "context_counts", "groups of one", "other groups"]
    other = Run(gbdt.folder, {**gbdt.meta, "fingerprint": "0" * 12})
    assert stored_probes(experiment, other) is None, "of a stacker that was fitted since"
    files = (*gbdt.meta["files"], *line.meta["files"])
    assert not any("probes" in file for file in files), "they are no part of a stacker"


def test_groups_of_one_with_a_single_positive_are_left_out_and_stop_no_report(tmp_path: Path) -> None:
    """As where pairs of images lack a few rows of a run: an interval needs two groups with a positive row."""
    experiment = stacked(tmp_path, LINE)
    train = experiment.table.train
    alone = (train["group"].map(train["group"].value_counts()) == 1).to_numpy()
    first = np.flatnonzero(alone & (experiment.target == 1))[0]
    kept = ~alone | (experiment.target == 0) | (np.arange(len(train)) == first)
    level1 = predictions_of(experiment, [run_of(experiment, name) for name in ("net_a", "net_b")])
    logit = level1.oof[:, 0][kept]
    found = probe_table(
        experiment, replace(level1, rows=level1.rows[kept], oof=level1.oof[kept]), [Probe("alone", logit, logit)]
    )
    assert found["what"].tolist() == ["alone", "other groups"]


def test_the_stored_models_give_the_out_of_fold_logits(tmp_path: Path) -> None:
    experiment = stacked(tmp_path, GBDT)
    run, config = run_of(experiment, "gbdt"), experiment.config
    sources = [run_of(experiment, name) for name in ("net_a", "net_b")]
    level1 = standardised(predictions_of(experiment, sources), stored_scales(run))
    oof = run.frame("oof")
    for fold in range(experiment.folds.k):
        plain = _plain_fold(Probed(experiment, config.stackers[0], run, [], {}, level1), fold)
        ids = experiment.table.train["id"][experiment.folds.frame["fold"] == fold]
        np.testing.assert_array_equal(plain.bag, oof.set_index("id").loc[ids, "logit"])
        held = stored_matrix(experiment, config.features, run, {}, level1, fold).held
        np.testing.assert_array_equal(plain.bag, stack.level2.probes._stored_bag(run, fold).logit(held))
        assert not np.array_equal(plain.first, plain.bag), "a bag of two"


def test_a_gbdt_probe_with_nothing_changed_is_its_first_model(tmp_path: Path) -> None:
    """The same rows in the same order, seed and rounds: what differs in a probe is the columns alone."""
    from stack.level2.features import fold_matrix
    from stack.level2.stackers import fit_fold

    experiment = stacked(tmp_path, GBDT)
    run = run_of(experiment, "gbdt")
    sources = [run_of(experiment, name) for name in ("net_a", "net_b")]
    level1 = standardised(predictions_of(experiment, sources), stored_scales(run))
    stacker = experiment.config.stackers[0]
    matrix = fold_matrix(experiment, {}, level1, 1)
    bag = fit_fold(experiment, stacker, matrix, 1, bags=1, rounds=int(run.meta["chosen"][1][0]))
    first = _plain_fold(Probed(experiment, stacker, run, [], {}, level1), 1).first
    np.testing.assert_array_equal(bag.logit(matrix.held), first)


@pytest.mark.parametrize("stacker", [
    {"name": "trees", "kind": "sklearn", "estimator": "sklearn.ensemble.ExtraTreesClassifier", "bags": 1},
    GBDT | {"repeats": 2, "bags": 1},
])  # fmt: skip
def test_stackers_without_stored_models_of_their_rows_are_probed_too(
    tmp_path: Path, stacker: dict[str, object]
) -> None:
    experiment = stacked(tmp_path, stacker)
    probes = probes_of(experiment, str(stacker["name"]))
    assert {"alone", "context_counts"} <= set(probes.index)
    assert probes["auc"].between(0, 1).all()

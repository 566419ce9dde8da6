"""Wrong labels planted where embeddings know better are found; hard, lone and uninformed rows are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited_experiment import audited_experiment
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from dermstack.audit.labels import (
    COLUMNS,
    NEIGHBOURS,
    contradicts,
    doubtful_labels,
    doubtful_labels_finding,
    kept_doubtful_labels,
    nearest_neighbours,
    platt_probabilities,
)
from stack.experiment import Experiment
from stack.store import Run, prediction_frame, read_run, write_run


def with_z(
    folder: Path, *, apart: float = 2.5, flipped: int = 0, seed: int = 0
) -> tuple[Experiment, np.ndarray, np.ndarray]:
    """An experiment of labels drawn afresh from embeddings (n, 16), those and the rows whose label is then turned."""
    rng = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}

    def plant(train: pd.DataFrame, test: pd.DataFrame) -> None:
        true = (rng.random(len(train)) < 0.25).astype(int)
        z = rng.normal(size=(len(train), 16))
        z[:, :4] += apart * true[:, None] / 2
        wrong = np.sort(rng.permutation(len(train))[:flipped])
        train["target"] = true
        train.loc[wrong, "target"] = 1 - true[wrong]
        made.update(z=z, wrong=wrong)

    experiment = audited_experiment(folder, plant, groups=250, seed=seed)
    return experiment, made["z"], made["wrong"]


def fitted(experiment: Experiment, name: str, z: np.ndarray, *, kind: str = "frozen", turn: bool = False) -> Run:
    """A run that a logistic regression on embeddings makes, honestly out of fold; fold nets turn their axes."""
    fold, logit = experiment.folds.frame["fold"].to_numpy(), np.empty(len(z))
    kept = z.copy()
    for k, rest, held in experiment.folds.pairs():
        model = LogisticRegression().fit(z[rest], experiment.target[rest])
        logit[held] = model.decision_function(z[held])
        if turn:
            turned = np.linalg.qr(np.random.default_rng(k).normal(size=(z.shape[1], z.shape[1])))[0]
            kept[held] = z[held] @ turned
    test = experiment.table.test["id"]
    tests = [prediction_frame(test, k, np.zeros(len(test))) for k in range(experiment.folds.k)]
    order = np.random.default_rng(1).permutation(len(z))  # rows are joined by id, whatever their order
    ids = experiment.table.train["id"].iloc[order]
    return write_run(
        experiment.models / name,
        {"fingerprint": name, "level": 1, "kind": kind},
        frames={"oof": prediction_frame(ids, fold[order], logit[order]), "test": pd.concat(tests)},
        arrays={"oof_z": kept[order].astype(np.float16)},
    )


def test_labels_that_were_turned_are_at_the_head_of_the_list(tmp_path: Path) -> None:
    experiment, z, wrong = with_z(tmp_path, flipped=30, apart=3.5)
    before = experiment.target.copy()
    look = doubtful_labels(experiment, [fitted(experiment, "net", z)])
    ids = set(experiment.table.train["id"].iloc[wrong])
    assert list(look.columns) == [*COLUMNS, "p_net"]
    found = look["id"].isin(ids)
    assert found.sum() > 0.6 * len(wrong)
    assert found.head(15).mean() > 0.9
    assert found.mean() > 0.5
    assert set(look["target"]) == {0, 1}
    assert look["doubt"].is_monotonic_decreasing
    np.testing.assert_array_equal(experiment.target, before)


def test_every_run_must_contradict(tmp_path: Path) -> None:
    experiment, z, wrong = with_z(tmp_path, flipped=20)
    sees, blind = fitted(experiment, "net", z), z.copy()
    blind[wrong[:10], :4] = np.where(experiment.target[wrong[:10]] == 1, 3.0, -3.0)[:, None]  # agrees with the label
    one, both = (
        doubtful_labels(experiment, [sees]),
        doubtful_labels(experiment, [sees, fitted(experiment, "other", blind)]),
    )
    spared = set(experiment.table.train["id"].iloc[wrong[:10]])
    assert len(spared & set(one["id"])) > 5
    assert not spared & set(both["id"])
    assert set(both["id"]) < set(one["id"])


def test_neighbours_of_fold_nets_are_of_the_same_net(tmp_path: Path) -> None:
    """Each net turns its axes: across nets neighbours would be strangers, within one they are the frozen ones."""
    experiment, z, _ = with_z(tmp_path, flipped=20)
    look = doubtful_labels(experiment, [fitted(experiment, "net", z, kind="image", turn=True)])
    fold = experiment.folds.frame.set_index("id")["fold"]
    there = look[look["like"].notna()]
    assert len(there) > 10
    assert (fold.loc[there["id"]].to_numpy() == fold.loc[there["like"]].to_numpy()).all()
    target = experiment.table.train.set_index("id")["target"]
    assert (target.loc[there["like"]].to_numpy() == 1 - there["target"]).all()


def test_neighbours_are_those_of_a_brute_force_search_in_other_groups(rng: np.random.Generator) -> None:
    n = 120
    z = rng.normal(size=(n, 5)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    net, group, y = rng.integers(0, 2, n), rng.integers(0, 30, n), rng.integers(0, 2, n)
    asked = np.arange(0, n, 3)
    share, like = nearest_neighbours(asked, (z, net), group, y)
    for place, row in enumerate(asked):
        others = [other for other in range(n) if net[other] == net[row] and group[other] != group[row]]
        others.sort(key=lambda other: -float(z[row] @ z[other]))
        assert share[place] == pytest.approx(np.mean(y[others[:NEIGHBOURS]]))
        assert like[place] == next(other for other in others if y[other] != y[row])


def test_a_run_that_knows_nothing_doubts_nothing(tmp_path: Path, rng: np.random.Generator) -> None:
    experiment, z, _ = with_z(tmp_path)
    look = doubtful_labels(experiment, [fitted(experiment, "noise", rng.normal(size=z.shape))])
    assert len(look) == 0
    assert list(look.columns) == [*COLUMNS, "p_noise"]


def test_classes_that_are_well_apart_have_no_doubtful_label(tmp_path: Path) -> None:
    experiment, z, _ = with_z(tmp_path, apart=8)
    run = fitted(experiment, "net", z)
    look = doubtful_labels(experiment, [run])
    finding = doubtful_labels_finding(look, len(z), [run])
    assert finding is not None
    assert len(look) == 0
    assert finding.evidence.startswith(f"0 of {len(z)} rows")
    assert finding.severity == "note"
    assert finding.remedy == "none"


def test_an_opinion_contradicts_where_it_is_as_loud_as_of_rows_of_the_other_target() -> None:
    y = np.array([1, 1, 1, 0, 0, 0, 0, 0])
    p = np.array([0.9, 0.7, 0.02, 0.05, 0.1, 0.05, 0.6, 0.1])
    every = np.arange(8)
    # Positives have 0.54 in the mean, negatives 0.18; twice the odds of 3 in 8 is 0.55, half of them 0.23.
    assert contradicts(p, y, every).tolist() == [False, False, True, False, False, False, True, False]
    assert not contradicts(np.full(8, 3 / 8), y, every).any()


def test_probabilities_of_a_sample_are_those_of_all_rows(rng: np.random.Generator) -> None:
    s = rng.normal(size=20_000)
    y = (rng.random(20_000) < expit(2 * s - 3)).astype(int)
    sample = np.concatenate([rng.permutation(np.flatnonzero(y == label))[:2000] for label in (0, 1)])
    np.testing.assert_allclose(platt_probabilities(s, y, sample), expit(2 * s - 3), atol=0.03)
    assert np.isnan(platt_probabilities(np.where(np.arange(20_000) == 5, np.nan, s), y, sample[sample != 5])[5])


def test_without_embeddings_the_runs_alone_speak_and_without_runs_nobody(tmp_path: Path) -> None:
    experiment, z, _ = with_z(tmp_path, flipped=20)
    run = fitted(experiment, "net", z)
    kept = {name: mark for name, mark in run.meta["files"].items() if "_z" not in name}
    blind = Run(run.folder, run.meta | {"files": kept})
    look = doubtful_labels(experiment, [blind])
    assert look["neighbours"].isna().all()
    assert look["like"].isna().all()
    finding = doubtful_labels_finding(look, len(z), [blind])
    assert finding is not None
    assert "no run has embeddings" in finding.evidence
    assert experiment.table.train["id"].iloc[0][:4] in finding.example
    assert "ISIC" not in finding.evidence
    assert len(doubtful_labels(experiment, [])) == 0
    assert doubtful_labels_finding(doubtful_labels(experiment, []), len(z), []) is None


def same(left: pd.DataFrame, right: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(left.reset_index(drop=True), right, check_dtype=False)


def test_kept_list_is_read_again_until_a_run_changes(tmp_path: Path) -> None:
    experiment, z, _ = with_z(tmp_path, flipped=30, apart=3.5)
    run = fitted(experiment, "net", z)
    made = kept_doubtful_labels(experiment, [run])
    same(made, doubtful_labels(experiment, [run]))
    folder = experiment.folder / "second_look"
    write_run(folder, dict(read_run(folder).meta), frames={"second_look": made.head(3)})
    same(kept_doubtful_labels(experiment, [run]), made.head(3))
    other = fitted(experiment, "net", z[::-1])  # the same name and fingerprint, other predictions
    same(kept_doubtful_labels(experiment, [other]), doubtful_labels(experiment, [other]))
    pair = [other, fitted(experiment, "turned", z, kind="image", turn=True)]
    for runs in (pair, pair[::-1]):
        same(kept_doubtful_labels(experiment, runs), doubtful_labels(experiment, runs))
    assert kept_doubtful_labels(experiment, []).empty

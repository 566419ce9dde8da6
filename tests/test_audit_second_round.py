"""Runs that learned the test rows from labels of all folds are told from honest ones and from disciplined ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_experiment import import_frames, opened_experiment, write_experiment
from scipy.special import expit
from scipy.stats import norm, rankdata

from benchmarks.pseudo_labels import (
    DataSet,
    Predicted,
    first_round,
    fitted_net,
    generate,
    predicted,
    second_rounds,
    verdict,
)
from dermstack.audit.pseudo_labels import pseudo_label_findings
from dermstack.audit.second_round import NetScores, _log_ratio, _NormalScores, _own_share, _Pair, _sample, second_round
from stack.experiment import Experiment
from stack.store import read_runs, write_run

Rounds = tuple[DataSet, dict[str, Predicted], dict[str, Predicted]]


def rounds(seed: int) -> Rounds:
    data = generate(seed, train=600, test=400, fresh=10, folds=3)
    teachers = first_round(data)
    return data, teachers, second_rounds(data, teachers)


@pytest.fixture(scope="module")
def made() -> Rounds:
    return rounds(0)


EXPECTED = {"none": "none seen", "own fold": "of each fold", "all folds": "not of each fold"}


def test_labels_of_all_folds_are_told_from_those_of_each_fold(made: Rounds) -> None:
    data, teachers, students = made
    assert {kind: verdict(data, run, teachers) for kind, run in students.items()} == EXPECTED


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 7))
def test_the_same_on_other_data(seed: int) -> None:
    data, teachers, students = rounds(seed)
    assert {kind: verdict(data, run, teachers) for kind, run in students.items()} == EXPECTED


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_test_rows_of_another_spread_are_no_alarm(factor: float) -> None:
    """Features that tell nothing vary less, or more, among the test rows, so all models disagree less, or more."""
    data = generate(3, train=600, test=400, fresh=10, folds=3)
    data = replace(data, test=data.test * np.where(np.arange(data.test.shape[1]) < 10, 1.0, factor))
    teachers = first_round(data)
    honest = predicted(data, lambda X, y, seed: fitted_net(X, y, 100 + seed, width=48))
    assert verdict(data, honest, teachers) == "none seen"


def test_the_two_numbers_against_plain_regressions() -> None:
    rng = np.random.default_rng(0)
    fold = np.arange(300) % 3
    run, other = (NetScores(rng.normal(size=300), rng.normal(size=(3, 120))) for _ in range(2))
    run = NetScores(run.oof + other.oof, 0.3 * run.test + other.test)
    held = [np.flatnonzero(fold == k) for k in range(3)]
    pair = _Pair.of(_NormalScores.of(run, held), [_NormalScores.of(other, held)], held)
    logs, own, mean, answer = [], [], [], []
    for k in range(3):
        rows = np.flatnonzero(fold == k)
        joined = [np.concatenate([one.oof[rows], one.test[k]]) for one in (run, other)]
        y, x = (norm.ppf((rankdata(part) - 0.5) / len(part)) for part in joined)
        n = len(rows)
        left = [(b - np.polyval(np.polyfit(a, b, 1), a)) ** 2 for a, b in ((x[:n], y[:n]), (x[n:], y[n:]))]
        edges = np.quantile(x[n:], np.linspace(0, 1, 11)[1:-1])
        bins = [np.digitize(part, edges, right=True) for part in (x[:n], x[n:])]
        shared = [b for b in range(10) if (bins[0] == b).any() and (bins[1] == b).any()]
        share = [(bins[1] == b).sum() for b in shared]
        of = [
            np.average([part[at == b].mean() for b in shared], weights=share)
            for part, at in zip(left, bins, strict=True)
        ]
        logs.append(np.log(of[1] / of[0]))
        nets = [norm.ppf((rankdata(net) - 0.5) / 120) for net in other.test]
        rest = np.mean([net for j, net in enumerate(nets) if j != k], axis=0)
        rest = norm.ppf((rankdata(rest) - 0.5) / 120)
        for kept, part in ((own, x[n:]), (mean, rest), (answer, y[n:])):
            kept.append((part - part.mean()) / part.std())
    assert _log_ratio(pair, np.ones(300), np.ones(120)) == pytest.approx(np.mean(logs))
    columns = np.column_stack([np.concatenate(own), np.concatenate(mean)])
    a, b = np.linalg.lstsq(columns, np.concatenate(answer), rcond=None)[0]
    assert _own_share(pair, np.ones(120)) == pytest.approx(a / (a + b))


def test_too_few_groups_and_equal_predictions_are_not_judged(made: Rounds) -> None:
    data, teachers, students = made
    others = [one.nets for one in teachers.values()]
    n, m = len(data.y), len(data.test)
    few = np.arange(m) % 10
    assert second_round(students["all folds"].nets, others, data.fold, np.arange(n), few) is None
    flat = NetScores(data.y.astype(float), np.zeros((3, m)))
    assert second_round(flat, others, data.fold, np.arange(n), np.arange(m)) is None


@pytest.mark.parametrize("digits", [None, 4], ids=["equal", "rounded"])
def test_copies_among_the_other_runs_are_no_evidence(made: Rounds, digits: int | None) -> None:
    """A copy does not disagree on any rows, so the quotient of its disagreements is no number, or a random one."""
    data, teachers, students = made
    n, m = len(data.y), len(data.test)
    honest, (first, second) = students["none"].nets, [one.nets for one in teachers.values()][:2]

    def copied(one: NetScores) -> NetScores:
        return one if digits is None else NetScores(one.oof.round(digits), one.test.round(digits))

    rows = data.fold, np.arange(n), np.arange(m)
    assert second_round(honest, [first, copied(first)], *rows) is None
    assert second_round(honest, [copied(honest), first], *rows) is None
    once = second_round(honest, [first, second], *rows)
    assert once is not None
    assert second_round(honest, [first, copied(first), second], *rows) == once


def test_rows_of_a_group_are_one_draw(made: Rounds) -> None:
    """Each row four times, in groups of four, is no more evidence than once."""
    data, teachers, students = made
    n, m = len(data.y), len(data.test)
    run, *others = (one.nets for one in (students["all folds"], *teachers.values()))
    once = second_round(run, others, data.fold, np.arange(n), np.arange(m))
    four = [NetScores(np.repeat(one.oof, 4), np.repeat(one.test, 4, axis=1)) for one in (run, *others)]
    fold, groups = np.repeat(data.fold, 4), (np.repeat(np.arange(n), 4), np.repeat(np.arange(m), 4))
    often = second_round(four[0], four[1:], fold, *groups)
    assert once is not None
    assert often is not None
    widths = [np.log(made.disagreement.high / made.disagreement.low) for made in (once, often)]
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_rows_that_a_run_lacks_are_left_out(made: Rounds) -> None:
    data, teachers, students = made
    n, m = len(data.y), len(data.test)
    run, *others = (one.nets for one in (students["own fold"], *teachers.values()))
    kept, tests = np.arange(n) % 7 != 0, np.arange(m) % 5 != 0
    lacking = NetScores(np.where(kept, others[0].oof, np.nan), np.where(tests, others[0].test, np.nan))
    found = second_round(run, [lacking, others[1]], data.fold, np.arange(n), np.arange(m))
    parts = [NetScores(one.oof[kept], one.test[:, tests]) for one in (run, *others)]
    alone = second_round(parts[0], parts[1:], data.fold[kept], np.arange(kept.sum()), np.arange(tests.sum()))
    assert found is not None
    assert alone is not None
    assert found.disagreement.value == pytest.approx(alone.disagreement.value)
    assert found.own_share.value == pytest.approx(alone.own_share.value)


def test_of_very_many_rows_whole_groups_are_drawn(rng: np.random.Generator) -> None:
    group = rng.integers(0, 5_000, 60_000)
    known = rng.random(60_000) < 0.9
    rows = _sample(known, group, np.random.default_rng(0))
    assert 0.9 * 8_000 < len(rows) <= 8_000
    assert known[rows].all()
    taken = np.isin(group, group[rows])
    np.testing.assert_array_equal(np.flatnonzero(taken & known), rows)


def experiment_of(folder: Path, data: DataSet) -> Experiment:
    """An experiment with the rows and folds of the data set."""
    ids = [f"r{number}" for number in range(len(data.y))]
    tests = [f"t{number}" for number in range(len(data.test))]
    path = write_experiment(folder, data={
        "name": "generated", "train": "train.csv", "test": "test.csv",
        "columns": {"id": "isic", "target": "malignant", "fold": "fold"},
    })  # fmt: skip
    frame = pd.DataFrame({"isic": ids, "malignant": data.y, "fold": data.fold})
    frame.to_csv(folder / "train.csv", index=False)
    pd.DataFrame({"isic": tests}).to_csv(folder / "test.csv", index=False)
    return opened_experiment(path)


def bring(experiment: Experiment, name: str, nets: NetScores) -> None:
    frame, tests = experiment.folds.frame, experiment.table.test["id"]
    assert frame["id"].iloc[1] == "r1"
    oof = pd.DataFrame({"isic": frame["id"], "p": expit(nets.oof), "fold": frame["fold"]})
    parts = [pd.DataFrame({"isic": tests, "p": expit(net), "fold": fold}) for fold, net in enumerate(nets.test)]
    import_frames(experiment, name, oof.sample(frac=1, random_state=0), pd.concat(parts).sample(frac=1, random_state=1))


def findings(experiment: Experiment) -> dict[str, str]:
    """The findings about pseudo-labels, by run: severity."""
    found = pseudo_label_findings(experiment, read_runs(experiment.models))
    return {one.what.split(":")[0]: one.severity for one in found}


@pytest.mark.slow
def test_an_imported_run_is_named_and_others_are_not(tmp_path: Path, made: Rounds) -> None:
    data, teachers, students = made
    experiment = experiment_of(tmp_path, data)
    for name, run in teachers.items():
        bring(experiment, name, run.nets)
    bring(experiment, "honest", students["none"].nets)
    assert findings(experiment) == {}
    bring(experiment, "leaky", students["all folds"].nets)
    assert findings(experiment) == {"leaky": "warning"}, "though `honest` is a net of the same seeds"
    bring(experiment, "disciplined", students["own fold"].nets)
    assert findings(experiment) == {"leaky": "warning", "disciplined": "note"}


def test_own_students_are_neither_judged_nor_compared_with(tmp_path: Path, made: Rounds) -> None:
    data, teachers, students = made
    experiment = experiment_of(tmp_path, data)
    for name, run in (teachers | {"student": students["all folds"]}).items():
        bring(experiment, name, run.nets)
    assert findings(experiment) == {"student": "warning"}
    run = next(one for one in read_runs(experiment.models) if one.name == "student")
    meta = run.meta | {"kind": "image", "settings": {"pseudo_labels": {"teachers": ["net"]}}}
    write_run(run.folder, meta, frames={part: run.frame(part) for part in ("oof", "test")})
    assert findings(experiment) == {}


def test_one_prediction_for_all_folds_is_named(tmp_path: Path, made: Rounds) -> None:
    data, teachers, students = made
    experiment = experiment_of(tmp_path, data)
    for name, run in teachers.items():
        bring(experiment, name, run.nets)
    nets = students["none"].nets
    bring(experiment, "copied", NetScores(nets.oof, np.tile(nets.test.mean(axis=0), (3, 1))))
    (found,) = pseudo_label_findings(experiment, read_runs(experiment.models))
    assert found.what == "copied: its fold models have one prediction of test rows"
    assert "--test-averaged" in found.remedy

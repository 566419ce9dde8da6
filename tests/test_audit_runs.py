"""What an audit says of runs: held out or not, hints that are called so, nets whose scales differ."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_experiment import import_frames, opened_experiment, write_experiment
from scipy.special import expit

from benchmarks.held_out import simulated
from dermstack.audit.finding import Finding
from dermstack.audit.runs import run_findings, run_held_out_verdict, scale_findings
from stack.experiment import Experiment
from stack.metrics.scores import auc
from stack.store import Run


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Simulated patients, folds of the experiment's own, no test rows."""
    world = simulated(np.random.default_rng(0), memory=0, groups=600, rows=8, prevalence=0.06)
    rows = pd.DataFrame({"isic": [f"i{row}" for row in range(len(world.y))], "patient": world.group})
    train = rows.assign(patient="secret-" + rows["patient"].astype(str), malignant=world.y, years=50, sex="", site="")
    config = write_experiment(tmp_path)
    train.to_csv(tmp_path / "train.csv", index=False)
    return opened_experiment(config, "data.test=null", "data.sample_submission=null", "folds.k=5")


def imported_run(
    experiment: Experiment,
    name: str,
    *,
    memory: float = 1.0,
    fold: np.ndarray | None = None,
    claim: np.ndarray | None = None,
    skill: float = 1.5,
    shift: float = 0.0,
    every_net: bool = True,
    seed: int = 1,
) -> Run:
    """A run of five nets that have seen all but ``fold``, and claim to have seen all but ``claim``."""
    rng = np.random.default_rng(seed)
    ours = experiment.folds.frame["fold"].to_numpy()
    fold = ours if fold is None else fold
    claim = fold if claim is None else claim
    n, y = len(ours), experiment.target
    common = skill * y + rng.normal(0, 1, n)
    logits = common[:, None] + rng.normal(0, 0.5, (n, 5))
    seen = fold[:, None] != np.arange(5)
    logits += memory * seen * np.where(y == 1, 1, -0.3)[:, None] + shift * np.arange(5) - 3
    ids = experiment.table.train["id"]
    oof = pd.DataFrame({"isic": ids, "p": expit(logits[np.arange(n), claim]), "fold": claim})
    nets = pd.concat([pd.DataFrame({"isic": ids, "p": expit(logits[:, net]), "fold": net}) for net in range(5)])
    path = experiment.config_path.parent / f"{name}-all.csv"
    nets.to_csv(path, index=False)
    foreign = not (np.array_equal(claim, ours) or np.array_equal(claim, (ours + 1) % 5))
    return import_frames(experiment, name, oof, None, foreign_folds=foreign, all_rows=path if every_net else None)


def other_folds(experiment: Experiment) -> np.ndarray:
    codes, names = pd.factorize(experiment.split_group)
    return (np.random.default_rng(7).permutation(len(names)) % 5)[codes]


def of(findings: list[Finding], words: str) -> list[Finding]:
    return [finding for finding in findings if words in finding.what]


@pytest.mark.slow
def test_each_verdict_has_its_finding_and_names_no_row(experiment: Experiment) -> None:
    ours = experiment.folds.frame["fold"].to_numpy()
    runs = [
        imported_run(experiment, "good"),
        imported_run(experiment, "flat", memory=0, seed=2),
        imported_run(experiment, "turned", claim=(ours + 1) % 5, seed=3),
    ]
    found = run_findings(experiment, runs)
    assert [(finding.severity, finding.what.partition(":")[0]) for finding in found][:2] == [
        ("error", "turned"), ("warning", "flat"),
    ]  # fmt: skip
    assert "folds 0, 1, … fit models 4, 0, 1, 2, 3" in of(found, "turned")[0].evidence
    assert "cannot tell" in of(found, "flat")[0].what
    assert "hardly overfits" in of(found, "flat")[0].remedy
    (good,) = of(found, "good: its models held out the rows that it claims")
    assert good.severity == "note"
    assert f"difference {run_held_out_verdict(experiment, runs[0]).gap} (98 % interval by group)" in good.evidence
    assert not any("secret" in str(finding) for finding in found)


def test_the_folds_of_another_run_explain_a_claim_that_is_not_true(experiment: Experiment) -> None:
    """It claims folds of its own, and was made with the experiment's."""
    ours = experiment.folds.frame["fold"].to_numpy()
    other = other_folds(experiment)
    runs = [
        imported_run(experiment, "honest", fold=other),
        imported_run(experiment, "false", claim=other, fold=ours, seed=4),
    ]
    found = run_findings(experiment, runs)
    assert of(found, "honest")[0].severity == "note"
    (false,) = of(found, "false: its models held out other rows")
    assert false.severity == "error"
    assert "better explained by the experiment's folds" in false.evidence


@pytest.mark.slow
def test_a_run_far_better_than_all_else_gets_a_hint_that_is_called_one(experiment: Experiment) -> None:
    plain = imported_run(experiment, "plain", every_net=False)
    same = imported_run(experiment, "same", every_net=False, seed=2)
    assert run_findings(experiment, [plain, same]) == [], "as good as each other"
    assert run_findings(experiment, [imported_run(experiment, "alone", every_net=False, skill=3)]) == []
    leaky = imported_run(experiment, "leaky", every_net=False, skill=3)
    (hint,) = run_findings(experiment, [plain, same, leaky])
    assert hint.severity == "note"
    assert hint.what == "leaky: a hint that it is not out-of-fold"
    assert hint.remedy.startswith("only a hint: a better model looks the same")


def test_nets_of_other_scales_are_a_warning(experiment: Experiment) -> None:
    (shifted,) = run_findings(experiment, [imported_run(experiment, "net", shift=1.0, every_net=False)])
    assert shifted.severity == "warning"
    assert shifted.what == "net: its fold models have different scales"
    assert run_findings(experiment, [imported_run(experiment, "even", every_net=False)]) == []


def test_folds_with_more_positives_are_no_scales_of_nets_unless_the_auc_within_folds_is_lower(
    experiment: Experiment,
) -> None:
    y, group, rng = experiment.target, experiment.split_group, np.random.default_rng(0)
    positives = pd.Series(y).groupby(group).sum()
    fold_of_group = pd.qcut(positives + rng.normal(0, 0.3, len(positives)), 5, labels=False)
    fold = fold_of_group.reindex(group).to_numpy()
    logit = 1.5 * y + rng.normal(0, 1, len(y)) - 3
    oof = pd.DataFrame({"id": experiment.table.train["id"], "fold": fold, "logit": logit})
    assert np.ptp(pd.Series(y).groupby(fold).mean()) > 0.05
    assert scale_findings(experiment, "net", oof) == []
    shifted = logit + 0.5 * fold
    (raised,) = scale_findings(experiment, "net", oof.assign(logit=shifted))
    assert raised.what == "net: the scales of its fold models differ between folds and raise its pooled AUC"
    positive, pairs, right = y == 1, 0, 0.0
    for k in range(5):
        above = shifted[(fold == k) & positive][:, None] - shifted[(fold == k) & ~positive]
        pairs, right = pairs + above.size, right + (above > 0).sum()
    assert f"pooled minus the AUC of pairs within folds {auc(y, shifted) - right / pairs:+.4f} [" in raised.evidence


def test_a_run_of_other_rows_is_named_and_left_out(experiment: Experiment) -> None:
    run = imported_run(experiment, "net")
    other = replace(run, meta={**run.meta, "inputs": {**run.meta["inputs"], "rows or folds": "before"}})
    (finding,) = run_findings(experiment, [other])
    assert finding.what == "net: not audited"


def test_too_few_groups_are_said_to_tell_nothing(tmp_path: Path) -> None:
    config = write_experiment(tmp_path)
    train = pd.read_csv(tmp_path / "train.csv", dtype={"isic": str}, keep_default_na=False)
    train["malignant"] = (~train["patient"].duplicated() & (train.index < 15)).astype(int)
    train.to_csv(tmp_path / "train.csv", index=False)
    experiment = opened_experiment(config, "data.test=null", "data.sample_submission=null", "folds.k=5")
    (finding,) = run_findings(experiment, [imported_run(experiment, "net")])
    assert finding.what == "net: not tested which rows its fold models saw"
    assert "groups hold positives" in finding.evidence

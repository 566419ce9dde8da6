"""Each planted shortcut of collection is found, once; what tells nothing is one note."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from audited_experiment import Change, audited_experiment
from imported_experiment import import_frames, predictions
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from dermstack.audit.acquisition import acquisition_facts, acquisition_findings, gain_over_run
from dermstack.audit.finding import Finding
from dermstack.audit.single_column import one_hot
from stack.experiment import Experiment
from stack.store import Run


def warnings_of(found: list[Finding]) -> list[str]:
    return [finding.what for finding in found if finding.severity == "warning"]


def sorted_by_target(train: pd.DataFrame, test: pd.DataFrame) -> None:
    order = np.argsort(-train["target"].to_numpy(), kind="stable")
    train[:] = train.iloc[order].to_numpy()


def numbered_by_target(train: pd.DataFrame, test: pd.DataFrame) -> None:
    first = np.where(train["target"] == 1, 9, 1)
    train["image"] = [f"ISIC_{a}{number:06d}" for number, a in zip(range(len(train)), first, strict=True)]
    train[:] = train.sample(frac=1, random_state=0).to_numpy()


def written_by_target(train: pd.DataFrame, test: pd.DataFrame) -> None:
    train["image"] = np.where(train["target"] == 1, "MEL_", "BEN_") + train["image"].str[5:]


def larger_files(train: pd.DataFrame, test: pd.DataFrame) -> None:
    train["bytes"] = (train["bytes"] * np.where(train["target"] == 1, 8.0, 1.0)).astype(int)


def other_source(train: pd.DataFrame, test: pd.DataFrame) -> None:
    train.loc[train["target"] == 1, "source"] = "referral"


PLANTED: dict[str, tuple[Change, str]] = {
    "row order": (sorted_by_target, "the target can be predicted from row order"),
    "id number": (numbered_by_target, "the target can be predicted from number in the id"),
    "letters": (written_by_target, "the target can be predicted from id format"),
    "file size": (larger_files, "the target can be predicted from file size"),
    "source": (other_source, "the target can be predicted from source"),
}


def test_the_facts_of_a_row_are_told_apart(tmp_path: Path) -> None:
    facts = acquisition_facts(audited_experiment(tmp_path, other_source))
    train = pd.read_csv(tmp_path / "train.csv")
    assert facts["row order"].tolist() == list(range(len(train)))
    assert facts["number in the id"].tolist() == train["image"].str[5:].astype(float).tolist()
    assert facts["images in the group"].tolist() == train.groupby("patient")["image"].transform("size").tolist()
    assert facts["bytes per pixel"].to_numpy() == pytest.approx(train["bytes"] / train["width"] / train["height"])
    assert facts["source"].tolist() == train["source"].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_shortcut_is_found(fault: str, tmp_path: Path) -> None:
    change, what = PLANTED[fault]
    found = acquisition_findings(audited_experiment(tmp_path, change, groups=120))
    expected = [what, "the target can be predicted from bytes per pixel"] if fault == "file size" else [what]
    assert warnings_of(found) == expected
    assert "p = " in found[0].evidence
    assert "[" in found[0].evidence, "an AUC names its interval"


def test_a_clean_set_has_one_note_that_lists_what_was_looked_at(tmp_path: Path) -> None:
    (found,) = acquisition_findings(audited_experiment(tmp_path))
    assert found.severity == "note"
    for name in ("row order", "number in the id", "images in the group", "source", "width", "bytes per pixel"):
        assert f"{name} AUC 0." in found.evidence


def test_ids_in_row_order_are_one_fact(tmp_path: Path) -> None:
    def numbered(train: pd.DataFrame, test: pd.DataFrame) -> None:
        train["image"] = [f"ISIC_{number:07d}" for number in range(len(train))]

    facts = acquisition_facts(audited_experiment(tmp_path, numbered))
    assert "row order (same as id order)" in facts
    assert "row order" not in facts
    assert "number in the id" not in facts
    assert "id format" not in facts, "all are written alike"


def test_sizes_of_the_pictures_go_before_those_of_the_csv(tmp_path: Path) -> None:
    experiment = audited_experiment(tmp_path)
    train = experiment.table.train
    sizes = pd.DataFrame({
        "id": train["id"], "source_width": 100 + 50 * experiment.target, "source_height": 100, "source_bytes": 5000,
        "encoding": np.where(experiment.target == 1, ".png", ".jpg"),
    }).sample(frac=1, random_state=0)  # fmt: skip
    assert warnings_of(acquisition_findings(experiment, sizes)) == [
        f"the target can be predicted from {fact}" for fact in ("width", "bytes per pixel", "encoding")
    ]


@pytest.fixture
def half_blind(tmp_path: Path) -> tuple[Experiment, Run]:
    """The file size tells, and a run that does not know it."""
    experiment = audited_experiment(tmp_path, larger_files, groups=150)
    return experiment, import_frames(experiment, "net", *predictions(experiment, noise=2.5))


@pytest.mark.slow
def test_what_a_fact_adds_to_a_run_is_measured_beside_it(half_blind: tuple[Experiment, Run]) -> None:
    experiment, run = half_blind
    found = acquisition_findings(experiment, runs=[run])
    assert "file size would raise the AUC of net" in warnings_of(found)
    _, difference = gain_over_run(experiment, run, acquisition_facts(experiment)["file size"])
    assert difference.low > 0.01
    _, nothing = gain_over_run(experiment, run, acquisition_facts(experiment)["row order"])
    assert nothing.low < 0 < nothing.value + 0.03
    assert not [finding for finding in acquisition_findings(experiment) if " would raise " in finding.what]


def test_a_run_that_knows_the_fact_gains_nothing_by_it(tmp_path: Path) -> None:
    experiment = audited_experiment(tmp_path, larger_files, groups=300)
    fact = acquisition_facts(experiment)["file size"]
    oof, test = predictions(experiment, noise=2.5)
    x = np.column_stack([logit(oof["p"]), one_hot(fact)])
    knowing = LogisticRegression(max_iter=1000).fit(x, experiment.target).predict_proba(x)[:, 1]
    run = import_frames(experiment, "net", oof.assign(p=knowing), test)
    _, difference = gain_over_run(experiment, run, fact)
    assert difference.value < 0.005


def test_a_stackers_own_probes_are_reported(half_blind: tuple[Experiment, Run]) -> None:
    experiment, run = half_blind

    class Probed:
        name, meta = "gbdt", {"level": 2}

        def has(self, name: str) -> bool:
            return name == "probes"

        def frame(self, name: str) -> pd.DataFrame:
            record = {"auc": 0.95, "difference": 0.04, "difference_low": 0.02, "difference_high": 0.06}
            probes = pd.DataFrame([{"what": what, **record} for what in ("shortcuts", "alone")])
            return probes if name == "probes" else run.frame(name)

    found = acquisition_findings(experiment, runs=[Probed()])  # type: ignore[list-item]
    (probe,) = [finding for finding in found if finding.what.startswith("image width, height")]
    assert probe.severity == "warning"
    assert probe.evidence == "AUC 0.9500 with it, +0.0400 [+0.0200, +0.0600]"
    assert not [finding for finding in found if finding.what.startswith("file size would")], "the same question twice"

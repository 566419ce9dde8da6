"""One line a stack: what changed since the one before, what came out; a torn line costs itself alone."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest
from imported_experiment import opened_experiment, write_experiment

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.history import append_ledger, read_ledger
from stack.store import Run

META = {
    "fingerprint": "0123456789ab",
    "objective": "auc",
    "headline": {"value": 0.9, "low": 0.88, "high": 0.92, "se": 0.01},
    "tuned_in_sample": 0.91,
    "chosen": "rank_mean",
}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    stackers = [{"name": "gbdt", "kind": "lightgbm", "params": {"leaves": 8}}]
    return opened_experiment(write_experiment(tmp_path, stackers=stackers))


def blend(experiment: Experiment) -> Run:
    return Run(experiment.folder / "blend", META)


def path(experiment: Experiment) -> Path:
    return experiment.folder / "ledger.jsonl"


def test_every_stack_adds_a_line_and_changes_none(experiment: Experiment) -> None:
    assert read_ledger(experiment) == []
    before = ""
    for number in range(1, 4):
        append_ledger(experiment, blend(experiment))
        text = path(experiment).read_text()
        assert text.startswith(before)
        assert len(text.splitlines()) == len(read_ledger(experiment)) == number
        before = text


def test_a_line_says_when_and_what_came_out(experiment: Experiment) -> None:
    line = append_ledger(experiment, blend(experiment))
    assert read_ledger(experiment) == [line] == [json.loads(path(experiment).read_text())]
    assert META.items() <= line.items()
    assert datetime.fromisoformat(line["when"]).utcoffset() is not None
    assert line["changed"] == {}, "before the first line there is nothing to differ from"


def test_what_changed_is_named_with_both_values(experiment: Experiment) -> None:
    append_ledger(experiment, blend(experiment))
    changed = opened_experiment(
        experiment.config_path,
        "objective=ap", "blend.methods=[mean]", "stackers.0.params.rate=0.1", "stackers.0.params.leaves=16",
    )  # fmt: skip
    assert append_ledger(changed, blend(changed))["changed"] == {
        "objective": ["auc", "ap"],
        "blend.methods.0": ["rank_mean", "mean"],
        "blend.methods.1": ["mean", None],
        "stackers.0.params.leaves": [8, 16],
        "stackers.0.params.rate": [None, 0.1],
    }
    assert append_ledger(changed, blend(changed))["changed"] == {}, "since the line before, not since the first"
    assert append_ledger(experiment, blend(experiment))["changed"]["objective"] == ["ap", "auc"]


def test_how_it_was_run_is_no_setting(experiment: Experiment) -> None:
    append_ledger(experiment, blend(experiment))
    elsewhere = opened_experiment(experiment.config_path, "n_jobs=7", "device=cpu", "workers=2", "cache=other")
    assert append_ledger(elsewhere, blend(elsewhere))["changed"] == {}
    slower = opened_experiment(experiment.config_path, "threads=3")
    assert set(append_ledger(slower, blend(slower))["changed"]) == {"threads"}, "threads change the bytes"


@pytest.mark.parametrize("kept", [0, 1])
def test_a_line_torn_by_a_crash_is_left_out_and_swallows_no_other(experiment: Experiment, kept: int) -> None:
    for _ in range(kept + 1):
        append_ledger(experiment, blend(experiment))
    whole = path(experiment).read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    first = whole[: len(whole) - len(last)]
    for length in (1, len(last) // 2, len(last) - 1):
        path(experiment).write_bytes(first + last[:length])
        assert len(read_ledger(experiment)) == kept
        append_ledger(experiment, blend(experiment))
        assert path(experiment).read_bytes().startswith(first)
        assert len(read_ledger(experiment)) == kept + 1


def test_a_damaged_line_is_named_with_the_way_out(experiment: Experiment) -> None:
    append_ledger(experiment, blend(experiment))
    whole = path(experiment).read_bytes()
    path(experiment).write_bytes(whole + whole[:20] + b"\xff" + whole[21:])
    with pytest.raises(StoreError, match=r"ledger\.jsonl: line 2 is damaged .* remove .*dermstack stack"):
        append_ledger(experiment, blend(experiment))

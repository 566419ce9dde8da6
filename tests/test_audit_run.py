"""The audit as a whole: what is looked for again, what is kept, and what a command says of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

import dermstack.audit.run
from dermstack.audit.finding import read_findings
from dermstack.audit.run import audit_for_stack, run_audit
from dermstack.errors import ConfigError
from stack.console import Out
from stack.experiment import Experiment

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

QUIET = Out(quiet=True)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """A world without pictures, and one imported run."""
    experiment = opened_experiment(write_experiment(tmp_path))
    import_frames(experiment, "net", *predictions(experiment))
    return experiment


def test_rows_and_runs_are_looked_at_again_where_they_may_differ(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, looked = experiment.finished(level=1), []
    real = dermstack.audit.run._start_parts
    monkeypatch.setattr(
        dermstack.audit.run, "_start_parts", lambda *given: looked.append((len(given[1]), *given[2])) or real(*given)
    )
    first = audit_for_stack(experiment, runs, QUIET)
    assert audit_for_stack(experiment, runs, QUIET) == first == read_findings(experiment)
    assert looked == [(1, "rows", "runs")], "nothing has changed"
    without = audit_for_stack(experiment, [], QUIET)
    assert looked[1:] == [(0, "runs")], "another set of runs"
    train = experiment.config.data.train
    train.write_text(train.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert audit_for_stack(experiment, [], QUIET) == without, "those of the rows were kept"
    assert looked[2:] == [(0, "rows", "runs")], "another file, whose other columns may be proxies"


def test_rows_are_looked_at_again_where_models_use_other_columns(experiment: Experiment) -> None:
    audit_for_stack(experiment, [], QUIET)
    assert any("columns that models use" in finding.what for finding in audit_for_stack(experiment, [], QUIET))
    settings = dict.fromkeys(("metadata", "cohort", "aggregates"), False)
    features = experiment.config.features.model_copy(update=settings)
    fewer = replace(experiment, config=experiment.config.model_copy(update={"features": features}))
    assert not any("columns that models use" in finding.what for finding in audit_for_stack(fewer, [], QUIET))


def test_findings_of_an_earlier_version_on_rows_and_runs_are_not_shown_twice(experiment: Experiment) -> None:
    first = audit_for_stack(experiment, [], QUIET)
    path = experiment.folder / "audit.json"
    parts = json.loads(path.read_text(encoding="utf-8"))
    before = {"inputs": "before", "findings": parts["rows"]["findings"] + parts["runs"]["findings"]}
    path.write_text(json.dumps({"rows and runs": before}), encoding="utf-8")
    assert audit_for_stack(experiment, [], QUIET) == first


def test_what_is_to_be_done_meanwhile_is_done_once_where_there_is_something_to_audit(experiment: Experiment) -> None:
    runs, done = experiment.finished(level=1), list[int]()
    first = audit_for_stack(experiment, runs, QUIET, meanwhile=lambda: done.append(1))
    assert audit_for_stack(experiment, runs, QUIET, meanwhile=lambda: done.append(2)) == first
    assert done == [1]


def test_an_audit_writes_what_the_page_and_a_spreadsheet_read(experiment: Experiment) -> None:
    review = run_audit(experiment, QUIET)
    assert review.findings == read_findings(experiment)
    table = pd.read_csv(experiment.folder / "audit.csv", keep_default_na=False)
    assert table["what"].tolist() == [finding.what for finding in review.findings]
    assert list(pd.read_csv(experiment.folder / "second_look.csv"))[:2] == ["id", "target"]


def test_a_run_made_for_other_rows_is_named_and_the_rest_is_looked_at(experiment: Experiment) -> None:
    train = experiment.config.data.train
    pd.read_csv(train, dtype=str, keep_default_na=False).iloc[3:].to_csv(train, index=False)
    findings = run_audit(opened_experiment(experiment.config_path), QUIET).findings
    assert "net: not audited" in [finding.what for finding in findings]
    assert len(findings) > 3


def test_shuffles_need_a_frozen_model_and_say_so_before_anything_is_looked_at(
    experiment: Experiment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dermstack.audit.run, "_start_parts", lambda *_: pytest.fail("work before the refusal"))
    with pytest.raises(ConfigError, match=r"--shuffles .* `frozen: true`"):
        run_audit(experiment, QUIET, shuffles=5)
    assert read_findings(experiment) is None, "nothing is half-written"
    assert run_cli("audit", "-c", str(experiment.config_path), "--shuffles", "5", "-q") == 2
    assert "frozen: true" in capsys.readouterr().err


def test_stack_begins_with_the_audit_and_counts_what_it_only_notes(
    experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    train = experiment.config.data.train
    rows = pd.read_csv(train, dtype=str, keep_default_na=False)
    rows.sort_values("malignant", ascending=False, kind="stable").to_csv(train, index=False)
    changed = opened_experiment(experiment.config_path)
    import_frames(changed, "net", *predictions(changed), replace=True)
    assert run_cli("stack", "--no-report", "-c", str(experiment.config_path)) == 0
    said = capsys.readouterr().out
    assert "warning: the target can be predicted from row order" in said
    assert "-> keep it out of the level-2 features" in said
    assert said.index("row order") < said.index("blend:")
    assert "errors" in said
    assert "do not predict the target" not in said, "a note"

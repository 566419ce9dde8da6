from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from imported_experiment import write_experiment

from dermstack.audit.finding import Finding, is_audited, read_findings, read_part_findings, write_part_findings
from dermstack.errors import StoreError
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config

ERROR = Finding("error", "one picture, two targets", "3 pairs", "look", "a and b")
NOTE = Finding("note", "all is well", "AUC 0.5 [0.4, 0.6]", "none")


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    path = write_experiment(tmp_path)
    return open_experiment(read_config(path), path, Out(quiet=True))


def test_a_part_is_known_on_the_same_inputs_alone(experiment: Experiment) -> None:
    assert read_findings(experiment) is None
    assert not is_audited(experiment, "rows")
    write_part_findings(experiment, {"rows": ("today", [ERROR])})
    assert read_part_findings(experiment, "rows", "today") == [ERROR]
    assert read_part_findings(experiment, "rows", "tomorrow") is None
    assert read_part_findings(experiment, "pictures", "today") is None
    assert is_audited(experiment, "rows")


def test_one_part_leaves_the_others_and_the_worst_stands_first(experiment: Experiment) -> None:
    write_part_findings(experiment, {"rows": ("today", [NOTE])})
    assert write_part_findings(experiment, {"runs": ("today", [ERROR])}) == [ERROR, NOTE]
    assert read_findings(experiment) == [ERROR, NOTE]
    table = pd.read_csv(experiment.folder / "audit.csv", keep_default_na=False)
    assert table["what"].tolist() == [ERROR.what, NOTE.what]
    write_part_findings(experiment, {"runs": ("today", [])})
    assert read_findings(experiment) == [NOTE]


@pytest.mark.parametrize("text", ["", "[]", '{"rows": {"inputs": "x"}}', '{"rows": {"inputs": "x", "findings": [{}]}}'])
def test_a_damaged_record_is_named(experiment: Experiment, text: str) -> None:
    write_part_findings(experiment, {"rows": ("today", [NOTE])})
    (experiment.folder / "audit.json").write_text(text, encoding="utf-8")
    with pytest.raises(StoreError, match=r"audit.json is damaged .*`dermstack audit`"):
        read_findings(experiment)

"""Tables on the terminal: heads that a reader understands, as on the pages; no names of columns in the code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import import_frames, opened_experiment, predictions, write_experiment

from dermstack.cli.options import show_probes
from dermstack.report.tables import terminal_table
from stack.console import Out
from stack.store import Run


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[pd.DataFrame]:
    """The tables that are printed from now on."""
    printed: list[pd.DataFrame] = []
    monkeypatch.setattr(Out, "table", lambda self, frame, title, **_: printed.append(frame))
    return printed


def test_no_table_of_stack_compare_or_runs_is_headed_by_a_name_of_the_code(
    tmp_path: Path, tables: list[pd.DataFrame]
) -> None:
    config = write_experiment(tmp_path, stackers=[])
    experiment = opened_experiment(config)
    for seed in range(2):
        import_frames(experiment, f"net{seed}", *predictions(experiment, seed=seed))
    for command in (
        ["stack", "-c", str(config), "--no-report"],
        ["compare", "--folder", str(experiment.config.runs)],
        ["runs", "--folder", str(experiment.config.runs)],
    ):
        before = len(tables)
        assert run_cli(*command) == 0
        assert len(tables) > before
    heads = {str(head) for table in tables for head in table}
    assert {"95 % interval", "paired interval", "mean of folds", "AP", "AUC"} <= heads
    assert not {head for head in heads if "_" in head or head in ("auc", "ap", "ece", "low", "high")}
    methods = next(table for table in tables if "method" in table)
    assert sorted(methods["chosen"]) == ["", "yes"]
    assert np.isnan(methods["less the first"].iloc[0]), "a difference to itself is none"
    assert methods["paired interval"].iloc[0] == "–"


def test_an_interval_follows_its_value_and_what_was_probed_is_said_in_words(tables: list[pd.DataFrame]) -> None:
    numbers = {"auc": 0.8, "low": 0.7, "high": 0.9, "difference": -0.1, "difference_low": -0.2, "difference_high": 0.1}
    probes = pd.DataFrame([{"what": what, "rows": 9, **numbers} for what in ("alone", "context_counts", "shortcuts")])
    show_probes(Out(), Run(Path("gbdt"), {"name": "gbdt"}), probes)
    shown = tables[0]
    assert list(shown) == ["condition", "rows", "AUC", "95 % interval", "difference", "paired interval"]
    assert shown.iloc[0, 2:].tolist() == [0.8, "0.7000 – 0.9000", -0.1, "-0.2000 – +0.1000"]
    assert not shown["condition"].str.contains("_|alone|shortcut").any()
    pairs = pd.DataFrame({"id_1": ["a_1"], "target_1": ["0"], "distance": [0.1]})
    assert list(terminal_table(pairs)) == ["id 1", "target 1", "distance"]


def test_shares_are_percentages_and_whole_numbers_have_no_decimals(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({
        "age": [45.0, np.nan], "share": [0.08, 0.00098], "auc": [1.0, 0.0], "seconds": [521.0, 1205.0],
        "mean": [2.0, 2.5],
    })  # fmt: skip
    Out().table(frame, "Folds", shares=["share"])
    said = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if line.startswith("│")]
    assert cells == [["45", "8.0%", "1.0000", "521", "2.0000"], ["–", "0.10%", "0.0000", "1,205", "2.5000"]]

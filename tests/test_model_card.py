from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli, small_config
from sklearn.metrics import log_loss

from dermstack.report.model_card import model_card, plain, write_model_card
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.history import run_table
from stack.metrics.intervals import interval
from stack.settings.config import read_config
from stack.store import Run, read_run, read_runs

SUBGROUPS = pd.DataFrame(
    [
        ["sex", "female", 1120, 21, 0.81234, 0.7, 0.91, "differs beyond noise"],
        ["site", "a|b <script>alert(1)</script> [x](y)", 7, 0, np.nan, np.nan, np.nan, ""],
    ],
    columns=["subgroup", "level", "rows", "positives", "auc", "low", "high", "note"],
)
MITCHELL = [  # the sections of the paper, in its order, then ours
    "Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data", "Quantitative analyses",
    "Ethical considerations", "Caveats and recommendations",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, Run, pd.DataFrame]:
    """A blend of a frozen net and two stackers."""
    folder = tmp_path_factory.mktemp("card")
    stackers = [
        {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 30, "patience": 5}},
        {"name": "straight", "kind": "logistic"},
    ]
    still = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
    path = small_config(small_data, folder, image_models=[still], stackers=stackers)
    for command in ("oof", "stack"):
        assert run_cli(command, "--config", str(path), "--quiet") == 0
    experiment = open_experiment(read_config(path), path, Out(quiet=True))
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    return experiment, blend, run_table(experiment, read_runs(experiment.models))


def tables(text: str) -> dict[str, list[str]]:
    """Rows of all tables by their first cell."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    return {row[0]: row[1:] for row in cells}


@pytest.fixture(scope="module")
def card(finished: tuple[Experiment, Run, pd.DataFrame]) -> str:
    experiment, blend, runs = finished
    return model_card(experiment, blend, runs=runs, subgroups=SUBGROUPS, notes=["`gbdt`: selected\non these rows"])


@pytest.mark.slow
def test_the_card_has_the_sections_of_the_paper_and_says_what_it_is_not(card: str) -> None:
    heads = re.findall(r"^## (.*)$", card, re.MULTILINE)
    assert heads[: len(MITCHELL)] == MITCHELL
    assert "not a medical device" in card
    assert "\n- \\`gbdt\\`: selected on these rows\n" in card
    assert "\n\n\n" not in card
    assert not re.search(r"\bnan\b|\bNone\b|\{\{|\}\}", card)


@pytest.mark.slow
def test_its_numbers_are_those_of_the_rows(card: str, finished: tuple[Experiment, Run, pd.DataFrame]) -> None:
    experiment, blend, runs = finished
    found = tables(card)
    oof = blend.frame("oof")
    truth = experiment.table.train.set_index("id").loc[oof["id"]]
    y, group = truth["target"].to_numpy(int), experiment.folds.frame.set_index("id")["split_group"].loc[oof["id"]]
    honest = interval("auc", y, oof["score"], group)
    (headline,) = [row[0] for name, row in found.items() if "nested: estimate for new images" in name]
    assert headline == f"**{honest.value:.4f} ({honest.low:.4f} to {honest.high:.4f})**"
    (tuned,) = [row[0] for name, row in found.items() if "tuned and measured on the same rows" in name]
    assert tuned == f"{interval('auc', y, oof[blend.meta['chosen'] + '_tuned'], group).value:.4f}"
    at = interval("sensitivity@0.9", y, oof["score"], group)
    assert found["sensitivity at a specificity of 90 %"] == [
        f"{100 * at.value:.1f}\xa0% ({100 * at.low:.1f}\xa0% to {100 * at.high:.1f}\xa0%)"
    ]
    assert found["rows"] == ["240"]
    assert found["positives"] == [f"{y.sum()} ({100 * y.mean():.1f}\xa0%)"]
    assert found["groups"] == [str(truth["group"].nunique())]
    assert found["age known"] == [f"{100 * truth['age'].notna().mean():.1f}\xa0%"]
    assert found["chosen in each fold"][0] == f"{log_loss(y, oof['p_calibrated']):.4f}"
    for run in runs.to_dict("records"):
        weight = blend.meta["weights"][run["run"]]
        value = f"{run['auc']:.4f} ({run['low']:.4f} to {run['high']:.4f})"
        kind = "logistic stacker" if run["kind"] == "logistic" else run["kind"]
        assert found[f"`{run['run']}`"][:4] == [kind, str(run["level"]), f"{weight:.3f}", value]
    ones = (truth["group"].value_counts() == 1).sum()
    assert f"{ones} of {truth['group'].nunique()} groups have a single image" in card


@pytest.mark.slow
def test_subgroups_are_shown_as_they_were_given(card: str) -> None:
    found = tables(card)
    assert found["sex"] == ["female", "1,120", "21", "0.812 (0.700 to 0.910)", "differs beyond noise"]
    assert found["site"][1:] == ["7", "0", "–", ""]
    assert "Evaluated by: sex, site." in card


@pytest.mark.slow
def test_no_text_of_the_data_becomes_markup(card: str) -> None:
    assert "<script" not in card.replace("\\<script", "")
    assert "[x]" not in card


def test_text_is_shown_as_it_is() -> None:
    assert plain("a|b\n*c* `d` <e> [f](g) \\h") == r"a\|b \*c\* \`d\` \<e\> \[f\](g) \\h"
    assert plain(float("nan")) == plain(None) == ""


@pytest.mark.slow
def test_without_subgroups_the_card_says_so_and_is_written_beside_the_report(
    finished: tuple[Experiment, Run, pd.DataFrame],
) -> None:
    experiment, blend, runs = finished
    card = model_card(experiment, blend, runs=runs, subgroups=SUBGROUPS.iloc[:0], notes=[])
    path = write_model_card(experiment, card)
    assert path == experiment.folder / "model_card.md"
    assert "No subgroup has enough rows of both classes." in path.read_text(encoding="utf-8")

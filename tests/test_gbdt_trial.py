"""A model is parsed in a child process first: crashes, endless loops and allocations end there, under its limits."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hostile_lightgbm import in_first_tree, resized

from dermstack.errors import TabularError
from tabular import gbdt_trial
from tabular.gbdt import fit_gbdt
from tabular.gbdt_libraries import LIBRARIES
from tabular.gbdt_trial import ModelFile, TrialLimits, try_models

TIGHT = TrialLimits(cpu_s=2, cpu_s_of_mib=0)


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gbdt_trial, "_ACCEPTED", set())


@pytest.fixture(scope="module")
def models() -> dict[str, ModelFile]:
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(300, 3)), columns=["a", "b", "c"])
    made = {}
    for kind in LIBRARIES:
        small = {"min_data_in_leaf": 5} if kind == "lightgbm" else {}
        model = fit_gbdt(
            kind, X, (X["a"] > 0).astype(int), eval_set=None, params={"rounds": 3, **small}, seed=0, threads=1
        )
        made[kind] = ModelFile(f"{kind} model", kind, LIBRARIES[kind].dump(model.booster))
    return made


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The child processes that are started."""
    started: list[Any] = []
    start = subprocess.Popen

    def recorded(*arguments: Any, **settings: Any) -> Any:
        started.append(start(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", recorded)
    return started


@pytest.mark.slow
def test_one_child_accepts_the_models_of_every_library(models: dict[str, ModelFile], children: list[Any]) -> None:
    try_models([])
    assert not children
    try_models(list(models.values()))
    assert [child.returncode for child in children] == [0]
    assert {model.digest for model in models.values()} == gbdt_trial._ACCEPTED


@pytest.mark.slow
def test_models_that_passed_are_not_tried_again(models: dict[str, ModelFile], children: list[Any]) -> None:
    for _ in range(2):
        try_models([models["lightgbm"]])
        assert len(children) == 1


@pytest.mark.slow
def test_an_endless_loop_ends_with_the_time(models: dict[str, ModelFile]) -> None:
    """The cycle that `tabular.gbdt_structure` would have refused."""
    text = models["lightgbm"].content.decode()
    endless = resized(in_first_tree(text, "left_child", lambda c: ["0", *c[1:]]))
    endless = resized(in_first_tree(endless, "right_child", lambda c: ["0", *c[1:]]))
    with pytest.raises(TabularError, match=r"endless\.txt cannot be parsed .* limits of memory and time"):
        try_models([models["xgboost"], ModelFile("endless.txt", "lightgbm", endless.encode())], limits=TIGHT)


@pytest.mark.slow
def test_a_billion_classes_end_with_the_memory(models: dict[str, ModelFile]) -> None:
    text = models["lightgbm"].content
    for key in (b"num_class", b"num_tree_per_iteration"):
        text = text.replace(key + b"=1\n", key + b"=1000000000\n")
    with pytest.raises(TabularError, match=r"vast\.txt"):
        try_models([ModelFile("vast.txt", "lightgbm", text)], limits=TIGHT)


@pytest.mark.slow
def test_a_child_that_does_not_start_is_an_error_and_not_a_pass(
    models: dict[str, ModelFile], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for program in ("raise SystemExit(3)", "import os; os.abort()"):
        monkeypatch.setattr(gbdt_trial, "_PROGRAM", program)
        with pytest.raises(TabularError, match="does not start"):
            try_models([models["lightgbm"]])
    monkeypatch.setattr("sys.executable", str(tmp_path / "none"))
    with pytest.raises(TabularError, match="does not start"):
        try_models([models["lightgbm"]])

"""Law 9: the bytes depend on the threads of the config, never on the cores: BLAS rounds by how many share its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import run_cli, small_config
from threadpoolctl import threadpool_info, threadpool_limits

import dermstack.serve.image_runs
import image_models.fit
import stack.blend.logistic
import stack.level2.features
import stack.level2.matrices
import stack.level2.stackers
import stack.submission
from dermstack.serve.bundle import read_bundle
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.predict import predict_rows


def blas_threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """How many threads BLAS had in each of the steps that multiply matrices."""
    found: dict[str, set[int]] = {}

    def watch(module: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(module, name)

        def watched(*args: Any, **settings: Any) -> Any:
            found.setdefault(name, set()).update(blas_threads())
            return real(*args, **settings)

        monkeypatch.setattr(module, name, watched)

    watch(stack.level2.stackers, "read_embeddings")
    watch(stack.level2.matrices, "fold_matrix")
    watch(stack.blend.logistic, "minimize")
    watch(stack.submission, "calibrate_nested")
    watch(image_models.fit, "fit_head")
    watch(image_models.frozen_head.LinearHead, "logit")
    watch(dermstack.serve.image_runs, "alignments")
    watch(stack.level2.features.FoldFeatures, "transform")
    return found


def test_every_product_has_the_configs_threads_whatever_the_machine_has(
    small_data: Path, tmp_path: Path, seen: dict[str, set[int]]
) -> None:
    config = small_config(small_data, tmp_path)
    with threadpool_limits(2, user_api="blas"):
        assert blas_threads() == {2}, "else nothing is shown"
        for step in (["oof"], ["stack", "--no-report"]):
            assert run_cli(*step, "-c", str(config), "-q") == 0
        assert blas_threads() == {2}, "the caller's own are as they were"
    assert set(seen) == {"read_embeddings", "fold_matrix", "minimize", "calibrate_nested", "fit_head", "logit",
                         "transform"}  # fmt: skip
    assert set.union(*seen.values()) == {1}


def test_predictions_have_those_of_the_bundle(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, seen: dict[str, set[int]]
) -> None:
    bundle = read_bundle(bundled_experiment / "bundle.zip")
    rows = read_new_rows(bundle, small_data / "images", small_data / "test.csv")
    with threadpool_limits(2, user_api="blas"):
        predict_rows(bundle, rows, tmp_path / "work")
        assert blas_threads() == {2}
    assert seen == {"alignments": {1}, "logit": {1}, "transform": {1}}

"""Scores of models that were each fitted without a source are compared at one share of positives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from imported_experiment import opened_experiment
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from sourced_experiment import HOSPITALS, write_sourced

from dermstack.pipeline import StackResult, run_stack
from stack.experiment import BY_SOURCE, ONE_SHARE
from stack.folds import inner_split
from stack.metrics.by_source import auc_over_sources
from stack.predictions.one_share import shift_to_one_share
from stack.sources.estimates import REFITTED, source_sentences
from stack.store import Run

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

LINE = {"name": "line", "kind": "logistic", "runs": []}
SHARES = (0.04, 0.1, 0.25, 0.5)
ROWS = 300


def stacked(folder: Path, frame: pd.DataFrame, *overrides: str, **changes: Any) -> StackResult:
    config = write_sourced(folder, **{"stackers": [LINE], "blend": {"methods": ["rank_mean"]}} | changes)
    frame.to_csv(folder / "train.csv", index=False)
    return run_stack(config, overrides=overrides, report=False)


def rows_of(*, equal: bool = False) -> pd.DataFrame:
    """Rows of four hospitals in which the column `true` tells the target, and nothing else does.

    Positives of all hospitals are alike, and negatives too; the shares of positives differ or, with ``equal``, do not.
    """
    rng = np.random.default_rng(5)
    hospital = np.repeat(np.arange(4), ROWS)
    order = np.tile(np.arange(ROWS), 4)
    y = order < ROWS * (0.2 if equal else np.array(SHARES)[hospital])
    x = rng.standard_normal(len(hospital)) + 1.2 * y
    return pd.DataFrame({
        "image": [f"{HOSPITALS[number]}_{row}" for number, row in zip(hospital, order, strict=True)],
        "patient": [f"{HOSPITALS[number]}-{row}" for number, row in zip(hospital, order, strict=True)],
        "target": y.astype(int), "age": 50, "true": x, "local": rng.standard_normal(len(y)),
        "code": rng.standard_normal(len(y)), "hospital": np.array(HOSPITALS)[hospital],
    })  # fmt: skip


def by_source(made: StackResult, *parts: str) -> pd.DataFrame:
    """The out-of-fold rows of a run in the folder of the estimate by source, in the order of the table."""
    oof = pd.read_parquet(made.experiment.folder.joinpath(BY_SOURCE, *parts, "oof.parquet"))
    return oof.set_index("id").loc[made.experiment.table.train["id"]]


def test_the_auc_over_all_sources_is_that_of_the_true_score(tmp_path: Path) -> None:
    """Law: models that learned the same from other shares give the AUC of one model; within a source nothing moves."""
    frame = rows_of()
    made = stacked(tmp_path, frame)
    best = made.by_source.strictest  # type: ignore[union-attr]
    truth = roc_auc_score(frame["target"], frame["true"])
    assert best.as_fitted is not None
    assert best.as_fitted.value < truth - 0.05
    assert best.pooled.value == pytest.approx(truth, abs=0.015)
    blend, line = by_source(made, "blend"), by_source(made, "models", "line")
    y, group, hospital = made.experiment.target, made.experiment.split_group, frame["hospital"].to_numpy(object)
    assert best.as_fitted.value == pytest.approx(roc_auc_score(y, line["logit"]), abs=1e-6)
    within = auc_over_sources(y, blend["score"].to_numpy(), group, hospital)
    pd.testing.assert_frame_equal(best.over.sources, within.sources, check_exact=True)
    assert (best.over.mean, best.over.low, best.over.high) == (within.mean, within.low, within.high)
    left = frame["target"].sum() - frame.groupby("hospital")["target"].transform("sum")
    moved = line["logit"].to_numpy() - np.log(left / (3 * ROWS - left)).to_numpy()
    assert best.pooled.value == pytest.approx(roc_auc_score(y, moved), abs=1e-6)
    said = " ".join(source_sentences(made.by_source))  # type: ignore[arg-type]
    assert f"without this, the value is {best.as_fitted}" in said
    facts = made.by_source.facts.set_index("source")  # type: ignore[union-attr]
    p = by_source(made, ONE_SHARE, "blend")["p_calibrated"].groupby(hospital).sum()
    np.testing.assert_allclose(facts["expected"], p.loc[facts.index])


def test_where_the_shares_are_equal_nothing_is_moved(tmp_path: Path) -> None:
    made = stacked(tmp_path, rows_of(equal=True))
    best = made.by_source.strictest  # type: ignore[union-attr]
    assert (best.origin, best.as_fitted) == (REFITTED, None)
    assert not (made.experiment.folder / BY_SOURCE / ONE_SHARE).exists()


def test_a_log_loss_compares_no_images_and_is_left_as_it_is(tmp_path: Path) -> None:
    made = stacked(tmp_path, rows_of(), "objective=logloss", blend={"methods": ["mean"]})
    best = made.by_source.strictest  # type: ignore[union-attr]
    assert best.as_fitted is None
    assert not (made.experiment.folder / BY_SOURCE / ONE_SHARE).exists()


@pytest.mark.slow
def test_the_share_is_that_of_the_rows_whatever_was_drawn_or_weighted(tmp_path: Path) -> None:
    """Stackers on drawn negatives and copied positives, repeated, or on the scores of another, are compared too."""
    stackers = [
        {**LINE, "repeats": 2},
        {**LINE, "name": "drawn", "negatives": 0.5, "positives": 2},
        {"name": "second", "kind": "logistic", "runs": ["line"]},
    ]
    frame = rows_of()
    made = stacked(tmp_path, frame, stackers=stackers)
    best, truth = made.by_source.strictest, roc_auc_score(frame["target"], frame["true"])  # type: ignore[union-attr]
    assert best.as_fitted is not None
    assert best.as_fitted.value < truth - 0.04
    assert best.pooled.value == pytest.approx(truth, abs=0.02)
    blend, hospital = by_source(made, "blend"), frame["hospital"].to_numpy(object)
    within = auc_over_sources(made.experiment.target, blend["score"].to_numpy(), made.experiment.split_group, hospital)
    pd.testing.assert_frame_equal(best.over.sources, within.sources, check_exact=True)
    assert {path.name for path in (made.experiment.folder / BY_SOURCE / ONE_SHARE / "models").iterdir()} >= {"second"}


@pytest.mark.parametrize("select", ["last", "best"])
def test_the_share_of_a_network_is_that_of_the_rows_that_trained_it(tmp_path: Path, select: str) -> None:
    """External rows train it, and rows on which `select: best` chose the epoch do not. Of other runs it is unknown."""
    experiment = opened_experiment(write_sourced(tmp_path))
    further = pd.DataFrame({"id": [f"further_{number}" for number in range(50)], "target": 1})
    experiment = replace(experiment, external_as_read=further)
    inputs, settings = {"rows or folds": experiment.rows_fingerprint}, {"select": select}
    meta = {"kind": "image", "level": 1, "inputs": inputs, "settings": settings}
    net, imported = Run(tmp_path, meta), Run(tmp_path, {**meta, "kind": "imported"})
    assert shift_to_one_share(experiment, imported) is None
    assert shift_to_one_share(experiment, Run(tmp_path, {**meta, "inputs": {"rows or folds": "others"}})) is None
    shift, y, group = shift_to_one_share(experiment, net), experiment.target, experiment.split_group
    assert shift is not None
    for fold in range(experiment.folds.k):
        held = experiment.folds.frame["fold"].to_numpy() == fold
        train = np.flatnonzero(~held)
        if select == "best":
            train = train[~inner_split(y[train], group[train], seed=experiment.config.seed)]
        share = (y[train].sum() + 50) / (len(train) + 50)
        np.testing.assert_allclose(shift[held], logit(y.mean()) - logit(share))

"""A bundle of stackers with repeats: it has the models of each, and predicts as the experiment does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_cli
from imported_experiment import opened_experiment
from test_table_bundle import CONFIG, rows

from dermstack.errors import BundleError
from dermstack.serve.bundle import FORMAT_OF_REPEATS, read_bundle, write_manifest
from dermstack.serve.ensemble import read_fitted
from dermstack.serve.stages import SeenRows
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out
from stack.experiment import Experiment
from stack.predictions.joined import predictions_of
from stack.predictions.repeats import repeated
from stack.store import read_run

OFTEN = (
    CONFIG.replace("{name: lgb, kind: lightgbm,", "{name: lgb, kind: lightgbm, repeats: 3,")
    .replace("{name: upper, kind: logistic,", "{name: upper, kind: logistic, repeats: 2,")
    .replace("experiment: table", "experiment: often")
)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    folder, rng = tmp_path_factory.mktemp("often"), np.random.default_rng(0)
    rows(420, "a", rng).to_csv(folder / "train.csv", index=False)
    rows(120, "t", rng).drop(columns="y").to_csv(folder / "test.csv", index=False)
    (folder / "c.yaml").write_text(OFTEN)
    assert run_cli("stack", "-c", str(folder / "c.yaml"), "--no-report", "-q") == 0
    made = opened_experiment(folder / "c.yaml")
    write_bundle(made, folder / "b.zip", Out(quiet=True))
    return made


def test_the_test_rows_get_the_bytes_of_the_submission(experiment: Experiment, tmp_path: Path) -> None:
    folder = experiment.config_path.parent
    assert read_bundle(folder / "b.zip").manifest["format"] == FORMAT_OF_REPEATS  # an earlier dermstack refuses it
    out, sent = tmp_path / "p.csv", tmp_path / "s.csv"
    assert run_cli(
        "predict", "--bundle", str(folder / "b.zip"), "--metadata", str(folder / "test.csv"), "--out", str(out),
        "--submission", str(sent), "-q",
    ) == 0  # fmt: skip
    assert sent.read_bytes() == (experiment.folder / "submission.csv").read_bytes()


def test_each_training_row_is_scored_by_the_models_that_held_it_out(experiment: Experiment) -> None:
    """The oracle are the out-of-fold logits that `stack` wrote, of both stages and with other numbers of repeats."""
    bundle = read_bundle(experiment.config_path.parent / "b.zip")
    fitted = read_fitted(bundle)
    assert fitted.repeats == 3
    assert {name: len(own) for stage in fitted.stages for name, own in stage.models.items()} == {
        "lgb": 3, "lr": 1, "upper": 2,
    }  # fmt: skip
    level1 = predictions_of(experiment, [])
    folds = np.stack([repeated(experiment, repeat).folds.frame["fold"].to_numpy() for repeat in range(3)])
    made = fitted.logits(SeenRows(experiment.table.train, level1.oof, level1.nets, {}), folds)
    for name, logit in zip(fitted.stackers, made.T, strict=True):
        run = read_run(experiment.models / name)
        assert run is not None
        own = run.frame("oof").set_index("id")["logit"][experiment.table.train["id"]]
        np.testing.assert_allclose(logit, own, rtol=1e-6, atol=1e-6, err_msg=name)
    other = fitted.logits(SeenRows(experiment.table.train, level1.oof, level1.nets, {}), np.roll(folds, 1, axis=0))
    assert not np.allclose(made, other), "the fold of each repeat counts"


def test_models_that_an_earlier_dermstack_did_not_keep_are_named(experiment: Experiment, tmp_path: Path) -> None:
    place = experiment.models / "lgb" / "repeat_2"
    kept = place.rename(tmp_path / "aside")
    try:
        with pytest.raises(BundleError, match=r"repeat_2/fold_0 is missing: remove .*lgb and run `dermstack stack`"):
            write_bundle(experiment, tmp_path / "b.zip", Out(quiet=True))
    finally:
        kept.rename(place)


def test_a_manifest_whose_shifts_are_not_those_of_its_repeats_is_refused(
    experiment: Experiment, tmp_path: Path
) -> None:
    folder = tmp_path / "b"
    write_bundle(experiment, folder, Out(quiet=True))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["stackers"][0]["repeats"] = 2
    write_manifest(folder, {key: value for key, value in manifest.items() if key not in ("files", "digest")})
    with pytest.raises(BundleError, match="3 shifts for each repeat"):
        read_bundle(folder)

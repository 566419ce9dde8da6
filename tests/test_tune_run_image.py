"""A study of image settings: on groups set aside, continued with the same result, its winner labelled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import run_cli, small_config

from image_models.fit import TrainingRows
from image_models.settings import Callbacks
from stack.console import Out
from stack.experiment import open_experiment
from stack.folds import inner_split
from stack.images import with_images
from stack.settings.config import read_config
from stack.tune.run import _image_objective

TINY = {
    "name": "tiny", "backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 2, "batch_size": 16,
    "metadata": ["age", "sex"],
}  # fmt: skip


def config_in(folder: Path, data: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    return small_config(data, folder, image_models=[TINY], stackers=[], **changes)


def study_file(config: Path) -> Path:
    return config.parent / "runs" / "small" / "studies" / "image-tiny.yaml"


@pytest.mark.slow
def test_interrupted_and_continued_it_chooses_the_same_and_the_winner_is_labelled(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, at_once = config_in(tmp_path / "a", small_data), config_in(tmp_path / "b", small_data)
    for trials in ("1", "3"):
        assert run_cli("tune", "image", "-c", str(config), "--trials", trials, "-q") == 0
    assert run_cli("tune", "image", "-c", str(at_once), "--trials", "3", "-q") == 0
    assert study_file(config).read_text() == study_file(at_once).read_text()
    study = yaml.safe_load(study_file(config).read_text())
    assert study["selected"] == "on these rows"
    study["settings"]["lr"] = 0.00123
    study_file(config).write_text(yaml.safe_dump(study))
    use = ["-c", str(config), "--set", f"tuned.image.tiny={study_file(config)}"]
    assert run_cli("oof", *use) == 0
    assert "selected on these rows" in " ".join(capsys.readouterr().out.split())
    run = json.loads((config.parent / "runs/small/models/tiny/run.json").read_text())
    assert run["settings"]["lr"] == 0.00123
    assert run["selected"]
    assert run_cli("stack", *use) == 0
    assert "tiny: selected on these rows, by a study" in " ".join(capsys.readouterr().out.split())
    assert run_cli("runs", "--folder", str(config.parent / "runs")) == 0
    assert capsys.readouterr().out.count("selected") >= 2, "of the run and of the blend"
    assert run_cli("compare", "small", "small/tiny", "--folder", str(config.parent / "runs")) == 0
    assert " ".join(capsys.readouterr().out.split()).count("selected on these rows, by a study") == 2
    report = (config.parent / "runs/small/report.html").read_text()
    assert "settings were selected on these rows" in report
    assert run_cli("oof", "-c", str(config), "-q") == 2, "without the study the run is stale"


def test_a_trial_is_scored_on_groups_that_it_did_not_learn_from(
    small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_in(tmp_path, small_data)
    experiment, caches = with_images(
        open_experiment(read_config(config), config, Out(quiet=True)), [32], Out(quiet=True)
    )
    called: list[TrainingRows] = []

    def train(cache: object, data: TrainingRows, *_: object, callbacks: Callbacks, **settings: object) -> None:
        called.append(data)
        for epoch, auc in ((1, 0.6), (2, 0.7)):
            callbacks.report(epoch, auc)

    monkeypatch.setattr("image_models.fit.train_fold_net", train)
    import optuna

    study = optuna.create_study(direction="maximize")
    model = experiment.config.image_models[0]
    study.optimize(_image_objective(experiment, model, caches[32]), n_trials=1)
    assert study.best_value == 0.7, "the last epoch's"
    assert study.best_trial.intermediate_values == {1: 0.6, 2: 0.7}
    (data,) = called
    chosen = data.inner_val
    assert chosen is not None
    assert data.metadata is not None
    np.testing.assert_array_equal(
        chosen, inner_split(experiment.target, experiment.split_group, seed=experiment.config.seed)
    )
    groups = experiment.split_group
    assert not set(groups[chosen]) & set(groups[~chosen])
    learned = data.metadata[~chosen]
    np.testing.assert_allclose(learned.mean(axis=0), 0, atol=1e-5)  # standardised by the rows that it learns from
    assert len(data.rows) == len(experiment.target)


def test_only_trained_models_have_a_study(small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    still = TINY | {"name": "still", "frozen": True, "metadata": []}
    config = small_config(small_data, tmp_path, image_models=[still], stackers=[])
    assert run_cli("tune", "image", "-c", str(config)) == 2
    assert run_cli("oof", "-c", str(config), "--set", "tuned.image.still=x.yaml") == 2
    assert "which is not a trained image model" in " ".join(capsys.readouterr().err.split())

"""`bundle --distilled` holds one image model with pseudo-labels, calibrated alone and compared with the blend."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from sklearn.metrics import roc_auc_score
from starlette.testclient import TestClient
from test_pseudo_labels import TINY

from dermstack.errors import BundleError
from dermstack.serve.app import make_app
from dermstack.serve.bundle import read_bundle
from dermstack.serve.distilled import distilled
from dermstack.serve.expectations import OPTIONAL_COLUMNS, cost_notes
from dermstack.serve.patient import Ensemble
from dermstack.serve.questions import rows_out_of_range
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config
from stack.store import read_run
from stack.views import alone

Capture = pytest.CaptureFixture[str]
STUDENT = {**TINY, "name": "small", "pseudo_labels": {"teachers": ["big", "still"]}}
MODELS = [
    {**TINY, "name": "big", "metadata": ["age"]},
    {**TINY, "name": "still", "frozen": True},
    STUDENT,
]


def opened(path: Path) -> Experiment:
    return open_experiment(read_config(path), path, Out(quiet=True))


def test_a_model_without_pseudo_labels_imitates_nothing(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(small_config(small_data, tmp_path, image_models=MODELS))
    for name in ("big", "nothing"):
        with pytest.raises(
            BundleError, match=rf"--distilled {name}: no enabled image model .*\(small\).*pseudo_labels"
        ):
            distilled(experiment, name, Out(quiet=True))


def test_alone_a_model_has_no_level_2(small_data: Path, tmp_path: Path) -> None:
    experiment = alone(opened(small_config(small_data, tmp_path, image_models=MODELS)), "small")
    config = experiment.config
    assert [model.name for model in config.image_models] == ["small"]
    assert config.stackers == ()
    assert not any(value for name, value in config.all_features if name not in ("category_min_rows",))
    assert experiment.rows_fingerprint


@pytest.mark.slow
def test_the_small_net_predicts_alone_what_it_predicted_for_the_test_rows(
    small_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = small_config(small_data, tmp_path, image_models=MODELS)
    out = Out(quiet=True)
    assert run_cli("oof", "-c", str(path), "-q") == 0
    with pytest.raises(BundleError, match="the blend is missing"):
        write_bundle(opened(path), tmp_path / "early.zip", out, only="small")
    assert run_cli("stack", "-c", str(path), "-q") == 0
    folder = tmp_path / "runs" / "small"
    before = {file: file.read_bytes() for file in (folder / "blend").iterdir() if file.is_file()}
    submission = (folder / "submission.csv").read_bytes()
    capsys.readouterr()
    bundle = tmp_path / "small.zip"
    assert run_cli("bundle", "-c", str(path), "--out", str(bundle), "--distilled", "small") == 0
    said = capsys.readouterr().out
    assert "small alone: AUC" in said
    assert "against the nested blend" in said
    assert {file: file.read_bytes() for file in (folder / "blend").iterdir() if file.is_file()} == before
    assert (folder / "submission.csv").read_bytes() == submission
    made = write_bundle(opened(path), tmp_path / "folder", out, only="small")
    assert [run.name for run in made.image_runs] == ["small"]
    assert made.manifest["stackers"] == []
    assert not (tmp_path / "folder" / "model_card.md").exists()

    about = json.loads((tmp_path / "folder" / "manifest.json").read_text())["distilled"]
    train = pd.read_csv(small_data / "train.csv", dtype={"image_name": str}).set_index("image_name")["target"]
    run = read_run(folder / "models" / "small")
    assert run is not None
    oof = read_run(folder / "distilled" / "small" / "blend").frame("oof").set_index("id")["score"]
    whole = read_run(folder / "blend").frame("oof").set_index("id")["score"]
    y = train.loc[oof.index]
    assert about["auc"]["value"] == pytest.approx(roc_auc_score(y, oof))
    assert about["auc"]["low"] < about["auc"]["value"] < about["auc"]["high"]
    assert about["loss"]["value"] == pytest.approx(roc_auc_score(y, oof) - roc_auc_score(y, whole.loc[oof.index]))
    bare = run.frame("oof").set_index("id")["logit"].groupby(run.frame("oof").set_index("id")["fold"])
    for _, logits in bare:
        assert np.corrcoef(logits.rank(), oof.loc[logits.index].rank())[0, 1] > 0.999, "the net, and nothing else"
    assert 0 < about["megabytes"] < about["of_all_megabytes"]
    seconds = re.search(r"([\d.e-]+) s an image \(([\d.e-]+) with all\)", " ".join(said.split()))
    assert seconds is not None
    assert 0 < float(seconds[1]) < float(seconds[2])

    images = ["--images", str(small_data / "images"), "--metadata", str(small_data / "test.csv")]
    assert run_cli("predict", "--bundle", str(bundle), *images, "--out", str(tmp_path / "new.csv"), "-q") == 0
    new = pd.read_csv(tmp_path / "new.csv", dtype={"id": str}).set_index("id")
    test = read_run(folder / "distilled" / "small" / "blend").frame("test").set_index("id")
    for column in ("score", "p_calibrated"):
        np.testing.assert_allclose(new[column], test[column].loc[new.index], atol=1e-5)
    ensemble = Ensemble(read_bundle(bundle), device="cpu")
    assert cost_notes(ensemble.bundle, OPTIONAL_COLUMNS) == [], "the net takes nothing but the image"
    page = TestClient(make_app(ensemble), base_url="http://127.0.0.1").get("/").text
    assert "One image model, trained on" in page
    for name in ("age", "sex", "site"):
        assert f'id="{name}"' not in page
    assert rows_out_of_range(ensemble.bundle, pd.DataFrame({"age": [700.0, 800.0]})) == []
    labels = ["--images", str(small_data / "images"), "--labels", str(small_data / "train.csv")]
    capsys.readouterr()
    assert run_cli("evaluate", "--bundle", str(bundle), *labels, "--out", str(tmp_path / "found")) == 0
    said = capsys.readouterr().out
    assert "expected from training (out-of-fold)" in " ".join(said.split())
    assert "nested" not in said
    settings = yaml.safe_load(path.read_text())
    settings["blend"]["trials"] = 6
    path.write_text(yaml.safe_dump(settings))
    assert run_cli("bundle", "-c", str(path), "--out", str(tmp_path / "b.zip"), "--distilled", "small") == 2
    assert "the blend is stale" in capsys.readouterr().err

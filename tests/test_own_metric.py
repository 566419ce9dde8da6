"""A user's own metric as objective: blends maximise it, its code is part of the name, and nonsense is refused."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from sklearn.metrics import roc_auc_score

from dermstack.errors import ConfigError
from dermstack.serve.bundle import read_bundle
from dermstack.serve.patient import Ensemble, Photo, read_patient
from image_models.processes import run_parallel
from stack.blend.blender import Blender
from stack.blend.nested import blend_nested
from stack.blend.state import blender_from_state, blender_state
from stack.metrics.intervals import bootstrap_scores
from stack.metrics.own_metric import NAME_PATTERN, own_metric, own_value
from stack.metrics.scores import objective_label, score
from stack.settings.config import read_config

GOOD = """
import numpy as np

def score(targets, scores):
    order = np.argsort(np.argsort(scores, kind="stable"), kind="stable")
    positive = targets == 1
    n, m = positive.sum(), (~positive).sum()
    return (order[positive].sum() - n * (n - 1) / 2) / (n * m)
"""
IN_PATIENTS = """
import numpy as np

def score(targets, scores, groups):
    top = [targets[groups == g][np.argmax(scores[groups == g])] for g in np.unique(groups[targets == 1])]
    return float(np.mean(top))
"""


def write(folder: Path, code: str, name: str = "mymetrics") -> Path:
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    return path


def test_worker_processes_that_are_there_already_use_the_metric_as_it_is_now(tmp_path: Path) -> None:
    """As in a notebook, where the second experiment, or the first after an edit, meets the workers of the first."""
    y, s = np.array([0, 1, 0, 1]), np.array([0.1, 0.3, 0.2, 0.4])
    assert list(run_parallel([partial(abs, -1)] * 2, 2)) == [1, 1]
    for folder, added in (("one", 0), ("one", 1), ("two", 2)):
        (tmp_path / folder).mkdir(exist_ok=True)
        write(tmp_path / folder, GOOD.replace("/ (n * m)", f"/ (n * m) + {added}"))
        name = own_metric("mymetrics:score", tmp_path / folder, may_take_groups=False)
        assert list(run_parallel([partial(own_value, name, y, s)] * 2, 2)) == [1 + added] * 2


def test_its_name_holds_its_code(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    first = own_metric("mymetrics:score", tmp_path, may_take_groups=False)
    assert re.fullmatch(NAME_PATTERN, first)
    assert objective_label(first) == "mymetrics:score"
    assert own_metric(first, tmp_path, may_take_groups=False) == first
    write(tmp_path, GOOD.replace("/ (n * m)", "/ (n * m) - 0.5"))
    second = own_metric("mymetrics:score", tmp_path, may_take_groups=False)
    assert second != first
    y, s = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert score(second, y, s) == pytest.approx(roc_auc_score(y, s) - 0.5)
    with pytest.raises(ConfigError, match="its code has changed"):
        score(first, y, s)
    other = tmp_path / "other"  # a module of the same name, of another config
    other.mkdir()
    write(other, GOOD.replace("/ (n * m)", "/ (n * m) + 1"))
    third = own_metric("mymetrics:score", other, may_take_groups=False)
    assert score(third, y, s) == pytest.approx(roc_auc_score(y, s) + 1)


NONSENSE = {
    "def other(targets, scores): return 1.0": "has no function 'score'",
    "def score(targets): return 1.0": "takes 1 arguments: write it as score(targets, scores)",
    "def score(targets, scores): return 1.0": "scores that order all rows rightly have 1, the inverse ones 1",
    "def score(targets, scores): return -scores[targets == 1].mean()": "higher for better scores",
    "def score(targets, scores): return float('nan')": "it returned nan: return a finite number",
    "def score(targets, scores): return 'good'": "it returned 'good'",
    "def score(targets, scores): return scores": "return a finite number",
    "def score(targets, scores): return targets[10_000]": "it failed on 60 rows, 15 of them positive (IndexError",
    "def score(targets, scores): return -((scores - targets) ** 2).mean()": "on another scale",
    "import random\ndef score(targets, scores): return targets @ scores + random.random() / 9": "draw random",
    "def score(targets, scores): raise SystemExit(0)": "it failed on 60 rows, 15 of them positive (SystemExit",
    "raise SystemExit": "cannot be imported (SystemExit",
    "import not_installed": "there is no module 'not_installed'",
    "x = 1 / 0": "cannot be imported (ZeroDivisionError",
    IN_PATIENTS: "it takes groups, which a blend has not",
}


@pytest.mark.parametrize("code", NONSENSE)
def test_nonsense_is_refused_when_the_config_is_read(tmp_path: Path, code: str) -> None:
    write(tmp_path, code)
    config = write_experiment(tmp_path, objective="mymetrics:score")
    with pytest.raises(ConfigError) as error:
        read_config(config)
    assert "objective mymetrics:score" in str(error.value)
    assert NONSENSE[code] in " ".join(str(error.value).split())


@pytest.mark.parametrize("name", ["accuracy", "nowhere_metrics:score", "json:dumps"])
def test_an_objective_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    config = write_experiment(tmp_path, objective=name)
    with pytest.raises(ConfigError) as error:
        read_config(config)
    assert name.partition(":")[0] in str(error.value)


def test_a_blend_maximises_it_as_it_does_its_own(tmp_path: Path, rng: np.random.Generator) -> None:
    """The AUC written as a metric of one's own gives the blend of the AUC."""
    write(tmp_path, "from stack.metrics.scores import auc\n\ndef score(targets, scores): return auc(targets, scores)\n")
    own = own_metric("mymetrics:score", tmp_path, may_take_groups=False)
    group = np.arange(150) // 2
    y = (rng.random(150) < 0.3).astype(int)
    P = 1 / (1 + np.exp(-(y[:, None] * [1.0, 0.5, 0.2] + rng.normal(0, 1, (150, 3)))))
    given = {
        "nets": np.zeros(150, int),
        "fold": group % 3,
        "split_group": group,
        "methods": ["rank_mean", "hill_climb"],
    }
    a, b = (blend_nested(P, y, **given, objective=name, preselect=False) for name in ("auc", own))
    assert np.array_equal(a.comparable["hill_climb"], b.comparable["hill_climb"])
    drawn = [bootstrap_scores(name, y, a.score, group, draws=30) for name in ("auc", own)]
    assert np.allclose(drawn[0], drawn[1])
    settings, arrays = blender_state(b.final)
    again = blender_from_state(json.loads(json.dumps(settings)), arrays)
    assert isinstance(again, Blender)
    assert again.objective == own


@pytest.mark.usefixtures("without_figures")
def test_an_experiment_reaches_its_report_and_is_stale_after_a_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, GOOD)
    config = write_experiment(tmp_path, objective="mymetrics:score", blend={"methods": ["rank_mean", "hill_climb"]})
    experiment = opened_experiment(config)
    for number, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, seed=number))
    run_cli("stack", "-c", str(config))
    said = capsys.readouterr().out
    assert "elsewhere: mymetrics:score 0." in said
    assert "#" not in said, "the hash of the code is no part of a name that is shown"
    folder = experiment.folder
    blend = json.loads((folder / "blend" / "run.json").read_text())
    assert blend["objective"] == experiment.config.objective
    page = (folder / "report.html").read_text()
    assert "mymetrics:score of the ensemble (blend) on images it has not seen" in page
    assert "A metric of the author's own" in page
    capsys.readouterr()
    run_cli("stack", "-c", str(config))
    assert "up to date" in (said := capsys.readouterr().out) or "nothing to do" in said or "complete" in said
    write(tmp_path, GOOD + "\n# another text\n")
    run_cli("stack", "--no-report", "-c", str(config))
    after = json.loads((folder / "blend" / "run.json").read_text())
    assert after["objective"] != blend["objective"]
    assert after["fingerprint"] != blend["fingerprint"]
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    write(tmp_path, IN_PATIENTS, "in_patients")
    runs = str(experiment.config.runs)
    run_cli("compare", "elsewhere/a", "elsewhere/b", "--folder", runs, "--objective", "in_patients:score")
    assert "in_patients:score" in capsys.readouterr().out
    made = [tmp_path / name for name in ("board.csv", "board.html")]
    for path in made:
        run_cli("compare", "elsewhere", "elsewhere/a", "elsewhere/b", "--folder", runs, "--out", str(path))
    said = capsys.readouterr().out
    run_cli("report", "-c", str(config), "--pack", "paper")
    made += [tmp_path / "paper" / "tables" / "runs.csv", folder / "model_card.md"]
    for text in (said, *(path.read_text(encoding="utf-8") for path in made)):
        assert "mymetrics:score" in text
        assert re.search("score#[0-9a-f]{12}", text) is None
    said = command_error(
        capsys, "compare", "elsewhere/a", "elsewhere/b", "--folder", runs, "--objective", "no_such:score"
    )
    assert "there is no module 'no_such'" in said


@pytest.mark.usefixtures("without_figures")
def test_studies_of_gbdts_and_of_the_blend_maximise_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both studies, the blend one in two processes, and the stack that uses their results, to the report."""
    write(tmp_path, GOOD)
    settings: dict[str, Any] = {
        "objective": "mymetrics:score",
        "folds": {"k": 3},
        "stackers": [{"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 20, "patience": 5}}],
        "blend": {"methods": ["rank_mean", "optuna"], "trials": 3, "preselect": False},
    }
    config = write_experiment(tmp_path, **settings)
    experiment = opened_experiment(config)
    for number, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, seed=number))
    assert run_cli("tune", "gbdt", "-c", str(config), "--trials", "2") == 0
    studies = experiment.folder / "studies"
    gbdt = studies / "gbdt-gbdt.yaml"
    found = yaml.safe_load(gbdt.read_text(encoding="utf-8"))
    assert set(found["folds"]) == {0, 1, 2}
    assert all(0.5 < value <= 1 for value in found["inner_scores"].values()), "the metric itself, which is an AUC"
    write_experiment(tmp_path, **settings, tuned={"gbdt": {"gbdt": str(gbdt)}})
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    assert run_cli("tune", "blend", "-c", str(config), "--trials", "3", "--workers", "2") == 0
    blend = studies / "blend.yaml"
    write_experiment(tmp_path, **settings, tuned={"gbdt": {"gbdt": str(gbdt)}, "blend": str(blend)})
    capsys.readouterr()
    assert run_cli("stack", "-c", str(config), "-q") == 0
    meta = json.loads((experiment.folder / "blend" / "run.json").read_text())
    assert meta["objective"] == experiment.config.objective
    page = (experiment.folder / "report.html").read_text(encoding="utf-8")
    assert "mymetrics:score" in page
    write(tmp_path, GOOD.replace("/ (n * m)", "/ (n * m) ** 1"))
    assert "tuned" in command_error(capsys, "stack", "-c", str(config)), "results for another metric are refused"


@pytest.mark.slow
def test_a_bundle_names_it_and_never_imports_it(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    shutil.copytree(bundled_experiment, folder)
    write(folder, GOOD)
    config = folder / "small.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    settings |= {"runs": str(folder / "runs"), "cache": str(folder / "cache"), "objective": "mymetrics:score"}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert run_cli("stack", "-c", str(config), "-q") == 0
    assert run_cli("bundle", "-c", str(config), "--out", str(folder / "own.zip"), "-q", "--replace") == 0
    (folder / "mymetrics.py").write_text("raise RuntimeError('imported')", encoding="utf-8")
    images = ["--bundle", str(folder / "own.zip"), "--images", str(small_data / "images")]
    csv = str(folder / "p.csv")
    capsys.readouterr()
    assert run_cli("predict", *images, "--metadata", str(small_data / "test.csv"), "--out", csv) == 0
    assert "mymetrics:score" in capsys.readouterr().out
    made = pd.read_csv(csv).set_index("id")["score"]
    sent = pd.read_csv(folder / "runs" / "small" / "submission.csv").set_index("image_name")["target"]
    np.testing.assert_array_equal(made[sent.index], sent)
    validation = folder / "validation"
    assert run_cli("evaluate", *images, "--labels", str(small_data / "train.csv"), "--out", str(validation)) == 0
    assert (validation / "evaluation.html").is_file()
    read_patient(Ensemble(read_bundle(folder / "own.zip"), device="cpu"), [
        Photo(path.name, path.read_bytes()) for path in sorted((small_data / "images").glob("*.png"))[:1]
    ])  # fmt: skip

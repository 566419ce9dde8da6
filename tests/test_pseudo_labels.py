"""Pseudo-labels keep the discipline of the folds: labels of fold k come from nets that never saw the rows of fold k."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from scipy.special import expit
from test_level1_folds import Rows

from dermstack.errors import ConfigError
from stack.console import Out
from stack.experiment import IN_MEMORY, Experiment, open_experiment
from stack.level1.folds import TrainedFold, trained_tasks
from stack.level1.image_runs import check_image_models, level1_inputs
from stack.level1.pseudo_labels import pseudo_rows, rounds_of
from stack.plan.steps import Step, image_step
from stack.plan.steps import _next as next_command
from stack.settings.config import read_config
from stack.settings.image_models import ImageModel
from stack.store import prediction_frame, read_run, write_run

TINY = {"backbone": "test_resnet", "pretrained": False, "size": 32, "epochs": 1, "batch_size": 16}
META = {"fingerprint": "", "kind": "image", "level": 1, "inputs": {}}


def models(**pseudo: object) -> list[dict[str, object]]:
    return [
        {**TINY, "name": "teacher"},
        {**TINY, "name": "student", "metadata": ["age"], "pseudo_labels": {"teachers": "teacher"} | pseudo},
    ]


def opened(path: Path) -> Experiment:
    return open_experiment(read_config(path), path, Out(quiet=True))


def with_teacher(experiment: Experiment, logits: dict[int, np.ndarray], name: str = "teacher") -> None:
    """Writes a run with these test logits of each fold's net."""
    ids = experiment.table.test["id"]
    test = pd.concat([prediction_frame(ids, fold, logit) for fold, logit in logits.items()], ignore_index=True)
    write_run(
        experiment.models / name, {"fingerprint": "", "kind": "image", "level": 1, "inputs": {}}, frames={"test": test}
    )


@pytest.fixture
def labelled(small_data: Path, tmp_path: Path) -> tuple[Experiment, dict[int, np.ndarray]]:
    experiment = opened(small_config(small_data, tmp_path, image_models=models()))
    rng = np.random.default_rng(0)
    logits = {fold: rng.normal(size=60).astype(np.float32) * 2 for fold in range(3)}
    with_teacher(experiment, logits)
    return experiment, logits


def changed(experiment: Experiment, **pseudo: object) -> ImageModel:
    student = experiment.config.image_models[1]
    settings = student.pseudo_labels
    assert settings is not None
    return student.model_copy(update={"pseudo_labels": settings.model_copy(update=pseudo)})


def test_each_folds_labels_are_those_of_its_own_nets(labelled: tuple[Experiment, dict[int, np.ndarray]]) -> None:
    experiment, logits = labelled
    for fold, logit in logits.items():
        made = pseudo_rows(experiment, experiment.config.image_models[1], fold)
        assert made is not None
        np.testing.assert_array_equal(made.rows, np.arange(60))
        np.testing.assert_allclose(made.p, expit(logit), rtol=1e-6)


def test_uncertain_rows_are_left_out_and_hard_labels_are_the_likelier_target(
    labelled: tuple[Experiment, dict[int, np.ndarray]],
) -> None:
    experiment, logits = labelled
    made = pseudo_rows(experiment, changed(experiment, labels="hard", confidence=0.9), 1)
    assert made is not None
    certain = np.abs(logits[1]) >= np.log(9)
    np.testing.assert_array_equal(made.rows, np.flatnonzero(certain))
    np.testing.assert_array_equal(made.p, (logits[1][certain] > 0).astype(float))


def test_rows_of_several_teachers_are_joined_by_id(labelled: tuple[Experiment, dict[int, np.ndarray]]) -> None:
    experiment, logits = labelled
    ids = experiment.table.test["id"]
    order = np.random.default_rng(1).permutation(60)
    second = {fold: -3 * logit for fold, logit in logits.items()}
    frames = [prediction_frame(ids.iloc[order], fold, logit[order]) for fold, logit in second.items()]
    write_run(experiment.models / "second", META, frames={"test": pd.concat(frames, ignore_index=True)})
    made = pseudo_rows(experiment, changed(experiment, teachers=("teacher", "second")), 2)
    assert made is not None
    np.testing.assert_allclose(made.p, expit(-logits[2]), rtol=1e-5)


def test_test_rows_train_beside_the_rows_of_the_fold_and_choose_nothing(
    labelled: tuple[Experiment, dict[int, np.ndarray]],
) -> None:
    experiment, logits = labelled
    student = changed(experiment).model_copy(update={"select": "best"})
    plain = student.model_copy(update={"pseudo_labels": None})
    both = [trained_tasks(experiment, model, Rows(), {}, Out(quiet=True)) for model in (student, plain)]
    for with_labels, without in zip(*both, strict=True):
        assert isinstance(with_labels.fit, TrainedFold)
        assert isinstance(without.fit, TrainedFold)
        data, base = with_labels.fit.data, without.fit.data
        n = len(base.rows)
        np.testing.assert_array_equal(data.rows, [*base.rows, *range(60)])
        assert data.soft is not None
        assert np.isnan(data.soft[:n]).all()
        np.testing.assert_allclose(data.soft[n:], expit(logits[with_labels.fold]), rtol=1e-6)
        assert data.inner_val is not None
        assert not data.inner_val[n:].any()
        np.testing.assert_array_equal(data.inner_val[:n], base.inner_val)
        np.testing.assert_array_equal(data.metadata[n:], without.fit.metadata["test"])
        assert with_labels.fit.encoder == without.fit.encoder  # fitted on labelled rows alone
        assert with_labels.images > without.images


def test_a_test_row_trains_no_fold_that_holds_out_what_it_shows(
    labelled: tuple[Experiment, dict[int, np.ndarray]],
) -> None:
    """Test row 3 has the patient of a training row; row 5, and so its patient, looks like one of another fold."""
    experiment, logits = labelled
    before = level1_inputs(experiment, experiment.config.image_models[1])
    train, test, fold = experiment.table.train, experiment.table.test.copy(), experiment.folds.frame["fold"]
    own, other = int(fold[0]), next(row for row in range(len(train)) if fold[row] != fold[0])
    test.loc[3, "group"] = train["group"][0]
    pairs = pd.DataFrame({"id_1": [train["id"][other]], "id_2": [test["id"][5]]})
    table, curation = replace(experiment.table, test=test), replace(experiment.curation, pairs=pairs)
    shows = replace(experiment, table=table, curation=curation)
    student = shows.config.image_models[1]
    for number in logits:
        made = pseudo_rows(shows, student, number)
        assert made is not None
        left_out = np.zeros(60, bool)
        left_out[3] |= number == own
        left_out |= (test["group"] == test["group"][5]).to_numpy() & (number == fold[other])
        assert left_out.any() == (number in (own, fold[other]))
        np.testing.assert_array_equal(made.rows, np.flatnonzero(~left_out))
    after = level1_inputs(shows, student)
    assert {name for name in after if before.get(name) != after[name]} == {
        "metadata", "test rows that show training rows",
    }, "metadata is a fingerprint of groups too"  # fmt: skip
    without = replace(shows, table=replace(table, test_groups_known=False), curation=experiment.curation)
    made = pseudo_rows(without, student, own)
    assert made is not None
    assert len(made.rows) == 60, "the name of a test row's own group is no training group"


def test_a_run_depends_on_what_labels_its_rows(labelled: tuple[Experiment, dict[int, np.ndarray]]) -> None:
    experiment, logits = labelled
    student = experiment.config.image_models[1]
    before = level1_inputs(experiment, student)
    with_teacher(experiment, {fold: logit + 1 for fold, logit in logits.items()})
    after = level1_inputs(experiment, student)
    assert [name for name in before if before[name] != after[name]] == ["pseudo-labels"]
    assert "pseudo-labels" not in level1_inputs(experiment, student.model_copy(update={"pseudo_labels": None}))


def test_the_plan_rebuilds_what_a_rebuilt_run_labels_rows_for(
    labelled: tuple[Experiment, dict[int, np.ndarray]],
) -> None:
    experiment, _ = labelled
    student = experiment.config.image_models[1]
    write_run(experiment.models / "student", META | {"inputs": level1_inputs(experiment, student)}, frames={})
    teacher = Step("oof", "image", "teacher", "skip")
    assert image_step(experiment, student, speed_of=None, before=[teacher]).state == "skip"
    teacher = replace(teacher, state="stale")
    step = image_step(experiment, student, speed_of=None, before=[teacher])
    assert (step.state, step.nets) == ("stale", 3)
    assert [change.key for change in step.changes] == ["pseudo-labels"]
    assert next_command(experiment, [teacher, step]).endswith("--rebuild teacher --rebuild student")
    called = replace(experiment, config_path=IN_MEMORY).command("oof", "--rebuild", "a", "--rebuild", "b")
    assert called == "dermstack.run_oof(config, rebuild=['a', 'b'])"


def test_models_come_after_the_runs_that_label_rows_for_them() -> None:
    def model(name: str, *teachers: str) -> ImageModel:
        pseudo = {"teachers": teachers} if teachers else None
        return ImageModel.model_validate({"name": name, "backbone": "resnet18", "pseudo_labels": pseudo})

    listed = [model("a"), model("b", "a"), model("c"), model("d", "c", "b"), model("e", "imported")]
    assert [[one.name for one in found] for found in rounds_of(listed)] == [["a", "c", "e"], ["b"], ["d"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teachers": ["gbdt"]}, "gbdt, a stacker, whose features"),
        ({"teachers": ["later"]}, "later, no enabled image model that stands before it"),
        ({"teachers": ["nothing"]}, "nothing, which is no run: name an image model listed earlier \\(teacher\\)"),
        ({"teachers": ["student"]}, "must name other runs"),
        ({"teachers": []}, "teachers"),
        ({"confidence": 0.2}, "confidence"),
    ],
)
def test_what_would_break_the_discipline_is_refused(
    small_data: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = small_config(small_data, tmp_path, image_models=[*models(**change), {**TINY, "name": "later"}])
    with pytest.raises(ConfigError, match=said):
        check_image_models(opened(path))


@pytest.mark.parametrize("setting", [{"balance": "sqrt"}, {"positive_weight": 2.0}, {"frozen": True}])
def test_settings_that_need_a_known_target_are_refused(
    small_data: Path, tmp_path: Path, setting: dict[str, object]
) -> None:
    first, second = models()
    path = small_config(small_data, tmp_path, image_models=[first, {**second, "metadata": [], **setting}])
    with pytest.raises(ConfigError, match=r"pseudo_labels"):
        read_config(path)


def imported(data: Path, folder: Path, *, averaged: bool = False, copied: bool = False) -> Path:
    """An experiment whose teacher is an imported run; ``copied``: each fold has the mean over all folds."""
    path = small_config(data, folder, image_models=[])
    experiment = opened(path)
    rng = np.random.default_rng(0)
    folds = experiment.folds.frame
    target = experiment.table.train.set_index("id")["target"]
    oof = folds.assign(p=0.2 + 0.5 * target.loc[folds["id"]].to_numpy() + 0.2 * rng.random(len(folds)))
    oof.rename(columns={"id": "image_name"})[["image_name", "fold", "p"]].to_csv(folder / "oof.csv", index=False)
    ids = experiment.table.test["id"].to_numpy()
    parts = [pd.DataFrame({"image_name": ids, "fold": fold, "p": rng.random(60)}) for fold in range(3)]
    if copied:
        mean = np.mean([part["p"] for part in parts], axis=0)
        parts = [part.assign(p=mean) for part in parts]
    test = parts[0].drop(columns="fold") if averaged else pd.concat(parts)
    test.to_csv(folder / "test.csv", index=False)
    arguments = ["--oof", str(folder / "oof.csv"), "--test", str(folder / "test.csv"), "-c", str(path), "-q"]
    assert run_cli("import-oof", "theirs", *arguments, *(["--test-averaged"] if averaged else [])) == 0
    settings = yaml.safe_load(path.read_text())
    settings["image_models"] = [{**TINY, "name": "student", "pseudo_labels": {"teachers": ["theirs"]}}]
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ({"averaged": True}, "averaged over all folds; labels for fold k must come from models"),
        ({"copied": True}, "copies of one prediction, such as a blend's of all folds"),
    ],
)
def test_labels_of_all_folds_together_are_refused(
    small_data: Path, tmp_path: Path, planted: dict[str, bool], said: str
) -> None:
    path = imported(small_data, tmp_path, **planted)
    with pytest.raises(ConfigError, match=said):
        check_image_models(opened(path))


@pytest.mark.slow
def test_an_imported_run_labels_rows(small_data: Path, tmp_path: Path) -> None:
    path = imported(small_data, tmp_path)
    check_image_models(opened(path))
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(path), "-q") == 0


@pytest.mark.slow
def test_two_rounds_resume_and_notice_a_teacher_that_was_made_again(
    small_data: Path, tmp_path: Path, trained: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = small_config(small_data, tmp_path, image_models=models(confidence=0.6))
    assert run_cli("plan", "-c", str(path)) == 0
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert len(trained) == 6
    student = read_run(tmp_path / "runs" / "small" / "models" / "student")
    assert student is not None
    assert run_cli("stack", "-c", str(path), "-q") == 0
    assert run_cli("bundle", "-c", str(path), "--out", str(tmp_path / "bundle.zip"), "-q") == 0
    assert run_cli("oof", "-c", str(path), "-q", "--rebuild", "teacher") == 0
    assert len(trained) == 9  # the teacher's nets; they have the same predictions, so the student is not stale
    capsys.readouterr()
    settings = yaml.safe_load(path.read_text())
    settings["image_models"][0]["lr"] = 3e-3
    path.write_text(yaml.safe_dump(settings))
    assert run_cli("oof", "-c", str(path), "-q", "--rebuild", "teacher") == 2
    assert "student was made with other pseudo-labels" in capsys.readouterr().err
    assert run_cli("plan", "-c", str(path)) == 0
    assert "pseudo-labels" in capsys.readouterr().out
    assert run_cli("oof", "-c", str(path), "-q", "--rebuild", "student") == 0
    made = read_run(student.folder)
    assert made is not None
    assert made.meta["inputs"]["pseudo-labels"] != student.meta["inputs"]["pseudo-labels"]


def test_a_model_without_pseudo_labels_keeps_its_fingerprint(small_data: Path, tmp_path: Path) -> None:
    first, second = models()
    second.pop("pseudo_labels")
    experiment = opened(small_config(small_data, tmp_path, image_models=[first, second]))
    assert "pseudo_labels" not in experiment.config.image_models[1].settings()

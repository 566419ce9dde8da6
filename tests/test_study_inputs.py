"""A study is one of everything that it depends on: what is stale is refused by what changed, and never goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import optuna
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment

from dermstack.errors import StoreError
from image_models.settings import Training
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.level1.image_runs import level1_runs
from stack.settings.config import read_config
from stack.settings.image_models import ImageModel
from stack.store import sha256
from stack.study_inputs import (
    GBDT_TUNED,
    IMAGE_TUNED,
    blend_study_inputs,
    changed_inputs,
    gbdt_study_inputs,
    image_file_inputs,
    image_study_inputs,
)
from stack.tune import run as tune_module
from stack.tune.run import GBDT_SPACES, IMAGE_CHOICES, IMAGE_RANGES, tune_blend, tune_gbdt
from stack.tune.studies import read_studies
from stack.tuned import check_tuned_blend, check_tuned_gbdt, tuned_weights

GBDT = {"name": "gbdt", "kind": "lightgbm", "params": {"rounds": 12, "patience": 4}}
QUIET = Out(quiet=True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return with_two_runs(tmp_path)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for tests that write nothing into it."""
    return with_two_runs(tmp_path_factory.mktemp("unchanged"))


def with_two_runs(folder: Path) -> Path:
    path = write_experiment(folder, stackers=[GBDT])
    for seed, name in enumerate(("a", "b")):
        import_run(path, name, seed=seed)
    return path


def changes(inputs: Callable[[Experiment], dict[str, str]], config: Path, overrides: tuple[str, ...]) -> str:
    """What these overrides change of the inputs; writes nothing."""
    before, after = (inputs(open_experiment(read_config(config, given), config, QUIET)) for given in ((), overrides))
    return "; ".join(changed_inputs(before, after))


def import_run(config: Path, name: str, *, seed: int, noise: float = 1.5) -> None:
    experiment = opened_experiment(config)
    import_frames(experiment, name, *predictions(experiment, seed=seed, noise=noise), replace=True)


def result(config: Path, name: str) -> Path:
    return config.parent / "runs" / "elsewhere" / "studies" / f"{name}.yaml"


def blend_inputs(experiment: Experiment) -> dict[str, str]:
    return blend_study_inputs(experiment, level1_runs(experiment))


def gbdt_inputs(experiment: Experiment) -> dict[str, str]:
    return gbdt_study_inputs(experiment, experiment.config.stackers[0], level1_runs(experiment))


BLEND_CHANGES = [
    (("blend.power=true",), "blend.power (false, now true)"),
    (("blend.replacement=false",), "blend.replacement (true, now false)"),
    (("blend.bags=3",), "blend.bags (5, now 3)"),
    (("blend.preselect=false",), "blend.preselect (true, now false)"),
    (("objective=ap",), "objective (auc, now ap)"),
    (("seed=4",), "seed (0, now 4)"),
    (("blend.trials=70",), ""),
    (("blend.methods=[mean]",), ""),
    (("n_jobs=2", "threads=2", "workers=1"), ""),
]
GBDT_CHANGES = [
    (("features.aggregates=false",), "features"),
    (("features.cohort=true",), "features"),
    (("stackers.0.kind=xgboost",), "kind (lightgbm, now xgboost)"),
    (("stackers.0.params.rounds=13",), "settings"),
    (("stackers.0.positive_weight=3",), "settings"),
    (("stackers.0.negatives=0.5",), "settings"),
    (("stackers.0.monotone=true",), "settings"),
    (("objective=ap",), "objective (auc, now ap)"),
    (("seed=4",), "seed (0, now 4)"),
    (("stackers.0.params.num_leaves=7",), ""),  # a trial sets it
    (("stackers.0.bags=7", "blend.power=true", "stackers.0.device=gpu"), ""),
]


@pytest.mark.parametrize(("overrides", "expected"), BLEND_CHANGES)
def test_a_blend_study_depends_on_its_settings(overrides: tuple[str, ...], expected: str, unchanged: Path) -> None:
    assert changes(blend_inputs, unchanged, overrides) == expected


@pytest.mark.parametrize(("overrides", "expected"), GBDT_CHANGES)
def test_a_gbdt_study_depends_on_its_settings(overrides: tuple[str, ...], expected: str, unchanged: Path) -> None:
    assert changes(gbdt_inputs, unchanged, overrides) == expected


@pytest.mark.parametrize("inputs", [blend_inputs, gbdt_inputs])
def test_studies_depend_on_the_predictions_and_name_the_run(
    inputs: Callable[[Experiment], dict[str, str]], config: Path
) -> None:
    before = inputs(opened_experiment(config))
    experiment = opened_experiment(config)
    oof, test = predictions(experiment, seed=0)
    import_frames(experiment, "a", oof, test.assign(p=test["p"] ** 2), replace=True)
    assert changed_inputs(before, inputs(opened_experiment(config))) == [], "no study reads test predictions"
    import_frames(experiment, "a", oof.assign(p=oof["p"] ** 2), test, replace=True)
    assert changed_inputs(before, inputs(opened_experiment(config))) == ["predictions of a"]
    import_run(config, "c", seed=2)
    now = inputs(opened_experiment(config))
    assert changed_inputs(before, now) == ["runs (without c)", "predictions of a"]
    assert changed_inputs(now, before) == ["runs (with c)", "predictions of a"]


def test_a_gbdt_study_depends_on_the_table(config: Path) -> None:
    before = gbdt_inputs(opened_experiment(config))
    train = config.parent / "train.csv"
    frame = pd.read_csv(train, dtype=str, keep_default_na=False)
    frame.loc[3, "years"] = "33"
    frame.to_csv(train, index=False)
    assert changed_inputs(before, gbdt_inputs(opened_experiment(config))) == ["metadata"]


def test_an_image_study_depends_on_what_it_does_not_tune(config: Path, tmp_path: Path) -> None:
    experiment = opened_experiment(config)
    model = ImageModel(name="net", backbone="test_resnet", pretrained=False)
    before = image_study_inputs(experiment, model)

    def changed(**settings: object) -> list[str]:
        return changed_inputs(before, image_study_inputs(experiment, model.model_copy(update=settings)))

    assert changed(size=64) == changed(epochs=9) == changed(mixup=0.1) == ["settings"]
    assert changed(seeds=(1,)) == ["seed (0 + 0, now 0 + 1)"]
    assert changed(name="other", tta="d4", selected=True) == []
    assert changed(lr=0.5) == [], "the study set it"
    assert image_study_inputs(experiment, model.model_copy(update={"lr": 0.5})) != before, "but it is another study"
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"one")
    of_file = model.model_copy(update={"pretrained": weights})
    noted = image_file_inputs(of_file, "a" * 64)
    assert noted == {"images": "a" * 64, "pretrained weights": sha256(weights)}
    weights.write_bytes(b"two")
    assert changed_inputs(noted, image_file_inputs(of_file, "b" * 64)) == ["images", "pretrained weights"]
    assert changed_inputs(before | noted | {"backbone code": "c" * 64}, before) == [], "level 2 reads no such file"


def test_what_is_tuned_is_what_a_study_suggests() -> None:
    assert {kind: tuple(space) for kind, space in GBDT_SPACES.items()} == GBDT_TUNED
    assert {*IMAGE_RANGES, *IMAGE_CHOICES} == set(IMAGE_TUNED) <= {*Training.__dataclass_fields__}


@pytest.mark.slow
def test_a_result_of_other_predictions_is_refused_and_a_new_study_begins_beside_it(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The runs of the first study are imported again with others: its weights would submit the wrong run."""
    tune = ["tune", "blend", "-c", str(config), "--trials", "12", "--set", "stackers=[]"]
    use = [
        "stack", "-c", str(config), "--set", "stackers=[]", "--set", "blend.methods=[optuna]", "--set",
        f"tuned.blend={result(config, 'blend')}",
    ]  # fmt: skip
    import_run(config, "b", seed=1, noise=8.0)
    assert run_cli(*tune, "-q") == 0
    first = result(config, "blend").read_bytes()
    assert run_cli(*use, "-q") == 0
    import_run(config, "a", seed=0, noise=8.0)
    import_run(config, "b", seed=1)
    said = " ".join(command_error(capsys, *use).split())
    again = f"run `dermstack tune blend --config {config} "
    assert f"blend.yaml is stale, it was tuned with other predictions of a, b: {again}" in said
    assert run_cli(*tune) == 0
    told = " ".join(capsys.readouterr().out.split())
    kept = result(config, f"blend-{sha256_of(first)}")
    assert f"tuned with other predictions of a, b; a new study begins, and this result will be kept as {kept}" in told
    assert kept.read_bytes() == first
    assert run_cli(*use, "-q") == 0
    blend = json.loads((config.parent / "runs/elsewhere/blend/run.json").read_text())
    assert blend["weights"]["b"] > blend["weights"]["a"]
    import_run(config, "c", seed=2)
    assert run_cli(*tune, "-q") == 0, "one run more is another study"
    assert yaml.safe_load(result(config, "blend").read_text())["runs"] == ["a", "b", "c"]


def sha256_of(content: bytes) -> str:
    import hashlib

    return hashlib.sha256(content).hexdigest()[:12]


def test_settings_of_the_blend_reach_its_studies(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = opened_experiment(config, "blend.power=true", "blend.replacement=false", "blend.bags=2", "stackers=[]")
    made = []

    class Noted(tune_module.Blender):  # type: ignore[misc]
        def __init__(self, *arguments: object, **settings: object) -> None:
            made.append(settings)
            super().__init__(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(tune_module, "Blender", Noted)
    tune_blend(experiment, level1_runs(experiment), QUIET, trials=7)
    assert {(one["power"], one["replacement"], one["bags"]) for one in made} == {(True, False, 2)}
    study = yaml.safe_load(result(config, "blend").read_text())
    assert all(len(entry["powers"]) == 2 for entry in study["weights"])


@pytest.mark.parametrize("override", ["positive_weight=9", "negatives=0.5", "monotone=true"])
def test_settings_of_a_stacker_reach_its_studies(override: str, config: Path, tmp_path: Path) -> None:
    """Trial by trial, the scores are of models with these settings: brute force, by the stacker's own fit."""
    import stack.tune.run as module
    from stack.level2.features import early_stopping_rows
    from stack.metrics.scores import auc
    from tabular.fit_bag import BagSettings, ColumnRoles, Sampling, fit_bag
    from tabular.gbdt_libraries import DEFAULTS

    experiment = opened_experiment(config, f"stackers.0.{override}")
    stacker = experiment.config.stackers[0]
    first = {name: DEFAULTS["lightgbm"][name] for name in GBDT_SPACES["lightgbm"]}
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial(first)
    study.optimize(module._gbdt_objective(experiment, stacker, 0), n_trials=1)
    expected = []
    for split in module._inner_splits(experiment, experiment.config.stackers[0], 0):
        bag = fit_bag(
            BagSettings(
                "lightgbm",
                {**stacker.params, **first},
                sampling=Sampling(negatives=stacker.negatives, positive_weight=stacker.positive_weight),
                columns=ColumnRoles(increasing=split.features.names if stacker.monotone else ()),
            ),
            split.train,
            experiment.target[split.train_rows],
            early_stopping_rows(experiment, split.train_rows),
            seed=0,
            threads=1,
        )
        expected.append(auc(experiment.target[split.held_rows], bag.logit(split.held)))
    assert study.best_value == pytest.approx(np.mean(expected), abs=1e-12)


@pytest.mark.slow
def test_a_gbdt_study_of_other_features_or_kind_is_another(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ["tune", "gbdt", "-c", str(config), "--trials", "1", "-q"]
    assert run_cli(*tune) == 0
    use = ["stack", "-c", str(config), "-q", "--set", f"tuned.gbdt.gbdt={result(config, 'gbdt-gbdt')}"]
    assert run_cli(*use) == 0
    models = config.parent / "runs/elsewhere/models/gbdt/run.json"
    before = models.read_bytes()
    for override, what in (
        ("stackers.0.kind=xgboost", "kind (lightgbm, now xgboost)"),
        ("features.cohort=true", "features"),
    ):
        said = " ".join(command_error(capsys, *use, "--set", override).split())
        assert f"is stale, it was tuned with other {what}: run `dermstack tune gbdt --config {config} " in said
        assert models.read_bytes() == before, "refused before the stacker's run is set aside"
    xgboost = ["--set", "stackers.0.kind=xgboost"]
    assert run_cli(*tune, *xgboost) == 0
    assert "max_depth" in yaml.safe_load(result(config, "gbdt-gbdt").read_text())["all"]
    assert run_cli(*use, *xgboost) == 0
    report = (config.parent / "runs/elsewhere/report.html").read_text()
    assert report.count("gbdt-gbdt-without-none") > 0
    experiment = opened_experiment(config)
    assert read_studies(experiment, {"gbdt-gbdt": gbdt_inputs(experiment)}), "the first studies are still there"
    assert read_studies(experiment, {"gbdt-gbdt": gbdt_inputs(experiment) | {"features": "0" * 12}}) == []


def test_studies_of_shortcuts_see_them(config: Path) -> None:
    train, test = config.parent / "train.csv", config.parent / "test.csv"
    for path in (train, test):
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame.assign(w=1 + np.arange(len(frame)), h=7, b=9).to_csv(path, index=False)
    columns = ["data.columns.width=w", "data.columns.height=h", "data.columns.bytes=b", "features.shortcuts=true"]
    experiment = opened_experiment(config, *columns)
    tune_gbdt(experiment, experiment.config.stackers[0], QUIET, trials=1, timeout=None)
    assert "acquisition" in yaml.safe_load(result(config, "gbdt-gbdt").read_text())["inputs"]


def test_a_result_that_notes_no_inputs_is_refused_unless_what_it_made_is_complete(config: Path) -> None:
    experiment = opened_experiment(config, "stackers=[]")
    runs = level1_runs(experiment)
    path = tune_blend(experiment, runs, QUIET, trials=1)
    study = yaml.safe_load(path.read_text())
    del study["inputs"]
    path.write_text(yaml.safe_dump(study))
    using = opened_experiment(config, f"tuned.blend={path}", f"tuned.gbdt.gbdt={path}")
    check_tuned_blend(using, runs, complete=True)
    check_tuned_gbdt(using, using.config.stackers[0], runs, complete=True)
    with pytest.raises(
        StoreError, match=r"does not say which predictions and settings it was tuned on.*tune blend --config .*` again"
    ):
        check_tuned_blend(using, runs, complete=False)
    with pytest.raises(
        StoreError, match=r"does not say which predictions and settings it was tuned on.*tune gbdt --config .*` again"
    ):
        check_tuned_gbdt(using, using.config.stackers[0], runs, complete=False)
    assert tuned_weights(using, ("a", "b")) is not None


def test_a_blend_study_that_notes_no_preselection_had_none(config: Path) -> None:
    """What it made stays complete; a new blend with the pre-selection needs a new study."""
    experiment = opened_experiment(config, "stackers=[]")
    runs = level1_runs(experiment)
    path = tune_blend(experiment, runs, QUIET, trials=1)
    study = yaml.safe_load(path.read_text())
    del study["inputs"]["blend.preselect"]
    path.write_text(yaml.safe_dump(study))
    using = opened_experiment(config, "stackers=[]", f"tuned.blend={path}")
    check_tuned_blend(using, runs, complete=True)
    with pytest.raises(StoreError, match=r"tuned with other blend.preselect \(false, now true\): run `dermstack tune"):
        check_tuned_blend(using, runs, complete=False)
    check_tuned_blend(
        opened_experiment(config, "stackers=[]", f"tuned.blend={path}", "blend.preselect=false"), runs, complete=False
    )


def test_stack_refuses_what_is_surely_stale_before_the_audit_and_takes_what_is_fresh(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for study in ("gbdt", "blend"):
        assert run_cli("tune", study, "-c", str(config), "--trials", "1", "-q") == 0
    blend, gbdt = f"tuned.blend={result(config, 'blend')}", f"tuned.gbdt.gbdt={result(config, 'gbdt-gbdt')}"

    def refused(*given: str) -> str:
        with monkeypatch.context() as patched:
            patched.setattr("dermstack.audit.run.audit_for_stack", None)
            return command_error(
                capsys, "stack", "-c", str(config), *(word for one in given for word in ("--set", one))
            )

    assert "tuned with other blend.power (false, now true)" in refused(blend, "blend.power=true")
    assert "tuned with other runs (with gbdt)" in refused(blend, "stackers=[]")
    assert "tuned with other runs (with b)" in refused(blend, "blend.runs=[a, gbdt]")
    assert "tuned.gbdt.gbdt:" in refused(gbdt, "features.aggregates=false")
    assert "gone.yaml does not exist" in refused("tuned.blend=gone.yaml")
    assert run_cli("stack", "-c", str(config), "-q", "--no-report", "--set", blend, "--set", "n_jobs=1") == 0
    import_run(config, "a", seed=5)
    assert "tuned with other predictions of a: run" in refused(blend)


def test_predictions_of_a_stacker_that_is_not_fitted_yet_are_not_missed(config: Path) -> None:
    experiment = opened_experiment(config)
    level1 = level1_runs(experiment)
    early = blend_study_inputs(experiment, level1, awaited=["gbdt"])
    late = early | {"predictions of gbdt": "0" * 12}
    assert early["runs"] == "a, b, gbdt"
    assert changed_inputs(late, early) == []

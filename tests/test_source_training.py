"""Image models trained again with folds of whole sources, from the config to report and bundle."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from imported_experiment import command_error, import_frames, opened_experiment
from scipy.special import logit
from sklearn.metrics import roc_auc_score
from table_layouts import written_bytes

import dermstack
from dermstack.pipeline import StackResult, run_stack
from image_models.speed import Speed
from stack.console import Out
from stack.experiment import BY_SOURCE, ONE_SHARE, Experiment
from stack.history import leftovers
from stack.plan import steps
from stack.plan.steps import Plan, make_plan
from stack.settings.config import config_of, read_config
from stack.settings.image_models import ImageModel
from stack.source_experiment import experiment_by_source, units_of_sources
from stack.sources.estimates import HELD_OUT, LEVEL_2_ONLY, OWN, REFITTED, SEEN, TRAINED_AGAIN, source_sentences
from stack.tuned import enabled_models

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

HOSPITALS = ("Basel", "Sydney", "Vienna")
LIGHT = {
    "stackers": [{"name": "line", "kind": "logistic"}],
    "blend": {"methods": ["mean"]},
    "features": {"frozen_z": 4, "relative": [], "outliers": False},
}


@dataclass
class Fitted:
    """Ids of the images that each fit of an image model got, in the order of the fits."""

    trained: list[set[str]] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)  # rows of each fit of a frozen backbone's head
    embedded: int = 0  # images that went through a frozen backbone


def write_sources(config: Path, *, seed: int = 0) -> pd.DataFrame:
    """Writes sources.csv beside the config: patients in three hospitals, a few with one image in a second one."""
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    rows = pd.read_csv(settings["data"]["train"])[["image_name", "patient_id", "target"]]
    rng = np.random.default_rng(seed)
    patients = rows.groupby("patient_id")["target"].max().sample(frac=1, random_state=rng).sort_values(kind="stable")
    of_patient = dict(zip(patients.index, np.arange(len(patients)) % 3, strict=True))  # positives in each hospital
    rows["source"] = rows["patient_id"].map(of_patient).map(lambda number: HOSPITALS[number])
    number = rows.groupby("patient_id")["patient_id"].transform("size")
    several = rows.index[(number > 2) & ~rows["patient_id"].duplicated()][:3]
    rows.loc[several, "source"] = rows.loc[several, "source"].map(lambda name: HOSPITALS[HOSPITALS.index(name) - 1])
    rows[["image_name", "source"]].to_csv(config.parent / "sources.csv", index=False)
    settings["data"] |= {"sources": "sources.csv", "find_duplicates": False}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return rows.set_index("image_name")


def recorded(monkeypatch: pytest.MonkeyPatch) -> Fitted:
    """Records what every fit of an image model gets from now on: the images themselves, by their place in the cache."""
    from image_models import fit

    made = Fitted()
    train, head, embed = fit.train_net, fit.fit_frozen_fold, fit.embed

    def train_net(net: Any, images: Any, **given: Any) -> pd.DataFrame:
        ids = images.pictures.index["id"].to_numpy()[images.rows]
        made.trained.append(set(ids))
        return train(net, images, **given)

    def fit_frozen_fold(z: Any, *rest: Any, **given: Any) -> Any:
        made.heads.append(len(z))
        return head(z, *rest, **given)

    def counted(cache: Any, rows: Any, *rest: Any, **given: Any) -> Any:
        made.embedded += len(rows)
        return embed(cache, rows, *rest, **given)

    monkeypatch.setattr(fit, "train_net", train_net)
    monkeypatch.setattr(fit, "fit_frozen_fold", fit_frozen_fold)
    monkeypatch.setattr(fit, "embed", counted)
    return made


@dataclass
class Finished:
    """An experiment that went the whole way, and what was seen on it."""

    config: Path
    sources: pd.DataFrame  # source and patient of each image
    fitted: Fitted
    before: Plan
    after: Plan
    made: StackResult


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("by_source")
    config = small_config(small_data, folder, estimate={"train_by_source": True}, **LIGHT)
    sources = write_sources(config)
    before = make_plan(opened_experiment(config), measure=False)
    with pytest.MonkeyPatch.context() as patched:
        fitted = recorded(patched)
        assert run_cli("oof", "-c", str(config), "-q") == 0
    made = run_stack(config)
    return Finished(config, sources, fitted, before, make_plan(opened_experiment(config), measure=False), made)


def by_source(config: Path, run: str) -> pd.DataFrame:
    """Out-of-fold rows of a run of the copy by source, by id."""
    return pd.read_parquet(config.parent / "runs/small" / BY_SOURCE / "models" / run / "oof.parquet").set_index("id")


@pytest.mark.ci
@pytest.mark.slow
def test_no_net_saw_the_source_or_the_group_of_a_row_that_it_scores(finished: Finished) -> None:
    """The images that each training got, against those that its net scored."""
    sources, oof = finished.sources, by_source(finished.config, "tiny")
    torn = sources.groupby("patient_id")["source"].nunique()
    torn = sources.index[sources["patient_id"].isin(torn.index[torn > 1])]
    assert len(torn)
    again = finished.fitted.trained[3:]  # three folds of groups come first
    assert len(again) == oof["fold"].nunique() == 3
    main = sources.groupby("patient_id")["source"].agg(lambda names: names.value_counts().idxmax())
    kept = sources.index[sources["source"] == sources["patient_id"].map(main)]
    assert len(kept) == len(sources) - 3
    for fold, got in enumerate(again):
        scored = oof.index[(oof["fold"] == fold) & oof.index.isin(kept)]
        assert len(scored)
        assert not set(sources.loc[sorted(got), "source"]) & set(sources.loc[scored, "source"])
        assert not set(sources.loc[sorted(got), "patient_id"]) & set(sources.loc[scored, "patient_id"])
        assert got == set(kept) - set(scored), "every other row of a main source trains it"


@pytest.mark.slow
def test_frozen_backbones_are_not_run_again(finished: Finished) -> None:
    assert finished.fitted.embedded == 240 + 60, "the features of training and test rows, once"
    sizes = finished.fitted.heads[3:]
    oof = by_source(finished.config, "still")
    assert len(sizes) == 3
    assert sum(sizes) == 2 * (len(oof) - 3)
    assert np.array_equal(
        np.load(finished.config.parent / "runs/small/models/still/oof_z.npy"),
        np.load(finished.config.parent / "runs/small" / BY_SOURCE / "models/still/oof_z.npy"),
    )


@pytest.mark.slow
def test_both_numbers_stand_side_by_side_and_nothing_is_optimistic(finished: Finished) -> None:
    found, sources = finished.made.by_source, finished.sources
    assert found is not None
    assert [(one.origin, one.held_out) for one in found.estimates] == [(OWN, SEEN), (TRAINED_AGAIN, HELD_OUT)]
    assert found.left_out == 3
    assert {one.name for one in found.runs} == {"tiny", "still"}
    target = finished.made.experiment.table.train.set_index("id")["target"]
    for one in found.runs:
        oof = by_source(finished.config, one.name)
        own = finished.made.runs[one.name].frame("oof").set_index("id")
        left = one.over_sources.sources["rows"].sum()
        assert left == one.rows == len(oof) - 3
        main = sources.groupby("patient_id")["source"].agg(lambda names: names.value_counts().idxmax())
        kept = sources.index[sources["source"] == sources["patient_id"].map(main)]
        y, fold = target.loc[kept], oof.loc[kept, "fold"]  # each net is compared at one share of positives
        share = {number: y[fold != number].mean() for number in fold.unique()}
        moved = oof.loc[kept, "logit"] - logit(fold.map(share))
        assert one.sources.value == pytest.approx(roc_auc_score(y, moved))
        assert one.groups.value == pytest.approx(roc_auc_score(target.loc[kept], own.loc[kept, "p"]))
        assert one.pooled_difference.value == pytest.approx(one.sources.value - one.groups.value)
    said = " ".join(source_sentences(found))
    assert "optimistic" not in said + found.summary
    page = (finished.made.experiment.folder / "report.html").read_text(encoding="utf-8")
    assert "Image models trained twice" in page
    for one in found.runs:
        assert f"{one.sources.value:.3f}" in page
        assert f"{one.groups.value:.3f}" in page
    card = (finished.made.experiment.folder / "model_card.md").read_text(encoding="utf-8")
    assert "sources held out (trained again)" in card


@pytest.mark.slow
def test_the_plan_counts_what_is_trained_and_fitted_by_source(finished: Finished) -> None:
    before = {step.name: step for step in finished.before.steps}
    names = [f"{BY_SOURCE}/{name}" for name in ("tiny", "still", "line", "blend")]
    names += [f"{BY_SOURCE}/{ONE_SHARE}/{name}" for name in ("line", "blend")]
    assert [name for name in before if name.startswith(BY_SOURCE)] == names
    assert [before[name].state for name in names] == ["make"] * 6
    assert [before[name].command for name in names] == ["oof", "oof", "stack", "stack", "stack", "stack"]
    assert before[f"{BY_SOURCE}/tiny"].nets == before["tiny"].nets == 3
    assert before[f"{BY_SOURCE}/still"].images == 0
    assert {step.state for step in finished.after.steps} == {"skip"}
    assert not finished.after.problems


@pytest.mark.slow
def test_switched_off_it_is_optimistic_again_and_clean_offers_the_nets(finished: Finished) -> None:
    submission = (finished.made.experiment.folder / "submission.csv").read_bytes()
    copy = finished.config.parent / "off"
    shutil.copytree(finished.config.parent / "runs", copy)
    off = ("estimate.train_by_source=false", f"runs={copy}")
    made = run_stack(finished.config, overrides=off, report=False)
    found = made.by_source
    assert found is not None
    assert [(one.origin, one.held_out) for one in found.estimates] == [(OWN, SEEN), (REFITTED, LEVEL_2_ONLY)]
    assert found.strictest.seen_by == ("tiny", "still")
    assert not found.runs
    assert "estimate.train_by_source: true" in " ".join(source_sentences(found))
    assert (made.experiment.folder / "submission.csv").read_bytes() == submission
    assert made.blend.meta["fingerprint"] == finished.made.blend.meta["fingerprint"]
    models = copy / "small" / BY_SOURCE / "models"
    offered = {leftover.path for leftover in leftovers(made.experiment.config, cache=False)}
    assert {models / "tiny", models / "still"} <= offered
    assert models / "line" not in offered
    kept = {leftover.path for leftover in leftovers(read_config(finished.config, off[1:]), cache=False)}
    assert not kept & {models / "tiny", models / "still"}, "not where they are used"
    on = run_stack(finished.config, overrides=off[1:], report=False)
    assert on.by_source is not None
    assert finished.made.by_source is not None
    assert on.by_source.summary == finished.made.by_source.summary
    assert [one.sources for one in on.by_source.runs] == [one.sources for one in finished.made.by_source.runs]


@pytest.mark.slow
def test_imported_runs_cannot_be_trained_again_and_stay_marked_by_name(finished: Finished, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(finished.config.parent / "runs", copy)
    experiment = opened_experiment(finished.config, f"runs={copy}")
    rng, parts = np.random.default_rng(0), []
    for frame, folds in ((experiment.table.train, experiment.folds.frame["fold"]), (experiment.table.test, -1)):
        parts.append(pd.DataFrame({"isic": frame["id"], "p": rng.random(len(frame)), "fold": folds}))
    import_frames(experiment, "extern", parts[0], parts[1][["isic", "p"]], test_averaged=True)
    found = run_stack(finished.config, overrides=[f"runs={copy}"], report=False).by_source
    assert found is not None
    best = found.strictest
    assert (best.origin, best.held_out, best.seen_by, best.imported) == (
        TRAINED_AGAIN, LEVEL_2_ONLY, ("extern",), ("extern",),
    )  # fmt: skip
    said = " ".join(source_sentences(found))
    assert "the image models were fitted without it, but extern had been trained on other images of it" in said
    assert "Imported predictions cannot be trained again here: extern." in said
    assert "train_by_source" not in said
    assert "optimistic: extern had seen them" in found.summary
    assert {one.name for one in found.runs} == {"tiny", "still"}, "each of which is told without the mark"


@pytest.mark.slow
def test_it_ends_in_a_bundle(finished: Finished, tmp_path: Path) -> None:
    assert run_cli("bundle", "-c", str(finished.config), "--out", str(tmp_path / "with.zip"), "-q") == 0
    off = ["--set", "estimate.train_by_source=false"]
    assert run_cli("bundle", "-c", str(finished.config), *off, "--out", str(tmp_path / "without.zip"), "-q") == 0


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_with_the_same_bytes(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import image_models.train as training

    copy = tmp_path / "runs"
    shutil.copytree(finished.config.parent / "runs", copy)
    shutil.rmtree(copy / "small" / BY_SOURCE)
    given = ["oof", "-c", str(finished.config), "-q", "--set", f"runs={copy}"]
    write, calls = training.write_state, []

    def stop(path: Path, state: dict[str, object]) -> None:
        write(path, state)
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training, "write_state", stop)
        assert run_cli(*given) != 0
    nets = copy / "small" / BY_SOURCE / "models/tiny"
    assert (nets / "fold_0/run.json").exists()
    assert (nets / "fold_1/seed_0/state.pt").exists()
    assert run_cli("stack", *given[1:]) == 2, "a run by source that is not complete is refused"
    assert run_cli(*given) == 0
    whole = finished.config.parent / "runs/small" / BY_SOURCE / "models"
    for pattern in ("tiny/**/weights.safetensors", "*/oof.parquet", "*/oof_z.npy"):
        files = [path.relative_to(whole) for path in whole.glob(pattern) if path.parts[-2] != "line"]
        assert files
        for path in files:
            assert (whole / path).read_bytes() == (nets.parent / path).read_bytes(), path


@pytest.mark.slow
def test_stale_runs_by_source_are_refused_and_rebuilt_by_name(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(finished.config.parent / "runs", copy)
    config = tmp_path / "small.yaml"
    settings = yaml.safe_load(finished.config.read_text(encoding="utf-8")) | {"runs": str(copy)}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    write_sources(config, seed=1)
    before = written_bytes([copy / "small/models"])
    for command in ("oof", "stack"):
        told = command_error(capsys, command, "-c", str(config))
        assert "made with other rows or folds" in told
        assert f"--rebuild {BY_SOURCE}/tiny" in told
    plan = make_plan(opened_experiment(config), measure=False)
    states = {step.name: step.state for step in plan.steps}
    assert (states["tiny"], states[f"{BY_SOURCE}/tiny"]) == ("skip", "stale")
    fitted = recorded(monkeypatch)
    rebuild = ["--rebuild", f"{BY_SOURCE}/tiny", "--rebuild", f"{BY_SOURCE}/still"]
    assert run_cli("oof", "-c", str(config), "-q", *rebuild) == 0
    assert len(fitted.trained) == 3
    assert fitted.embedded == 0
    assert written_bytes([copy / "small/models"]) == before, "the nets with folds of groups stay"
    assert "no enabled image model" in command_error(
        capsys, "oof", "-c", str(config), "--rebuild", f"{BY_SOURCE}/other"
    )


def test_a_plan_measures_each_network_once(small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config(small_data, tmp_path, estimate={"train_by_source": True}, **LIGHT)
    write_sources(config)
    asked: list[str] = []

    def measured(_: Experiment, model: ImageModel) -> Speed:
        asked.append(model.name)
        return Speed(train=10.0, predict=100.0, features=8, weights_bytes=1, memory_bytes=1)

    monkeypatch.setattr(steps, "measured", measured)
    costs = {step.name: step.cost.seconds for step in make_plan(opened_experiment(config)).steps}
    assert asked == ["tiny", "still"]
    assert costs["tiny"]
    assert costs[f"{BY_SOURCE}/tiny"]


def test_tuned_settings_of_image_models_stay_and_are_labelled(small_data: Path, tmp_path: Path) -> None:
    """A study has the rows and folds of the experiment itself, so it is not looked for again by source."""
    config = small_config(small_data, tmp_path, estimate={"train_by_source": True}, **LIGHT)
    write_sources(config)
    study = {"rows_or_folds": opened_experiment(config).rows_fingerprint, "settings": {"lr": 0.02, "augment": "flips"}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    experiment = opened_experiment(config, f"tuned.image.tiny={tmp_path / 'study.yaml'}")
    copy = experiment_by_source(experiment, units_of_sources(experiment), Out(quiet=True))
    assert copy.rows_fingerprint != experiment.rows_fingerprint
    tiny = next(model for model in enabled_models(copy) if model.name == "tiny")
    assert (tiny.lr, tiny.selected) == (0.02, True)


def refused(changes: dict[str, Any]) -> str:
    settings: dict[str, Any] = {
        "experiment": "e",
        "data": {"name": "e", "train": "t.csv", "images": "i", "columns": {"id": "i", "target": "y", "source": "h"}},
        "image_models": [{"name": "net", "backbone": "test_resnet", "size": 32}],
        "estimate": {"train_by_source": True},
    }
    for key, value in changes.items():
        *path, last = key.split(".")
        place = settings
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    with pytest.raises(dermstack.ConfigError) as caught:
        config_of(settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"estimate.leave_source_out": False}, "estimate.leave_source_out, which is false"),
        ({"data.columns.source": None}, "needs sources"),
        ({"folds.by": "source"}, "of no use with folds.by: source"),
        ({"image_models": []}, "has no image model to train"),
    ],
)
def test_what_cannot_be_trained_is_refused_when_the_config_is_read(changes: dict[str, Any], told: str) -> None:
    assert told in refused(changes)


def test_pseudo_labels_may_come_from_the_held_out_source() -> None:
    model = {"backbone": "test_resnet", "size": 32}
    teacher = {"name": "teacher", **model}
    pupil = {"name": "pupil", **model, "pseudo_labels": {"teachers": ["teacher"]}}
    assert "disable pupil" in refused({"image_models": [teacher, pupil]})


def test_too_few_sources_stop_it_before_anything_is_trained(
    small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(small_data, tmp_path, estimate={"train_by_source": True}, **LIGHT)
    write_sources(config)
    path = tmp_path / "sources.csv"
    pd.read_csv(path).assign(source="Basel").to_csv(path, index=False)
    fitted = recorded(monkeypatch)
    told = command_error(capsys, "oof", "-c", str(config))
    assert "estimate.train_by_source: 1 of 1 sources has" in told
    assert not fitted.trained

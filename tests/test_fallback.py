"""Images that cannot be read: refused by name, or predicted from the table alone where that is declared."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from scipy.special import expit, logit

from dermstack.errors import BundleError, DataError
from dermstack.serve.bundle import read_bundle
from dermstack.serve.ensemble import read_bundled_fallback
from dermstack.serve.patient import Ensemble, Photo, read_patient
from stack.blend.calibration import calibrator_from_state
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.fallback import FOLDER, _fit_fold, image_free, read_fallback
from stack.settings.config import read_config
from stack.store import read_run
from stack.up_to_date import RECORD

QUIET = Out(quiet=True)
STILL = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
LINE = {"name": "line", "kind": "logistic"}
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.slow


def settings(folder: Path, **data: object) -> Path:
    path = small_config(folder / "data", folder, image_models=[STILL], stackers=[LINE])
    config = yaml.safe_load(path.read_text())
    config["data"].update(data)
    path.write_text(yaml.safe_dump(config))
    return path


def break_images(folder: Path, ids: list[str]) -> None:
    for row_id in ids:
        next((folder / "data" / "images").glob(f"{row_id}.*")).write_bytes(b"no image")


def ids_of_test(folder: Path) -> list[str]:
    return pd.read_csv(folder / "data" / "test.csv", dtype=str)["image_name"].tolist()


@pytest.fixture(scope="module")
def broken(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished experiment with a bundle in which two test images cannot be read, and their ids."""
    folder = tmp_path_factory.mktemp("broken")
    shutil.copytree(small_data, folder / "data")
    table = pd.read_csv(folder / "data" / "test.csv", dtype=str)
    group = table["patient_id"].value_counts().index[0]  # one in a group with others, one anywhere
    lost = [table["image_name"][table["patient_id"] == group].iloc[0], table["image_name"].iloc[-1]]
    break_images(folder, lost)
    table.loc[table["image_name"] == lost[1], ["sex", "age_approx", "anatom_site_general_challenge"]] = ""
    table.to_csv(folder / "data" / "test.csv", index=False)
    path = settings(folder, on_unreadable_test="table")
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert run_cli("stack", "-c", str(path), "-q") == 0
    assert run_cli("bundle", "-c", str(path), "--out", str(folder / "b.zip"), "-q") == 0
    return folder, lost


def opened(folder: Path) -> Experiment:
    path = folder / "small.yaml"
    return open_experiment(read_config(path), path, QUIET)


@pytest.mark.parametrize("on_unreadable", ["refuse", "drop", "tolerate"])
def test_by_default_an_unreadable_test_image_is_refused_by_name_with_the_fallback_as_next_step(
    small_data: Path, tmp_path: Path, capsys: Capture, on_unreadable: str
) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    lost = ids_of_test(tmp_path)[5]
    break_images(tmp_path, [lost])
    path = settings(tmp_path, on_unreadable=on_unreadable)
    assert run_cli("oof", "-c", str(path), "-q") == 2
    said = capsys.readouterr().err
    assert lost in said
    assert "data.on_unreadable_test: table" in said
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("run.json"))


def test_an_unreadable_training_image_is_no_matter_of_the_test_rows_fallback(
    small_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    lost = pd.read_csv(tmp_path / "data" / "train.csv", dtype=str)["image_name"].iloc[7]
    break_images(tmp_path, [lost])
    assert run_cli("oof", "-c", str(settings(tmp_path, on_unreadable_test="table")), "-q") == 2
    assert lost in capsys.readouterr().err


@pytest.mark.usefixtures("without_figures")
def test_every_test_row_is_submitted_and_the_rows_without_an_image_are_named(
    broken: tuple[Path, list[str]], capsys: Capture
) -> None:
    folder, lost = broken
    submitted = pd.read_csv(folder / "runs" / "small" / "submission.csv", dtype={"image_name": str})
    assert submitted["image_name"].tolist() == ids_of_test(folder)
    listed = pd.read_csv(folder / "runs" / "small" / "fallback.csv", dtype={"id": str}).set_index("id")
    assert sorted(listed.index) == sorted(lost)
    assert listed["basis"][lost].tolist() == ["table", "prevalence"]
    assert listed["reason"].str.contains("not an image").all()
    for record, words in (("kept", "nothing that it depends on has changed"), ("gone", "fallback: complete, skipped")):
        if record == "gone":
            (folder / "runs" / "small" / RECORD).unlink()
        assert run_cli("stack", "-c", str(folder / "small.yaml")) == 0
        said = " ".join("".join(capsys.readouterr()).split())
        assert words in said
        assert "2 of 60 rows of the submission are predicted from the table alone" in said
        assert all(row_id in said for row_id in lost)
    assert "the table alone, AUC 0." in said
    assert run_cli("report", "-c", str(folder / "small.yaml"), "-q", "--show-ids", "--no-images") == 0
    page = (folder / "runs" / "small" / "report.html").read_text()
    assert "2 of 60 test rows have an image that cannot be read" in page
    assert all(row_id in page for row_id in lost)
    run_cli("report", "-c", str(folder / "small.yaml"), "-q", "--no-images")
    assert not any(row_id in (folder / "runs" / "small" / "report.html").read_text() for row_id in lost)


def test_the_fallbacks_risk_is_on_the_scale_of_the_blend(broken: tuple[Path, list[str]]) -> None:
    """A row's score is the one to which the blend's calibration gives the risk that the fallback found."""
    folder, lost = broken
    blend = read_run(folder / "runs" / "small" / "blend")
    assert blend is not None
    rows = pd.read_parquet(folder / "runs" / "small" / "predictions.parquet").set_index("id")
    calibrated = calibrator_from_state(blend.meta["calibrator"])
    ends = np.sort(calibrated(np.array([0.0, 1.0])))
    found = calibrated(rows["score"].to_numpy())
    np.testing.assert_allclose(found, np.clip(rows["p_calibrated"], *ends), rtol=1e-6)
    assert rows["basis"].value_counts().to_dict() == {"images": 58, "table": 1, "prevalence": 1}
    experiment = opened(folder)
    prevalences = [experiment.target[experiment.folds.frame["fold"] != fold].mean() for fold in range(3)]
    assert rows["p_calibrated"][lost[1]] == pytest.approx(expit(np.mean(logit(prevalences))), abs=1e-7)


def test_the_models_on_disk_make_the_same_predictions(broken: tuple[Path, list[str]]) -> None:
    folder, _ = broken
    experiment = opened(folder)
    run = read_run(experiment.folder / FOLDER)
    assert run is not None
    fallback = read_fallback(
        lambda name: (run.folder / name).read_bytes(),
        run.meta["state"],
        experiment.config.features,
        columns=experiment.table.columns,
        threads=1,
    )
    made = fallback.predict(experiment.as_read.test)
    pd.testing.assert_series_equal(made["p_calibrated"], run.frame("predictions")["p_calibrated"], check_exact=True)
    for fold, model in enumerate(fallback.models):
        held = (experiment.folds.frame["fold"] == fold).to_numpy()
        of_fold = run.frame("oof")[held]
        np.testing.assert_array_equal(model.logit(experiment.table.train[held], threads=1), of_fold["logit"].to_numpy())


def test_no_row_is_predicted_by_a_model_that_saw_its_target(broken: tuple[Path, list[str]]) -> None:
    experiment = opened(broken[0])
    train = experiment.table.train
    held = (experiment.folds.frame["fold"] == 0).to_numpy()
    rows = np.flatnonzero(~held)
    changed = train.assign(target=np.where(held, 1 - train["target"], train["target"]).astype(np.int8))
    other = replace(experiment, table=replace(experiment.table, train=changed))
    assert (other.target[held] != experiment.target[held]).all()
    made = [_fit_fold(of, rows).logit(train[held], threads=1) for of in (experiment, other)]
    np.testing.assert_array_equal(made[0], made[1])
    flipped = train.assign(target=np.where(held, train["target"], 1 - train["target"]).astype(np.int8))
    third = _fit_fold(replace(experiment, table=replace(experiment.table, train=flipped)), rows)
    assert (third.logit(train[held], threads=1) != made[0]).any(), "targets of training rows count"


def test_the_fallback_reads_nothing_that_needs_an_image(broken: tuple[Path, list[str]]) -> None:
    experiment = opened(broken[0])
    everything = experiment.config.features.model_copy(
        update={"cohort": True, "shortcuts": True, "frozen_z": 8, "aligned_z": 8, "context_counts": True}
    )
    experiment = replace(experiment, config=experiment.config.model_copy(update={"features": everything}))
    model = _fit_fold(experiment, np.arange(len(experiment.table.train)))
    x = model.features.transform(experiment.table.train, np.empty((240, 0), np.float32), {})
    assert {"age", "age_group_min", "group_images"} <= set(x.columns)
    assert set(model.features.block_of_.values()) == {"metadata", "ages of the group", "counts of the group"}
    assert image_free(everything).metadata


def test_without_any_column_each_row_gets_the_prevalence_and_it_is_said(
    small_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    shutil.copytree(small_data, tmp_path / "data")
    lost = ids_of_test(tmp_path)[5]
    break_images(tmp_path, [lost])
    columns = {"id": "image_name", "group": "patient_id", "target": "target"}
    path = settings(tmp_path, on_unreadable_test="table", columns=columns)
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert run_cli("stack", "--no-report", "-c", str(path)) == 0
    assert "each such row gets the prevalence of the training rows" in " ".join("".join(capsys.readouterr()).split())
    row = pd.read_parquet(tmp_path / "runs" / "small" / "predictions.parquet").set_index("id").loc[lost]
    prevalence = pd.read_csv(tmp_path / "data" / "train.csv")["target"].mean()
    assert row["basis"] == "prevalence"
    assert row["p_calibrated"] == pytest.approx(prevalence, rel=0.05)
    assert json.loads((tmp_path / "runs" / "small" / FOLDER / "run.json").read_text())["value"] is None


def test_the_declaration_alone_changes_no_byte_of_the_submission(small_data: Path, tmp_path: Path) -> None:
    made = {}
    for choice in ("refuse", "table"):
        folder = tmp_path / choice
        folder.mkdir()
        shutil.copytree(small_data, folder / "data")
        path = settings(folder, on_unreadable_test=choice)
        assert run_cli("oof", "-c", str(path), "-q") == 0
        assert run_cli("stack", "--no-report", "-c", str(path), "-q") == 0
        assert not (folder / "runs" / "small" / "fallback.csv").exists()
        made[choice] = {
            name: (folder / "runs" / "small" / name).read_bytes() for name in ("submission.csv", "predictions.parquet")
        }
    assert made["refuse"] == made["table"]


def predict(folder: Path, out: Path, *options: str, bundle: str = "b.zip") -> int:
    images = ["--images", str(folder / "data" / "images")]
    return run_cli("predict", "--bundle", str(folder / bundle), *images, "--out", str(out), "-q", *options)


def test_a_bundle_gives_the_same_rows_the_same_predictions(broken: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = broken
    rows = ["--metadata", str(folder / "data" / "test.csv")]
    assert predict(folder, tmp_path / "p.csv", *rows, "--on-unreadable", "table") == 0
    made = pd.read_csv(tmp_path / "p.csv", dtype={"id": str}).set_index("id")
    ours = pd.read_parquet(folder / "runs" / "small" / "predictions.parquet").set_index("id").loc[made.index]
    assert made["basis"].tolist() == ours["basis"].tolist()
    for column in ("score", "p_calibrated"):
        np.testing.assert_array_equal(made[column], ours[column])


def test_predict_refuses_by_name_unless_the_fallback_is_chosen(
    broken: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    folder, lost = broken
    rows = ["--metadata", str(folder / "data" / "test.csv")]
    assert predict(folder, tmp_path / "p.csv", *rows) == 2
    said = capsys.readouterr().err
    assert all(row_id in said for row_id in lost)
    assert "--on-unreadable table" in said
    bundle = read_bundle(folder / "b.zip")
    without = {key: value for key, value in bundle.manifest.items() if key != "fallback"}
    with pytest.raises(
        BundleError, match=r"cannot predict from the table alone: set `data\.on_unreadable_test: table`"
    ):
        read_bundled_fallback(replace(bundle, manifest=without))


def test_without_a_csv_an_unreadable_image_gets_the_prevalence_and_all_may_be_unreadable(
    broken: tuple[Path, list[str]], tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "images" / name).write_bytes(b"no image")
    command = ["predict", "--bundle", str(broken[0] / "b.zip"), "--images", str(tmp_path / "images")]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv"), "--on-unreadable", "table") == 0
    made = pd.read_csv(tmp_path / "p.csv")
    assert made["basis"].tolist() == ["prevalence", "prevalence"]
    said = " ".join("".join(capsys.readouterr()).split())
    assert "2 images cannot be read, predicted as the prevalence: no value in the table: a, b" in said
    assert run_cli(*command, "--out", str(tmp_path / "d.csv"), "--on-unreadable", "drop", "-q") == 0
    assert pd.read_csv(tmp_path / "d.csv").empty


def test_the_page_predicts_an_unreadable_image_only_where_that_is_declared(broken: tuple[Path, list[str]]) -> None:
    folder, lost = broken
    bundle = read_bundle(folder / "b.zip")
    good = next(path for path in (folder / "data" / "images").iterdir() if path.stem not in lost)
    photos = [Photo("bad.jpg", b"no image"), Photo(good.name, good.read_bytes())]
    with pytest.raises(DataError, match=r"bad\.jpg"):
        read_patient(Ensemble(bundle, device="cpu"), photos, age=60, sex="male")
    ensemble = Ensemble(bundle, device="cpu", on_unreadable="table")
    reading = read_patient(ensemble, photos, age=60, sex="male")
    alone = read_patient(ensemble, photos[1:], age=60, sex="male")
    bad, seen = reading.lesions
    assert (bad.basis, bad.picture, bad.heat, bad.novelty) == ("table", None, None, None)
    assert (seen.basis, seen.score, seen.p_calibrated) == (
        "images",
        alone.lesions[0].score,
        alone.lesions[0].p_calibrated,
    )
    assert "bad.jpg from the table alone" in reading.notes[0]
    assert not any("bad.jpg" in note for note in alone.notes)
    nothing = read_patient(ensemble, photos[:1])
    assert nothing.lesions[0].basis == "prevalence"

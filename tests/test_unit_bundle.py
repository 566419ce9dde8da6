"""A bundle whose experiment has `predict_per` predicts, evaluates and shows units as `stack` does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from imported_experiment import opened_experiment
from starlette.testclient import TestClient
from unfitted_ensemble import unfitted_ensemble

from dermstack.errors import BundleError, DataError
from dermstack.serve.app import make_app
from dermstack.serve.bundle import Bundle, read_bundle
from dermstack.serve.ensemble import read_bundled_fallback
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.patient import Ensemble, Photo, _units, read_patient
from dermstack.serve.predict import predict_rows
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out
from stack.experiment import Experiment
from stack.submission import run_blend

QUIET = Out(quiet=True)
SIDES = ["patient_id", "side"]


class Made(NamedTuple):
    folder: Path
    experiment: Experiment
    bundle: Bundle

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv", dtype=str)


def make(bundled_experiment: Path, folder: Path, **changes: Any) -> Made:
    """The session's nets and stackers, blended for units and bundled: a patient's images of one made-up side."""
    shutil.copytree(bundled_experiment, folder)
    config = folder / "small.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8"))
    for part in ("train", "test"):
        table = pd.read_csv(settings["data"][part], dtype=str)
        odd = table["image_name"].str[-1].astype(int) % 2 == 1
        table.assign(side=np.where(odd, "R", "L")).to_csv(folder / f"{part}.csv", index=False)
        settings["data"][part] = str(folder / f"{part}.csv")
    del settings["data"]["sample_submission"]
    settings |= {"runs": str(folder / "runs"), "cache": str(folder / "cache"), "blend": {"methods": ["rank_mean"]}}
    settings |= {"predict_per": {"columns": SIDES, "pooling": ["learned"]}, **changes}
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    experiment = opened_experiment(config)
    run_blend(experiment, [*experiment.finished(level=1), *experiment.finished(level=2)], QUIET)
    write_bundle(experiment, folder / "units.zip", QUIET)
    return Made(folder, experiment, read_bundle(folder / "units.zip"))


@pytest.fixture(scope="module")
def made(bundled_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(
        bundled_experiment, tmp_path_factory.mktemp("units") / "made", review={"sensitivity": 0.6, "confidence": 0.8}
    )


def predict(made: Made, images: Path, table: pd.DataFrame, folder: Path, *options: str) -> pd.DataFrame:
    folder.mkdir()
    table.to_csv(folder / "rows.csv", index=False)
    assert run_cli(
        "predict", "--bundle", str(made.folder / "units.zip"), "--images", str(images), "--metadata",
        str(folder / "rows.csv"), "--out", str(folder / "p.csv"), "--submission", str(folder / "s.csv"), "-q", *options,
    ) == 0  # fmt: skip
    return pd.read_csv(folder / "p.csv", dtype={"id": str})


def unit_of(table: pd.DataFrame) -> pd.Series:
    return table["patient_id"] + "_" + table["side"]


def test_the_test_rows_of_training_get_the_bytes_of_the_submission(
    made: Made, small_data: Path, tmp_path: Path
) -> None:
    found = predict(made, small_data / "images", made.table("test"), tmp_path / "p")
    sent = made.experiment.folder / "submission.csv"
    assert (tmp_path / "p" / "s.csv").read_bytes() == sent.read_bytes()
    before = pd.read_parquet(made.experiment.folder / "predictions.parquet")
    columns = ["id", "score", "p_calibrated", "decision"]
    if not found["far"].any():  # which `stack` does not know of its test rows
        pd.testing.assert_frame_equal(found[columns], before[columns].astype({"id": object}), check_dtype=False)
    count = unit_of(made.table("test")).value_counts()
    assert found["images"].tolist() == count.loc[found["id"]].tolist()
    assert count.max() > 1
    assert found["score"].nunique() > len(found) // 2


@pytest.mark.slow
def test_neither_the_order_of_images_nor_the_call_of_other_patients_changes_a_unit(
    made: Made, small_data: Path, tmp_path: Path
) -> None:
    table, images = made.table("test"), small_data / "images"
    whole = predict(made, images, table, tmp_path / "whole").set_index("id")
    other = predict(made, images, table.sample(frac=1, random_state=3), tmp_path / "order").set_index("id")
    # BLAS rounds a product by how many rows it has, and a GBDT jumps where a rounded value crosses a threshold.
    np.testing.assert_allclose(other.loc[whole.index, "score"], whole["score"], rtol=1e-3)
    patients = table["patient_id"].unique()
    halves = [table[table["patient_id"].isin(some)] for some in (patients[::2], patients[1::2])]
    parts = [predict(made, images, half, tmp_path / f"half{n}").set_index("id") for n, half in enumerate(halves)]
    np.testing.assert_allclose(pd.concat(parts).loc[whole.index, "score"], whole["score"], rtol=1e-3)


@pytest.mark.slow
def test_a_unit_in_two_calls_is_pooled_from_the_images_of_each(made: Made, small_data: Path, tmp_path: Path) -> None:
    table = made.table("test")
    unit = unit_of(table).value_counts().index[0]
    rows = table[unit_of(table) == unit]
    first, rest = (
        predict(made, small_data / "images", some, tmp_path / name)
        for name, some in (("first", rows.head(1)), ("rest", rows.iloc[1:]))
    )
    assert first["id"].tolist() == rest["id"].tolist() == [unit]
    assert (first["images"].item(), rest["images"].item()) == (1, len(rows) - 1)


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_left_out_and_the_others_are_pooled(
    made: Made, small_data: Path, tmp_path: Path
) -> None:
    table = made.table("test")
    unit = unit_of(table).value_counts().index[0]
    rows = table[unit_of(table) == unit]
    images = tmp_path / "images"
    images.mkdir()
    for name in rows["image_name"]:
        shutil.copy(small_data / "images" / f"{name}.png", images)
    (images / f"{rows['image_name'].iloc[0]}.png").write_bytes(b"no image")
    left = predict(made, images, rows, tmp_path / "left", "--on-unreadable", "drop")
    without = predict(made, small_data / "images", rows.iloc[1:], tmp_path / "without")
    pd.testing.assert_frame_equal(left, without)
    assert pd.read_csv(tmp_path / "left" / "p.dropped.csv")["id"].tolist() == [rows["image_name"].iloc[0]]
    with pytest.raises(BundleError, match="each patient_id and side, which cannot be predicted from the table alone"):
        read_bundled_fallback(made.bundle)


def test_rows_whose_units_are_not_known_are_refused(made: Made, small_data: Path, tmp_path: Path) -> None:
    images, table = small_data / "images", made.table("test")
    with pytest.raises(DataError, match=r"one prediction for each patient_id and side: name a csv .* --metadata"):
        read_new_rows(made.bundle, images, None)

    def refused(changed: pd.DataFrame, words: str) -> None:
        changed.to_csv(tmp_path / "new.csv", index=False)
        with pytest.raises(DataError, match=words):
            read_new_rows(made.bundle, images, tmp_path / "new.csv")

    refused(table.drop(columns="side"), r"no column 'side' \(predict_per\)")
    refused(table.assign(side=table["side"].where(table.index > 0)), "row 2 without a value in 'side'")
    refused(table.drop(columns="patient_id"), "no column 'patient_id'")
    rows = read_new_rows(made.bundle, images, made.folder / "test.csv")
    assert rows.missing == ()


def test_images_scored_apart_are_units_apart_whatever_they_are_called() -> None:
    ensemble = unfitted_ensemble(predict_per={"columns": ["side"], "target": "any", "pooling": "mean"})
    photos = [Photo("a.png", b"", unit=text) for text in ("L", "L", "L (2)")]
    assert _units(ensemble, photos, together=False).is_unique


def test_the_manifest_says_what_is_predicted_and_older_readers_refuse_it(made: Made) -> None:
    manifest = made.bundle.manifest
    assert manifest["format"] == 2, "a reader of format 1 would predict images"
    assert manifest["predict_per"] == {"columns": SIDES, "target": "any", "pooling": "learned"}
    train = made.table("train")
    units = train.assign(unit=unit_of(train)).groupby("unit")["target"].max()
    assert manifest["training"]["rows"] == len(units)
    assert manifest["training"]["positives"] == int((units == "1").sum())
    costs = json.loads(made.bundle.read("costs.json"))
    assert not any("group" in entry["without"] for entry in costs), "a column that names units cannot be missing"
    assert any("age" in entry["without"] for entry in costs)


@pytest.mark.slow
def test_evaluate_counts_units(
    made: Made, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "validation"
    labels = made.folder / "train.csv"
    assert run_cli(
        "evaluate", "--bundle", str(made.folder / "units.zip"), "--images", str(small_data / "images"), "--labels",
        str(labels), "--out", str(folder),
    ) == 0  # fmt: skip
    train = made.table("train")
    units = train.assign(unit=unit_of(train)).groupby("unit", sort=False)["target"].max()
    content = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert content["unit"] == "unit"
    assert content["found"]["rows"] == len(units)
    assert content["found"]["positives"] == int((units == "1").sum())
    assert content["found"]["groups"] == train["patient_id"].nunique()
    assert f"on {len(units)} units of" in " ".join(capsys.readouterr().out.split())
    page = (folder / "evaluation.html").read_text(encoding="utf-8")
    assert "AUC on these units" in page
    assert f"{len(units)} units of {len(train)} images, pooled by learned" in page
    written = pd.read_csv(folder / "predictions.csv", dtype={"id": str})
    assert written["target"].tolist() == units.loc[written["id"]].astype(int).tolist()


@pytest.mark.slow
def test_recalibrate_by_labels_moves_the_risks_of_units(made: Made, small_data: Path, tmp_path: Path) -> None:
    train = made.table("train")
    risk = predict(made, small_data / "images", train, tmp_path / "p").set_index("id")["p_calibrated"]
    positive = (risk.rank(pct=True) > 0.5) ^ (np.arange(len(risk)) % 4 == 0)  # far more than in training, by risk
    labels = train.assign(target=np.where(positive.loc[unit_of(train)], "1", "0"))
    labels.to_csv(tmp_path / "labels.csv", index=False)
    assert run_cli(
        "recalibrate", "--bundle", str(made.folder / "units.zip"), "--images", str(small_data / "images"), "--labels",
        str(tmp_path / "labels.csv"), "--out", str(tmp_path / "moved.zip"), "-q",
    ) == 0  # fmt: skip
    moved = read_bundle(tmp_path / "moved.zip")
    assert moved.manifest["format"] == 2
    units = labels.assign(unit=unit_of(labels)).groupby("unit")["target"].max()
    entry = moved.manifest["recalibration"]
    assert (entry["rows"], entry["positives"]) == (len(units), int((units == "1").sum()))


@pytest.mark.slow
def test_the_app_shows_the_risk_of_the_unit_beside_each_image(made: Made, small_data: Path, tmp_path: Path) -> None:
    table = made.table("test")
    rows = table[table["patient_id"] == table["patient_id"].value_counts().index[0]].head(4)
    rows = rows.assign(side=["L", "R", "L", "R"][: len(rows)], age_approx="55", sex="female")
    rows = rows.assign(anatom_site_general_challenge="torso")
    expected = predict(made, small_data / "images", rows, tmp_path / "p").set_index("id")
    ensemble = Ensemble(made.bundle, device="cpu")
    files = [small_data / "images" / f"{name}.png" for name in rows["image_name"]]
    photos = [Photo(f.name, f.read_bytes(), "torso", side) for f, side in zip(files, rows["side"], strict=True)]
    reading = read_patient(ensemble, photos, age=55, sex="female")
    for lesion, unit in zip(reading.lesions, unit_of(rows), strict=True):
        assert lesion.unit == unit[-1]
        assert lesion.p_calibrated == pytest.approx(expected.loc[unit, "p_calibrated"], abs=1e-6)
        assert "Its risk is" not in lesion.standing.sentence
    with pytest.raises(DataError, match=f"{files[0].name}: no side is given"):
        read_patient(ensemble, [Photo(files[0].name, photos[0].data)])
    client = TestClient(make_app(ensemble), base_url="http://127.0.0.1")
    sent = [("pictures", (photo.name, photo.data, "image/png")) for photo in photos]
    data = {"together": "yes", "age": "55", "sex": "female", "site": "torso", "unit_of": rows["side"].tolist()}
    page = client.post("/", files=sent, data=data, headers={"Origin": "http://127.0.0.1"}).text
    assert "There is one risk for each patient_id and side, called a unit, not for each image." in page
    assert f"{len(photos)} images show 2 of them" in page
    assert "Calibrated risk of L" in page


@pytest.mark.slow
def test_a_group_can_be_the_unit_and_its_pooling_one_without_a_fit(
    bundled_experiment: Path, small_data: Path, tmp_path: Path
) -> None:
    made = make(bundled_experiment, tmp_path / "made", predict_per={"columns": ["group"], "pooling": ["noisy_or"]})
    assert made.bundle.pooling == "noisy_or"
    rows = read_new_rows(made.bundle, small_data / "images", made.folder / "test.csv")
    found = predict_rows(made.bundle, rows, tmp_path / "work", QUIET)
    before = pd.read_parquet(made.experiment.folder / "predictions.parquet")
    np.testing.assert_array_equal(found["score"], before["score"])
    assert found["id"].tolist() == before["id"].tolist()
    photos = [Photo(f.name, f.read_bytes()) for f in sorted((small_data / "images").glob("*.png"))[:2]]
    together = read_patient(Ensemble(made.bundle, device="cpu"), photos).lesions
    assert {lesion.unit for lesion in together} == {"all images"}
    assert len({lesion.score for lesion in together}) == 1


@pytest.mark.parametrize("what", ["images", "other units", "no file"])
def test_a_sample_of_other_ids_is_refused_before_an_image_is_predicted(
    made: Made, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    table, sample = made.table("test"), tmp_path / "sample.csv"
    if what != "no file":
        names = table["image_name"] if what == "images" else unit_of(table).drop_duplicates().iloc[1:]
        pd.DataFrame({"id": names, "target": 0}).to_csv(sample, index=False)
    said = {
        "images": "sample.csv has a row for each image",
        "other units": "Check that the rows to predict (--metadata) and --sample have the same ids",
        "no file": "no such file: correct --sample",
    }[what]
    assert run_cli(
        "predict", "--bundle", str(made.folder / "units.zip"), "--images", str(small_data / "images"), "--metadata",
        str(made.folder / "test.csv"), "--out", str(tmp_path / "p.csv"), "--submission", str(tmp_path / "s.csv"),
        "--sample", str(sample), "-q",
    ) == 2  # fmt: skip
    assert said in capsys.readouterr().err
    assert not (tmp_path / "p.csv.parts").exists()

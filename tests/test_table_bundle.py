"""A bundle of models of the table alone: predict, evaluate, recalibrate and the app need a csv and no images."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import opened_experiment
from starlette.testclient import TestClient

import dermstack.serve.predict
from dermstack.errors import BundleError, ConfigError, DataError
from dermstack.serve.app import make_app
from dermstack.serve.bundle import FORMAT_OF_TABLES, Bundle, read_bundle, write_manifest
from dermstack.serve.ensemble import read_bundled_fallback
from dermstack.serve.expectations import COSTS_FILE, read_costs
from dermstack.serve.new_rows import read_new_rows
from dermstack.serve.patient import Ensemble, Photo, read_patient, read_row
from dermstack.serve.predict import predict_rows
from dermstack.serve.questions import short_number
from dermstack.serve.write_bundle import write_bundle
from stack.console import Out

QUIET = Out(quiet=True)
CONFIG = """
experiment: table
runs: runs
cache: cache
threads: 1
data:
  name: table
  train: train.csv
  test: test.csv
  columns: {id: lesion, group: patient, target: y, age: age, sex: sex, numeric: [width], categorical: [kind]}
folds: {k: 3}
stackers:
  - {name: lgb, kind: lightgbm, runs: [], bags: 1}
  - {name: lr, kind: logistic, runs: []}
  - {name: upper, kind: logistic, runs: [lgb], features: {columns: false, relative: []}}
"""


class Made(NamedTuple):
    folder: Path
    bundle: Bundle


def rows(n: int, prefix: str, rng: np.random.Generator) -> pd.DataFrame:
    table = pd.DataFrame({
        "lesion": [f"{prefix}{row:04}" for row in range(n)],
        "patient": [f"{prefix}P{number}" for number in np.sort(rng.integers(0, n // 4, n))],
        "age": rng.integers(20, 80, n),
        "sex": rng.choice(["male", "female"], n),
        "width": rng.gamma(2, 2, n).round(2),
        "kind": rng.choice(["a", "b", "c"], n),
    })  # fmt: skip
    logit = -3 + 0.4 * table["width"] + 1.5 * (table["kind"] == "a")
    return table.assign(y=(rng.random(n) < 1 / (1 + np.exp(-logit))).astype(int))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(0)
    rows(420, "a", rng).to_csv(folder / "train.csv", index=False)
    test = rows(120, "t", rng)
    test.to_csv(folder / "labelled.csv", index=False)
    test.drop(columns="y").to_csv(folder / "test.csv", index=False)
    (folder / "c.yaml").write_text(CONFIG)
    assert run_cli("stack", "-c", str(folder / "c.yaml"), "-q") == 0
    assert run_cli("bundle", "-c", str(folder / "c.yaml"), "--out", str(folder / "t.zip"), "-q") == 0
    return Made(folder, read_bundle(folder / "t.zip"))


def predicted(bundle: Bundle, csv: Path, work: Path) -> pd.DataFrame:
    return predict_rows(bundle, read_new_rows(bundle, None, csv), work)


def test_the_test_rows_get_the_bytes_of_the_submission_and_no_image_is_asked_for(made: Made, tmp_path: Path) -> None:
    assert made.bundle.manifest["format"] == FORMAT_OF_TABLES  # which an earlier dermstack refuses by name
    assert not made.bundle.takes_images
    out, sent = tmp_path / "p.csv", tmp_path / "s.csv"
    assert run_cli(
        "predict", "--bundle", str(made.folder / "t.zip"), "--metadata", str(made.folder / "test.csv"), "--out",
        str(out), "--submission", str(sent), "-q",
    ) == 0  # fmt: skip
    submission = made.folder / "runs" / "table" / "submission.csv"
    assert sent.read_bytes() == submission.read_bytes()
    assert list(pd.read_csv(out)) == ["id", "score", "p_calibrated"]  # novelty is a property of images


def test_the_cost_of_missing_columns_is_counted_so_that_the_time_left_is_seen(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: dict[str, int] = {}

    @contextmanager
    def bar(self: Out, label: str, total: int, unit: str = "images") -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        assert sum(done) == total
        counted[label] = total

    monkeypatch.setattr(Out, "bar", bar)
    assert run_cli("bundle", "-c", str(made.folder / "c.yaml"), "--out", str(tmp_path / "t.zip"), "-q") == 0
    assert counted["cost of missing columns"] == len(made.bundle.json(COSTS_FILE))


def test_rows_in_several_parts_have_the_scores_of_one(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    csv = made.folder / "test.csv"
    whole = predicted(made.bundle, csv, tmp_path / "whole")
    monkeypatch.setattr(dermstack.serve.predict, "MAX_PART_IMAGES", 40)
    parts = predicted(made.bundle, csv, tmp_path / "parts")
    assert len(list((tmp_path / "parts").glob("part_*"))) > 2
    pd.testing.assert_frame_equal(parts, whole, rtol=1e-6)


def test_what_is_given_in_vain_and_what_is_missing_is_named(made: Made, bundled_experiment: Path) -> None:
    csv = made.folder / "test.csv"
    with pytest.raises(ConfigError, match="leave out --images, and name the csv with the rows"):
        read_new_rows(made.bundle, made.folder, csv)
    with pytest.raises(ConfigError, match="--metadata is missing"):
        read_new_rows(made.bundle, None, None)
    of_images = read_bundle(bundled_experiment / "bundle.zip")
    with pytest.raises(ConfigError, match="--images is missing"):
        read_new_rows(of_images, None, csv)
    with pytest.raises(BundleError, match="no image can be unreadable: leave out --on-unreadable"):
        read_bundled_fallback(made.bundle)
    with pytest.raises(DataError, match="read_row"):
        read_patient(Ensemble(made.bundle), [Photo("a.png", b"")])
    with pytest.raises(DataError, match="read_patient"):
        read_row(Ensemble(of_images))


def test_the_cost_of_a_column_that_carries_the_target_is_measured_and_told(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    costs = read_costs(made.bundle)
    names = {csv: name for name, csv in made.bundle.table_inputs.items()}
    without_width, without_sex = costs.of([names["width"]]), costs.of(["sex"])
    assert without_width is not None
    assert without_width.value < -0.05
    assert without_sex is None or abs(without_sex.value) < 0.05
    table = pd.read_csv(made.folder / "test.csv").drop(columns="width")
    table.to_csv(tmp_path / "less.csv", index=False)
    command = ["predict", "--bundle", str(made.folder / "t.zip"), "--metadata", str(tmp_path / "less.csv")]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"'width'; without it, AUC on the training rows changes by {without_width.value:+.4f}" in said
    assert "120 rows of" in said


def test_an_infinite_cell_is_named(made: Made, tmp_path: Path) -> None:
    table = pd.read_csv(made.folder / "test.csv")
    table.loc[7, "width"] = np.inf
    table.to_csv(tmp_path / "odd.csv", index=False)
    assert "t0007" in " ".join(read_new_rows(made.bundle, None, tmp_path / "odd.csv").notes)


def test_evaluate_finds_the_auc_of_the_predictions_and_recalibrate_keeps_their_order(
    made: Made, tmp_path: Path
) -> None:
    labels, bundle = made.folder / "labelled.csv", str(made.folder / "t.zip")
    assert run_cli("evaluate", "--bundle", bundle, "--labels", str(labels), "--out", str(tmp_path / "e"), "-q") == 0
    found = json.loads((tmp_path / "e" / "evaluation.json").read_text())
    score = predicted(made.bundle, labels, tmp_path / "work")["score"].to_numpy()
    y = pd.read_csv(labels)["y"].to_numpy()
    above = score[y == 1][:, None] - score[y == 0][None]
    assert found["found"]["auc"]["value"] == pytest.approx(((above > 0) + 0.5 * (above == 0)).mean())
    assert found["unit"] == "row"
    assert "120 rows" in " ".join((tmp_path / "e" / "evaluation.html").read_text().split())
    other = tmp_path / "other.zip"
    assert run_cli("recalibrate", "--bundle", bundle, "--prevalence", "0.05", "--out", str(other), "-q") == 0
    moved = predicted(read_bundle(other), labels, tmp_path / "moved")
    np.testing.assert_array_equal(moved["score"], score)
    assert moved["p_calibrated"].mean() < y.mean() / 2
    assert run_cli("recalibrate", "--bundle", bundle, "--metadata", str(made.folder / "test.csv"), "-q") == 0


def test_commands_do_not_speak_of_images_where_there_are_none(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, metadata = str(made.folder / "t.zip"), str(made.folder / "test.csv")
    labels = pd.read_csv(made.folder / "labelled.csv")
    labels.drop(columns=["patient", "age"]).to_csv(tmp_path / "labelled.csv", index=False)
    of_labels = ("--labels", str(tmp_path / "labelled.csv"))
    for command, *options in (
        ("predict", "--metadata", metadata, "--out", str(tmp_path / "p.csv")),
        ("evaluate", *of_labels, "--out", str(tmp_path / "e")),
        ("recalibrate", "--metadata", metadata),
        ("recalibrate", *of_labels, "--out", str(tmp_path / "labels.zip")),
        ("recalibrate", "--metadata", metadata, "--prevalence", "0.6", "--out", str(tmp_path / "prevalence.zip")),
    ):
        run_cli(command, "--bundle", bundle, *options)
        printed = "".join(capsys.readouterr())
        assert "row" in printed, command
        assert "image" not in printed, command


def test_the_app_predicts_a_row_of_values_as_predict_does(made: Made, tmp_path: Path) -> None:
    ensemble = Ensemble(made.bundle)
    reading = read_row(ensemble, age=50, sex="male", values={"width": "9"})
    one = pd.DataFrame({"lesion": ["x"], "patient": ["p"], "age": [50], "sex": ["male"], "width": [9], "kind": [""]})
    one.to_csv(tmp_path / "one.csv", index=False)
    expected = predicted(made.bundle, tmp_path / "one.csv", tmp_path / "work")
    assert reading.lesions[0].score == expected["score"].item()
    assert reading.lesions[0].p_calibrated == expected["p_calibrated"].item()
    assert any("'kind'" in note for note in reading.notes)
    with pytest.raises(DataError, match="width 'wide' is not a number"):
        read_row(ensemble, values={"width": "wide"})
    client = TestClient(make_app(ensemble), base_url="http://127.0.0.1")
    form = client.get("/").text
    assert 'type="file"' not in form
    assert "Predict the risk" in form
    number = [question.csv for question in ensemble.questions].index("width")
    fields = {"age": (None, "50"), "sex": (None, "male"), f"column_{number}": (None, "9")}
    page = client.post("/", files=fields, headers={"Origin": "http://127.0.0.1"}).text
    assert f"<dd>{reading.lesions[0].score:.4f}</dd>" in page
    for word in ("Heat map", "cannot be read", "image"):
        assert word not in page.replace("image/svg", "").replace("without images", "")


@pytest.mark.slow
def test_a_bundle_of_units_of_rows_gives_the_bytes_of_the_submission(made: Made, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    text = CONFIG.replace("train.csv", str(made.folder / "train.csv")).replace(
        "test.csv", str(made.folder / "test.csv")
    )
    config.write_text(text + "predict_per: {columns: [patient], pooling: [mean, maximum]}\n")
    assert run_cli("stack", "-c", str(config), "-q", "--no-report") == 0
    bundle = write_bundle(opened_experiment(config), tmp_path / "b", QUIET)
    assert bundle.unit == "unit"
    command = ["predict", "--bundle", str(tmp_path / "b"), "--metadata", str(made.folder / "test.csv"), "-q"]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv"), "--submission", str(tmp_path / "s.csv")) == 0
    assert (tmp_path / "s.csv").read_bytes() == (tmp_path / "runs" / "table" / "submission.csv").read_bytes()


def test_what_needs_an_image_is_refused(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = made.folder / "c.yaml"
    assert run_cli("bundle", "-c", str(config), "--out", str(tmp_path / "b.zip"), "--onnx") == 2
    assert "has no image model to export: leave out --onnx" in " ".join(capsys.readouterr().err.split())
    for changes, says in (
        ({"features": {**made.bundle.manifest["features"], "shortcuts": True}}, "no image model"),
        ({"fallback": True}, "no image model"),
        ({"stackers": [], "scales": {}, "second_stage": None}, "names no model"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        content = {key: value for key, value in made.bundle.manifest.items() if key not in {"files", "format"}}
        write_manifest(folder, content | changes)
        with pytest.raises(BundleError, match=says):
            read_bundle(folder)


def test_the_model_card_speaks_of_rows_of_the_table(made: Made) -> None:
    card = (made.folder / "runs" / "table" / "model_card.md").read_text()
    assert "Input: a row of the table, without an image: age and sex, if known, with 1 column of numbers" in card
    assert "--images" not in card
    assert "rulers" not in card


@pytest.mark.parametrize(
    ("value", "shown"), [(0.00119, "0.00119"), (61.62, "61.6"), (1640.2, "1,640"), (-2500.0, "-2,500"), (0.0, "0")]
)
def test_numbers_of_the_form_are_short_and_have_no_exponent(value: float, shown: str) -> None:
    assert short_number(value) == shown

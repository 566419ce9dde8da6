"""`dermstack recalibrate`: the risks of the new bundle, its honest estimate, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli, small_config
from imported_experiment import command_error
from scipy.special import expit, logit

from dermstack.errors import BundleError, ConfigError
from dermstack.serve.bundle import Bundle, read_bundle, write_manifest
from dermstack.serve.ensemble import read_fitted
from dermstack.serve.expectations import read_promise
from dermstack.serve.new_rows import NewRows
from dermstack.serve.predict import Predicted, PredictOptions
from dermstack.serve.recalibrate import (
    Recalibrated,
    cross_fitted,
    parts_of_groups,
    read_prevalence,
    recalibrate_by_prevalence,
    recalibrate_to_bundle,
    show_numbers_alone,
)
from stack.console import Out
from stack.metrics.closed_test import LEVEL, NONE, closed_test
from stack.metrics.measures import measure

MODEL = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}


def test_the_risks_after_are_those_of_a_recalibration_without_the_rows_own_part(rng: np.random.Generator) -> None:
    group = np.repeat(np.arange(150), 4)
    x = rng.normal(-2, 1.5, 600)
    y, p = (rng.random(600) < expit(0.6 * x - 0.8)).astype(int), expit(x)
    after, chosen = cross_fitted(y, p, group)
    part = parts_of_groups(y == 1, group)
    assert len(chosen) == part.max() + 1 == 10
    for number in range(10):
        held = part == number
        assert not set(group[held]) & set(group[~held])
        assert y[held].sum() > 0
        test = closed_test(y[~held], p[~held], group[~held])
        np.testing.assert_allclose(logit(after[held]), test.slope * x[held] + test.intercept, rtol=1e-6, atol=1e-9)


def test_risks_that_are_right_seem_no_better_after_recalibration(rng: np.random.Generator) -> None:
    """In-sample the log loss never rises; on held-out parts, changes that follow noise show."""
    p = expit(rng.normal(-1, 1, 400))
    y = (rng.random(400) < p).astype(int)
    after, chosen = cross_fitted(y, p, np.arange(400))
    assert chosen == [NONE] * 10
    np.testing.assert_array_equal(after, p)


def test_with_two_patients_of_a_class_nothing_is_tested_and_nothing_changed() -> None:
    y, group = np.array([1, 1, 0, 0, 0, 0]), np.array(list("abcdef"))
    after, chosen = cross_fitted(y, np.full(6, 0.01), group)
    assert chosen == [NONE, NONE]
    assert (after == 0.01).all()


def test_a_prevalence_is_auto_or_a_share() -> None:
    assert read_prevalence("auto") is None
    assert read_prevalence("0.1") == 0.1
    for text in ("0", "1", "2", "-0.1", "nan", "inf", "10%", ""):
        with pytest.raises(ConfigError, match="--prevalence"):
            read_prevalence(text)


def test_options_that_contradict_one_another_are_refused_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    start = ("recalibrate", "--bundle", "none")
    cases = {
        "--labels and --prevalence": ("--labels", "y.csv", "--prevalence", "auto", "--images", "i", "--out", "o"),
        "--out is missing": ("--labels", "y.csv", "--images", "i"),
        "give --labels, too": ("--target-column", "t", "--images", "i"),
        "choose refuse": ("--images", "i", "--on-unreadable", "guess"),
    }
    for message, options in cases.items():
        assert message in command_error(capsys, *start, *options)


def test_a_bundle_of_images_needs_images_for_what_describes_them(
    bundled_experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("recalibrate", "--bundle", str(bundled_experiment / "bundle.zip"), "--out", "o")
    assert "--images is missing" in command_error(capsys, *start, "--prevalence", "auto")
    assert "give --images, too" in command_error(capsys, *start, "--prevalence", "0.1", "--metadata", "m.csv")


def estimated(monkeypatch: pytest.MonkeyPatch, p: np.ndarray, prevalence: float | None, out: Out) -> Recalibrated:
    """The recalibration by a prevalence of a bundle trained at 0.2, whose risks of new images are ``p``."""
    ids = pd.Series([f"i{number}" for number in range(len(p))], dtype="str")
    rows = NewRows(pd.DataFrame({"id": ids, "group": ids}), [], ())
    made = pd.DataFrame({"id": ids, "score": p, "p_calibrated": p})
    monkeypatch.setattr("dermstack.serve.recalibrate.predict_with_dropped", lambda *given: Predicted(made, []))
    y = np.arange(200) % 5 == 0
    promise = SimpleNamespace(measures=measure(y, np.where(y, 0.3, 0.18), np.full(200, 0.2), np.arange(200), draws=20))
    monkeypatch.setattr("dermstack.serve.recalibrate.read_promise", lambda bundle: promise)
    bundle = Bundle(Path("none"), {"image_runs": ["net"], "training": {"rows": 1000, "positives": 200}})
    return recalibrate_by_prevalence(bundle, prevalence, rows, Path("none"), out, PredictOptions())


def test_an_estimated_prevalence_is_used_only_where_it_differs_and_warns_of_another_number(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    def risks(prevalence: float) -> np.ndarray:
        return expit(2 * (rng.normal(size=3000) + 2 * (rng.random(3000) < prevalence)) - 2 + logit(0.2))

    out = Out()
    rare = risks(0.05)
    found = estimated(monkeypatch, rare, None, out).entry
    assert found is not None
    assert found["prevalence"] == pytest.approx(0.05, abs=0.015)
    assert expit(logit(rare) + found["intercept"]).mean() == pytest.approx(found["prevalence"], rel=1e-5)
    assert estimated(monkeypatch, risks(0.2), None, out).entry is None
    assert "fit a prevalence" not in capsys.readouterr().out
    given = estimated(monkeypatch, rare, 0.3, out).entry
    assert given is not None
    assert given["prevalence"] == 0.3
    assert "fit a prevalence of 0.0" in capsys.readouterr().out
    assert given["se"] < found["se"], "an estimate adds its own error"


@pytest.fixture(scope="module")
def folder(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one frozen model, its predictions, and labels.csv of another hospital.

    There the odds of every image are four times those of the bundle, whatever the images show: the truth is known.
    """
    folder = tmp_path_factory.mktemp("recalibrate")
    config = str(small_config(small_data, folder, image_models=[MODEL], stackers=[], blend={"methods": ["mean"]}))
    for command in (["oof"], ["stack", "--no-report"], ["bundle", "--out", str(folder / "bundle")]):
        assert run_cli(command[0], "--config", config, "--quiet", *command[1:]) == 0
    rows = pd.read_csv(small_data / "train.csv", dtype=str).drop(columns="diagnosis")
    rows.to_csv(folder / "labels.csv", index=False)
    assert run_cli(*predict(folder, small_data, folder / "bundle", folder / "before.csv")) == 0
    risk = expit(logit(pd.read_csv(folder / "before.csv")["p_calibrated"]) + np.log(4))
    rows["target"] = (np.random.default_rng(0).random(len(rows)) < risk).astype(int)
    rows.to_csv(folder / "labels.csv", index=False)
    return folder


def predict(folder: Path, data: Path, bundle: Path, csv: Path) -> list[str]:
    return [
        "predict", "--bundle", str(bundle), "--images", str(data / "images"), "--metadata", str(folder / "labels.csv"),
        "--out", str(csv), "--device", "cpu", "--quiet",
    ]  # fmt: skip


def by_labels(folder: Path, data: Path, labels: Path, out: Path) -> list[str]:
    return [
        "recalibrate", "--bundle", str(folder / "bundle"), "--images", str(data / "images"), "--labels", str(labels),
        "--out", str(out), "--device", "cpu",
    ]  # fmt: skip


@pytest.mark.slow
def test_labels_move_the_risks_and_nothing_else(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, parent = tmp_path / "new.zip", read_bundle(folder / "bundle")
    assert run_cli(*by_labels(folder, small_data, folder / "labels.csv", target)) == 0
    printed = capsys.readouterr().out
    made = read_bundle(target)
    entry = made.manifest["recalibration"]
    before, y = pd.read_csv(folder / "before.csv"), pd.read_csv(folder / "labels.csv")
    y = y.set_index("image_name").loc[before["id"]]
    test = closed_test(y["target"], before["p_calibrated"], y["patient_id"])
    assert (entry["parent"], entry["kind"]) == (parent.fingerprint, test.chosen)
    assert test.chosen == LEVEL
    assert test.level_found.low < np.log(4) < test.level_found.high
    assert (entry["slope"], entry["intercept"]) == pytest.approx((test.slope, test.intercept))
    assert entry["rows"] == len(y)
    assert parent.fingerprint in printed
    assert not [path for path in tmp_path.iterdir() if path != target]

    assert run_cli(*predict(folder, small_data, target, tmp_path / "after.csv")) == 0
    after = pd.read_csv(tmp_path / "after.csv")
    columns = ["id", "score", "novelty", "far"]
    pd.testing.assert_frame_equal(after[columns], before[columns], check_exact=True)
    moved = entry["slope"] * logit(before["p_calibrated"]) + entry["intercept"]
    np.testing.assert_allclose(logit(after["p_calibrated"]), moved, rtol=1e-9)
    assert after["p_calibrated"].sum() == pytest.approx(y["target"].sum(), rel=1e-3)

    for old, new in zip(read_promise(parent).points, read_promise(made).points, strict=True):
        called = [(rows["p_calibrated"] >= of.threshold).tolist() for rows, of in ((before, old), (after, new))]
        assert called[0] == called[1], "a threshold calls the same images as before"
    record = json.loads(made.read("recalibration.json"))
    assert record["performance"]["parts"] == 10
    assert not any(name in made.read("recalibration.json").decode() for name in before["id"])

    assert "recalibrate" not in command_error(capsys, *by_labels(folder, small_data, folder / "labels.csv", target))[:9]
    again = ["recalibrate", "--bundle", str(target), "--prevalence", "0.1", "--out", str(tmp_path / "twice")]
    refused = command_error(capsys, *again)
    assert f"{target} is itself recalibrated: give its parent, bundle {parent.fingerprint}" in refused
    evaluation = ["evaluate", *by_labels(folder, small_data, folder / "labels.csv", tmp_path / "ev")[1:]]
    evaluation[2] = str(target)
    assert run_cli(*evaluation) == 0
    assert "was recalibrated with these very labels" in capsys.readouterr().out


@pytest.mark.slow
def test_a_prevalence_moves_the_odds_without_any_image(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, parent = tmp_path / "new", read_bundle(folder / "bundle")
    command = ["recalibrate", "--bundle", str(folder / "bundle"), "--prevalence", "0.02", "--out", str(target)]
    assert run_cli(*command) == 0
    assert "images of each class look as in training" in capsys.readouterr().out
    training = parent.manifest["training"]
    odds = 0.02 / 0.98 / (training["positives"] / (training["rows"] - training["positives"]))
    assert read_bundle(target).manifest["recalibration"]["intercept"] == pytest.approx(np.log(odds))
    assert run_cli(*predict(folder, small_data, target, tmp_path / "after.csv")) == 0
    before, after = (pd.read_csv(path)["p_calibrated"] for path in (folder / "before.csv", tmp_path / "after.csv"))
    np.testing.assert_allclose(after / (1 - after), before / (1 - before) * odds, rtol=1e-9)
    assert "exists already" in command_error(capsys, *command)


@pytest.mark.slow
def test_images_alone_tell_how_many_labels_are_needed(
    folder: Path, small_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["recalibrate", "--bundle", str(folder / "bundle"), "--images", str(small_data / "images")]
    assert run_cli(*command, "--metadata", str(folder / "labels.csv"), "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert "Labels needed" in printed
    assert "twice too high" in printed
    assert printed.count("warning") == printed.count("no prediction, no row in the csv") == 1, "60 images have no label"


def test_columns_that_the_images_lack_are_named_with_labels_and_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `predict` and `evaluate`: risks that were recalibrated without age may be wrong for images with it."""
    here = "dermstack.serve.recalibrate"
    monkeypatch.setattr(f"{here}.table_notes", lambda bundle, rows: ["no age: without it, AUC changes by -0.1"])
    monkeypatch.setattr(f"{here}.lacking_columns", lambda bundle, frame, missing: (["age"], None))
    monkeypatch.setattr(f"{here}._predicted", lambda *_, **__: (pd.DataFrame({"p_calibrated": [0.1, 0.2]}), None))
    monkeypatch.setattr(f"{here}.recalibrate_by_prevalence", lambda *_, **__: Recalibrated(None))
    bundle, rows = Bundle(Path("none"), {"image_runs": ["net"]}), NewRows(pd.DataFrame(), [], ("age",))
    for command in (
        lambda: show_numbers_alone(bundle, rows, Out(), PredictOptions()),
        lambda: recalibrate_to_bundle(bundle, Path("none.zip"), Out(), rows=rows, options=PredictOptions()),
    ):
        command()
        printed = capsys.readouterr().out
        assert "warning: no age: without it, AUC changes by -0.1" in printed
        assert "no age: what is found here holds only for images that lack this, as these do" in printed


@pytest.mark.slow
def test_inverted_labels_are_refused(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels, before = pd.read_csv(folder / "labels.csv", dtype=str), pd.read_csv(folder / "before.csv")
    order = before.set_index("id")["p_calibrated"].rank().loc[labels["image_name"]].to_numpy()
    noise = np.random.default_rng(0).normal(0, 60, len(order))
    labels["target"] = (order + noise < np.median(order)).astype(int)
    labels.to_csv(tmp_path / "y.csv", index=False)
    error = command_error(capsys, *by_labels(folder, small_data, tmp_path / "y.csv", tmp_path / "new"))
    assert "check whether the labels are inverted" in error
    labels.assign(target=0).to_csv(tmp_path / "y.csv", index=False)
    error = command_error(capsys, *by_labels(folder, small_data, tmp_path / "y.csv", tmp_path / "new"))
    assert "recalibration by labels compares the risks" in error
    assert "AUC" not in error
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_manifest_that_lies_about_its_recalibration_is_refused(folder: Path, tmp_path: Path) -> None:
    command = ["recalibrate", "--bundle", str(folder / "bundle"), "--prevalence", "0.3", "--out", str(tmp_path / "new")]
    assert run_cli(*command, "--quiet") == 0
    made = read_bundle(tmp_path / "new")
    entry, content = made.manifest["recalibration"], {k: v for k, v in made.manifest.items() if k != "files"}
    changes: tuple[dict[str, object], ...] = (
        {"slope": -1.0}, {"slope": 0.0}, {"slope": float("nan")}, {"slope": "1"}, {"intercept": float("inf")},
        {"parent": "../../etc"}, {"kind": "code"}, {"prevalence": 1.5}, {"se": -1.0},
    )  # fmt: skip
    for change in changes:
        write_manifest(tmp_path / "new", content | {"recalibration": entry | change})
        with pytest.raises(BundleError, match=r"invalid|damaged"):
            read_bundle(tmp_path / "new")
    write_manifest(tmp_path / "new", content)
    read_fitted(read_bundle(tmp_path / "new"))
    shutil.copy(folder / "bundle" / "blend" / "calibration.json", tmp_path / "new" / "blend")
    if '"kind": "rescaled"' not in (folder / "bundle" / "blend" / "calibration.json").read_text():
        broken: Bundle = write_manifest(tmp_path / "new", content)
        with pytest.raises(BundleError, match="names a recalibration"):
            read_fitted(broken)


@pytest.mark.slow
def test_a_parent_whose_calibration_is_none_is_refused_in_one_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A prevalence needs no image, so nothing else of the parent is read before its calibration."""
    parent = tmp_path / "parent"
    shutil.copytree(folder / "bundle", parent)
    content = {key: value for key, value in read_bundle(parent).manifest.items() if key not in ("files", "format")}
    command = ["recalibrate", "--bundle", str(parent), "--prevalence", "0.02", "--out", str(tmp_path / "new"), "-q"]
    place = parent / "blend" / "calibration.json"
    for text in ("{}", "true", "[]", '"x"', '{"kind": "platt"}', '{"kind": {}}', '{"kind": "platt", "slope": null}'):
        place.write_text(text)
        write_manifest(parent, content)
        assert "blend/calibration.json cannot be read" in command_error(capsys, *command)
    shutil.copy(folder / "bundle" / "blend" / "calibration.json", place)
    (parent / "model_card.md").write_bytes(b"card \xff")
    write_manifest(parent, content)
    assert run_cli(*command) == 0
    assert read_bundle(tmp_path / "new").manifest["recalibration"]["prevalence"] == 0.02

"""The review band from the config to what a person sees: stack, report, bundle, predict, evaluate, app."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from fuzz_seeds_runs import manifest
from html_page import Page
from imported_experiment import command_error, import_frames, opened_experiment, predictions, write_experiment
from pydantic import ValidationError

from dermstack.serve.bundle import Bundle, read_bundle, write_manifest
from dermstack.serve.evaluate import cut_columns
from dermstack.serve.expectations import measure_promise
from dermstack.serve.manifest import Manifest
from dermstack.serve.patient import Ensemble, Photo, read_patient
from stack.metrics.risk_control import guaranteed_threshold
from stack.review import review_of
from stack.settings.config import config_of
from stack.store import read_run
from stack.tables.columns import TableColumns

Capture = pytest.CaptureFixture[str]
BAND = {"sensitivity": 0.8, "specificity": 0.7, "confidence": 0.8, "test": "approximate"}


@pytest.fixture(scope="module")
def stacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of two imported runs that was stacked without a review band."""
    folder = tmp_path_factory.mktemp("stacked")
    path = write_experiment(folder)
    experiment = opened_experiment(path)
    for seed, name in enumerate(("a", "b")):
        import_frames(experiment, name, *predictions(experiment, noise=1.0 + seed, seed=seed))
    assert run_cli("stack", "-c", str(path), "-q", "--no-report") == 0
    return path


def with_review(path: Path, review: dict[str, Any] | None) -> Path:
    """The same experiment with another review band."""
    settings = yaml.safe_load(path.read_text())
    settings.pop("review", None)
    made = path.with_name("with_review.yaml")
    made.write_text(yaml.safe_dump(settings | ({} if review is None else {"review": review})), encoding="utf-8")
    return made


@pytest.mark.usefixtures("without_figures")
def test_stack_writes_the_band_and_a_decision_for_each_test_row_and_removes_both(
    stacked: Path, capsys: Capture
) -> None:
    folder = stacked.parent / "runs" / "elsewhere"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "old" not in path.parts}
    assert not (folder / "review.json").exists()
    for test, exact in (("exact", True), ("approximate", False)):
        path = with_review(stacked, {"sensitivity": 0.8, "ppv": 0.6, "confidence": 0.8, "test": test})
        assert run_cli("stack", "-c", str(path), "--no-report") == 0
        shown = capsys.readouterr().out
        assert "blend: complete, skipped" in shown, "the band is no input of the blend"
        assert "review: images with a calibrated risk below" in " ".join(shown.split())
        band = json.loads((folder / "review.json").read_text())["band"]
        oof = pd.read_parquet(folder / "blend" / "oof.parquet")
        train = pd.read_csv(stacked.parent / "train.csv", dtype={"isic": str}, keep_default_na=False).set_index("isic")
        rows = train.loc[oof["id"]]
        of = rows["malignant"].to_numpy(), oof["p_calibrated"].to_numpy(), rows["patient"].to_numpy()
        low = guaranteed_threshold(*of, "sensitivity", 0.8, 0.9, exact=exact)
        high = guaranteed_threshold(*of, "ppv", 0.6, 0.9, exact=exact)
        assert (band["low"]["threshold"], band["high"]["threshold"]) == (low.threshold, high.threshold)
        made = pd.read_parquet(folder / "predictions.parquet")
        p = made["p_calibrated"].to_numpy()
        expected = np.where(p < band["below"], "negative", np.where(p >= (band["above"] or 2), "positive", "review"))
        assert made["decision"].tolist() == expected.tolist()
        assert len(set(expected)) > 1
    assert run_cli("stack", "-c", str(stacked), "-q", "--no-report") == 0
    assert not (folder / "review.json").exists()
    after = {path: path.read_bytes() for path in before}
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"ledger.jsonl", "up_to_date.json"}, "the ledger has a line for each stack"


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("aim", [{"npv": 0.75}, {"sensitivity": 0.8, "specificity": 0.6}, {"sensitivity": 0.9999}])
def test_the_report_shows_the_rule_and_the_shares(aim: dict[str, float], stacked: Path, capsys: Capture) -> None:
    path = with_review(stacked, {**aim, "confidence": 0.8, "test": "approximate"})
    assert run_cli("stack", "-c", str(path), "-q") == 0
    assert "another review band" not in capsys.readouterr().out
    folder = stacked.parent / "runs" / "elsewhere"
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert ("section", "review") in [(tag, attributes.get("id")) for tag, attributes in page.tags]
    content = json.loads((folder / "review.json").read_text())
    share = content["decisions"]["review"]["value"]
    assert f"Of 1,000 images like these, about {1000 * share:.0f} go to a person" in text
    card = (folder / "model_card.md").read_text(encoding="utf-8")
    assert "All other images go to a person." in card
    assert "no fixed threshold" not in card
    if aim == {"sensitivity": 0.9999}:
        assert share == 1
        assert "are too few to show a sensitivity of at least 99.99" in text
    assert run_cli("report", "-c", str(stacked)) == 0
    assert "decisions of another review band than the report shows" in " ".join(capsys.readouterr().out.split())
    assert 'id="review"' not in (folder / "report.html").read_text(encoding="utf-8")
    assert "- The model has no fixed threshold. The" in (folder / "model_card.md").read_text(encoding="utf-8")


def test_codes_of_a_skin_tone_have_decisions_of_their_own(stacked: Path) -> None:
    experiment = opened_experiment(with_review(stacked, BAND))
    table = experiment.table
    toned = table.train.assign(fitzpatrick=np.arange(len(table.train)) % 3 + 1.0)
    columns = TableColumns(numeric={"fitzpatrick": "fitzpatrick"})
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    experiment = replace(experiment, table=replace(table, train=toned, columns=columns))
    found = review_of(experiment, blend)
    assert found is not None
    assert [of.subgroup for of in found.subgroups if of.by == "fitzpatrick"] == ["1", "2", "3"]
    promise = measure_promise(experiment, blend)
    assert [of["subgroup"] for of in promise.subgroups if of["by"] == "fitzpatrick"] == ["1", "2", "3"]
    rows, further = cut_columns(columns, promise, toned[toned["fitzpatrick"] < 3])
    assert further == {"fitzpatrick": "fitzpatrick"}
    assert set(rows["fitzpatrick"]) == {"1", "2"}


@pytest.mark.parametrize(
    ("review", "words"),
    [
        ({}, "it names no guarantee"),
        ({"ppv": 0.9}, "it names no guarantee"),
        ({"sensitivity": 0.9, "npv": 0.9}, "both `sensitivity` and `npv`"),
        ({"npv": 0.9, "ppv": 0.5, "specificity": 0.4}, "both `specificity` and `ppv`"),
        ({"sensitivity": 95}, "review.sensitivity: Input should be less than 1, got 95"),
        ({"sensitivity": 0.9, "confidence": 1}, "review.confidence"),
        ({"sensitivity": 0.9, "test": "bootstrap"}, "'exact' or 'approximate'"),
        ({"sensitivty": 0.9}, "sensitivity"),
    ],
)
def test_a_band_that_means_nothing_is_refused_when_the_config_is_read(
    review: dict[str, Any], words: str, stacked: Path, capsys: Capture
) -> None:
    assert words in command_error(capsys, "stack", "-c", str(with_review(stacked, review)))


def test_a_config_without_a_band_is_written_as_before() -> None:
    data = {"name": "d", "train": "t.csv", "columns": {"id": "i", "target": "t"}}
    assert "review" not in config_of({"experiment": "x", "data": data}).model_dump(mode="json")
    given = config_of({"experiment": "x", "data": data, "review": {"npv": 0.99}})
    assert given.model_dump(mode="json")["review"]["npv"] == 0.99


_LOW = {
    "aim": "sensitivity", "level": 0.9, "confidence": 0.9, "threshold": 0.2, "groups": 50, "rows": 60, "errors": 2,
    "most": 3, "test": "betting", "needed": None,
}  # fmt: skip
_HIGH = {**_LOW, "aim": "ppv", "threshold": 0.6}
_SHARE = {"value": 0.3, "low": 0.2, "high": 0.4}
_ENTRY = {
    "low": _LOW, "high": _HIGH, "confidence": 0.9, "below": 0.2, "above": 0.6,
    "shares": dict.fromkeys(("negative", "review", "positive"), _SHARE),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"below": 0.3}, "above the threshold of its guarantee"),
        ({"above": 0.5}, "below the threshold of its guarantee"),
        ({"low": {**_LOW, "threshold": None}}, "without a guarantee"),
        ({"high": None}, "without a guarantee"),
        ({"low": _HIGH}, "at the wrong end"),
        ({"high": _LOW}, "at the wrong end"),
        ({"low": {**_LOW, "threshold": 0.7}, "below": 0.7}, "as negative and as positive"),
        ({"below": float("nan")}, "less than or equal to 1"),
        ({"low": {**_LOW, "level": 1.0}}, "less than 1"),
        ({"low": {**_LOW, "groups": -1}}, "greater than or equal to 0"),
        ({"low": {**_LOW, "test": "belief"}}, "'binomial', 'betting' or 'approximate'"),
        ({"shares": {"review": _SHARE}}, "Field required"),
    ],
)
def test_a_manifest_with_a_band_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    content = json.loads(manifest({}))
    Manifest.model_validate(content | {"review": _ENTRY})
    with pytest.raises(ValidationError, match=words):
        Manifest.model_validate(content | {"review": {**_ENTRY, **change}})


@pytest.fixture(scope="module")
def bundled(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a review band, and labels.csv of its training rows."""
    folder = tmp_path_factory.mktemp("bundled_band")
    model = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}
    stackers = [{"name": "line", "kind": "logistic"}]
    # Equal weights: a regression finds nothing in these nets that would spread the risks.
    blend = {"methods": ["rank_mean"]}
    config = str(small_config(small_data, folder, image_models=[model], stackers=stackers, review=BAND, blend=blend))
    for command in (["oof"], ["stack"], ["bundle", "--out", str(folder / "bundle")]):
        assert run_cli(command[0], "-c", config, "-q", *command[1:]) == 0
    pd.read_csv(small_data / "train.csv", dtype=str).drop(columns="diagnosis").to_csv(folder / "y.csv", index=False)
    return folder


@pytest.mark.slow
def test_predict_decides_as_the_band_says_and_abstains_where_it_does_not_apply(
    bundled: Path, small_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    bundle = read_bundle(bundled / "bundle")
    band = bundle.review_band
    assert band is not None
    Manifest.model_validate(bundle.manifest)
    files = ["--images", str(small_data / "images"), "--device", "cpu"]
    new = ["predict", "--bundle", str(bundled / "bundle"), *files]
    assert run_cli(*new, "--metadata", str(small_data / "test.csv"), "--out", str(tmp_path / "p.csv")) == 0
    made = pd.read_csv(tmp_path / "p.csv")
    p = made["p_calibrated"].to_numpy()
    expected = np.where(p < band.below, "negative", np.where(p >= (band.above or 2), "positive", "review"))
    assert made["decision"].tolist() == np.where(made["far"], "review", expected).tolist()
    assert set(expected) >= {"negative", "positive"}
    counts = [(made["decision"] == name).sum() for name in ("negative", "review", "positive")]
    shown = " ".join(capsys.readouterr().out.split())
    assert f"decisions: {counts[0]} negative, {counts[1]} review, {counts[2]} positive" in shown
    stored = pd.read_parquet(bundled / "runs" / "small" / "predictions.parquet").set_index("id")["decision"]
    same = ~made["far"].to_numpy()
    assert stored.loc[made["id"]].to_numpy()[same].tolist() == made["decision"][same].tolist()

    recalibrated = Bundle(bundle.folder, {**bundle.manifest, "recalibration": {"parent": bundle.fingerprint}})
    assert recalibrated.review_band is None, "other risks, of other patients"
    assert run_cli(*new, "--out", str(tmp_path / "alone.csv")) == 0
    assert set(pd.read_csv(tmp_path / "alone.csv")["decision"]) == {"review"}
    assert "no image is decided, all go to a person" in " ".join(capsys.readouterr().out.split())
    words = pd.read_csv(small_data / "test.csv", dtype=str).assign(sex="M")  # to the models, an unknown sex
    words.to_csv(tmp_path / "words.csv", index=False)
    assert run_cli(*new, "--metadata", str(tmp_path / "words.csv"), "--out", str(tmp_path / "words.out.csv")) == 0
    assert set(pd.read_csv(tmp_path / "words.out.csv")["decision"]) == {"review"}
    assert "decisions are only guaranteed where sex is known" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_evaluate_says_whether_the_promise_held(
    bundled: Path, small_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    labels = pd.read_csv(bundled / "y.csv", dtype=str)
    labels.drop(columns=["sex", "age_approx"]).to_csv(tmp_path / "bare.csv", index=False)
    files = ["--images", str(small_data / "images"), "--device", "cpu"]
    for name, path in (
        ("right", bundled / "y.csv"),
        ("wrong", tmp_path / "wrong.csv"),
        ("bare", tmp_path / "bare.csv"),
    ):
        out = tmp_path / name
        bundle = bundled / "bundle"
        if name == "wrong":  # a band that decides the half with the lower risks, which are called positive here
            p = pd.read_csv(tmp_path / "right" / "predictions.csv", dtype={"id": str}).set_index("id")["p_calibrated"]
            middle = float(p.median())
            labels.assign(target=(p.loc[labels["image_name"]] < middle).astype(int).to_numpy()).to_csv(
                path, index=False
            )
            bundle = tmp_path / "bundle"
            shutil.copytree(bundled / "bundle", bundle)
            content = read_bundle(bundle).manifest
            low = content["review"]["low"] | {"threshold": middle}
            changed = content["review"] | {"low": low, "below": middle, "high": None, "above": None}
            write_manifest(bundle, {**content, "review": changed})
        command = ["evaluate", "--bundle", str(bundle), *files, "--labels", str(path), "--out", str(out)]
        assert run_cli(*command) == 0
        content = json.loads((out / "evaluation.json").read_text())["review"]
        made = pd.read_csv(out / "predictions.csv")
        kept = content["found"]["kept"][0]
        missed = (made["target"] == 1) & (made["decision"] == "negative")
        assert kept["value"]["value"] == pytest.approx(1 - missed.sum() / made["target"].sum())
        page, shown = (out / "evaluation.html").read_text(), " ".join(capsys.readouterr().out.split())
        assert 'id="review"' in page
        if name == "wrong":
            assert kept["verdict"] == "failed"
            assert "The promise failed here: sensitivity" in page
            assert "The promise failed here: sensitivity" in shown
        elif name == "bare":
            assert "No image is decided, as these lack" in page
            assert content["found"]["review"]["value"] == 1
        else:
            assert "The promise failed" not in page
            assert {of["subgroup"] for of in content["subgroups"] if of["by"] == "sex"} >= {"male", "female"}


@pytest.mark.slow
def test_the_app_gives_the_decisions_of_predict(bundled: Path, small_data: Path, tmp_path: Path) -> None:
    from starlette.testclient import TestClient

    from dermstack.serve.app import make_app

    ensemble = Ensemble(read_bundle(bundled / "bundle"), device="cpu")
    pictures = sorted((small_data / "images").glob("*.png"))[:6]
    photos = [Photo(path.name, path.read_bytes(), ensemble.choices["site"][0]) for path in pictures]
    known = read_patient(ensemble, photos, age=60, sex=ensemble.choices["sex"][0])
    band = ensemble.bundle.review_band
    assert band is not None
    for lesion in known.lesions:
        side = "negative" if lesion.p_calibrated < band.below else "positive"
        side = side if lesion.p_calibrated < band.below or lesion.p_calibrated >= (band.above or 2) else "review"
        assert lesion.decision == ("review" if lesion.far else side)
    unknown = read_patient(ensemble, photos)
    assert {lesion.decision for lesion in unknown.lesions} == {"review"}
    assert any("no image is decided" in note for note in unknown.notes)
    client = TestClient(make_app(ensemble), base_url="http://127.0.0.1")
    files = [("pictures", (photo.name, photo.data, "image/png")) for photo in photos]
    page = client.post("/", files=files, data={"together": "yes"}, headers={"Origin": "http://127.0.0.1"}).text
    assert "for a person" in page
    assert "a sensitivity of at least 80" in page

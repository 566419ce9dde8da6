"""`dermstack evaluate` from the bundle of a tiny experiment: what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli, small_config
from imported_experiment import command_error
from sklearn.metrics import average_precision_score, roc_auc_score

import dermstack.serve.evaluate
import dermstack.serve.predict
from dermstack.serve.bundle import read_bundle, write_manifest
from dermstack.serve.evaluate import evaluate, evaluate_to_files, read_labelled_rows
from stack.console import Out
from stack.metrics.measures import jsonable
from stack.metrics.validation import AGREES, DIFFERS, HIGHER, LOWER, UNDECIDED
from stack.settings.data import ColumnRules
from stack.store import read_run

pytestmark = pytest.mark.slow
MODEL = {"name": "still", "backbone": "test_resnet", "pretrained": False, "size": 32, "frozen": True}


@pytest.fixture(scope="module")
def folder(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of one frozen model, and labels.csv with target and metadata of 90 of its training rows."""
    folder = tmp_path_factory.mktemp("evaluate")
    config = str(small_config(small_data, folder, image_models=[MODEL], stackers=[], blend={"methods": ["mean"]}))
    for command in (["oof"], ["stack", "--no-report"], ["bundle", "--out", str(folder / "bundle")]):
        assert run_cli(command[0], "--config", config, "--quiet", *command[1:]) == 0
    rows = pd.read_csv(small_data / "train.csv", dtype=str).drop(columns="diagnosis")
    patients = rows["patient_id"].drop_duplicates()
    some = patients[:4].tolist() + rows.loc[rows["target"] == "1", "patient_id"].unique()[:4].tolist()
    rows[rows["patient_id"].isin(some)].to_csv(folder / "labels.csv", index=False)
    return folder


def arguments(folder: Path, data: Path, labels: Path, out: Path) -> list[str]:
    return [
        "evaluate", "--bundle", str(folder / "bundle"), "--images", str(data / "images"), "--labels", str(labels),
        "--out", str(out), "--device", "cpu",
    ]  # fmt: skip


def test_the_numbers_are_those_of_the_predictions_and_of_the_training_blend(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = pd.read_csv(folder / "labels.csv", dtype={"image_name": str}).sample(frac=1, random_state=1)
    labels[["image_name", "target"]].to_csv(tmp_path / "y.csv", index=False)  # in another order than the metadata
    out = tmp_path / "out"
    command = arguments(folder, small_data, tmp_path / "y.csv", out)
    assert run_cli(*command, "--metadata", str(folder / "labels.csv")) == 0
    assert {path.name for path in out.iterdir()} == {"evaluation.html", "evaluation.json", "predictions.csv"}
    content = json.loads((out / "evaluation.json").read_text())
    made = pd.read_csv(out / "predictions.csv").merge(labels, left_on="id", right_on="image_name", suffixes=("", "_y"))
    assert len(made) == len(labels)
    assert (made["target"] == made["target_y"]).all()
    found, promise = content["found"], content["promise"]
    assert found["auc"]["value"] == pytest.approx(roc_auc_score(made["target_y"], made["score"]))
    assert found["ap"]["value"] == pytest.approx(average_precision_score(made["target_y"], made["score"]))
    assert (found["rows"], found["groups"]) == (len(labels), labels["patient_id"].nunique())
    assert {of["by"] for of in content["subgroups"]} == {"sex", "age", "site"}
    blend = read_run(folder / "runs" / "small" / "blend")
    assert blend is not None
    train = pd.read_csv(small_data / "train.csv").set_index("image_name")["target"]
    oof = blend.frame("oof")
    y = train.loc[oof["id"]].to_numpy()
    assert promise["measures"]["auc"]["value"] == pytest.approx(roc_auc_score(y, oof["score"]))
    assert promise["measures"]["auc"]["value"] == pytest.approx(blend.meta["headline"]["value"])
    for point in promise["points"]:
        called = oof["p_calibrated"].to_numpy() >= point["threshold"]
        assert point["sensitivity"]["value"] == pytest.approx(called[y == 1].mean())
        assert point["specificity"]["value"] == pytest.approx((~called[y == 0]).mean())
        assert point[point["aim"]]["value"] >= point["level"]
    printed = capsys.readouterr().out
    assert f"{found['auc']['value']:.3f}" in printed
    assert "expected from training" in printed
    page = re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", (out / "evaluation.html").read_text(), flags=re.DOTALL)
    assert "promis" not in (printed + page).lower()
    page = (out / "evaluation.html").read_text(encoding="utf-8")
    assert f'<p class="value">{found["auc"]["value"]:.3f}</p>' in page
    assert not any(name in page for name in [*made["id"], *labels["patient_id"]])


def test_from_a_notebook_it_is_the_same(folder: Path, small_data: Path, tmp_path: Path) -> None:
    assert run_cli(*arguments(folder, small_data, folder / "labels.csv", tmp_path / "out"), "--quiet") == 0
    bundle = read_bundle(folder / "bundle")
    rows, targets = read_labelled_rows(bundle, small_data / "images", folder / "labels.csv")
    found = jsonable(evaluate(bundle, rows, targets.sample(frac=1, random_state=0), device="cpu"))
    omitted = [found.pop(name) for name in ("review", "unit", "estimate")]
    assert omitted == [None, "image", "nested"], "not written: as before there were any others"
    written = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert written.pop("made_from"), "of the files, not of the evaluation"
    assert written == found


def test_the_lines_of_the_page_run(
    folder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ham.zip").symlink_to(folder / "bundle")
    (tmp_path / "images").symlink_to(small_data / "images")
    for name in ("y.csv", "patients.csv"):
        shutil.copy(folder / "labels.csv", tmp_path / name)
    page = (Path(__file__).parents[1] / "docs" / "validation.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(page.split("```python\n")[1].split("```")[0], "validation.md", "exec"), {})
    made = re.search(r"^AUC 0\.\d+ \[.*\]: (.*)$", capsys.readouterr().out.strip())
    assert made is not None
    assert made[1] in (AGREES, LOWER, HIGHER, DIFFERS, UNDECIDED)


def test_killed_after_predicting_it_goes_on_without_predicting_again(
    folder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*arguments(folder, small_data, folder / "labels.csv", tmp_path / "out"), "--quiet"]
    with monkeypatch.context() as patched:
        patched.setattr(dermstack.serve.evaluate, "validate", _killed)
        bundle = read_bundle(folder / "bundle")
        rows, targets = read_labelled_rows(bundle, small_data / "images", folder / "labels.csv")
        with pytest.raises(KeyboardInterrupt):
            evaluate_to_files(bundle, rows, targets, tmp_path / "out", Out(quiet=True), device="cpu")
    assert list((tmp_path / "out").rglob("part_*/made.parquet"))
    assert not (tmp_path / "out" / "evaluation.json").exists()
    monkeypatch.setattr(dermstack.serve.predict, "score_pictures", None)
    assert run_cli(*command) == 0
    assert (tmp_path / "out" / "evaluation.json").exists()


def test_an_evaluation_of_other_labels_images_or_bundle_is_overwritten_only_with_replace(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = arguments(folder, small_data, folder / "labels.csv", out)
    (out / "predictions.csv").parent.mkdir()
    (out / "predictions.csv").write_text("mine\n")
    assert f"--out {out} has a file predictions.csv already" in command_error(capsys, *command)
    assert (out / "predictions.csv").read_text() == "mine\n"
    (out / "evaluation.json").write_text("[]")
    assert "none of dermstack's" in command_error(capsys, *command)
    (out / "dropped.csv").write_text("id\nimage of the earlier one\n")
    assert run_cli(*command, "--replace", "--quiet") == 0
    assert not (out / "dropped.csv").exists(), "nothing was left out this time"
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    labels.drop(index=labels.index[labels["target"] == "0"][0]).to_csv(tmp_path / "fewer.csv", index=False)
    of_fewer = arguments(folder, small_data, tmp_path / "fewer.csv", out)
    fingerprint = read_bundle(folder / "bundle").fingerprint
    assert f"has an evaluation of bundle {fingerprint} already, made from other" in command_error(capsys, *of_fewer)
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    content = read_bundle(tmp_path / "bundle").manifest
    other = write_manifest(tmp_path / "bundle", {**content, "experiment": "another"}).fingerprint
    of_other = arguments(tmp_path, small_data, folder / "labels.csv", out)
    assert f"and this one is of {other}: name another folder" in command_error(capsys, *of_other)
    assert not (out / "parts").exists(), "nothing is predicted before"
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before

    assert run_cli(*command, "--quiet") == 0, "the same evaluation may be made again"
    (out / "evaluation.json").unlink()  # as if it had been killed after predictions.csv
    (out / "parts").mkdir()
    (out / "parts" / "job.json").write_text("{}")
    assert run_cli(*command, "--quiet") == 0
    assert run_cli(*of_fewer, "--replace", "--quiet") == 0
    assert len(pd.read_csv(out / "predictions.csv")) == len(labels) - 1


def test_without_groups_the_reader_is_told_and_nothing_is_said_of_an_age_that_no_model_uses(
    folder: Path, small_data: Path, tmp_path: Path
) -> None:
    labels = pd.read_csv(folder / "labels.csv", dtype=str).drop(columns=["patient_id", "age_approx"])
    renamed = labels.rename(columns={"image_name": "isic_id", "target": "malignant"})
    renamed.to_csv(tmp_path / "y.csv", index=False)
    command = arguments(folder, small_data, tmp_path / "y.csv", tmp_path / "out")
    assert run_cli(*command, "--id-column", "isic_id", "--target-column", "malignant", "--quiet") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["found"]["groups"] == content["found"]["rows"] == len(labels)
    assert "too narrow" in content["notes"][0]
    assert not any("no age" in note.lower() for note in content["notes"])
    assert "too narrow" in (tmp_path / "out" / "evaluation.html").read_text(encoding="utf-8")


def test_a_label_that_looks_like_a_positive_word_is_named_in_terminal_and_page(
    folder: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    labels["target"] = labels["target"].map({"1": "malignant", "0": "benign"})
    labels.loc[labels.index[labels["target"] == "benign"][0], "target"] = "malignnat"
    labels.to_csv(tmp_path / "y.csv", index=False)
    rules = ColumnRules(positive=("malignant",))
    monkeypatch.setattr("dermstack.serve.bundle.Bundle.column_rules", property(lambda bundle: rules))
    assert run_cli(*arguments(folder, small_data, tmp_path / "y.csv", tmp_path / "out")) == 0
    said = "target 'malignnat' (1 row) counts as negative, but looks like 'malignant'"
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.count(said) == 1
    assert printed.index(said) < printed.index("predict: "), "before the images are predicted"
    assert any(said in note for note in json.loads((tmp_path / "out" / "evaluation.json").read_text())["notes"])


def test_an_image_that_can_not_be_read_is_refused_or_counted(folder: Path, small_data: Path, tmp_path: Path) -> None:
    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    (tmp_path / "images").mkdir()
    for name in labels["image_name"]:
        shutil.copy(small_data / "images" / f"{name}.png", tmp_path / "images")
    bad = labels.loc[labels["target"] == "0", "image_name"].iloc[0]
    (tmp_path / "images" / f"{bad}.png").write_bytes(b"no picture")
    command = [*arguments(folder, tmp_path, folder / "labels.csv", tmp_path / "out"), "--quiet"]
    assert run_cli(*command) == 2
    assert run_cli(*command, "--on-unreadable", "drop") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["dropped"], content["found"]["rows"]) == (1, len(labels) - 1)
    assert pd.read_csv(tmp_path / "out" / "dropped.csv")["id"].tolist() == [bad]


def test_labels_that_do_not_fit_are_refused_by_name(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    ids = labels["image_name"].tolist()

    def refused(changed: pd.DataFrame, *more: str) -> str:
        changed.to_csv(tmp_path / "y.csv", index=False)
        return command_error(capsys, *arguments(folder, small_data, tmp_path / "y.csv", tmp_path / "out"), *more)

    metadata = ("--metadata", str(folder / "labels.csv"))
    only = labels[["image_name", "target"]]
    assert f"has no row for {ids[3]!r}" in refused(only.drop(index=3), *metadata)
    assert "has no row for 'elsewhere'" in refused(only.replace(ids[2], "elsewhere"), *metadata)
    assert f"{ids[1]!r} in more than one row" in refused(pd.concat([labels, labels.iloc[[1]]]))
    assert "'2' (row 6) is not 0 or 1" in refused(
        labels.assign(target=np.where(labels.index == 4, "2", labels["target"]))
    )
    assert "none of the" in refused(labels.assign(target="0"))
    one_patient = labels["patient_id"] == labels.loc[labels["target"] == "1", "patient_id"].iloc[0]
    assert "needs two groups" in refused(labels.assign(target=np.where(one_patient, labels["target"], "0")))
    assert "--target-column" in refused(labels.rename(columns={"target": "malignant"}))
    assert "elsewhere" in refused(labels.replace(ids[2], "elsewhere"))  # there is no such picture
    assert "choose refuse, drop, tolerate" in refused(labels, "--on-unreadable", "skip")
    assert "no such file" in refused(labels, "--metadata", str(tmp_path / "none.csv"))
    assert not (tmp_path / "out").exists()


def test_a_bundle_older_than_its_promise_is_refused(
    folder: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = tmp_path / "bundle"
    shutil.copytree(folder / "bundle", old)
    (old / "promise.json").unlink()
    content = {name: value for name, value in read_bundle(folder / "bundle").manifest.items() if name != "files"}
    write_manifest(old, content)
    said = command_error(capsys, *arguments(tmp_path, small_data, folder / "labels.csv", tmp_path / "out"))
    assert "bundle the experiment again" in said


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt

"""stack.unit_rows: predictions for units, from the config in the docs to submission, report and refusals."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import blank_figures, run_cli, small_config
from html_page import Page
from imported_experiment import import_frames, opened_experiment, predictions
from unit_experiment import UNIT, import_readers, units_of, write_breasts

from dermstack.errors import DataError, DermstackError
from dermstack.pipeline import StackResult, run_oof, run_stack
from stack.blend.calibration import calibrate_nested
from stack.console import Out
from stack.experiment import Experiment
from stack.fold_needs import check_study_needs
from stack.history import compare, list_experiments, run_table
from stack.leaderboard import read_entries, same_rows
from stack.metrics.intervals import interval
from stack.metrics.scores import auc
from stack.plan.steps import make_plan
from stack.settings.config import read_config
from stack.store import Run
from stack.submission import run_blend
from stack.unit_rows import pooled_run, unit_rows

pytestmark = pytest.mark.usefixtures("drift_fitted_once")

METHODS = ["rank_mean", "logistic"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("breasts")


@pytest.fixture(scope="module")
def result(folder: Path) -> StackResult:
    """The documented experiment, with one stacker, from the table to the report."""
    path = write_breasts(folder, stackers=[{"name": "logistic", "kind": "logistic"}])
    import_readers(path)
    with blank_figures():
        return run_stack(path, out=Out(quiet=True))


def blend_oof(result: StackResult | Blended) -> pd.DataFrame:
    return result.blend.frame("oof")


class Blended(NamedTuple):
    experiment: Experiment
    blend: Run


def blended(path: Path, *overrides: str, out: Out | None = None) -> Blended:
    """The blend and the submission of the imported runs, without audit and report."""
    experiment = opened_experiment(path, *overrides)
    return Blended(experiment, run_blend(experiment, experiment.finished(level=1), out or Out(quiet=True)))


def test_there_is_one_row_for_each_unit_with_the_target_of_any_image(result: StackResult, folder: Path) -> None:
    train = pd.read_csv(folder / "train.csv", dtype=str)
    expected = train.assign(unit=units_of(train)).groupby("unit").agg(
        target=("cancer", "max"), images=("cancer", "size"), woman=("patient_id", "first")
    )  # fmt: skip
    oof = blend_oof(result).set_index("id")
    assert set(oof.index) == set(expected.index)
    found = oof.loc[expected.index]
    assert found["target"].tolist() == expected["target"].astype(int).tolist()
    assert found["images"].tolist() == expected["images"].tolist()
    assert found["split_group"].tolist() == expected["woman"].tolist()
    fold = result.experiment.folds.frame.assign(unit=units_of(train.set_index("image_id").loc[
        result.experiment.table.train["id"]]).to_numpy()).drop_duplicates("unit").set_index("unit")["fold"]  # fmt: skip
    assert found["fold"].tolist() == fold.loc[found.index].tolist()


def test_headline_and_calibration_are_those_of_units(result: StackResult) -> None:
    oof = blend_oof(result)
    y, group = oof["target"].to_numpy(), oof["split_group"].to_numpy(object)
    own = interval("auc", y, oof["score"], group)
    assert (result.headline.value, result.headline.low, result.headline.high) == (own.value, own.low, own.high)
    chosen = result.blend.meta["chosen"]
    again = calibrate_nested(oof[f"{chosen}_nested"], y, oof["fold"], group)
    np.testing.assert_array_equal(again.p, oof["p_calibrated"])
    assert abs(oof["p_calibrated"].sum() - y.sum()) < 0.15 * y.sum()
    for k in range(3):
        held = oof["fold"] == k
        name = {int(fold): name for fold, name in result.blend.meta["chosen_by_fold"].items()}[k]
        assert auc(y[held], oof["score"][held]) == auc(y[held], oof[f"{name}_nested"][held])


def test_one_image_shows_the_finding_so_the_mean_is_not_chosen(result: StackResult) -> None:
    oof = blend_oof(result)
    assert not result.blend.meta["chosen"].startswith("mean/")
    assert result.headline.value > auc(oof["target"], oof["mean/rank_mean_nested"])


def test_the_submission_has_the_sample_s_units_in_its_order(result: StackResult, folder: Path) -> None:
    sample = pd.read_csv(folder / "sample_submission.csv", dtype=str)
    found = pd.read_csv(result.experiment.folder / "submission.csv", dtype={"prediction_id": str})
    assert list(found) == ["prediction_id", "cancer"]
    assert found["prediction_id"].tolist() == sample["prediction_id"].tolist()
    made = pd.read_parquet(result.experiment.folder / "predictions.parquet").set_index("id")
    assert list(made) == ["score", "p_calibrated"]
    np.testing.assert_array_equal(made.loc[found["prediction_id"], "score"], found["cancer"])
    test = pd.read_csv(folder / "test.csv", dtype=str)
    shows = test.assign(unit=units_of(test), shows=test["shows"].astype(int)).groupby("unit")["shows"].max()
    assert auc(shows.loc[found["prediction_id"]], found["cancer"]) > 0.85


def test_images_of_the_result_have_the_score_of_their_unit(result: StackResult) -> None:
    oof = result.oof
    assert len(oof) == len(result.experiment.table.train)
    of_units = blend_oof(result).set_index("id")
    np.testing.assert_array_equal(oof["score"], of_units.loc[oof["unit"], "score"])


def test_page_and_card_speak_of_units(result: StackResult) -> None:
    page = Page((result.experiment.folder / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    oof = blend_oof(result)
    assert f"Measured on {len(oof)} units, {oof['target'].sum()} of them positive" in text
    assert f"one prediction for each patient_id and laterality, called a unit: {len(oof)} units of" in text
    assert "The number of images of a unit alone has AUC" in text
    assert re.search(r"view: the values differ between images of a unit", text)
    assert "age: 40–59" in text, "subgroups of a column that is the same in all images of a unit"
    assert "CC" not in {row[0] for row in page.rows}
    card = (result.experiment.folder / "model_card.md").read_text(encoding="utf-8")
    assert "gives each unit" in card
    assert f"| units | {len(oof)} |" in card
    assert "there is one prediction for each unit" in card


def test_the_runs_of_the_page_are_pooled(result: StackResult) -> None:
    experiment, units = result.experiment, unit_rows(result.experiment)
    run = result.runs["a"]
    for pooling, of_unit in (("maximum", "max"), ("mean", "mean")):
        found = pooled_run(experiment, units, run, pooling).frame("oof").set_index("id")["logit"]
        oof = run.frame("oof")
        assert experiment.table.units is not None
        expected = oof.groupby(experiment.table.units.loc[oof["id"]].to_numpy())["logit"].agg(of_unit)
        np.testing.assert_allclose(found, expected.loc[found.index], rtol=1e-5)
    pooled = pooled_run(experiment, units, run, "maximum")
    (line,) = run_table(units.experiment, [pooled]).to_dict("records")
    assert line["rows"] == len(units.experiment.target)
    best = auc(units.experiment.target, found.reindex(units.experiment.table.train["id"]))
    assert line["auc"] > best, "of the maximum, as one image shows the finding"


def test_the_same_stack_is_not_made_again_and_the_plan_counts_units(result: StackResult, folder: Path) -> None:
    again = run_stack(folder / "rsna.yaml", out=Out(quiet=True))
    assert again.blend.meta["fingerprint"] == result.blend.meta["fingerprint"]
    steps = {step.name: step for step in make_plan(result.experiment, measure=False).steps}
    assert steps["blend"].state == steps["submission.csv"].state == "skip"
    assert steps["blend"].rows == len(blend_oof(result))
    assert steps["submission.csv"].rows == 40
    changed = opened_experiment(folder / "rsna.yaml", "predict_per.pooling=[mean]")
    steps = {step.name: step for step in make_plan(changed, measure=False).steps}
    assert steps["logistic"].state == "skip", "no stacker is made again"
    assert steps["blend"].state == "remake"
    assert any("predict_per" in change.key for change in steps["blend"].changes)
    per_image = opened_experiment(folder / "rsna.yaml", "predict_per=null")
    steps = {step.name: step for step in make_plan(per_image, measure=False).steps}
    assert steps["blend"].state == "remake"
    assert steps["blend"].rows == len(per_image.table.train)


def test_units_are_compared_with_units_only(result: StackResult, folder: Path) -> None:
    runs = folder / "runs"
    itself = compare(runs, "rsna", "rsna")
    assert itself.difference.value == 0
    assert itself.rows == len(blend_oof(result))
    with pytest.raises(DataError, match="rsna has one prediction for each patient_id and laterality, and rsna/a for"):
        compare(runs, "rsna", "rsna/a")
    listed = list_experiments(runs).set_index("run")
    oof = blend_oof(result)
    assert listed.loc["blend", "auc"] == auc(oof["target"], oof["score"])
    assert "for each patient_id and laterality" in listed.loc["blend", "headline"]
    boards = same_rows(read_entries(runs, ["rsna", "rsna/a", "rsna/b"]))
    assert [[entry.name for entry in board] for board in boards] == [["rsna"], ["rsna/a", "rsna/b"]]


def test_tune_blend_is_refused_by_name(result: StackResult, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_cli("tune", "blend", "--config", str(folder / "rsna.yaml")) == 2
    assert "`tune blend` tunes weights for single images" in capsys.readouterr().err


def test_tune_blend_is_refused_and_tune_gbdt_is_not(result: StackResult) -> None:
    with pytest.raises(DermstackError, match="predict_per"):
        check_study_needs(result.experiment, "blend")
    check_study_needs(result.experiment, "gbdt")


def test_a_sample_of_images_is_refused_before_anything_is_fitted(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    experiment = import_readers(path)
    ids = pd.read_csv(tmp_path / "test.csv", dtype=str)["image_id"]
    pd.DataFrame({"prediction_id": ids, "cancer": 0}).to_csv(tmp_path / "sample_submission.csv", index=False)
    with pytest.raises(
        DataError, match=r"sample_submission.csv has a row for each image \(.*not for each patient_id_laterality"
    ):
        run_stack(path, out=Out(quiet=True))
    assert not (experiment.folder / "blend").exists()
    with pytest.raises(DataError, match=r"one prediction for each patient_id_laterality"):
        run_oof(path, out=Out(quiet=True))
    (problem,) = make_plan(experiment, measure=False).problems
    assert "one prediction for each patient_id_laterality" in problem


def test_units_that_leave_one_class_without_two_folds_are_named(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, predict_per="group")
    train = pd.read_csv(tmp_path / "train.csv", dtype=str)
    negative = train["patient_id"].drop_duplicates().iloc[:2]
    first = ~train["patient_id"].duplicated() & ~train["patient_id"].isin(negative)
    train.assign(cancer=first.astype(int)).to_csv(tmp_path / "train.csv", index=False)
    import_readers(path)
    with pytest.raises(DataError, match=r"predict_per: only 2 groups have a negative unit"):
        blended(path)


def test_without_test_rows_the_units_are_scored(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, women=40)
    data = read_config(path).data.model_dump(mode="json", exclude_unset=True)
    del data["sample_submission"], data["test"]
    import_readers(path, f"data={json.dumps(data)}")
    made = blended(path, f"data={json.dumps(data)}")
    assert len(blend_oof(made)) == 80
    assert not (made.experiment.folder / "submission.csv").exists()


@pytest.mark.slow
def test_images_of_units_reach_the_page(small_data: Path, tmp_path: Path) -> None:
    """With networks and stackers: each error is a patient, shown by the image that the network finds most suspect."""
    path = small_config(small_data, tmp_path, predict_per="group")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    del settings["data"]["sample_submission"]
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    for step in ("oof", "stack"):
        assert run_cli(step, "-c", str(path), "-q") == 0
    train = pd.read_csv(small_data / "train.csv", dtype=str)
    page = Page((tmp_path / "runs" / "small" / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert f"Measured on {train['patient_id'].nunique()} units" in text
    assert "Of each unit, the image is shown that the image model gives the highest risk" in text
    sent = pd.read_csv(tmp_path / "runs" / "small" / "submission.csv", dtype={"patient_id": str})
    assert set(sent["patient_id"]) == set(pd.read_csv(small_data / "test.csv", dtype=str)["patient_id"])
    assert run_cli("report", "-c", str(path), "--show-ids", "-q") == 0
    shown = Page((tmp_path / "runs" / "small" / "report.html").read_text(encoding="utf-8"))
    assert set(train["patient_id"]) & set(re.findall(r"\w+", shown.text)), "patients are named, not images"


def test_without_a_sample_the_id_column_is_named_by_the_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_breasts(tmp_path)
    data = read_config(path).data.model_dump(mode="json", exclude_unset=True)
    del data["sample_submission"]
    import_readers(path, f"data={json.dumps(data)}")
    made = blended(path, f"data={json.dumps(data)}", out=Out())
    found = pd.read_csv(made.experiment.folder / "submission.csv")
    assert list(found) == ["patient_id_laterality", "cancer"]
    assert f" of {len(found)} test units are expected to be positive" in " ".join(capsys.readouterr().out.split())


def test_one_image_in_each_unit_gives_the_scores_of_the_images(tmp_path: Path) -> None:
    found = {}
    for name, per in (("units", {"columns": UNIT, "pooling": ["maximum"]}), ("images", None)):
        place = tmp_path / name
        place.mkdir()
        path = write_breasts(place, images=1, women=60, predict_per=per)
        if per is None:
            sample = pd.read_csv(place / "test.csv", dtype=str)[["image_id"]].assign(cancer=0)
            sample.to_csv(place / "sample_submission.csv", index=False)
        import_readers(path)
        made = blended(path)
        train, test = (pd.read_csv(place / f"{part}.csv", dtype=str) for part in ("train", "test"))
        of_image = dict(zip(pd.concat([train, test])["image_id"], units_of(pd.concat([train, test])), strict=True))
        oof = blend_oof(made).set_index("id")
        new = pd.read_parquet(made.experiment.folder / "predictions.parquet").set_index("id")
        if per is None:
            oof, new = oof.rename(of_image), new.rename(of_image)
        found[name] = oof.sort_index(), new.sort_index(), made.blend.meta["headline"]
    for one, other in zip(found["units"][:2], found["images"][:2], strict=True):
        for column in ("score", "p_calibrated"):
            np.testing.assert_array_equal(one[column], other[column])
    assert found["units"][2] == found["images"][2]


def test_with_two_folds_the_simplest_pooling_and_method_stand_alone(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, folds={"k": 2})
    import_readers(path)
    out = Out(quiet=True)
    said: list[str] = []
    out.warn = said.append  # type: ignore[method-assign]
    made = blended(path, out=out)
    assert made.blend.meta["chosen"] == "mean/rank_mean"
    assert any("the choice among 4 poolings needs 3 to be nested" in text for text in said)


@pytest.mark.parametrize(
    "objective", [pytest.param("pauc80", marks=pytest.mark.slow), pytest.param("ap", marks=pytest.mark.slow), "logloss"]
)
def test_every_objective_is_that_of_units(objective: str, tmp_path: Path) -> None:
    path = write_breasts(tmp_path, objective=objective, women=60)
    import_readers(path)
    made = blended(path)
    oof = blend_oof(made)
    own = interval(objective, oof["target"], oof["score"], oof["split_group"].to_numpy(object))
    assert made.blend.meta["headline"]["value"] == own.value


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "maximum", "noisy_or", "learned"])
def test_each_pooling_alone_reaches_the_submission_and_the_page(pooling: str, tmp_path: Path) -> None:
    path = write_breasts(tmp_path, predict_per={"columns": UNIT, "pooling": [pooling]}, women=50)
    import_readers(path)
    made = run_stack(path, out=Out(quiet=True))
    assert made.blend.meta["chosen"].startswith(f"{pooling}/")
    assert made.report is not None
    weights: dict[str, Any] = made.blend.meta["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert (made.experiment.folder / "submission.csv").is_file()


@pytest.mark.slow
def test_near_copies_are_found_among_images_and_measured_on_units(tmp_path: Path) -> None:
    path = write_breasts(tmp_path, women=60)
    experiment = import_readers(path, number=2)
    oof = pd.read_csv(tmp_path / "a-oof.csv", dtype={"isic": str})
    test = pd.read_csv(tmp_path / "a-test.csv", dtype={"isic": str})
    import_frames(experiment, "a_again", oof.assign(p=oof["p"] * 0.999), test)
    for pooling in ("maximum", "learned"):
        made = blended(path, f"predict_per.pooling=[{pooling}]")
        record = made.blend.meta["near_copies"]
        assert record["groups"][0]["runs"] == ["a", "a_again"]
        assert abs(record["change"]["value"]) < 0.05
        assert made.blend.meta["runs"] == ["a", "a_again", "b"]


def test_a_unit_is_positive_though_its_positive_image_cannot_be_read(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    whole = unit_rows(opened_experiment(path)).experiment.table.train.set_index("id")["target"]
    train = pd.read_csv(tmp_path / "train.csv", dtype=str)
    train["cancer"] = train["shows"]  # of a positive unit, one image is
    train.to_csv(tmp_path / "train.csv", index=False)
    experiment = opened_experiment(path)
    units = unit_rows(experiment)
    pd.testing.assert_series_equal(units.experiment.table.train.set_index("id")["target"], whole)
    assert units.mixed == sum(
        1 for _, own in train.groupby(units_of(train)) if {"0", "1"} == set(own["cancer"])
    )  # fmt: skip
    lost = experiment.table.train[~((experiment.target == 1) & experiment.table.train["group"].ne(""))]
    kept = lost["id"]
    dropped = _without_rows(experiment, kept)
    found = unit_rows(dropped).experiment.table.train.set_index("id")["target"]
    assert (found == whole.loc[found.index]).all()
    assert found.sum() > 0


def _without_rows(experiment: Experiment, kept: pd.Series) -> Experiment:
    """The experiment as if all other training images were unreadable and dropped."""
    here = experiment.table.train["id"].isin(kept)
    table = replace(experiment.table, train=experiment.table.train[here].reset_index(drop=True))
    frame = experiment.folds.frame[here.to_numpy()].reset_index(drop=True)
    return replace(experiment, table=table, folds=replace(experiment.folds, frame=frame))


def test_shuffled_targets_are_scored_for_images(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    experiment = opened_experiment(path, shuffle_target=True)
    assert experiment.config.predict_per is None
    assert experiment.table.units is None
    oof, test = predictions(experiment)
    import_frames(experiment, "a", oof, test)


def test_columns_that_vary_within_a_unit_have_no_value(tmp_path: Path) -> None:
    path = write_breasts(tmp_path)
    units = unit_rows(opened_experiment(path))
    train = units.experiment.table.train
    view = next(name for name in train if "view" in name)
    assert units.varying == (view,)
    assert train[view].isna().all()
    assert train["age"].notna().all()
    assert units.images().sum() == len(units.of_train)
    assert not train["id"].duplicated().any()

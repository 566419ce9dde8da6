"""New images go the way that the training experiment's test rows went."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli
from PIL import Image

import dermstack.serve.predict
from dermstack.errors import ImageError
from dermstack.serve import expectations
from dermstack.serve.bundle import Bundle, read_bundle, write_manifest
from dermstack.serve.ensemble import read_fitted
from dermstack.serve.expectations import _head_logits, lacking_columns, measure_costs, unknown_columns
from dermstack.serve.new_rows import NewRows, read_new_rows, report_rows, table_notes
from dermstack.serve.predict import PredictOptions, predict_rows, predict_with_dropped
from dermstack.serve.words import unknown_words
from stack.console import Out
from stack.experiment import open_experiment
from stack.level1.image_runs import level1_runs
from stack.metrics.scores import auc
from stack.settings.config import read_config
from stack.settings.data import NO_RULES
from stack.store import read_run
from stack.tables.columns import NO_COLUMNS

QUIET = Out(quiet=True)


@pytest.fixture(scope="module")
def bundle(bundled_experiment: Path) -> Bundle:
    return read_bundle(bundled_experiment / "bundle.zip")


@pytest.fixture(scope="module")
def rows(bundle: Bundle, small_data: Path) -> NewRows:
    """Every second group of the test rows."""
    given = read_new_rows(bundle, small_data / "images", small_data / "test.csv")
    kept = given.frame["group"].isin(given.frame["group"].unique()[::2])
    sources = [given.sources[place] for place in np.flatnonzero(kept)]
    return NewRows(given.frame[kept].reset_index(drop=True), sources, given.missing)


def test_the_training_experiments_test_rows_get_the_same_bytes(
    bundled_experiment: Path, small_data: Path, tmp_path: Path
) -> None:
    command = [
        "predict",
        "--bundle",
        str(bundled_experiment / "bundle.zip"),
        "--images",
        str(small_data / "images"),
        "-q",
    ]
    command += ["--metadata", str(small_data / "test.csv"), "--out", str(tmp_path / "p.csv")]
    command += ["--submission", str(tmp_path / "s.csv"), "--sample", str(small_data / "sample_submission.csv")]
    assert run_cli(*command) == 0
    assert (tmp_path / "s.csv").read_bytes() == (bundled_experiment / "runs/small/submission.csv").read_bytes()
    made = pd.read_csv(tmp_path / "p.csv", dtype={"id": str})
    before = pd.read_parquet(bundled_experiment / "runs/small/predictions.parquet")
    assert (made[["id", "score", "p_calibrated"]].to_numpy() == before.to_numpy()).all()
    assert not (tmp_path / "p.csv.parts").exists(), "nothing is left of the parts"


def test_parts_hold_whole_groups_and_change_the_scores_by_rounding_only(
    bundle: Bundle, rows: NewRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = predict_rows(bundle, rows, tmp_path / "one", QUIET)
    monkeypatch.setattr(dermstack.serve.predict, "MAX_PART_IMAGES", 6)
    monkeypatch.setattr(dermstack.serve.predict, "MIN_PART_IMAGES", 6)
    in_parts = predict_rows(bundle, rows, tmp_path / "many", QUIET)
    parts = [pd.read_parquet(path)["id"] for path in sorted((tmp_path / "many").glob("part_*/made.parquet"))]
    assert len(parts) > 3
    group = rows.frame.set_index("id")["group"]
    assert sum(group[ids].nunique() for ids in parts) == group.nunique()
    assert in_parts["id"].tolist() == rows.frame["id"].tolist()
    # BLAS rounds a product by how many rows it has, and a GBDT jumps where a rounded value crosses a threshold.
    np.testing.assert_allclose(in_parts["score"], at_once["score"], rtol=1e-3)
    np.testing.assert_allclose(in_parts["novelty"], at_once["novelty"], rtol=1e-3)


def test_a_killed_prediction_goes_on_and_ends_the_same(
    bundle: Bundle, rows: NewRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dermstack.serve.predict, "MAX_PART_IMAGES", 8)
    monkeypatch.setattr(dermstack.serve.predict, "MIN_PART_IMAGES", 8)
    whole = predict_rows(bundle, rows, tmp_path / "undisturbed", QUIET)
    real, calls = dermstack.serve.predict.score_pictures, []

    def dies(*args: object, **settings: object) -> pd.DataFrame:
        calls.append(len(calls))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(dermstack.serve.predict, "score_pictures", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_rows(bundle, rows, tmp_path / "work", QUIET)
    before = len(calls)
    pd.testing.assert_frame_equal(predict_rows(bundle, rows, tmp_path / "work", QUIET), whole, check_exact=True)
    parts = len(list((tmp_path / "work").glob("part_*/made.parquet")))
    assert len(calls) - before == parts - 1, "the first part isn't made again"
    changed = NewRows(rows.frame.assign(age=1.0), rows.sources, rows.missing)
    assert not predict_rows(bundle, changed, tmp_path / "work", QUIET).equals(whole), "other rows start anew"


def test_a_part_is_made_again_where_a_picture_of_it_changed_though_not_in_size_and_time(
    bundle: Bundle, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    for number, path in enumerate(sorted((small_data / "images").iterdir())[:6]):
        Image.open(path).save(tmp_path / "new" / f"{number}.bmp")
        os.utime(tmp_path / "new" / f"{number}.bmp", ns=(1, 1))
    monkeypatch.setattr(dermstack.serve.predict, "MAX_PART_IMAGES", 2)
    monkeypatch.setattr(dermstack.serve.predict, "MIN_PART_IMAGES", 2)
    predict_rows(bundle, read_new_rows(bundle, tmp_path / "new", None), tmp_path / "work", QUIET)
    shutil.copy(tmp_path / "new" / "5.bmp", tmp_path / "new" / "0.bmp")
    os.utime(tmp_path / "new" / "0.bmp", ns=(1, 1))
    rows = read_new_rows(bundle, tmp_path / "new", None)
    real, made = dermstack.serve.predict._predict_part, []

    def counted(models: Any, frame: pd.DataFrame, *others: Any) -> tuple[pd.DataFrame, list[str]]:
        made.append(frame["id"].tolist())
        return real(models, frame, *others)

    monkeypatch.setattr(dermstack.serve.predict, "_predict_part", counted)
    again = predict_rows(bundle, rows, tmp_path / "work", QUIET)
    assert made == [["0", "1"]]
    pd.testing.assert_frame_equal(again, predict_rows(bundle, rows, tmp_path / "fresh", QUIET), check_exact=True)


def test_one_image_is_scored_as_it_is_among_others_of_other_groups(
    bundle: Bundle, rows: NewRows, small_data: Path, tmp_path: Path
) -> None:
    alone = rows.frame.groupby("group").head(1)
    together = predict_rows(
        bundle, NewRows(alone, [rows.sources[i] for i in alone.index], ()), tmp_path / "some", QUIET
    )
    first = NewRows(alone.iloc[:1], [rows.sources[alone.index[0]]], ())
    one = predict_rows(bundle, first, tmp_path / "one", QUIET)
    np.testing.assert_allclose(one["score"], together["score"].iloc[:1], rtol=1e-4)


def test_exchanged_colours_are_undone_where_that_is_asked_for_and_named_where_training_did_it(
    rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
    for folder, image in (("plain", pixels), ("exchanged", pixels[..., ::-1])):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / folder / "a.png")
    about = {"columns": {"id": "id", "target": "y"}, "column_rules": NO_RULES, "table_columns": NO_COLUMNS}
    about |= {"predict_per": None, "unit_columns": (), "table_inputs": ()}
    one = SimpleNamespace(manifest={}, takes_images=True, imported_runs=[], **about)
    plain = read_new_rows(one, tmp_path / "plain", None)
    undone, as_it_is = (read_new_rows(one, tmp_path / "exchanged", None, swap_red_blue=swap) for swap in (True, False))
    seen = [rows.sources[0].read(min_side=8).image for rows in (plain, undone, as_it_is)]
    np.testing.assert_array_equal(seen[1], seen[0])
    np.testing.assert_array_equal(seen[2], seen[0][..., ::-1])
    exchanged = SimpleNamespace(manifest={"swap_red_blue": True}, takes_images=True, imported_runs=[], **about)
    for given, rows, told in ((exchanged, undone, ""), (exchanged, plain, "add --swap-red-blue"), (one, plain, "")):
        report_rows(given, rows, rows.sources[0].path.parent, None, Out())
        said = "".join(capsys.readouterr())
        assert told in said
        assert bool(said) == bool(told)


def test_a_folder_alone_is_predicted_with_a_warning_of_what_that_costs(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "new").mkdir()
    for path in sorted((small_data / "images").iterdir())[:3]:
        shutil.copy(path, tmp_path / "new")
    command = ["predict", "--bundle", str(bundled_experiment / "bundle.zip"), "--images", str(tmp_path / "new")]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no age and no sex and no site and no group (column age_approx, sex" in printed
    assert "without them, AUC on the training rows changes by -0." in printed
    assert len(pd.read_csv(tmp_path / "p.csv")) == 3
    (tmp_path / "some.csv").write_text("image_name,sex\n" + pd.read_csv(tmp_path / "p.csv")["id"][0] + ",male\n")
    assert run_cli(*command, "--metadata", str(tmp_path / "some.csv"), "--out", str(tmp_path / "q.csv")) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "no age (column age_approx)" in printed
    assert "no sex" not in printed


def test_words_that_training_did_not_have_are_named_and_other_spellings_of_its_words_are_read(
    bundled_experiment: Path, bundle: Bundle, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """M and F for male and female count as no known category: each score is that of an unknown sex, without a sign."""
    test = pd.read_csv(small_data / "test.csv", dtype=str).iloc[:4]
    test["anatom_site_general_challenge"] += "\ufeff"
    test.assign(sex=["M", "F", "male", None]).to_csv(tmp_path / "new.csv", index=False)
    new = read_new_rows(bundle, small_data / "images", tmp_path / "new.csv")
    plain = read_new_rows(bundle, small_data / "images", small_data / "test.csv").frame.iloc[:4]
    assert new.frame["site"].tolist() == plain["site"].tolist()
    (note,) = unknown_words(bundle, new.frame)
    assert "sex has values that do not occur in training: 'm' in 1 row, 'f' in 1 row." in note
    assert "other words for 'female', 'male', use these words" in note
    assert unknown_words(bundle, plain) == []
    command = ["predict", "--bundle", str(bundled_experiment / "bundle.zip"), "--images", str(small_data / "images")]
    assert run_cli(*command, "--metadata", str(tmp_path / "new.csv"), "--out", str(tmp_path / "p.csv")) == 0
    assert "'m' in 1 row, 'f' in 1 row" in " ".join(capsys.readouterr().out.split())


def test_an_empty_column_and_one_of_words_that_training_lacks_cost_what_a_missing_column_costs(
    bundle: Bundle, small_data: Path, tmp_path: Path
) -> None:
    """The models take all three as not known, so the notes and the columns without which no row is decided agree."""
    test = pd.read_csv(small_data / "test.csv", dtype=str)
    texts = {"absent": None, "empty": "", "other words": "M"}
    read = {}
    for name, text in texts.items():
        table = test.drop(columns="sex") if text is None else test.assign(sex=text)
        table.to_csv(tmp_path / f"{name}.csv", index=False)
        read[name] = read_new_rows(bundle, small_data / "images", tmp_path / f"{name}.csv")
    for rows in read.values():
        assert unknown_columns(bundle, rows.frame, rows.missing) == ["sex"]
        assert table_notes(bundle, rows)[0].startswith("no sex (column sex): without it, AUC on the training rows")
        assert lacking_columns(bundle, rows.frame, rows.missing) == lacking_columns(bundle, test, ["sex"])
    some = test.assign(sex=["male", *["M"] * (len(test) - 1)])
    assert unknown_columns(bundle, some, []) == []


def test_ages_in_another_unit_are_warned_of(bundle: Bundle, small_data: Path, tmp_path: Path) -> None:
    test = pd.read_csv(small_data / "test.csv")
    for divisor, warned in ((1, 0), (100, 1)):
        test.assign(age_approx=test["age_approx"] / divisor).to_csv(tmp_path / "new.csv", index=False)
        notes = table_notes(bundle, read_new_rows(bundle, small_data / "images", tmp_path / "new.csv"))
        assert len(notes) == warned
    low, high = np.quantile(pd.read_csv(small_data / "train.csv")["age_approx"].dropna(), [0.01, 0.99])
    known = int(test["age_approx"].notna().sum())
    assert f"{known} of {known} values of age_approx lie outside {low:.3g} to {high:.3g}" in notes[0]


def test_ages_and_words_that_may_mean_unknown_are_warned_of_once_with_their_count(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    table = pd.read_csv(small_data / "test.csv").astype({"age_approx": float})
    table.loc[:2, "age_approx"] = 99
    table.loc[3:4, "sex"] = "unknown"
    table.to_csv(tmp_path / "new.csv", index=False)
    command = ["--bundle", str(bundled_experiment / "bundle.zip"), "--images", str(small_data / "images")]
    for metadata, warned in ((tmp_path / "new.csv", 1), (small_data / "test.csv", 0)):
        out = str(tmp_path / f"{warned}.csv")
        assert run_cli("predict", *command, "--metadata", str(metadata), "--out", out) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert printed.count("age 99 in 3 rows") == printed.count("take it as a number of years") == warned
        assert printed.count("'unknown' in 2 rows") == printed.count("do not occur in training") == warned


def test_what_a_missing_column_costs_is_measured_against_the_blend_itself(
    bundled_experiment: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = bundled_experiment / "small.yaml"
    experiment = open_experiment(read_config(path), path, QUIET)
    runs = level1_runs(experiment)
    heads: list[Path] = []
    read_head = expectations.head_logits
    monkeypatch.setattr(
        expectations, "head_logits", lambda path, *rest, **kw: heads.append(path) or read_head(path, *rest, **kw)
    )
    costs = {tuple(cost["without"]): cost for cost in measure_costs(experiment, bundle, runs, QUIET)}
    assert list(costs) == [("age",), ("sex",), ("site",), ("group",), ("age", "sex", "site", "group")]
    assert heads, "a network takes metadata"
    assert len(heads) == len(set(heads)), "each network is read once for all sets of columns"
    blend = read_run(experiment.folder / "blend")
    assert blend is not None
    oof = blend.frame("oof")
    y = experiment.target[pd.Index(experiment.table.train["id"]).get_indexer(oof["id"])]
    with_all = auc(y, oof[f"{blend.meta['chosen']}_tuned"])
    for cost in costs.values():
        assert cost["low"] <= cost["cost"] <= cost["high"]
        assert 0 <= with_all + cost["cost"] <= 1
    assert costs["age", "sex", "site", "group"]["cost"] != 0


def test_the_head_alone_says_what_the_whole_net_said(bundled_experiment: Path, bundle: Bundle) -> None:
    """On the stored embeddings and the row's own metadata, as far as float16 goes; two seeds: of the first."""
    path = bundled_experiment / "small.yaml"
    experiment = open_experiment(read_config(path), path, QUIET)
    run, stored = bundle.image_runs[0], level1_runs(experiment)[0]
    oof, seeds = stored.frame("oof"), stored.frame("oof_seeds")
    rows = np.flatnonzero(oof["fold"] == 1)
    frame = experiment.table.train.set_index("id").loc[oof["id"].iloc[rows]].reset_index()
    poor = frame.assign(age=np.float32(np.nan))
    made, aged = _head_logits(bundle, run, 1, stored.array("oof_z")[rows], [frame, poor])
    np.testing.assert_allclose(made, seeds["logit_0"].to_numpy()[rows], atol=2e-2)
    assert np.abs(aged - made).max() > 1e-4


def test_an_image_that_cannot_be_read_is_named_or_dropped_on_the_record(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "new").mkdir()
    for path in sorted((small_data / "images").iterdir())[:3]:
        shutil.copy(path, tmp_path / "new")
    broken = sorted((tmp_path / "new").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:200])
    command = ["predict", "--bundle", str(bundled_experiment / "bundle.zip"), "--images", str(tmp_path / "new"), "-q"]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv")) == 2
    assert f"id {broken.stem}" in capsys.readouterr().err
    assert not (tmp_path / "p.csv").exists()
    assert run_cli(*command, "--out", str(tmp_path / "p.csv"), "--on-unreadable", "drop") == 0
    assert broken.stem not in pd.read_csv(tmp_path / "p.csv", dtype=str)["id"].tolist()
    assert pd.read_csv(tmp_path / "p.dropped.csv", dtype=str)["id"].tolist() == [broken.stem]
    assert run_cli(*command, "--out", str(tmp_path / "p.csv"), "--on-unreadable", "skip") == 2
    bundle = read_bundle(bundled_experiment / "bundle.zip")
    rows, options = read_new_rows(bundle, tmp_path / "new", None), PredictOptions(on_unreadable="drop")
    found = predict_with_dropped(bundle, rows, tmp_path / "work", QUIET, options)
    assert found.dropped == [broken.stem]
    pd.testing.assert_frame_equal(found.made, pd.read_csv(tmp_path / "p.csv", dtype={"id": "str"}), check_dtype=False)


def test_noise_lies_far_and_the_test_rows_do_not(bundle: Bundle, rows: NewRows, tmp_path: Path) -> None:
    from PIL import Image

    from image_models.io.readers import image_sources

    rng = np.random.default_rng(0)
    ids = [f"noise{i}" for i in range(5)]
    for name in ids:
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    frame = rows.frame.iloc[:5].assign(id=ids, group=ids)
    noise = predict_rows(bundle, NewRows(frame, image_sources(tmp_path, ids), ()), tmp_path / "work", QUIET)
    usual = predict_rows(bundle, rows, tmp_path / "usual", QUIET)
    assert noise["far"].all()
    assert usual["far"].mean() < 0.1


def test_level_2_and_blend_come_back_with_every_fold(bundle: Bundle) -> None:
    fitted = read_fitted(bundle)
    (stage,) = fitted.stages
    assert list(stage.models) == ["gbdt", "line"] == list(fitted.stackers)
    assert [len(features) for features in stage.features] == [3] == [bundle.folds]
    assert [[len(bag.models) for bag in repeat] for repeat in stage.models["gbdt"]] == [[2, 2, 2]]


def test_missing_pictures_are_counted_and_named(bundle: Bundle, small_data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("image_name\nnowhere\n")
    with pytest.raises(ImageError, match=r"1 of 1 images are missing .*nowhere"):
        read_new_rows(bundle, small_data / "images", tmp_path / "rows.csv")


def test_the_lines_that_the_docs_show_run(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One after the other: the report and the bundle of a finished experiment, new images, one patient."""
    text = (Path(__file__).parents[1] / "docs" / "new_images.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (tmp_path / "configs").mkdir()
    shutil.copytree(bundled_experiment / "runs", tmp_path / "runs")
    settings = yaml.safe_load((bundled_experiment / "small.yaml").read_text(encoding="utf-8")) | {"runs": "../runs"}
    (tmp_path / "configs" / "ham10000.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    shutil.copy(small_data / "test.csv", tmp_path / "new.csv")
    (tmp_path / "images").symlink_to(small_data / "images")
    (tmp_path / "patient").mkdir()
    for path in sorted((small_data / "images").iterdir())[:2]:
        shutil.copy(path, tmp_path / "patient")
    (tmp_path / "runs" / "small" / "report.html").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    seen: dict[str, Any] = {}
    for snippet in snippets:
        assert len(snippet.splitlines()) <= 12, "ten lines each, or two more"
        exec(compile(snippet, "new_images.md", "exec"), seen)
    assert seen["page"].samefile(tmp_path / "runs" / "small" / "report.html")
    assert (tmp_path / "ham.zip").read_bytes() == (bundled_experiment / "bundle.zip").read_bytes()
    before = pd.read_parquet(bundled_experiment / "runs/small/predictions.parquet")
    assert (seen["made"]["score"] == before["score"]).all()
    assert [lesion.name for lesion in seen["reading"].lesions] == [path.name for path in seen["files"]]
    assert (tmp_path / "seen.jpg").read_bytes().startswith(b"\xff\xd8")


def test_a_promise_that_a_study_of_the_training_rows_flatters_says_so_wherever_it_stands(
    bundled_experiment: Path, small_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    from starlette.testclient import TestClient

    from dermstack.serve.app import make_app
    from dermstack.serve.patient import Ensemble

    with zipfile.ZipFile(bundled_experiment / "bundle.zip") as archive:
        archive.extractall(tmp_path / "b")
    says = "tiny: settings were chosen on the training rows, by a study or by hand, so the training estimate may be "
    says += "optimistic."
    command = ["predict", "--bundle", str(tmp_path / "b"), "--images", str(small_data / "images")]
    command += ["--metadata", str(small_data / "test.csv"), "--out", str(tmp_path / "p.csv")]
    for selected in ([], ["tiny"]):
        content = read_bundle(tmp_path / "b").manifest | {"selected": selected}
        write_manifest(tmp_path / "b", {key: value for key, value in content.items() if key not in {"files", "format"}})
        assert run_cli(*command) == 0
        assert (says in " ".join(capsys.readouterr().out.split())) == bool(selected)
        page = TestClient(make_app(Ensemble(read_bundle(tmp_path / "b"))), base_url="http://localhost").get("/").text
        assert ("settings were chosen on the training rows" in page) == bool(selected)

"""Rows without a target: read, kept out of the fold whose rows they show, and labelled by nets of each fold alone."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import run_cli, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.special import expit
from test_level1_folds import Rows
from test_pseudo_labels import META, TINY, imported, opened, with_teacher

from dermstack.audit.pseudo_labels import unlabelled_findings
from dermstack.cli.demo_data import write_demo_data
from dermstack.errors import ConfigError, DataError
from dermstack.report.row_flow import (
    IN_EVERY_FOLD,
    NO_MODEL,
    SAME_ID_ANYWHERE,
    UNCERTAIN,
    UNLABELLED_YET,
    UNREADABLE,
    row_flows,
)
from stack.console import Out
from stack.experiment import Experiment
from stack.images import sources_of
from stack.level1.folds import TrainedFold, trained_tasks
from stack.level1.image_runs import check_image_models, level1_inputs
from stack.level1.pseudo_labels import pseudo_rows
from stack.level1.unlabelled_labels import _folder, _inputs, shown
from stack.store import Run, prediction_frame, read_run, write_run
from stack.tables.unlabelled import shown_folds

Capture = pytest.CaptureFixture[str]
COLUMNS = {"id": "image_name", "age": "age_approx", "sex": "sex", "site": "anatom_site_general_challenge"}


def models(**pseudo: Any) -> list[dict[str, Any]]:
    taught = {"teachers": ["teacher"], "rows": "unlabelled"} | pseudo
    return [
        {**TINY, "name": "teacher"},
        {**TINY, "name": "student", "metadata": ["age"], "pseudo_labels": taught},
    ]


def further(folder: Path, n: int = 30) -> dict[str, Any]:
    """Settings of a table of ``n`` generated rows without a target, with images of their own."""
    data = folder / "free"
    write_demo_data(data, n_train=n, n_test=10, size=32, seed=9)
    table = pd.read_csv(data / "train.csv", dtype=str).drop(columns=["target", "diagnosis"], errors="ignore")
    for row_id in table["image_name"]:
        path = next((data / "images").glob(f"{row_id}.*"))
        path.rename(path.with_stem(f"FREE_{row_id}"))
    table = table.assign(image_name="FREE_" + table["image_name"])
    table.to_csv(data / "free.csv", index=False)
    return {
        "name": "free", "table": str(data / "free.csv"), "images": str(data / "images"), "columns": dict(COLUMNS),
    }  # fmt: skip


def config(data: Path, folder: Path, free: dict[str, Any], *, test: bool = True, **changes: Any) -> Path:
    path = small_config(data, folder, **({"image_models": models()} | changes))
    made = yaml.safe_load(path.read_text())
    made["data"]["unlabelled"] = [free]
    if not test:
        made["data"] = {key: value for key, value in made["data"].items() if key not in ("test", "sample_submission")}
    path.write_text(yaml.safe_dump(made))
    return path


def cells(free: dict[str, Any]) -> pd.DataFrame:
    return pd.read_csv(free["table"], dtype=str, keep_default_na=False)


def labelled(experiment: Experiment, logits: dict[int, np.ndarray], name: str = "teacher") -> Run:
    """Writes a run of an image model, and these logits of the unlabelled rows by the nets of each fold."""
    with_teacher(experiment, {fold: np.full(len(experiment.table.test), fold, np.float32) for fold in logits}, name)
    write_run(
        experiment.models / name,
        {**META, "settings": {"metadata": [], "size": 32}},
        frames={"test": read_run(experiment.models / name).frame("test"), "oof": pd.DataFrame({"id": ["x"]})},
    )
    run = read_run(experiment.models / name)
    assert run is not None
    for fold, logit in logits.items():
        meta = {**META, "inputs": _inputs(experiment, run) | {"images": ""}}
        frame = prediction_frame(experiment.unlabelled["id"], fold, logit)
        write_run(_folder(run, fold), meta, frames={"unlabelled": frame.iloc[::-1].reset_index(drop=True)})
    return run


def logits_of(n: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(0)
    return {fold: rng.normal(size=n).astype(np.float32) * 2 for fold in range(3)}


def test_the_rows_have_no_target_and_move_nothing_else(small_data: Path, tmp_path: Path) -> None:
    plain = opened(small_config(small_data, tmp_path))
    experiment = opened(config(small_data, tmp_path, further(tmp_path)))
    assert len(experiment.unlabelled) == 30
    assert "target" not in experiment.unlabelled
    assert experiment.unlabelled["age"].notna().any()
    assert experiment.rows_fingerprint == plain.rows_fingerprint
    assert experiment.metadata_fingerprint == plain.metadata_fingerprint


@pytest.mark.parametrize("swapped", [False, True])
def test_their_colours_alone_are_exchanged(small_data: Path, tmp_path: Path, swapped: bool) -> None:
    free = further(tmp_path) | {"swap_red_blue": swapped}
    ids, sources = sources_of(opened(config(small_data, tmp_path, free)))
    assert {row_id for row_id, one in zip(ids, sources, strict=True) if one.swap_red_blue} == {
        row_id for row_id in ids if swapped and row_id.startswith("FREE_")
    }
    assert sum(row_id.startswith("FREE_") for row_id in ids) == 30


def test_columns_that_are_not_mapped_are_missing(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path) | {"columns": {"id": "image_name", "site": "anatom_site_general_challenge"}}
    rows = opened(config(small_data, tmp_path, free)).unlabelled
    assert rows[["age", "sex"]].isna().all(axis=None)
    assert rows["site"].notna().any()
    assert rows["group"].is_unique


@pytest.mark.parametrize("other", ["train", "test"])
def test_an_id_of_another_table_is_refused_or_dropped(small_data: Path, tmp_path: Path, other: str) -> None:
    free = further(tmp_path)
    taken = pd.read_csv(small_data / f"{other}.csv", dtype=str)["image_name"].iloc[3]
    table = cells(free)
    table.loc[2, "image_name"] = taken
    table.to_csv(free["table"], index=False)
    with pytest.raises(DataError, match=rf"1 ids are also in train, test .*{taken}.*on_collision: drop"):
        opened(config(small_data, tmp_path, free))
    kept = opened(config(small_data, tmp_path, free | {"on_collision": "drop"})).unlabelled["id"]
    assert len(kept) == 29
    assert taken not in set(kept)


def test_an_id_of_two_unlabelled_tables_is_refused(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path)
    path = config(small_data, tmp_path, free)
    made = yaml.safe_load(path.read_text())
    made["data"]["unlabelled"].append(free | {"name": "again"})
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(DataError, match="30 ids are in more than one unlabelled table"):
        opened(path)
    made["data"]["unlabelled"][1]["name"] = "free"
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(ConfigError, match="more than one table is named free"):
        opened(path)


def test_a_column_that_the_csv_lacks_is_named(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path)
    free["columns"]["group"] = "patience_id"
    with pytest.raises(DataError, match=r"no column 'patience_id' \(columns.group\)"):
        opened(config(small_data, tmp_path, free))


def test_rows_to_label_without_a_table_are_refused(small_data: Path, tmp_path: Path) -> None:
    path = small_config(small_data, tmp_path, image_models=models(rows="both"))
    with pytest.raises(ConfigError, match=r"pseudo_labels.rows is 'both', but data.unlabelled names no table"):
        opened(path)


def test_an_imported_run_cannot_label_them(small_data: Path, tmp_path: Path) -> None:
    path = imported(small_data, tmp_path)
    made = yaml.safe_load(path.read_text())
    made["data"]["unlabelled"] = [further(tmp_path)]
    made["image_models"][0]["pseudo_labels"]["rows"] = "both"
    path.write_text(yaml.safe_dump(made))
    with pytest.raises(ConfigError, match=r"theirs, an imported run, whose nets are not here"):
        check_image_models(opened(path))


def test_without_test_rows_they_are_labelled_alone(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(config(small_data, tmp_path, further(tmp_path), test=False))
    check_image_models(experiment)
    both = config(small_data, tmp_path, further(tmp_path), test=False, image_models=models(rows="both"))
    with pytest.raises(DataError, match=r"needs test rows.*pseudo_labels.rows: unlabelled"):
        check_image_models(opened(both))


@settings(max_examples=60)
@given(st.data())
def test_a_row_trains_no_fold_that_holds_out_what_it_shows(data: st.DataObject) -> None:
    """Against a search from every unlabelled row along pairs and groups."""
    n, m, k = 8, 5, 3
    groups = st.sampled_from(["a", "b", "c", "d", "e"])
    of_group = dict(zip("abcde", data.draw(st.lists(st.integers(0, k - 1), min_size=5, max_size=5)), strict=True))
    train = pd.DataFrame({"id": [f"t{i}" for i in range(n)], "group": [data.draw(groups) for _ in range(n)]})
    others = st.sampled_from([*"abcde", "x", "y"])
    rows = pd.DataFrame({"id": [f"u{i}" for i in range(m)], "group": [data.draw(others) for _ in range(m)]})
    ids = [*train["id"], *rows["id"], "test1", "test2"]
    pairs = pd.DataFrame(
        data.draw(st.lists(st.tuples(st.sampled_from(ids), st.sampled_from(ids)), max_size=6)),
        columns=["id_1", "id_2"],
    ).astype("str")
    fold = train["group"].map(of_group).to_numpy(np.int8)
    expected = np.zeros((m, k), bool)
    both = pd.concat([train, rows]).set_index("id")["group"].to_dict()
    for place, start in enumerate(rows["id"]):
        seen, todo = set(), [start]
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            todo += [other for a, b in pairs.to_numpy() for here, other in ((a, b), (b, a)) if here == one]
            todo += [other for other in both if one in both and both[other] == both[one]]
        for row_id in seen & set(train["id"]):
            expected[place, fold[int(row_id[1:])]] = True
    np.testing.assert_array_equal(shown_folds(rows, train, fold, k, pairs), expected)


def test_each_folds_labels_are_those_of_its_own_nets(small_data: Path, tmp_path: Path) -> None:
    experiment = opened(config(small_data, tmp_path, further(tmp_path)))
    logits = logits_of(30)
    labelled(experiment, logits)
    student = experiment.config.image_models[1]
    for fold, logit in logits.items():
        made = pseudo_rows(experiment, student, fold)
        assert made is not None
        np.testing.assert_array_equal(made.rows, np.arange(30))
        np.testing.assert_allclose(made.p, expit(logit), rtol=1e-6)
    both = student.model_copy(
        update={"pseudo_labels": student.pseudo_labels.model_copy(update={"rows": "both", "confidence": 0.6})}
    )
    made = pseudo_rows(experiment, both, 2)
    assert made is not None
    expected = np.concatenate([np.full(60, 2), logits[2]])  # test rows first
    certain = np.flatnonzero(np.abs(expected) >= np.log(0.6 / 0.4))
    np.testing.assert_array_equal(made.rows, certain)
    np.testing.assert_allclose(made.p, expit(expected[certain]), rtol=1e-6)


def test_the_report_counts_them_from_the_file_to_their_use(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path) | {"on_collision": "drop"}
    csv = pd.read_csv(free["table"], dtype=str)
    taken = pd.read_csv(small_data / "train.csv", dtype=str)["image_name"].head(2)
    extra = csv.head(2).assign(**{csv.columns[0]: taken.to_numpy()})
    pd.concat([csv, extra]).to_csv(free["table"], index=False)
    experiment = opened(config(small_data, tmp_path, free, image_models=models(confidence=0.6)))
    ids, train, fold = experiment.unlabelled_as_read["id"], experiment.table.train, experiment.folds.frame["fold"]
    shows = pd.DataFrame({"id_1": ids[3], "id_2": [train["id"][np.flatnonzero(fold == k)[0]] for k in range(3)]})
    dropped = pd.DataFrame({"id": [ids[0]], "source": ["free"], "reason": ["cut short"]}, dtype="str")
    experiment = replace(experiment, curation=replace(experiment.curation, pairs=shows, dropped=dropped))
    every = np.ones(len(train), bool)
    before = row_flows(experiment, every, [])[-1]
    assert before.excluded == {SAME_ID_ANYWHERE: 2, UNREADABLE: 1, IN_EVERY_FOLD: 1, UNLABELLED_YET: 28}
    logits = {k: np.zeros(29, np.float32) for k in range(3)}  # a probability of 0.5 is not certain
    logits[0][:5], logits[1][0], logits[2][3:9] = 3, 3, -3  # row 2 is the one that shows a row of every fold
    labelled(experiment, logits)
    after = row_flows(experiment, every, [])[-1]
    assert after.name == "Unlabelled: free"
    assert after.excluded == {SAME_ID_ANYWHERE: 2, UNREADABLE: 1, IN_EVERY_FOLD: 1, UNCERTAIN: 29 - 9}
    assert [step.rows for step in after.steps] == [32, 29, 8]
    assert after.steps[-1].label.startswith("only train student,")
    alone = experiment.config.model_copy(update={"image_models": experiment.config.image_models[:1]})
    unused = row_flows(replace(experiment, config=alone), every, [])[-1]
    assert unused.excluded == {SAME_ID_ANYWHERE: 2, UNREADABLE: 1, NO_MODEL: 29}


def test_they_train_beside_the_rows_of_the_fold(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path)
    free["columns"]["group"] = "patient_id"
    table = cells(free)
    patient = pd.read_csv(small_data / "train.csv", dtype=str)["patient_id"].iloc[0]
    table["patient_id"] = [patient, *(f"free {i}" for i in range(29))]
    table.to_csv(free["table"], index=False)
    experiment = opened(config(small_data, tmp_path, free))
    logits = logits_of(30)
    labelled(experiment, logits)
    held = experiment.folds.frame.set_index("group")["fold"].loc[patient]
    held = int(np.atleast_1d(held)[0])
    student = experiment.config.image_models[1]
    plain = student.model_copy(update={"pseudo_labels": None})
    free_rows = Rows().rows_for(experiment.unlabelled["id"])
    for task, base in zip(
        trained_tasks(experiment, student, Rows(), {}, Out(quiet=True)),
        trained_tasks(experiment, plain, Rows(), {}, Out(quiet=True)),
        strict=True,
    ):
        assert isinstance(task.fit, TrainedFold)
        assert isinstance(base.fit, TrainedFold)
        first = 1 if task.fold == held else 0  # the first row shows the patient of this fold
        np.testing.assert_array_equal(task.fit.data.rows, [*base.fit.data.rows, *free_rows[first:]])
        n = len(base.fit.data.rows)
        np.testing.assert_allclose(task.fit.data.soft[n:], expit(logits[task.fold][first:]), rtol=1e-6)
        ages = task.fit.data.metadata[n:]
        assert len(np.unique(ages, axis=0)) > 5, "each row brings its own age"
        assert set(task.fit.metadata) == set(base.fit.metadata)
    (note,) = unlabelled_findings(experiment)
    assert (note.severity, "1 of 30 rows" in note.evidence, f"1 in fold {held}" in note.evidence) == (
        "note",
        True,
        True,
    )


def test_what_a_student_depends_on(small_data: Path, tmp_path: Path) -> None:
    free = further(tmp_path)
    path = config(small_data, tmp_path, free)
    experiment = opened(path)
    labelled(experiment, logits_of(30))
    teacher, student = experiment.config.image_models
    first = level1_inputs(experiment, student)
    labelled(experiment, {fold: logit + 1 for fold, logit in logits_of(30).items()})
    second = level1_inputs(experiment, student)
    assert [name for name in first if first[name] != second[name]] == ["pseudo-labels"]
    table = cells(free)
    table.assign(age_approx="50").to_csv(free["table"], index=False)
    third = level1_inputs(opened(path), student)
    assert [name for name in second if second[name] != third[name]] == ["unlabelled rows"]
    without = opened(small_config(small_data, tmp_path, image_models=models(rows="test")))
    assert level1_inputs(without, teacher) == level1_inputs(experiment, teacher), "no teacher becomes stale"


def test_the_default_rows_keep_the_fingerprint_of_runs_made_before(small_data: Path, tmp_path: Path) -> None:
    with_rows = opened(small_config(small_data, tmp_path, image_models=models(rows="test")))
    assert "rows" not in with_rows.config.image_models[1].settings()["pseudo_labels"]


def test_without_a_search_for_duplicates_the_audit_warns(small_data: Path, tmp_path: Path) -> None:
    path = config(small_data, tmp_path, further(tmp_path))
    assert unlabelled_findings(opened(path)) == []
    made = yaml.safe_load(path.read_text())
    made["data"]["find_duplicates"] = False
    path.write_text(yaml.safe_dump(made))
    assert [one.severity for one in unlabelled_findings(opened(path))] == ["warning"]


def with_images_of(data: Path, folder: Path) -> Path:
    """A copy of the data set, whose files may be changed."""
    return Path(shutil.copytree(data, folder / "data"))


@pytest.mark.slow
def test_the_whole_way_with_a_copy_of_a_training_image(
    small_data: Path, tmp_path: Path, trained: list[int], capsys: Capture
) -> None:
    free = further(tmp_path)
    copy = cells(free)["image_name"].iloc[4]
    original = pd.read_csv(small_data / "train.csv", dtype=str)["image_name"].iloc[7]
    with Image.open(next((small_data / "images").glob(f"{original}.*"))) as image:
        image.convert("RGB").resize((40, 40)).save(next(Path(free["images"]).glob(f"{copy}.*")))
    still = {**TINY, "name": "still", "frozen": True}
    first, student = models(rows="both", teachers=["teacher", "still"])
    path = config(small_data, tmp_path, free, image_models=[first | {"metadata": ["age"]}, still, student])
    assert run_cli("plan", "-c", str(path)) == 0
    assert run_cli("eda", "-c", str(path), "-q") == 0
    assert "images without a target" in (tmp_path / "runs" / "small" / "eda.html").read_text()
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert len(trained) == 6
    experiment = opened(path)
    place = experiment.unlabelled["id"].tolist().index(copy)
    held = experiment.folds.frame.set_index("id")["fold"].loc[original]
    assert shown(experiment)[place].nonzero()[0].tolist() == [held]
    assert run_cli("oof", "-c", str(path), "-q") == 0
    assert run_cli("plan", "-c", str(path)) == 0
    assert "stale" not in capsys.readouterr().out
    for step in (("audit",), ("stack",), ("bundle", "--out", str(tmp_path / "bundle.zip"))):
        assert run_cli(step[0], "-c", str(path), "-q", *step[1:]) == 0
    assert "rows of free have no target" in (tmp_path / "runs" / "small" / "model_card.md").read_text()
    images = ["--images", str(small_data / "images"), "--metadata", str(small_data / "test.csv")]
    out = ["--out", str(tmp_path / "new.csv"), "-q"]
    assert run_cli("predict", "--bundle", str(tmp_path / "bundle.zip"), *images, *out) == 0
    table = cells(free)
    table.iloc[:-2].to_csv(free["table"], index=False)
    assert run_cli("oof", "-c", str(path), "-q") == 2
    assert "student was made with other" in capsys.readouterr().err
    assert len(trained) == 6
    assert run_cli("oof", "-c", str(path), "-q", "--rebuild", "student") == 0
    assert len(trained) == 9, "the teachers' nets stay"


@pytest.mark.slow
@pytest.mark.parametrize("rows", ["unlabelled", "both"])
def test_targets_of_a_fold_reach_none_of_its_own_predictions(small_data: Path, tmp_path: Path, rows: str) -> None:
    """The law itself: with other targets in fold 0, the second round's predictions of fold 0 have the same bytes."""
    data = with_images_of(small_data, tmp_path)
    free = further(tmp_path)
    train = pd.read_csv(data / "train.csv", dtype=str)
    train["own_fold"] = pd.factorize(train["patient_id"])[0] % 3
    made = {}
    for name in ("before", "after"):
        train.to_csv(data / "train.csv", index=False)
        path = config(data, tmp_path, free, experiment=name, image_models=models(rows=rows))
        settings_ = yaml.safe_load(path.read_text())
        settings_["data"]["columns"]["fold"] = "own_fold"
        path.write_text(yaml.safe_dump(settings_))
        assert run_cli("oof", "-c", str(path), "-q") == 0
        run = read_run(tmp_path / "runs" / name / "models" / "student")
        assert run is not None
        made[name] = run.frame("oof")
        of_fold = train.index[train["own_fold"] == 0]
        train.loc[of_fold, "target"] = np.where(train.loc[of_fold, "target"] == "1", "0", "1")
    same = made["before"]["logit"].to_numpy() == made["after"]["logit"].to_numpy()
    fold = made["before"]["fold"].to_numpy()
    assert same[fold == 0].all()
    assert not same[fold != 0].any(), "the nets of the other folds have learned them"

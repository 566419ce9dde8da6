"""Predictions made elsewhere: joined by id, counted, in the experiment's folds, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imported_experiment import (
    Files,
    by_id,
    import_error,
    import_frames,
    import_paths,
    opened_experiment,
    predictions,
    write_experiment,
)
from scipy.special import logit

from dermstack.errors import DataError, StoreError
from stack.console import Out
from stack.experiment import Experiment
from stack.imported.prediction_files import ImportedColumns
from stack.predictions.joined import read_predictions
from stack.store import read_run, read_runs


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return opened_experiment(write_experiment(tmp_path))


@pytest.fixture
def files(experiment: Experiment) -> Files:
    return predictions(experiment)


def test_rows_are_joined_by_id_whatever_their_order(experiment: Experiment, files: Files) -> None:
    oof, test = files
    expected = read_predictions(
        [import_frames(experiment, "sorted", oof, test)],
        experiment.table.train["id"],
        experiment.table.test["id"],
        folds=3,
    )
    for seed in range(5):
        mixed = [frame.sample(frac=1, random_state=seed) for frame in files]
        run = import_frames(experiment, f"mixed{seed}", *mixed)
        stored = run.frame("oof")
        assert stored.set_index("id")["p"].to_dict() == pytest.approx(by_id(oof, "p"), rel=1e-6)
        assert by_id(stored, "fold") == by_id(oof, "fold")
        made = read_predictions([run], experiment.table.train["id"], experiment.table.test["id"], folds=3)
        for name in ("rows", "oof", "nets", "test", "test_nets"):
            assert np.array_equal(getattr(made, name), getattr(expected, name)), name
    truth = logit(oof.set_index("isic")["p"].loc[experiment.table.train["id"]].to_numpy())
    assert np.allclose(expected.oof[:, 0], truth, rtol=1e-5)


def test_a_run_is_complete_and_on_record(experiment: Experiment, files: Files) -> None:
    import_frames(experiment, "net", *files)
    run = read_run(experiment.models / "net")
    assert run is not None
    assert (run.meta["level"], run.meta["kind"], run.meta["excluded"]) == (1, "imported", 0)
    assert (run.meta["foreign_folds"], run.meta["test_averaged"]) == (False, False)
    assert experiment.finished(level=1) == [run]


def test_zero_and_one_lie_half_of_the_resolution_inside(experiment: Experiment, files: Files) -> None:
    """A 0 among three digits means below 0.0005, and no prediction is certain."""
    oof, test = files
    oof["p"], test["p"] = oof["p"].round(3), test["p"].round(2)  # each file by its own resolution
    oof.loc[:1, "p"], test.loc[:1, "p"] = [0.0, 1.0], [0.0, 1.0]
    run = import_frames(experiment, "net", oof, test)
    assert run.frame("oof")["p"].iloc[:2].tolist() == pytest.approx([0.0005, 0.9995])
    assert run.frame("test")["p"].iloc[:2].tolist() == pytest.approx([0.005, 0.995])


def test_zero_and_one_among_all_digits_stay_finite_and_the_extremes(experiment: Experiment, files: Files) -> None:
    oof, test = files
    oof.loc[:1, "p"] = [0.0, 1.0]
    stored = import_frames(experiment, "net", oof, test).frame("oof")
    assert np.isfinite(stored["logit"]).all()
    assert stored["p"].iloc[:2].tolist() == pytest.approx([oof["p"][2:].min() / 2, (1 + oof["p"][2:].max()) / 2])


@pytest.mark.parametrize("missing", [1, 7])
def test_missing_rows_need_their_exact_number(experiment: Experiment, files: Files, missing: int) -> None:
    oof, test = files[0].iloc[missing:], files[1]
    n = len(files[0])
    for declared in (0, missing - 1, missing + 1, n):
        if declared != missing:
            message = import_error(experiment, (oof, test), exclude=declared)
            assert f"{missing} of {n} training rows have no prediction, but {declared} are declared" in message
            assert f"--exclude {missing}" in message
    assert import_frames(experiment, "net", oof, test, exclude=missing).meta["excluded"] == missing


def test_rows_that_are_all_there_exclude_none(experiment: Experiment, files: Files) -> None:
    assert "remove --exclude" in import_error(experiment, files, exclude=3)


def test_a_whole_fold_can_not_be_excluded(experiment: Experiment, files: Files) -> None:
    oof, test = files
    message = import_error(experiment, (oof[oof["fold"] != 1], test), exclude=int((oof["fold"] == 1).sum()))
    assert "no row of fold 1 has a prediction" in message


def test_excluded_rows_leave_every_run_and_nothing_is_filled(experiment: Experiment, files: Files) -> None:
    train, test_ids = experiment.table.train["id"], experiment.table.test["id"]
    other = predictions(experiment, seed=1)
    gone, also_gone = [3, 40, 41], [41, 90]
    runs = [
        import_frames(experiment, "a", files[0].drop(gone), files[1], exclude=3),
        import_frames(experiment, "b", other[0].drop(also_gone).sample(frac=1, random_state=0), other[1], exclude=2),
        import_frames(experiment, "c", *files),
    ]
    made = read_predictions(runs, train, test_ids, folds=3)
    kept = [row for row in range(len(train)) if row not in {*gone, *also_gone}]
    assert made.rows.tolist() == kept
    for column, (oof, _) in enumerate((files, other, files)):
        assert np.allclose(made.oof[:, column], logit(oof["p"].to_numpy()[kept]), rtol=1e-5)
        assert (made.nets[:, column] == oof["fold"].to_numpy()[kept]).all()


def test_a_run_with_an_undeclared_gap_is_not_stacked(experiment: Experiment, files: Files) -> None:
    """As when the file was made for a table that has grown since."""
    run = import_frames(experiment, "net", *files)
    longer = pd.concat([experiment.table.train["id"], pd.Series(["new"])], ignore_index=True)
    with pytest.raises(StoreError, match=r"1 of .* training rows have no prediction, but 0 are declared"):
        read_predictions([run], longer, experiment.table.test["id"], folds=3)
    with pytest.raises(StoreError, match="1 ids that are not in the table"):
        read_predictions([run], experiment.table.train["id"].iloc[1:], experiment.table.test["id"], folds=3)


def test_strange_and_doubled_ids_are_named(experiment: Experiment, files: Files) -> None:
    oof, test = files
    strange = pd.concat([oof, pd.DataFrame({"isic": ["stranger"], "p": [0.5], "fold": [0]})])
    assert "first 'stranger': remove them from the file" in import_error(experiment, (strange, test))
    assert "1 ids are not training rows, first 'stranger'" in import_error(experiment, (strange, test))
    named = [frame.assign(isic=frame["isic"] + ".jpg") for frame in files]
    assert "first '0000.jpg': '0000.jpg' seems to be '0000' of" in import_error(experiment, (named[0], test))
    assert "ids are not test rows: '" in (said := import_error(experiment, (oof, named[1])))
    assert "of the test rows: write the ids in both files in the same way" in said
    assert "1 row repeats an id, first '0004'" in import_error(experiment, (pd.concat([oof, oof.iloc[[4]]]), test))
    assert "1 row repeats an id of net 1" in import_error(
        experiment, (oof, pd.concat([test, test[test["fold"] == 1].iloc[[0]]]))
    )
    assert "1 test rows have no prediction of net 0, 0 ids are not test rows" in import_error(
        experiment, (oof, test.iloc[1:])
    )
    instead = test.replace({"isic": {test["isic"].iloc[0]: test["isic"].iloc[1]}})  # as many rows as there must be
    assert "1 row repeats an id of net 0" in import_error(experiment, (oof, instead))
    assert "1 test rows have no prediction of net 0, 1 ids are not test rows" in import_error(
        experiment, (oof, test.replace({"isic": {test["isic"].iloc[0]: "stranger"}}))
    )


@pytest.mark.parametrize("value", ["1.01", "-0.01", "nan", "", "high", "inf"])
@pytest.mark.parametrize("part", [0, 1])
def test_what_is_no_probability_is_named_with_its_row(
    experiment: Experiment, files: Files, value: str, part: int
) -> None:
    changed = [frame.astype({"p": str}) for frame in files]
    changed[part].loc[11, "p"] = value
    message = import_error(experiment, (changed[0], changed[1]))
    assert f"1 values of 'p' are not probabilities, first {value!r} in row 13" in message
    assert ("net-oof.csv", "net-test.csv")[part] in message


def test_test_rows_need_predictions(experiment: Experiment, files: Files) -> None:
    assert "give their predictions with --test" in import_error(experiment, (files[0], None))


def test_an_experiment_without_test_rows_needs_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    experiment = opened_experiment(write_experiment(tmp_path), "data.test=null")
    oof, test = predictions(experiment)
    assert len(import_frames(experiment, "net", oof, None).frame("test")) == 0
    path = tmp_path / "unread.csv"
    test.to_csv(path, index=False)
    import_paths(experiment, "other", tmp_path / "net-oof.csv", path, Out())
    assert f"{path} is not read" in capsys.readouterr().out, "nothing is dropped quietly"


@pytest.mark.parametrize(
    ("column", "near", "option"), [("p", "prob", "--p-column"), ("isic", "isic_id", "--id-column")]
)
def test_a_wrong_column_suggests_the_nearest(
    experiment: Experiment, files: Files, column: str, near: str, option: str
) -> None:
    renamed = files[0].rename(columns={column: near}), files[1]
    columns = ImportedColumns("isic", "probs" if column == "p" else "p", "fold")
    assert f"did you mean {option} {near}?" in import_error(experiment, renamed, columns=columns)


def test_a_column_that_resembles_none_shows_those_that_there_are(experiment: Experiment, files: Files) -> None:
    columns = ImportedColumns("isic", "xyz", "fold")
    assert "no column 'xyz': name it with --p-column; the columns are isic, p, fold" in import_error(
        experiment, files, columns=columns
    )


@pytest.mark.parametrize("name", ["../../escape", "a/b", "..", ".hidden", "", "a b", "a\n", "x" * 65])
def test_a_name_that_would_leave_the_models_is_refused(experiment: Experiment, files: Files, name: str) -> None:
    oof, test = (experiment.config_path.parent / f"{part}.csv" for part in ("oof", "test"))
    for frame, path in zip(files, (oof, test), strict=True):
        frame.to_csv(path, index=False)
    with pytest.raises(DataError, match="cannot be the name of a run"):
        import_paths(experiment, name, oof, test, replace=True)
    assert not experiment.models.exists()


def test_a_name_of_the_config_is_taken(tmp_path: Path) -> None:
    experiment = opened_experiment(write_experiment(tmp_path, stackers=[{"name": "net", "kind": "lightgbm"}]))
    assert "net is a model of" in import_error(experiment, predictions(experiment))


def test_an_import_again_needs_replace_and_keeps_the_old_one(experiment: Experiment, files: Files) -> None:
    before = import_frames(experiment, "net", *files)
    again = predictions(experiment, seed=1)
    with pytest.raises(StoreError, match="add --replace"):
        import_frames(experiment, "net", *again)
    assert read_run(experiment.models / "net") == before
    after = import_frames(experiment, "net", *again, replace=True)
    assert after.meta["fingerprint"] != before.meta["fingerprint"]
    [old] = read_runs(experiment.old)
    assert old.meta == before.meta
    assert by_id(old.frame("oof"), "p") == pytest.approx(by_id(files[0], "p"), rel=1e-6)


def test_the_test_file_may_name_its_columns_otherwise(experiment: Experiment, files: Files) -> None:
    oof, test = files
    expected = import_frames(experiment, "same", *files).frame("test")
    renamed = test.rename(columns={"isic": "image", "p": "prediction", "fold": "net"})
    names = ImportedColumns("image", "prediction", "net", option="--test")
    folder = experiment.config_path.parent
    oof.to_csv(folder / "o.csv", index=False)
    renamed.to_csv(folder / "t.csv", index=False)
    run = import_paths(experiment, "other", folder / "o.csv", folder / "t.csv", test_columns=names)
    pd.testing.assert_frame_equal(run.frame("test"), expected)
    for other, words in (
        ("predicton", r"did you mean --test-p-column predicton\?"),
        ("q", "name it with --test-p-column;"),
    ):
        renamed.rename(columns={"prediction": other}).to_csv(folder / "t.csv", index=False)
        with pytest.raises(DataError, match=f"no column 'prediction': {words}"):
            import_paths(experiment, "more", folder / "o.csv", folder / "t.csv", test_columns=names)


@pytest.mark.parametrize("index", ["isic", None])
@pytest.mark.parametrize("suffix", ["parquet", "pq", "PARQUET", "csv"])
def test_parquet_is_imported_whatever_its_name_also_with_ids_in_the_index(
    experiment: Experiment, files: Files, suffix: str, index: str | None
) -> None:
    expected = import_frames(experiment, "csv", *files)
    paths = []
    for number, frame in enumerate(files):
        paths.append(experiment.config_path.parent / f"{number}.{suffix}")
        frame.set_index("isic").rename_axis(index).to_parquet(paths[-1])
    made = import_paths(experiment, "parquet", *paths)
    for part in ("oof", "test"):
        pd.testing.assert_frame_equal(made.frame(part), expected.frame(part))


def test_a_lost_zero_is_named_with_the_row_that_it_may_be(experiment: Experiment, files: Files) -> None:
    """As pandas makes 7 of 0007; the id NA beside it shows that the ids are text."""
    lost = files[0].assign(isic=files[0]["isic"].str.lstrip("0").replace("", "0"))
    message = import_error(experiment, (lost, files[1]))
    assert "'0' is not in the training rows, which has '0000'" in message
    assert "whether they are one is not certain" in message


def test_a_row_with_a_surplus_cell_shifts_no_column(experiment: Experiment, files: Files) -> None:
    """pandas would take the first column as an index, and the probabilities as ids."""
    oof = files[0]
    path = experiment.config_path.parent / "surplus.csv"
    lines = oof.to_csv(index=False).splitlines()
    path.write_text("\n".join([lines[0], *(f"{line},x" for line in lines[1:])]) + "\n")
    with pytest.raises(DataError, match="not a readable csv"):
        import_paths(experiment, "net", path, None)


def test_probabilities_of_classes_are_not_taken_for_those_of_fold_nets(experiment: Experiment, files: Files) -> None:
    """Three classes and three folds: an array of nets has the same form, and each row would get the p of its fold."""
    (oof, test), rng = files, np.random.default_rng(0)
    folder = experiment.config_path.parent
    plain, array, array_of_test, wide = (folder / name for name in ("a.csv", "oof.npy", "test.npy", "wide.csv"))
    oof.to_csv(plain, index=False)
    oof[["isic", "fold"]].to_csv(folder / "oof_ids.csv", index=False)
    test[["isic"]].drop_duplicates().to_csv(folder / "test_ids.csv", index=False)
    classes = rng.dirichlet(np.ones(3), len(oof))
    np.save(array_of_test, classes[: test["isic"].nunique()])
    of_test = ImportedColumns("isic", "p", "fold", "--test")
    with pytest.raises(DataError, match=r"test\.npy: its columns add up to 1 in every row"):
        import_paths(experiment, "net", plain, array_of_test, test_columns=of_test)
    for values in (classes, classes.round(3), classes.astype(np.float16)):
        np.save(array, values)
        with pytest.raises(DataError, match=r"its columns add up to 1 in every row: .* 3 classes, not of one class"):
            import_paths(experiment, "net", array, None)
    oof.assign(**{f"c{k}": classes[:, k] for k in range(3)}).to_csv(wide, index=False)
    with pytest.raises(DataError, match=r"its columns 'c0', 'c1', 'c2' add up to 1"):
        import_paths(experiment, "net", wide, None, columns=ImportedColumns("isic", "p", "fold", nets="c"))
    # The sum of three nets of a weak model is near 1 too, but differs as much as each of them.
    weak = np.full((len(oof), 3), 1 / 3) + rng.normal(0, 0.001, (len(oof), 1))
    np.save(array, weak)
    test.to_csv(folder / "b.csv", index=False)
    run = import_paths(experiment, "weak", array, folder / "b.csv", test_columns=of_test)
    assert np.allclose(run.frame("oof").set_index("id")["p"].reindex(oof["isic"]), weak[:, 0])

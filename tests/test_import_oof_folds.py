"""Folds and nets of predictions made elsewhere: ours under other numbers, foreign and declared, or refused."""

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
    opened_experiment,
    predictions,
    write_experiment,
)
from scipy.special import logit

from stack.experiment import Experiment
from stack.predictions.joined import read_predictions
from stack.predictions.ranks import AVERAGED


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return opened_experiment(write_experiment(tmp_path))


@pytest.fixture
def files(experiment: Experiment) -> Files:
    return predictions(experiment)


def other_folds(experiment: Experiment, seed: int) -> pd.Series:
    """Grouped folds as well, but others: three, dealt to split_groups at random."""
    groups = sorted(set(experiment.split_group))
    dealt = dict(zip(groups, np.random.default_rng(seed).permutation(len(groups)) % 3, strict=True))
    return pd.Series([dealt[group] for group in experiment.split_group])


def test_the_same_folds_under_other_numbers_are_ours(experiment: Experiment, files: Files) -> None:
    """Test nets too: net "c" of the file is our net 2."""
    plain = import_frames(experiment, "plain", *files)
    for name, names in (("text", ["b", "a", "c"]), ("numbers", [11, 5, 7]), ("floats", ["1.0", "2.0", "0.0"])):
        renamed = [frame.assign(fold=[names[net] for net in frame["fold"]]) for frame in files]
        run = import_frames(experiment, name, *renamed)
        assert not run.meta["foreign_folds"]
        for part in ("oof", "test"):
            pd.testing.assert_frame_equal(run.frame(part), plain.frame(part))


def test_a_fold_is_the_same_whether_written_0_or_0_0(experiment: Experiment, files: Files) -> None:
    oof, test = files
    plain = import_frames(experiment, "plain", oof, test)
    run = import_frames(experiment, "mixed", oof, test.astype({"fold": float}))
    pd.testing.assert_frame_equal(run.frame("test"), plain.frame("test"))


def test_other_folds_are_refused_unless_declared_and_then_on_record(experiment: Experiment, files: Files) -> None:
    oof, test = files[0].assign(fold=other_folds(experiment, 1)), files[1]
    message = import_error(experiment, (oof, test))
    assert "column 'fold' holds other folds than the experiment's" in message
    assert "--foreign-folds" in message
    run = import_frames(experiment, "net", oof, test, foreign_folds=True)
    assert run.meta["foreign_folds"] is True
    assert by_id(run.frame("oof"), "fold") == by_id(oof, "fold")


def test_the_nets_of_foreign_folds_are_averaged_for_each_of_ours(experiment: Experiment, files: Files) -> None:
    oof, test = files[0].assign(fold=other_folds(experiment, 1)), files[1]
    run = import_frames(experiment, "net", oof, test, foreign_folds=True)
    made = read_predictions([run], experiment.table.train["id"], experiment.table.test["id"], folds=3)
    mean = test.assign(z=logit(test["p"])).groupby("isic")["z"].mean().loc[experiment.table.test["id"]]
    assert (made.test_nets == AVERAGED).all()
    for k in range(3):
        assert np.allclose(made.test[k, :, 0], mean, rtol=1e-4, atol=1e-5)


def test_folds_that_only_look_foreign_are_ours(experiment: Experiment, files: Files) -> None:
    assert import_frames(experiment, "net", *files, foreign_folds=True).meta["foreign_folds"] is False


def test_folds_that_tear_a_group_are_refused_even_when_declared(experiment: Experiment, files: Files) -> None:
    """One row of a patient in another fold: its net has seen the patient."""
    fold = other_folds(experiment, 1)
    group = pd.Series(experiment.split_group)
    name = group[group.duplicated()].iloc[0]
    row = int(np.flatnonzero(group == name)[0])
    fold.iloc[row] = (fold.iloc[row] + 1) % 3
    message = import_error(experiment, (files[0].assign(fold=fold), files[1]), foreign_folds=True)
    assert f"its folds split 1 groups, first {name!r}" in message


def test_duplicates_count_as_one_group_in_foreign_folds_too(tmp_path: Path) -> None:
    """Two patients with the same lesion: ours keep them together, theirs do not."""
    write_experiment(tmp_path)
    train = pd.read_csv(tmp_path / "train.csv", dtype=str, keep_default_na=False)
    first = train.drop_duplicates("patient")["isic"].to_numpy()
    pd.DataFrame({"a": first[:1], "b": first[1:2]}).to_csv(tmp_path / "pairs.csv", index=False)
    experiment = opened_experiment(tmp_path / "elsewhere.yaml", "data.duplicates=pairs.csv")
    oof, test = predictions(experiment)
    patients = experiment.table.train["group"].drop_duplicates().tolist()
    dealt = {patient: number % 3 for number, patient in enumerate(patients)}
    fold = experiment.table.train["group"].map(dealt)
    assert "its folds split 1 groups" in import_error(experiment, (oof.assign(fold=fold), test), foreign_folds=True)


def test_no_fold_column_needs_the_declaration(experiment: Experiment, files: Files) -> None:
    oof, test = files[0].drop(columns="fold"), files[1].iloc[: len(files[1]) // 3].drop(columns="fold")
    message = import_error(experiment, (oof, test))
    assert "no column 'fold'" in message
    assert "--foreign-folds" in message
    run = import_frames(experiment, "net", oof, test, foreign_folds=True)
    assert run.meta["foreign_folds"] is True
    assert set(run.frame("test")["fold"]) == {AVERAGED}


def test_rows_without_a_fold_are_named(experiment: Experiment, files: Files) -> None:
    """A gap must not become the number of a net, whatever is declared."""
    for part in (0, 1):
        changed = [frame.astype({"fold": str}) for frame in files]
        changed[part].loc[[4, 9], "fold"] = ""
        for foreign in (False, True):
            if part == 0 or not foreign:
                message = import_error(experiment, (changed[0], changed[1]), foreign_folds=foreign)
                assert "2 rows without a 'fold', first row 6" in message


def test_a_column_of_patients_is_no_fold(experiment: Experiment, files: Files) -> None:
    many = files[0].assign(fold=[f"p{i}" for i in range(len(files[0]))])
    assert "check --fold-column" in import_error(experiment, (many, files[1]), foreign_folds=True)


def test_an_averaged_test_file_is_used_for_every_net_and_marked_so(experiment: Experiment, files: Files) -> None:
    oof, test = files[0], files[1][files[1]["fold"] == 0]
    for name, averaged in (("with", test), ("without", test.drop(columns="fold"))):
        run = import_frames(experiment, name, oof, averaged, test_averaged=True)
        assert run.meta["test_averaged"] is True
        assert (run.frame("test")["fold"] == AVERAGED).all()
        made = read_predictions([run], experiment.table.train["id"], experiment.table.test["id"], folds=3)
        assert (made.test_nets == AVERAGED).all()
        assert np.array_equal(made.test[0], made.test[1])
        assert np.allclose(made.test[2, :, 0], logit(test["p"]), rtol=1e-4, atol=1e-5)


def test_an_averaged_file_must_be_declared(experiment: Experiment, files: Files) -> None:
    test = files[1][files[1]["fold"] == 0]
    for averaged in (test.drop(columns="fold"), test.assign(fold=-1)):
        assert "--test-averaged" in import_error(experiment, (files[0], averaged))
    assert "give one row for each id" in import_error(experiment, files, test_averaged=True)


def test_a_lost_test_net_is_named_at_once(experiment: Experiment, files: Files) -> None:
    oof, test = (frame.assign(fold=frame["fold"] + 5) for frame in files)
    assert "no row is of net 6" in import_error(experiment, (oof, test[test["fold"] != 6]))
    assert "fold 9 is not in the out-of-fold file" in import_error(experiment, (oof, test.replace({"fold": {7: 9}})))


def test_a_lost_or_added_test_net_of_foreign_folds_is_named(experiment: Experiment, files: Files) -> None:
    """Test rows get the mean of the nets: without a word, it was that of the nets that happened to be in the file."""
    oof = files[0].assign(fold=other_folds(experiment, 5).to_numpy())
    test = files[1]
    words = import_error(experiment, (oof, test[test["fold"] != 1]), foreign_folds=True)
    assert "predictions of 2 nets, but the out-of-fold file has 3: give the rows of every net" in words
    more = pd.concat([test, test[test["fold"] == 0].assign(fold=9)])
    assert "predictions of 4 nets" in import_error(experiment, (oof, more), foreign_folds=True)
    import_frames(experiment, "all", oof, test.assign(fold=test["fold"] + 7), foreign_folds=True)

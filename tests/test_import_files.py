"""Names of files say which run, part, fold and seed they are, or are refused by name."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.imported.files import column_sources, found_sources, listed_sources, named_file
from stack.imported.prediction_files import ImportedColumns
from stack.imported.run import ImportOptions

COLUMNS = ImportedColumns("id", "p", "fold")
OPTIONS = ImportOptions(COLUMNS, ImportedColumns("id", "p", "fold", option="--test"))
AVERAGED = ImportOptions(COLUMNS, OPTIONS.test_columns, average_seeds=True)


@pytest.mark.parametrize(
    ("name", "run", "part", "fold", "seed"),
    [
        ("net_a_oof.csv", "net_a", "oof", "", ""),
        ("oof_net_a.csv.gz", "net_a", "oof", "", ""),
        ("net_a.parquet", "net_a", "oof", "", ""),
        ("net-a.v2-sub.csv", "net-a.v2", "test", "", ""),
        ("submission_b3.zip", "b3", "test", "", ""),
        ("test_preds_b3_fold2.npy", "b3", "test", "2", ""),
        ("OOF_B3_Fold_02_seed42.csv", "B3", "oof", "2", "42"),
        ("b3_all_rows.csv", "b3", "all_rows", "", ""),
        ("testnet.csv", "testnet", "oof", "", ""),  # words, not parts of words
        ("b3 valid.csv", "b3", "oof", "", ""),
        ("b3_folds.csv", "b3_folds", "oof", "", ""),
        ("net_a/oof.csv", "net_a", "oof", "", ""),
        ("net_a/fold1/test.csv", "net_a", "test", "1", ""),
        ("oof/net_a.csv", "net_a", "oof", "", ""),
        ("submissions/net_a.csv", "net_a", "test", "", ""),
        ("net_a/net_b_oof.csv", "net_b", "oof", "", ""),
    ],
)
def test_a_name_says_what_a_file_is(name: str, run: str, part: str, fold: str, seed: str) -> None:
    found = named_file(Path("nets") / name, Path("nets"))
    assert (found.run, found.part, found.fold, found.seed) == (run, part, fold, seed)


def test_a_name_with_the_words_of_two_parts_is_refused() -> None:
    with pytest.raises(DataError, match="its name says oof and test: rename it"):
        named_file(Path("oof_test_net.csv"))


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("id,p,fold\n")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a_oof.csv", "a_oof.parquet"], "both would be the out-of-fold predictions of the run a"),
        (["a.csv", "oof_a.csv"], "both would be the out-of-fold predictions of the run a"),
        (["a_oof.csv", "a_test.csv", "b_test.csv"], "b_test.csv: no out-of-fold file for the run b"),
        (["a_oof.csv", "a_fold0_oof.csv"], "this file of all folds and others of one fold"),
        (["notes.txt"], "no file of predictions"),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path: Path, names: list[str], words: str) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=words):
        found_sources([str(tmp_path)], OPTIONS)


def test_files_go_together_by_name_and_each_is_taken_once(tmp_path: Path) -> None:
    touch(tmp_path, "b_oof.csv", "b_test.csv", "a_fold1_oof.csv", "a_fold0_oof.csv", "a_test.csv", "oof_ids.csv")
    touch(tmp_path, "train.csv", "sample_submission.csv", ".hidden_oof.csv", ".ipynb_checkpoints/b_oof-checkpoint.csv")
    touch(tmp_path, "runs/mine/models/c/oof.parquet", "runs/mine/models/c/test.parquet")
    found, notes = found_sources(
        [str(tmp_path), str(tmp_path / "*.csv")], OPTIONS, known=[tmp_path / "train.csv", tmp_path / "runs"]
    )
    assert [(one.name, len(one.oof), len(one.test)) for one in found] == [("a", 2, 1), ("b", 1, 1)]
    assert [part.fold for part in found[0].oof] == ["0", "1"]
    assert len(notes) == 4, "train.csv, the sample and a run of our own"
    touch(tmp_path, *(f"sample{number}/sample.csv" for number in range(8)))
    notes = found_sources([str(tmp_path)], OPTIONS, known=[tmp_path / "train.csv", tmp_path / "runs"])[1]
    assert notes[-1] == "… 7 more files are left out"


def test_seeds_are_runs_of_their_own_unless_they_are_averaged(tmp_path: Path) -> None:
    touch(tmp_path, *(f"a_seed{seed}_{part}.csv" for seed in (1, 2) for part in ("oof", "test")))
    assert [one.name for one in found_sources([str(tmp_path)], OPTIONS)[0]] == ["a_seed1", "a_seed2"]
    [one] = found_sources([str(tmp_path)], AVERAGED)[0]
    assert (one.name, [part.seed for part in one.oof]) == ("a", ["1", "2"])


def test_a_table_names_files_and_options_and_is_checked(tmp_path: Path) -> None:
    touch(tmp_path, "x.csv", "y_fold0.csv", "y_fold1.csv", "z_seed1.csv", "z_seed2.csv", "w_fold0.csv", "w_preds.csv")
    table = tmp_path / "nets.csv"
    table.write_text("name,oof,test,p_column,exclude,foreign_folds\na,x.csv,x.csv,q,3,yes\nb,y_fold*.csv,,,,\n")
    a, b = listed_sources(table, OPTIONS)
    assert (a.options.columns.p, a.options.test_columns.p) == ("q", "q")
    assert (a.options.exclude, a.options.foreign_folds) == (3, True)
    assert a.oof[0].path == tmp_path / "x.csv"
    assert (b.options, [part.fold for part in b.oof]) == (OPTIONS, ["0", "1"])
    for text, words in (
        ("name,oof,file\na,x.csv,1\n", "no option file: the columns are name, oof"),
        ("name,test\na,x.csv\n", "no column 'oof'"),
        ("name,oof\na,x.csv\na,x.csv\n", "the name 'a' stands in several rows"),
        ("name,oof\n,x.csv\n", "row 2: the name or the out-of-fold file is missing"),
        ("name,oof,foreign_folds\na,x.csv,maybe\n", "row 2: foreign_folds is 'maybe': write yes or no"),
        ("name,oof,exclude\na,x.csv,few\n", "row 2: exclude is 'few'"),
        ("name,oof\na,q*.csv\n", "no file fits this pattern"),
        ("name,oof\na,?.csv\nb,[xy]*.csv\n", "by their names they are of several runs"),
        ("name,oof\na,y*.csv\nb,z_*.csv\n", "their names say no different folds"),
        ("name,oof\na,w_*.csv\n", "their names say no different folds"),
    ):
        table.write_text(text)
        with pytest.raises(DataError, match=words):
            listed_sources(table, OPTIONS)


def test_columns_are_runs_and_never_the_tables_own(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    pd.DataFrame({"id": ["a"], "n1": 0.1, "n_seed1": 0.2, "n_seed2": 0.3, "fold": 0, "target": 1}).to_csv(
        path, index=False
    )
    found = column_sources(path, None, "*", OPTIONS, without=["target"])
    assert [one.name for one in found] == ["n1", "n_seed1", "n_seed2"]
    assert [[part.p for part in one.oof] for one in found] == [["n1"], ["n_seed1"], ["n_seed2"]]
    averaged = column_sources(path, None, "n_seed*", AVERAGED, without=[])
    assert [(one.name, [part.seed for part in one.oof]) for one in averaged] == [("n", ["1", "2"])]
    with pytest.raises(DataError, match=r"no column fits --run-columns x\*; the columns are id, n1"):
        column_sources(path, None, "x*", OPTIONS, without=[])

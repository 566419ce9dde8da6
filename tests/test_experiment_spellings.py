"""One key in several spellings: every table and file gives the same experiment as with one spelling, or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import run_cli
from imported_experiment import command_error, opened_experiment, predictions, write_experiment

from dermstack.audit.rows import fold_findings, group_findings
from dermstack.errors import DataError
from stack.console import Out
from stack.experiment import Experiment, print_overview
from stack.folds import read_duplicate_pairs, read_folds

FILES = ("train.csv", "test.csv", "sample.csv", "pairs.csv")
Change = Callable[[pd.DataFrame], pd.DataFrame]


def numbered(folder: Path, changes: dict[str, Change] | None = None, **settings: object) -> Path:
    """The generated rows with integers as ids and patients, a column of folds and a list of duplicates."""
    folder.mkdir(exist_ok=True)
    path = write_experiment(folder)
    tables = {name: pd.read_csv(folder / name, dtype=str, keep_default_na=False) for name in FILES[:3]}
    train, test = tables["train.csv"], tables["test.csv"]
    names = {name: str(number) for number, name in enumerate([*train["isic"], *test["isic"]])}
    patients = {name: str(number) for number, name in enumerate(dict.fromkeys([*train["patient"], *test["patient"]]))}
    test.loc[:2, "patient"] = train["patient"].iloc[0]  # a patient of both tables
    for table in tables.values():
        table["isic"] = table["isic"].map(names)
        if "patient" in table:
            table["patient"] = table["patient"].map(patients)
    train["mine"] = (train["patient"].astype(int) % 4).astype(str)
    first = train.drop_duplicates("patient")["isic"]
    tables["pairs.csv"] = pd.DataFrame({"a": first.iloc[:6:2].to_list(), "b": first.iloc[8:14:2].to_list()})
    for name, table in tables.items():
        (changes or {}).get(name, lambda same: same)(table).to_csv(folder / name, index=False)
    text = path.read_text()
    assert "data:\n" in text
    path.write_text(text.replace("data:\n", "data:\n  duplicates: pairs.csv\n"))
    return path


def floats(*columns: str, every: int = 1) -> Change:
    """Writes each n-th key of these columns as pandas writes integers beside a missing value."""

    def change(table: pd.DataFrame) -> pd.DataFrame:
        made = table.copy()
        for column in columns:
            rows = np.arange(len(made)) % every == 0
            made.loc[rows, column] = pd.to_numeric(made.loc[rows, column]).astype(float).astype(str)
        return made

    return change


def group_numbers(experiment: Experiment) -> list[list[int]]:
    """Groups and split groups of the training rows and groups of the test rows, without their spelling."""
    frame, test = experiment.folds.frame, experiment.table.test
    together = [pd.factorize(pd.concat([frame["group"], test["group"]]))[0], pd.factorize(frame["split_group"])[0]]
    return [numbers.tolist() for numbers in together] + [frame["fold"].tolist()]


@pytest.mark.parametrize(
    "changes",
    [
        {"train.csv": floats("patient", every=2)},
        {"train.csv": floats("patient")},
        {"test.csv": floats("patient")},
        {"train.csv": floats("patient"), "test.csv": floats("patient", every=3)},
        {"pairs.csv": floats("a", "b")},
        {"pairs.csv": floats("b", every=2)},
    ],
    ids=["train mixed", "train", "test", "train and test mixed", "pairs", "pairs mixed"],
)
@pytest.mark.parametrize("own", [False, True])
def test_groups_and_folds_do_not_depend_on_the_spelling(tmp_path: Path, changes: dict[str, Change], own: bool) -> None:
    overrides = ("data.columns.fold=mine", "folds.k=4", "data.duplicates=null") if own else ()
    plain = opened_experiment(numbered(tmp_path / "plain"), *overrides)
    spelled = opened_experiment(numbered(tmp_path / "spelled", changes), *overrides)
    assert group_numbers(spelled) == group_numbers(plain)
    assert spelled.table.shared_groups == plain.table.shared_groups == 1
    assert "0 of 80 groups and 0 of" in fold_findings(spelled)[0].evidence
    if not own:
        assert spelled.folds.unknown_pairs == 0
        assert len(np.unique(spelled.split_group)) == 77


def test_an_experiment_with_one_spelling_keeps_its_fingerprint_and_its_spelling(tmp_path: Path) -> None:
    """Of the release before keys were unified: a change would make trained nets stale."""
    made = opened_experiment(numbered(tmp_path, {"train.csv": floats("patient"), "test.csv": floats("patient")}))
    assert made.table.train["group"].str.fullmatch(r"\d+\.0").all()
    assert made.rows_fingerprint == OLD_FINGERPRINT


OLD_FINGERPRINT = "34806b60b7e0"


def test_folds_of_a_column_may_be_spelled_in_two_ways(tmp_path: Path) -> None:
    overrides = ("data.columns.fold=mine", "folds.k=4", "data.duplicates=null")
    plain = opened_experiment(numbered(tmp_path / "plain"), *overrides)
    spelled = opened_experiment(numbered(tmp_path / "spelled", {"train.csv": floats("mine", every=2)}), *overrides)
    assert group_numbers(spelled) == group_numbers(plain)
    unused = opened_experiment(numbered(tmp_path / "unused", {"train.csv": floats("mine", every=2)}))
    assert not [finding for finding in fold_findings(unused) if "`mine`" in finding.what]


@pytest.mark.parametrize("other", ["007", "1e3", "P3", "1.5"])
def test_a_group_column_where_it_is_not_certain_is_refused(tmp_path: Path, other: str) -> None:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        made = floats("patient", every=2)(table)
        made.loc[1, "patient"] = other
        return made

    with pytest.raises(DataError, match=r"train\.csv: groups '\d+' and '\d+\.0' may be one or two"):
        opened_experiment(numbered(tmp_path, {"train.csv": change}))


def test_a_test_group_that_may_be_a_training_group_is_refused(tmp_path: Path) -> None:
    def padded(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(patient=table["patient"].str.zfill(4))

    with pytest.raises(DataError, match=r"test\.csv: group '0' is not in .*train\.csv, which has '0000'"):
        opened_experiment(numbered(tmp_path, {"train.csv": padded}))


def test_two_spellings_of_one_id_are_refused(tmp_path: Path) -> None:
    def doubled(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, table.iloc[[5]].assign(isic=table["isic"].iloc[5] + ".0")])

    with pytest.raises(DataError, match="'5' and '5.0' are two spellings of one id"):  # noqa: RUF043
        opened_experiment(numbered(tmp_path, {"train.csv": doubled}))

    def in_both(table: pd.DataFrame) -> pd.DataFrame:
        made = table.copy()
        made.loc[0, "isic"] = "7.0"
        return made

    with pytest.raises(DataError, match=r"test\.csv: '7\.0' also in .*train\.csv"):
        opened_experiment(numbered(tmp_path, {"test.csv": in_both}))


def test_a_list_of_duplicates_that_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    ids = pd.Series(["007", "P1", "P2"], dtype="str")
    path = tmp_path / "pairs.csv"
    path.write_text("a,b\n7,P1\n")
    with pytest.raises(DataError, match="id '7' is not in the tables, which has '007'"):
        read_duplicate_pairs(path, ids)
    path.write_text("007,P1\nP1,P2\n")
    with pytest.raises(DataError, match="has no header: its first row, 007 and P1, is a pair of ids"):
        read_duplicate_pairs(path, ids)
    path.write_text("a,b\n")
    pairs = read_duplicate_pairs(path, ids)
    assert pairs is not None
    assert len(pairs) == 0


def test_ids_that_lost_digits_join_no_rows(tmp_path: Path) -> None:
    ids = pd.Series(["16777216", "16777217", "16777218"], dtype="str")
    path = tmp_path / "pairs.parquet"
    rounded = pd.DataFrame({"a": [16777217, 16777217], "b": [16777218, 16777218]}).astype("float32")
    rounded.to_parquet(path)  # 16777217 became 16777216, another row
    with pytest.raises(DataError, match=r"data\.duplicates .*pairs\.parquet: the ids in 'a' are float32"):
        read_duplicate_pairs(path, ids)
    rounded.set_axis(["image", "fold"], axis=1).to_parquet(path)
    with pytest.raises(DataError, match=r"folds\.file .*pairs\.parquet: the ids in 'image' are float32"):
        read_folds(path, "image", ids)


def test_a_column_that_a_file_of_folds_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    path.write_text("image,fold,fold\n1,0,1\n")
    with pytest.raises(
        DataError, match=r"folds\.file .*folds\.csv has 2 columns named 'fold', of 'image', 'fold', 'fold'"
    ):
        read_folds(path, "image", pd.Series(["1"]))


@pytest.mark.slow
def test_predictions_and_submission_do_not_depend_on_the_spelling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes of submission.csv when each file that is joined by id has its own spelling."""
    written = []
    for name, spell in (("plain", lambda same: same), ("spelled", floats("isic"))):
        folder = tmp_path / name
        config = numbered(folder)
        oof, test = predictions(opened_experiment(config))
        for file, table in (("oof.csv", oof), ("t.csv", test)):
            spell(table.astype({"isic": str})).to_csv(folder / file, index=False)
        assert (
            run_cli("import-oof", "a", "-c", str(config), "--oof", f"{folder}/oof.csv", "--test", f"{folder}/t.csv")
            == 0
        )
        assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
        written.append((folder / "runs" / "elsewhere" / "submission.csv").read_bytes())
    assert written[0] == written[1]
    samples = pd.read_csv(tmp_path / "spelled" / "sample.csv", dtype=str)
    floats("isic")(samples).to_csv(tmp_path / "spelled" / "sample.csv", index=False)
    assert run_cli("stack", "--no-report", "-c", str(config), "-q") == 0
    submission = pd.read_csv(tmp_path / "spelled" / "runs" / "elsewhere" / "submission.csv", dtype=str)
    assert submission["isic"].str.endswith(".0").all()  # as the sample has it
    samples.assign(isic=samples["isic"].str.zfill(8)).to_csv(tmp_path / "spelled" / "sample.csv", index=False)
    assert "whether they are one is not certain" in command_error(capsys, "stack", "-c", str(config))


@pytest.mark.slow
def test_test_rows_need_no_groups_where_nothing_uses_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = numbered(tmp_path, {"test.csv": lambda table: table.drop(columns="patient")})
    made = opened_experiment(config)
    assert made.table.test["group"].tolist() == made.table.test["id"].tolist()
    assert made.table.shared_groups == 0
    assert not made.table.test_groups_known
    assert "groups of the test rows are unknown" in [finding.what for finding in group_findings(made)]
    oof, test = predictions(made)
    oof.to_csv(tmp_path / "oof.csv", index=False)
    test.to_csv(tmp_path / "t.csv", index=False)
    command = ["import-oof", "a", "-c", str(config), "--oof", f"{tmp_path}/oof.csv", "--test", f"{tmp_path}/t.csv"]
    assert run_cli(*command) == 0
    assert "has no column 'patient': each test row is a group of its own" in " ".join(capsys.readouterr().out.split())
    level2 = ["--set", "stackers=[{name: lgb, kind: lightgbm}]"]
    message = command_error(capsys, "stack", "-c", str(config), *level2)
    assert "test.csv: no column 'patient' (columns.group)" in message
    assert "features.aggregates and features.neighbours compare a test row with the other rows of its group" in message
    off = ["--set", "features.aggregates=false", "--set", "features.neighbours=false"]
    assert run_cli("stack", "--no-report", "-c", str(config), *level2, *off, "-q") == 0
    assert len(pd.read_csv(tmp_path / "runs" / "elsewhere" / "submission.csv")) == len(made.table.test)


def test_groups_that_may_be_one_are_named_on_opening(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table put together from an export and from a spreadsheet that dropped leading zeros."""

    def half_padded(table: pd.DataFrame) -> pd.DataFrame:
        made = table.copy()
        rows = made.index[made["patient"] == made["patient"].mode()[0]]
        made.loc[rows[0], "patient"] = made.loc[rows[0], "patient"].zfill(5)
        return made

    print_overview(opened_experiment(numbered(tmp_path / "plain")), Out())
    assert "may be one" not in capsys.readouterr().out
    print_overview(opened_experiment(numbered(tmp_path / "mixed", {"train.csv": half_padded})), Out())
    assert "1 pairs of groups may be one, such as '" in " ".join(capsys.readouterr().out.split())

"""Choice and reading of columns without a role: numeric, categorical, patterns, `auto`, codes, names, targets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.settings.data import ColumnRules
from stack.tables.columns import TableColumns, described_choices, empty_values
from stack.tables.table import Table, read_external_frame, read_new_frame, read_table

N = 60
COLUMNS = {"id": "image", "group": "patient", "target": "y", "age": "years"}


def _frame(**columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    base = {
        "image": [f"i{row}" for row in range(N)],
        "patient": [f"p{row // 3}" for row in range(N)],
        "y": [int(row % 4 == 0) for row in range(N)],
        "years": rng.integers(20, 80, N),
        "diameter": rng.normal(3, 1, N).round(3),
        "colour": rng.choice(["brown", "black", "red"], N),
    }
    return pd.DataFrame(base | columns)


def _read(folder: Path, train: pd.DataFrame, test: pd.DataFrame | None = None, **rules: Any) -> Table:
    train.to_csv(folder / "train.csv", index=False)
    if test is not None:
        test.to_csv(folder / "test.csv", index=False)
    path = None if test is None else folder / "test.csv"
    columns = {role: csv for role, csv in COLUMNS.items() if csv in train}
    return read_table(folder / "train.csv", path, columns=columns, rules=ColumnRules(**rules))


def _test_rows(train: pd.DataFrame) -> pd.DataFrame:
    return train.drop(columns="y").assign(
        image=[f"t{row}" for row in range(len(train))], patient=[f"q{row // 3}" for row in range(len(train))]
    )


def _kinds(table: Table) -> dict[str, str | None]:
    return {choice.column: choice.kind for choice in table.columns.choices}


def _refusal(folder: Path, train: pd.DataFrame, test: pd.DataFrame | None = None, **rules: Any) -> str:
    with pytest.raises(DataError) as caught:
        _read(folder, train, test, **rules)
    return str(caught.value)


def test_named_columns_are_read_with_their_types_in_train_and_test(tmp_path: Path) -> None:
    train = _frame()
    train.loc[3, ["diameter", "colour"]] = np.nan
    table = _read(tmp_path, train, _test_rows(train), numeric=("diameter",), categorical=("colour",))
    for part in (table.train, table.test):
        assert part["diameter"].dtype == np.float32
        np.testing.assert_array_equal(part["diameter"], train["diameter"].astype(np.float32))
        assert part["colour"].isna().tolist() == train["colour"].isna().tolist()
    assert table.columns.names == ["diameter", "colour"]


def test_patterns_take_every_column_that_fits_and_both_tables_have(tmp_path: Path) -> None:
    train = _frame(lv_b=np.arange(N) * 0.5, lv_a=1.5, lv_only_train=2.0)
    table = _read(tmp_path, train, _test_rows(train).drop(columns="lv_only_train"), numeric=("lv_*", "diameter"))
    assert list(table.columns.numeric) == ["diameter", "lv_b", "lv_a"]


def test_columns_that_nothing_uses_are_named_once(tmp_path: Path) -> None:
    table = _read(tmp_path, _frame(), numeric=("diameter",))
    assert table.columns.unused == ["colour"]
    said = described_choices(table.columns)
    assert sum("colour" in line for line in said) == 1
    assert "columns that nothing uses: 1 (colour)" in said[-1]
    assert not described_choices(_read(tmp_path, _frame().drop(columns=["diameter", "colour"])).columns)


def test_auto_takes_numbers_and_words_and_says_why_it_left_the_others_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    y = _frame()["y"].to_numpy()
    train = _frame(
        constant=7,
        row_id=rng.permutation(N) * 3,
        counter=np.arange(100, 100 + N),
        code=[f"X{row}" for row in range(N)],
        note=[
            "a long remark on this lesion, written by hand and never the same " * 2 + str(row % 3) for row in range(N)
        ],
        stage=np.where(y == 1, "III", "none"),
        thickness=y * 2.0 + rng.random(N),
        mitoses=np.where(y == 1, "2", ""),
        empty="",
        only_train=rng.random(N),
        whole=rng.integers(0, 9, N),
    )
    table = _read(tmp_path, train, _test_rows(train).drop(columns="only_train"), numeric="auto", categorical="auto")
    assert list(table.columns.numeric) == ["diameter", "whole"]
    assert list(table.columns.categorical) == ["colour"]
    reason = {choice.column: choice.reason for choice in table.columns.choices}
    for column, word in {
        "constant": "one value", "row_id": "identifier", "counter": "identifier", "code": "identifier",
        "note": "free text", "stage": "proxy", "thickness": "proxy", "mitoses": "proxy", "empty": "no row has a value",
        "only_train": "only the training table",
    }.items():  # fmt: skip
        assert word in reason[column], (column, reason[column])
    said = "\n".join(described_choices(table.columns))
    assert "thickness" in said
    assert "only_train" in said


@pytest.mark.parametrize("name", ["patient_id", "PatientID", "patientid", "MRN", "lesion_code"])
def test_auto_takes_no_keys_of_patients_and_a_name_in_the_config_does(tmp_path: Path, name: str) -> None:
    train = _frame().assign(**{name: [f"P{row // 4}" for row in range(len(_frame()))]})
    (choice,) = [one for one in _read(tmp_path, train, categorical="auto").columns.choices if one.column == name]
    assert choice.kind is None
    assert choice.reason.startswith("by its name it holds keys of patients or lesions")
    assert _kinds(_read(tmp_path, train, categorical=(name,)))[name] == "categorical"


def test_auto_for_one_kind_takes_no_column_of_the_other(tmp_path: Path) -> None:
    kinds = _kinds(_read(tmp_path, _frame(), numeric="auto"))
    assert kinds == {"diameter": "numeric", "colour": None}


def test_a_column_of_numbers_in_train_and_words_in_test_is_categorical(tmp_path: Path) -> None:
    train = _frame(grade=[str(row % 3) for row in range(N)])
    test = _test_rows(train).assign(grade="high")
    assert _kinds(_read(tmp_path, train, test, numeric="auto", categorical="auto"))["grade"] == "categorical"


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"numeric": ("diametr",)}, ["no column 'diametr' (columns.numeric)", "did you mean 'diameter'?"]),
        ({"numeric": ("tbp_*",)}, ["no column fits 'tbp_*'"]),
        ({"numeric": ("colour",)}, ["column 'colour' holds", "is no number", "columns.categorical"]),
        ({"numeric": ("diameter",), "categorical": ("diameter",)}, ["in columns.numeric and in columns.categorical"]),
        ({"categorical": ("patient",)}, ["'patient' (columns.categorical) is already mapped as columns.group"]),
        ({"missing": {"diametre": (0,)}}, ["no column fits 'diametre' (data.missing)", "did you mean 'diameter'?"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, rules: dict[str, Any], words: list[str]) -> None:
    said = _refusal(tmp_path, _frame(), **rules)
    for word in words:
        assert word in said


def test_a_named_column_that_only_train_has_is_refused(tmp_path: Path) -> None:
    train = _frame(leak=1.0)
    said = _refusal(tmp_path, train, _test_rows(train).drop(columns="leak"), numeric=("leak",))
    assert "test.csv: no column 'leak' (columns.numeric)" in said
    assert "remove it from the config or add it" in said


@pytest.mark.parametrize("numeric", ["auto", ("diameter",), ("diam*",)])
def test_infinite_and_too_large_numbers_are_missing_values_and_named(tmp_path: Path, numeric: Any) -> None:
    train = _frame(diameter=["inf", "-Infinity", "1e39", *map(str, np.arange(N - 3) * 0.5)])
    test = _test_rows(train).assign(diameter=["2e38", *["1.5"] * (N - 1)])
    table = _read(tmp_path, train, test, numeric=numeric)
    assert table.train["diameter"].isna().tolist() == [True] * 3 + [False] * (N - 3)
    assert table.test["diameter"].isna().tolist() == [True] + [False] * (N - 1)
    of_train, of_test = table.notes
    assert "train.csv: infinite cells" in of_train
    assert "column 'diameter' in 3 rows (i0, i1, i2)" in of_train
    assert "test.csv: infinite cells" in of_test
    assert "1 row (t0)" in of_test
    notes: list[str] = []
    frame, _ = read_new_frame(tmp_path / "test.csv", COLUMNS, ColumnRules(), table.columns, notes=notes)
    assert frame["diameter"].isna().sum() == 1
    assert notes == [of_test]
    (tmp_path / "other.csv").write_text("id,y,diameter\na,0,inf\nb,1,2\n")
    notes = []
    columns = {"id": "id", "target": "y"}
    frame = read_external_frame(tmp_path / "other.csv", columns, ColumnRules(), table.columns, ["diameter"], notes)
    assert frame["diameter"].isna().tolist() == [True, False]
    assert "column 'diameter' in 1 row (a)" in notes[0]


def test_infinite_cells_that_only_an_expression_reads_are_missing_values(tmp_path: Path) -> None:
    train = _frame(diameter=["inf", *["1.5"] * (N - 1)])
    table = _read(tmp_path, train, derived={"twice": "2 * diameter"})
    assert table.train["twice"].isna().sum() == 1
    assert "column 'diameter' in 1 row (i0)" in table.notes[0]


def test_a_column_in_which_inf_is_the_only_word_has_no_numbers(tmp_path: Path) -> None:
    train = _frame(pole=["inf", ""] * (N // 2))
    table = _read(tmp_path, train, numeric="auto", categorical="auto")
    assert list(table.columns.categorical) == ["colour", "pole"]
    assert not table.notes


def test_words_that_differ_only_in_case_are_named(tmp_path: Path) -> None:
    side = ["Left", "Right", *["left", "Left", "Left", "Right"] * ((N - 2) // 4), *["Left"] * ((N - 2) % 4)]
    train = _frame(side=side, dx=["NV", *["nv"] * (N - 1)])
    train.to_csv(tmp_path / "train.csv", index=False)
    test = _test_rows(train).assign(side=["LEFT", "left", "RIGHT", "up"] * (N // 4))
    test.to_csv(tmp_path / "test.csv", index=False)
    columns = {**COLUMNS, "diagnosis": "dx"}
    rules = ColumnRules(categorical=("side",))
    table = read_table(tmp_path / "train.csv", tmp_path / "test.csv", columns=columns, rules=rules)
    dx, of_train, of_test = table.notes
    assert "train.csv: column 'dx' has 'NV' (1 row), which differs from 'nv' only in case" in dx
    assert "train.csv: column 'side' has 'left' (14 rows), which differs from 'Left' only in case" in of_train
    assert "test.csv: column 'side' has 'LEFT' (15 rows), which differs from 'Left' of " in of_test
    assert "2 such pairs" in of_test
    assert set(table.train["side"]) == {"Left", "left", "Right"}, "they stay two words"


def test_declared_codes_are_missing_values_in_every_spelling(tmp_path: Path) -> None:
    train = _frame(
        diameter=["-1", "-1.0", "2.5", *["3"] * (N - 3)], colour=["Unknown", "unknown", "red", *["black"] * (N - 3)],
        years=["999", "0", "40", *["50"] * (N - 3)],
    )  # fmt: skip
    missing = {"diam*": (-1,), "colour": ("unknown",), "years": (0, 999)}
    table = _read(tmp_path, train, _test_rows(train), numeric=("diameter",), categorical=("colour",), missing=missing)
    for part in (table.train, table.test):
        assert part["diameter"].isna().tolist() == [True, True, *[False] * (N - 2)]
        assert part["colour"].isna().tolist() == [True, True, *[False] * (N - 2)]
        assert part["age"].isna().tolist() == [True, True, *[False] * (N - 2)]


def test_a_csv_column_with_a_name_of_the_table_gets_another_name(tmp_path: Path) -> None:
    table = _read(tmp_path, _frame(group=np.arange(N) % 7, age=np.arange(N) % 5), numeric=("group", "age"))
    assert table.columns.numeric == {"csv.group": "group", "csv.age": "age"}
    np.testing.assert_array_equal(table.train["csv.group"], np.arange(N) % 7)
    assert table.train["group"].iloc[0] == "p0"


def test_two_columns_that_would_get_one_name_are_refused(tmp_path: Path) -> None:
    both = {"fold": np.arange(N) % 7, "csv.fold": np.arange(N) % 5}
    with pytest.raises(DataError, match=r"columns 'fold' and 'csv.fold' would both be called 'csv.fold': rename one"):
        _read(tmp_path, _frame(**both), numeric=("fold", "csv.fold"))
    with pytest.raises(DataError, match=r"columns 'csv.fold' and 'fold' would both be called 'csv.fold'"):
        _read(tmp_path, _frame(fold=np.arange(N) % 7), numeric=("fold",), derived={"csv.fold": "2 * fold"})


def test_odd_names_of_columns_are_read_as_they_are(tmp_path: Path) -> None:
    names = ['a "quoted" one', "b[0]", "{c: 1}", "d,e", "größe µm²", "f<g>", "h=i", "csv.x"]
    values = {name: np.random.default_rng(number).random(N) for number, name in enumerate(names)}
    table = _read(tmp_path, _frame(**values), numeric=tuple(names))
    assert set(table.columns.numeric) == set(names)
    np.testing.assert_allclose(table.train[names[4]], values[names[4]], rtol=1e-6)


def test_names_that_are_equal_after_stripping_are_refused_where_named_and_left_out_by_auto(tmp_path: Path) -> None:
    train = _frame(**{"size": 1.5, " size ": np.arange(N) * 1.5})
    assert "2 columns are named 'size'" in _refusal(tmp_path, train, numeric=("size",))
    table = _read(tmp_path, train, numeric="auto")
    assert "size" not in table.columns.numeric
    assert next(choice.reason for choice in table.columns.choices if choice.column == "size").startswith("2 columns")


def test_without_a_group_column_each_row_is_its_own_group(tmp_path: Path) -> None:
    table = _read(tmp_path, _frame().drop(columns="patient"))
    assert table.train["group"].tolist() == table.train["id"].tolist()
    assert not table.groups_known


@pytest.mark.parametrize(
    ("cells", "positive"),
    [
        (("malignant", "benign"), ("Malignant",)),
        (("MEL", "nevus"), ("mel", "scc")),
        (("2", "1"), ("2.0",)),
        (("True", "False"), ()),
        (("yes", "no"), ()),
    ],
)
def test_targets_may_be_words(tmp_path: Path, cells: tuple[str, str], positive: tuple[str, ...]) -> None:
    y = _frame()["y"]
    words = y.map({1: cells[0], 0: cells[1]})
    if "scc" in positive:
        words[y.to_numpy().nonzero()[0][0]] = "SCC"
    assert _read(tmp_path, _frame(y=words), positive=positive).train["target"].tolist() == y.tolist()


def test_labels_of_other_patients_may_be_0_and_1_and_lack_one_of_several_positive_words(tmp_path: Path) -> None:
    """A bundle of words is evaluated on such labels; of its own training table they are faults."""
    y = [1, 0, 0, 1]
    columns, rules = {"id": "id", "target": "y"}, ColumnRules(positive=("mel", "scc"))
    for cells in (y, [f"{value}.0" for value in y], ["MEL" if value else "nevus" for value in y]):
        pd.DataFrame({"id": list("abcd"), "y": cells}).to_csv(tmp_path / "y.csv", index=False)
        assert read_external_frame(tmp_path / "y.csv", columns, rules)["target"].tolist() == y
    pd.DataFrame({"id": list("abcd"), "y": ["nevus", "nv", "nevus", "1"]}).to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(DataError, match="no target is 'mel'"):
        read_external_frame(tmp_path / "y.csv", columns, rules)
    numbers = ColumnRules(positive=("0",))
    pd.DataFrame({"id": list("abcd"), "y": y}).to_csv(tmp_path / "y.csv", index=False)
    assert read_external_frame(tmp_path / "y.csv", columns, numbers)["target"].tolist() == [0, 1, 1, 0]
    assert "no target is 'scc'" in _refusal(
        tmp_path, _frame(y=_frame()["y"].map({1: "mel", 0: "nevus"})), positive=("mel", "scc")
    )


@pytest.mark.parametrize("code", ["1", "1.0", "true", "Yes"])
def test_words_beside_1_true_or_yes_are_refused_by_name(tmp_path: Path, code: str) -> None:
    cells = _frame()["y"].map({1: "malignant", 0: "0"})
    cells[5] = code
    said = _refusal(tmp_path, _frame(y=cells), positive=("malignant",))
    assert f"target '{code}' (row 7) beside words such as 'malignant': it would count as negative" in said
    pd.DataFrame({"id": cells.index, "y": cells}).to_csv(tmp_path / "y.csv", index=False)
    with pytest.raises(DataError, match="write words in all rows, or 0 and 1 in all rows"):
        read_external_frame(tmp_path / "y.csv", {"id": "id", "target": "y"}, ColumnRules(positive=("malignant",)))
    named = _read(tmp_path, _frame(y=cells), positive=("malignant", code))
    assert named.train["target"].tolist() == [int(cell in ("malignant", code)) for cell in cells]


def test_an_empty_cell_among_labels_of_0_and_1_is_named_for_a_bundle_of_words(tmp_path: Path) -> None:
    (tmp_path / "y.csv").write_text("id,y\na,0\nb,1\nc,\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_external_frame(tmp_path / "y.csv", {"id": "id", "target": "y"}, ColumnRules(positive=("malignant",)))
    assert "row 4 without a target" in str(caught.value)
    assert "no target is" not in str(caught.value)


@pytest.mark.parametrize(
    ("word", "positive"),
    [
        ("malignnat", "malignant"), ("malignat", "Malignant"), ("malignant.", "malignant"), ("naevus", "nevus"),
        ("melanoma-in-situ", "melanoma in situ"), ("melanomas", "melanoma"), ("H E R2+", "her2+"),
    ],
)  # fmt: skip
def test_a_word_that_looks_like_a_positive_one_is_named_with_its_rows(tmp_path: Path, word: str, positive: str) -> None:
    cells = _frame()["y"].map({1: positive, 0: "other"})
    cells[[1, 2]] = word
    table = _read(tmp_path, _frame(y=cells), positive=(positive,))
    assert table.train["target"][1] == 0, "all other values are negative"
    [note] = table.target_notes
    assert f"target {word!r} (2 rows) counts as negative, but looks like {positive!r}" in note
    pd.DataFrame({"id": cells.index, "y": cells}).to_csv(tmp_path / "y.csv", index=False)
    notes: list[str] = []
    columns = {"id": "id", "target": "y"}
    read_external_frame(tmp_path / "y.csv", columns, ColumnRules(positive=(positive,)), notes=notes)
    assert [text.partition(": ")[2] for text in notes] == [note.partition(": ")[2]]


@pytest.mark.parametrize(
    ("word", "positive"),
    [
        ("benign", "malignant"), ("normal", "abnormal"), ("premalignant", "malignant"), ("bcc", "scc"),
        ("grade 1", "grade 2"), ("stage ii", "stage iii"), ("her2-", "her2+"), ("negative", "positive"),
        ("absent", "present"), ("male", "female"), ("non-cancer", "cancer"), ("not malignant", "malignant"),
        ("<5", ">5"), ("-1", "1"), ("type_b", "type_a"), ("atypical", "typical"),
    ],
)  # fmt: skip
def test_classes_of_similar_names_are_not_taken_for_misspellings(tmp_path: Path, word: str, positive: str) -> None:
    cells = _frame()["y"].map({1: positive, 0: word})
    assert _read(tmp_path, _frame(y=cells), positive=(positive,)).target_notes == ()


def test_a_positive_word_is_one_in_any_case_and_with_blanks_or_invisible_characters(tmp_path: Path) -> None:
    cells = _frame()["y"].map({1: "malignant", 0: "benign"})
    cells[[0, 4, 8]] = ["Malignant ", "MALIGNANT", "malig\u200bnant\ufeff"]
    table = _read(tmp_path, _frame(y=cells), positive=("malignant",))
    assert table.train["target"].tolist() == _frame()["y"].tolist()
    assert table.target_notes == ()


def test_words_without_a_positive_value_and_a_positive_value_that_is_absent_are_explained(tmp_path: Path) -> None:
    words = _frame()["y"].map({1: "malignant", 0: "benign"})
    said = _refusal(tmp_path, _frame(y=words))
    assert "write 1 for the positive word and 0 for the others" in said
    assert "data.columns.target: {column: …, positive: WORD}" in said, "which is positive is not guessed"
    said = _refusal(tmp_path, _frame(y=words), positive=("malign",))
    assert "no target is 'malign'" in said
    assert "did you mean 'malignant'?" in said
    words[4] = ""
    assert "row 6 without a target" in _refusal(tmp_path, _frame(y=words), positive=("malignant",))


def test_new_rows_have_the_columns_of_training_and_lacking_ones_are_named(tmp_path: Path) -> None:
    train = _frame()
    rules = ColumnRules(("diameter",), ("colour",), {"diameter": (-1,)})
    table = _read(tmp_path, train, numeric=rules.numeric, categorical=rules.categorical, missing=rules.missing)
    new = _test_rows(train).drop(columns="colour").assign(diameter=[-1, *[2] * (N - 1)])
    new.to_csv(tmp_path / "new.csv", index=False)
    frame, lacking = read_new_frame(tmp_path / "new.csv", COLUMNS, rules, table.columns)
    assert lacking == ["colour"]
    assert frame["colour"].isna().all()
    assert frame["diameter"].isna().tolist() == [True, *[False] * (N - 1)]
    assert frame.dtypes.astype(str).to_dict() == _read(tmp_path, train, _test_rows(train), numeric=rules.numeric,
        categorical=rules.categorical).test.dtypes.astype(str).to_dict()  # fmt: skip


def test_empty_values_have_the_types_of_a_table(tmp_path: Path) -> None:
    table = _read(tmp_path, _frame(), numeric=("diameter",), categorical=("colour",))
    empty = empty_values(table.columns, 4)
    assert empty.dtypes.astype(str).to_dict() == {"diameter": "float32", "colour": "str"}
    assert empty.isna().all(axis=None)
    assert len(empty) == 4


def test_a_column_without_a_name_is_called_by_its_place(tmp_path: Path) -> None:
    """A csv that was saved with its index has one; after rows were filtered, the index does not count them any more."""
    for index, reason in ((np.arange(N), "an identifier"), (np.arange(N) * 7 % 101, "an identifier"), (1.5, "header")):
        train = _frame()
        train.insert(0, "", np.arange(N) % 9 * index)
        if reason == "an identifier":
            train[""] = index
        table = _read(tmp_path, train, numeric="auto", categorical="auto")
        (line,) = [line for line in described_choices(table.columns) if line.startswith("columns left out")]
        assert line.startswith("columns left out: column 1, without a name: ")
        assert reason in line
        assert "" not in table.columns.names
    assert _read(tmp_path, train, numeric=("diameter",)).columns.unused == ["column 1, without a name", "colour"]
    train.insert(3, "", 1.5, allow_duplicates=True)
    said = described_choices(_read(tmp_path, train, numeric="auto", categorical="auto").columns)
    assert "columns left out: column 1, without a name: 2 columns have no name" in said


def test_names_on_pages_of_very_many_columns_take_no_time() -> None:
    columns = TableColumns({f"n{number}": f"n{number}" for number in range(9_000)} | {"csv.age": "age"})
    begun = time.process_time()
    assert columns.shown["csv.age"] == "csv.age"
    assert time.process_time() - begun < 2, "the columns of the csv are listed once, not for each column"

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermstack.errors import ConfigError, DataError
from stack.tables.table import _numbers, read_new_frame, read_table

DATA = Path(__file__).parents[2] / "shared" / "data"
COLUMNS = {"id": "image", "group": "patient", "target": "y", "age": "years", "sex": "sex", "site": "where"}
ISIC = {
    "id": "image_name",
    "target": "target",
    "age": "age_approx",
    "sex": "sex",
    "site": "anatom_site_general_challenge",
    "diagnosis": "diagnosis",
}


def csv(folder: Path, text: str, name: str = "train.csv") -> Path:
    path = folder / name
    path.write_text(text.replace(" ", ""), encoding="utf-8")
    return path


def train_csv(folder: Path, **changes: list[str]) -> Path:
    """Write 30 good rows with some columns replaced."""
    n = 30
    columns = {
        "image": [f"i{i}" for i in range(n)],
        "patient": [f"p{i // 2}" for i in range(n)],
        "y": [str(int(i % 5 == 0)) for i in range(n)],
        "years": ["50"] * n,
        "sex": ["male"] * n,
        "where": ["torso"] * n,
    }
    path = folder / "train.csv"
    pd.DataFrame(columns | changes).to_csv(path, index=False)
    return path


def refusal(train: Path, test: Path | None = None, columns: dict[str, str] = COLUMNS) -> str:
    with pytest.raises(DataError) as caught:
        read_table(train, test, columns=columns)
    return str(caught.value)


def test_canonical_columns_have_their_types_and_missing_is_nan(tmp_path: Path) -> None:
    train = csv(
        tmp_path,
        """image,patient,y,years,sex,where,extra
        a,007,1,45.0,Male,TORSO,x
        b,17,0,,,,x
        c,18.0,0.0,NaN,N/A,null,x""",
    )
    frame = read_table(train, None, columns=COLUMNS).train
    assert list(frame) == ["id", "group", "target", "age", "sex", "site"]
    assert frame.dtypes.astype(str).to_dict() == {
        "id": "str",
        "group": "str",
        "target": "int8",
        "age": "float32",
        "sex": "str",
        "site": "str",
    }
    assert frame["group"].tolist() == ["007", "17", "18.0"]  # as written: never through a float
    assert frame["target"].tolist() == [1, 0, 0]
    assert frame["sex"].tolist()[0] == "male"
    assert frame["site"].tolist()[0] == "torso"
    assert frame[["age", "sex", "site"]].iloc[1:].isna().all(axis=None)


def test_columns_that_are_not_mapped_are_missing_and_diagnosis_is_absent(tmp_path: Path) -> None:
    train = train_csv(tmp_path)
    frame = read_table(train, None, columns={"id": "image", "group": "patient", "target": "y"}).train
    assert list(frame) == ["id", "group", "target", "age", "sex", "site"]
    assert frame[["age", "sex", "site"]].isna().all(axis=None)
    assert frame["sex"].dtype == "str"
    assert frame["age"].dtype == np.float32


def test_no_test_csv_gives_zero_rows_of_the_same_types(tmp_path: Path) -> None:
    table = read_table(train_csv(tmp_path), None, columns=COLUMNS)
    assert len(table.test) == 0
    expected = table.train.dtypes.drop("target").to_dict()
    assert table.test.dtypes.to_dict() == expected
    assert table.shared_groups == 0


def test_a_source_is_read_where_mapped_and_only_of_train(tmp_path: Path) -> None:
    train = train_csv(tmp_path, clinic=["Vienna", " Sydney", "unknown", *[""] * 27])
    test = csv(tmp_path, "image,patient,y,years,sex,where\n t1,p0,1,3,male,torso", "test.csv")
    table = read_table(train, test, columns=COLUMNS | {"source": "clinic"})
    assert table.train["source"].dropna().tolist()[:2] == ["Vienna", "Sydney"]
    assert table.train["source"].isna().sum() >= 27
    assert "source" not in table.test


def test_diagnosis_and_target_never_come_from_the_test_csv(tmp_path: Path) -> None:
    columns = COLUMNS | {"diagnosis": "dx"}
    train = train_csv(tmp_path, dx=["Nevus"] * 30)
    test = csv(tmp_path, "image,patient,y,dx,years,sex,where\n t1,p0,1,melanoma,3,male,torso", "test.csv")
    table = read_table(train, test, columns=columns)
    assert table.train["diagnosis"].unique().tolist() == ["Nevus"]
    assert list(table.test) == ["id", "group", "age", "sex", "site"]
    assert table.shared_groups == 1


def test_byte_order_mark_and_blank_lines_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "train.csv"
    path.write_bytes(b"\xef\xbb\xbfimage,patient,y\r\na,p,0\r\nb,q,1\r\n\r\n")
    columns = {"id": "image", "group": "patient", "target": "y"}
    assert read_table(path, None, columns=columns).train["id"].tolist() == ["a", "b"]


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    train = csv(
        tmp_path,
        """image,patient,y,years,sex,where
        a,p,2,old,male,torso
        a,,1,40,male,torso
        ../b,q,,40,male,torso
        ,r,0,-3,male,torso""",
    )
    message = refusal(train)
    assert "'a' in more than one row (rows 2, 3)" in message
    assert "'../b' (row 4) cannot be a file name" in message
    assert "row 5 without an id" in message
    assert "row 3 without a group" in message
    assert "target '2', '' (rows 2, 4) is not 0 or 1" in message
    assert "age 'old', '-3' (rows 2, 5)" in message
    assert message.count(str(train)) == len(message.splitlines())


def test_faults_of_both_files_come_together(tmp_path: Path) -> None:
    test = csv(tmp_path, "image,patient,years,sex,where\n i3,p,40,male,torso\n t,,40,male,torso", "test.csv")
    message = refusal(train_csv(tmp_path, y=["0"] * 30), test)
    assert "every target is 0" in message
    assert "'i3' also in" in message
    assert f"{test}: row 3 without a group" in message


def test_missing_column_suggests_the_nearest(tmp_path: Path) -> None:
    message = refusal(train_csv(tmp_path), columns=COLUMNS | {"age": "yeers", "group": "patient_id"})
    assert "no column 'yeers' (columns.age), did you mean 'years'?" in message
    assert "no column 'patient_id' (columns.group), did you mean 'patient'?" in message


def test_a_test_csv_without_a_mapped_column_is_refused(tmp_path: Path) -> None:
    test = csv(tmp_path, "image,patient,years,sex\n t,p,40,male", "test.csv")
    assert f"{test}: no column 'where' (columns.site)" in refusal(train_csv(tmp_path), test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("image,patient,y", "no rows"),
        ("image,patient,y\na,p,0\nb,q,1,surplus", "not a readable csv"),
        ("image,patient,y,y\na,p,0,1\nb,q,1,0", "2 columns are named 'y'"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(text)
    assert words in refusal(path, columns={"id": "image", "group": "patient", "target": "y"})


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.csv"
    binary.write_bytes(b"image,patient,y\n\xff\xfe,p,0\n")
    message = refusal(tmp_path / "none.csv", binary)
    assert "no such file" in message
    assert "not a readable csv in UTF-8" in message


def test_a_name_that_is_too_long_is_said_to_be(tmp_path: Path) -> None:
    for path in (tmp_path / ("x" * 300 + ".csv"), tmp_path / "/".join("x" * 3000)):
        message = refusal(path)
        assert "the name is too long for this file system" in message
        assert "csv in UTF-8" not in message
        assert len(message) < 300


@pytest.mark.parametrize(
    "bad", ["a/b", "a\\b", "..", "a..b", ".hidden", "a\x07", " a", "a\n", "a\u00a0", "\u2003ä", "ä\x7f", "ä..b"]
)
def test_ids_that_cannot_name_files_are_refused(tmp_path: Path, bad: str) -> None:
    ids = [f"i{i}" for i in range(30)]
    ids[4] = bad
    assert "cannot be a file name" in refusal(train_csv(tmp_path, image=ids))


@given(
    st.lists(
        st.sampled_from(["1", "0", "0.5", "1e1", " 1", "", "nan", "NA", "inf", "x", "1_0", "٣", "1e400"]), min_size=1
    )
)
def test_numbers_are_read_once_for_each_text_and_as_pandas_reads_them(texts: list[str]) -> None:
    values = pd.Series(texts, dtype="str").mask([text == "NA" for text in texts])
    expected = pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    np.testing.assert_array_equal(_numbers(values).to_numpy(np.float64), expected)


@pytest.mark.parametrize("sentinel", ["-1", "0", "-1.0", "Unknown", "NaN", "none", "NULL", "NA"])
def test_a_sentinel_that_passes_for_a_group_is_refused(tmp_path: Path, sentinel: str) -> None:
    groups = [sentinel if i % 3 == 0 else f"p{i}" for i in range(30)]
    message = refusal(train_csv(tmp_path, patient=groups))
    assert f"group {sentinel!r} is in 10 of 30 rows" in message


def test_a_group_that_happens_to_be_called_0_is_accepted(tmp_path: Path) -> None:
    groups = [str(i // 2) for i in range(30)]  # patient 0 has two images like everybody
    assert len(read_table(train_csv(tmp_path, patient=groups), None, columns=COLUMNS).train) == 30


def test_one_group_with_more_than_half_of_the_rows_is_refused(tmp_path: Path) -> None:
    groups = ["clinic" if i < 16 else f"p{i}" for i in range(30)]
    assert "group 'clinic' has 16 of 30 rows" in refusal(train_csv(tmp_path, patient=groups))


def test_a_test_csv_of_one_patient_is_accepted(tmp_path: Path) -> None:
    rows = "\n".join(f"t{i},newcomer,40,male,torso" for i in range(25))
    test = csv(tmp_path, f"image,patient,years,sex,where\n{rows}", "test.csv")
    assert len(read_table(train_csv(tmp_path), test, columns=COLUMNS).test) == 25


def test_many_offenders_are_shown_by_the_first_few_and_their_number(tmp_path: Path) -> None:
    message = refusal(train_csv(tmp_path, y=[str(i) for i in range(30)]))
    assert "target '2', '3', '4', '5', '6', … 28 in all (rows 4, 5, 6, 7, 8, … 28 in all)" in message


def test_the_column_mapping_is_checked(tmp_path: Path) -> None:
    train = train_csv(tmp_path)
    with pytest.raises(ConfigError, match=r"columns\.target is not set"):
        read_table(train, None, columns={"id": "image", "group": "patient"})
    with pytest.raises(ConfigError, match=r"columns\.sitee is unknown, did you mean 'site'"):
        read_table(train, None, columns=COLUMNS | {"sitee": "where"})


@pytest.mark.skipif(not DATA.is_dir(), reason="the real tables are not at ../shared/data")
@pytest.mark.parametrize(
    ("name", "group", "rows", "positives", "groups"),
    [
        ("ham10000", "lesion_id", (8022, 1993), 909, 5976),
        ("siim2020", "patient_id", (33126, 10982), 584, 2056),
    ],
)
def test_published_tables_are_read_whole(
    name: str, group: str, rows: tuple[int, int], positives: int, groups: int
) -> None:
    table = read_table(DATA / name / "train.csv", DATA / name / "test.csv", columns=ISIC | {"group": group})
    assert (len(table.train), len(table.test)) == rows
    assert table.train["target"].sum() == positives
    assert table.train["group"].nunique() == groups
    assert table.shared_groups == 0
    raw = pd.read_csv(DATA / name / "train.csv")
    missing = raw[["age_approx", "sex", "anatom_site_general_challenge"]].isna().to_numpy()
    np.testing.assert_array_equal(table.train[["age", "sex", "site"]].isna().to_numpy(), missing)


def test_new_rows_say_what_they_lack_and_stand_alone_without_a_group(tmp_path: Path) -> None:
    path = csv(tmp_path, "image,where,extra\na,Torso,1\nb,,2\n", "new.csv")
    frame, missing = read_new_frame(path, COLUMNS)
    assert missing == ["group", "age", "sex"], "the target is nothing that a new row could have"
    assert frame["group"].tolist() == frame["id"].tolist() == ["a", "b"]
    assert frame["age"].isna().all()
    assert frame["site"].tolist()[0] == "torso"
    with pytest.raises(DataError, match="no column 'image', did you mean 'images'"):
        read_new_frame(csv(tmp_path, "images,where\na,torso\n", "other.csv"), COLUMNS)
    with pytest.raises(DataError, match="'a' in more than one row"):
        read_new_frame(csv(tmp_path, "image,years\na,30\na,40\n", "twice.csv"), COLUMNS)


def test_new_rows_are_read_as_test_rows_are(tmp_path: Path) -> None:
    test = csv(tmp_path, "image,patient,years,sex,where\na,p1,40,Male,Torso\nb,p2,,,\n", "test.csv")
    frame, missing = read_new_frame(test, COLUMNS)
    assert missing == []
    pd.testing.assert_frame_equal(frame, read_table(train_csv(tmp_path), test, columns=COLUMNS).test)


def test_files_joined_with_their_byte_order_marks_have_no_second_patient(tmp_path: Path) -> None:
    """`cat a.csv b.csv` leaves the mark of b.csv inside; its first row became a patient of its own, in any fold."""
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    columns = {"id": "image", "group": "patient", "target": "y"}
    first.write_text("patient,image,y\np1,a,0\np1,b,1\n", encoding="utf-8-sig")
    second.write_text("p1,c,0\np2,d,1\n", encoding="utf-8-sig")
    (tmp_path / "train.csv").write_bytes(first.read_bytes() + second.read_bytes())
    train = read_table(tmp_path / "train.csv", None, columns=columns).train
    assert train["group"].tolist() == ["p1", "p1", "p1", "p2"]


def test_codes_that_pandas_made_floats_in_the_test_table_are_those_of_train(tmp_path: Path) -> None:
    """A missing value makes 1.0 of 1 in one of the tables; as a category of its own it would be unknown to models."""
    columns = {**COLUMNS, "diagnosis": "site"}
    train = pd.DataFrame({"image": ["a", "b"], "patient": ["p", "q"], "y": [0, 1], "years": 40, "sex": [1, 2]})
    train["site"] = train["where"] = ["t\u00f3rso", "arm"]
    test = pd.DataFrame({"image": ["c", "d"], "patient": ["r", "s"], "years": 40, "sex": [2, None]})
    test["site"] = test["where"] = ["to\u0301rso", "arm\u200b"]
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    assert "2.0" in (tmp_path / "test.csv").read_text()
    table = read_table(tmp_path / "train.csv", tmp_path / "test.csv", columns=columns)
    assert table.test["sex"].fillna("").tolist() == ["2", ""]
    assert table.test["site"].tolist() == ["t\u00f3rso", "arm"]


@pytest.mark.parametrize("name", ["image", "patient"])
def test_keys_that_lost_digits_are_refused(tmp_path: Path, name: str) -> None:
    """`reduce_mem_usage` of many notebooks makes float16 of a column with missing values: 2,049 becomes 2,048."""
    rows = pd.DataFrame({"image": np.arange(3000, 3010), "patient": np.arange(2049, 2059), "y": [0, 1] * 5})
    columns = {"id": "image", "group": "patient", "target": "y"}
    rows.to_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", None, columns=columns).train["group"].nunique() == 10
    rows.astype({name: "float16"}).to_parquet(tmp_path / "a.parquet")
    assert f"the keys in {name!r}" in refusal(tmp_path / "a.parquet", columns=columns)

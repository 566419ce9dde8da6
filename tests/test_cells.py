"""Tables are read by their content: csv as its text, parquet with its index, anything else refused in clear words."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dermstack.errors import DataError
from stack.tables.cells import UNNAMED_INDEX, as_text, is_rounded, plain_numbers, read_cells, read_columns
from stack.tables.columns import known_cells, known_numbers

FRAME = pd.DataFrame({"id": ["007", "NA", "1e3"], "p": [0.25, 0.5, 1.0]})
# "café" in Latin-1, in a column that says it were UTF-8.
LATIN = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(np.int32([0, 4]).tobytes()), pa.py_buffer(b"caf\xe9")]
)


def _one_category(words: pa.Array) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), words)


def _with_index(words: pa.Array) -> pa.Table:
    described = pa.Table.from_pandas(pd.DataFrame({"p": [0.5]}, index=pd.Index(["a"], name="id")))
    return described.set_column(1, "id", words)


@pytest.mark.parametrize("name", ["a.parquet", "a.pq", "a.PARQUET", "a.csv", "a"])
def test_parquet_is_recognised_whatever_its_name(tmp_path: Path, name: str) -> None:
    FRAME.to_parquet(tmp_path / name)
    pd.testing.assert_frame_equal(read_columns(tmp_path / name), FRAME)
    assert read_cells(tmp_path / name)["id"].tolist() == ["007", "NA", "1e3"]


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.txt"])
def test_a_csv_is_recognised_whatever_its_name_and_keeps_its_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("id , x\n007,17.0\nNA,\n1e3,None\n", encoding="utf-8")
    cells = read_cells(tmp_path / name)
    assert cells.to_dict("list") == {"id": ["007", "NA", "1e3"], "x": ["17.0", "", "None"]}


@pytest.mark.parametrize("index", [["id"], ["id", "net"]])
def test_ids_in_the_index_of_a_parquet_file_are_columns(tmp_path: Path, index: list[str]) -> None:
    frame = FRAME.assign(net=[0, 1, 2])
    frame.set_index(index).to_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(read_columns(tmp_path / "a.parquet")[list(frame)], frame)


def test_an_index_without_a_name_is_kept_if_it_may_hold_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    FRAME.set_index("id").rename_axis(None).to_parquet(path)
    assert read_columns(path)[UNNAMED_INDEX].tolist() == ["007", "NA", "1e3"]
    FRAME.iloc[[2, 0]].to_parquet(path)  # numbers that a selection left behind
    assert list(read_columns(path)) == ["id", "p"]
    assert read_columns(path)["id"].tolist() == ["1e3", "007"]


def test_an_index_that_is_a_column_too_is_there_once(tmp_path: Path) -> None:
    FRAME.set_index("id", drop=False).to_parquet(tmp_path / "a.parquet")
    assert list(read_columns(tmp_path / "a.parquet")) == ["id", "p"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("npy", "is a NumPy array, which holds no ids"),
        ("npz", "is a file of NumPy arrays, which holds no ids"),
        ("pickle", "is a pickle, which can run code"),
        ("xls", "is an Excel file"),
        ("json", "is JSON: save the table as a csv or parquet file"),
        ("json lines", "is JSON: save the table as a csv or parquet file"),
        ("damaged parquet", "not a readable parquet file"),
        ("Latin-1 parquet", "not a readable parquet file .*UTF8"),
        ("Latin-1 categories", "not a readable parquet file .*caf"),
        ("Latin-1 index", "not a readable parquet file .*UTF8"),
        ("surplus cell", "not a readable csv in UTF-8"),
        ("utf-16", "not a readable csv in UTF-8"),
        ("empty", "the file is empty"),
        ("header", "the file has a header but no rows"),
        ("no rows", "the file has no rows"),
        ("folder", "is a folder: name a csv or parquet file"),
        ("nothing", "no such file"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "a.npz"
    write = {
        "npy": lambda: path.write_bytes(
            (np.save(tmp_path / "b.npy", np.zeros(3)), (tmp_path / "b.npy").read_bytes())[1]
        ),
        "npz": lambda: np.savez(path, p=np.zeros(3)),
        "pickle": lambda: path.write_bytes(pickle.dumps(FRAME)),
        "xls": lambda: path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100)),
        "json": lambda: FRAME.to_json(path, orient="records"),
        "json lines": lambda: FRAME.to_json(path, orient="records", lines=True),
        "damaged parquet": lambda: path.write_bytes(b"PAR1" + bytes(100) + b"PAR1"),
        "Latin-1 parquet": lambda: pq.write_table(pa.table({"id": LATIN, "p": [0.5]}), path),
        "Latin-1 categories": lambda: pq.write_table(pa.table({"id": _one_category(LATIN), "p": [0.5]}), path),
        "Latin-1 index": lambda: pq.write_table(_with_index(LATIN), path),
        "surplus cell": lambda: path.write_text("id,p\na,0.5,surplus\n"),
        "utf-16": lambda: path.write_text("id,p\na,0.5\n", encoding="utf-16"),
        "empty": path.touch,
        "header": lambda: path.write_text("id,p\n"),
        "no rows": lambda: FRAME.iloc[:0].to_parquet(path),
        "folder": path.mkdir,
        "nothing": lambda: None,
    }
    write[content]()
    with pytest.raises(DataError, match=words):
        read_columns(path)


def test_values_become_the_text_that_a_csv_would_hold() -> None:
    assert as_text(pd.Series([17.0, np.nan, -3.0])).tolist() == ["17", "", "-3"]
    assert as_text(pd.Series([17.5, np.nan, 1.0])).tolist() == ["17.5", "", "1.0"]
    assert as_text(pd.Series([17, None], dtype="Int64")).tolist() == ["17", ""]
    assert as_text(pd.Series([True, False])).tolist() == ["1", "0"]
    assert as_text(pd.Series(["007", None, b"1e3", 17], dtype="object")).tolist() == ["007", "", "1e3", "17"]
    assert as_text(pd.Series(["b", "a", None], dtype="category")).tolist() == ["b", "a", ""]
    assert as_text(pd.Series([1e17, 2.0])).tolist() == ["1e+17", "2.0"]  # beyond the integers that a float holds


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_another_separator_is_named(tmp_path: Path, separator: str, name: str) -> None:
    """Spreadsheets of many countries write `a;b` and 0,5: read with commas, the columns would be strange ones."""
    rows = [["id", "p"], ["a", "0,5"], ["b", "0,25"]]
    (tmp_path / "a.csv").write_text("\n".join(separator.join(row) for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=f"separated by {name}; save the file with commas"):
        read_columns(tmp_path / "a.csv")


def test_a_semicolon_in_a_cell_or_beside_commas_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,a;b\nx,1;2\n", encoding="utf-8")
    assert read_columns(tmp_path / "a.csv")["a;b"].tolist() == ["1;2"]
    (tmp_path / "b.csv").write_text("id\nx;y\n", encoding="utf-8")
    assert read_columns(tmp_path / "b.csv")["id"].tolist() == ["x;y"]
    FRAME.rename(columns={"p": "p;q"}).to_csv(tmp_path / "c.csv.gz", index=False)
    assert list(read_columns(tmp_path / "c.csv.gz").columns) == ["id", "p;q"]


def test_different_bytes_are_different_text() -> None:
    """Such as UUIDs of 16 bytes: as one replacement character each, many became one."""
    keys = [bytes([0xFE, number]) for number in range(256)] + [bytes([0xFF, number]) for number in range(256)]
    assert as_text(pd.Series(keys, dtype="object")).nunique() == len(keys)
    assert as_text(pd.Series([b"P3", "caf\u00e9".encode()], dtype="object")).tolist() == ["P3", "caf\u00e9"]


@pytest.mark.parametrize(("kind", "exact"), [("float16", 2**11), ("float32", 2**24), ("float64", 2**53)])
def test_integers_beyond_the_digits_of_their_type_are_found(kind: str, exact: int) -> None:
    assert is_rounded(pd.Series([exact, np.nan], dtype=kind))
    assert not is_rounded(pd.Series([exact - 1, 0.5, np.nan, np.inf], dtype=kind))
    assert np.array(exact, kind) == np.array(exact + 1, kind), "the oracle: the type itself"
    assert not is_rounded(pd.Series([exact, exact + 1]))  # integers


def test_plain_numbers_are_those_of_pandas_to_the_last_bit(rng: np.random.Generator) -> None:
    """Random decimals over many powers of ten, as Python writes them, and with six digits."""
    values = rng.normal(size=20_000) * 10.0 ** rng.integers(-30, 30, 20_000)
    for text in (map(repr, values.tolist()), (f"{value:.6g}" for value in values)):
        cells = pd.Series(list(text), dtype="str")
        made = plain_numbers(cells)
        assert made is not None
        np.testing.assert_array_equal(made, pd.to_numeric(cells).to_numpy(np.float64))
        np.testing.assert_array_equal(made, [float(cell) for cell in cells])


@pytest.mark.parametrize("odd", ["", " 5", "5 ", "1,5", "0x1A", "1_0", "one", "nan", "inf", "-Infinity", "1e999", "+5"])
@pytest.mark.parametrize("missing", [{}, {"width": (999,)}, {"w*": ("one", 7)}])
def test_numbers_of_a_column_are_those_of_its_known_cells(
    odd: str, missing: dict[str, tuple[str | float, ...]]
) -> None:
    cells = pd.Series(["1", "2.50", "999", "7", odd], dtype="str")
    text, numbers = known_numbers(cells, "width", missing)
    expected = known_cells(cells, "width", missing)
    pd.testing.assert_series_equal(text, expected)
    np.testing.assert_array_equal(
        numbers, pd.to_numeric(expected, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    )

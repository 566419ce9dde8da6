"""The fast reader of csv files returns the cells of the full parser, or leaves the file to it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dermstack.errors import DataError
from stack.tables.cells import _parsed_csv, read_columns
from stack.tables.csv_plain import read_plain_csv

CELLS = st.text(alphabet=st.sampled_from("a1.,\"\n\r é\t\ufeff'-0NnAa\0"), max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=400)
@given(st.lists(st.lists(CELLS, min_size=1, max_size=4).map(",".join), min_size=1, max_size=6), st.booleans())
@example(["a,b", "1,2"], True)
@example([" a ,b", "NA,"], False)
@example(["a,b", "", "1,2"], True)
@example(["a,b", " ", "1,2"], True)
@example(["\ufeffa,b", "1,2"], True)
@example(["a,b\r", "1,2\r"], True)
@example(["a,b", "1,2,3"], True)
@example(["a,b", "1"], True)
def test_it_agrees_with_the_full_parser_or_reads_nothing(tmp_path: Path, lines: list[str], ends: bool) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(("\n".join(lines) + ("\n" if ends else "")).encode())
    found = read_plain_csv(path)
    if found is not None:
        pd.testing.assert_frame_equal(found, _parsed_csv(path), check_column_type=False)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "a,b\r\n1,2\r\n", "\ufeffa,b\n1,2", " a,b \nNA,007\n,\n"])
def test_what_notebooks_write_is_plain(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(text.encode()))
    found = read_plain_csv(path)
    assert found is not None
    pd.testing.assert_frame_equal(found, _parsed_csv(path), check_column_type=False)
    pd.testing.assert_frame_equal(found, read_plain_csv(tmp_path / "x.csv.gz"))


@pytest.mark.parametrize("text", ['a,b\n"1",2\n', "a,b\n1\n", "a\n1\n", "a,b\r1,2\r", "a,b\n\0,1\n", ""])
def test_anything_else_is_left_to_the_full_parser(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(text.encode())
    assert read_plain_csv(path) is None


@pytest.mark.parametrize("suffix", [".csv.gz", ".zip", ".csv.xz", ".csv.bz2"])
def test_a_damaged_compressed_file_is_an_error_with_its_name(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    pd.DataFrame({"a": range(1000), "b": range(1000)}).to_csv(path, index=False)
    assert len(read_columns(path)) == 1000
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:40] + b"xxxxxxxx" + content[48:], content[:4]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable csv"):
            read_columns(path)

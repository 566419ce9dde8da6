"""Each line of a csv is one row: rows lost in quotation marks, cut-off rows and other separators are refused."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermstack import read_table
from dermstack.errors import DataError
from stack.tables.cells import read_cells
from stack.tables.csv_rows import check_rows

HEADER = "id,group,target,age,sex,site\n"
ROWS = [f"I{i},P{i},{i % 2},{40 + i},male,torso\n" for i in range(12)]
COLUMNS = {name: name for name in ("id", "group", "target", "age", "sex", "site")}


def written(tmp_path: Path, changed: dict[int, str]) -> Path:
    path = tmp_path / "train.csv"
    path.write_text(HEADER + "".join(changed.get(i, row) for i, row in enumerate(ROWS)), newline="")
    return path


@pytest.mark.parametrize(
    ("changed", "lines"),
    [
        ({3: 'I3,P3,1,43,male,"torso\n', 7: 'I7,P7,1,47,male,"arm\n'}, "line 5 goes on to line 9, so 5 rows"),
        ({3: 'I3,P3,1,43,"male,torso\n', 7: 'I7,P7,1,47,male",torso\n'}, "line 5 goes on to line 9, so 5 rows"),
        ({3: '"I3,P3,1,43,male,torso\n', 4: 'I4",P4,0,44,male,torso\n'}, "line 5 goes on to line 6, so 2 rows"),
        ({3: 'I3,P3,1,43,male,"torso\n', 4: 'I4,P4,0,44,male,arm"\n'}, "line 5 goes on to line 6, so 2 rows"),
        ({3: 'I3,P3,1,43,male,"torso\n'}, "line 5 goes on to line 13, so 9 rows"),
    ],
)
def test_rows_between_two_stray_quotation_marks_are_not_lost(
    tmp_path: Path, changed: dict[int, str], lines: str
) -> None:
    with pytest.raises(DataError, match=lines):
        read_table(written(tmp_path, changed), None, columns=COLUMNS)


@pytest.mark.parametrize(
    ("row", "site"),
    [
        ('I3,P3,1,43,male,"torso, left\narm, right"\n', "torso, left\narm, right"),
        ('I3,P3,1,43,male,"torso\r\n\r\nI5, arm"\r\n', "torso\r\n\r\ni5, arm"),
        ('I3,P3,1,43,male,"torso ""upper""\n""left"""\n', 'torso "upper"\n"left"'),
        ('I3,P3,1,43,male,5" of torso\n', '5" of torso'),
        ('"I3","P3","1","43","male","torso"\n', "torso"),
        ("\n   \nI3,P3,1,43,male,torso\n", "torso"),
    ],
)
def test_correct_quotation_marks_and_blank_lines_are_read(tmp_path: Path, row: str, site: str) -> None:
    train = read_table(written(tmp_path, {3: row}), None, columns=COLUMNS).train
    assert len(train) == len(ROWS)
    assert train["site"][3] == site


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("I3,P3,1\n", r"too few cells in line 5; line 5 has 3 of 6 \('I3,P3,1'\)"),
        ("I3,P3,1,43,torso\n", r"line 5 has 5 of 6"),  # the comma after sex is lost: torso would be the sex
        ('I3,P3,1,43,"torso, arm"\n', r"line 5 has 5 of 6"),
    ],
)
def test_a_row_with_too_few_cells_is_refused(tmp_path: Path, row: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_table(written(tmp_path, {3: row}), None, columns=COLUMNS)


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_was_cut_off_is_refused(tmp_path: Path, packed: bool) -> None:
    text = (HEADER + "".join(ROWS))[: -len("le,torso\n")]
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    with pytest.raises(DataError, match=r"line 13 has 5 of 6 .*cut off"):
        read_cells(path)


def test_lines_are_listed_up_to_five(tmp_path: Path) -> None:
    path = written(tmp_path, {i: f"I{i}\n" for i in range(7)})
    with pytest.raises(DataError, match=r"in lines 2, 3, 4, 5, 6, … 7 in all; line 2 has 1 of 6"):
        check_rows(path)


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", r"'\|'")])
@pytest.mark.parametrize("decimal", [".", ","])
def test_another_separator_is_named(tmp_path: Path, separator: str, name: str, decimal: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(separator.join(("id", "p")) + "\n" + separator.join(("a", f"0{decimal}5")) + "\n")
    with pytest.raises(DataError, match=f"the cells are separated by {name}"):
        read_cells(path)


@given(
    comments=st.lists(st.text(st.sampled_from('ab ,"\n;'), max_size=20), min_size=1, max_size=8),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_every_text_that_a_csv_writer_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, comments: list[str], quoting: int
) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [[f"ISIC_{i}", comment, str(i % 2)] for i, comment in enumerate(comments)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, quoting=quoting).writerows([["id", "comment", "target"], *rows])  # type: ignore[arg-type]
    assert read_cells(path).to_numpy().tolist() == rows

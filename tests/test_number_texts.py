"""Numbers that are written as text are told from words, with what to do: `auto`, named columns, `init`, eda's page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from dermstack.cli.main import app
from dermstack.errors import DataError
from stack.settings.data import ColumnRules
from stack.tables.columns import number_warnings
from stack.tables.number_texts import number_text
from stack.tables.table import Table, read_table

N = 400
VALUES = np.random.default_rng(0).gamma(3, 1, N) + 0.5


def _comma(value: float) -> str:
    return f"{value:.2f}".replace(".", ",")


WRITTEN = {
    "decimal comma": (_comma, "numbers with decimal commas", "write points"),
    "thousands": (lambda v: f"{int(v * 1e6):,}", "numbers with separated thousands", "nothing between thousands"),
    "thousands, or not": (lambda v: f"{int(v * 1e3 + 500):,}", "decimal ones or between thousands", "write points for"),
    "german": (
        lambda v: f"{v * 1e3:,.2f}".translate(str.maketrans(",.", ".,")),
        "decimal commas and separated thousands", "write 1234.5",
    ),
    "blanks": (lambda v: f"{int(v * 1e6):,}".replace(",", "\u202f"), "separated thousands", "write 1234.5"),
    "percent": (lambda v: f"{v:.1f}%", "numbers with '%' in 400 rows", "write the number alone"),
    "unit": (lambda v: f"{v:.1f} mm", "numbers with 'mm' in 400 rows", "write the number alone"),
    "units": (lambda v: f"{v:.1f} {'mm' if v < 3 else 'cm'}", "numbers with", "all in one unit"),
    "age": (lambda v: f"{int(v * 9):03d}Y", "numbers with 'Y'", "write the number alone"),
    "word": (lambda v: "n.d." if v > 8 else f"{v:.2f}", "but for 'n.d.' in", 'data.missing: {"size": ["n.d."]}'),
    "bound": (lambda v: "<0.9" if v < 0.9 else f"{v:.2f}", "but for '<0.9' in", "write numbers there, or declare"),
    "both": (lambda v: "n.d." if v > 8 else _comma(v), "decimal commas", 'data.missing: {"size": ["n.d."]}'),
}  # fmt: skip
WORDS = {
    "parts of a code": lambda v: f"{int(v * 10)}{'abc'[int(v * 100) % 3]}",
    "stages": lambda v: f"{int(v) % 4}{'ab'[int(v * 100) % 2]}",
    "lists": lambda v: ["1,2", "2", "1,2,3", "3"][int(v * 100) % 4],
    "mixed codes": lambda v: f"{int(v * 30)}" if v < 4 else f"D{int(v * 30)}",
    "dates": lambda v: f"2020-01-{int(v) + 10}",
    "times": lambda v: f"{int(v)}:30",
    "ranges": lambda v: f"{int(v * 5)}-{int(v * 5) + 5}",
    "few grades": lambda v: ["1", "2", "3", "X"][int(v * 10) % 4],
    "files": lambda v: f"{v:.4f}.jpg",
    "plain": lambda v: f"{v:.2f}",
}


def _read(folder: Path, cells: list[str], test: list[str] | None = None, **rules: object) -> Table:
    n = len(cells)
    y = np.random.default_rng(1).integers(0, 2, n)
    train = pd.DataFrame({"image": [f"i{row}" for row in range(n)], "y": y, "size": cells})
    train.to_csv(folder / "train.csv", index=False)
    path = None
    if test is not None:
        path = folder / "test.csv"
        pd.DataFrame({"image": [f"t{row}" for row in range(len(test))], "size": test}).to_csv(path, index=False)
    columns = {"id": "image", "target": "y"}
    return read_table(folder / "train.csv", path, columns=columns, rules=ColumnRules(**rules))  # type: ignore[arg-type]


@pytest.mark.parametrize("written", WRITTEN)
def test_auto_and_a_named_column_say_how_numbers_are_written_and_what_to_do(tmp_path: Path, written: str) -> None:
    write, what, remedy = WRITTEN[written]
    cells = [write(value) for value in VALUES]
    table = _read(tmp_path, cells, numeric="auto", categorical="auto")
    assert "size" not in table.columns.numeric
    (warning,) = number_warnings(table.columns)
    assert ("is taken as words" in warning) == ("size" in table.columns.categorical)
    assert warning in number_warnings(table.columns)
    with pytest.raises(DataError) as caught:
        _read(tmp_path, cells, numeric=("size",))
    for said in (warning, str(caught.value)):
        assert what in said
        assert remedy in said
        assert "different words" not in said


@pytest.mark.parametrize("written", WORDS)
def test_words_are_not_called_numbers(written: str) -> None:
    assert number_text(pd.Series([WORDS[written](value) for value in VALUES]), "size") is None


def test_identifiers_of_numbers_and_a_word_are_identifiers(tmp_path: Path) -> None:
    table = _read(tmp_path, [f"{row}L" for row in range(N)], numeric="auto", categorical="auto")
    assert table.columns.choices[0].reason == "every row has another value: an identifier"
    assert not number_warnings(table.columns)


def test_words_of_the_test_table_alone_are_named(tmp_path: Path) -> None:
    cells = [f"{value:.2f}" for value in VALUES]
    table = _read(tmp_path, cells, [*cells[:-3], "?", "?", "n.d."], numeric="auto", categorical="auto")
    assert "but for '?', 'n.d.' in 3 rows" in number_warnings(table.columns)[0]
    declared = _read(tmp_path, cells, [*cells[:-1], "?"], numeric="auto", missing={"size": ("?",)})
    assert list(declared.columns.numeric) == ["size"]


def test_a_category_of_numbers_with_a_unit_is_warned_of_unless_words_among_numbers_are_named(tmp_path: Path) -> None:
    percent = [f"{value:.1f}%" for value in VALUES]
    for asked in ("auto", ("size",), ("s*",)):
        table = _read(tmp_path, percent, categorical=asked)
        assert list(table.columns.categorical) == ["size"]
        assert "is taken as words: numbers with '%'" in number_warnings(table.columns)[0]
    grades = [str(int(value)) if value < 8 else "X" for value in VALUES]
    assert "but for 'X'" in number_warnings(_read(tmp_path, grades, categorical="auto").columns)[0]
    assert not number_warnings(_read(tmp_path, grades, categorical=("size",)).columns)


def test_numeric_auto_alone_names_the_numbers_too(tmp_path: Path) -> None:
    table = _read(tmp_path, [f"{value:.1f}%" for value in VALUES], numeric="auto")
    assert "is left out: numbers with '%'" in number_warnings(table.columns)[0]


def test_many_columns_with_one_fault_share_a_line(tmp_path: Path) -> None:
    frame = pd.DataFrame({f"lab{n}": [_comma(value + n) for value in VALUES] for n in range(20)})
    frame.insert(0, "image", [f"i{row}" for row in range(N)])
    frame.insert(1, "y", np.arange(N) % 2)
    frame.to_csv(tmp_path / "train.csv", index=False)
    columns = {"id": "image", "target": "y"}
    table = read_table(tmp_path / "train.csv", None, columns=columns, rules=ColumnRules("auto", "auto"))
    (warning,) = number_warnings(table.columns)
    assert warning.startswith("20 columns are left out (lab0, lab1")
    assert "such as lab0, numbers with decimal commas ('" in warning


def test_ages_with_decimal_commas_and_units_are_explained(tmp_path: Path) -> None:
    for cells, words in ((["45,5", "50"], "decimal commas ('45,5'): write points"), (["045Y", "50"], "with 'Y'")):
        pd.DataFrame({"image": ["a", "b"], "y": [0, 1], "years": cells}).to_csv(tmp_path / "train.csv", index=False)
        with pytest.raises(DataError, match="is not a number of years") as caught:
            read_table(tmp_path / "train.csv", None, columns={"id": "image", "target": "y", "age": "years"})
        assert words in str(caught.value)


def test_init_asks_and_the_page_of_eda_explains(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"image": [f"i{row}" for row in range(N)], "target": rng.integers(0, 2, N)})
    frame["patient"] = [f"p{row // 2}" for row in range(N)]
    frame["size"], frame["fat"] = [_comma(value) for value in VALUES], [f"{value:.1f}%" for value in VALUES]
    (tmp_path / "data").mkdir()
    frame.to_csv(tmp_path / "data" / "train.csv", index=False)
    config = tmp_path / "config.yaml"
    found = CliRunner().invoke(app, ["init", str(tmp_path / "data"), "--out", str(config)])
    assert found.exit_code == 0, found.output
    text = " ".join(config.read_text(encoding="utf-8").replace("#", " ").split())
    assert "column size is left out: numbers with decimal commas" in text
    assert "column fat is taken as words: numbers with '%' in 400 rows" in text
    assert CliRunner().invoke(app, ["eda", "--config", str(config)]).exit_code == 0
    page = next(tmp_path.rglob("eda.html")).read_text(encoding="utf-8")
    assert "column size is left out: numbers with decimal commas" in page

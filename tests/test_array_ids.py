"""NumPy arrays of predictions need ids: beside them, named, or they are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dermstack.errors import DataError
from stack.tables.array_ids import NET_COLUMN, read_array_columns

IDS = ["0007", "b", "c"]


def read(path: Path, **changes: object) -> pd.DataFrame:
    return read_array_columns(path, "oof", **({"id_column": "id", "p": "p", "fold": "fold"} | changes))  # type: ignore[arg-type]


@pytest.fixture
def array(tmp_path: Path) -> Path:
    np.save(path := tmp_path / "net_oof.npy", np.array([0.1, 0.2, 0.3]))
    return path


def test_without_ids_it_is_refused_and_says_where_they_may_lie(array: Path) -> None:
    for part, option in (("oof", "--ids"), ("test", "--test-ids")):
        with pytest.raises(DataError) as error:
            read_array_columns(array, part, id_column="id", p="p", fold="fold", option=option)
        message = str(error.value)
        assert "holds no ids, and rows are never joined by position" in message
        assert f"net_oof_ids.npy or {part}_ids.csv beside it, name their file with {option}" in message


@pytest.mark.parametrize("name", ["net_oof_ids", "oof_ids", "ids"])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".txt", ".parquet"])
def test_ids_lie_beside_it_in_any_form(array: Path, name: str, suffix: str) -> None:
    path = array.with_name(name + suffix)
    frame = pd.DataFrame({"id": IDS})
    if suffix == ".npy":
        np.save(path, np.array(IDS))
    elif suffix == ".txt":
        path.write_text("\n".join(IDS))
    else:
        frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path)
    found = read(array)
    assert found["id"].tolist() == IDS
    assert found["p"].tolist() == [0.1, 0.2, 0.3]


def test_the_nearest_name_wins(array: Path) -> None:
    array.with_name("ids.txt").write_text("x\ny\nz\n")
    array.with_name("oof_ids.csv").write_text("id,fold\na,0\nb,1\nc,0\n")
    found = read(array)
    assert (found["id"].tolist(), found["fold"].tolist()) == (["a", "b", "c"], ["0", "1", "0"])
    array.with_name("net_oof_ids.txt").write_text("p\nq\nr\n")
    assert read(array)["id"].tolist() == ["p", "q", "r"]


@pytest.mark.parametrize(
    ("values", "ids", "words"),
    [
        (np.zeros(3), ["a", "b"], r"shape \(3,\) for the 2 ids"),
        (np.zeros((3, 2, 2)), IDS, "shape"),
        (np.zeros((3, 3)), IDS, "not certain which way the rows go"),
        (np.array(["a", "b", "c"]), IDS, "an array of <U1"),
        (np.zeros(3), np.zeros(3), "save the ids with"),
        (np.zeros(3), np.array([["a", "b", "c"]]), "save the ids with"),
    ],
)
def test_arrays_and_ids_that_do_not_fit_are_refused(
    tmp_path: Path, values: np.ndarray, ids: np.ndarray | list[str], words: str
) -> None:
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "ids.npy", np.array(ids))
    with pytest.raises(DataError, match=words):
        read(tmp_path / "x.npy")


def test_objects_are_never_unpickled(tmp_path: Path, array: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array(IDS, object), allow_pickle=True)
    with pytest.raises(DataError, match=r"save the ids with `np.save\(file, np.array\(ids, dtype=str\)\)`"):
        read(array)
    np.save(tmp_path / "ids.npy", np.array(pd.Series(IDS), dtype=str))  # as the message says, also of a table's column
    assert read(array)["id"].tolist() == IDS
    np.save(array, np.array([0.1, 0.2, 0.3], object), allow_pickle=True)
    (tmp_path / "ids.npy").unlink()
    array.with_name("ids.txt").write_text("\n".join(IDS))
    with pytest.raises(DataError, match="not a readable array"):
        read(array)


def test_a_column_a_net_is_found_in_both_ways_round(tmp_path: Path) -> None:
    values = np.arange(6).reshape(3, 2) / 10
    (tmp_path / "ids.txt").write_text("\n".join(IDS))
    for made in (values, values.T):
        np.save(tmp_path / "x.npy", made)
        found = read(tmp_path / "x.npy")
        assert list(found) == ["id", f"{NET_COLUMN}0", f"{NET_COLUMN}1"]
        assert found[f"{NET_COLUMN}1"].tolist() == [0.1, 0.3, 0.5]

"""Forms of one file of predictions: a column a net, a file a fold, seeds; what is not certain is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit

from dermstack.errors import DataError
from stack.imported.prediction_files import Files, ImportedColumns, Part, read_parts

COLUMNS = ImportedColumns("id", "p", "fold", nets="n")
PLAIN = ImportedColumns("id", "p", "fold")


def read(parts: Sequence[Part], columns: ImportedColumns = PLAIN, **changes: object) -> pd.DataFrame:
    options = {"needs_fold": True, "alternative": "", "files": Files(), "respell": lambda ids, path: ids} | changes
    return read_parts(parts, columns, **options)  # type: ignore[arg-type]


def written(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    frame.to_csv(folder / name, index=False)
    return folder / name


def wide(rng: np.random.Generator) -> pd.DataFrame:
    frame = pd.DataFrame(rng.random((6, 3)), columns=["n0", "n1", "n2"])
    frame.insert(0, "id", list("abcdef"))
    return frame


def test_a_row_is_of_the_net_that_its_fold_names_or_of_the_only_one(tmp_path: Path, rng: np.random.Generator) -> None:
    frame, fold = wide(rng), np.array([0, 1, 2, 2, 1, 0])
    own = frame[["n0", "n1", "n2"]].to_numpy()[np.arange(6), fold]
    with_fold = read([Part(written(tmp_path, "a.csv", frame.assign(fold=fold)))], COLUMNS)
    nets = frame[["n0", "n1", "n2"]].where(fold[:, None] == np.arange(3))
    for name, made in (
        ("a", with_fold),
        ("b", read([Part(written(tmp_path, "b.csv", pd.concat([frame[["id"]], nets], axis=1)))], COLUMNS)),
    ):
        assert made["id"].tolist() == list("abcdef"), name
        assert made["p"].tolist() == pytest.approx(own, abs=0)
        assert made["fold"].astype(int).tolist() == fold.tolist()


def test_a_row_of_an_unknown_net_is_refused(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = wide(rng)
    path = written(tmp_path, "a.csv", frame)
    with pytest.raises(DataError, match="6 rows have not exactly one prediction, and no column 'fold' says"):
        read([Part(path)], COLUMNS)
    written(tmp_path, "a.csv", frame.assign(fold=[0, 1, 2, 3, 0, 0]))
    with pytest.raises(DataError, match="no column is of net 3, which 'fold' holds"):
        read([Part(path)], COLUMNS)
    frame.loc[2, "n2"] = np.nan
    written(tmp_path, "a.csv", frame.assign(fold=[0, 1, 2, 1, 0, 0]))
    with pytest.raises(DataError, match="1 rows have no prediction of the net that 'fold' names"):
        read([Part(path)], COLUMNS)
    frame.loc[3, "n1"] = 1.5
    written(tmp_path, "a.csv", frame.assign(fold=[0, 1, 1, 1, 0, 0]))
    with pytest.raises(DataError, match=r"1 values of 'n1' are not probabilities, first '1.5' in row 5"):
        read([Part(path)], COLUMNS)


def test_a_file_of_one_fold_has_the_fold_of_its_name(tmp_path: Path) -> None:
    a = written(tmp_path, "a_fold0.csv", pd.DataFrame({"id": ["a"], "p": [0.1]}))
    b = written(tmp_path, "a_fold1.csv", pd.DataFrame({"id": ["b"], "p": [0.2], "fold": ["7"]}))
    with pytest.raises(DataError, match="no column 'fold'"):
        read([Part(a)])
    found = read([Part(a, "0"), Part(b, "1")])
    assert found["fold"].tolist() == [0, 7], "a column says more than a name"
    both = written(tmp_path, "c.csv", pd.DataFrame({"id": ["b", "c"], "p": [0.2, 0.3], "fold": [0, 1]}))
    with pytest.raises(DataError, match="the name says that it is of fold 1, but 'fold' holds 2 folds"):
        read([Part(both, "1")])


def test_seeds_are_averaged_as_logits_and_only_where_rows_and_folds_agree(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    frames = [pd.DataFrame({"id": list("abcd"), "p": rng.random(4), "fold": [0, 0, 1, 1]}) for _ in range(3)]
    parts = [
        Part(written(tmp_path, f"{seed}.csv", frame.sample(frac=1, random_state=seed)), "", str(seed))
        for seed, frame in enumerate(frames)
    ]
    mean = expit(np.mean([logit(frame["p"]) for frame in frames], axis=0))
    found = read(parts, average_seeds=True).sort_values("id")
    assert found["p"].tolist() == pytest.approx(mean.tolist(), abs=1e-12)
    together = pd.concat([frame.assign(seed=seed) for seed, frame in enumerate(frames)])
    found = read([Part(written(tmp_path, "all.csv", together))], average_seeds=True).sort_values("id")
    assert found["p"].tolist() == pytest.approx(mean.tolist(), abs=1e-12)
    written(tmp_path, "2.csv", frames[2].assign(fold=[0, 1, 0, 1]))
    with pytest.raises(DataError, match="seed 2 has other rows or folds than seed 0"):
        read(parts, average_seeds=True)
    written(tmp_path, "2.csv", frames[2].iloc[[0, 1, 2, 2]])
    with pytest.raises(DataError, match="rows of seed 2 repeat an id"):
        read(parts, average_seeds=True)


@pytest.mark.parametrize(
    "text", ["0.1", " 0.1", "1e-1", "+0.1", "1.0E-01", ".1", "0.1000000000000000055511151231257827"]
)
def test_numbers_are_read_as_python_reads_them(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(f"id,p,fold\nx,{text},0\ny,0.3,1\n")
    assert read([Part(tmp_path / "a.csv")])["p"].tolist() == [float(text), 0.3]


def test_random_numbers_are_read_to_the_last_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    p = np.concatenate([rng.random(2000), 10.0 ** -rng.uniform(0, 300, 2000)])
    path = written(tmp_path, "a.csv", pd.DataFrame({"id": range(4000), "p": p, "fold": 0}))
    assert (read([Part(path)])["p"].to_numpy() == p).all()

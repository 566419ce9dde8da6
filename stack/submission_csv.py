"""Makes and checks the csv of a submission: one score for each id, in the rows and the order of a sample submission."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from dermstack.errors import DataError
from dermstack.listing import first_of
from stack.tables.cells import read_cells
from stack.tables.keys import keys_as_in, other_spelling


def submission(
    ids: Sequence[str] | pd.Series,
    score: ArrayLike,
    *,
    id_column: str,
    target_column: str,
    sample: Path | None = None,
    of: str = "data.test and data.sample_submission",
    images: pd.Series | None = None,
) -> pd.DataFrame:
    """Returns a submission: columns id (str) and score (float64 in [0, 1]), one row for each of `ids` (n,).

    With `sample` (a sample_submission.csv) the rows are joined to it by id and take its order and column names;
    its id column is `id_column`, or its first column where that name is absent. Without it, rows are in the order
    of `ids`. `of` names the two settings that must have the same ids; `images` are the ids of the images where `ids`
    are those of units of several images. Raises DataError for ids that are missing, extra, duplicated or not strings,
    and for a score that is not a number in [0, 1].
    """
    values = np.asarray(score, dtype=np.float64)
    if values.shape != (len(ids),):
        raise DataError(f"{len(ids)} ids and scores of shape {values.shape}: give one score for each id")
    _check_ids(list(ids), "the predictions")
    names = pd.Series(ids, dtype="str").to_numpy()
    frame = pd.DataFrame({id_column: names, target_column: values})
    if sample is not None:
        expected = _read_sample(sample, of.rpartition(" and ")[2])
        if images is not None:
            _check_names_units(expected, frame[id_column], images, id_column, sample)
        frame, id_column = _in_sample_order(frame, expected, sample, of)
    check_submission(frame, id_column=id_column, sample=sample)
    return frame


def check_submission(frame: pd.DataFrame, *, id_column: str, sample: Path | None = None) -> None:
    """Raises DataError unless `frame` is a valid submission: ids and columns as in `sample`, scores in [0, 1]."""
    if frame.shape[1] != 2 or id_column not in frame:
        raise DataError(
            f"the submission has the columns {list(frame.columns)}: give the column {id_column!r} and one score"
        )
    ids = frame[id_column]
    _check_ids(list(ids), "the submission")
    if sample is not None:
        expected = _read_sample(sample)
        if list(frame.columns) != list(expected.columns):
            raise DataError(
                f"{sample} has the columns {list(expected.columns)}, the submission has {list(frame.columns)}: "
                "rename these"
            )
        _check_same_ids(ids, expected[id_column], sample, "data.test and data.sample_submission")
        moved = ids.to_numpy() != expected[id_column].to_numpy()
        if moved.any():
            row = int(np.flatnonzero(moved)[0])
            raise DataError(
                f"{moved.sum()} ids are in other rows than in {sample} (row {row + 2}: {ids.iloc[row]!r} "
                f"instead of {expected[id_column].iloc[row]!r}): join the scores to the sample by id"
            )
    scores = frame[next(name for name in frame if name != id_column)].to_numpy(np.float64)
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if bad.size:
        named = first_of(f"{ids.iloc[row]}: {scores[row]}" for row in bad)
        raise DataError(f"scores are not in [0, 1] ({named}): give one number in [0, 1] for each id")


def submission_text(frame: pd.DataFrame) -> str:
    """Returns the csv of a submission, the same for the same scores on every machine.

    Floats are written as by Python's repr, which pandas uses without a float_format: with the fewest digits that
    read back as the same float64, so that two scores tie in the file only if they are equal. A fixed number of
    digits would make ties in a rank blend; `%.17g` is as exact, but writes 0.1 as 0.10000000000000001.
    """
    return frame.to_csv(index=False, lineterminator="\n")  # by default the line ends depend on the platform


def _check_names_units(
    expected: pd.DataFrame, units: pd.Series, images: pd.Series, id_column: str, sample: Path
) -> None:
    """Raises DataError where a sample has the ids of images, but there is one prediction for each unit."""
    names = expected[id_column if id_column in expected else str(expected.columns[0])]
    if names.isin(set(images)).any() and not names.isin(set(units)).any():
        raise DataError(
            f"{sample} has a row for each image ({first_of(names, 3)}), not for each {id_column} "
            f"({first_of(units, 3)}): give a sample with these, or none: the submission then has the table's order"
        )


def _in_sample_order(frame: pd.DataFrame, expected: pd.DataFrame, sample: Path, of: str) -> tuple[pd.DataFrame, str]:
    """Returns `frame` (id, score) with the sample's order and column names, and the name of its id column."""
    id_column, target_column = map(str, frame.columns)
    id_name = id_column if id_column in expected else str(expected.columns[0])
    target_name = next(str(name) for name in expected if name != id_name)
    # The submission has the sample's spelling of an id: 17 where the sample has 17 and data.test 17.0.
    ids = keys_as_in(frame[id_column], expected[id_name], "the predictions: id", of=str(sample))
    frame = frame.assign(**{id_column: ids})
    _check_same_ids(frame[id_column], expected[id_name], sample, of)
    scores = frame.set_index(id_column)[target_column].reindex(expected[id_name])
    return expected.assign(**{target_name: scores.to_numpy()}), id_name


def _read_sample(path: Path, setting: str = "data.sample_submission") -> pd.DataFrame:
    """Reads a sample's two columns as the strings in the file: "007" stays "007", "NA" stays "NA"."""
    if not path.is_file():
        raise DataError(f"{path}: no such file: correct {setting}")
    cells = read_cells(path)
    header = list(map(str, cells.columns))
    if len(set(header)) != 2 or len(header) != 2:
        raise DataError(f"{path}: it has the columns {header}: a sample submission needs two, an id and a target")
    return cells


def _check_ids(ids: list[object], where: str) -> None:
    odd = [value for value in ids if not isinstance(value, str) or not value]
    if odd:
        raise DataError(f"{where}: {first_of(map(repr, odd))} is not an id: read the column as strings and fill it in")
    counts = pd.Series(ids, dtype="str").value_counts()
    doubled = sorted(counts.index[counts > 1])
    if doubled:
        raise DataError(f"{where}: duplicated ids {first_of(doubled)}: keep one row for each image")


def _check_same_ids(ids: pd.Series, expected: pd.Series, sample: Path, of: str) -> None:
    _check_ids(list(expected), str(sample))
    ours, theirs = set(ids), set(expected)
    faults = []
    if missing := [name for name in expected if name not in ours]:
        faults.append(f"without a score: {first_of(missing)}")
    if extra := [name for name in ids if name not in theirs]:
        faults.append(f"scored, but not in the sample: {first_of(extra)}")
    if faults:
        advice = other_spelling(pd.Series(extra, dtype="str"), expected, of=str(sample))
        raise DataError(
            f"the ids are not those of {sample}; {'; '.join(faults)}. "
            f"Check that {of} have the same ids" + (f": {advice}" if advice else "")
        )

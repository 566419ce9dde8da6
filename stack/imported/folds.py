"""Matches the rows, folds and nets of imported files with those of the experiment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError
from dermstack.listing import counted
from stack.experiment import Experiment
from stack.imported.prediction_files import ImportedColumns
from stack.predictions.ranks import AVERAGED
from stack.tables.keys import contained, other_spelling, positions_of


@dataclass(frozen=True)
class FoldMatch:
    """The folds of an out-of-fold file in the experiment's numbers."""

    numbers: NDArray[np.int8]  # (n,) fold of each out-of-fold row: the experiment's, or the file's where it is foreign
    theirs: dict[object, int]  # fold label of the file → fold in ``numbers``; empty where the file has no folds
    foreign: bool  # whether the file's folds are not those of the experiment


def match_rows(
    experiment: Experiment,
    oof: pd.DataFrame,
    path: Path,
    columns: ImportedColumns,
    *,
    exclude: int,
    foreign: bool,
) -> FoldMatch:
    """Returns the fold of each out-of-fold row; ``exclude`` is the number of training rows that may lack.

    Raises DataError for unknown, repeated or missing ids, and for folds other than the experiment's unless ``foreign``.
    """
    ids = experiment.table.train["id"]
    rows = positions_of(oof["id"], ids)
    is_unique = (rows >= 0).all() and np.bincount(rows).max(initial=0) < 2
    if not is_unique and len(doubled := oof["id"][oof["id"].duplicated()]):
        raise DataError(
            f"{path}: {counted(len(doubled), 'rows', 'repeat')} an id, first {doubled.iloc[0]!r}: give one row for "
            "each id"
        )
    if (rows < 0).any():
        strange = oof["id"][rows < 0]
        advice = other_spelling(strange, ids, of="the training rows") or "remove them from the file"
        raise DataError(f"{path}: {len(strange)} ids are not training rows, first {strange.iloc[0]!r}: {advice}")
    lacking = len(ids) - len(rows)
    if lacking != exclude:
        raise DataError(
            f"{path}: {lacking} of {len(ids)} training rows have no prediction, but {exclude} are declared: "
            + (f"add `--exclude {lacking}` to leave them out of the stack" if lacking else "remove --exclude")
        )
    ours = experiment.folds.frame["fold"].to_numpy()[rows]
    if empty := sorted(set(range(experiment.folds.k)) - set(ours)):
        raise DataError(
            f"{path}: no row of fold {empty[0]} has a prediction: add some, since stacking needs rows of every fold"
        )
    if "fold" not in oof:
        return FoldMatch(np.zeros(len(oof), np.int8), {}, foreign=True)
    codes, names = pd.factorize(oof["fold"])
    both = np.unique(codes * (experiment.folds.k + 1) + ours)
    pairs = pd.DataFrame({"theirs": names[both // (experiment.folds.k + 1)], "ours": both % (experiment.folds.k + 1)})
    if len(pairs) == pairs["theirs"].nunique() == pairs["ours"].nunique():
        return FoldMatch(ours.astype(np.int8), dict(zip(pairs["theirs"], pairs["ours"], strict=True)), foreign=False)
    if not foreign:
        raise DataError(
            f"{path}: column {columns.fold!r} holds other folds than the experiment's: use these folds in the "
            "experiment (data.columns.fold), or add --foreign-folds, which is recorded and shown with the run's scores"
        )
    _check_groups(experiment, oof, rows, path)
    numbers, theirs = pd.factorize(oof["fold"], sort=True)
    return FoldMatch(numbers.astype(np.int8), {net: number for number, net in enumerate(theirs)}, foreign=True)


def _check_groups(experiment: Experiment, oof: pd.DataFrame, rows: NDArray[np.intp], path: Path) -> None:
    """Raises DataError where foreign folds split a group: its rows have leaked into its predictions."""
    torn = pd.Series(oof["fold"].to_numpy()).groupby(experiment.split_group[rows]).nunique()
    torn = torn[torn > 1]
    if len(torn):
        raise DataError(
            f"{path}: its folds split {len(torn)} groups, first {torn.index[0]!r}, so models were trained on other "
            "rows of the groups that they are scored on: make the predictions again with grouped folds"
        )


def net_numbers(labels: pd.Series, fold: FoldMatch, path: Path, columns: ImportedColumns, *, instead: str) -> pd.Series:
    """Returns the fold number of each label; raises DataError unless the labels are those of the out-of-fold file."""
    codes, names = pd.factorize(labels)  # few names, whatever the number of rows
    numbers = pd.Series(pd.Series(names).map(fold.theirs).to_numpy()[codes], index=labels.index)
    if numbers.isna().any():
        strange = sorted(set(labels[numbers.isna()].astype(str)))
        raise DataError(
            f"{path}: fold {', '.join(strange)} is not in the out-of-fold file: check {columns.fold!r}{instead}"
        )
    there = set(numbers.unique())
    if lacking := [str(theirs) for theirs, ours in fold.theirs.items() if ours not in there]:
        raise DataError(
            f"{path}: no row is of net {', '.join(sorted(lacking))}, which is in the out-of-fold file: give the rows "
            f"of every net{instead}"
        )
    return numbers


def net_label(label: object) -> str:
    """Returns the name of a fold net as text: numbers that are equal have the same."""
    if not isinstance(label, int | float | np.number):
        return str(label)
    return str(int(label)) if float(label).is_integer() else str(float(label))


def check_nets(ids: pd.Series, numbers: NDArray[Any], expected: pd.Series, path: Path, *, what: str) -> None:
    """Raises DataError unless each net has each of the expected rows once, and no other."""
    place = positions_of(ids, expected)
    for number in np.unique(numbers):
        of_net = numbers == number
        found = place[of_net]
        if len(found) == len(expected) and (found >= 0).all() and (np.bincount(found) == 1).all():
            continue
        here = ids[of_net]
        net = "" if number == AVERAGED else f" of net {number}"
        if doubled := int(here.duplicated().sum()):
            raise DataError(
                f"{path}: {counted(doubled, 'rows', 'repeat')} an id{net}: give one row for each id and net "
                "(name the net's column with --fold-column, or give one averaged test row an id with --test-averaged)"
            )
        advice = other_spelling(here[found < 0], expected, of=f"the {what}") or f"give exactly the ids of the {what}"
        raise DataError(
            f"{path}: {(~contained(expected, here)).sum()} {what} have no prediction{net}, "
            f"{(found < 0).sum()} ids are not {what}: {advice}"
        )

"""Opens a table of labels without a config: finds its columns, and makes grouped folds for what needs some."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import ValidationError

from dermstack.errors import DataError
from stack.console import Out
from stack.draft.roles import NO_GROUP, Label, find_roles, id_columns, label_columns
from stack.experiment import NO_CURATION, Experiment, open_experiment
from stack.folds import Folds, TooFewGroupsError
from stack.settings.config import Config
from stack.tables.cells import read_cells

_FOLDS = (5, 4, 3, 2)  # numbers of grouped folds to try: the first that leaves groups of both classes in each
GROUP, TARGET = "data.columns.group", "data.columns.target"  # keys of a config
_MODEL_COLUMNS = ("age", "sex", "site")  # what a regression on the table takes, beside the predictions


@dataclass(frozen=True)
class LabelRows:
    """The labelled rows as an experiment in memory, whose folds are made here unless the table has a column of them."""

    experiment: Experiment
    columns: Mapping[str, str]  # the csv's names by role: id, target and, where found, group, age, sex, site, fold
    questions: tuple[tuple[str, str], ...]  # what could not be decided: (key of a config, question)
    has_groups: bool
    has_folds: bool  # whether the table has a column of folds

    def with_test_ids(self, ids: Sequence[str]) -> LabelRows:
        """Returns the rows with these ids as test rows, each a group of its own."""
        test = pd.DataFrame({"id": pd.Series(list(ids), dtype="str")})
        table = replace(self.experiment.table, test=test.assign(group=test["id"]), test_groups_known=False)
        return replace(self, experiment=replace(self.experiment, table=table))

    def with_folds(self, fold: NDArray[np.integer]) -> LabelRows:
        """Returns the rows with other folds (n,)."""
        frame = self.experiment.folds.frame.assign(fold=np.asarray(fold, np.int8))
        return replace(self, experiment=replace(self.experiment, folds=Folds(frame)))


def open_labels(
    path: Path, *, id_column: str | None = None, target: str | None = None, group: str | None = None
) -> LabelRows:
    """Reads the labels of a csv or parquet file; columns that are not named are guessed by their names and values.

    Raises DataError where no column of ids or targets is found or a named one is absent, and as `open_experiment` does.
    """
    cells = read_cells(path)
    header = list(map(str, cells.columns))
    for name, option in ((id_column, "--id-column"), (target, "--target"), (group, "--group")):
        if name is not None and name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the columns are {', '.join(header)}"
            raise DataError(f"{path}: no column {name!r} ({option}): {hint}")
    ids = [id_column] if id_column else id_columns(cells, frozenset(), set())
    labels = label_columns(cells, {target} if target else set(), only=bool(target))
    labels = [label for label in labels if label.column not in ids[:1]]
    if not ids or not labels:
        option, what = ("--id-column", "ids, with another value in each row") if not ids else ("--target", "targets")
        named = f"{target!r} holds no two classes" if target and ids else f"no column of {what} was found"
        raise DataError(f"{path}: {named}: name it with {option}; the columns are {', '.join(header)}")
    label = labels[0]
    roles = find_roles(cells, None, taken=(ids[0], label.column))
    found = {role: name for role, name in roles.columns.items() if role in ("group", "fold", *_MODEL_COLUMNS)}
    if group is not None:
        found = {role: name for role, name in found.items() if name != group} | {"group": group}
    questions = [
        (key, question) for key, question in roles.questions if question != NO_GROUP and (key != GROUP or group is None)
    ]
    if label.question:
        questions.append((TARGET, label.question))
    experiment, left_out = _opened(path, ids[0], label, found, roles.missing, cells)
    questions += [("data.columns", question) for question in left_out]
    columns = {"id": ids[0], "target": label.column, **experiment.config.data.columns.roles}
    return LabelRows(experiment, columns, tuple(questions), "group" in columns, "fold" in columns)


def _opened(
    path: Path,
    row_id: str,
    label: Label,
    roles: Mapping[str, str],
    missing: Mapping[str, tuple[str | float, ...]],
    cells: pd.DataFrame,
) -> tuple[Experiment, list[str]]:
    """Opens the rows in memory; without the columns of features, with a question, where only these are at fault."""
    own = {role: name for role, name in roles.items() if role not in _MODEL_COLUMNS}
    try:
        return _with_folds(path, row_id, label, roles, missing, cells), []
    except DataError as error:
        if own == roles:
            raise
        experiment = _with_folds(path, row_id, label, own, {}, cells)
        left = ", ".join(repr(name) for role, name in roles.items() if role not in own)
        return experiment, [f"{left} are not used, as they cannot be read: {error}"]


def _with_folds(
    path: Path,
    row_id: str,
    label: Label,
    roles: Mapping[str, str],
    missing: Mapping[str, tuple[str | float, ...]],
    cells: pd.DataFrame,
) -> Experiment:
    target: Any = {"column": label.column, "positive": list(label.positive)} if label.positive else label.column
    numbers = [int(cells[roles["fold"]].nunique())] if "fold" in roles else list(_FOLDS)
    codes = {name: list(values) for name, values in missing.items() if name in roles.values()}
    data = {
        "name": "labels", "train": str(path.absolute()), "missing": codes,
        "columns": {"id": row_id, "target": target, **roles},
    }  # fmt: skip
    fault: TooFewGroupsError | None = None
    for k in numbers:
        settings = {"experiment": "forensics", "data": data, "folds": {"k": k}}
        try:
            config = Config.model_validate(settings, context={"folder": path.absolute().parent})
        except ValidationError as error:
            raise DataError(f"{path}: its columns cannot be used: {error.errors()[0]['msg']}") from error
        try:
            return open_experiment(config, path, Out(quiet=True), curation=NO_CURATION)
        except TooFewGroupsError as error:
            fault = fault or error
    assert fault is not None
    raise fault

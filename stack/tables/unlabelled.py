"""Reads tables of rows without a target, and finds the folds whose held-out rows they show.

An unlabelled row may show what a training row shows: its image is a near-duplicate, or its group is the same. Its
pseudo-label in the fold that holds out this training row comes from nets that never saw the training row's target, so
no target leaks. But a net that has trained on a picture of a row, with any label, predicts this row better than a new
one, so the score of the row would no longer be that of a new picture. Such a row therefore trains the other folds only,
and so does a test row with a pseudo-label. A near-duplicate of a test row that shows no training row trains every fold,
as the test row itself may: nobody knows its target.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from dermstack.errors import DataError
from stack.settings.data import ColumnRules, Unlabelled
from stack.tables.checks import case_notes
from stack.tables.keys import contained, keys_as_in
from stack.tables.net_columns import external_columns
from stack.tables.table import Table, read_new_frame, with_words_of

if TYPE_CHECKING:
    from stack.console import Out
    from stack.settings.config import Config


def no_unlabelled() -> pd.DataFrame:
    """Returns an unlabelled table without rows."""
    return pd.DataFrame({"id": [], "source": [], "group": []}, dtype="str")


def read_unlabelled_tables(
    config: Config, primary: Table, external: pd.DataFrame, out: Out
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Reads the rows of every table of `data.unlabelled`: id, group, age, sex, site, the nets' columns and source.

    Also returns, by table, how many rows were dropped because another table has their id.

    Without a group column each row is its own group. Raises DataError for faulty rows, for ids that are in two
    unlabelled tables, and for ids that are in train, test or an external table where `on_collision` is refuse.
    """
    frames, dropped = list[pd.DataFrame](), dict[str, int]()
    for table in config.data.unlabelled:
        frame, collided, notes = _read(table, config, primary, external)
        for note in notes:
            out.warn(note)
        text = f"unlabelled {table.name}: {len(frame):,} rows without a target"
        out.say(text + (f"; {collided:,} dropped, as their ids are in another table" if collided else ""))
        frames.append(frame.assign(source=table.name))
        dropped[table.name] = collided
    if not frames:
        return no_unlabelled(), {}
    together = pd.concat(frames, ignore_index=True)
    if (doubled := together["id"].duplicated()).any():
        raise DataError(
            f"{int(doubled.sum())} ids are in more than one unlabelled table, first: "
            f"{together['id'][doubled].iloc[0]}: drop them from one of the tables"
        )
    taught = [model.name for model in config.image_models if model.pseudo_labels and model.pseudo_labels.unlabelled]
    if not taught:
        out.warn(
            "no image model trains on the rows of data.unlabelled: set its `pseudo_labels.rows` to unlabelled or both"
        )
    return together, dropped


def _read(
    table: Unlabelled, config: Config, primary: Table, external: pd.DataFrame
) -> tuple[pd.DataFrame, int, list[str]]:
    """Returns the rows of a table, the number of those dropped because another table has their id, and notes."""
    columns = table.columns.model_dump(exclude_none=True)
    rules = ColumnRules(missing=config.data.missing_of(columns))
    further = primary.columns.only(external_columns(config, primary.columns))
    notes: list[str] = []
    frame, lacking = read_new_frame(table.table, columns, rules, further, notes=notes)
    if named := sorted(set(lacking) & set(columns)):
        wanted = ", ".join(f"{columns[name]!r} (columns.{name})" for name in named)
        raise DataError(f"{table.table}: no column {wanted}: correct data.unlabelled.columns in the config")
    known = pd.concat([primary.train["id"], primary.test["id"], external["id"]], ignore_index=True)
    what = f"{table.table}: id"
    spelled = keys_as_in(frame["id"], known, what, of="train, test and external tables", refuse_doubtful=False)
    taken = pd.Series(contained(spelled, known), index=frame.index)
    if taken.any() and table.on_collision == "refuse":
        first = ", ".join(frame["id"][taken].iloc[:3])
        raise DataError(
            f"{table.table}: {int(taken.sum())} ids are also in train, test or an external table, first: {first}: set "
            "its `on_collision: drop` to leave them out, or remove them from the csv"
        )
    frame = with_words_of(frame[~taken].reset_index(drop=True), primary.train, primary.columns)
    if frame.empty:
        raise DataError(f"{table.table}: no row is left: every id is in another table; remove it from data.unlabelled")
    if table.columns.group is not None:
        what = f"{table.table}: group"
        groups = keys_as_in(frame["group"], primary.train["group"], what, of="the training table")
        frame = frame.assign(group=groups)
    else:
        frame = frame.assign(group=f"{table.name}:" + frame["id"])
    notes += case_notes(frame, further.categorical, table.table, primary.train, config.data.train)
    return frame, int(taken.sum()), notes


def shown_folds(
    to_label: pd.DataFrame, train: pd.DataFrame, fold: NDArray[np.int8], k: int, pairs: pd.DataFrame
) -> NDArray[np.bool_]:
    """Returns (m, k) whether a row ``to_label`` (id, group) shows what a held-out row of each fold shows.

    It does where both are in one chain of ``pairs`` (id_1, id_2 of near-duplicates or listed duplicates) and equal
    groups. ``fold`` (n,) is that of the rows of ``train``.
    """
    rows = pd.concat([to_label[["id", "group"]], train[["id", "group"]]], ignore_index=True)
    m, n = len(to_label), len(rows)
    named = [pairs[side].astype("str") for side in ("id_1", "id_2")]
    ids = pd.Index(pd.concat([rows["id"], *named], ignore_index=True).drop_duplicates())  # the rows come first
    groups = len(ids) + pd.factorize(rows["group"])[0]  # each group is a node, joined with its rows
    a = np.concatenate([ids.get_indexer(named[0]), np.arange(n)])
    b = np.concatenate([ids.get_indexer(named[1]), groups])
    size = int(groups.max(initial=len(ids) - 1)) + 1
    joined = connected_components(coo_array((np.ones(len(a)), (a, b)), shape=(size, size)), directed=False)[1]
    holds = np.zeros((size, k), bool)  # by chain
    holds[joined[m:n], fold] = True
    made: NDArray[np.bool_] = holds[joined[:m]]
    return made

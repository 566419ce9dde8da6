"""Asks about tables and columns of images that are not used, such as test rows under another name of the id."""

from __future__ import annotations

from collections.abc import Collection

import pandas as pd

from dermstack.listing import first_of
from stack.draft.tables import FoundTable, FoundTables, looks_like_sample

Question = tuple[str, str]  # key of the config, question


def unused_questions(tables: FoundTables) -> list[Question]:
    """Returns a question about each table that no rule uses and that seems to belong to the data set."""
    train, row_id, test = tables.train, tables.id, tables.test
    questions = []
    for table in tables.others:
        if looks_like_sample(table):
            questions += _about_sample(table, train, row_id, test)
        elif row_id in table.columns:
            questions += _about_rows(table, train, row_id, test)
        elif test is None and table.is_test and set(table.columns) & set(train.columns) - {tables.label.column}:
            questions.append((
                "data.test", f"{table.path.name} ({len(table.cells):,} rows) has no column {row_id!r}, which holds the "
                f"ids in {train.path.name}, but {first_of(map(repr, table.columns), 8)}; are these the rows to "
                "predict? Give the column of ids the same name in both, and run `dermstack init` again",
            ))  # fmt: skip
    return questions


def image_questions(tables: FoundTables, roles: Collection[str], stems: frozenset[str]) -> list[Question]:
    """Returns a question about each column without one of ``roles`` that names other images than the ids do.

    ``stems`` are the names of the image files without suffix, in lower case.
    """
    cells, questions = tables.train.cells, []
    of_ids = _stems(cells[tables.id])
    for name in (name for name in cells.columns if name not in (tables.id, tables.label.column, *roles)):
        found = _stems(cells[name])[cells[name] != ""]
        if len(found) and found.isin(stems).mean() >= 0.9 and not found.isin(of_ids).all():
            questions.append((
                "data.columns.id", f"{name!r} names images too, such as {cells[name][found.index[0]]!r}, and only "
                f"those of {tables.id!r} are used. Has a lesion or patient several images? Then write one row an "
                "image, with a column that names what it is of; `predict_per` makes one prediction of all its images",
            ))  # fmt: skip
    return questions


def _stems(values: pd.Series) -> pd.Series:
    """Returns names of files without folders and suffixes, in lower case."""
    return values.str.lower().str.replace(r"^.*[/\\]|\.[a-z0-9]{2,5}$", "", regex=True)


def _about_rows(table: FoundTable, train: FoundTable, row_id: str, test: FoundTable | None) -> list[Question]:
    """Returns the question about a table that has the column of ids."""
    found, known = table.cells[row_id], set(train.cells[row_id])
    in_train = found.isin(known)
    n_shared = found[in_train].nunique()
    extra = [name for name in table.columns if name not in train.columns]
    name, of = table.path.name, train.path.name
    if table.is_test and test is None and n_shared and not extra:
        return [(
            "data.test", f"{name} is not used: {n_shared:,} of its {found.nunique():,} ids are in {of} too, such as "
            f"{found[in_train].iloc[0]!r}. If these are other images, give them other ids, and run `dermstack init` "
            "again",
        )]  # fmt: skip
    if not extra or n_shared < 0.9 * min(len(known), found.nunique()):
        return []
    if n_shared < 0.9 * in_train.sum():
        return [(
            "data.train", f"{name} has several rows of one {row_id!r} ({len(found):,} rows of {found.nunique():,}; "
            f"columns {first_of(map(repr, table.columns), 8)}). Are these its images? Then write a training table with "
            f"one row an image, {of} joined to it by {row_id!r}, and name {row_id!r} as `group`; `predict_per: group` "
            "makes one prediction of all images of a group",
        )]  # fmt: skip
    others = int((~in_train).sum()) if test is None or looks_like_sample(test) else 0
    more = f" It also has {others:,} rows of other ids: are these to be predicted, as `test`?" if others else ""
    return [(
        "data.train", f"{name} has rows of the same ids and columns that {of} lacks ({first_of(extra, 4)}); join them "
        f"into the training table to use them?{more}",
    )]  # fmt: skip


def _about_sample(table: FoundTable, train: FoundTable, row_id: str, test: FoundTable | None) -> list[Question]:
    """Returns the question about a sample submission whose ids are not those of the test table."""
    ids, column, name = table.cells.iloc[:, 0], table.columns[0], table.path.name
    if not table.has_word("sample", "submission") or ids.isin(set(train.cells[row_id])).all():
        return []
    if test is None:
        return [(
            "data.test", f"{name} has {len(ids):,} ids in the column {column!r}, such as {ids.iloc[0]!r}, but no table "
            f"of test rows with the column {row_id!r} was found; without `test` no submission is written",
        )]  # fmt: skip
    wanted = test.cells[row_id]
    lacking, others = wanted[~wanted.isin(set(ids))], ids[~ids.isin(set(wanted))]
    parts = [f"{len(lacking):,} are missing, such as {lacking.iloc[0]!r}"] if len(lacking) else []
    parts += [f"{len(others):,} are others, such as {others.iloc[0]!r}"] if len(others) else []
    return [(
        "data.sample_submission", f"{name} is not used, as its ids are not those of {test.path.name}: "
        f"{' and '.join(parts) or 'some are repeated'}. Write the same ids in both, and run `dermstack init` again?",
    )]  # fmt: skip

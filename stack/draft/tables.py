"""Finds the csv and parquet files of a folder and says which is train, test, sample submission or predictions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from dermstack.errors import DataError
from dermstack.listing import first_of
from image_models.io.folders import walk_files
from stack.draft.roles import Label, id_columns, label_columns
from stack.tables.cells import read_cells
from stack.tables.column_names import name_words

SUFFIXES = (".csv", ".parquet", ".pq")
MAX_TABLES = 200  # tables of one folder that are read
# words in the names of columns that hold predictions
# File names of copies, which come after the files without such a word: `copy of train.csv`, `train (1).csv`.
_COPIES = ("copy", "kopie", "copie", "copia", "backup", "bak", "old")
_COPY_NUMBER = re.compile(r"\(\d+\)$")
_TRAIN = ("train", "training", "trainingsdaten", "entrainement", "apprentissage", "entrenamiento", "treino")
_TEST = ("test", "testdaten", "prueba", "teste")
# Files that may be meant as tables: why they cannot be read is told where there is no other.
_OTHER_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".ods", ".tsv", ".tab", ".txt", ".json", ".feather", ".pkl", ".npz")
PREDICTION_WORDS = frozenset({"p", "pred", "preds", "prediction", "prob", "probability", "score", "oof"})
_EXPERIMENT_FILES = frozenset({"fingerprints.json", "run.json", "cache.json", "index.parquet"})  # of dermstack's own


@dataclass(frozen=True)
class FoundTable:
    """A table that was read: its path and its cells as text."""

    path: Path
    cells: pd.DataFrame

    @property
    def columns(self) -> list[str]:
        """Names of its columns."""
        return list(map(str, self.cells.columns))

    def has_word(self, *words: str) -> bool:
        """Whether the file's name holds one of these words."""
        return bool(set(words) & set(name_words(self.path.stem)))

    @property
    def is_test(self) -> bool:
        """Whether the file's name says that it holds test rows."""
        return self.has_word(*_TEST)

    @property
    def is_copy(self) -> bool:
        """Whether the file's name says that it is a copy of another."""
        return self.has_word(*_COPIES) or _COPY_NUMBER.search(self.path.stem.strip()) is not None


@dataclass(frozen=True)
class FoundTables:
    """The tables of a data set by their meaning; ``predictions`` holds id, p and mostly fold of other pipelines."""

    train: FoundTable
    id: str  # the id column of all tables
    label: Label
    test: FoundTable | None = None
    sample: FoundTable | None = None
    duplicates: FoundTable | None = None
    predictions: tuple[FoundTable, ...] = ()
    others: tuple[FoundTable, ...] = ()  # what no rule uses
    questions: tuple[tuple[str, str], ...] = field(default=())  # (key of the config, question)

    @property
    def has_bare_test(self) -> bool:
        """Whether the test table has no column but the ids that could be a feature."""
        features = set(self.train.columns) - {self.id, self.label.column}
        return self.test is not None and not features & set(self.test.columns)


def read_tables(start: Path) -> tuple[list[FoundTable], list[str]]:
    """Reads the tables below a folder, or those beside a table; also returns a note on each that cannot be read.

    Folders that dermstack itself wrote are left out. Raises DataError where ``start`` is missing or no table is there.
    """
    if not start.exists():
        raise DataError(f"{start}: no such file or folder: name the folder of the data, or its table")
    folder = start if start.is_dir() else start.parent
    paths = [start] if start.is_file() else []
    if start.is_dir():
        paths += [path for path in _table_paths(start) if path not in paths]
    else:  # of a named table, only those that lie beside it
        paths += [p for p in sorted(folder.iterdir()) if p.suffix.lower() in SUFFIXES and p.is_file() and p != start]
    tables, notes = [], []
    for path in paths[:MAX_TABLES]:
        try:
            tables.append(FoundTable(path, read_cells(path)))
        except DataError as error:
            if path == start:
                raise
            notes.append(f"not read: {error}")
    if len(paths) > MAX_TABLES:
        notes.append(f"{len(paths):,} tables in {folder}: only the first {MAX_TABLES} were read; name the training csv")
    if not tables:
        notes += _other_files(folder)
        if notes:
            raise DataError(f"{folder} holds no csv or parquet file that can be read:\n" + "\n".join(notes[:5]))
        raise DataError(
            f"{folder} holds no csv or parquet file: write a table with one row an image, with a column of ids (the "
            "names of the image files) and one of targets"
        )
    return tables, notes


def _other_files(folder: Path) -> list[str]:
    """Returns why files in the folder that may be meant as tables are not read."""
    notes = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _OTHER_SUFFIXES and path.is_file() and not path.name.startswith((".", "~$")):
            try:
                read_cells(path)
                notes.append(f"not read: {path} has another suffix: name it .csv")
            except DataError as error:
                notes.append(f"not read: {error}")
    return notes


def sort_tables(
    tables: Sequence[FoundTable], start: Path, stems: frozenset[str], *, test: Path | None, target: str | None
) -> FoundTables:
    """Decides which table is what; ``stems`` are the names of image files, without suffix and case.

    ``start`` is the training table where it is a file; ``test`` and ``target`` are the user's own choices. Raises
    DataError where no table has a column of ids and one of targets.
    """
    samples = sorted((table for table in tables if looks_like_sample(table)), key=lambda table: table.is_copy)
    hints = {str(table.cells.columns[1]) for table in samples}
    train, label, row_id, rest = _training_table(tables, start, stems, hints, samples, test, target)
    ids = frozenset(train.cells[row_id])
    others = [table for table in tables if table is not train]
    found = FoundTables(train, row_id, label)
    questions = [("data.train", question) for question in rest]
    found_test, more = _test_table(train, row_id, label, others, samples, test)
    questions += more
    rest_tables = [table for table in others if table is not found_test]
    sample = None
    if found_test is None and test is None:  # then the ids of a sample submission are the rows to predict
        found_test = sample = next(
            (t for t in samples if t.columns[0] == row_id and not ids & set(t.cells[row_id]) and t in others), None
        )  # fmt: skip
        if found_test is not None:
            questions.append((
                "data.test", f"there is no table of test rows, so those of {found_test.path.name} are predicted; if "
                "another table has further columns of them, name it?",
            ))  # fmt: skip
    elif found_test is not None:
        wanted = set(found_test.cells[row_id])
        sample = next((table for table in samples if set(table.cells.iloc[:, 0]) == wanted and table in others), None)
    duplicates = next(
        (t for t in rest_tables if t.cells.shape[1] == 2 and _is_share(t.cells.iloc[:, 0], ids)
         and _is_share(t.cells.iloc[:, 1], ids) and t is not sample), None
    )  # fmt: skip
    test_ids = frozenset() if found_test is None else frozenset(found_test.cells[row_id])
    predictions = [
        table for table in rest_tables
        if table is not sample and table is not duplicates and prediction_column(table, row_id) is not None
        and (_is_share(table.cells[row_id], ids) or _is_share(table.cells[row_id], test_ids))
    ]  # fmt: skip
    used = [sample, duplicates, *predictions]
    left = [table for table in rest_tables if not any(table is one for one in used)]
    return replace(
        found, test=found_test, sample=sample, duplicates=duplicates, predictions=tuple(predictions),
        others=tuple(left), questions=tuple(questions),
    )  # fmt: skip


def prediction_column(table: FoundTable, row_id: str) -> str | None:
    """Returns the column of probabilities in a table of predictions: ids, probabilities, mostly folds, and no more."""
    if row_id not in table.columns or table.cells.shape[1] > 5:
        return None
    for name in table.columns:
        if set(name_words(name)) & PREDICTION_WORDS:
            numbers = pd.to_numeric(table.cells[name], errors="coerce")
            if numbers.notna().all() and numbers.between(0, 1).all() and numbers.nunique() > 2:
                return name
    return None


def _training_table(
    tables: Sequence[FoundTable],
    start: Path,
    stems: frozenset[str],
    hints: set[str],
    samples: Sequence[FoundTable],
    test: Path | None,
    target: str | None,
) -> tuple[FoundTable, Label, str, list[str]]:
    """Returns the training table with its label and id column, and questions about other candidates."""
    candidates = []
    reasons = []
    for table in tables:
        if any(table is sample for sample in samples) or (test is not None and table.path == test):
            continue
        if start.is_file() and table.path != start:
            continue
        ids = id_columns(table.cells, stems, {str(sample.cells.columns[0]) for sample in samples})
        wanted = {target} if target else hints
        labels = label_columns(table.cells, wanted, only=bool(target))
        labels = [label for label in labels if label.column not in ids[:1]]
        if ids and labels and prediction_column(table, ids[0]) is None:
            by_name = 2 * table.has_word(*_TRAIN) - 2 * table.has_word(*_TEST, "val", "valid", "validation")
            rank = by_name + (table.cells.shape[1] > 2) - 2 * labels[0].is_phrase
            candidates.append(((rank, not table.is_copy, len(table.cells)), table, labels[0], ids[0]))
        else:
            lacks = "a column of ids" if not ids else f"a column of targets among {first_of(table.columns, 12)}"
            reasons.append(f"{table.path.name} lacks {lacks}")
    if not candidates:
        what = f"column {target!r} with two or more values" if target else "column of targets (0/1 or words)"
        raise DataError(
            f"no table of {start} has a column of ids, with another value in each row, and a {what} "
            f"({'; '.join(reasons[:3]) or 'no table'}): name the csv and, with --target, the column of its targets"
        )
    candidates.sort(key=lambda one: one[0], reverse=True)
    _, table, label, row_id = candidates[0]
    questions = [
        f"is {other.path.name} ({len(other.cells):,} rows) the training table instead?"
        for _, other, _, _ in candidates[1:]
        if other.columns == table.columns
    ]
    return table, label, row_id, questions


def _test_table(
    train: FoundTable,
    row_id: str,
    label: Label,
    others: Sequence[FoundTable],
    samples: Sequence[FoundTable],
    test: Path | None,
) -> tuple[FoundTable | None, list[tuple[str, str]]]:
    """Returns the table of the rows to predict and questions about it."""
    ids = set(train.cells[row_id])
    if test is not None:
        table = next((table for table in others if table.path == test), None) or FoundTable(test, read_cells(test))
        if row_id not in table.columns:
            raise DataError(
                f"{test} has no column {row_id!r}, which holds the ids in {train.path}: give both the same name"
            )
        return table, []
    fitting, questions = [], []
    for table in others:
        if any(table is sample for sample in samples) or row_id not in table.columns:
            continue
        shared = [name for name in table.columns if name in train.columns and name not in (row_id, label.column)]
        # A table of ids alone, named as that of the test rows, is enough where there are images.
        if (
            not (shared or table.is_test)
            or prediction_column(table, row_id) is not None
            or ids & set(table.cells[row_id])
        ):
            continue
        labelled = label.column in table.columns and (table.cells[label.column].str.strip() != "").any()
        if labelled and not table.is_test:
            questions.append(
                (
                    "data.test",
                    f"{table.path.name} has {len(table.cells):,} further labelled rows, which this config does not "
                    "use; append them to the training table, or use it as `test`?",
                )
            )
            continue
        rank = (table.is_test, not labelled, not table.is_copy, len(shared), len(table.cells))
        fitting.append((rank, table))
    fitting.sort(key=lambda one: one[0], reverse=True)
    if not fitting:
        return None, questions
    for _, other in fitting[1:]:
        questions.append(("data.test", f"is {other.path.name} ({len(other.cells):,} rows) the test table instead?"))
    return fitting[0][1], questions


def looks_like_sample(table: FoundTable) -> bool:
    """Whether a table looks like a sample submission: ids and one number from 0 to 1, mostly the same in all rows."""
    if table.cells.shape[1] != 2:
        return False
    values = pd.to_numeric(table.cells.iloc[:, 1], errors="coerce")
    if not values.between(0, 1).all() or values.isna().any():
        return False
    return table.has_word("sample", "submission") or (values.nunique() == 1 and table.cells.iloc[:, 0].is_unique)


def _is_share(values: pd.Series, known: frozenset[str], share: float = 0.9) -> bool:
    """Whether most of the values are known ids."""
    return bool(known) and len(values) > 0 and float(values.isin(known).mean()) >= share


def _table_paths(folder: Path) -> list[Path]:
    """Returns the tables below a folder, those nearest to it first; without what dermstack wrote there."""
    entries = list(walk_files(folder))
    own = {Path(entry.path).parent for entry in entries if entry.name in _EXPERIMENT_FILES}
    paths = [Path(entry.path) for entry in entries if entry.name.lower().endswith(SUFFIXES)]
    paths = [path for path in paths if not own & set(path.parents)]
    return sorted(paths, key=lambda path: (len(path.parts), str(path)))

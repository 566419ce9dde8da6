"""Drafts a config for a folder or tables and checks that it opens: tables, columns, images, folds and models."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import ValidationError

from dermstack.errors import DataError, DermstackError
from dermstack.listing import first_of
from stack.console import Out
from stack.draft.codes import numeric_codes
from stack.draft.images import FoundImages, ImageFiles, find_images, image_files, stems_of
from stack.draft.roles import Roles, comes_from_diagnosis, find_roles, is_split, known, number_or_word
from stack.draft.tables import FoundTable, FoundTables, prediction_column, read_tables, sort_tables
from stack.draft.text import Draft, draft_text, path_in_config
from stack.draft.unused import image_questions, unused_questions
from stack.experiment import Experiment, open_experiment
from stack.fold_needs import check_fold_needs
from stack.settings.config import Config
from stack.settings.yaml_text import parse_yaml
from stack.tables.columns import Choice, described_choices, number_warnings
from stack.tables.missing_codes import missing_codes

_FOLDS = (5, 4, 3, 6, 8, 10)  # numbers of folds to try: the first that leaves enough groups of both classes
_MAX_FOLDERS = 30  # of images, which may be named by their class
_MAX_SIZE = 64  # pixels: the drafted network takes minutes on a CPU for some thousand images
_TITLE = (
    "Drafted by `dermstack init`. Comments that begin with `question` are what the files do not say: read them, then "
    "correct the lines below them. docs/config.md has all keys."
)
_EPOCHS, _FEW_EPOCHS, _MANY_ROWS = 8, 4, 2_000  # epochs for a table of fewer and of more training rows


@dataclass(frozen=True)
class DraftedConfig:
    """The text of a config and what a command says of it."""

    text: str
    facts: tuple[str, ...]  # what was found, a line each
    questions: tuple[str, ...]  # what could not be decided
    has_images: bool
    faults: str = ""  # what must be corrected in the data before the config runs


@dataclass(frozen=True)
class _Parts:
    """What was found, before it is written."""

    tables: FoundTables
    roles: Roles
    images: FoundImages | None
    folder: Path  # of the config
    name: str
    notes: tuple[tuple[str, str], ...]  # further questions, by key
    missing: dict[str, tuple[str | float, ...]]
    k: int = _FOLDS[0]
    own_folds: bool = True  # take the folds of predictions that were found, if they can be taken
    numeric: str | list[str] = "auto"
    categorical: str | list[str] = "auto"


def draft_config(
    start: Path, config: Path, *, test: Path | None = None, images: Path | None = None, target: str | None = None
) -> DraftedConfig:
    """Looks at the tables and images below ``start`` and drafts the config that is to be written to ``config``.

    ``start`` is a folder or the training table; ``test``, ``images`` and ``target`` (a column) are the user's own
    choices. Writes nothing. Raises DataError where there is no table with ids and targets.
    """
    folder = start if start.is_dir() else start.parent
    there = image_files(images or folder)
    try:
        read, unread = read_tables(start)
    except DataError as error:
        raise DataError(f"{error}{_class_folders(there)}") from error
    tables = sort_tables(read, start, stems_of(there), test=test, target=target)
    asked_of_tables = [*tables.questions, *unused_questions(tables)]
    found, tables, asked, why = _images(there, tables, is_named=start.is_file())
    if found is None and images is not None:
        raise DataError(f"--images {images}: {why}: name another folder, or correct the ids")
    roles = find_roles(
        tables.train.cells, tables.test.cells if tables.test else None, taken=(tables.id, tables.label.column)
    )
    asked_of_tables += image_questions(tables, roles.columns.values(), stems_of(there))
    notes = [*asked_of_tables, *roles.questions, *(("data.train", note) for note in unread[:5])]
    if tables.label.question:
        notes.append(("data.columns.target", tables.label.question))
    parts = _Parts(
        tables, roles, found, config.absolute().parent, _name(folder), (*notes, *asked), dict(roles.missing)
    )  # fmt: skip
    return _checked(parts, config)


def _images(
    there: ImageFiles, tables: FoundTables, *, is_named: bool
) -> tuple[FoundImages | None, FoundTables, list[tuple[str, str]], str]:
    """Returns the images of the tables, the tables, questions by key, and why there are no images.

    Without the images of the test rows, a named training table loses its test table, and so does any other table whose
    test rows have nothing but ids.
    """
    archive = [("data.images", there.of_archives)] if there.archives else []
    ids = list(tables.train.cells[tables.id])
    test_ids = [] if tables.test is None else list(tables.test.cells[tables.id])
    is_any = bool(there.files or there.packed)
    found, why = find_images(there, ids, test_ids) if is_any else (None, "no image was found")
    asked = archive
    if found is None and tables.test is not None:
        without = find_images(there, ids, [])[0] if is_any and (is_named or tables.has_bare_test) else None
        if without is not None or tables.has_bare_test:
            question = _without_test(tables.test, why)
            tables = replace(tables, test=None, sample=None)
            if without is not None:
                return without, tables, [question], ""
            asked = [question, *archive]
    if found is not None:
        return found, tables, [("data.images", note) for note in found.notes], ""
    if is_any:
        alone = f"{why}; networks need an image of every row, so this config uses the table alone"
        asked = [("data.images", alone), *asked]
    return None, tables, asked, why if is_any else f"{why} there"


def _without_test(test: FoundTable, why: str) -> tuple[str, str]:
    """Returns the question, by its key, about a test table that is not used for want of images."""
    return (
        "data.test",
        f"{test.path.name} has {len(test.cells):,} test rows, but {why}; where are their images? Without `test` the "
        "score is estimated and no submission is written",
    )


def _class_folders(there: ImageFiles) -> str:
    """Returns the next step where there is no table, but images lie in folders that may be named by their class."""
    folders = there.folders
    if not 2 <= len(folders) <= _MAX_FOLDERS:
        return ""
    listed = ", ".join(f"{name} ({n:,})" for name, n in folders.items())
    return (
        f"\nthere are images in the folders {listed}: if their names are the classes, write a csv with the columns id "
        "(the file's name without its suffix) and label (the folder's name), and a column of patients if they are known"
    )


def _checked(parts: _Parts, config: Path) -> DraftedConfig:
    """Opens the drafted experiment, declares missing-value codes and takes out columns in question."""
    train, test = parts.tables.train, parts.tables.test
    frames = [train.cells, *([] if test is None else [test.cells])]
    used = {parts.tables.id, parts.tables.label.column, *parts.roles.columns.values()}
    free = [name for name in train.columns if name not in used and train.columns.count(name) == 1]
    codes = numeric_codes(frames, [name for name in free if test is None or name in test.columns])
    notes = list(parts.notes)
    for column, values in codes.items():
        parts.missing[column] = values
        notes.append((
            "data.missing", f"{column} holds {', '.join(map(str, values))}, taken as codes for a missing value; right?"
        ))  # fmt: skip
    parts = replace(parts, notes=tuple(notes))
    parts, experiment, fault = _with_folds(parts)
    if fault and _own_folds(parts) is not None:
        parts, experiment, fault = _with_folds(replace(parts, own_folds=False))
    if experiment is not None:
        odd = [("data.columns.numeric", line) for line in number_warnings(experiment.table.columns)]
        changed = _without_suspects(_with_role_codes(parts, experiment), experiment)
        if changed is not parts:
            parts, experiment, fault = _with_folds(changed)
        parts = replace(parts, notes=(*parts.notes, *odd))
    draft = _draft(parts)
    return DraftedConfig(
        draft_text(draft, _TITLE), tuple(_facts(parts, experiment)),
        tuple(dict.fromkeys(f"{key}: {question}" for key, question in draft.questions)), parts.images is not None,
        fault,
    )  # fmt: skip


def _with_folds(parts: _Parts) -> tuple[_Parts, Experiment | None, str]:
    """Returns the parts with a number of folds that works, opened; also what prevents it, with the first number."""
    fixed = "fold" in parts.roles.columns or _own_folds(parts) is not None
    tried = []
    for k in dict.fromkeys((parts.k, *(() if fixed else _FOLDS))):
        experiment, fault = _opened(replace(parts, k=k))
        tried.append((replace(parts, k=k), experiment, fault))
        if not fault:
            return tried[-1]
    return tried[0]


def _opened(parts: _Parts) -> tuple[Experiment | None, str]:
    """Opens the drafted experiment in memory and checks its folds; also returns what prevents it."""
    text = draft_text(_draft(parts), "")
    try:
        settings = Config.model_validate(parse_yaml(text), context={"folder": parts.folder})
    except ValidationError as error:
        return None, f"the drafted config is not valid: {error.errors()[0]['msg']}"
    experiment = None
    try:
        experiment = open_experiment(settings, Path("config"), Out(quiet=True))
        check_fold_needs(experiment)
    except DermstackError as error:
        return experiment, str(error)
    return experiment, ""


def _with_role_codes(parts: _Parts, experiment: Experiment) -> _Parts:
    """Declares the ages and words that look like codes for "unknown" as missing values."""
    table, notes, missing = experiment.table, list(parts.notes), dict(parts.missing)
    for code in missing_codes(pd.concat([table.train, table.test], ignore_index=True)):
        csv = parts.roles.columns.get(code.column)
        if csv is None:
            continue
        value = number_or_word(code.value) if code.is_number else code.value.strip("'")
        missing[csv] = (*missing.get(csv, ()), value)
        notes.append((
            "data.missing", f"{csv} {code.value} in {code.rows:,} rows, taken as a code for a missing value; right?"
        ))  # fmt: skip
    if missing == parts.missing:
        return parts
    return replace(parts, notes=tuple(notes), missing=missing)


def _without_suspects(parts: _Parts, experiment: Experiment) -> _Parts:
    """Leaves out splits and folds; without a test table, which shows what is known, also columns of the diagnosis."""
    choices = [choice for choice in experiment.table.columns.choices if choice.kind is not None]
    cells, has_test = parts.tables.train.cells, parts.tables.test is not None
    splits = [choice for choice in choices if is_split(choice.column, cells[choice.column])]
    suspects = _of_diagnosis(parts, [choice for choice in choices if choice not in splits])
    notes = [*parts.notes, *(_about_split(choice.column, cells[choice.column]) for choice in splits)]
    if suspects:
        names = ", ".join(repr(choice.column) for choice in suspects[:8]) + (", …" if len(suspects) > 8 else "")
        question = f"{names}: left out, as the name says that it comes from the diagnosis; is it known before?"
        if has_test:
            question = f"{names}: test rows have it too; is it known before the diagnosis, when a prediction is needed?"
        notes.append(("data.columns.numeric", question))
    parts = replace(parts, notes=tuple(notes)) if splits or suspects else parts
    if not (out := splits if has_test else splits + suspects):
        return parts
    numeric, categorical = (
        [choice.column for choice in choices if choice.kind == kind and choice not in out]
        for kind in ("numeric", "categorical")
    )
    return replace(parts, numeric=numeric, categorical=categorical)


def _about_split(name: str, values: pd.Series) -> tuple[str, str]:
    """Returns the question, by its key, about a column that divides the rows."""
    shares = first_of([f"{word} {n:,}" for word, n in known(values).value_counts().items()], 6)
    return (
        "data.train",
        f"{name!r} divides the rows ({shares}). It is no feature here, and all rows are used for training; move those "
        "of a test to a table of their own, named as `test`?",
    )


def _of_diagnosis(parts: _Parts, choices: Sequence[Choice]) -> list[Choice]:
    """Returns the columns that seem to come from the diagnosis: by their names, or as other classes of the label."""
    found = [choice for choice in choices if comes_from_diagnosis(choice.column)]
    classes = [choice for choice in choices if choice not in found and _is_other_class(parts, choice)]
    found += classes
    if classes and parts.tables.test is None:  # further classes of the same one-hot table, however rare
        columns = [parts.tables.label.column, *(choice.column for choice in classes)]
        cells = parts.tables.train.cells
        found += [choice for choice in choices if choice not in found and _excludes(cells, choice, columns)]
    return found


def _is_other_class(parts: _Parts, choice: Choice) -> bool:
    """Whether a column of 0 and 1 never has a 1 where the label has one: another class of a one-hot table."""
    cells, label = parts.tables.train.cells, parts.tables.label
    columns = [choice.column, label.column]
    if label.positive or (cells[columns].apply(pd.to_numeric, errors="coerce").sum() < 20).any():
        return False
    return _excludes(cells, choice, [label.column])


def _excludes(cells: pd.DataFrame, choice: Choice, columns: list[str]) -> bool:
    """Whether a column of 0 and 1 never has a 1 where one of the ``columns`` has one."""
    values = pd.to_numeric(cells[choice.column], errors="coerce")
    others = cells[columns].apply(pd.to_numeric, errors="coerce")
    return set(values.unique()) <= {0.0, 1.0} and not ((values == 1) & (others == 1).any(axis=1)).any()


def _name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", folder.resolve().name).strip("_.-")[:64]
    return name or "experiment"


def _values(parts: _Parts) -> dict[str, Any]:
    """Returns the values of the config."""
    tables, roles, images = parts.tables, parts.roles, parts.images

    def path(file: Path) -> str:
        return path_in_config(file, parts.folder)

    data: dict[str, Any] = {"name": parts.name, "train": path(tables.train.path)}
    for key, table in (("test", tables.test), ("sample_submission", tables.sample), ("duplicates", tables.duplicates)):
        if table is not None:
            data[key] = path(table.path)
    if images is not None:
        data["images"] = path(images.place)
        if images.test_place is not None:
            data["test_images"] = path(images.test_place)
        data |= {"similar_names": True} if images.similar else {}
        data |= {"follow_links": True} if images.linked else {}
        data["on_chain"] = "merge"
    label = tables.label
    target: Any = label.column
    if label.positive:
        positive: Any = label.positive[0] if len(label.positive) == 1 else list(label.positive)
        target = {"column": label.column, "positive": positive}
    data["columns"] = {"id": tables.id, "target": target, **roles.columns}
    data["columns"] |= {"numeric": parts.numeric, "categorical": parts.categorical}
    if parts.missing:
        data["missing"] = {
            column: list(codes) for column, codes in parts.missing.items()
            if column in roles.columns.values() or column in tables.train.columns
        }  # fmt: skip
    values: dict[str, Any] = {"runs": "runs", "cache": "cache", "threads": 1, "n_jobs": 2, "data": data}
    values["folds"] = {"k": parts.k, "seed": 0}
    if (own := _own_folds(parts)) is not None:
        values["folds"] = {"k": own[1], "file": path(own[0].path)}
    elif "fold" in roles.columns:
        values["folds"] = {"k": int(pd.to_numeric(tables.train.cells[roles.columns["fold"]]).nunique())}
    if images is not None:
        size = max(32, min(_MAX_SIZE, images.short_side // 32 * 32))
        values["image_models"] = [{
            "name": "small_cnn", "backbone": "test_resnet", "pretrained": False, "size": size,
            "epochs": _EPOCHS if len(tables.train.cells) < _MANY_ROWS else _FEW_EPOCHS,
            "batch_size": 32, "lr": 0.002,
        }]  # fmt: skip
    if tables.test is not None and "group" in roles.columns and roles.columns["group"] not in tables.test.columns:
        values["features"] = {
            "aggregates": False, "neighbours": False, "relative": [], "relative_site": [], "outliers": False,
        }  # fmt: skip
    alone: dict[str, Any] = {} if images is not None else {"runs": []}
    values["stackers"] = [{"name": kind, "kind": kind, **alone} for kind in ("lightgbm", "logistic")]
    return values


def _own_folds(parts: _Parts) -> tuple[FoundTable, int] | None:
    """Returns a table of predictions whose folds can be the experiment's, and their number."""
    tables, roles = parts.tables, parts.roles
    if "fold" in roles.columns or not parts.own_folds:
        return None
    ids = tables.train.cells[tables.id]
    for table in tables.predictions:
        if "fold" not in table.columns or table.cells[tables.id].duplicated().any():
            continue
        fold = pd.Series(table.cells["fold"].to_numpy(), index=table.cells[tables.id]).reindex(ids)
        numbers = pd.to_numeric(fold, errors="coerce")
        if numbers.isna().any() or (numbers < 0).any() or not 3 <= numbers.nunique() <= 20:
            continue
        if (group := roles.columns.get("group")) is not None:
            groups = tables.train.cells[group].to_numpy()
            if (numbers.groupby(groups).nunique() > 1).any():
                continue
        return table, int(numbers.nunique())
    return None


def _draft(parts: _Parts) -> Draft:
    tables, values = parts.tables, _values(parts)
    comments: dict[str, tuple[str, ...]] = {
        "threads": ("threads of each task and number of parallel tasks; their product is at most the number of cores",),
        "data.columns.numeric": (
            "`auto`: what train and test share, without identifiers, constants, free text and proxies of the target"
            if parts.numeric == "auto" else "the columns that `auto` takes, without those in question",
        ),
        "data.on_chain": ("images that look alike are kept in one fold, also where that joins more than two groups",),
    }  # fmt: skip
    if parts.images is not None:
        comments["image_models"] = (
            "timm's smallest network, from scratch: it needs no internet access and takes minutes. For real scores "
            "take a larger backbone with pretrained weights, such as `backbone: mobilenetv3_large_100, pretrained: "
            "true, size: 224` (downloads timm's weights), or `pretrained: path/to/weights.pth`. "
            "Further models: docs/image_models.md",
        )
    else:
        comments["stackers"] = (
            "without a level-1 run, these are models of the table alone; remove `runs: []` to let them see the "
            "predictions of networks",
        )
    if (own := _own_folds(parts)) is not None:
        comments["folds"] = (f"the folds of the predictions in {own[0].path.name}",)
    if tables.predictions:
        shown = []
        for table in tables.predictions[:6]:
            column = prediction_column(table, tables.id)
            shown.append(
                f"{table.path.name} ({len(table.cells):,} rows, p in {column!r}"
                + (f", folds {table.cells['fold'].nunique()})" if "fold" in table.columns else ", no folds)")
            )
        comments["stackers"] = (
            *comments.get("stackers", ()),
            "predictions of other pipelines were found: " + "; ".join(shown) + ". To add one to the blend: "
            "dermstack import-oof NAME -c CONFIG --oof FILE --test FILE --p-column COLUMN",
        )
    if "features" in values:
        comments["features"] = (
            "the test table has no groups, so features that compare a row with its group are off: test rows lack them",
        )
    return Draft(parts.name, values, comments, tuple(dict.fromkeys(parts.notes)))


def _facts(parts: _Parts, experiment: Experiment | None) -> list[str]:
    """Returns what was found, a line each."""
    tables, images = parts.tables, parts.images
    lines = [f"train: {tables.train.path} ({len(tables.train.cells):,} rows)"]
    for what, table in (("test", tables.test), ("sample submission", tables.sample), ("duplicates", tables.duplicates)):
        if table is not None:
            lines.append(f"{what}: {table.path} ({len(table.cells):,} rows)")
    label = tables.label
    positive = f" (positive: {', '.join(label.positive)})" if label.positive else ""
    roles = {"id": tables.id, "target": label.column + positive, **parts.roles.columns}
    lines.append("columns: " + ", ".join(f"{role} {name}" for role, name in roles.items()))
    if experiment is not None:
        lines += described_choices(experiment.table.columns)
        train = experiment.table.train
        lines.append(
            f"rows: {len(train):,} training rows, {int(experiment.target.sum()):,} positive, in "
            f"{train['group'].nunique():,} groups; {experiment.folds.k} folds"
        )
    if parts.missing:
        lines.append("missing: " + ", ".join(f"{name} {list(codes)}" for name, codes in parts.missing.items()))
    if images is None:
        lines.append("images: none, models of the table alone")
    else:
        also = f" and {images.test_place}" if images.test_place else ""
        how = " (names differ from the ids in case or suffix)" if images.similar else ""
        lines.append(f"images: {images.place}{also}{how}, short side about {images.short_side} pixels")
    for table in tables.predictions:
        lines.append(f"predictions of another pipeline: {table.path}")
    return lines

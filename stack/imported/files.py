"""Finds runs among files by their names, in a folder or a table: which are out-of-fold or test, of which fold, seed."""

from __future__ import annotations

import fnmatch
import glob
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from dermstack.errors import DataError
from stack.imported.prediction_files import Files, Part
from stack.imported.run import ImportOptions, Source
from stack.tables.array_ids import is_ids_file
from stack.tables.cells import read_cells

SUFFIXES = (".csv", ".csv.gz", ".csv.zip", ".csv.xz", ".csv.bz2", ".zip", ".parquet", ".pq", ".npy")
OOF_WORDS = frozenset({"oof", "oofs", "val", "valid", "validation"})
TEST_WORDS = frozenset({"test", "sub", "subm", "submission", "submissions", "submit"})
_OTHER_WORDS = frozenset({"pred", "preds", "prediction", "predictions", "prob", "probs", "proba"})
_WORD = re.compile(r"[^_\-.\s]+")
_MAX_NOTES = 5  # files that are named of those that are left out
_GLOB = re.compile(r"[*?\[]")
_LISTED_FILES = ("oof", "test", "all_rows")
_LISTED_TEXTS = (
    "id_column", "p_column", "fold_column", "test_id_column", "test_p_column", "test_fold_column", "net_prefix",
    "test_net_prefix", "all_rows_prefix",
)  # fmt: skip
_LISTED_SWITCHES = ("test_averaged", "foreign_folds", "average_seeds")


@dataclass(frozen=True)
class NamedFile:
    """What the name of a file says: the run, its part (oof, test or all_rows), fold and seed ("" for nothing)."""

    path: Path
    run: str
    part: str
    fold: str = ""
    seed: str = ""


def found_sources(
    given: Sequence[str], options: ImportOptions, *, known: Iterable[Path | None] = (), test: Sequence[str] = ()
) -> tuple[list[Source], list[str]]:
    """Returns the runs whose files are ``given`` (folders, patterns or files), and notes on files that are left out.

    ``known`` are files and folders of the experiment itself, which hold no predictions made elsewhere. Files of one run
    differ in the words of their names that say the part (`OOF_WORDS`, `TEST_WORDS`), fold or seed; a file without such
    a word is out-of-fold. Files of ``test`` are test files, whatever their names say.
    Raises DataError, naming the files, where that is not certain.
    """
    own = {path.resolve() for path in known if path is not None}
    named: dict[Path, NamedFile] = {}
    left_out: dict[Path, str] = {}
    for place, is_test in (*((one, False) for one in given), *((one, True) for one in test)):
        for path, root in _files_of(place):
            if (real := path.resolve()) in own or "sample" in _words(path.name):
                left_out[real] = f"{path}: left out, as it is a table or sample of the experiment"
            elif not own.isdisjoint(real.parents):
                left_out[real] = f"{path}: left out, as it lies in a folder of dermstack's own results"
            elif not is_ids_file(path):
                file = named_file(path, root)
                named[real] = replace(file, part="test") if is_test else named.get(real, file)
    notes = [*left_out.values()][:_MAX_NOTES]
    if (more := len(left_out) - len(notes)) > 0:
        notes.append(f"… {more} more files are left out")
    sources = grouped(list(named.values()), options)
    if not sources:
        raise DataError(
            f"{', '.join(given)}: no file of predictions: name a folder with {', '.join(SUFFIXES)}, or files"
        )
    return sources, notes


def _files_of(place: str) -> list[tuple[Path, Path | None]]:
    """Returns each file with the folder that was named, or None where the file was."""
    path = Path(place)
    if path.is_dir():
        files = (one for one in sorted(path.rglob("*")) if one.name.lower().endswith(SUFFIXES) and one.is_file())
        return [(one, path) for one in files if not _is_hidden(one.relative_to(path))]
    if path.exists() or not _GLOB.search(place):
        if not path.exists():
            raise DataError(
                f"{path}: no such file or folder: correct its path or, if it is the name of a run, give its files with "
                "--oof and --test"
            )
        return [(path, None)]
    return [(one, None) for one in _fitting(place, place)]


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)  # such as .ipynb_checkpoints, which holds old copies


def matching_files(text: str, option: str) -> tuple[Path, ...]:
    """Returns the file of an option, or those that fit it as a pattern; raises DataError where there are none."""
    if not _GLOB.search(text) or Path(text).exists():
        return (Path(text),)
    return _fitting(text, f"{option} {text}")


def _fitting(pattern: str, named: str) -> tuple[Path, ...]:
    paths = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
    if found := tuple(sorted(path for path in paths if path.is_file())):
        return found
    raise DataError(f"{named}: no file fits this pattern: correct it")


def named_file(path: Path, root: Path | None = None) -> NamedFile:
    """Returns what the name of a file says and, where it says nothing of it, the names of its folders below ``root``.

    Raises DataError where the words of both parts stand in one name.
    """
    run, part, fold, seed = _read_name(path, name_stem(path))
    folders = path.parents if root is None else [*path.relative_to(root).parents][:-1]
    names = [*[folder.name for folder in folders if folder.name], *([root.resolve().name] if root else [])]
    for name in names[: None if root else 1]:
        if run and part:
            break
        above, part_above, fold_above, seed_above = _read_name(path, name)
        if not part and part_above and not above:  # a folder "oof", not one "oof_of_b3"
            part, fold, seed = part_above, fold or fold_above, seed or seed_above
        elif not run:
            run, part, fold, seed = above, part or part_above, fold or fold_above, seed or seed_above
    return NamedFile(path, run, part or "oof", fold, seed)


def _read_name(path: Path, name: str) -> tuple[str, str, str, str]:
    """Returns the rest of a name, its part, fold and seed."""
    words = [(match[0], match.start()) for match in _WORD.finditer(name)]
    lower = [word.lower() for word, _ in words]
    kept, parts, fold, seed = "", set(), "", ""
    number = 0
    while number < len(words):
        word, after = lower[number], lower[number + 1] if number + 1 < len(words) else ""
        used = 1
        if word == "all" and after == "rows":
            parts.add("all_rows")
            used = 2
        elif word in OOF_WORDS:
            parts.add("oof")
        elif word in TEST_WORDS:
            parts.add("test")
        elif match := re.fullmatch(r"(fold|seed)(\d*)", word):
            value = match[2] or (after if after.isdecimal() else "")
            used = 1 if match[2] or not value else 2
            if not value:
                kept += _kept(name, words, number, kept)
            elif match[1] == "fold":
                fold = value
            else:
                seed = value
        elif word not in _OTHER_WORDS:
            kept += _kept(name, words, number, kept)
        number += used
    if len(parts) > 1:
        raise DataError(f"{path}: its name says {' and '.join(sorted(parts))}: rename it, or name its files one by one")
    return kept, next(iter(parts), ""), str(int(fold)) if fold else "", str(int(seed)) if seed else ""


def _kept(name: str, words: list[tuple[str, int]], number: int, before: str) -> str:
    """Returns a word of the name with the separator before it, as names of runs may have it."""
    word, start = words[number]
    separator = name[start - 1] if start and before else ""
    return f"{'_' if separator.isspace() else separator}{word}"


def name_stem(path: Path) -> str:
    """Returns the name of a file without the suffixes of its format."""
    name = path.name
    suffix = next((one for one in sorted(SUFFIXES, key=len, reverse=True) if name.lower().endswith(one)), path.suffix)
    return name[: len(name) - len(suffix)] if suffix else name


def _words(name: str) -> list[str]:
    return [match[0].lower() for match in _WORD.finditer(name)]


def grouped(files: Sequence[NamedFile], options: ImportOptions) -> list[Source]:
    """Returns one source a run, in the order of names. Seeds are runs of their own unless they are averaged.

    Raises DataError where two files would be the same part of a run, and where a run has no out-of-fold file.
    """
    runs: dict[str, dict[str, list[NamedFile]]] = {}
    for file in files:
        of_seed = f"seed{file.seed}" if file.seed and not options.average_seeds else ""
        name = "_".join(filter(None, (file.run, of_seed)))
        if not name:
            raise DataError(f"{file.path}: its name names no run: rename it, or list the files (--list)")
        runs.setdefault(name, {}).setdefault(file.part, []).append(file)
    sources = []
    for name, parts in sorted(runs.items()):
        for part, members in parts.items():
            seen: dict[tuple[str, str], Path] = {}
            for file in members:
                if (key := (file.fold, file.seed if options.average_seeds else "")) in seen:
                    raise DataError(
                        f"{seen[key]} and {file.path}: both would be the {_in_words(part)} predictions of the run "
                        f"{name}: rename one, or list the files (--list)"
                    )
                seen[key] = file.path
            folds = {file.fold for file in members}
            if "" in folds and len(folds) > 1:
                whole = next(file.path for file in members if not file.fold)
                raise DataError(
                    f"{whole}: the run {name} has this file of all folds and others of one fold: leave out either"
                )
        if "oof" not in parts:
            lost = next(iter(parts.values()))[0].path
            raise DataError(
                f"{lost}: no out-of-fold file for the run {name}: name it {name}_oof, or list the files (--list)"
            )
        sources.append(_source(name, parts, options))
    return sources


def _source(name: str, parts: Mapping[str, Sequence[NamedFile]], options: ImportOptions) -> Source:
    made = {
        part: tuple(Part(one.path, one.fold, one.seed if options.average_seeds else "") for one in parts.get(part, ()))
        for part in _LISTED_FILES
    }
    every = made["all_rows"]
    if len(every) > 1:
        raise DataError(f"{every[1].path}: the run {name} has several files of all rows: write one")
    if not every:
        options = replace(options, all_rows_prefix=None)
    return Source(name, made["oof"], made["test"], options, every[0].path if every else None)


def _in_words(part: str) -> str:
    return {"oof": "out-of-fold", "test": "test", "all_rows": "all-rows"}[part]


def parts_of(paths: Sequence[Path], *, average_seeds: bool, option: str = "--average-seeds") -> tuple[Part, ...]:
    """Returns the files of one part of a run that the user named; several need a fold or, averaged, a seed each.

    ``option`` averages seeds, for a message; "" where none does.
    """
    if len(paths) == 1:
        return (Part(paths[0]),)
    named = [named_file(path) for path in paths]
    shown = f"{paths[0]}, {paths[1]}" + (f", … {len(paths)} files" if len(paths) > 2 else "")
    if len({one.run for one in named}) > 1:
        raise DataError(f"{shown}: by their names they are of several runs: correct the pattern")
    parts = tuple(Part(one.path, one.fold, one.seed if average_seeds else "") for one in named)
    folds = {part.fold for part in parts}
    if len({(part.fold, part.seed) for part in parts}) < len(parts) or ("" in folds and len(folds) > 1):
        raise DataError(
            f"{shown}: their names say no different folds (fold0, fold_1, …)"
            + ("" if average_seeds or not option else f", and seeds are averaged only with {option}")
        )
    return parts


def listed_sources(table: Path, options: ImportOptions) -> list[Source]:
    """Returns the runs of a table with a row each: ``name``, ``oof``, ``test`` and options as columns.

    Paths and patterns are relative to the table's folder. Raises DataError for unknown columns and missing files.
    """
    cells = read_cells(table)
    allowed = ("name", *_LISTED_FILES, *_LISTED_TEXTS, *_LISTED_SWITCHES, "exclude")
    if unknown := [str(column) for column in cells.columns if column not in allowed]:
        raise DataError(f"{table}: no option {', '.join(unknown)}: the columns are {', '.join(allowed)}")
    for column in ("name", "oof"):
        if column not in cells:
            raise DataError(f"{table}: no column {column!r}: give each run its name and its out-of-fold file")
    if (doubled := cells["name"].str.strip().duplicated()).any():
        raise DataError(
            f"{table}: the name {cells['name'][doubled].iloc[0]!r} stands in several rows: give each its own"
        )
    return [_listed(table, row, options, number) for number, (_, row) in enumerate(cells.iterrows(), 2)]


def _listed(table: Path, row: pd.Series, options: ImportOptions, number: int) -> Source:
    given = {str(key): str(value).strip() for key, value in row.items() if str(value).strip()}
    where = f"{table}, row {number}"
    if not given.get("name") or not given.get("oof"):
        raise DataError(f"{where}: the name or the out-of-fold file is missing: fill it in")
    switches: dict[str, Any] = {}
    for key in _LISTED_SWITCHES:
        if key in given:
            if (word := given[key].lower()) not in ("1", "0", "true", "false", "yes", "no"):
                raise DataError(f"{where}: {key} is {given[key]!r}: write yes or no")
            switches[key] = word in ("1", "true", "yes")
    if "exclude" in given:
        if not given["exclude"].isdecimal():
            raise DataError(f"{where}: exclude is {given['exclude']!r}: write a number of rows")
        switches["exclude"] = int(given["exclude"])
    oof, test = options.columns, options.test_columns
    oof = replace(
        oof, id=given.get("id_column", oof.id), p=given.get("p_column", oof.p), nets=given.get("net_prefix", oof.nets),
        fold=given.get("fold_column", oof.fold),
    )  # fmt: skip
    test = replace(
        test, id=given.get("test_id_column", given.get("id_column", test.id)),
        p=given.get("test_p_column", given.get("p_column", test.p)),
        fold=given.get("test_fold_column", given.get("fold_column", test.fold)),
        nets=given.get("test_net_prefix", test.nets),
    )  # fmt: skip
    prefix = given.get("all_rows_prefix", options.all_rows_prefix if "all_rows" in given else None)
    made = replace(options, columns=oof, test_columns=test, all_rows_prefix=prefix, **switches)
    files = {
        key: matching_files(str(table.parent / given[key]), f"{where}: {key}") for key in _LISTED_FILES if key in given
    }
    every = files.get("all_rows")
    return Source(
        given["name"],
        parts_of(files["oof"], average_seeds=made.average_seeds),
        parts_of(files["test"], average_seeds=made.average_seeds) if "test" in files else (),
        made,
        every[0] if every else None,
    )


def column_sources(
    oof: Path, test: Path | None, pattern: str, options: ImportOptions, *, without: Iterable[str]
) -> list[Source]:
    """Returns one source for each column of the file ``oof`` whose name fits ``pattern``, such as ``net_*``.

    The test file has columns of the same names. Columns in ``without`` are no predictions. Averaged seeds are columns
    whose names differ in the seed only. Raises DataError where no column fits.
    """
    header = list(map(str, Files().read(oof, options.columns).columns))
    others = {options.columns.id, options.columns.fold, options.columns.seed, *without}
    fitting = [name for name in header if name not in others and fnmatch.fnmatchcase(name, pattern)]
    if not fitting:
        raise DataError(f"{oof}: no column fits --run-columns {pattern}; the columns are {', '.join(header)}")
    runs: dict[str, list[tuple[str, str]]] = {}
    for column in fitting:
        run, _, _, seed = _read_name(oof, column) if options.average_seeds else (column, "", "", "")
        runs.setdefault(run or column, []).append((column, seed))
    for run, members in runs.items():
        if len({seed for _, seed in members}) < len(members):
            raise DataError(f"{oof}: the columns {', '.join(name for name, _ in members)} would all be the run {run}")
    return [
        Source(
            run,
            tuple(Part(oof, "", seed, column) for column, seed in members),
            () if test is None else tuple(Part(test, "", seed, column) for column, seed in members),
            options,
        )
        for run, members in runs.items()
    ]

"""Predictions of imported runs for new rows: dermstack cannot compute them, so that the user gives them in files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import BundleError, ConfigError, DataError
from dermstack.listing import counted
from dermstack.serve.bundle import Bundle
from dermstack.serve.manifest import ImportedRun
from stack.imported.files import SUFFIXES, matching_files, name_stem, named_file, parts_of
from stack.imported.folds import net_label
from stack.imported.prediction_files import Files, ImportedColumns, Part, read_parts
from stack.imported.run import to_logit
from stack.predictions.ranks import AVERAGED
from stack.store import Run
from stack.tables.array_ids import is_array, is_ids_file
from stack.tables.cells import UNNAMED_INDEX
from stack.tables.keys import keys_as_in, other_spelling, positions_of

_RANGE = (0.01, 0.99)  # quantiles of the out-of-fold predictions between which most new ones should lie
_MAX_LISTED = 5  # ids in a message
Given = Mapping[str, Sequence[Path]]  # the files of each run


def imported_entries(level1: Sequence[Run], folds: int) -> list[dict[str, Any]]:
    """Returns the manifest's entries on imported runs: how their test file was read, and the range of predictions.

    Without test rows in the experiment, files of new rows have the columns of the out-of-fold file. Raises BundleError
    for a run that an earlier dermstack imported, which does not say which net is of which fold.
    """
    made = []
    for run in (run for run in level1 if run.meta["kind"] == "imported"):
        read_as, p = run.meta["read_as"], run.frame("oof")["p"].to_numpy(np.float64)
        averaged, foreign = run.meta["test_averaged"], run.meta["foreign_folds"]
        nets = {} if averaged or foreign else run.meta.get("nets", {})
        if not (averaged or foreign) and sorted(nets.values()) != list(range(folds)):
            raise BundleError(
                f"{run.name} was imported by an earlier dermstack, which did not keep the names of its fold nets: "
                "import it again with --replace; nothing else becomes stale"
            )
        columns, of_files = read_as["test_columns"], read_as["parts"]
        parts = [[seed, column] for _, seed, column in of_files["test"] or of_files["oof"] if column]
        made.append({
            "name": run.name,
            "columns": {key: columns[key] for key in ("id", "p", "fold", "seed")},
            "net_prefix": columns["nets"],
            "average_seeds": read_as["average_seeds"],
            "parts": parts,
            "averaged": averaged,
            "nets": nets,
            **({"mean_of": _foreign_nets(run)} if foreign and not averaged else {}),
            **({"clip": run.meta["clip"]} if "clip" in run.meta else {}),
            "range": np.quantile(p, _RANGE).tolist(),
        })  # fmt: skip
    return made


def _foreign_nets(run: Run) -> int:
    """Returns how many nets of other folds predicted each test row; 0 where it is one prediction, or not known."""
    test = run.frame("test")["fold"]
    return int(test[test != AVERAGED].nunique()) if len(test) else len(run.meta.get("nets", {}))


def given_predictions(bundle: Bundle, texts: Sequence[str]) -> Given:
    """Returns the files of each imported run that the option --predictions names.

    A text is NAME=FILE, where FILE may be a pattern, or a folder whose files have the runs' names; a bundle with one
    imported run takes a file alone. Raises ConfigError for names that are no imported run, DataError for patterns that
    no file fits.
    """
    names = [run.name for run in bundle.imported_runs]
    if texts and not names:
        raise ConfigError(f"--predictions {texts[0]}: {bundle.place} has no imported run, so leave it out")
    found: dict[str, Sequence[Path]] = {}
    for text in texts:
        name, sign, place = text.partition("=")
        if Path(text).is_dir():
            of_text = _in_folder(Path(text), names)
        elif sign and name in names:
            of_text = {name: matching_files(place, f"--predictions {name}=")}
        elif len(names) == 1 and not (sign and not Path(text).exists()):
            of_text = {names[0]: matching_files(text, "--predictions")}
        else:
            raise ConfigError(
                f"--predictions {text}: write NAME=FILE, where NAME is an imported run of the bundle "
                f"({_listed(names)}), or a folder of files with these names"
            )
        if twice := [one for one in of_text if one in found]:
            raise ConfigError(f"--predictions {text}: {twice[0]} has files already: give each run once")
        found |= of_text
    return found


def checked_predictions(bundle: Bundle, given: Mapping[str, Path | Sequence[Path]]) -> Given:
    """Returns the files of each imported run. Raises ConfigError for a run without files and for an unknown run."""
    names = [run.name for run in bundle.imported_runs]
    if unknown := [name for name in given if name not in names]:
        runs = f"its imported runs are {_listed(names)}" if names else "it has none, so leave them out"
        raise ConfigError(f"predictions of {unknown[0]}: {bundle.place} has no such imported run: {runs}")
    if lacking := [name for name in names if name not in given]:
        raise ConfigError(
            f"--predictions is missing for {_listed(lacking)}: {bundle.place} blends predictions that were imported, "
            f"so give those of the new rows with `--predictions {lacking[0]}=FILE`"
            + (" for each run, or `--predictions FOLDER`" if len(names) > 1 else "")
            + ", in a file like the test file of the import"
        )
    return {name: [paths] if isinstance(paths, Path) else list(paths) for name, paths in given.items()}


def _in_folder(folder: Path, names: Sequence[str]) -> dict[str, Sequence[Path]]:
    """Returns the files of a folder by the run that their names say, as in an import.

    Where some files of a run are test files by their names, as beside the out-of-fold files of an import, the others
    are left out.
    """
    by_run: dict[str, dict[str, list[Path]]] = {}
    for path in sorted(folder.iterdir()):
        if not (path.name.lower().endswith(SUFFIXES) and path.is_file()) or path.name.startswith("."):
            continue
        if (stem := name_stem(path)) in names:  # also where words of the run's name say something else
            by_run.setdefault(stem, {}).setdefault("test", []).append(path)
        elif not is_ids_file(path):
            file = named_file(path, folder)
            seeded = f"{file.run}_seed{file.seed}"
            run = seeded if file.seed and seeded in names else file.run
            by_run.setdefault(run, {}).setdefault(file.part, []).append(path)
    found = {name: by_run[name].get("test") or by_run[name].get("oof") for name in names if name in by_run}
    return {name: paths for name, paths in found.items() if paths}


def read_imported(bundle: Bundle, given: Given, ids: pd.Series) -> tuple[pd.DataFrame, list[str]]:
    """Returns the logits of the imported runs for the rows ``ids`` (n,), and notes on what is odd about them.

    There is one column for each run and net (`_column`), or one for a run whose predictions are averaged. Raises
    DataError that names the file for rows without a prediction, doubled ones, unknown nets and values outside [0, 1].
    """
    made: dict[str, NDArray[np.float32]] = {}
    notes, files = [], Files()  # runs may be columns of one file, which is read once
    for run in bundle.imported_runs:
        of_nets, extra = _read_run(run, given[run.name], ids, files)
        made |= {_column(run.name, net): logit for net, logit in of_nets.items()}
        notes += extra
        notes += _out_of_range(run, expit(np.concatenate([*of_nets.values()]).astype(np.float64)))
    return pd.DataFrame(made, index=ids.index), notes


def _read_run(
    run: ImportedRun, paths: Sequence[Path], ids: pd.Series, files: Files
) -> tuple[dict[int, NDArray[np.float32]], list[str]]:
    """Returns the logits (n,) of each net of a run, or of `AVERAGED`, for the rows ``ids``, and notes."""
    frame, columns = _read_files(run, paths, ids, files)
    path, found, notes = paths[0], {}, []
    by_net = _by_net(run, path, frame)
    if run.nets and AVERAGED in by_net:
        notes.append(
            f"{path}: one prediction for each row, where training had one of each fold net: it counts for every net"
        )
    for net, logit in sorted(by_net.items()):
        own = pd.Series(logit.index, dtype="str")
        found[net] = logit.to_numpy()[_places(run, path, net, own, ids, columns)]
    if extra := max(map(len, by_net.values())) - len(ids):
        notes.append(f"{path}: {counted(extra, 'ids', 'are')} not among the rows to predict and not used")
    return found, notes


def _read_files(
    run: ImportedRun, paths: Sequence[Path], ids: pd.Series, files: Files
) -> tuple[pd.DataFrame, ImportedColumns]:
    """Returns the rows of the files of a run, with their ids in the spelling of ``ids``, and the columns read."""
    for path in paths:
        if not path.is_file():
            raise DataError(f"{path}: no such file: correct the path of the predictions of {run.name}")
    columns = ImportedColumns(
        run.columns["id"], run.columns["p"], run.columns["fold"], "", run.net_prefix, run.columns["seed"]
    )
    if not run.parts:
        parts = parts_of(paths, average_seeds=run.average_seeds, option="")
    elif len(paths) > 1:
        raise DataError(
            f"{paths[0]} and {paths[1]}: the predictions of {run.name} were a column of one file: give one file"
        )
    else:  # several columns for several seeds
        parts = tuple(Part(paths[0], "", seed, column) for seed, column in run.parts)
    columns = _columns_there(run, parts, columns, files)
    frame = read_parts(
        parts, columns, needs_fold=False, alternative="", files=files, average_seeds=run.average_seeds,
        respell=lambda own, file: keys_as_in(own, ids, f"{file}: id", of="the rows to predict"),
    )  # fmt: skip
    return frame, columns


def _by_net(run: ImportedRun, path: Path, frame: pd.DataFrame) -> dict[int, pd.Series]:
    """Returns the logits by id of each net, or of `AVERAGED`. Raises DataError for unknown and absent nets."""
    logit = pd.Series(to_logit(frame["p"], run.clip), index=frame["id"].to_numpy())
    if "fold" not in frame or run.averaged:
        return {AVERAGED: logit}
    if not run.nets:  # other folds than the experiment's: their mean
        _check_foreign(run, path, frame)
        return {AVERAGED: logit.groupby(level=0, sort=False).mean()}
    labels = frame["fold"].map(net_label)
    if strange := sorted(set(labels) - set(run.nets)):
        raise DataError(
            f"{path}: {run.name} has no net {strange[0]!r} in training: its nets are {', '.join(sorted(run.nets))}"
        )
    if absent := [label for label in run.nets if label not in set(labels)]:
        raise DataError(f"{path}: no row is of net {absent[0]} of {run.name}: give the rows of every net")
    return {net: logit[(labels == label).to_numpy(bool)] for label, net in run.nets.items()}


def _columns_there(run: ImportedRun, parts: Sequence[Part], columns: ImportedColumns, files: Files) -> ImportedColumns:
    """Returns the columns that the files have: one a net as in the import, or else one with averaged predictions.

    Raises DataError where a file lacks a column that the file of the import had.
    """
    prefix = columns.nets
    for part in parts:
        there = list(map(str, files.read(part.path, columns).columns))
        wanted = {} if UNNAMED_INDEX in there else {columns.id: "the ids"}
        others = {prefix, columns.id, columns.fold}
        if is_array(part.path):  # its columns have no names
            columns = replace(columns, nets=None)
        elif prefix is not None and any(name.startswith(prefix) for name in there if name not in others):
            pass
        elif prefix is None or columns.p in there:
            wanted[part.p or columns.p] = f"the predictions of {run.name}"
            columns = replace(columns, nets=None)
        else:
            raise DataError(
                f"{part.path}: no column begins with {prefix!r}, as those of the nets of {run.name} did in the import, "
                f"and none is {columns.p!r}, for one prediction of each row: rename the columns, which are "
                f"{', '.join(there)}"
            )
        if absent := [name for name in wanted if name not in there]:
            raise DataError(
                f"{part.path}: no column {absent[0]!r}, which held {wanted[absent[0]]} in the file that was imported: "
                f"rename the column; the columns are {', '.join(there)}"
            )
    return columns


def _check_foreign(run: ImportedRun, path: Path, frame: pd.DataFrame) -> None:
    """Raises DataError unless each id has one prediction of each net, as many as in training: they are averaged."""
    nets = frame["fold"].nunique()
    if run.mean_of and nets != run.mean_of:
        raise DataError(
            f"{path}: predictions of {nets} nets of {run.name}, which had {run.mean_of} in training, and their mean is "
            "used: give the rows of every net"
        )
    if len(doubled := frame["id"][frame.duplicated(["id", "fold"])]):
        raise DataError(
            f"{path}: {counted(len(doubled), 'rows', 'repeat')} an id of the same net, first {doubled.iloc[0]!r}: give "
            "one row for each id and net"
        )
    rows = frame["id"].value_counts()
    if len(fewer := rows.index[rows != nets]):
        raise DataError(
            f"{path}: {counted(len(fewer), 'ids', 'lack')} a prediction of some of the {nets} nets of {run.name}, "
            f"first {fewer[0]!r}: add them"
        )


def _places(
    run: ImportedRun, path: Path, net: int, own: pd.Series, ids: pd.Series, columns: ImportedColumns
) -> NDArray[np.intp]:
    """Returns the position of each of ``ids`` among the ``own`` ids of a net. Raises DataError unless each is once."""
    of_net = "" if net == AVERAGED else f" of net {next(label for label, fold in run.nets.items() if fold == net)}"
    if (doubled := own[own.duplicated()]).size:
        raise DataError(
            f"{path}: {counted(len(doubled), 'rows', 'repeat')} an id{of_net}, "
            f"first {doubled.iloc[0]!r}: give one row for each id"
            + ("" if of_net or run.averaged else f", or name the net of each row in a column {columns.fold!r}")
        )
    places = positions_of(ids, own)
    if (lost := ids[places < 0]).size:
        more = f", … {len(lost):,} in all" if len(lost) > _MAX_LISTED else ""
        advice = other_spelling(own, ids, of="the rows to predict") or "add them"
        raise DataError(
            f"{path}: no prediction{of_net} of {run.name} for {', '.join(map(repr, lost[:_MAX_LISTED]))}{more}: "
            f"{advice}"
        )
    return places


def _out_of_range(run: ImportedRun, p: NDArray[np.float64]) -> list[str]:
    """Returns a note if most predictions lie outside of the range of those of training."""
    low, high = run.range
    outside = int(((p < low) | (p > high)).sum())
    if outside <= len(p) / 2:
        return []
    return [
        f"{outside:,} of {len(p):,} predictions of {run.name} lie outside {low:.3g} to {high:.3g}, where 98 % of those "
        f"of training are (the median here is {np.median(p):.3g}): check that they are probabilities of the same model"
    ]


def imported_logits(bundle: Bundle, frame: pd.DataFrame) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Returns the logits (folds, n, imported runs) of ``frame`` (n rows) and the nets (folds, imported runs)."""
    runs, folds = bundle.imported_runs, bundle.folds
    logits = np.empty((folds, len(frame), len(runs)), np.float32)
    nets = np.empty((folds, len(runs)), np.int8)
    for place, run in enumerate(runs):
        is_averaged = _column(run.name, AVERAGED) in frame
        for fold in range(folds):
            nets[fold, place] = AVERAGED if is_averaged else fold
            logits[fold, :, place] = frame[_column(run.name, int(nets[fold, place]))]
    return logits, nets


def imported_nets(bundle: Bundle) -> NDArray[np.int8]:
    """Returns the nets (folds, imported runs) of rows in files like those of the import."""
    fold = np.arange(bundle.folds, dtype=np.int8)
    own = [fold if run.nets else np.full_like(fold, AVERAGED) for run in bundle.imported_runs]
    return np.stack(own, axis=1) if own else np.empty((bundle.folds, 0), np.int8)


def one_prediction(bundle: Bundle, given: Mapping[str, float | None]) -> pd.DataFrame:
    """Returns the columns of `read_imported` for one row with a probability of each run, such as a form has.

    Raises DataError for a run without one, an unknown run, and values that are not between 0 and 1.
    """
    runs = {run.name: run for run in bundle.imported_runs}
    if unknown := [name for name in given if name not in runs]:
        raise DataError(f"prediction of {unknown[0]}: the bundle has no such imported run: leave it out")
    made = {}
    for name, run in runs.items():
        if (p := given.get(name)) is None:
            raise DataError(f"the prediction of {name} is missing: give its probability, which the blend needs")
        if not (0 <= p <= 1 if run.clip else 0 < p < 1):
            raise DataError(f"the prediction {p:g} of {name} is no probability between 0 and 1: correct it")
        made[_column(name, AVERAGED)] = to_logit(pd.Series([p]), run.clip)
    return pd.DataFrame(made)


def prediction_notes(bundle: Bundle, given: Mapping[str, float | None]) -> list[str]:
    """Returns notes on predictions of one row that are far from those of training."""
    return [
        f"the prediction {p:.3g} of {run.name} lies outside {run.range[0]:.3g} to {run.range[1]:.3g}, where 98 % of "
        "those of training lie: check that it is a probability of the same model"
        for run in bundle.imported_runs
        if (p := given.get(run.name)) is not None and not run.range[0] <= p <= run.range[1]
    ]


def inputs_text(bundle: Bundle) -> str:
    """Returns what a bundle without an image model predicts from, as the end of a sentence."""
    if not (runs := [run.name for run in bundle.imported_runs]):
        return "the values of the table alone"
    return f"the values of the table and the prediction{'s' * (len(runs) > 1)} of {_listed(runs)}"


def imported_with_images(bundle: Bundle) -> str:
    """Returns why a bundle of image models and imported runs has no page for one patient."""
    runs = _listed([run.name for run in bundle.imported_runs])
    return (
        f"{bundle.place} needs a prediction of {runs} for each image, which a page cannot ask for: use `dermstack "
        "predict` with --predictions"
    )


def _column(run: str, net: int) -> str:
    """Returns the column of new rows with the logits of a run; no csv is likely to have one of this name."""
    return f"prediction of {run}, {'averaged' if net == AVERAGED else f'net {net}'}"


def _listed(names: Sequence[str]) -> str:
    more = f", … {len(names)} in all" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more

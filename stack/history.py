"""Lists, scores and compares finished runs, and finds leftover files."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError, StoreError
from dermstack.listing import counted, first_of
from image_models.locks import unused
from stack.experiment import BY_SOURCE, Experiment
from stack.images import cache_users_folder
from stack.ledger import append_line, read_lines
from stack.level2.matrices import MATRICES_FOLDER
from stack.metrics.decision_metrics import decision_metric
from stack.metrics.intervals import Interval, clustered_auc, interval, paired_difference
from stack.metrics.own_metric import is_import_path, own_label, own_metric
from stack.metrics.scores import auc, auc_by_fold, average_precision, objective_label
from stack.metrics.shuffle import auc_equal_size
from stack.settings.config import Config
from stack.source_experiment import trains_again
from stack.store import Run, locked, read_frame, read_run
from stack.submission import FITS_FOLDER


def append_ledger(experiment: Experiment, blend: Run) -> dict[str, Any]:
    """Appends the blend's headline and the changed settings to runs/<experiment>/ledger.jsonl; returns the line."""
    return append_line(experiment.folder, experiment.config, blend.meta)


def read_ledger(experiment: Experiment) -> list[dict[str, Any]]:
    """Reads all lines of the experiment's ledger (`read_lines`)."""
    return read_lines(experiment.folder)


COLUMNS = ["experiment", "run", "kind", "auc", "headline"]


def list_experiments(folder: Path) -> pd.DataFrame:
    """Lists every run below ``folder``: experiment, run, kind, pooled out-of-fold AUC and, for a blend, its headline.

    The kind of an unfinished or damaged run says so. The AUC is computed with the current table.parquet; it is NaN
    where the table lacks rows of the run or the targets are of one class. A damaged table has a line of its own.
    """
    rows = []
    for path in sorted(folder.glob("*/table.parquet")):
        experiment = path.parent
        try:
            table = read_frame(path, remedy="dermstack stack")
            target = table[table["part"] == "train"].set_index("id")["target"]
        except (StoreError, KeyError):  # list the runs without their AUC, and the other experiments
            target = pd.Series(dtype=np.float64)
            line = {"experiment": experiment.name, "run": path.name, "kind": "damaged: run `dermstack stack`"}
            rows.append({**line, "auc": np.nan, "headline": ""})
        models = sorted(path for path in experiment.glob("models/*") if path.is_dir())
        for run_folder in [experiment / "blend", *models]:
            if run_folder.is_dir():
                line = {"experiment": experiment.name, "run": run_folder.name}
                rows.append({**line, "auc": np.nan, "headline": "", **_describe(run_folder, target)})
    return pd.DataFrame(rows, columns=COLUMNS)


def experiments_elsewhere(folder: Path) -> str:
    """Returns a sentence on folders near the working directory that hold experiments, where ``folder`` has none."""
    patterns = ("*/table.parquet", "*/*/table.parquet", "*/runs/*/table.parquet", "*/*/runs/*/table.parquet")
    found = {path.parent.parent for pattern in patterns for path in Path().glob(pattern) if _is_experiment(path.parent)}
    found = {place for place in found if place.resolve() != folder.resolve()}
    return f"; there are experiments in {first_of(sorted(found), 3)}" if found else ""


def _is_experiment(folder: Path) -> bool:
    return (folder / "fingerprints.json").is_file()


def _describe(folder: Path, target: pd.Series) -> dict[str, str | float]:
    try:
        run = read_run(folder)
        if run is None:
            folds = len(list(folder.glob("fold_*/run.json")))
            return {"kind": f"unfinished, {counted(folds, 'folds')}"}
        headline = run.meta.get("headline")
        shown = f"{headline['value']:.4f} [{headline['low']:.4f}, {headline['high']:.4f}] nested" if headline else ""
        shown += f", for each {per}" if (per := units_of(run)) else ""
        selected = ", selected on these rows" if run.meta.get("selected") else ""
        return {"kind": f"{run.meta['kind']}{selected}", "auc": _auc(run, target), "headline": shown}
    except StoreError:  # list the other runs too; a command that uses this run prints the next step
        return {"kind": "damaged"}


def _auc(run: Run, target: pd.Series) -> float:
    oof = run.frame("oof")
    score = oof["score"] if "score" in oof else oof["logit"]
    y = oof["target"] if "target" in oof else target.reindex(oof["id"])  # a blend of units brings its own
    return auc(y, score) if not y.isna().any() and y.nunique() == 2 else np.nan


@dataclass(frozen=True)
class Comparison:
    """Paired difference `a` minus `b` on the rows that both runs cover."""

    difference: Interval
    rows: int
    objective: str
    p: float | None  # two-sided p-value of DeLong's test, clustered by split_group; None unless the objective is AUC
    selected: tuple[str, ...]  # those of a and b whose settings, or whose inputs' settings, were chosen on these rows


def compare(runs: Path, a: str, b: str, *, objective: str | None = None) -> Comparison:
    """Computes the paired difference of two runs, with its bootstrap interval over split_groups.

    ``a`` and ``b`` are ``<experiment>`` (its nested blend), ``<experiment>/<run>`` or ``<experiment>/old/<run>``.
    Raises StoreError where a run is not found, and DataError where no id is shared or targets or groups differ.
    """
    run_a, run_b = find_run(runs, a), find_run(runs, b)
    frame_a, frame_b = run_scores(runs, a, run_a), run_scores(runs, b, run_b)
    _check_same_units(a, run_a, b, run_b)
    both = frame_a.merge(frame_b, on="id", suffixes=("_a", "_b"), validate="one_to_one")
    if both.empty:
        raise DataError(f"{a} and {b} have no id in common: compare runs of the same data set")
    for column in ("target", "split_group"):
        differ = both[f"{column}_a"] != both[f"{column}_b"]
        if differ.any():
            raise DataError(
                f"{a} and {b} disagree on the {column} of {differ.sum()} rows, first id {both['id'][differ].iloc[0]}: "
                "compare runs of the same data set, neither of them with shuffled targets"
            )
    objective = objective or str((run_a.meta.get("objective") or run_b.meta.get("objective")) or "auc")
    y, groups = both["target_a"], both["split_group_a"].to_numpy(object)
    if is_import_path(objective):
        objective = own_metric(objective, Path.cwd(), may_take_groups=True)
    objective_label(objective)  # raises for an unknown one
    metric = decision_metric(objective)
    used = "p" if metric is not None and metric.needs_p else "score"
    difference = paired_difference(
        objective, y, both[f"{used}_a"], both[f"{used}_b"], groups, patient=both["group_a"].to_numpy(object)
    )
    p = clustered_auc(y, both[["score_a", "score_b"]], groups).difference()[1] if objective == "auc" else None
    selected = tuple(name for name, run in ((a, run_a), (b, run_b)) if run.meta.get("selected"))
    return Comparison(difference, len(both), objective, p, selected)


def _check_same_units(a: str, run_a: Run, b: str, run_b: Run) -> None:
    """Raises DataError where one run predicts images and the other units, or units of other columns."""
    per_a, per_b = (units_of(run) for run in (run_a, run_b))
    if per_a != per_b:
        raise DataError(
            f"{a} has one prediction for each {per_a or 'image'}, and {b} for each {per_b or 'image'}: compare blends "
            "of the same `predict_per`"
        )


def units_of(run: Run) -> str:
    """Returns the columns that name the units of a blend of units, joined; "" for a run that predicts images."""
    return " and ".join(run.meta.get("units", {}).get("columns", []))


def find_run(runs: Path, name: str) -> Run:
    """Returns the run ``<experiment>`` (its blend), ``<experiment>/<run>`` or ``<experiment>/old/<run>``.

    Raises StoreError that names what is there, where it is missing or incomplete.
    """
    experiment, _, part = name.partition("/")
    folder = runs / experiment
    place = folder / (part if part.startswith("old/") else f"models/{part}") if part else folder / "blend"
    if ".." in PurePath(name).parts or (run := read_run(place)) is None:  # `runs` itself may have them
        available = sorted(path.parent.name for path in folder.glob("models/*/run.json"))
        hint = f"{experiment} has {', '.join(available)}" if available else f"`dermstack runs` lists the runs in {runs}"
        if not part and available:  # a name of an experiment alone means its blend
            one = f"{experiment}/{available[0]}"
            hint = f"{experiment} has no blend: run `dermstack stack`, or name one of its runs, such as {one}"
        raise StoreError(f"{name}: no complete run: {hint}")
    return run


def run_scores(runs: Path, name: str, run: Run) -> pd.DataFrame:
    """Returns id, score, p, target, group and split_group of the rows that the run covers.

    ``p`` of a blend is calibrated; its score only orders rows.
    """
    folder = runs / name.partition("/")[0]
    oof = run.frame("oof")
    if "units" in run.meta:  # its rows are no rows of the table
        columns = ["id", "score", "p_calibrated", "target", "group", "split_group"]
        return oof[columns].rename(columns={"p_calibrated": "p"}).astype({"target": "float64"})
    score = oof["score"] if "score" in oof else oof["p"]
    p = oof["p_calibrated"] if "p_calibrated" in oof else oof.get("p", score)
    rows = pd.DataFrame({"id": oof["id"], "score": score.astype("float64"), "p": p.astype("float64")})
    table, folds = (
        read_frame(folder / f"{part}.parquet", remedy="dermstack stack")[columns]
        for part, columns in (("table", ["id", "target", "group", "part"]), ("folds", ["id", "split_group"]))
    )
    return rows.merge(table[table["part"] == "train"][["id", "target", "group"]], on="id").merge(folds, on="id")


INTERRUPTED_AFTER_S = 3600.0  # no write takes an hour; another process may still be writing a younger temporary file


@dataclass(frozen=True)
class Leftover:
    """A file or folder that can be deleted: it is made again when needed, or was only kept for comparison."""

    path: Path
    what: str
    size: int  # bytes


def leftovers(config: Config, *, cache: bool) -> list[Leftover]:
    """Finds set-aside runs and temporary files of the config's experiment and of its copies with shuffled targets.

    With ``cache`` also the image caches of its data set. Nets that were trained again by source are among them where
    the config does not ask for them (`estimate.train_by_source`).
    """
    found = []
    for folder in _experiment_folders(config):
        aside = sorted([*folder.glob("old/*"), *folder.glob(f"{BY_SOURCE}/old/*")])
        found += [(path, "set aside when its inputs changed") for path in aside]
        if (fits := folder / FITS_FOLDER).is_dir():
            found.append((fits, "fits of a blend that was stopped; `stack` goes on from them"))
        if (matrices := folder / MATRICES_FOLDER).is_dir():
            found.append((matrices, "left by a `stack` that was killed while it fitted stackers"))
        if not trains_again(config):
            again = [folder / BY_SOURCE / "models" / model.name for model in config.image_models]
            why = "trained by source, and unused as estimate.train_by_source is off"
            found += [(path, why) for path in sorted(again) if path.is_dir()]
        torn = [path for path in sorted(folder.rglob(".*.tmp")) if not set(aside) & set(path.parents) and _is_old(path)]
        found += [(path, "left by an interrupted write") for path in torn]
    if cache:
        caches = [path for path in sorted(config.cache.glob("*")) if _is_cache_of(config.data.name, path.name)]
        found += [(path, "image cache") for path in caches]
    return [Leftover(path, what, _size(path)) for path, what in found]


@contextmanager
def nobody_works(config: Config, *, cache: bool) -> Iterator[None]:
    """Locks what `leftovers` looks at: the experiment, its copies, their runs and, with ``cache``, the image caches.

    Raises StoreError where another process works on one of them, or uses the caches.
    """
    with ExitStack() as locks:
        for folder in _experiment_folders(config):
            models = [*folder.glob("models/*"), *folder.glob(f"{BY_SOURCE}/models/*")]
            for part in (folder, *sorted(path for path in models if path.is_dir())):
                locks.enter_context(locked(part))
        if cache and config.cache.is_dir():
            locks.enter_context(unused(cache_users_folder(config)))
        yield


def remove_leftovers(found: list[Leftover]) -> None:
    """Deletes the files and folders that `leftovers` found."""
    for leftover in found:
        if leftover.path.is_dir():
            shutil.rmtree(leftover.path)
        else:
            leftover.path.unlink(missing_ok=True)


def _experiment_folders(config: Config) -> list[Path]:
    name = re.compile(rf"{re.escape(config.experiment)}(-shuffled--?\d+)?")
    return [folder for folder in sorted(config.runs.glob("*")) if name.fullmatch(folder.name) and folder.is_dir()]


def _is_cache_of(data: str, folder: str) -> bool:
    # the format of image_models.cache.cache_name
    return re.fullmatch(rf"{re.escape(data)}-\d+(-short_side)?(-jpeg)?", folder) is not None


def _is_old(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > INTERRUPTED_AFTER_S
    except FileNotFoundError:  # its write has finished in the meantime
        return False


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def auc_of(experiment: Experiment, run: Run) -> float:
    """Returns the run's pooled out-of-fold AUC on the rows that it covers."""
    oof = run.frame("oof")
    return auc(experiment.target[experiment.rows_of(oof["id"])], oof["logit"])


def run_table(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """Returns one row a run, on the rows that it covers: run, kind, level, rows, objective, 95 % interval low, high, ….

    The column of the objective has its name, for a metric of the user's own without the hash of its code.

    The objective is pooled over folds. ``within_folds`` is the mean AUC within folds; where it is higher than the
    pooled AUC, the scales of the fold nets differ.
    """
    objective = experiment.config.objective
    table = []
    for run in runs:
        oof = run.frame("oof")
        rows = experiment.rows_of(oof["id"])
        y, split_group = experiment.target[rows], experiment.split_group[rows]
        pooled = interval(objective, y, oof["p"].to_numpy(np.float64), split_group)
        by_fold = auc_by_fold(y, oof["logit"], oof["fold"])
        table.append({
            "run": run.name,
            "kind": str(run.meta["kind"]),
            "level": int(run.meta["level"]),
            "rows": len(oof),
            own_label(objective): pooled.value,
            "low": pooled.low,
            "high": pooled.high,
            "ap": average_precision(y, oof["logit"]),
            "within_folds": float(by_fold.mean()),
            "min_fold": float(by_fold.min()),
            "max_fold": float(by_fold.max()),
            "seconds": float(run.meta.get("seconds", np.nan)),
            "note": _note(run, y),
        })  # fmt: skip
    frame = pd.DataFrame(table)
    if experiment.shuffled:
        frame["equal_size"] = [str(_equal_size_auc(experiment, run)) for run in runs]
    return frame


def fold_table(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the AUC of each run within each fold: one row a run, columns run, fold 0, fold 1, …"""
    fold = experiment.folds.frame["fold"].to_numpy()
    table = []
    for run in runs:
        oof = run.frame("oof")
        rows = experiment.rows_of(oof["id"])  # the experiment's folds, as an imported run may have other ones
        table.append(
            {"run": run.name, **auc_by_fold(experiment.target[rows], _score(oof), fold[rows]).add_prefix("fold ")}
        )
    return pd.DataFrame(table)


def rank_correlations(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the rank correlation of the runs' out-of-fold scores (runs, runs), on the rows that all runs cover.

    Scores are ranked within each fold net, as nets differ in scale; the correlation is computed over all ranks.
    """
    ranks = {}
    for run in runs:
        oof = run.frame("oof")
        ranks[run.name] = _score(oof).groupby(oof["fold"]).rank(pct=True).set_axis(oof["id"])
    return pd.DataFrame(ranks).dropna().corr()


def _score(oof: pd.DataFrame) -> pd.Series[float]:
    """Returns the blend's score or another run's logit, which rank its rows."""
    return oof["score" if "score" in oof else "logit"]


def _equal_size_auc(experiment: Experiment, run: Run) -> Interval:
    """Returns the AUC between groups of equal size, which is 0.5 within noise where targets are shuffled."""
    oof = run.frame("oof")
    rows = experiment.rows_of(oof["id"])
    return auc_equal_size(experiment.target[rows], oof["logit"], experiment.split_group[rows])


def _note(run: Run, y: NDArray[np.int8]) -> str:
    """Returns the notes to print beside every score of a run."""
    notes = []
    if run.meta.get("selected"):
        notes.append("selected on these rows")
    if run.meta.get("foreign_folds"):
        notes.append("foreign folds")
    if run.meta.get("excluded") and run.meta["level"] == 1:
        notes.append(f"{counted(run.meta['excluded'], 'rows')} excluded")
    if run.meta.get("test_averaged"):
        notes.append("test averaged")
    if run.has("oof_seeds"):
        seeds = run.frame("oof_seeds").drop(columns="id")
        aucs = [auc(y, seeds[column]) for column in seeds]
        notes.append(f"{len(aucs)} seeds, AUC of each {min(aucs):.4f} to {max(aucs):.4f}")
    return ", ".join(notes)

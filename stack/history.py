"""Runs as a table: what each is worth out-of-fold, with its interval over split_groups."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.experiment import Experiment
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import auc, auc_by_fold, average_precision
from stack.metrics.shuffle import auc_equal_size
from stack.store import Run


def auc_of(experiment: Experiment, run: Run) -> float:
    """The run's out-of-fold AUC, pooled, on the rows that it covers."""
    oof = run.frame("oof")
    return auc(experiment.target[experiment.rows_of(oof["id"])], oof["logit"])


def run_table(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run, on the rows that it covers: run, kind, level, rows, the objective with its 95 % interval, ….

    The objective is pooled over folds; the mean AUC within folds stands beside it: where that is higher, the fold nets'
    scales differ.
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
            objective: pooled.value,
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
        frame["equal_size"] = [str(_null(experiment, run)) for run in runs]
    return frame


def fold_table(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """The AUC of each run within each fold: a row a run, columns run and fold 0, fold 1, …"""
    fold = experiment.folds.frame["fold"].to_numpy()
    table = []
    for run in runs:
        oof = run.frame("oof")
        rows = experiment.rows_of(oof["id"])  # by the experiment's folds: an imported run may have had others
        table.append(
            {"run": run.name, **auc_by_fold(experiment.target[rows], _score(oof), fold[rows]).add_prefix("fold ")}
        )
    return pd.DataFrame(table)


def agreement(runs: Sequence[Run]) -> pd.DataFrame:
    """Rank correlation of the runs' out-of-fold scores, runs by runs, on the rows that all cover.

    Of ranks within the fold net that made them, as nets differ in scale (Spearman's, averaged over nets).
    """
    ranks = {}
    for run in runs:
        oof = run.frame("oof")
        ranks[run.name] = _score(oof).groupby(oof["fold"]).rank(pct=True).set_axis(oof["id"])
    return pd.DataFrame(ranks).dropna().corr()


def _score(oof: pd.DataFrame) -> pd.Series[float]:
    """What ranks the rows of a run, or of a blend."""
    return oof["score" if "score" in oof else "logit"]


def _null(experiment: Experiment, run: Run) -> Interval:
    """What shuffled targets must bring to 0.5."""
    oof = run.frame("oof")
    rows = experiment.rows_of(oof["id"])
    return auc_equal_size(experiment.target[rows], oof["logit"], experiment.split_group[rows])


def _note(run: Run, y: NDArray[np.int8]) -> str:
    """What must be said of a run wherever its number stands."""
    notes = []
    if run.meta.get("selected"):
        notes.append("selected on these rows")
    if run.meta.get("foreign_folds"):
        notes.append("foreign folds")
    if run.meta.get("excluded") and run.meta["level"] == 1:
        notes.append(f"{run.meta['excluded']} rows excluded")
    if run.meta.get("test_averaged"):
        notes.append("test averaged")
    if run.has("oof_seeds"):
        seeds = run.frame("oof_seeds").drop(columns="id")
        aucs = [auc(y, seeds[column]) for column in seeds]
        notes.append(f"{len(aucs)} seeds, alone AUC {min(aucs):.4f} to {max(aucs):.4f}")
    return ", ".join(notes)

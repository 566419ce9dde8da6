"""Two scores of the same rows beside each other: their paired difference, with its interval over split_groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stack.errors import DataError, StoreError
from stack.metrics.delong import clustered_auc
from stack.metrics.intervals import Interval, paired_difference
from stack.store import Run, read_frame, read_run


@dataclass(frozen=True)
class Compared:
    """`a` less `b` on the rows that both cover: the difference, how many rows, the objective, for AUC DeLong's p."""

    difference: Interval
    rows: int
    objective: str
    p: float | None  # two-sided, of no difference, clustered by split_group; another objective than AUC has none
    selected: tuple[str, ...]  # of a and b those whose settings were chosen on these very rows, or went into


def compare(runs: Path, a: str, b: str, *, objective: str | None = None) -> Compared:
    """The paired difference of two runs, with its bootstrap interval over split_groups.

    ``a`` and ``b`` are ``<experiment>`` (its blend, nested), ``<experiment>/<run>`` or ``<experiment>/old/<run>``.
    Raises StoreError where one isn't there and DataError where targets or groups of the same id differ.
    """
    run_a, run_b = _find(runs, a), _find(runs, b)
    frame_a, frame_b = _scores(runs, a, run_a), _scores(runs, b, run_b)
    both = frame_a.merge(frame_b, on="id", suffixes=("_a", "_b"), validate="one_to_one")
    if both.empty:
        raise DataError(f"{a} and {b} have no id in common: compare runs on the same data")
    for column in ("target", "split_group"):
        differ = both[f"{column}_a"] != both[f"{column}_b"]
        if differ.any():
            raise DataError(
                f"{a} and {b} disagree on the {column} of {differ.sum()} rows, first id {both['id'][differ].iloc[0]}: "
                "they are not of the same data (or one is shuffled)"
            )
    objective = objective or str((run_a.meta.get("objective") or run_b.meta.get("objective")) or "auc")
    y, groups = both["target_a"], both["split_group_a"].to_numpy(object)
    difference = paired_difference(objective, y, both["score_a"], both["score_b"], groups)
    p = clustered_auc(y, both[["score_a", "score_b"]], groups).difference()[1] if objective == "auc" else None
    selected = tuple(name for name, run in ((a, run_a), (b, run_b)) if run.meta.get("selected"))
    return Compared(difference, len(both), objective, p, selected)


def _find(runs: Path, name: str) -> Run:
    experiment, _, part = name.partition("/")
    folder = runs / experiment
    place = folder / (part if part.startswith("old/") else f"models/{part}") if part else folder / "blend"
    if ".." in place.parts or (run := read_run(place)) is None:
        at_hand = sorted(path.parent.name for path in folder.glob("models/*/run.json"))
        hint = f"{experiment} has {', '.join(at_hand)}" if at_hand else f"`dermstack runs` lists what {runs} holds"
        raise StoreError(f"{name}: no complete run: {hint}")
    return run


def _scores(runs: Path, name: str, run: Run) -> pd.DataFrame:
    """id, score, target, split_group."""
    folder = runs / name.partition("/")[0]
    oof = run.frame("oof")
    score = oof["score"] if "score" in oof else oof["p"]
    rows = pd.DataFrame({"id": oof["id"], "score": score.astype("float64")})
    table, folds = (
        read_frame(folder / f"{part}.parquet", again="dermstack stack")[columns]
        for part, columns in (("table", ["id", "target", "part"]), ("folds", ["id", "split_group"]))
    )
    return rows.merge(table[table["part"] == "train"][["id", "target"]], on="id").merge(folds, on="id")

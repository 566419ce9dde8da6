"""What lies under runs/, experiment by experiment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stack.errors import StoreError
from stack.metrics.scores import auc
from stack.store import Run, read_frame, read_run

COLUMNS = ["experiment", "run", "kind", "auc", "headline"]


def list_experiments(folder: Path) -> pd.DataFrame:
    """One row a run: experiment, run, kind, pooled out-of-fold AUC and, for a blend, its headline.

    Unfinished and damaged runs are named so. The AUC is against today's table.parquet, NaN where that lacks the rows.
    """
    rows = []
    for path in sorted(folder.glob("*/table.parquet")):
        experiment = path.parent
        table = read_frame(path, again="dermstack stack")
        target = table[table["part"] == "train"].set_index("id")["target"]
        models = sorted(path for path in experiment.glob("models/*") if path.is_dir())
        for run_folder in [experiment / "blend", *models]:
            if run_folder.is_dir():
                line = {"experiment": experiment.name, "run": run_folder.name}
                rows.append({**line, "auc": np.nan, "headline": "", **_describe(run_folder, target)})
    return pd.DataFrame(rows, columns=COLUMNS)


def _describe(folder: Path, target: pd.Series) -> dict[str, str | float]:
    try:
        run = read_run(folder)
        if run is None:
            folds = len(list(folder.glob("fold_*/run.json")))
            return {"kind": f"unfinished, {folds} folds"}
        headline = run.meta.get("headline")
        shown = f"{headline['value']:.4f} [{headline['low']:.4f}, {headline['high']:.4f}] nested" if headline else ""
        selected = ", selected on these rows" if run.meta.get("selected") else ""
        return {"kind": f"{run.meta['kind']}{selected}", "auc": _auc(run, target), "headline": shown}
    except StoreError:  # the other runs are still worth a line; using this one says what to do
        return {"kind": "damaged"}


def _auc(run: Run, target: pd.Series) -> float:
    oof = run.frame("oof")
    score = oof["score"] if "score" in oof else oof["logit"]
    y = target.reindex(oof["id"])
    return auc(y, score) if not y.isna().any() and y.nunique() == 2 else np.nan

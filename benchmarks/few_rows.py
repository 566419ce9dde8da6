"""Measures what each blend method gains or loses against equal weights when it is fitted to few rows of real runs.

python -m benchmarks.few_rows runs/ham10000            # level-1 runs of an experiment whose `oof` is complete

A method is fitted to the rows of randomly drawn groups, about 300, 1,000 or 3,000 rows, and scored on all rows of the
other groups. The table gives the mean over draws of its AUC minus that of the rank mean, with the standard error over
draws. Draws share rows, so that the standard error is too small where a draw is a large part of the rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from stack.blend.blender import Blender
from stack.blend.columns import NetScaler
from stack.metrics.scores import auc
from stack.store import read_run

SIZES = {300: 60, 1000: 60, 3000: 20}  # rows of a fit: draws
METHODS = ("rank_mean", "mean", "rank_logistic", "logistic", "averaged_logistic", "hill_climb", "optuna")


def main() -> None:
    folder = Path(sys.argv[1])
    rows = pd.read_parquet(folder / "folds.parquet").set_index("id")
    target = pd.read_parquet(folder / "table.parquet").set_index("id")["target"]
    found = [run for path in sorted((folder / "models").iterdir()) if (run := read_run(path)) is not None]
    oof = {run.name: run.frame("oof").set_index("id") for run in found if run.meta["level"] == 1}
    for made in oof.values():
        rows = rows[rows.index.isin(made.index)]
    y, group = target.loc[rows.index].to_numpy(), pd.factorize(rows["split_group"])[0]
    P = np.column_stack([made.loc[rows.index, "p"] for made in oof.values()])
    nets = np.column_stack([made.loc[rows.index, "fold"] for made in oof.values()])
    scaler = NetScaler().fit(P, nets, group)
    print(f"{', '.join(oof)}: {len(y):,} rows, {int(y.sum()):,} positive; AUC minus the rank mean's, times 10,000\n")
    print(f"| rows | draws | {' | '.join(METHODS)} |\n" + "|---" * (2 + len(METHODS)) + "|")
    for size, draws in SIZES.items():
        values = []
        for draw in range(draws):
            order = np.random.default_rng([size, draw]).permutation(group.max() + 1)
            fitted = np.isin(group, order[: round(size * len(order) / len(y))])
            blends = [
                Blender(method).fit(P[fitted], y[fitted], nets=nets[fitted], columns_from=scaler) for method in METHODS
            ]
            values.append([auc(y[~fitted], b.predict_proba(P[~fitted], nets=nets[~fitted])[:, 1]) for b in blends])
        gains = 1e4 * (np.array(values) - np.array(values)[:, :1])
        shown = [f"{gain.mean():+.1f} ± {gain.std() / np.sqrt(draws):.1f}" for gain in gains.T]
        print(f"| {size:,} | {draws} | {' | '.join(shown)} |", flush=True)


if __name__ == "__main__":
    main()

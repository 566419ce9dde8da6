"""Law 7 on frozen features: twenty shuffles of the targets, heads fitted anew; AUC pooled and at equal group size.

python benchmarks/shuffle.py configs/ham10000.yaml mobilenetv2_100_frozen
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from image_models.head import fit_head
from stack.config import read_config
from stack.console import Out
from stack.experiment import open_experiment
from stack.folds import inner_split
from stack.metrics import auc
from stack.null import auc_equal_size
from stack.store import read_run
from stack.table import shuffle_targets

SHUFFLES = 20


def main(config_path: Path, name: str) -> None:
    experiment = open_experiment(read_config(config_path), config_path, Out(quiet=True))
    run = read_run(experiment.models / name)
    if run is None or run.meta["kind"] != "frozen":
        raise SystemExit(f"{experiment.models / name} is no complete frozen run: dermstack oof -c {config_path}")
    z, groups = np.asarray(run.array("oof_z")), experiment.split_group
    pooled, within = [], []
    for seed in range(SHUFFLES):
        y = shuffle_targets(experiment.table.train, groups, seed=seed)["target"].to_numpy()
        logit = np.empty(len(y))
        for _, train, held in experiment.folds.pairs():
            head = fit_head(z[train], y[train], inner_split(y[train], groups[train], seed=seed))
            logit[held] = head.logit(z[held])
        pooled.append(auc(y, logit))
        within.append(auc_equal_size(y, logit, groups, draws=2).value)
    print("| AUC of shuffled targets | mean | standard error of the mean | lowest | highest |\n|---|---|---|---|---|")
    for what, values in (("pooled", pooled), ("among groups of equal size", within)):
        error = np.std(values, ddof=1) / np.sqrt(SHUFFLES)
        print(f"| {what} | {np.mean(values):.4f} | {error:.4f} | {min(values):.4f} | {max(values):.4f} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    with threadpool_limits(2):
        main(Path(sys.argv[1]), sys.argv[2])

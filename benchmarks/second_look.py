"""Flips labels of HAM10000 at random; measures recall and precision of the rows that `second_look` lists.

python benchmarks/second_look.py RUNS      (the frozen run of configs/ham10000.yaml is in RUNS/ham10000)
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from dermstack.audit.labels import doubtful_labels
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config
from stack.store import Run, prediction_frame, read_run, write_run
from stack.tables.table import Table

NAME = "mobilenetv2_100_frozen"


def refitted(experiment: Experiment, z: np.ndarray, folder: Path) -> Run:
    """Writes a frozen run whose heads were trained on the flipped labels, out of fold."""
    x, logit = PCA(64, whiten=True, random_state=0).fit_transform(z.astype(np.float32)), np.empty(len(z))
    for _, rest, held in experiment.folds.pairs():
        head = LogisticRegression(C=0.01, max_iter=300).fit(x[rest], experiment.target[rest])
        logit[held] = head.decision_function(x[held])
    ids, test = experiment.table.train["id"], experiment.table.test["id"]
    tests = [prediction_frame(test, k, np.zeros(len(test))) for k in range(experiment.folds.k)]
    frames = {
        "oof": prediction_frame(ids, experiment.folds.frame["fold"].to_numpy(), logit),
        "test": pd.concat(tests),
    }
    meta = {"fingerprint": "", "level": 1, "kind": "frozen"}
    return write_run(folder / NAME, meta, frames=frames, arrays={"oof_z": z})


def main() -> None:
    path = Path(__file__).parents[1] / "configs" / "ham10000.yaml"
    experiment = open_experiment(read_config(path, (f"runs={sys.argv[1]}",)), path, Out(quiet=True))
    run = read_run(experiment.models / NAME)
    if run is None:
        raise SystemExit(f"no run {experiment.models / NAME}: run `dermstack oof` with configs/ham10000.yaml")
    place = pd.Index(run.frame("oof")["id"]).get_indexer(experiment.table.train["id"])
    z = np.asarray(run.array("oof_z"))[place]
    print("| flipped | listed | flipped among them | listed among the flipped | flipped among the first 50 |")
    print("|---|---|---|---|---|")
    for rate in (0.0, 0.01, 0.03, 0.06):
        turned = np.random.default_rng(1).random(len(z)) < rate
        target = np.where(turned, 1 - experiment.target, experiment.target).astype(np.int8)
        table = Table(experiment.table.train.assign(target=target), experiment.table.test)
        other = replace(experiment, table=table)
        with tempfile.TemporaryDirectory() as folder:
            doubtful = doubtful_labels(other, [refitted(other, z, Path(folder))])
        hit = doubtful["id"].isin(experiment.table.train["id"][turned])
        shares = [hit.mean(), hit.sum() / max(turned.sum(), 1), hit.head(50).mean()]
        print(
            f"| {turned.sum()} ({rate:.0%}) | {len(doubtful)} | "
            + " | ".join(f"{share:.0%}" for share in shares)
            + " |"
        )


if __name__ == "__main__":
    main()

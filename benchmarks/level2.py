"""Measures the gain of each block of level-2 features: out-of-fold AUC of untuned models, minus the rank average's.

python benchmarks/level2.py CONFIG    (after `dermstack oof` or `import-oof`)

Every prediction comes from models that were not trained on the row; nothing is tuned. `both` is the mean of LightGBM's
and the logistic regression's logits, each standardised within its fold. Whatever is chosen by this table was selected
on these rows.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.images import with_acquisition
from stack.level1.image_runs import level1_runs
from stack.level2.features import early_stopping_rows, fold_matrix
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import auc
from stack.predictions.joined import Predictions, alignment_notes, predictions_of, read_embeddings, standardised
from stack.settings.config import read_config
from tabular.fit_bag import BagSettings, fit_bag

OFF = {
    "metadata": False, "aggregates": False, "cohort": False, "neighbours": False, "frozen_z": 0, "aligned_z": 0,
    "context_counts": False, "shortcuts": False,
}  # fmt: skip
PATIENT = {"metadata": True, "aggregates": True}
VARIANTS = {
    "p": {},
    "+ metadata": {"metadata": True},
    "+ aggregates": PATIENT,
    "+ cohort": PATIENT | {"cohort": True},
    "+ neighbours": PATIENT | {"neighbours": True},
    "+ frozen z": PATIENT | {"frozen_z": 32},
    "+ aligned z": PATIENT | {"aligned_z": 16},
    "+ all of these": PATIENT | {"cohort": True, "neighbours": True, "frozen_z": 32, "aligned_z": 16},
    "aggregates + counts (artefact)": PATIENT | {"context_counts": True},
    "aggregates + shortcuts (artefact)": PATIENT | {"shortcuts": True},
    "aggregates + cohort + counts (artefact)": PATIENT | {"cohort": True, "context_counts": True},
}  # fmt: skip


def by_fold_rank(s: NDArray[np.floating], fold: NDArray[np.integer]) -> NDArray[np.float64]:
    return pd.Series(s).groupby(fold).rank(pct=True).to_numpy()


def by_fold_scale(s: NDArray[np.floating], fold: NDArray[np.integer]) -> NDArray[np.float64]:
    grouped = pd.Series(s.astype(np.float64)).groupby(fold)
    return ((s - grouped.transform("mean")) / grouped.transform("std")).to_numpy()


def one_fold(
    experiment: Experiment, embeddings: dict, predictions: Predictions, fold: int, kinds: list[str]
) -> tuple[NDArray[np.intp], list[NDArray[np.float32]]]:
    matrix = fold_matrix(experiment, embeddings, predictions, fold)
    inner = early_stopping_rows(experiment, matrix.train_rows)
    y = experiment.target[matrix.train_rows]
    made = []
    for kind in kinds:
        bag = fit_bag(BagSettings(kind, bags=3), matrix.train, y, inner, seed=0, threads=1)
        made.append(bag.logit(matrix.held))
    return matrix.held_rows, made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    out = Out()
    experiment = open_experiment(read_config(options.config), options.config, out)
    acquired = with_acquisition(experiment)
    runs = level1_runs(experiment)
    predictions = predictions_of(experiment, runs)
    scaled = standardised(predictions)
    fold = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    ranks = np.mean([by_fold_rank(logit, fold) for logit in predictions.oof.T], axis=0)
    best = max(range(len(runs)), key=lambda run: auc(y, predictions.oof[:, run]))
    scores = {f"best single run: {predictions.names[best]}": predictions.oof[:, best], "rank average": ranks}
    scores["mean of logits, standardised by fold"] = np.mean(
        [by_fold_scale(logit, fold) for logit in predictions.oof.T], axis=0
    )
    kinds = ["lightgbm", "logistic"]
    for name, changes in VARIANTS.items():
        base = acquired if changes.get("shortcuts") else experiment
        if base is None or (changes.get("aligned_z") and not any(run.meta["kind"] == "image" for run in runs)):
            continue
        if changes.get("frozen_z") and not any(run.meta["kind"] == "frozen" for run in runs):
            continue
        if changes.get("neighbours") and all(run.meta["kind"] == "imported" for run in runs):
            continue
        features = base.config.features.model_copy(update=OFF | changes)
        changed = replace(base, config=base.config.model_copy(update={"features": features}))
        embeddings = read_embeddings(changed, runs)
        if name == "+ aligned z":
            for note in alignment_notes(embeddings, runs):
                out.say(note)
        logits = np.empty((len(kinds), len(experiment.target)))
        jobs = joblib.Parallel(n_jobs=options.jobs)(
            joblib.delayed(one_fold)(changed, embeddings, scaled, k, kinds) for k in range(experiment.folds.k)
        )
        for rows, made in jobs:
            logits[:, rows] = made
        logits = logits[:, predictions.rows]
        for kind, logit in zip(kinds, logits, strict=True):
            scores[f"{name}, {kind}"] = logit
        scores[f"{name}, both"] = np.mean([by_fold_scale(logit, fold) for logit in logits], axis=0)
    table = []
    for name, s in scores.items():
        value, difference = interval("auc", y, s, groups), paired_difference("auc", y, s, ranks, groups)
        table.append({
            "what": name,
            "AUC": f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]",
            "minus the rank average": f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
        })  # fmt: skip
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    main()

"""Compares two ways to apply level 2 at test time: to each fold's own level-1 predictions, or to their average.

python benchmarks/at_test_time.py CONFIG RUN    (a frozen run of a finished `dermstack oof`)

A fifth of the split groups serves as test rows. On the others, five folds of heads are fitted on the frozen features,
and in each fold LightGBM on logit, metadata and aggregates. `within` applies fold k's model to the test logits of head
k and averages the results over k; `first` averages the heads' logits and applies every model to that average. Prints
the AUC of level 1 and of both ways, and their paired difference, as means over repeats of the draw.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from image_models.frozen_head import fit_head
from stack.console import Out
from stack.experiment import open_experiment
from stack.folds import assign_folds, count_groups, inner_split
from stack.metrics.scores import auc
from stack.settings.config import read_config
from stack.store import read_run
from tabular.encode import MetadataEncoder
from tabular.fit_bag import BagSettings, fit_bag
from tabular.group_features import metadata_aggregates, prediction_aggregates

FOLDS = 5


def matrix(encoder: MetadataEncoder, frame: pd.DataFrame, logit: np.ndarray) -> pd.DataFrame:
    blocks = [
        pd.DataFrame({"cnn": logit}, index=frame.index), encoder.transform(frame),
        metadata_aggregates(frame[["group", "age"]]), prediction_aggregates(frame["group"], logit[:, None], ["cnn"]),
    ]  # fmt: skip
    return pd.concat([block.reset_index(drop=True) for block in blocks], axis=1)


def repeat(
    z: np.ndarray, frame: pd.DataFrame, y: np.ndarray, groups: np.ndarray, seed: int
) -> tuple[float, float, float]:
    test = inner_split(y, groups, seed=seed)
    train = np.flatnonzero(~test)
    group_counts = count_groups(y[train], pd.Series(groups[train]))
    fold = assign_folds(group_counts, k=FOLDS, seed=seed)[group_counts.codes]
    oof, by_net = np.empty(len(train), np.float32), []
    for k in range(FOLDS):
        rows = train[fold != k]
        head = fit_head(z[rows], y[rows], inner_split(y[rows], groups[rows], seed=seed))
        oof[fold == k] = head.logit(z[train[fold == k]])
        by_net.append(head.logit(z[test]))
    within, first = [], []
    for k in range(FOLDS):
        rows = train[fold != k]
        encoder = MetadataEncoder().fit(frame.iloc[rows])
        x = matrix(encoder, frame.iloc[rows], oof[fold != k])
        inner = inner_split(y[rows], groups[rows], seed=seed)
        bag = fit_bag(BagSettings("lightgbm"), x, y[rows], inner, seed=seed, threads=2)
        within.append(bag.logit(matrix(encoder, frame[test], by_net[k])))
        first.append(bag.logit(matrix(encoder, frame[test], np.mean(by_net, axis=0))))
    of_mean = auc(y[test], np.mean(by_net, axis=0))
    return of_mean, auc(y[test], np.mean(within, axis=0)), auc(y[test], np.mean(first, axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("run")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    experiment = open_experiment(read_config(options.config), options.config, Out(quiet=True))
    run = read_run(experiment.models / options.run)
    if run is None or run.meta["kind"] != "frozen":
        parser.error(f"{options.run} is not a complete frozen run of {options.config}: run `dermstack oof`")
    z = run.array("oof_z")
    found = [
        repeat(z, experiment.table.train, experiment.target, experiment.split_group, seed)
        for seed in range(options.repeats)
    ]
    level1, within, first = np.array(found).T
    difference = within - first
    print(f"{len(found)} draws of a fifth of the groups as test rows, {options.run}")
    error = difference.std(ddof=1) / len(difference) ** 0.5
    print(f"level 1, heads averaged: {level1.mean():.4f}; within each fold: {within.mean():.4f}", end="; ")
    print(f"averaged first: {first.mean():.4f}; difference {difference.mean():+.4f}, standard error {error:.4f}")


if __name__ == "__main__":
    main()

"""Repeats a stacker over other assignments of the groups to folds, and averages its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.experiment import Experiment
from stack.folds import Folds, assign_balanced_folds, count_groups
from stack.source_folds import source_units
from stack.store import prediction_frame, row_positions

_FOLD_SEEDS, _MODEL_SEEDS = 100, 1000  # steps from one repeat's seeds to the next one's, so that none is used twice


def repeated(experiment: Experiment, repeat: int) -> Experiment:
    """Returns the experiment with the folds and seeds of a repeat; repeat 0 is the experiment itself.

    The split groups, or with `folds.by: source` whole sources, are assigned to as many folds by another seed, balanced
    in targets and in the strata of the config, so that none is in two of them either. Level-1 predictions stay as they
    are: each was made by a net that did not see the row's group.
    """
    if repeat == 0:
        return experiment
    frame, settings = experiment.folds.frame, experiment.config.folds
    by_source = settings.by == "source"
    counts = count_groups(
        experiment.target,
        source_units(experiment.table.train["source"], experiment.split_group).unit
        if by_source
        else experiment.split_group,
        stratify=settings.stratify,
        age=experiment.table.train["age"].to_numpy() if "age" in settings.stratify else None,
    )
    fold = assign_balanced_folds(counts, k=experiment.folds.k, seed=settings.seed + _FOLD_SEEDS * repeat)
    seed = experiment.config.seed + _MODEL_SEEDS * repeat
    return replace(
        experiment,
        folds=Folds(frame.assign(fold=fold), experiment.folds.unknown_pairs),
        config=experiment.config.model_copy(update={"seed": seed}),
    )


def fold_name(repeat: int, fold: int) -> str:
    """Returns where a stacker keeps a fold of a repeat, below its own folder; those of the first one lie in that."""
    return f"fold_{fold}" if repeat == 0 else f"repeat_{repeat}/fold_{fold}"


def mean_logit(logits: Sequence[NDArray[np.floating]]) -> NDArray[np.float32]:
    """Returns the mean over repeats of the logits (n,) of each."""
    made: NDArray[np.float32] = np.mean([one.astype(np.float64) for one in logits], axis=0).astype(np.float32)
    return made


def mean_of_repeats(frames: Sequence[pd.DataFrame], *, by_fold: bool) -> pd.DataFrame:
    """Returns the first of several predictions (id, fold, logit, p) with the mean of all their logits.

    Rows are joined by id, for test rows, which have one row for each fold, ``by_fold`` too. The folds are those of the
    first frame.
    """
    first = frames[0]
    if len(frames) == 1:
        return first
    keys = _keys(first, by_fold)
    logits = [
        frame["logit"].to_numpy(np.float32)[row_positions(keys, _keys(frame, by_fold), "the rows of a repeat")]
        for frame in frames
    ]
    return prediction_frame(first["id"], first["fold"].to_numpy(), mean_logit(logits))


def _keys(frame: pd.DataFrame, by_fold: bool) -> pd.Series:
    return frame["id"] + "/" + frame["fold"].astype("str") if by_fold else frame["id"]

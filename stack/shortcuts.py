"""What level 2 must not live on: how much counts and acquisition would add, and how it does on lone images."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.acquisition import with_acquisition
from stack.experiment import Experiment
from stack.features import Predictions
from stack.metrics.intervals import interval, paired_difference


@dataclass(frozen=True)
class Probe:
    """One question about a stacker, and the out-of-fold logits (n,) that answer it."""

    name: str
    logit: NDArray[np.float32]


def probe_experiments(experiment: Experiment) -> dict[str, Experiment]:
    """The experiment with each shortcut switched on that is off and known, by name."""
    features = experiment.config.features
    found = {}
    if not features.context_counts:
        found["context_counts"] = _changed(experiment, context_counts=True)
    if not features.shortcuts and (known := with_acquisition(experiment)) is not None:
        found["shortcuts"] = _changed(known, shortcuts=True)
    return found


def probe_table(
    experiment: Experiment, predictions: Predictions, logit: NDArray[np.float32], probes: list[Probe]
) -> pd.DataFrame:
    """What each probe adds to the stacker's own ``logit`` (n,) on the same rows: what, auc, low, high, difference, ….

    `alone`: every image predicted as if its group had no other. `groups of one` and `other groups`: the stacker itself
    on these rows only, whose difference is to the mean of its own level-1 runs on them.
    """
    y, groups = experiment.target[predictions.rows], experiment.split_group[predictions.rows]
    true_group = experiment.table.train["group"].iloc[predictions.rows]
    size = true_group.map(true_group.value_counts()).to_numpy()
    plain = predictions.oof.mean(axis=1)
    table = []
    for probe in probes:
        table.append(_row(probe.name, y, probe.logit, logit, groups))
    for name, rows in (("groups of one", size == 1), ("other groups", size > 1)):
        if len(np.unique(y[rows])) == 2:
            table.append(_row(name, y[rows], logit[rows], plain[rows], groups[rows]))
    return pd.DataFrame(table)


def _row(
    name: str, y: NDArray[np.int8], s: NDArray[np.floating], base: NDArray[np.floating], groups: NDArray[np.object_]
) -> dict[str, object]:
    value, apart = interval("auc", y, s, groups), paired_difference("auc", y, s, base, groups)
    return {
        "what": name, "rows": len(y), "auc": value.value, "low": value.low, "high": value.high,
        "difference": apart.value, "difference_low": apart.low, "difference_high": apart.high,
    }  # fmt: skip


def _changed(experiment: Experiment, **features: bool) -> Experiment:
    config = experiment.config
    return replace(
        experiment, config=config.model_copy(update={"features": config.features.model_copy(update=features)})
    )

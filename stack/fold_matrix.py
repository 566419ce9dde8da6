"""Level-2 features of one outer fold: transforms fitted on its training rows, applied to whatever is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.experiment import Experiment
from stack.features import FeatureSettings, FoldFeatures, Predictions
from stack.folds import inner_split
from stack.predictions import Embedding


@dataclass(frozen=True)
class FoldMatrix:
    """One fold's fitted transforms, its training and held-out features, and the table rows of both."""

    features: FoldFeatures
    train: pd.DataFrame
    held: pd.DataFrame
    held_alone: pd.DataFrame | None  # the held-out rows as if the group of each had no other
    train_rows: NDArray[np.intp]
    held_rows: NDArray[np.intp]


def fold_matrix(
    experiment: Experiment,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
    *,
    without: int | None = None,
    alone: bool = False,
) -> FoldMatrix:
    """Transforms fitted on the training rows, applied to these and to the held-out rows of ``fold``.

    A study for fold ``without`` has no row of it on either side. ``alone`` makes the held-out rows as lone ones too.
    """
    train = experiment.table.train
    fold_of = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    parts = [np.flatnonzero((fold_of != fold) & (fold_of != without)), np.flatnonzero(fold_of == fold)]
    rows = [predictions.rows[part] for part in parts]
    frames = [train.iloc[places] for places in rows]
    z = [{name: embedding.oof[places] for name, embedding in embeddings.items()} for places in rows]
    settings = FeatureSettings(**experiment.config.features.model_dump())
    frozen = {name for name, embedding in embeddings.items() if embedding.alignment is None}
    features = FoldFeatures(settings, predictions.names, frozen=frozen, seed=experiment.config.seed)
    features.fit(frames[0], predictions.oof[parts[0]], z[0])
    x_train, x_held = (
        features.transform(frame, predictions.oof[part], values)
        for frame, part, values in zip(frames, parts, z, strict=True)
    )
    x_alone = None
    if alone:
        x_alone = features.transform(frames[1].assign(group=frames[1]["id"]), predictions.oof[parts[1]], z[1])
    return FoldMatrix(features, x_train, x_held, x_alone, rows[0], rows[1])


def inner_rows(experiment: Experiment, places: NDArray[np.intp]) -> NDArray[np.bool_]:
    """A grouped part of these training rows, for early stopping."""
    return inner_split(
        experiment.target[places],
        experiment.split_group[places],
        seed=experiment.config.seed,
    )

"""The level-2 matrix: what pictures and patient say together, each fold with transforms fitted on its own rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from stack.config import Features
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.predictions import Embedding, Predictions
from stack.table import ACQUISITION
from tabular.encode import MetadataEncoder
from tabular.group_features import (
    CohortScore,
    context_counts,
    embedding_aggregates,
    metadata_aggregates,
    prediction_aggregates,
)

NUMERIC, CATEGORICAL = ("age",), ("sex", "site")
IMAGE_BLOCK, METADATA_BLOCK = "image models", "metadata"  # blocks of columns, as `block_of_` calls them
FROZEN_COMPONENTS = 32  # of a frozen embedding that is only measured within its group


class FoldFeatures:
    """Level-2 features of one fold: fitted on its training rows, the same code for held-out, test and new rows."""

    def __init__(self, settings: Features, names: tuple[str, ...], *, frozen: Collection[str] = (), seed: int) -> None:
        """``names`` of the runs; the z of those in ``frozen`` are a backbone's own and are reduced here, to be aligned
        with nothing, the others' are components already."""
        self.settings = settings
        self.names = names
        self.frozen = frozen
        self.seed = seed

    def fit(
        self, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> FoldFeatures:
        """``frame``, ``logits`` (n, runs) and each run's ``z`` (n, d) of the fold's training rows. No targets."""
        self.encoder_ = MetadataEncoder(numeric=NUMERIC, categorical=CATEGORICAL).fit(frame)
        self.axes_ = {name: self._fit_axes(values) for name, values in z.items() if name in self.frozen}
        self.cohort_ = CohortScore().fit(frame, logits) if self.settings.cohort else None
        return self

    def transform(
        self, frame: pd.DataFrame, logits: NDArray[np.float32], z: Mapping[str, NDArray[np.floating]]
    ) -> pd.DataFrame:
        """Features (n, columns) float32 of whole groups; ``logits`` (n, runs) and ``z`` as one fold net sees them.

        ``block_of_`` says in words which kind of knowledge each column is.
        """
        blocks: list[tuple[str, pd.DataFrame]] = []
        if self.settings.logits:
            blocks.append((IMAGE_BLOCK, pd.DataFrame(logits, columns=list(self.names))))
        if self.settings.metadata:
            blocks.append((METADATA_BLOCK, self.encoder_.transform(frame)))
        if self.settings.aggregates:
            blocks.append(("ages of the group", metadata_aggregates(frame[["group", "age"]])))
            blocks.append(("image models, within the group", prediction_aggregates(frame["group"], logits, self.names)))
        if self.cohort_ is not None:
            blocks.append(("image models, within age, sex and site", self.cohort_.transform(frame, logits, self.names)))
        for name, values in z.items():
            components = self.components(name, values)
            kept = self.settings.frozen_z if name in self.axes_ else self.settings.aligned_z
            if kept:
                columns = [f"{name}_z{i}" for i in range(min(kept, components.shape[1]))]
                blocks.append(("embeddings", pd.DataFrame(components[:, : len(columns)], columns=columns)))
            if self.settings.neighbours:
                blocks.append(("embeddings, within the group", embedding_aggregates(frame["group"], components, name)))
        if self.settings.context_counts:
            blocks.append(("counts of the group", context_counts(frame[["group", "site", "age"]])))
        if self.settings.shortcuts:
            blocks.append(("how the picture was made", frame[list(ACQUISITION)]))
        self.block_of_ = {str(column): name for name, block in blocks for column in block}
        return pd.concat([block.reset_index(drop=True) for _, block in blocks], axis=1).astype(np.float32)

    def components(self, name: str, z: NDArray[np.floating]) -> NDArray[np.floating]:
        """Centred components (n, r) of a run's embeddings ``z`` as `transform` takes them."""
        if name not in self.axes_:
            return z
        mean, turn = self.axes_[name]
        return (z.astype(np.float32) - mean) @ turn

    def to_json(self) -> str:
        """What was fitted on the training rows, for new ones: encodings and cohorts; for components see `arrays`."""
        cohort = None if self.cohort_ is None else json.loads(self.cohort_.to_json())
        return json.dumps({"metadata": json.loads(self.encoder_.to_json()), "cohort": cohort}, ensure_ascii=False)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """What reduces a frozen run's new z, (z - mean) @ turn: mean (d,) and turn (d, r), by run."""
        return {
            f"{name}_{part}": values
            for name, axes in self.axes_.items()
            for part, values in zip(("mean", "turn"), axes, strict=True)
        }

    def restore(self, text: str, arrays: Mapping[str, NDArray[np.float32]]) -> FoldFeatures:
        """Fitted as those that gave this `to_json` and these `arrays`. Raises TabularError for another text."""
        state = json.loads(text)
        self.encoder_ = MetadataEncoder.from_json(json.dumps(state["metadata"]))
        self.axes_ = {name: (arrays[f"{name}_mean"], arrays[f"{name}_turn"]) for name in self.frozen}
        self.cohort_ = CohortScore.from_json(json.dumps(state["cohort"])) if self.settings.cohort else None
        return self

    def _fit_axes(self, z: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        components = min(self.settings.frozen_z or FROZEN_COMPONENTS, *z.shape)
        pca = PCA(components, random_state=self.seed).fit(z.astype(np.float32))
        return pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_.T, np.float32)


@dataclass(frozen=True)
class FoldMatrix:
    """One fold's fitted transforms, its training and held-out features, and the table rows of both."""

    features: FoldFeatures
    train: pd.DataFrame
    held: pd.DataFrame
    held_ungrouped: pd.DataFrame | None  # the held-out rows as if the group of each had no other
    train_rows: NDArray[np.intp]
    held_rows: NDArray[np.intp]


def fold_matrix(
    experiment: Experiment,
    embeddings: Mapping[str, Embedding],
    predictions: Predictions,
    fold: int,
    *,
    without: int | None = None,
    ungrouped: bool = False,
) -> FoldMatrix:
    """Transforms fitted on the training rows, applied to these and to the held-out rows of ``fold``.

    A study for fold ``without`` has no row of it on either side. ``alone`` makes the held-out rows as lone ones too.
    """
    train = experiment.table.train
    fold_of = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    parts = [np.flatnonzero((fold_of != fold) & (fold_of != without)), np.flatnonzero(fold_of == fold)]
    rows = [predictions.rows[part] for part in parts]
    frames = [train.iloc[positions] for positions in rows]
    z = [{name: embedding.oof[positions] for name, embedding in embeddings.items()} for positions in rows]
    frozen = {name for name, embedding in embeddings.items() if embedding.alignment is None}
    features = FoldFeatures(experiment.config.features, predictions.names, frozen=frozen, seed=experiment.config.seed)
    features.fit(frames[0], predictions.oof[parts[0]], z[0])
    x_train, x_held = (
        features.transform(frame, predictions.oof[part], values)
        for frame, part, values in zip(frames, parts, z, strict=True)
    )
    x_ungrouped = None
    if ungrouped:
        x_ungrouped = features.transform(frames[1].assign(group=frames[1]["id"]), predictions.oof[parts[1]], z[1])
    return FoldMatrix(features, x_train, x_held, x_ungrouped, rows[0], rows[1])


def early_stopping_rows(experiment: Experiment, positions: NDArray[np.intp]) -> NDArray[np.bool_]:
    """A grouped part of these training rows, for early stopping."""
    return inner_split(
        experiment.target[positions],
        experiment.split_group[positions],
        seed=experiment.config.seed,
    )

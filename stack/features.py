"""The level-2 matrix: what pictures and patient say together, each fold with transforms fitted on its own rows."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.decomposition import PCA

from stack.errors import StoreError
from stack.experiment import Experiment
from stack.join import places_in_run
from stack.ranks import AVERAGED, net_moments
from stack.store import Run
from stack.table import ACQUISITION
from tabular.cohort import CohortScore
from tabular.encode import MetadataEncoder
from tabular.group_features import context_counts, metadata_aggregates, prediction_aggregates
from tabular.neighbours import embedding_aggregates

NUMERIC, CATEGORICAL = ("age",), ("sex", "site")
IMAGE, METADATA = "image models", "metadata"  # blocks of columns, as `block_of_` calls them
FEWEST_COMPONENTS = 32  # of a frozen embedding that is only measured within its group


@dataclass(frozen=True)
class Predictions:
    """Several runs side by side, joined by id: of the training rows out-of-fold, of the test rows by each fold net."""

    names: tuple[str, ...]
    rows: NDArray[np.intp]  # the table rows that every run covers; all but the declared exclusions
    oof: NDArray[np.float32]  # (rows, runs) logits
    nets: NDArray[np.int8]  # (rows, runs): the fold net that made each
    test: NDArray[np.float32]  # (folds, test rows, runs) logits
    test_nets: NDArray[np.int8]  # (folds, runs): k, or AVERAGED


def predictions_of(experiment: Experiment, runs: list[Run]) -> Predictions:
    """`read_predictions` for the experiment's rows and folds."""
    table = experiment.table
    return read_predictions(runs, table.train["id"], table.test["id"], folds=experiment.folds.k)


def read_predictions(
    runs: list[Run], train_ids: pd.Series[str], test_ids: pd.Series[str], *, folds: int
) -> Predictions:
    """Join the runs by id. Raises StoreError for missing, extra or doubled ids, unless a run declares them excluded."""
    covered = np.ones(len(train_ids), bool)
    oofs = []
    for run in runs:
        oof, mask = _aligned(run, train_ids)
        oofs.append(oof)
        covered &= mask
    rows = np.flatnonzero(covered)
    tests, test_nets = zip(*(_test_logits(run, test_ids, folds) for run in runs), strict=True)
    return Predictions(
        names=tuple(run.name for run in runs),
        rows=rows,
        oof=np.column_stack([oof["logit"].to_numpy(np.float32)[rows] for oof in oofs]),
        nets=np.column_stack([oof["fold"].to_numpy()[rows].astype(np.int8) for oof in oofs]),
        test=np.stack(tests, axis=2),
        test_nets=np.stack(test_nets, axis=1),
    )


Scales = dict[str, dict[int, tuple[float, float]]]  # of each run, of each of its nets (and AVERAGED): mean, spread


def net_scales(predictions: Predictions) -> Scales:
    """Mean and spread of each net's out-of-fold logits; AVERAGED stands for the mean of the nets'. No targets."""
    return {
        name: net_moments(predictions.oof[:, run], predictions.nets[:, run])
        for run, name in enumerate(predictions.names)
    }


def standardised(predictions: Predictions, scales: Scales | None = None) -> Predictions:
    """Each run's logits on the scale of the net that made them (`net_scales`): less its mean, by its spread.

    Fold nets differ in scale, and a tree can't tell a confident net from a risky lesion. A test column that
    came averaged, or of a net without out-of-fold rows, takes the mean of the nets' scales.
    """
    scales = net_scales(predictions) if scales is None else scales
    oof, test = predictions.oof.copy(), predictions.test.copy()
    for run, name in enumerate(predictions.names):
        for net, (mean, spread) in scales[name].items():
            rows = predictions.nets[:, run] == net
            oof[rows, run] = (predictions.oof[rows, run] - mean) / spread
        for fold, net in enumerate(predictions.test_nets[:, run]):
            mean, spread = scales[name].get(int(net), scales[name][AVERAGED])
            test[fold, :, run] = (predictions.test[fold, :, run] - mean) / spread
    return replace(predictions, oof=oof, test=test)


@dataclass(frozen=True)
class FeatureSettings:
    """Which blocks the matrix holds; see the config's `features`."""

    logits: bool
    metadata: bool
    aggregates: bool
    frozen_z: int
    aligned_z: int
    neighbours: bool
    cohort: bool
    context_counts: bool
    shortcuts: bool


class FoldFeatures:
    """Level-2 features of one fold: fitted on its training rows, the same code for held-out, test and new rows."""

    def __init__(
        self, settings: FeatureSettings, names: tuple[str, ...], *, frozen: Collection[str] = (), seed: int
    ) -> None:
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
            blocks.append((IMAGE, pd.DataFrame(logits, columns=list(self.names))))
        if self.settings.metadata:
            blocks.append((METADATA, self.encoder_.transform(frame)))
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
        components = min(self.settings.frozen_z or FEWEST_COMPONENTS, *z.shape)
        pca = PCA(components, random_state=self.seed).fit(z.astype(np.float32))
        return pca.mean_.astype(np.float32), np.ascontiguousarray(pca.components_.T, np.float32)


def _aligned(run: Run, ids: pd.Series[str]) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """The run's out-of-fold rows in the order of ``ids``, and which of them it covers."""
    oof = run.frame("oof")
    place = places_in_run(run, oof["id"], ids, "oof")
    covered = place >= 0
    declared = run.meta.get("excluded", 0)
    if (~covered).sum() != declared:
        raise StoreError(
            f"{run.folder}: no prediction for {(~covered).sum()} of {len(ids)} training rows, {declared} declared: "
            "import it again with `--exclude` and that number, or rebuild it"
        )
    return oof.iloc[place], covered


def _test_logits(run: Run, ids: pd.Series[str], folds: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """(folds, rows): the test rows as each fold net sees them; one row for all where the run came averaged."""
    test = run.frame("test")
    if run.meta.get("foreign_folds"):  # its nets are none of ours: each of our folds gets their mean
        test = test.groupby("id", sort=False, as_index=False)["logit"].mean().assign(fold=AVERAGED)
    by_net = {int(net): test[test["fold"] == net] for net in test["fold"].unique()}
    expected = {AVERAGED} if AVERAGED in by_net else set(range(folds))
    if len(ids) and set(by_net) != expected:
        raise StoreError(f"{run.folder}: test predictions of the nets {sorted(by_net)}, expected {sorted(expected)}")
    logits = np.empty((folds, len(ids)), np.float32)
    nets = np.array([AVERAGED if AVERAGED in by_net else k for k in range(folds)], np.int8)
    for k in range(folds if len(ids) else 0):
        frame = by_net[int(nets[k])]
        place = places_in_run(run, frame["id"], ids, "test")
        if (place < 0).any():
            raise StoreError(
                f"{run.folder}: {(place < 0).sum()} of {len(ids)} test rows have no prediction by net {nets[k]}"
            )
        logits[k] = frame["logit"].to_numpy(np.float32)[place]
    return logits, nets


def to_logit(p: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of probabilities, kept finite at 0 and 1."""
    clipped = np.clip(np.asarray(p, np.float64), 1e-15, 1 - 1e-15)
    result: NDArray[np.float32] = logit(clipped).astype(np.float32)
    return result

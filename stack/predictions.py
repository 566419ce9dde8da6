"""Runs' embeddings as level 2 takes them: those of one frozen backbone as they are, those of fold nets aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.errors import StoreError
from stack.experiment import Experiment
from stack.join import places_in_run
from stack.store import Run
from tabular.embeddings import Alignment, fit_alignment

COMPONENTS = 64  # of an aligned embedding that is only measured within its group
BAD_RESIDUAL = 0.5  # half of what the nets see on their shared axes is their own


@dataclass(frozen=True)
class Embedding:
    """One run's rows: out-of-fold in table order, test as each fold net sees them."""

    oof: NDArray[np.floating]  # (n, d), or aligned components (n, r)
    test: tuple[NDArray[np.floating], ...]  # of each fold net: (test rows, d or r); one for all where frozen
    alignment: Alignment | None  # None: one frozen backbone made all of it, which each fold reduces for itself

    def test_of(self, fold: int) -> NDArray[np.floating]:
        """The test rows as net ``fold`` sees them."""
        return self.test[fold] if self.alignment else self.test[0]


def read_embeddings(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Embedding]:
    """Of every run that enters the matrix with its embedding, by name."""
    features = experiment.config.features
    taken = {}
    for run in runs:
        if run.meta["kind"] == "frozen" and (features.frozen_z or features.neighbours):
            taken[run.name] = frozen_embedding(experiment, run)
        elif run.meta["kind"] == "image" and (features.aligned_z or features.neighbours):
            taken[run.name] = _aligned(experiment, run, features.aligned_z or COMPONENTS)
    return taken


def alignment_notes(embeddings: Mapping[str, Embedding], runs: Sequence[Run]) -> list[tuple[str, bool]]:
    """What must be said of each alignment, its residual and what it was fitted on; and whether it fits."""
    notes = []
    anchors = {run.name: str(run.meta.get("anchors", "test")) for run in runs}
    for name, embedding in embeddings.items():
        if (alignment := embedding.alignment) is None:
            continue
        fits = alignment.residual <= BAD_RESIDUAL
        note = (
            f"{name}: embeddings of {len(alignment.mean)} nets aligned on {anchors[name]} rows, "
            f"{alignment.components} components, residual {alignment.residual:.2f} on held-out anchors "
            f"({alignment.unaligned:.2f} unaligned){'' if fits else ': they do not fit; set `features.aligned_z: 0`'}"
        )
        notes.append((note, fits))
    return notes


def frozen_embedding(experiment: Experiment, run: Run) -> Embedding:
    """One z an image, whatever the fold: that of the test rows stands once, in the order of each fold's rows."""
    oof, test = run.frame("oof"), run.frame("test")
    train = _every(run, oof, experiment.table.train["id"], "oof")
    once = _every(run, test[test["fold"] == 0], experiment.table.test["id"], "test")
    return Embedding(run.array("oof_z")[train], (run.array("test_z")[once],), None)


def _aligned(experiment: Experiment, run: Run, components: int) -> Embedding:
    k = experiment.folds.k
    anchors = run.frame("anchor")
    anchor_z = run.array("anchor_z")
    ids = anchors["id"].reset_index(drop=True)
    first = ids[anchors["fold"].to_numpy() == 0]
    by_net = []
    for net in range(k):
        rows = np.flatnonzero(anchors["fold"].to_numpy() == net)
        by_net.append(rows[_every(run, anchors.iloc[rows], first, "anchor")])
    alignment = fit_alignment(np.stack([anchor_z[rows] for rows in by_net]), components)
    oof, z = run.frame("oof"), run.array("oof_z")
    made = np.empty((len(oof), alignment.components), np.float32)
    fold = oof["fold"].to_numpy()
    for net in range(k):
        made[fold == net] = alignment.transform(z[fold == net], net)
    test, test_z = run.frame("test"), run.array("test_z")
    tests = []
    for net in range(k):
        rows = np.flatnonzero(test["fold"].to_numpy() == net)
        order = _every(run, test.iloc[rows], experiment.table.test["id"], "test")
        tests.append(alignment.transform(test_z[rows[order]], net))
    return Embedding(made[_every(run, oof, experiment.table.train["id"], "oof")], tuple(tests), alignment)


def _every(run: Run, frame: pd.DataFrame, ids: pd.Series[str], part: str) -> NDArray[np.intp]:
    """Where each of ``ids`` stands in the frame. Raises StoreError where one has no embedding."""
    place = places_in_run(run, frame["id"], ids, part)
    if (place < 0).any():
        raise StoreError(
            f"{run.folder}/{part}.parquet lacks {(place < 0).sum()} of {len(ids)} rows, which have no embedding: "
            "rebuild the run"
        )
    return place

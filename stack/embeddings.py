"""Runs' embeddings as level 2 takes them: those of one frozen backbone as they are, those of fold nets aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.experiment import Experiment
from stack.store import Run
from tabular.align import Alignment, fit_alignment

COMPONENTS = 64  # of an aligned embedding that is only measured within its group
BAD_RESIDUAL = 0.5  # half of what the nets see on their shared axes is their own


@dataclass(frozen=True)
class Embedding:
    """One run's rows: out-of-fold in table order, test as each fold net sees them."""

    oof: NDArray[np.floating]  # (n, d), or aligned components (n, r)
    test: tuple[NDArray[np.floating], ...]  # of each fold net: (test rows, d or r); one for all where frozen
    alignment: Alignment | None  # None: one backbone made all of it

    def test_of(self, fold: int) -> NDArray[np.floating]:
        """The test rows as net ``fold`` sees them."""
        return self.test[fold] if self.alignment else self.test[0]


def read_embeddings(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Embedding]:
    """Of every run that enters the matrix with its embedding, by name."""
    features = experiment.config.features
    taken = {}
    for run in runs:
        if run.meta["kind"] == "frozen" and (features.frozen_z or features.neighbours):
            taken[run.name] = Embedding(run.array("oof_z"), (run.array("test_z"),), None)
        elif run.meta["kind"] == "image" and (features.aligned_z or features.neighbours):
            taken[run.name] = _aligned(experiment, run, features.aligned_z or COMPONENTS)
    return taken


def alignment_notes(embeddings: Mapping[str, Embedding], runs: Sequence[Run]) -> list[str]:
    """What must be said of each alignment, worst first nothing hidden: its residual, and what it was fitted on."""
    notes = []
    anchors = {run.name: str(run.meta.get("anchors", "test")) for run in runs}
    for name, embedding in embeddings.items():
        if (alignment := embedding.alignment) is None:
            continue
        note = (
            f"{name}: embeddings of {len(alignment.mean)} nets aligned on {anchors[name]} rows, "
            f"{alignment.basis.shape[1]} components, residual {alignment.residual:.2f} on held-out anchors "
            f"({alignment.unaligned:.2f} unaligned)"
        )
        if alignment.residual > BAD_RESIDUAL:
            note += ": they do not fit; set `features.aligned_z: 0`"
        notes.append(note)
    return notes


def _aligned(experiment: Experiment, run: Run, components: int) -> Embedding:
    k = experiment.folds.k
    anchors = run.frame("anchor")
    anchor_z = run.array("anchor_z")
    # Rows stand fold by fold, each fold's in the same order of ids: what makes them the same images.
    by_net = [np.flatnonzero(anchors["fold"].to_numpy() == net) for net in range(k)]
    ids = anchors["id"].to_numpy()
    assert all((ids[rows] == ids[by_net[0]]).all() for rows in by_net), "every net embedded the same anchors"
    alignment = fit_alignment(np.stack([anchor_z[rows] for rows in by_net]), components)
    oof, z = run.frame("oof"), run.array("oof_z")
    made = np.empty((len(oof), alignment.basis.shape[1]), np.float32)
    fold = oof["fold"].to_numpy()
    for net in range(k):
        made[fold == net] = alignment.transform(z[fold == net], net)
    place = oof.set_index("id").index.get_indexer(pd.Index(experiment.table.train["id"]))
    assert (place >= 0).all(), "an image run covers every training row"
    test, test_z = run.frame("test"), run.array("test_z")
    tests = []
    for net in range(k):
        rows = np.flatnonzero(test["fold"].to_numpy() == net)
        of_net = test["id"].iloc[rows].reset_index(drop=True)
        order = of_net.reset_index().set_index("id")["index"].reindex(experiment.table.test["id"]).to_numpy(np.intp)
        tests.append(alignment.transform(test_z[rows[order]], net))
    return Embedding(made[place], tuple(tests), alignment)

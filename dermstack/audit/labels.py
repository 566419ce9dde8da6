"""Finds doubtful labels: rows whose target is contradicted by every image model and by their nearest neighbours."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from dermstack.audit.finding import Finding
from stack.experiment import Experiment
from stack.metrics.scores import Floats
from stack.predictions.joined import predictions_of, standardised
from stack.store import Run, fingerprint, read_run, row_positions_in_run, write_run

COLUMNS = ("id", "target", "doubt", "p", "neighbours", "like")
NEIGHBOURS = 20
MIN_ODDS_RATIO = 2.0  # a probability contradicts only if it changes the odds of the prevalence by this factor
_SAMPLE_PER_CLASS = 2_000  # rows of each class used to calibrate the share of positive neighbours
_CHUNK_ROWS = 512  # rows of one block of the similarity matrix

_FRAME = "second_look"
_VERSION = 1  # of the table that is kept: an earlier one is made again

EmbeddingSpace = tuple[NDArray[np.float32], NDArray[np.integer]]  # unit vectors (n, d), and the net (n,) that made each


def doubtful_labels(experiment: Experiment, runs: Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """Returns the rows whose target all level-1 ``runs`` and the nearest neighbours contradict, most doubtful first.

    Columns: id; target; doubt, the distance of the target from the mean of all probabilities, 0 to 1; p, the mean over
    the runs; neighbours, the share of positives among the NEIGHBOURS nearest rows (NaN if no run has embeddings); like,
    the id of the nearest row with the other target; p_<run> for each run. Empty if no run is given.

    Each run, and the share of positive neighbours, gives a score for a row without using its split_group; Platt's
    method turns it into a probability. This contradicts the target if it is at least as extreme as the mean
    probability of the rows with the other target (the threshold of confident learning, Northcutt et al. 2021), changes
    the odds of the prevalence by a factor of two and, for a negative, is at least one half. Neighbours are chosen by
    cosine similarity of centred embeddings, among rows of other split_groups whose embeddings come from the same
    network (for fold nets: rows of the same fold). Hard cases are listed too: only a person can decide who is right.
    """
    if not runs:
        return pd.DataFrame(columns=list(COLUMNS))
    predictions = standardised(predictions_of(experiment, list(runs)))
    rows, train = predictions.rows, experiment.table.train
    y, group = experiment.target[rows], pd.factorize(experiment.split_group[rows])[0]
    every = np.arange(len(rows))
    opinions = {
        f"p_{name}": platt_probabilities(predictions.oof[:, run], y, every)
        for run, name in enumerate(predictions.names)
    }
    doubted = np.all([contradicts(p, y, every) for p in opinions.values()], axis=0)
    frame = pd.DataFrame({"id": train["id"].to_numpy(object)[rows], "target": y}).assign(**opinions)
    frame["p"] = np.mean(list(opinions.values()), axis=0)
    frame["neighbours"], frame["like"] = np.nan, None
    votes = []
    spaces = [_embedding_space(run, train["id"], rows) for run in runs if run.has("oof_z")]
    if spaces and doubted.any():
        sample = _sample(y, np.random.default_rng(seed))
        asked = np.union1d(np.flatnonzero(doubted), sample)
        found = [nearest_neighbours(asked, space, group, y) for space in spaces]
        share, like = np.full(len(rows), np.nan), found[-1][1]
        share[asked] = np.mean([shares for shares, _ in found], axis=0)
        vote = platt_probabilities(logit((NEIGHBOURS * share + 0.5) / (NEIGHBOURS + 1)), y, sample)
        doubted &= contradicts(vote, y, sample)
        votes = [vote]
        frame["neighbours"] = share
        frame.loc[asked[like >= 0], "like"] = frame["id"].to_numpy(object)[like[like >= 0]]
    frame["doubt"] = np.abs(y - np.mean([*opinions.values(), *votes], axis=0))
    ordered = frame[doubted].sort_values(["doubt", "id"], ascending=[False, True], ignore_index=True)
    return ordered[[*COLUMNS, *opinions]]


def kept_doubtful_labels(experiment: Experiment, runs: Sequence[Run]) -> pd.DataFrame:
    """Returns `doubtful_labels`, which are kept in ``second_look/`` until the rows or a file of a run changes."""
    folder = experiment.folder / _FRAME
    made_of = [(run.name, run.meta["files"]) for run in runs]  # in order: `like` is that of the last run
    inputs = fingerprint({"version": _VERSION, "rows": experiment.rows_fingerprint, "runs": made_of})
    if (kept := read_run(folder)) is not None and kept.meta["fingerprint"] == inputs:
        return kept.frame(_FRAME)
    found = doubtful_labels(experiment, runs)
    shutil.rmtree(folder, ignore_errors=True)  # stale; it can be computed again, so it is not set aside
    return write_run(folder, {"fingerprint": inputs}, frames={_FRAME: found}).frame(_FRAME)


def doubtful_labels_finding(doubtful: pd.DataFrame, n: int, runs: Sequence[Run]) -> Finding | None:
    """Reports how many of ``n`` rows `doubtful_labels` listed; None if there are no runs."""
    if not runs:
        return None
    named = ", ".join(run.name for run in runs)
    neighbours = any(run.has("oof_z") for run in runs)
    evidence = (
        f"{len(doubtful)} of {n} rows, {int((doubtful['target'] == 1).sum())} of them positive: contradicted by {named}"
        + (f" and the {NEIGHBOURS} nearest neighbours" if neighbours else "; no run has embeddings to find neighbours")
    )
    example = f"first {', '.join(map(str, doubtful['id'].iloc[:3]))}" if len(doubtful) else ""
    remedy = "check the images in the report; some are only hard cases, and no label was changed"
    return Finding("note", "labels worth a second look", evidence, remedy if len(doubtful) else "none", example)


def platt_probabilities(s: NDArray[np.floating], y: NDArray[np.integer], sample: NDArray[np.intp]) -> Floats:
    """Maps scores (n,) to probabilities (n,) by Platt's method, fitted on the rows in ``sample``; NaN stays NaN.

    Rows of the sample are weighted so that each class counts as in all rows.
    """
    x, known = np.asarray(s, np.float64)[:, None], np.isfinite(s)
    weight = np.bincount(y)[y[sample]] / np.bincount(y[sample])[y[sample]]
    model = LogisticRegression(C=1e6).fit(x[sample], y[sample], sample_weight=weight)
    p = np.full(len(s), np.nan)
    p[known] = model.predict_proba(x[known])[:, 1]
    return p


def contradicts(p: Floats, y: NDArray[np.integer], sample: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Returns which targets (n,) the probabilities (n,) contradict, by their mean in each class of the sample."""
    of_class = [float(p[sample[y[sample] == label]].mean()) for label in (0, 1)]
    odds = float(y.mean() / (1 - y.mean()))
    low, high = (odds * factor / (1 + odds * factor) for factor in (1 / MIN_ODDS_RATIO, MIN_ODDS_RATIO))
    found: NDArray[np.bool_] = np.where(y == 1, p <= min(of_class[0], low), p >= max(of_class[1], high, 0.5))
    return found


def nearest_neighbours(
    asked: NDArray[np.intp], space: EmbeddingSpace, group: NDArray[np.intp], y: NDArray[np.integer]
) -> tuple[Floats, NDArray[np.intp]]:
    """Returns for each row ``asked`` the share of positives among its neighbours, and the nearest of the other target.

    Rows of the same group and of other nets are excluded; -1 if no row of the other target remains.
    """
    z, net = space
    share, like = np.full(len(asked), np.nan), np.full(len(asked), -1)
    for one in np.unique(net[asked]):
        members = np.flatnonzero(net == one)
        of_net = np.flatnonzero(net[asked] == one)
        for first in range(0, len(of_net), _CHUNK_ROWS):
            places = of_net[first : first + _CHUNK_ROWS]
            some = asked[places]
            near = z[some] @ z[members].T
            near[group[some][:, None] == group[members]] = -np.inf
            k = min(NEIGHBOURS, len(members) - 1)
            closest = np.argpartition(-near, k - 1, axis=1)[:, :k]
            counts = np.isfinite(np.take_along_axis(near, closest, axis=1))
            positive = (y[members][closest] == 1) & counts
            share[places] = positive.sum(axis=1) / np.maximum(counts.sum(axis=1), 1)
            near[y[some][:, None] == y[members]] = -np.inf
            best = near.argmax(axis=1)
            there = np.isfinite(near[np.arange(len(some)), best])
            like[places] = np.where(there, members[best], -1)
    return share, like


def _sample(y: NDArray[np.integer], rng: np.random.Generator) -> NDArray[np.intp]:
    return np.concatenate([rng.permutation(np.flatnonzero(y == label))[:_SAMPLE_PER_CLASS] for label in (0, 1)])


def _embedding_space(run: Run, ids: pd.Series, rows: NDArray[np.intp]) -> EmbeddingSpace:
    """Returns the run's embeddings of these table rows, centred within each net; a frozen backbone is a single net."""
    oof = run.frame("oof")
    place = row_positions_in_run(run, oof["id"], ids, "oof")[rows]
    z = np.asarray(run.array("oof_z")[place], np.float32)
    net = np.zeros(len(rows), np.intp) if run.meta["kind"] == "frozen" else oof["fold"].to_numpy(np.intp)[place]
    for one in np.unique(net):
        z[net == one] -= z[net == one].mean(axis=0)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12), net

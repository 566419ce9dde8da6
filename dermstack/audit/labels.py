"""Labels worth a second look: rows whose target every image model and the most alike pictures contradict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit
from sklearn.linear_model import LogisticRegression

from dermstack.audit.finding import Finding
from stack.experiment import Experiment
from stack.predictions import predictions_of, standardised
from stack.store import Run, row_positions_in_run

COLUMNS = ("id", "target", "doubt", "p", "neighbours", "like")
NEIGHBOURS = 20
MIN_ODDS_RATIO = 2.0  # times the odds of the prevalence: an opinion that moves them less is none
_SAMPLE_PER_CLASS = 2_000  # rows of each class from which it is learned what neighbours tell
_CHUNK_ROWS = 512  # rows of a distance matrix

Floats = NDArray[np.float64]
EmbeddingSpace = tuple[NDArray[np.float32], NDArray[np.integer]]  # directions (n, d), and the net (n,) that made each


def doubtful_labels(experiment: Experiment, runs: Sequence[Run], *, seed: int = 0) -> pd.DataFrame:
    """Rows whose target each of the level-1 ``runs`` and the nearest neighbours contradict, the most doubtful first.

    Columns: id; target; doubt, how far the target is from the mean of all opinions, 0 to 1; p, the runs' mean;
    neighbours, the share of positives among the NEIGHBOURS nearest (NaN where no run has embeddings); like, the id of
    the nearest one with the other target; p_<run> of each. No row where no run is given.

    An opinion is a calibrated probability of what did not see the row's split_group. It contradicts a target where it
    speaks for the other one as loudly as it does, in the mean, for rows of that one (the threshold of confident
    learning, Northcutt et al. 2021), doubles the odds of the prevalence and, against a negative, is above one half.
    Neighbours are those by cosine of centred embeddings among rows of other split_groups that the same network saw: of
    fold nets, rows of the same fold. Hard cases look like this too: who is right only a person can say.
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


def doubtful_labels_finding(doubtful: pd.DataFrame, n: int, runs: Sequence[Run]) -> Finding | None:
    """How many of ``n`` rows `second_look` has listed; None where there was no run to ask."""
    if not runs:
        return None
    named = ", ".join(run.name for run in runs)
    neighbours = any(run.has("oof_z") for run in runs)
    evidence = (
        f"{len(doubtful)} of {n} rows, {int((doubtful['target'] == 1).sum())} of them positive: contradicted by {named}"
        + (f" and the {NEIGHBOURS} nearest neighbours" if neighbours else "; no run has embeddings to find neighbours")
    )
    example = f"first {', '.join(map(str, doubtful['id'].iloc[:3]))}" if len(doubtful) else ""
    remedy = "look at the pictures in the report; hard cases look like this too, and nothing is changed here"
    return Finding("note", "labels worth a second look", evidence, remedy if len(doubtful) else "none", example)


def platt_probabilities(s: NDArray[np.floating], y: NDArray[np.integer], sample: NDArray[np.intp]) -> Floats:
    """Probabilities (n,) of scores (n,), NaN where these are, by Platt's map of the rows in ``sample``.

    Where the sample holds fewer rows of a class than there are, each counts for as many.
    """
    x, known = np.asarray(s, np.float64)[:, None], np.isfinite(s)
    weight = np.bincount(y)[y[sample]] / np.bincount(y[sample])[y[sample]]
    model = LogisticRegression(C=1e6).fit(x[sample], y[sample], sample_weight=weight)
    p = np.full(len(s), np.nan)
    p[known] = model.predict_proba(x[known])[:, 1]
    return p


def contradicts(p: Floats, y: NDArray[np.integer], sample: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Which targets (n,) an opinion (n,) contradicts, by what it says in the mean of each class of the sample."""
    of_class = [float(p[sample[y[sample] == label]].mean()) for label in (0, 1)]
    odds = float(y.mean() / (1 - y.mean()))
    low, high = (odds * factor / (1 + odds * factor) for factor in (1 / MIN_ODDS_RATIO, MIN_ODDS_RATIO))
    found: NDArray[np.bool_] = np.where(y == 1, p <= min(of_class[0], low), p >= max(of_class[1], high, 0.5))
    return found


def nearest_neighbours(
    asked: NDArray[np.intp], space: EmbeddingSpace, group: NDArray[np.intp], y: NDArray[np.integer]
) -> tuple[Floats, NDArray[np.intp]]:
    """Of each row asked for: the share of positives among its nearest rows, and the nearest of the other target.

    Rows of the same group, and of other nets, don't count; -1 where no row of the other target does.
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
    """The run's embeddings of these table rows, centred within each net; of a frozen backbone there is one."""
    oof = run.frame("oof")
    place = row_positions_in_run(run, oof["id"], ids, "oof")[rows]
    z = np.asarray(run.array("oof_z")[place], np.float32)
    net = np.zeros(len(rows), np.intp) if run.meta["kind"] == "frozen" else oof["fold"].to_numpy(np.intp)[place]
    for one in np.unique(net):
        z[net == one] -= z[net == one].mean(axis=0)
    return z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12), net

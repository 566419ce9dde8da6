"""Joins the predictions and embeddings of runs for level 2: logits standardised, embeddings of fold nets aligned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import StoreError
from stack.experiment import Experiment
from stack.predictions.one_share import shift_to_one_share
from stack.predictions.ranks import AVERAGED, net_moments
from stack.source_folds import torn_units
from stack.store import Run, row_positions_in_run
from tabular.embeddings import Alignment, fit_alignment

ALIGNED_COMPONENTS = 64  # components of an aligned embedding that is only used for distances within the group
BAD_RESIDUAL = 0.5  # residual above which an alignment is reported as bad: half of the spread is not shared


@dataclass(frozen=True)
class Predictions:
    """Predictions of several runs, joined by id: out-of-fold for training rows, of each fold net for test rows."""

    names: tuple[str, ...]
    rows: NDArray[np.intp]  # the table rows that every run covers: all but the declared exclusions
    oof: NDArray[np.float32]  # (rows, runs) logits
    nets: NDArray[np.int8]  # (rows, runs) fold net that made each logit
    test: NDArray[np.float32]  # (folds, test rows, runs) logits
    test_nets: NDArray[np.int8]  # (folds, runs) fold net that made the test logits, or AVERAGED
    groups: NDArray[np.object_] | None = None  # (rows,) split group of each row; none: unknown
    # (rows, runs) logits of each row without the other rows of its group, for probes; none: as `oof`
    alone: NDArray[np.float32] | None = None

    @property
    def p(self) -> NDArray[np.float64]:
        """The out-of-fold predictions as probabilities, (rows, runs)."""
        made: NDArray[np.float64] = expit(self.oof.astype(np.float64))
        return made


def predictions_of(experiment: Experiment, runs: list[Run]) -> Predictions:
    """Calls `read_predictions` with the experiment's rows and folds."""
    table = experiment.table
    read = read_predictions(runs, table.train["id"], table.test["id"], folds=experiment.folds.k)
    if experiment.left_out is not None:
        kept = ~experiment.left_out[read.rows]
        read = replace(read, rows=read.rows[kept], oof=read.oof[kept], nets=read.nets[kept])
    if experiment.copy_of is not None:
        read = _on_one_scale_by_source(read, experiment.table.train["source"].to_numpy(object))
    if experiment.at_one_share:
        for run, column in zip(runs, read.oof.T, strict=True):
            if (shift := shift_to_one_share(experiment, run)) is not None:
                column += shift[read.rows]
    return replace(read, groups=experiment.split_group[read.rows])


def _on_one_scale_by_source(predictions: Predictions, source: NDArray[np.object_]) -> Predictions:
    """Returns predictions in which nets that each hold out whole sources (n,) count as one net, so share one scale.

    A scale or a rank of each net would be one of each source: it would take away how much more suspicious the images of
    one source are than those of another, which the net of a new source keeps. On HAM10000 the AUC over all sources of a
    blend of one run was 0.765 with ranks by net, that of the run itself 0.836.
    """
    nets, test_nets = predictions.nets.copy(), predictions.test_nets.copy()
    for run in range(len(predictions.names)):
        if not torn_units(source[predictions.rows], nets[:, run]):
            nets[:, run], test_nets[:, run] = 0, 0
    return replace(predictions, nets=nets, test_nets=test_nets)


def read_predictions(
    runs: list[Run], train_ids: pd.Series[str], test_ids: pd.Series[str], *, folds: int
) -> Predictions:
    """Reads runs and joins them by id.

    Raises StoreError for extra or duplicated ids, and for missing ids that are not declared as excluded.
    """
    if not runs:  # a model of the table alone
        n, m = len(train_ids), len(test_ids)
        nothing = np.empty((n, 0), np.float32)
        return Predictions(
            (), np.arange(n), nothing, nothing.astype(np.int8), np.empty((folds, m, 0), np.float32),
            np.empty((folds, 0), np.int8),
        )  # fmt: skip
    covered = np.ones(len(train_ids), bool)
    oofs = []
    for run in runs:
        oof, mask = _in_table_order(run, train_ids)
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


Scales = dict[str, dict[int, tuple[float, float]]]  # (mean, spread) by run and by net of the run, or AVERAGED


def net_scales(predictions: Predictions) -> Scales:
    """Returns mean and spread of each net's out-of-fold logits; AVERAGED has the means over nets. Uses no targets.

    Where the groups of the rows are known, nets that differ no more than their rows do share one scale (`net_moments`).
    """
    return {
        name: net_moments(predictions.oof[:, run], predictions.nets[:, run], predictions.groups)
        for run, name in enumerate(predictions.names)
    }


def stored_scales(stacker: Run) -> Scales:
    """Returns the scales that standardised the level-1 logits when the stacker was fitted."""
    return {
        run: {int(net): (float(mean), float(spread)) for net, (mean, spread) in of_nets.items()}
        for run, of_nets in stacker.meta["scales"].items()
    }


def standardised(predictions: Predictions, scales: Scales | None = None) -> Predictions:
    """Standardises each logit with the mean and spread of the net that made it (`net_scales`).

    Fold nets differ in scale, and a tree cannot distinguish a confident net from a risky lesion. Averaged test
    predictions, and those of a net without out-of-fold rows, are standardised with the means over nets.
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
class Embedding:
    """Embeddings of one run: out-of-fold in table order, and of the test rows by each fold net."""

    oof: NDArray[np.floating]  # (n, d), or aligned components (n, r)
    test: tuple[NDArray[np.floating], ...]  # (test rows, d or r) for each fold net; one for all where frozen
    alignment: Alignment | None  # None: embeddings of one frozen backbone, which each fold reduces by itself

    def test_of(self, fold: int) -> NDArray[np.floating]:
        """Returns the test embeddings (test rows, d or r) of net ``fold``."""
        return self.test[fold] if self.alignment else self.test[0]


def read_embeddings(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Embedding]:
    """Reads the embeddings of every run whose embeddings the config's features use, by name."""
    features = experiment.config.all_features
    taken = {}
    for run in runs:
        if run.meta["kind"] == "frozen" and (features.frozen_z or features.neighbours):
            taken[run.name] = frozen_embedding(experiment, run)
        elif run.meta["kind"] == "image" and (features.aligned_z or features.neighbours):
            taken[run.name] = _aligned(experiment, run, features.aligned_z or ALIGNED_COMPONENTS)
    return taken


def alignment_notes(embeddings: Mapping[str, Embedding], runs: Sequence[Run]) -> list[tuple[str, bool]]:
    """Returns for each alignment a text with its residual and anchors, and whether the residual is acceptable."""
    notes = []
    anchors = {run.name: str(run.meta.get("anchors", "test")) for run in runs}
    for name, embedding in embeddings.items():
        if (alignment := embedding.alignment) is None:
            continue
        fits = alignment.residual <= BAD_RESIDUAL
        note = (
            f"{name}: embeddings of {len(alignment.mean)} nets aligned on {anchors[name]} rows, "
            f"{alignment.components} components, residual {alignment.residual:.2f} on held-out anchors "
            f"({alignment.unaligned:.2f} unaligned){'' if fits else ': the fit is bad, set `features.aligned_z: 0`'}"
        )
        notes.append((note, fits))
    return notes


def frozen_embedding(experiment: Experiment, run: Run) -> Embedding:
    """Reads the embeddings of a frozen run: one z for each image, the same for every fold."""
    oof, test = run.frame("oof"), run.frame("test")
    train = _embedding_rows(run, oof, experiment.table.train["id"], "oof")
    once = _test_embedding_rows(run, test[test["fold"] == 0], experiment.table.test["id"])
    return Embedding(_rows_of(run.array("oof_z"), train), (_rows_of(run.array("test_z"), once),), None)


def _rows_of(mapped: NDArray[np.float16], rows: NDArray[np.intp]) -> NDArray[np.float16]:
    """Returns these rows of a file that is mapped into memory; the file itself where they are all of it, in order.

    A worker process maps it then too, instead of getting a copy of up to gigabytes.
    """
    return mapped if np.array_equal(rows, np.arange(len(mapped))) else mapped[rows]


# Alignments of this process, by the anchors that they were fitted to: the stackers, the probes and the importances of
# one command need the same.
_alignments: dict[tuple[str, ...], Alignment] = {}
_KEPT_ALIGNMENTS = 32
_ANCHOR_FILES = ("anchor.parquet", "anchor_z.npy")


def fit_alignments(experiment: Experiment, runs: Sequence[Run]) -> None:
    """Fits the alignments that stackers need of these runs, which `read_embeddings` then finds."""
    features, stackers = experiment.config.all_features, experiment.config.stackers
    for run in runs if any(stacker.enabled for stacker in stackers) else ():
        if run.meta["kind"] == "image" and (features.aligned_z or features.neighbours):
            _alignment_of(run, features.aligned_z or ALIGNED_COMPONENTS)


def _alignment_of(run: Run, components: int) -> Alignment:
    """Returns the alignment of a run's nets on its anchors, cut to ``components``; fits it once in this process."""
    files: tuple[str, ...] = tuple(str(run.meta["files"].get(file)) for file in _ANCHOR_FILES)
    key = (str(run.folder), *files, str(components))
    if (alignment := _alignments.get(key)) is None:
        anchors = run.frame("anchor")
        net_of, anchor_z = anchors["fold"].to_numpy(), run.array("anchor_z")
        first = anchors["id"].reset_index(drop=True)[net_of == 0]
        by_net = []
        for net in range(int(net_of.max()) + 1):
            rows = np.flatnonzero(net_of == net)
            by_net.append(rows[_embedding_rows(run, anchors.iloc[rows], first, "anchor")])
        alignment = fit_alignment(np.stack([anchor_z[rows] for rows in by_net]), components)
        if len(_alignments) >= _KEPT_ALIGNMENTS:
            _alignments.clear()
        _alignments[key] = alignment
    return alignment


def _aligned(experiment: Experiment, run: Run, components: int) -> Embedding:
    """Reads the embeddings of a trained run: those of its nets, aligned on the anchors and cut to ``components``."""
    alignment = _alignment_of(run, components)
    k = len(alignment.mean)  # nets of the run: level 2 may have other folds (leave-source-out)
    oof, z = run.frame("oof"), run.array("oof_z")
    made = np.empty((len(oof), alignment.components), np.float32)
    fold = oof["fold"].to_numpy()
    for net in range(k):
        made[fold == net] = alignment.transform(z[fold == net], net)
    test, test_z = run.frame("test"), run.array("test_z")
    tests = []
    for net in range(k):
        rows = np.flatnonzero(test["fold"].to_numpy() == net)
        order = _test_embedding_rows(run, test.iloc[rows], experiment.table.test["id"])
        tests.append(alignment.transform(test_z[rows[order]], net))
    return Embedding(made[_embedding_rows(run, oof, experiment.table.train["id"], "oof")], tuple(tests), alignment)


def _test_embedding_rows(run: Run, frame: pd.DataFrame, ids: pd.Series[str]) -> NDArray[np.intp]:
    """Returns `_embedding_rows` of test rows; none where none are wanted, as by leave-source-out."""
    return _embedding_rows(run, frame, ids, "test") if len(ids) else np.empty(0, np.intp)


def _embedding_rows(run: Run, frame: pd.DataFrame, ids: pd.Series[str], part: str) -> NDArray[np.intp]:
    """Returns the position of each of ``ids`` in the frame. Raises StoreError for an id without embedding."""
    positions = row_positions_in_run(run, frame["id"], ids, part)
    if (positions < 0).any():
        raise StoreError(
            f"{run.folder}/{part}.parquet lacks {(positions < 0).sum()} of {len(ids)} rows, so they have no embedding: "
            "rebuild the run"
        )
    return positions


def _in_table_order(run: Run, ids: pd.Series[str]) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """Returns the run's out-of-fold rows in the order of ``ids``, and a mask of the ids that it covers.

    The rows of other ids are meaningless.
    """
    oof = run.frame("oof")
    positions = row_positions_in_run(run, oof["id"], ids, "oof")
    covered = positions >= 0
    declared = run.meta.get("excluded", 0)
    if (~covered).sum() != declared:
        raise StoreError(
            f"{run.folder}: {(~covered).sum()} of {len(ids)} training rows have no prediction, but {declared} are "
            "declared: import the run again with `--exclude` and the first number, or rebuild it"
        )
    return oof.iloc[positions], covered


def _test_logits(run: Run, ids: pd.Series[str], folds: int) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
    """Returns the test logits (folds, rows) of each fold net and the nets (folds,).

    Averaged predictions are repeated for every fold, with AVERAGED as their net.
    """
    test = run.frame("test")
    if run.meta.get("foreign_folds"):  # its nets do not match our folds: each fold gets their mean
        test = test.groupby("id", sort=False, as_index=False)["logit"].mean().assign(fold=AVERAGED)
    by_net = {int(net): test[test["fold"] == net] for net in test["fold"].unique()}
    expected = {AVERAGED} if AVERAGED in by_net else set(range(folds))
    if len(ids) and set(by_net) != expected:
        raise StoreError(
            f"{run.folder}: test predictions are of the nets {sorted(by_net)}, but {sorted(expected)} are expected: "
            "make the run again"
        )
    logits = np.empty((folds, len(ids)), np.float32)
    nets = np.array([AVERAGED if AVERAGED in by_net else k for k in range(folds)], np.int8)
    for k in range(folds if len(ids) else 0):
        frame = by_net[int(nets[k])]
        positions = row_positions_in_run(run, frame["id"], ids, "test")
        if (positions < 0).any():
            raise StoreError(
                f"{run.folder}: {(positions < 0).sum()} of {len(ids)} test rows have no prediction of net {nets[k]}: "
                "make the run again"
            )
        logits[k] = frame["logit"].to_numpy(np.float32)[positions]
    return logits, nets

"""Infers the folds of out-of-fold predictions whose file does not say them, from the order of rows and from scales."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from stack.metrics.intervals import midranks
from stack.metrics.scores import Floats

Ints = NDArray[np.intp]
Origin = Literal["row order", "scales", ""]

FEWEST_BLOCKS, MOST_BLOCKS = 3, 20  # blocks of rows that are taken for folds: two may be two tables
LEAST_ROWS = 20  # rows of each block
SPAN = 0.8  # of the table that each block reaches over: parts of a table that follow each other reach over little
SIGNIFICANCE = 0.001  # of a match with known folds, over all of them together
_SCALE_DRAWS = 2  # of the test of one run's scales, in units of 1 / SIGNIFICANCE
_DRAWS = 5  # for each known partition, in units of 1 / SIGNIFICANCE
_ROWS_DIFFER = 0.01  # p-value below which the rows of known folds differ in their targets: then scales show no nets


@dataclass(frozen=True)
class Inferred:
    """The folds (n,) of a file's rows, how they were found and, of known folds that fit, the name; None: not found."""

    fold: Ints | None
    origin: Origin = ""
    of: str = ""
    p: float = float("nan")  # p-value of the match with known folds


def infer_folds(
    place: Ints,
    ids: pd.Series,
    values: Floats,
    y: NDArray[np.int8],
    group: Ints,
    known: Mapping[str, Ints],
    *,
    seed: int = 0,
) -> Inferred:
    """Infers the fold of each row (n,) of a file in its order; ``place`` is the row's number in the table of labels.

    Pipelines that predict fold by fold write the rows of one fold after those of another, each in the order of the
    table or of the ids: `folds_of_blocks`. Else the predictions of the nets of ``known`` folds, such as those of
    another file, may differ in scale by more than their rows do: `matching_folds`. Where neither is so, nothing in the
    file shows which net predicted a row.
    """
    by_id = pd.Series(ids.to_numpy()).rank(method="first").to_numpy().astype(np.intp)
    for order in (place, by_id):
        fold = folds_of_blocks(order, group)
        if fold is not None:
            return Inferred(fold, "row order")
    return matching_folds(values, y, group, known, seed=seed)


def folds_of_blocks(order: Ints, group: Ints) -> Ints | None:
    """Returns the block of each row (n,) where the rows are blocks that each rise in ``order``; None where not.

    Blocks are taken for folds if there are 3 to 20 of similar size, each reaching over most of the rows, with no group
    in two of them. A random order of n rows has about n / 2 blocks.
    """
    starts = np.flatnonzero(np.diff(order) < 0) + 1
    blocks = len(starts) + 1
    if not FEWEST_BLOCKS <= blocks <= MOST_BLOCKS:
        return None
    sizes = np.diff([0, *starts, len(order)])
    if sizes.min() < max(LEAST_ROWS, len(order) / blocks / 3) or sizes.max() > 3 * len(order) / blocks:
        return None
    spans = [np.ptp(part) for part in np.split(order, starts)]
    if min(spans) < SPAN * np.ptp(order):
        return None
    fold: Ints = np.repeat(np.arange(blocks), sizes)
    return None if groups_torn(fold, group) else fold


def matching_folds(
    values: Floats, y: NDArray[np.int8], group: Ints, known: Mapping[str, Ints], *, seed: int = 0
) -> Inferred:
    """Returns the ``known`` folds (n,) between which the predictions (n,) differ most in location and spread.

    Tested by permuting the folds over groups, separately for groups with and without positives, at `SIGNIFICANCE` for
    all known folds together. Folds that split a group, and those whose targets differ by more than chance, are left
    out: the latter's rows differ, so that their predictions do whichever nets made them.
    """
    rng, draws = np.random.default_rng(seed), int(_DRAWS * max(len(known), 1) / SIGNIFICANCE)
    columns = _location_and_spread(values)
    best = Inferred(None)
    for name, fold in known.items():
        if groups_torn(fold, group) or len(np.unique(fold)) < 2:
            continue
        if _permutation_p(y[:, None].astype(np.float64), fold, group, None, rng, draws) < _ROWS_DIFFER:
            continue
        p = _permutation_p(columns, fold, group, y, rng, draws)
        if p < SIGNIFICANCE / len(known) and not p >= best.p:
            best = Inferred(np.unique(fold, return_inverse=True)[1], "scales", name, p)
    return best


def scale_differences_p(values: Floats, y: NDArray[np.int8], group: Ints, fold: Ints, *, seed: int = 0) -> float:
    """Tests whether predictions (n,) differ between folds in location or spread by more than their rows: p-value.

    The folds are permuted over groups, separately for groups with and without positives, so that few groups of many
    rows cause no alarm, as they do where the variance between nets is compared with an estimate of that of rows.
    """
    rng, draws = np.random.default_rng(seed), int(_SCALE_DRAWS / SIGNIFICANCE)
    return _permutation_p(_location_and_spread(values), fold, group, y, rng, draws)


def _location_and_spread(values: Floats) -> Floats:
    """Returns normal scores of the ranks of values (n,) and their squares: (n, 2)."""
    score = ndtri((midranks(values) - 0.5) / len(values))
    return np.column_stack([score, score**2])


def groups_torn(fold: Ints, group: Ints) -> int:
    """Returns the number of groups whose rows (n,) are in more than one fold."""
    pairs = np.unique(np.column_stack([group, fold]), axis=0)
    return int((np.unique(pairs[:, 0], return_counts=True)[1] > 1).sum())


def _permutation_p(
    columns: Floats, fold: Ints, group: Ints, y: NDArray[np.int8] | None, rng: np.random.Generator, draws: int
) -> float:
    """Returns the p-value of the differences between folds in the means of ``columns`` (n, c), permuted over groups."""
    codes = np.unique(group, return_inverse=True)[1]
    n_groups = int(codes.max()) + 1
    centred = (columns - columns.mean(axis=0)) / np.maximum(columns.std(axis=0), 1e-12)
    sums = np.stack([np.bincount(codes, column, n_groups) for column in centred.T], axis=1)
    sizes = np.bincount(codes, minlength=n_groups)
    first = np.unique(codes, return_index=True)[1]
    label = np.unique(fold, return_inverse=True)[1][first]
    k = int(label.max()) + 1
    stratum = np.zeros(n_groups, np.intp) if y is None else (np.bincount(codes, y, n_groups) > 0).astype(np.intp)
    members = [np.flatnonzero(stratum == number) for number in np.unique(stratum)]

    def statistic(of: Ints) -> float:
        rows = np.maximum(np.bincount(of, sizes, k), 1)
        return float(sum((np.bincount(of, column, k) ** 2 / rows).sum() for column in sums.T))

    found = statistic(label)
    least = int(np.ceil(draws * _ROWS_DIFFER)) + 1  # as many draws above the found value: the p-value is not small
    above = drawn_so_far = 0
    while drawn_so_far < draws and above < least:
        drawn = label.copy()
        for rows in members:
            drawn[rows] = rng.permutation(label[rows])
        above += statistic(drawn) >= found - 1e-12
        drawn_so_far += 1
    return (above + 1) / (drawn_so_far + 1)

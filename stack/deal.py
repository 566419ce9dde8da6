"""Whole groups dealt to folds: balanced in rows and positives, and where asked in group sizes and ages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from stack.errors import DataError

Stratum = Literal["group_size", "age"]

DRAWS = 20
SPREAD = 1.10  # of the best draw's
AGE_BAND = 20  # years
AGE_BANDS = 5  # the last is open; the missing are a band of their own

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Hand:
    """The groups to be dealt: ``codes`` (n,) is the group of each row, ``counts`` (groups, c) what each one brings.

    Its first two columns are rows and positives, the rest groups of each size band and rows of each age band.
    """

    codes: NDArray[np.intp]
    counts: Ints


def hand(
    target: ArrayLike, split_group: ArrayLike, *, stratify: tuple[Stratum, ...] = (), age: ArrayLike | None = None
) -> Hand:
    """Of rows with ``target`` 0/1, ``split_group`` and, to stratify by it, ``age`` in years: (n,) each, NaN unknown."""
    codes, names = pd.factorize(np.asarray(split_group, dtype=object), sort=True)

    def tally(rows: NDArray[np.bool_]) -> Ints:
        return np.bincount(codes[rows], minlength=len(names)).astype(np.int64)

    rows = tally(np.ones(len(codes), bool))
    columns = [rows, tally(np.asarray(target) == 1)]
    if "group_size" in stratify:
        band = np.log2(rows).astype(int)  # 1, 2–3, 4–7, 8–15, …: sizes grow by factors
        columns += [(band == value).astype(np.int64) for value in np.unique(band)]
    if "age" in stratify:
        known = np.asarray(age, dtype=np.float64)
        band = np.where(np.isnan(known), AGE_BANDS, np.clip(np.nan_to_num(known) // AGE_BAND, 0, AGE_BANDS - 1))
        columns += [tally(band == value) for value in np.unique(band)]
    return Hand(codes, np.stack(columns, axis=1))


def deal_evenly(cards: Hand, *, k: int, seed: int) -> NDArray[np.int8]:
    """The fold (n,) of each row, its spread of prevalence within a tenth, or one positive, of the best of 20 draws.

    The draw of ``seed`` itself where it is as even as that; else the best. Raises DataError where fewer than k groups
    hold a class.
    """
    fold = deal(cards, k=k, seed=seed)
    own, one_positive = prevalence_spread(cards, fold), 1 / np.bincount(fold[cards.codes]).min()
    if own > one_positive:  # closer no draw can be asked to come
        others = [deal(cards, k=k, seed=seed + 1 + draw) for draw in range(DRAWS)]
        spreads = [prevalence_spread(cards, other) for other in others]
        best = int(np.argmin(spreads))
        if own > SPREAD * spreads[best] + one_positive:
            fold = others[best]
    return fold[cards.codes].astype(np.int8)


def prevalence_spread(cards: Hand, fold: NDArray[np.intp]) -> float:
    """The largest prevalence of a fold less the smallest; ``fold`` (groups,)."""
    rows, positives = (np.bincount(fold, cards.counts[:, column]) for column in (0, 1))
    return float(np.ptp(positives / rows))


def deal(cards: Hand, *, k: int, seed: int) -> NDArray[np.intp]:
    """The fold (groups,) of each group: equal shares of groups of the same kind, the rest greedily, hardest first.

    Of m groups that bring the same every fold gets m // k: exact balance without a loop over the groups. What is left
    of each kind (fewer than k) goes, hardest first, where the squared load grows least.
    """
    counts = cards.counts
    rows, positives = counts[:, 0], counts[:, 1]
    _check_enough(rows, positives, k)
    share = counts * (k / counts.sum(axis=0, dtype=np.float64))  # (groups, c): 1.0 is a fold's fair load

    rng = np.random.default_rng(seed)
    order = rng.permutation(len(counts))  # by sorted name, then shuffled: the order of the rows leaves no trace
    besides = tuple(counts[order, column] for column in range(2, counts.shape[1]))
    order = order[
        np.lexsort((*besides, -rows[order], -positives[order], -share[order, :2].max(axis=1)))
    ]  # hardest first
    fold = np.full(len(counts), -1, dtype=np.int64)
    load = np.zeros((k, counts.shape[1]))

    for number, groups in enumerate(_both_classes(order, rows, positives, k)):
        fold[groups] = number
        load[number] += share[groups].sum(axis=0)

    left = order[fold[order] < 0]
    changes = (np.diff(counts[left], axis=0) != 0).any(axis=1)
    remainder: list[int] = []
    for kind in np.split(left, np.flatnonzero(changes) + 1):
        dealt = len(kind) // k * k
        fold[kind[:dealt]] = np.arange(dealt) % k
        load += share[kind[:dealt]].sum(axis=0) / k
        remainder.extend(kind[dealt:])
    for group in remainder:
        # load² grows by 2·load·share + share²: the fold with the least load·share grows least
        best = int(np.argmin(load @ share[group]))
        fold[group] = best
        load[best] += share[group]
    return rng.permutation(k)[fold]


def _both_classes(order: NDArray[np.intp], rows: Ints, positives: Ints, k: int) -> list[list[int]]:
    """Choose for each fold the easiest groups that give it both classes, so that no fold ends with one only.

    A mixed group serves a fold alone; the other folds get a pure one of each class. Enough exist: at least k
    groups hold positives and at least k hold negatives.
    """
    easiest = order[::-1]
    mixed = easiest[(positives[easiest] > 0) & (positives[easiest] < rows[easiest])][:k]
    others = k - len(mixed)
    positive = easiest[positives[easiest] == rows[easiest]][:others]
    negative = easiest[positives[easiest] == 0][:others]
    return [[int(g)] for g in mixed] + [[int(p), int(n)] for p, n in zip(positive, negative, strict=True)]


def _check_enough(rows: Ints, positives: Ints, k: int) -> None:
    for word, holding in (("positives", positives > 0), ("negatives", positives < rows)):
        if holding.sum() < k:
            raise DataError(
                f"{holding.sum()} groups hold {word}, fewer than the {k} folds: "
                "set fewer folds, or check columns.group and the duplicates"
            )

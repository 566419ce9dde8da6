"""Covering arrays: few rows of settings in which every pair of values of two settings occurs together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

Row = dict[str, object]
_CANDIDATES = 25  # random possible completions of each row, of which the best is kept
_DRAWS = 500  # tries to find them


def pairs_in(row: Mapping[str, object], places: Mapping[str, Sequence[object]]) -> set[tuple[str, int, str, int]]:
    """The pairs of (setting, position of its value) that a row holds."""
    at = {key: list(values).index(row[key]) for key, values in places.items()}
    return {(a, at[a], b, at[b]) for a, b in combinations(places, 2)}


def covering_array(
    places: Mapping[str, Sequence[object]], is_possible: Callable[[Row], bool] = lambda row: True, *, seed: int = 0
) -> tuple[list[Row], set[tuple[str, int, str, int]]]:
    """Rows that hold every pair of values (AETG: Cohen et al. 1997), and the pairs that no possible row was found for.

    A pair is asked for first, the rest of its row is drawn, and of many draws the one with most new pairs is kept.
    """
    rng = np.random.default_rng(seed)
    missing = {
        (a, i, b, j) for a, b in combinations(places, 2) for i in range(len(places[a])) for j in range(len(places[b]))
    }
    rows: list[Row] = []
    hopeless = set()
    while missing:
        wanted = min(missing)
        best: tuple[int, Row] | None = None
        tried = 0
        for _ in range(_DRAWS):
            row: Row = {key: values[int(rng.integers(len(values)))] for key, values in places.items()}
            row |= {wanted[0]: places[wanted[0]][wanted[1]], wanted[2]: places[wanted[2]][wanted[3]]}
            if is_possible(row):
                tried += 1
                new = len(pairs_in(row, places) & missing)
                if best is None or new > best[0]:
                    best = new, row
                if tried == _CANDIDATES:
                    break
        if best is None:
            hopeless.add(wanted)
            missing.discard(wanted)
        else:
            rows.append(best[1])
            missing -= pairs_in(best[1], places)
    return rows, hopeless

"""Finds codes for missing values in numeric columns: words among numbers, and isolated numbers such as -999."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from stack.draft.roles import known, number_or_word
from stack.tables.missing_codes import WORDS, isolated_codes

_MIN_NUMBERS = 0.5  # share of numbers among the known cells of a column that words turn into one of words


def numeric_codes(tables: Sequence[pd.DataFrame], columns: Iterable[str]) -> dict[str, tuple[str | float, ...]]:
    """Returns, by column, the values that look like codes for a missing one, over the rows of all ``tables``.

    A word such as `unknown` is a code in a column whose other values are numbers; a number is one where `stack` would
    warn of it (`isolated_codes`).
    """
    found: dict[str, tuple[str | float, ...]] = {}
    for column in columns:
        values = pd.concat([known(table[column]) for table in tables if column in table])
        numbers = pd.to_numeric(values, errors="coerce")
        words = list(dict.fromkeys(values[numbers.isna()]))
        if len(values) == 0 or numbers.notna().mean() < _MIN_NUMBERS or any(w.lower() not in WORDS for w in words):
            continue
        isolated = isolated_codes(numbers.to_numpy(np.float64))
        if words or isolated:
            found[column] = (*words, *(number_or_word(f"{code:.10g}") for code in isolated))
    return found

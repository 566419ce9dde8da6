"""Finds codes for missing values in numeric columns: words among numbers, and numbers such as -999."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from stack.draft.roles import known
from stack.missing_codes import MIN_ROWS, WORDS

_LOW = (-1, -9, -99, -999, -9999)  # written for "unknown" in columns without other negative numbers
_HIGH = (999, 9999, 99999)  # written for "unknown" in columns whose other numbers are less than half of it
_MIN_NUMBERS = 0.5  # share of numbers among the known cells of a column that words turn into one of words


def numeric_codes(tables: Sequence[pd.DataFrame], columns: Iterable[str]) -> dict[str, tuple[str | float, ...]]:
    """Returns, by column, the values that look like codes for a missing one, over the rows of all ``tables``.

    A word such as `unknown` is a code in a column whose other values are numbers, and -1, -99 or 999 is one where at
    least 5 rows have it and all other numbers of the column are on one side of it, far away.
    """
    found: dict[str, tuple[str | float, ...]] = {}
    for column in columns:
        values = pd.concat([known(table[column]) for table in tables if column in table])
        numbers = pd.to_numeric(values, errors="coerce")
        odd = values[numbers.isna()]
        words = list(dict.fromkeys(odd))
        if len(values) == 0 or numbers.notna().mean() < _MIN_NUMBERS or any(w.lower() not in WORDS for w in words):
            continue
        codes: list[str | float] = list(words)
        counts = numbers.dropna().value_counts()
        for code in (*_LOW, *_HIGH):
            rest = counts.index[~counts.index.isin([*_LOW, *_HIGH])]
            if code not in counts.index or counts[code] < MIN_ROWS or len(rest) < MIN_ROWS:
                continue
            if (code < 0 <= rest.min()) or (code > 0 and rest.max() < code / 2):
                codes.append(code)
        if codes:
            found[column] = tuple(codes)
    return found

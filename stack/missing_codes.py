"""Finds values that look like a code for "unknown": ages far more frequent than those near them, and words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

MAX_AGE = 120  # years: a greater age is refused when a table is read
MIN_ROWS = 5  # with such an age; fewer are not reported
MIN_SHARE = 0.02  # of the rows with an age; a rarer value is not reported
MIN_EXCESS = 5.0  # times as many rows as the most frequent of the ages near it
_NEAR = 10.0  # years
# Ages that exporters write for "unknown"; 85 and 90 are the caps of ISIC's data sets, so they are not among them.
_AGE_CODES = frozenset({0.0, 1.0, 88.0, 99.0, 100.0, 110.0, 111.0, 120.0})
_RARE_AGES = frozenset({0.0, 99.0, 110.0, 111.0, 120.0})  # in a table of a few new rows, one of these is reported
_WORDS = frozenset({
    "unknown", "unk", "not known", "undefined", "missing", "unspecified", "not specified", "not available",
    "not reported", "not recorded", "other/unknown", "?", "-", "--", ".", "-1", "-9", "99", "999", "9999",
})  # fmt: skip
_CODES_OF = {"sex": _WORDS | {"u", "x", "9"}, "site": _WORDS}


class MissingCode(NamedTuple):
    """A value of a column that looks like a code for "unknown", and the rows that hold it."""

    column: str
    value: str
    rows: int
    share: float  # of all rows of the table
    is_number: bool  # models take it as a quantity; a word is only one more category

    def __str__(self) -> str:
        return f"{self.column} {self.value} in {self.rows:,} rows ({self.share:.1%})"


def missing_codes(frame: pd.DataFrame, *, few_rows: bool = False) -> list[MissingCode]:
    """Returns the values of age, sex and site in checked rows that look like a code for "unknown".

    An age is reported if exporters use it as a code, at least 2 % of the known ages have it, and it is in five times
    as many rows as any other age within ten years. A word is reported if it says "unknown".
    With ``few_rows``, as new tables have, one row is enough for an age that hardly any patient has.
    """
    found = []
    ages = frame["age"].dropna().astype("float64")
    counts = ages.value_counts()
    for value in sorted(_AGE_CODES & set(counts.index)):
        rows = int(counts[value])
        near = counts[(np.abs(counts.index - value) <= _NEAR) & (counts.index != value)]
        excess = rows / near.max() if len(near) else np.inf
        enough = MIN_ROWS <= rows < len(ages) or (few_rows and value in _RARE_AGES)
        if enough and rows >= MIN_SHARE * len(ages) and excess >= MIN_EXCESS:
            found.append(MissingCode("age", f"{value:g}", rows, rows / len(frame), True))
    for column, codes in _CODES_OF.items():
        for word, rows in frame[column].dropna().value_counts().items():
            if str(word).strip() in codes:
                found.append(MissingCode(column, f"'{word}'", int(rows), int(rows) / len(frame), False))
    return found


def new_code_warnings(path: str, codes: list[MissingCode]) -> list[str]:
    """Returns a warning for each of these numbers in a table of new rows."""
    return [
        f"{path}: {code}: if it means 'unknown', leave these cells empty, since models take it as a number of years"
        for code in codes
    ]


def missing_code_warnings(parts: Mapping[str, pd.DataFrame]) -> list[str]:
    """Returns a warning for each age of these tables, by file, that looks like a code for "unknown"."""
    return [
        f"{path}: {code}, far more than any age near it: if it means 'unknown', leave these cells empty, since models "
        "take it as a number of years"
        for path, frame in parts.items()
        if len(frame)
        for code in missing_codes(frame)
        if code.is_number
    ]

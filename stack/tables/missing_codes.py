"""Finds values that look like a code for "unknown": ages far more frequent than others, isolated numbers, words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.listing import counted
from stack.tables.columns import NO_COLUMNS, TableColumns

MAX_AGE = 120  # years: a greater age is refused when a table is read
MIN_ROWS = 5  # with such an age; fewer are not reported
MIN_SHARE = 0.02  # of the rows with an age; a rarer value is not reported
MIN_EXCESS = 5.0  # times as many rows as the most frequent of the ages near it
_NEAR = 10.0  # years
# Ages that exporters write for "unknown"; 85 and 90 are the caps of ISIC's data sets, so they are not among them.
_AGE_CODES = frozenset({0.0, 1.0, 88.0, 99.0, 100.0, 110.0, 111.0, 120.0})
_RARE_AGES = frozenset({0.0, 99.0, 110.0, 111.0, 120.0})  # in a table of a few new rows, one of these is reported
WORDS = frozenset({
    "unknown", "unk", "not known", "undefined", "missing", "unspecified", "not specified", "not available",
    "not reported", "not recorded", "other/unknown", "?", "-", "--", ".", "-1", "-9", "99", "999", "9999",
})  # fmt: skip
# Numbers that exporters write for "unknown" into columns of any quantity.
_NUMBERS = frozenset({
    -1.0, 9.0, -9.0, *(sign * float(digit * count) for sign in (1, -1) for digit in "89" for count in range(2, 7)),
    -32768.0, 32767.0, 65535.0, -2147483648.0, 2147483647.0,
})  # fmt: skip
_MIN_OTHERS = 3  # different other values of a column in which a number can be called isolated
_MIN_VALUES = 10  # different other values of a column without negative numbers in which a negative one is odd
_MAX_LISTED = 5  # columns that a message lists for one code
_CODES_OF = {"sex": WORDS | {"u", "x", "9"}, "site": WORDS}


class MissingCode(NamedTuple):
    """A value of a column that looks like a code for "unknown", and the rows that hold it."""

    column: str
    value: str
    rows: int
    share: float  # of all rows of the table
    is_number: bool  # models take it as a quantity; a word is only one more category
    is_further: bool = False  # of a column without a role, whose name in the csv it has

    def __str__(self) -> str:
        return f"{self.column} {self.value} in {counted(self.rows, 'rows')} ({self.share:.1%})"


def missing_codes(
    frame: pd.DataFrame, *, few_rows: bool = False, columns: TableColumns = NO_COLUMNS
) -> list[MissingCode]:
    """Returns the values of age, sex, site and the further ``columns`` in checked rows that look like a code.

    An age is reported if exporters use it as a code, at least 2 % of the known ages have it, and it is in five times
    as many rows as any other age within ten years. A word is reported if it says "unknown". A number of another column
    is reported if exporters use it as a code, at least 5 rows have it and it is isolated (`isolated_codes`).
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
    for name, csv in columns.numeric.items():
        for value, rows in isolated_codes(frame[name].to_numpy(np.float64)).items():
            found.append(MissingCode(csv, f"{value:.10g}", rows, rows / len(frame), True, True))
    for name, shown in {**dict(zip(_CODES_OF, _CODES_OF, strict=True)), **columns.categorical}.items():
        for word, rows in frame[name].dropna().value_counts().items():
            if str(word).strip().casefold() in _CODES_OF.get(name, WORDS):
                further = name in columns.categorical
                found.append(MissingCode(shown, f"'{word}'", int(rows), int(rows) / len(frame), False, further))
    return found


def isolated_codes(values: NDArray[np.float64]) -> dict[float, int]:
    """Returns the codes for "unknown" among numbers (n,), NaN missing, with the number of rows that have each.

    A code lies below or above all values that are no code, at least as far from them as they extend. A negative code
    in a column of otherwise no negative value is also one if at least 2 % of the rows have it, five times as many as
    any other value but zero.
    """
    numbers, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    is_code = np.isin(numbers, list(_NUMBERS)) & (counts >= MIN_ROWS)
    if not is_code.any():
        return {}
    found: dict[float, int] = {}
    others = numbers[~is_code]
    if len(others) < _MIN_OTHERS:
        return found
    low, high = others[0], others[-1]
    most = counts[(numbers > 0) & ~is_code].max(initial=0)
    for value, rows in zip(numbers[is_code], counts[is_code], strict=True):
        is_far = max(low - value, value - high) >= high - low
        is_only_negative = value < 0 <= low and len(others) >= _MIN_VALUES
        if is_far or (is_only_negative and rows >= max(MIN_SHARE * counts.sum(), MIN_EXCESS * most)):
            found[float(value)] = int(rows)
    return found


def new_code_warnings(path: str, codes: list[MissingCode]) -> list[str]:
    """Returns a warning for each of these numbers in a table of new rows."""
    return [
        f"{path}: {text}: if it means 'unknown', leave these cells empty, since models take it as {what}"
        for text, what, _ in _together(codes)
    ]


def missing_code_warnings(parts: Mapping[str, pd.DataFrame], columns: TableColumns = NO_COLUMNS) -> list[str]:
    """Returns a warning for each number of these tables, by file, that looks like a code for "unknown"."""
    warnings = []
    for path, frame in parts.items():
        codes = [code for code in missing_codes(frame, columns=columns) if code.is_number] if len(frame) else []
        for text, what, advice in _together(codes):
            far = ", far more than any age near it" if what == _YEARS else ", far from the other values"
            warnings.append(f"{path}: {text}{far}: if it means 'unknown', {advice}, since models take it as {what}")
    return warnings


_YEARS = "a number of years"


def _together(codes: list[MissingCode]) -> list[tuple[str, str, str]]:
    """Returns for each code of age, and each code of all other columns together: text, what it counts as, advice."""
    made = []
    for code in codes:
        if not code.is_further:
            made.append((str(code), _YEARS, f"leave these cells empty or declare it ({declared([code])})"))
    for value in dict.fromkeys(code.value for code in codes if code.is_further):
        found = [code for code in codes if code.value == value and code.is_further]
        made.append((listed_codes(found), "a quantity", f"declare it, such as {declared(found)}"))
    return made


def listed_codes(codes: list[MissingCode]) -> str:
    """Returns the text of one code in several columns: those where it is most frequent, and their number."""
    first = sorted(codes, key=lambda code: -code.rows)[:_MAX_LISTED]
    more = f", … {len(codes):,} columns in all" if len(codes) > len(first) else ""
    return ", ".join(map(str, first)) + more


def declared(codes: list[MissingCode]) -> str:
    """Returns the setting that declares these codes of one column, in the form of a config."""
    return f"data.missing: {{{json.dumps(codes[0].column, ensure_ascii=False)}: [{codes[0].value}]}}"

"""Checks of the ids, groups and targets of a table; each fault is told with its rows, values and the next step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.listing import first_of
from stack.keys import MISSING_KEYS, is_ascii, matches, spelled_twice

_UNSAFE = r"^\.|\.\.|[/\\\x00-\x1f\x7f]|^\s|\s$"

# Values that exporters write into a group column for an unknown group.
SENTINELS = frozenset({"-1", "-1.0", "0", "0.0", "", "none", "unknown", "na", "nan", "null"})


def id_faults(ids: pd.Series) -> Iterable[str]:
    """Yields the faults of a column of ids: missing, repeated, spelled twice, or no name of a file."""
    missing = ids.str.strip() == ""
    if missing.any():
        yield f"{rows_text(missing)} without an id: fill in the column or remove the rows"
    doubled = ids.duplicated(keep=False) & ~missing
    if doubled.any():
        names = ids[doubled].drop_duplicates()
        yield f"{listed(names)} in more than one row ({rows_text(doubled)}): ids must be unique, keep one row of each"
    if pairs := spelled_twice(ids[~missing]):
        yield (
            f"{' and '.join(map(repr, pairs[0]))} are two spellings of one id, {len(pairs)} such pairs: ids must be "
            "unique, keep one row of each or give them other names"
        )
    unsafe = _unsafe_names(ids) & ~missing
    if unsafe.any():
        yield (
            f"{listed(ids[unsafe])} ({rows_text(unsafe)}) cannot be a file name: rename it without path separators, "
            "control characters, '..', a leading '.' or blanks at its ends"
        )


def _unsafe_names(ids: pd.Series) -> pd.Series:
    """Marks the ids that cannot be names of files, here or on other machines."""
    found = pd.Series(matches(ids, _UNSAFE), index=ids.index)
    beyond = ~is_ascii(ids)  # RE2 knows the blanks of ASCII only
    if beyond.any():
        found[beyond] |= ids[beyond].map(lambda name: re.search(_UNSAFE, name) is not None).astype(bool)
    return found


def group_faults(groups: pd.Series, *, is_train: bool) -> Iterable[str]:
    """Yields the faults of a column of groups: missing ones, and one that stands for many unknown groups."""
    missing = groups == ""
    if missing.any():
        yield f"{rows_text(missing)} without a group: fill in the column, or give each row a group of its own"
    sizes = groups[~missing].value_counts()
    is_sentinel = sizes.index.str.lower().isin(SENTINELS)
    largest = sizes[~is_sentinel].max() if (~is_sentinel).any() else 0
    n = len(groups)
    advice = "it would put unrelated rows into one fold, give each of them a group of its own"
    refused = set()
    for name, size in sizes[is_sentinel].items():
        if size > 0.05 * n and size > 5 * largest:
            refused.add(name)
            yield f"group {name!r} is in {size} of {n} rows and looks like a placeholder for 'unknown': {advice}"
    for name, size in sizes.items():
        if is_train and n > 20 and size > 0.5 * n and name not in refused:
            yield f"group {name!r} has {size} of {n} rows, more than half: {advice}, or map another column"


_BOOLEANS = {"true": "1", "false": "0", "yes": "1", "no": "0"}


def targets_of(
    values: pd.Series, path: Path, faults: list[str], positive: tuple[str, ...], *, may_be_one_class: bool
) -> NDArray[np.int8]:
    """Returns 0 and 1: for 0/1, true/false or yes/no, or, where ``positive`` is given, whether a value is one of it.

    A table that ``may_be_one_class``, as one of other patients, may have 0 and 1 instead of the words of training, and
    needs only one of the words of ``positive``; all of them elsewhere.
    """
    if may_be_one_class and positive and _are_words(positive) and _is_binary(values):
        positive = ()
    if positive:
        numbers = _is_positive(values, positive, path, faults, is_one_enough=may_be_one_class)
        bad = values.str.lower().isin(MISSING_KEYS)
        if bad.any():
            faults.append(f"{path}: {rows_text(bad)} without a target: fill in the column or remove the rows")
    else:
        lower = values.str.lower()
        known = ~lower.isin(MISSING_KEYS)
        as_booleans = bool(lower[known].isin(_BOOLEANS).all())  # a `yes` among 0 and 1 is a fault, not a boolean
        numbers = pd.to_numeric(lower.map(_BOOLEANS) if as_booleans else values, errors="coerce")
        bad = ~numbers.isin([0, 1])
        if bad.any():
            words = values[bad & ~lower.isin(MISSING_KEYS)]
            words = words[pd.to_numeric(words, errors="coerce").isna()]
            codes = sorted(set(as_numbers := pd.to_numeric(values[known], errors="coerce")))
            advice = "correct or remove the rows"
            if len(words):
                advice = (
                    "correct or remove the rows or, if words are meant, write 1 for the positive word and 0 for the "
                    "others, or name the positive WORD in the config: data.columns.target: {column: …, positive: WORD}"
                )
            elif len(codes) == 2:  # such as -1 and 1, or 1 and 2
                code = values[known][as_numbers == codes[1]].iloc[0]
                advice = (
                    "correct or remove the rows or, if the two numbers are classes, say which is positive: "
                    f"data.columns.target: {{column: …, positive: {code}}}"
                )
            faults.append(f"{path}: target {listed(values[bad])} ({rows_text(bad)}) is not 0 or 1: {advice}")
    if not bad.any() and numbers.nunique() == 1 and not may_be_one_class:
        only = int(numbers.iloc[0])
        faults.append(f"{path}: every target is {only}: both classes are needed, check columns.target")
    return numbers.where(~bad, 0).to_numpy(np.int8)


def _are_words(positive: tuple[str, ...]) -> bool:
    """Returns whether none of the values that count as positive is a number."""
    return bool(pd.to_numeric(pd.Series(positive), errors="coerce").isna().all())


def _is_binary(values: pd.Series) -> bool:
    """Returns whether the column holds 0 and 1 alone."""
    return bool(pd.to_numeric(values, errors="coerce").isin([0, 1]).all())


def _is_positive(
    values: pd.Series, positive: tuple[str, ...], path: Path, faults: list[str], *, is_one_enough: bool
) -> pd.Series:
    """Returns 1 where a value (n,) is one of ``positive``, in any case of letters, else 0.

    Words of ``positive`` that the column lacks are faults, unless it has another and ``is_one_enough``.
    """
    folded = values.str.casefold()
    found, absent = pd.Series(False, index=values.index), []
    for wanted in positive:
        is_it = folded == wanted.strip().casefold()
        if (number := pd.to_numeric(wanted, errors="coerce")) == number:
            is_it |= pd.to_numeric(values, errors="coerce") == number
        if not is_it.any():
            near = nearest(wanted, values.unique())
            absent.append(
                f"{path}: no target is {wanted!r} (columns.target.positive){near}: the column holds {listed(values)}"
            )
        found |= is_it
    if not is_one_enough or not found.any():
        faults += absent
    return found.astype(np.int64)


def rows_text(mask: pd.Series) -> str:
    """Lists the rows of the mask with the numbers of a spreadsheet, where the header is row 1."""
    numbers = np.flatnonzero(mask.to_numpy()) + 2
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    return f"rows {first_of(numbers)}"


def listed(values: pd.Series) -> str:
    """Returns the different values, the first of them in full."""
    return first_of(map(repr, values.drop_duplicates()))


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint with the known name that is most like ``name``; "" where none is."""
    near = get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""

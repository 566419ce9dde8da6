"""Checks of the ids, groups and targets of a table; each fault is told with its rows, values and the next step."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.listing import first_of
from stack.tables.keys import MISSING_KEYS, contained, is_ascii, matches, similar_words, spelled_twice, words_as_in

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
    values: pd.Series,
    path: Path,
    faults: list[str],
    positive: tuple[str, ...],
    *,
    may_be_one_class: bool,
    notes: list[str] | None = None,
) -> NDArray[np.int8]:
    """Returns 0 and 1: for 0/1, true/false or yes/no, or, where ``positive`` is given, whether a value is one of it.

    A table that ``may_be_one_class``, as one of other patients, may have 0 and 1 instead of the words of training, and
    needs only one of the words of ``positive``; all of them elsewhere. A table of words that also has 1, true or yes is
    a fault. ``notes`` gets a sentence for each word that counts as negative and looks like a positive one.
    """
    if may_be_one_class and positive and _are_words(positive) and _is_binary(values):
        positive = ()
    if positive:
        numbers = _is_positive(values, positive, path, faults, is_one_enough=may_be_one_class)
        if _are_words(positive):
            faults += _mixed_with_codes(values, numbers == 1, positive, path, may_be_codes=may_be_one_class)
        if notes is not None and _are_words(positive):
            notes += _near_misses(values[numbers == 0], positive, path)
        bad = values.str.lower().isin(MISSING_KEYS)
        if bad.any():
            faults.append(_without_target(path, bad, is_train=not may_be_one_class))
    else:
        lower = values.str.lower()
        known = ~lower.isin(MISSING_KEYS)
        as_booleans = bool(lower[known].isin(_BOOLEANS).all())  # a `yes` among 0 and 1 is a fault, not a boolean
        numbers = pd.to_numeric(lower.map(_BOOLEANS) if as_booleans else values, errors="coerce")
        bad = ~numbers.isin([0, 1])
        if bad.any() and not (bad & known).any() and known.any():
            faults.append(_without_target(path, bad, is_train=not may_be_one_class))
        elif bad.any():
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


def _without_target(path: Path, bad: pd.Series, *, is_train: bool) -> str:
    return f"{path}: {rows_text(bad)} without a target: fill in the column or remove the rows" + (
        "; if they are to be predicted, move them to a table of their own (data.test)" if is_train else ""
    )


def _are_words(positive: tuple[str, ...]) -> bool:
    """Returns whether none of the values that count as positive is a number."""
    return bool(pd.to_numeric(pd.Series(positive), errors="coerce").isna().all())


def _is_binary(values: pd.Series) -> bool:
    """Returns whether the column holds 0 and 1 alone, apart from missing values."""
    known = values[~values.str.lower().isin(MISSING_KEYS)]
    return len(known) > 0 and bool(pd.to_numeric(known, errors="coerce").isin([0, 1]).all())


def _mixed_with_codes(
    values: pd.Series, is_positive: pd.Series, positive: tuple[str, ...], path: Path, *, may_be_codes: bool
) -> list[str]:
    """Returns a fault where a column of words (n,) also has 1, true or yes, which none of ``positive`` is."""
    lower, numbers = values.str.lower(), pd.to_numeric(values, errors="coerce")
    says_yes = ((numbers == 1) | lower.isin(["true", "yes"])) & ~is_positive
    words = values[is_positive | (numbers.isna() & ~lower.isin(_BOOLEANS) & ~lower.isin(MISSING_KEYS))]
    if not says_yes.any() or words.empty:
        return []
    rewrite = "write words in all rows" + (", or 0 and 1 in all rows" if may_be_codes else "")
    return [
        f"{path}: target {listed(values[says_yes])} ({rows_text(says_yes)}) beside words such as {words.iloc[0]!r}: it "
        f"would count as negative, as columns.target.positive is {', '.join(map(repr, positive))}: {rewrite}"
    ]


def _near_misses(negative: pd.Series, positive: tuple[str, ...], path: Path) -> list[str]:
    """Returns a sentence for each of the ``negative`` values that looks like another spelling of a positive word."""
    found = []
    for word, rows in negative.value_counts(sort=False).items():
        alike = next((wanted for wanted in positive if _is_misspelled(str(word), wanted)), None)
        if alike is not None:
            found.append(
                f"{path}: target {word!r} ({rows:,} {'row' if rows == 1 else 'rows'}) counts as negative, but looks "
                f"like {alike!r} (columns.target.positive): correct the cells if this is meant"
            )
    return found


_BETWEEN = re.compile(r"(?<=\w)[\W_]+(?=\w)|_")  # between letters; marks at the end, as in `her2+`, have a meaning


def _is_misspelled(word: str, wanted: str) -> bool:
    """Returns whether ``word`` is ``wanted`` but for spaces and dashes, or for one or two letters of a long word."""
    one, other = (unicodedata.normalize("NFKC", text).casefold().strip() for text in (word, wanted))
    if _BETWEEN.sub("", one) == _BETWEEN.sub("", other):
        return True
    parts = _BETWEEN.split(one), _BETWEEN.split(other)
    if len(parts[0]) != len(parts[1]):
        return False
    return all(a == b or _are_close(a, b) for a, b in zip(*parts, strict=True))


def _are_close(one: str, other: str) -> bool:
    """Returns whether two words of five letters or more share 80 % of them in order; a prefix makes another word."""
    letters = min(sum(map(str.isalpha, word)) for word in (one, other))
    if letters < _FEW_LETTERS or abs(len(one) - len(other)) > 2 or re.findall(r"\d", one) != re.findall(r"\d", other):
        return False
    if one.endswith(other) or other.endswith(one):  # normal, abnormal
        return False
    return SequenceMatcher(None, one, other).ratio() >= _ALIKE


_FEW_LETTERS, _ALIKE = 5, 0.8  # letters of the shorter word, and the least share of letters in common


def _is_positive(
    values: pd.Series, positive: tuple[str, ...], path: Path, faults: list[str], *, is_one_enough: bool
) -> pd.Series:
    """Returns 1 where a value (n,) is one of ``positive``, in any case of letters and Unicode form, else 0.

    Words of ``positive`` that the column lacks are faults, unless it has another and ``is_one_enough``.
    """
    folded = words_as_in(values.str.casefold(), [wanted.strip().casefold() for wanted in positive])
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


def case_notes(
    frame: pd.DataFrame, shown: Mapping[str, str], path: Path, known: pd.DataFrame | None = None, of: Path | None = None
) -> list[str]:
    """Returns a note for each column in which words differ only in case or spaces, which are two categories then.

    Compares the words of ``frame``, read from ``path``, with each other, or those of them that the table ``known``,
    read from ``of``, lacks with its words. ``shown`` has the name in the csv of each column.
    """
    notes = []
    for name, csv in shown.items():
        if name not in frame or (known is not None and name not in known):
            continue
        words = frame[name].dropna()
        others = words if known is None else known[name].dropna()
        spellings = words.drop_duplicates()
        pairs = similar_words(spellings if known is None else spellings[~contained(spellings, others)], others)
        if pairs:
            (word, other), more = pairs[0], f", {len(pairs):,} such pairs" if len(pairs) > 1 else ""
            n = int((words == word).sum())
            notes.append(
                f"{path}: column {csv!r} has {word!r} ({n:,} {'row' if n == 1 else 'rows'}), which differs from "
                f"{other!r}{f' of {of}' if of else ''} only in case or spaces{more}: they count as two words; write "
                "one spelling if they are one"
            )
    return notes


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

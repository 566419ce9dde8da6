"""Reads keys (ids, groups, folds) of every table in one way: unifies certain spellings, refuses doubtful ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from decimal import Decimal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError
from stack.cells import as_text, is_rounded

MISSING_KEYS = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>"})  # what writers put for a missing value
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")  # an integer, also as a float; 007 and 1e3 are text
# Characters without a shape of their own, which exports and copies from spreadsheets or web pages leave inside a cell:
# soft hyphen, zero-width space, marks of direction, word joiner, byte order mark. Joiners of letters are kept.
_INVISIBLE = dict.fromkeys([
    0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF
])  # fmt: skip
_NO_BREAK_SPACES = dict.fromkeys([0xA0, 0x2007, 0x202F], " ")
_NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?")


def unified_keys(keys: pd.Series, what: str) -> pd.Series:
    """Returns the keys (n,) of one column with one spelling for each key; ``what`` names the column in errors.

    `17` and `17.0` are one key where all keys of the column are integers: pandas and spreadsheets write integers as
    floats where values are missing. Two Unicode forms of one text are one key, also where one has invisible characters
    (such as a byte order mark or a zero-width space) or no-break spaces. The shorter spelling is used; a key with one
    spelling stays as written. Raises DataError where `17` and `17.0` stand beside keys that are no integers,
    such as `007`, `1e3` or `P3`: they may be two keys then.
    """
    spellings = keys.drop_duplicates()
    several = _several_spellings(spellings)
    if not several:
        return keys
    numeric = [names for names in several if len({_composed(name) for name in names}) > 1]
    if numeric and (other := _first_that_is_no_integer(spellings)) is not None:
        raise DataError(
            f"{what} {' and '.join(map(repr, numeric[0]))} may be one or two, {len(numeric)} such pairs: beside "
            f"{other!r} it is not certain that they are one integer. Write one spelling in all rows if they are one, "
            "or other names if they are two"
        )
    shortest = {name: names[0] for names in several for name in names}
    return _respelled(keys, shortest)


def spelled_twice(keys: pd.Series) -> list[tuple[str, str]]:
    """Returns pairs of different spellings of one key in a column that must not have any, such as ids of a table."""
    return [(names[0], names[1]) for names in _several_spellings(keys.drop_duplicates())]


def check_exact(values: pd.Series, what: str) -> None:
    """Raises DataError where keys (n,) are floats that may have lost digits (see `stack.cells.is_rounded`)."""
    if is_rounded(values):
        raise DataError(
            f"{what} are {values.dtype} and as large as {float(values.abs().max()):.17g}, where this type cannot tell "
            "neighbouring integers apart: write the column as integers or as text from the original data, since lost "
            "digits do not come back"
        )


def keys_as_in(keys: pd.Series, known: Iterable[str], what: str, *, of: str, refuse_doubtful: bool = True) -> pd.Series:
    """Returns ``keys`` (n,) in the spelling that ``known`` keys of another table have, for a join.

    A key that is known as it is, or unknown in every spelling, stays. Another spelling of a known key is replaced where
    it is certain (see `unified_keys`; all keys on both sides must be integers). Raises DataError where it is not, such
    as `7` for a known `007` or `1000` for `1e3`, unless ``refuse_doubtful`` is off. ``what`` names the keys in errors
    and ``of`` the table of the known ones.
    """
    names = pd.Series(known, dtype="str").drop_duplicates()
    spellings = keys.drop_duplicates()
    strange = spellings[~spellings.isin(names)]
    if strange.empty or names.empty:
        return keys
    are_integers = _first_that_is_no_integer(names) is None and _first_that_is_no_integer(spellings) is None
    forms = _forms if are_integers else _composed_all
    spelled = dict(zip(forms(names), names, strict=True))
    found = {key: spelled[form] for key, form in zip(strange, forms(strange), strict=True) if form in spelled}
    left = [key for key in strange if key not in found]
    if refuse_doubtful and (doubtful := _same_numbers(left, names)):
        key, other = doubtful[0]
        raise DataError(
            f"{what} {key!r} is not in {of}, which has {other!r}, {len(doubtful)} such keys: whether they are one is "
            "not certain, so write them in the same way in both files"
        )
    return _respelled(keys, found) if found else keys


def unified_words(words: pd.Series) -> pd.Series:
    """Returns the words (n,) of one column, such as sites, with one spelling each; a missing value stays.

    The spellings are those of `unified_keys`; among words, `1` and `1.0` are one code whatever else the column holds.
    """
    several = _several_spellings(words.dropna().drop_duplicates())
    return _respelled_words(words, {name: names[0] for names in several for name in names})


def words_as_in(words: pd.Series, known: Iterable[str]) -> pd.Series:
    """Returns ``words`` (n,) in the spelling that ``known`` words have; a missing or unknown word stays."""
    names = pd.Series(known, dtype="str").dropna().drop_duplicates()
    spellings = words.dropna().drop_duplicates()
    strange = spellings[~spellings.isin(names)]
    if strange.empty or names.empty:
        return words
    spelled = dict(zip(_forms(names), names, strict=True))
    found = {word: spelled[form] for word, form in zip(strange, _forms(strange), strict=True) if form in spelled}
    return _respelled_words(words, found)


def similar_keys(keys: pd.Series) -> list[tuple[str, str]]:
    """Returns pairs of different keys of one column that may be one: equal as numbers, or but for case and spaces.

    Examples are `007` and `7`, `P3` and `p3`. They stay two keys, as it is not certain.
    """
    names = keys.drop_duplicates()
    names = names[~names.str.strip().str.lower().isin(MISSING_KEYS)]
    forms = names.map(lambda key: _number_form(key) or " ".join(_composed(key).casefold().split()))
    repeated = forms.duplicated(keep=False)
    pairs = names[repeated].groupby(forms[repeated].to_numpy()).agg(sorted)
    return [(str(found[0]), str(found[1])) for found in pairs]


def fold_labels(values: pd.Series, what: str) -> pd.Series:
    """Returns fold labels (n,) as numbers where all are numbers, so that 0 and 0.0 are one fold; else as text.

    Raises DataError where the labels are not all numbers and one has two spellings.
    """
    text = as_text(values).str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    return numbers if numbers.notna().all() else unified_keys(text, what)


def is_missing_fold(values: pd.Series) -> NDArray[np.bool_]:
    """Marks the rows (n,) without a fold: no value, or a word for none."""
    return as_text(values).str.strip().str.lower().isin(MISSING_KEYS).to_numpy(bool)


def _several_spellings(spellings: pd.Series) -> list[list[str]]:
    """Returns the spellings of each key that has more than one, the shortest first."""
    forms = _forms(spellings)
    repeated = forms.duplicated(keep=False)
    if not repeated.any():
        return []
    together = spellings[repeated].groupby(forms[repeated].to_numpy()).agg(list)
    return [sorted(names, key=lambda name: (len(name), name)) for names in together]


def _respelled(keys: pd.Series, spelled: dict[str, str]) -> pd.Series:
    return keys.map(lambda key: spelled.get(key, key)).astype("str")


def _respelled_words(words: pd.Series, spelled: dict[str, str]) -> pd.Series:
    return words.replace(spelled) if spelled else words


def _number_form(key: str) -> str | None:
    """Returns the number that a key is in plain digits; None for text."""
    return f"{Decimal(key.strip()).normalize():f}" if _NUMBER.fullmatch(key.strip()) else None


def _first_that_is_no_integer(spellings: pd.Series) -> str | None:
    for key in spellings:
        if not _WHOLE.fullmatch(key) and key.strip().lower() not in MISSING_KEYS:
            return str(key)
    return None


def _forms(keys: pd.Series) -> pd.Series:
    """Returns what is the same for all spellings of a key: see `_composed`, and an integer without ".0"."""
    return keys.map(_form)


def _form(key: str) -> str:
    composed = _composed(key)
    return composed.partition(".")[0] if _WHOLE.fullmatch(composed) else composed


def _composed_all(keys: pd.Series) -> pd.Series:
    return keys.map(_composed)


def _composed(key: str) -> str:
    """Returns the key in Unicode's composed form, without invisible characters and with plain spaces."""
    if key.isascii():
        return key
    return unicodedata.normalize("NFC", key.translate(_INVISIBLE).translate(_NO_BREAK_SPACES)).strip()


def _same_numbers(keys: Iterable[str], known: pd.Series) -> list[tuple[str, str]]:
    """Returns pairs of a key and a known key that are the same number in different spellings."""
    numbers = {key: Decimal(key.strip()) for key in keys if _NUMBER.fullmatch(key.strip())}
    if not numbers:
        return []
    by_number = {Decimal(name): name for name in known if _NUMBER.fullmatch(name)}
    return [(key, by_number[number]) for key, number in numbers.items() if number in by_number]

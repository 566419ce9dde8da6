"""Reads keys (ids, groups, folds) of every table in one way: unifies certain spellings, refuses doubtful ones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dermstack.errors import DataError
from stack.tables.cells import as_text, is_rounded

MISSING_KEYS = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>"})  # what writers put for a missing value
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.0+)?")  # an integer, also as a float; 007 and 1e3 are text
# Characters without a shape of their own, which exports and copies from spreadsheets or web pages leave inside a cell:
# soft hyphen, zero-width space, marks of direction, word joiner, byte order mark. Joiners of letters are kept.
_INVISIBLE = dict.fromkeys([
    0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), 0x2060, *range(0x2066, 0x206A), 0xFEFF
])  # fmt: skip
_NO_BREAK_SPACES = dict.fromkeys([0xA0, 0x2007, 0x202F], " ")
_MAX_TRIED = 100  # ids without a row that are compared with those of the table
_IMAGE_SUFFIX = re.compile(r"\.(?:jpe?g|jfif|png|bmp|tiff?|webp|dcm|dicom)$")
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
    """Raises DataError where keys (n,) are floats that may have lost digits (see `stack.tables.cells.is_rounded`)."""
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
    names = pd.Series(known, dtype="str")
    if keys.empty or contained(keys, names).all():  # almost always
        return keys
    names, spellings = names.drop_duplicates(), keys.drop_duplicates()
    strange = spellings[~contained(spellings, names)]
    if strange.empty or names.empty:
        return keys
    are_integers = _first_that_is_no_integer(names) is None and _first_that_is_no_integer(spellings) is None
    forms = _forms if are_integers else _composed_all
    of_names, of_strange = forms(names), forms(strange)
    has_other = contained(of_strange, of_names)  # seldom any: Python looks only at these
    spelled = {}
    if has_other.any():
        wanted = contained(of_names, of_strange)
        spelled = dict(zip(of_names[wanted], names[wanted], strict=True))
    found = {key: spelled[form] for key, form in zip(strange[has_other], of_strange[has_other], strict=True)}
    left = strange[~has_other]
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
    forms = names.map(lambda key: _number_form(key) or _folded(key))
    repeated = forms.duplicated(keep=False)
    pairs = names[repeated].groupby(forms[repeated].to_numpy()).agg(sorted)
    return [(str(found[0]), str(found[1])) for found in pairs]


def similar_words(words: pd.Series, known: pd.Series) -> list[tuple[str, str]]:
    """Returns pairs of a word (n,) and a more frequent ``known`` one that differ only in case or spaces."""
    names = list(map(str, known.value_counts().index))  # the most frequent first
    first: dict[str, str] = {}
    for name in names:
        first.setdefault(_folded(name), name)
    spellings = map(str, words.drop_duplicates())
    return [(word, found) for word in spellings if (found := first.get(_folded(word), word)) != word]


def _folded(key: str) -> str:
    return " ".join(_composed(key).casefold().split())


def other_spelling(strange: pd.Series, known: pd.Series, *, of: str) -> str:
    """Returns which of the ``known`` ids ``of`` a table a ``strange`` one seems to be, and the next step; "" for none.

    Ids of files of predictions are often the names of image files: with a folder, a suffix, or in other case.
    """
    names = dict(zip(known.map(_file_form), known, strict=True))
    for key in strange.iloc[:_MAX_TRIED]:
        if (name := names.get(_file_form(key))) is not None:
            return f"{key!r} seems to be {name!r} of {of}: write the ids in both files in the same way"
    return ""


def contained(keys: pd.Series, known: pd.Series) -> NDArray[np.bool_]:
    """Marks the keys (n,) that are among ``known``; pandas' isin makes a Python object of each known key."""
    found = pc.is_in(_arrow(keys), value_set=_arrow(known))
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)


def positions_of(keys: pd.Series, known: pd.Series) -> NDArray[np.intp]:
    """Returns where each of ``keys`` (n,) is first among ``known``; -1 where it is not."""
    found = pc.index_in(_arrow(keys), value_set=_arrow(known)).fill_null(-1)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.intp)


def is_ascii(keys: pd.Series) -> NDArray[np.bool_]:
    """Marks the keys (n,) without any character beyond ASCII."""
    return np.asarray(pc.string_is_ascii(_arrow(keys)).to_numpy(zero_copy_only=False), np.bool_)


def matches(keys: pd.Series, pattern: str) -> NDArray[np.bool_]:
    """Marks the keys (n,) in which RE2 finds ``pattern``, where \\s, \\d and \\w mean ASCII only."""
    return np.asarray(pc.match_substring_regex(_arrow(keys), pattern).to_numpy(zero_copy_only=False), np.bool_)


def _arrow(keys: pd.Series) -> pa.Array:
    made = pa.array(keys.astype("str"), type=pa.large_string())
    return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made


def fold_labels(values: pd.Series, what: str) -> pd.Series:
    """Returns fold labels (n,) as numbers where all are numbers, so that 0 and 0.0 are one fold; else as text.

    Raises DataError where the labels are not all numbers and one has two spellings.
    """
    codes, names = pd.factorize(as_text(values))  # few names, whatever the number of rows
    text = pd.Series(names, dtype="str").str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    labels = numbers if numbers.notna().all() else unified_keys(text, what)
    return labels.take(codes).set_axis(values.index)


def is_missing_fold(values: pd.Series) -> NDArray[np.bool_]:
    """Marks the rows (n,) without a fold: no value, or a word for none."""
    codes, names = pd.factorize(as_text(values))
    return pd.Series(names, dtype="str").str.strip().str.lower().isin(MISSING_KEYS).to_numpy(bool)[codes]


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
    for key in spellings[~matches(spellings, f"^(?:{_WHOLE.pattern})$")]:
        if key.strip().lower() not in MISSING_KEYS:
            return str(key)
    return None


def _forms(keys: pd.Series) -> pd.Series:
    """Returns what is the same for all spellings of a key: see `_composed`, and an integer without ".0"."""
    composed = _composed_all(keys)
    with_zeros = matches(composed, rf"^(?:{_WHOLE.pattern})$") & matches(composed, r"\.")
    return _replaced(composed, with_zeros, lambda key: key.partition(".")[0])


def _composed_all(keys: pd.Series) -> pd.Series:
    return _replaced(keys, ~is_ascii(keys), _composed)


def _replaced(keys: pd.Series, marked: NDArray[np.bool_], change: Callable[[str], str]) -> pd.Series:
    """Returns the keys (n,), the marked ones changed; often there are none among a million."""
    if not marked.any():
        return keys
    made = keys.to_numpy(object).copy()
    made[marked] = [change(key) for key in made[marked]]
    return pd.Series(made, index=keys.index, dtype="str")


def _composed(key: str) -> str:
    """Returns the key in Unicode's composed form, without invisible characters and with plain spaces."""
    if key.isascii():
        return key
    return unicodedata.normalize("NFC", key.translate(_INVISIBLE).translate(_NO_BREAK_SPACES)).strip()


def _file_form(key: str) -> str:
    """Returns an id without a folder, the suffix of an image, case and blanks at its ends."""
    return _IMAGE_SUFFIX.sub("", _composed(key).casefold().strip().replace("\\", "/").rpartition("/")[2])


def _same_numbers(keys: pd.Series, known: pd.Series) -> list[tuple[str, str]]:
    """Returns pairs of a key and a known key that are the same number in different spellings."""
    likely = keys[matches(keys, "[0-9]")] if len(keys) else keys
    likely = likely[~matches(likely, "[A-DF-Za-df-z_]")]  # a number has no letter but e, so few ids are looked at
    numbers = {key: Decimal(key.strip()) for key in likely if _NUMBER.fullmatch(key.strip())}
    if not numbers:
        return []
    by_number = {Decimal(name): name for name in known if _NUMBER.fullmatch(name)}
    return [(key, by_number[number]) for key, number in numbers.items() if number in by_number]

"""Spellings of one key: what is certain is one key, what is doubtful is refused, text stays as it is."""

from __future__ import annotations

import io
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dermstack.errors import DataError
from stack.tables.keys import (
    contained,
    fold_labels,
    is_ascii,
    is_missing_fold,
    keys_as_in,
    matches,
    other_spelling,
    positions_of,
    similar_keys,
    spelled_twice,
    unified_keys,
    unified_words,
    words_as_in,
)

TEXT = ["007", "1e3", "NA", "None", "1_000", "+5", "17 ", "P3", "1.5", "0x1", "٣"]


def series(*keys: str) -> pd.Series:
    return pd.Series(list(keys), dtype="str")


def test_integers_and_what_pandas_makes_of_them_beside_a_missing_value_are_one_key() -> None:
    """The spelling comes from pandas itself: a csv with an empty cell, read and written."""
    numbers = list(range(30))
    text = "group,x\n" + "".join(f"{number},0\n" for number in numbers) + ",0\n"
    floats = pd.read_csv(io.StringIO(text))["group"].dropna().astype(str).tolist()
    assert floats[17] == "17.0"
    both = series(*map(str, numbers), *floats, "", "nan")
    assert unified_keys(both, "groups").tolist() == [*map(str, numbers), *map(str, numbers), "", "nan"]


@given(st.lists(st.tuples(st.integers(-99, 99), st.sampled_from(["", ".0", ".00"])), min_size=1))
def test_two_rows_share_a_key_if_and_only_if_they_are_one_number(rows: list[tuple[int, str]]) -> None:
    keys = series(*(f"{number}{tail}" for number, tail in rows))
    unified = unified_keys(keys, "groups")
    for i, (a, _) in enumerate(rows):
        for j, (b, _) in enumerate(rows):
            assert (unified[i] == unified[j]) == (a == b)


@pytest.mark.parametrize("spelling", ["17", "17.0"])
def test_a_key_with_one_spelling_stays_as_written(spelling: str) -> None:
    """Folds and fingerprints of existing experiments depend on it."""
    keys = series(spelling, "18.0", "19", spelling)
    assert unified_keys(keys, "groups").tolist() == keys.tolist()


def test_text_that_looks_like_a_number_or_like_nothing_stays() -> None:
    keys = series(*TEXT, "7", "1000", "1000.5")
    assert unified_keys(keys, "groups").tolist() == keys.tolist()
    assert spelled_twice(keys) == []
    assert keys_as_in(keys, keys, "id", of="train").tolist() == keys.tolist()


@pytest.mark.parametrize("other", [key for key in TEXT if key not in {"NA", "None"}])
def test_beside_text_two_spellings_of_an_integer_are_refused_by_name(other: str) -> None:
    with pytest.raises(
        DataError, match=r"train\.csv: groups '17' and '17\.0' may be one or two, 1 such pairs"
    ) as error:
        unified_keys(series("17", "17.0", other), "train.csv: groups")
    assert repr(other) in str(error.value)


def test_two_unicode_forms_of_one_name_are_one_key() -> None:
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert unified_keys(series(decomposed, composed, "P3"), "groups").tolist() == [composed, composed, "P3"]
    assert keys_as_in(series(decomposed), [composed, "P3"], "id", of="train").tolist() == [composed]


def test_a_join_takes_the_spelling_of_the_table() -> None:
    assert keys_as_in(series("17.0", "18", "99.0"), ["17", "18.0"], "id", of="train").tolist() == ["17", "18.0", "99.0"]


@pytest.mark.parametrize(("key", "known"), [("7", "007"), ("1000", "1e3"), ("17.0", "17"), ("7.0", "007"), ("5", "+5")])
def test_a_join_refuses_what_may_be_another_spelling(key: str, known: str) -> None:
    with pytest.raises(DataError, match="whether they are one is not certain"):
        keys_as_in(series(key), [known, "P3"], "id", of="train")
    assert keys_as_in(series(key), [known, "P3"], "id", of="train", refuse_doubtful=False).tolist() == [key]
    assert keys_as_in(series(key), [known, key, "P3"], "id", of="train").tolist() == [key]  # known as it is


def test_large_integers_are_compared_exactly() -> None:
    large = 2**53
    assert keys_as_in(series(str(large + 1)), [f"0{large}"], "id", of="train").tolist() == [str(large + 1)]


def test_spellings_of_an_id_are_found() -> None:
    assert spelled_twice(series("17", "18", "17.0")) == [("17", "17.0")]
    assert spelled_twice(series("17", "18.0", "170")) == []


def test_folds_are_numbers_where_all_are_and_else_text() -> None:
    assert fold_labels(pd.Series(["0", "0.0", " 1", "2.0"]), "folds").tolist() == [0, 0, 1, 2]
    assert fold_labels(pd.Series([0.0, 1.0, 2.0]), "folds").tolist() == [0, 1, 2]
    assert fold_labels(pd.Series(["a", "b ", "007"]), "folds").tolist() == ["a", "b", "007"]
    with pytest.raises(DataError, match=r"folds '1' and '1\.0' may be one or two"):
        fold_labels(pd.Series(["1", "1.0", "a"]), "folds")


def test_a_row_without_a_fold_is_marked() -> None:
    values = pd.Series(["0", "", "NA", "none", None, np.nan, "nothing"], dtype="object")
    assert is_missing_fold(values).tolist() == [False, True, True, True, True, True, False]


INVISIBLE = ["\ufeff{}", "{}\u200b", "{}\u200e", "\u202a{}\u202c", "{}\u00ad"]  # as exports and pages leave them


@pytest.mark.parametrize("pattern", [*INVISIBLE, "{}\u00a0"])
@pytest.mark.parametrize("key", ["P3", "17", "Zo\u00eb"])
def test_a_key_is_one_with_and_without_invisible_characters(pattern: str, key: str) -> None:
    spelled = pattern.format(key)
    assert unified_keys(series(key, spelled, "other"), "groups").tolist() == [key, key, "other"]
    assert spelled_twice(series(spelled, key)) == [(key, spelled)]
    assert keys_as_in(series(spelled), [key, "other"], "id", of="train").tolist() == [key]
    assert unified_keys(series(spelled, "other"), "groups").tolist() == [spelled, "other"]  # one spelling: as written


def test_no_break_spaces_are_spaces_and_joiners_of_letters_stay() -> None:
    assert unified_keys(series("Anna\u00a0Lee", "Anna Lee"), "groups").tolist() == ["Anna Lee", "Anna Lee"]
    persian = series("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e")  # two words, told apart by a joiner
    assert unified_keys(persian, "groups").tolist() == persian.tolist()


def test_words_have_one_spelling_and_missing_ones_stay() -> None:
    words = pd.Series(["1", "1.0", None, "t\u00f3rso", "to\u0301rso", "torso"], dtype="str")
    assert unified_words(words).fillna("").tolist() == ["1", "1", "", "t\u00f3rso", "t\u00f3rso", "torso"]
    assert words_as_in(series("1.0", "2.0", "male\ufeff"), ["1", "male"]).tolist() == ["1", "2.0", "male"]
    assert words_as_in(series("1.0"), []).tolist() == ["1.0"]


def test_keys_that_may_be_one_are_listed_and_stay_two() -> None:
    keys = series("007", "7", "P3", "p3", "1e3", "1000", "Anna Lee", "anna  lee", "P4", "8", "NA", "na", "")
    assert similar_keys(keys) == [("1000", "1e3"), ("007", "7"), ("Anna Lee", "anna  lee"), ("P3", "p3")]
    assert similar_keys(series("007", "008", "P3", "P4", "7.5")) == []


@given(st.lists(st.sampled_from([*TEXT, "", "17", "17.0"])), st.lists(st.sampled_from([*TEXT, "17"])))
def test_a_key_is_contained_if_a_set_contains_it(keys: list[str], known: list[str]) -> None:
    assert contained(series(*keys), series(*known)).tolist() == [key in set(known) for key in keys]
    assert positions_of(series(*keys), series(*known)).tolist() == [
        known.index(key) if key in known else -1 for key in keys
    ]
    assert is_ascii(series(*keys)).tolist() == [key.isascii() for key in keys]
    pattern = r"^-?(?:0|[1-9][0-9]*)(?:\.0+)?$"
    assert matches(series(*keys), pattern).tolist() == [re.search(pattern, key) is not None for key in keys]


@pytest.mark.parametrize("key", ["a1.jpg", "A1", "train/a1.png", "C:\\images\\a1.JPEG", " a1"])
def test_an_id_that_is_the_name_of_a_file_is_told_from_one_of_other_rows(key: str) -> None:
    said = other_spelling(series("other", key), series("b", "a1"), of="the training rows")
    assert said == f"{key!r} seems to be 'a1' of the training rows: write the ids in both files in the same way"
    assert other_spelling(series("other", "a2"), series("b", "a1"), of="the training rows") == ""

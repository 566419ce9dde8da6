"""Values that a message lists."""

from __future__ import annotations

import pytest

from dermstack.listing import counted, first_of


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), (["a", "b"], "a, b"), (map(repr, "abc"), "'a', 'b', 'c'"), (range(2000), "0, 1, 2, … 2,000 in all")],
)
def test_a_message_has_the_first_values_and_the_number_of_many(values: list[object], text: str) -> None:
    assert first_of(values, 3) == text


def test_a_separator_stands_before_the_number_too() -> None:
    assert first_of("abc", 2, separator="; ") == "a; b; … 3 in all"


def test_a_single_thing_is_in_the_singular() -> None:
    assert [counted(n, "runs") for n in (0, 1, 2, 3000)] == ["0 runs", "1 run", "2 runs", "3,000 runs"]
    assert counted(1, "studies") == "1 study"
    assert counted(1, "unreadable images", "are") == "1 unreadable image is"
    assert counted(2, "unreadable images", "are") == "2 unreadable images are"

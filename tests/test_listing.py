"""Values that a message lists."""

from __future__ import annotations

import pytest

from dermstack.listing import first_of


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), (["a", "b"], "a, b"), (map(repr, "abc"), "'a', 'b', 'c'"), (range(2000), "0, 1, 2, … 2,000 in all")],
)
def test_a_message_has_the_first_values_and_the_number_of_many(values: list[object], text: str) -> None:
    assert first_of(values, 3) == text


def test_a_separator_stands_before_the_number_too() -> None:
    assert first_of("abc", 2, separator="; ") == "a; b; … 3 in all"

"""Lists the first of many values in a message, with their number."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(values: Iterable[object], most: int = 5, *, separator: str = ", ") -> str:
    """Returns the first values, such as "a, b, c", and where there are more than ``most`` also how many there are."""
    found = list(values)
    more = f"{separator}… {len(found):,} in all" if len(found) > most else ""
    return separator.join(map(str, found[:most])) + more

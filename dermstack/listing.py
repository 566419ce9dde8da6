"""Lists the first of many values in a message, with their number, and writes numbers with their nouns."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(values: Iterable[object], most: int = 5, *, separator: str = ", ") -> str:
    """Returns the first values, such as "a, b, c", and where there are more than ``most`` also how many there are."""
    found = list(values)
    more = f"{separator}… {len(found):,} in all" if len(found) > most else ""
    return separator.join(map(str, found[:most])) + more


_SINGULAR = {"studies": "study", "are": "is", "have": "has", "lack": "lacks", "repeat": "repeats"}


def counted(number: int, plural: str, verb: str = "") -> str:
    """Returns a number with its noun and, where given, the verb of many: "2,000 rows are", but "1 row is".

    The noun may be several words, of which the last is in the plural.
    """
    before, _, noun = plural.rpartition(" ")
    if number == 1:
        noun, verb = _SINGULAR.get(noun, noun.removesuffix("s")), _SINGULAR.get(verb, verb)
    return " ".join(filter(None, (f"{number:,}", before, noun, verb)))

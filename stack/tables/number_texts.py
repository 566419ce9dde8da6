"""Recognises numbers that are written as text: decimal commas, separated thousands, units, a few words among them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

MIN_NUMBERS = 0.5  # share of numbers among the known cells of a column of numbers
_MOSTLY = 0.95  # with this share of numbers, the other cells may be any number of words, such as typing errors
_MAX_WORDS = 10  # different words of a column with fewer numbers; codes such as D03 beside 172 are many words
_MIN_DIFFERENT = 6  # numbers: a column of fewer, such as grades, may as well be one of words
_SAMPLE, _MIN_IN_SAMPLE = 1_000, 0.4  # cells that are looked at first, and the share of numbers among them
_MAX_CODES, _MAX_CHARACTERS = 5, 40  # words that a message lists and declares, and their length
_ID_NAME = re.compile(r"(^|[_\W])(id|uid|uuid|index|key)$|^unnamed|^$", re.IGNORECASE)

# A number with a sign such as `<` before it or a unit after it.
_CELL = re.compile(
    r"(?P<sign>[<>≤≥~≈]=?)?\s*(?P<number>[+-]?[.,]?[0-9](?:[0-9.,'’_\s]*[0-9.])?(?:[eE][+-]?[0-9]{1,3})?)"
    r"(?:\s*(?P<unit>[%‰°µμ]?(?:[^\W\d_]+[²³]?|(?<=[%‰°]))))?"
)
_UNITS = frozenset({
    "nm", "µm", "μm", "um", "mm", "cm", "m", "mm²", "cm²", "mm³", "ml", "l", "µg", "mg", "g", "kg", "s", "sec", "min",
    "h", "d", "day", "days", "w", "weeks", "mo", "months", "y", "yr", "yrs", "year", "years", "%", "‰", "°", "°c",
})  # fmt: skip
_PLAIN = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+(?:[eE][+-]?[0-9]+)?")
_GROUPED = re.compile(
    r"[+-]?[1-9][0-9]{0,2}(?:(?:,[0-9]{3})+(?:\.[0-9]*)?|(?:\.[0-9]{3})+(?:,[0-9]+)?|(?:['’_\s][0-9]{3})+(?:[.,][0-9]+)?)"
)
_ONE_COMMA_GROUP = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")  # 1,234: a thousand, or 1.234
_NO_GROUPS = str.maketrans("", "", "'’_")
_LIST = re.compile(r"[0-9]+(?:,[0-9]+){2,}")


class NumberText(NamedTuple):
    """What keeps the cells of a column from being read as numbers, and what to do."""

    kind: str  # the same for all columns with this fault
    what: str  # such as "numbers with decimal commas ('0,5')"
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


class _Number(NamedTuple):
    digits: str  # as written, without sign and unit
    unit: str


def number_text(cells: pd.Series, column: str, *, is_numeric: bool = False) -> NumberText | None:
    """Returns how ``cells`` (n,) of text, NaN where missing, write numbers; None where they are words or plain numbers.

    ``column`` is the name in the csv, with which words among the numbers are declared in `data.missing`. At least half
    of the known cells must be numbers, of six different values; the others at most ten words, or any where 95 % are
    numbers. Where the config says that the column ``is_numeric``, few values are enough. A column with lists such as
    `1,2,3`, with codes such as `1a` and `1b` or of numbers that count the rows is none of numbers.
    """
    known = cells[cells.notna()]
    sample = known.iloc[:: max(1, len(known) // _SAMPLE)]
    if sum(bool(_PLAIN.fullmatch(text)) or _read(text) is not None for text in sample) < _MIN_IN_SAMPLE * len(sample):
        return None  # most columns of words end here
    counts = known.value_counts()
    rows = dict(zip(map(str, counts.index), counts.to_numpy(np.int64).tolist(), strict=True))
    plain = [text for text in rows if _PLAIN.fullmatch(text)]
    read = {text: _read(text) for text in rows.keys() - set(plain)}
    numbers = {text: number for text in rows if (number := read.get(text)) is not None}
    words = [text for text in rows if text in read and read[text] is None]
    if not read or any(_LIST.fullmatch(word) for word in words):
        return None
    units = list(dict.fromkeys(number.unit for number in numbers.values() if number.unit))
    if len(units) > 1 and not {unit.lower() for unit in units} <= _UNITS:
        return None
    n, found = sum(rows.values()), sum(rows[text] for text in (*plain, *numbers))
    values = np.unique(np.array([*map(float, plain), *(_value(number.digits) for number in numbers.values())]))
    if found < MIN_NUMBERS * n or (len(values) < _MIN_DIFFERENT and not (is_numeric and numbers)):
        return None
    if found < _MOSTLY * n and len([word for word in words if word[0] not in "<>≤≥~≈"]) > _MAX_WORDS:
        return None
    if not is_numeric and len(values) == found and is_numbering(column, values):
        return None
    separators = _separators([number.digits for number in numbers.values()], plain)
    return _described(column, rows, numbers, words, units, separators)


def is_numbering(column: str, numbers: Sequence[float] | np.ndarray) -> bool:
    """Whether distinct numbers count or name the rows."""
    values = np.asarray(numbers, np.float64)
    if not np.all(values == np.round(values)):
        return False
    return bool(_ID_NAME.search(column)) or float(values.max() - values.min()) == len(values) - 1


def _read(text: str) -> _Number | None:
    """Returns the number that a cell holds, None for a word and for a bound such as `<5`."""
    cell = _CELL.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if cell is None or cell["sign"]:
        return None
    if not any(form.fullmatch(cell["number"]) for form in (_PLAIN, _DECIMAL_COMMA, _GROUPED)):
        return None
    return _Number(cell["number"], cell["unit"] or "")


def _value(digits: str) -> float:
    """Returns a number of any of these forms; `1,234` is 1234."""
    bare = "".join(digits.translate(_NO_GROUPS).split())
    if bare.count(",") == 1 and not _ONE_COMMA_GROUP.fullmatch(bare) and bare.rfind(",") > bare.rfind("."):
        return float(bare.replace(".", "").replace(",", "."))
    bare = bare.replace(",", "")
    return float(bare.replace(".", "") if bare.count(".") > 1 else bare)


def _separators(digits: Sequence[str], plain: Sequence[str]) -> tuple[str, str, str] | None:
    """Returns how these numbers are separated, what to write and an example; None where all are plain numbers."""
    odd = [text for text in digits if not _PLAIN.fullmatch(text)]
    if not odd:
        return None
    if commas := [text for text in odd if _DECIMAL_COMMA.fullmatch(text)]:
        if certain := [text for text in commas if not _ONE_COMMA_GROUP.fullmatch(text)]:
            if len(commas) == len(odd):
                return "decimal commas", "write points", certain[0]
            example = next(text for text in odd if not _DECIMAL_COMMA.fullmatch(text))
            return "decimal commas and separated thousands", "write 1234.5 for 1.234,5", example
        if len(commas) == len(odd) and not any("." in text for text in (*plain, *digits)):
            advice = "write points for decimal commas, and nothing between thousands"
            return "commas, decimal ones or between thousands", advice, commas[0]
    return "separated thousands", "write 1234.5, with nothing between thousands", odd[0]


def _described(
    column: str,
    rows: dict[str, int],
    numbers: dict[str, _Number],
    words: Sequence[str],
    units: Sequence[str],
    separators: tuple[str, str, str] | None,
) -> NumberText:
    """Puts together what is odd about the cells of a column (number of rows by text)."""
    kinds, parts, remedies = [], [], []
    if separators is not None:
        kind, remedy, example = separators
        kinds, parts, remedies = [kind], [f"with {kind} ({example!r})"], [remedy]
    if units:
        having = [text for text, number in numbers.items() if number.unit]
        named = ", ".join(repr(unit) for unit in units)
        kinds.append("units")
        parts.append(f"with {named} in {_rows(sum(rows[text] for text in having))} ({having[0]!r})")
        remedies.append("write the number alone" + (", all in one unit" if len(units) > 1 else ""))
    what = "numbers" + (f" {' and '.join(parts)}" if parts else "")
    if words:
        more = f", … {len(words):,} words in all" if len(words) > _MAX_CODES else ""
        listed = ", ".join(repr(word[:_MAX_CHARACTERS]) for word in words[:_MAX_CODES]) + more
        what += f"{',' if parts else ''} but for {listed} in {_rows(sum(rows[word] for word in words))}"
        kinds.append("words")
        remedies.append(_declared(column, words))
    return NumberText(" and ".join(kinds), what, ", ".join(remedies))


def _declared(column: str, words: Sequence[str]) -> str:
    """Returns what to do with words among numbers."""
    step = "leave these cells empty" if all(_CELL.fullmatch(word) is None for word in words) else "write numbers there"
    if len(words) > _MAX_CODES or any(len(word) > _MAX_CHARACTERS for word in words):
        return f"{step}, or declare the words in data.missing"
    name, codes = (json.dumps(one, ensure_ascii=False) for one in (column, list(words)))
    return f"{step}, or declare data.missing: {{{name}: {codes}}}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"

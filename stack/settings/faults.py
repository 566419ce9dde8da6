"""Explains the faults that pydantic finds in a config, one line each."""

from __future__ import annotations

import difflib
import re
import reprlib
from typing import Any

from stack.settings.yaml_text import colon_hint

_MAX_ERROR_CHARACTERS = 500  # of the line that explains a fault
_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = 120


def fault_of_value(error: Any) -> str:
    """Returns the line that explains a fault that pydantic found: the key, what is wrong, and the value."""
    where = ".".join(str(part) for part in error["loc"] if "function-" not in str(part)) or "config"
    message, value, kind = error["msg"].removeprefix("Value error, "), error["input"], error["type"]
    if kind == "string_pattern_mismatch":  # all patterns of the config are that of names, which also name folders
        message = "a name has 1 to 64 letters (a to z), digits, `_`, `.` or `-`, and a letter or digit first"
    given = "" if kind in {"missing", "value_error"} else f", got {_SHORT_REPR.repr(value)}"
    if kind == "literal_error" and isinstance(value, str):
        near = difflib.get_close_matches(value[:100], re.findall("'([^']*)'", error["ctx"]["expected"]), n=1)
        given += f": did you mean {near[0]!r}?" if near else ""
    hint = colon_hint(value) if kind in {"model_type", "dict_type"} else ""
    line = f"  {where}: {hint or message}{given}"
    return line if len(line) <= _MAX_ERROR_CHARACTERS else f"{line[:_MAX_ERROR_CHARACTERS]} …"

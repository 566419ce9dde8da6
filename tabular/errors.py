"""The error of package tabular."""

from __future__ import annotations


class TabularError(ValueError):
    """A column, value or parameter that level 2 cannot use; the message names it and the next step."""

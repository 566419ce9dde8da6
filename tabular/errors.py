"""What goes wrong in a table of features."""

from __future__ import annotations


class TabularError(ValueError):
    """A column, a value or a parameter that level 2 can't use; the message says which and what to do."""

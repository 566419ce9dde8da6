"""Puts round ticks on the axes of figures, and writes each with the decimals that its axis needs and no more."""

from __future__ import annotations

import math
from collections.abc import Iterable

from matplotlib.axis import Axis
from matplotlib.ticker import Formatter, MaxNLocator

_ROUND_STEPS = [1, 2, 5, 10]  # not 1.5, 2.5, 3 or 8: such ticks need more digits, or lose the one that tells them apart
_MOST_DECIMALS = 12


def decimals_of(values: Iterable[float]) -> int:
    """Returns the fewest decimals with which every value is written without a visible error."""
    finite = [float(value) for value in values if math.isfinite(value)]
    tolerance = 1e-9 * max((abs(value) for value in finite), default=1.0)
    for decimals in range(_MOST_DECIMALS):
        if all(abs(round(value, decimals) - value) <= tolerance for value in finite):
            return decimals
    return _MOST_DECIMALS


def round_ticks(axis: Axis, *, percent: bool = False, integer: bool = False, intervals: int = 6) -> None:
    """Puts ticks at multiples of 1, 2 or 5 times a power of ten, about ``intervals`` of them apart.

    All ticks of the axis have the same number of decimals. With ``percent`` the values are shares; with ``integer``
    no tick lies between whole numbers.
    """
    axis.set_major_locator(MaxNLocator(intervals, steps=_ROUND_STEPS, integer=integer, min_n_ticks=3))
    axis.set_major_formatter(TickFormatter(percent=percent))


class TickFormatter(Formatter):
    """Writes the ticks of one axis with equally many decimals, without an offset and without powers of ten."""

    def __init__(self, *, percent: bool = False) -> None:
        """``percent``: the ticks are shares, from 0 to 1."""
        self._factor, self._unit = (100.0, "\N{NO-BREAK SPACE}%") if percent else (1.0, "")

    def format_ticks(self, values: Iterable[float]) -> list[str]:
        """Returns the texts of all ticks of the axis."""
        shown = [self._factor * float(value) for value in values]
        decimals = decimals_of(shown)
        # A tick at 0 can be a tiny negative number.
        return [f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−") + self._unit for value in shown]

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Returns the text of one tick at ``x``."""
        return self.format_ticks([x])[0]

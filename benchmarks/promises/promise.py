"""One row of the table of promises: what is promised, how often, and how often it held in simulations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scipy.stats import binomtest


@dataclass(frozen=True)
class Promise:
    """A statement that dermstack makes with a nominal frequency, and how often it held on data with known truth."""

    statement: str  # such as "the 95 % interval over sources contains the mean AUC of all sources"
    setting: str  # of the simulation, such as "8 sources, 40 patients each, prevalence 0.2"
    nominal: float  # the promised frequency
    held: int  # repetitions in which it held
    repetitions: int
    at_least: bool = True  # whether the promise is a lower bound, so that more than nominal keeps it, too
    note: str = ""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (Clopper-Pearson) of the observed frequency."""
        found = binomtest(self.held, self.repetitions).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    @property
    def is_kept(self) -> bool:
        """Whether the simulations do not contradict the promise."""
        low, high = self.interval
        return high >= self.nominal and (self.at_least or low <= self.nominal)


# Makes the promises of one topic from a number of repetitions and a seed.
Simulation = Callable[[int, int], list[Promise]]

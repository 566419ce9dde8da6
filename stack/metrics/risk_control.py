"""Chooses a threshold with a guarantee over patients: a sensitivity or predictive value of at least x.

Learn then Test (Angelopoulos et al. 2021) with a fixed sequence of thresholds, and tests of means over patients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import DataError
from stack.metrics.scores import Bools, Floats, check_one_per_row, checked, raise_for_rows

LOWER_AIMS, UPPER_AIMS = ("sensitivity", "npv"), ("specificity", "ppv")
TESTS = ("binomial", "betting", "approximate")
_OF_DECIDED = {"npv", "ppv"}  # shares of the decided rows; the others are shares of a class
_MAX_STAKE = 0.99  # of the largest possible one, at which a single error could lose everything
_HALVINGS = 40  # in the search for a number of groups
_MAX_DIGITS = 12  # of a rounded threshold
_ENOUGH = 0.99  # share of the rows that could be decided that a rounded threshold decides, at least


@dataclass(frozen=True)
class Guarantee:
    """A threshold below (or from) which rows are decided, and the guarantee that it has; None where none has it."""

    aim: str  # sensitivity and npv: rows below the threshold are negative; specificity and ppv: from it on positive
    level: float  # the aim is at least this
    confidence: float  # in at least this share of samples of patients
    threshold: float | None
    groups: int  # groups that the test rests on: with the class, or with a decided row
    rows: int  # their rows: of the class, or decided
    errors: int  # wrong decisions among these rows at the threshold, or at the first one tested where none passed
    most: int  # rows of the class in one group, at most: a betting test assumes that no group has more
    test: str  # one of TESTS
    needed: int | None  # where no threshold passes and no decision was wrong: groups that the test needs, at least


def guaranteed_threshold(
    y: ArrayLike,
    p: ArrayLike,
    group: ArrayLike,
    aim: str,
    level: float,
    confidence: float,
    *,
    exact: bool = True,
) -> Guarantee:
    """Returns the threshold of calibrated `p` (n,) that decides most rows while ``aim`` is at least ``level``.

    Rows that are not decided go to a person, who is assumed to be right:

    - sensitivity: of all positives, the share that is not called negative. Rows with p < threshold are negative;
    - npv: of the rows called negative, the share that is negative;
    - specificity: of all negatives, the share that is not called positive. Rows with p >= threshold are positive;
    - ppv: of the rows called positive, the share that is positive.

    Over samples of whole groups (patients) from one population, the aim's value in the population is below ``level`` in
    at most 1 - ``confidence`` of the samples. With e errors and c rows that count in a group, the null hypothesis at a
    threshold is E[e - (1 - level) c] >= 0 over groups. Thresholds are tested in a fixed sequence, from the one that
    decides nothing (sensitivity, specificity), or from p = 1 - level (npv) or p = level (ppv), where calibrated rows
    keep the promise, towards more decided rows; the last one before the first that is not rejected is taken, so no
    correction for their number is needed (Angelopoulos et al. 2021, section 2.3; Bates et al. 2021 for monotone risks).
    The test is the binomial one where a group has at most one row that counts. Else, if ``exact``, it is a mean of
    betting tests for bounded means (Waudby-Smith & Ramdas 2023), whose only assumption is the number of rows of the
    class that a group can have: ``most``, the largest number in these rows. It decides fewer rows where few groups have
    many. If not ``exact``, it is the binomial test with effective numbers of rows and errors (Korn & Graubard
    1998), whose design effect is estimated: its confidence is approximate. Raises DataError for another aim, invalid p
    or targets, and missing groups.
    """
    if aim not in (*LOWER_AIMS, *UPPER_AIMS) or not (0 < level < 1 and 0 < confidence < 1):
        raise DataError(
            f"{aim} of {level:g} with confidence {confidence:g}: give {', '.join((*LOWER_AIMS, *UPPER_AIMS))}, and a "
            "level and a confidence between 0 and 1"
        )
    positive, p = checked(y, p)
    given = check_one_per_row(np.asarray(group, dtype=object), positive, "groups")
    codes, _ = pd.factorize(given)
    raise_for_rows(codes < 0, given, "groups are missing", "give each row its group")
    values: Floats = np.asarray(p, np.float64)
    upper, of_decided = aim in UPPER_AIMS, aim in _OF_DECIDED
    wrong, key = (~positive, -values) if upper else (positive, values)
    order = np.argsort(key, kind="stable")
    rows = _Rows(key[order], wrong[order], codes[order], 1 - level, 1 - confidence, of_decided, exact)
    ends = np.flatnonzero(np.append(np.diff(rows.key) > 0, True))  # the last row of each value
    first = 0  # rows that the first threshold decides
    if of_decided:
        first = int((values >= level).sum() if upper else (values < 1 - level).sum())
    # Whether deciding the first 0, …, n rows is shown to keep the promise; only whole values can be decided.
    passes = np.concatenate([[rows.passes_at_start()], rows.passes()])
    counts = np.concatenate([[0], ends + 1])
    counts = counts[counts >= first]
    failing = np.flatnonzero(~passes[counts])
    passed = len(counts) if not failing.size else int(failing[0])
    decided, threshold = first, None
    if passed:
        start = None if not of_decided else level if upper else 1 - level
        most = int(counts[passed - 1])
        threshold = _upper_cut(values, most, start) if upper else _lower_cut(values, most, start)
        decided = int((values >= threshold).sum() if upper else (values < threshold).sum())
    counted = np.arange(len(rows.key)) < decided if of_decided else rows.wrong
    errors = int(rows.wrong[:decided].sum())
    return Guarantee(
        aim=aim, level=level, confidence=confidence, threshold=threshold, groups=len(np.unique(rows.group[counted])),
        rows=int(counted.sum()), errors=errors, most=rows.most, test=rows.test,
        needed=None if passed or errors else rows.needed(counted),
    )  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """Rows in the order in which they are decided, and the test of the promise."""

    key: Floats  # (n,) ascending: p, or -p where high rows are decided
    wrong: Bools  # (n,): whether deciding this row is an error
    group: NDArray[np.intp]
    alpha: float  # 1 - level
    delta: float  # 1 - confidence
    of_decided: bool  # whether the promise is a share of the decided rows, else of the rows of the class
    exact: bool

    @property
    def level(self) -> float:
        """What the share of right decisions is to be, at least."""
        return 1 - self.alpha

    @cached_property
    def of_class(self) -> Floats:
        """Rows of the class whose decision is an error, by group."""
        return np.bincount(self.group, self.wrong, int(self.group.max()) + 1).astype(np.float64)

    @property
    def most(self) -> int:
        """Rows of the class in one group, at most."""
        return int(self.of_class.max())

    @cached_property
    def test(self) -> str:
        """The test of TESTS that fits: the binomial one where each group has at most one row that counts."""
        if (int(np.bincount(self.group).max()) if self.of_decided else self.most) <= 1:
            return "binomial"
        return "betting" if self.exact else "approximate"

    def passes(self) -> Bools:
        """Returns, for each row (n,), whether deciding all rows up to it is shown to keep the promise."""
        if not (self.of_decided or self.wrong.any()):
            return np.zeros(len(self.key), bool)
        in_group = pd.Series(self.wrong.astype(np.int64)).groupby(self.group)
        errors: Floats = in_group.cumsum().to_numpy().astype(np.float64)  # of the row's group, once it is decided
        counted: Floats = self.of_class[self.group]
        if self.of_decided:
            counted = in_group.cumcount().to_numpy().astype(np.float64) + 1
        if self.test != "betting":
            return self._is_binomially_enough(errors, counted)
        after = errors - self.alpha * counted
        before = after - self.wrong + (self.alpha if self.of_decided else 0.0)
        stakes = self.stakes(self.groups)
        steps = (np.cumsum(np.log1p(-stake * after) - np.log1p(-stake * before)) for stake in stakes)
        return self._is_enough([step + start for step, start in zip(steps, self._log_wealth(stakes), strict=True)])

    def _is_binomially_enough(self, errors: Floats, counted: Floats) -> Bools:
        """Returns the result of the binomial test for each row (n,), with effective numbers unless groups have one row.

        ``errors`` and ``counted`` are those of the row's group once the row is decided. As for the interval of a
        proportion, the design effect is at least 1, and where nothing is an error, each group counts as one row.
        """
        from scipy.special import betainc

        total = np.cumsum(self.wrong).astype(np.float64)
        steps = np.arange(1.0, len(self.key) + 1)
        rows = steps if self.of_decided else np.full(len(self.key), total[-1])
        groups = np.cumsum(counted == 1) if self.of_decided else np.full(len(self.key), float(self.groups))
        effective = rows
        if self.test == "approximate":
            # Sums over groups of e², e c and c², which change with each row; (e - share c)² sums up to the variance.
            squares = np.cumsum(np.where(self.wrong, 2 * errors - 1, 0))
            if self.of_decided:
                mixed = np.cumsum(np.where(self.wrong, errors + counted - 1, errors))
                sizes = np.cumsum(2 * counted - 1)
            else:
                mixed = np.cumsum(self.wrong * counted)
                sizes = np.full(len(self.key), self.of_class @ self.of_class)
            share = total / rows
            spread = np.maximum(squares - 2 * share * mixed + share**2 * sizes, 0) * groups / np.maximum(groups - 1, 1)
            independent = share * (1 - share) / np.maximum(rows - 1, 1)
            with np.errstate(divide="ignore", invalid="ignore"):
                effect = np.maximum(spread / rows**2 / independent, 1)
            effective = np.where((total == 0) | (total == rows), np.minimum(groups, rows), rows / effect)
        wrong = total / rows * effective
        right = effective - wrong
        enough = betainc(wrong + 1, np.maximum(right, 1e-9), self.alpha) >= 1 - self.delta  # P(Bin > wrong)
        return np.asarray(enough & (right > 0), bool)

    def passes_at_start(self) -> bool:
        """Whether the promise is shown where no row is decided: a share of a class is then 1, others are not known."""
        if self.of_decided or not self.wrong.any():
            return False
        if self.test != "betting":  # where no row is an error, each group counts as one row
            return bool(self.level**self.groups <= self.delta)
        return bool(self._is_enough(self._log_wealth(self.stakes(self.groups))))

    @property
    def groups(self) -> int:
        """Groups that the test is about: all, or those with a row of the class."""
        return len(self.of_class) if self.of_decided else int((self.of_class > 0).sum())

    def stakes(self, groups: float) -> Floats:
        """Returns the stakes of the betting tests: from the best one for rows that depend on each other to the largest.

        They depend only on what errors cannot change: the number of groups, and the largest numbers of rows in one.
        The best stake for n independent rows is about sqrt(2 log(1 / delta) / (n alpha)). A loss of a group is at most
        (1 - alpha) · most, so that the wealth stays positive.
        """
        most = max(self.most, 1)
        rows = groups * (int(np.bincount(self.group).max()) if self.of_decided else most**2)
        best = math.sqrt(2 * math.log(1 / self.delta) / (self.alpha * rows)) * most
        low, high = min(best, _MAX_STAKE), _MAX_STAKE if self.of_decided else min(best * most, _MAX_STAKE)
        parts = np.geomspace(low, high, 1 + math.ceil(math.log2(high / low)))
        return parts / ((1 - self.alpha) * most)

    def _log_wealth(self, stakes: Floats) -> list[float]:
        """Returns the log wealth of each stake where no row is decided."""
        return [
            0.0 if self.of_decided else float(np.log1p(stake * self.alpha * self.of_class).sum()) for stake in stakes
        ]

    def _is_enough(self, log_wealth: Sequence[ArrayLike]) -> Bools:
        """Whether the mean wealth of the stakes, of which the null hypothesis expects 1 at most, reaches 1 / delta."""
        mean = np.logaddexp.reduce(list(log_wealth)) - math.log(len(log_wealth))  # type: ignore[arg-type]
        return np.asarray(mean >= -math.log(self.delta), bool)

    def needed(self, counted: Bools) -> int:
        """Returns how many groups the test needs if none of their rows is decided wrongly.

        More groups of the same sizes as those of the ``counted`` rows are assumed.
        """
        single = math.ceil(math.log(self.delta) / math.log(self.level))
        if self.test != "betting" or not counted.any():
            return single
        sizes = np.bincount(self.group[counted])
        sizes = sizes[sizes > 0]

        def is_enough(times: float) -> bool:
            stakes = self.stakes(times * self.groups)
            return bool(self._is_enough([times * float(np.log1p(s * self.alpha * sizes).sum()) for s in stakes]))

        low, high = 1.0, 2.0
        while not is_enough(high):
            low, high = high, 2 * high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if is_enough(middle) else (middle, high)
        return math.ceil(high * len(sizes) * (1 - 1e-9))


def _lower_cut(p: Floats, decided: int, start: float | None) -> float:
    """Returns a threshold with few digits below which (almost) the lowest ``decided`` values lie, and no others.

    It may leave out one in a hundred of them, as every threshold from ``start`` on up to the last one is allowed.
    """
    ordered = np.sort(p)
    last = float(ordered[decided - 1]) if decided else -math.inf
    if decided == len(ordered):
        return 1.0 if last < 1 else math.nextafter(1.0, 2.0)
    most = float(ordered[decided])
    for unit in _units(most):
        rounded = float(Decimal(most).quantize(unit, ROUND_FLOOR))
        if start is None or rounded >= start:
            inside = int(np.searchsorted(ordered, rounded, "left"))
            if _ENOUGH * decided <= inside <= decided:
                return rounded
    return most


def _upper_cut(p: Floats, decided: int, start: float | None) -> float:
    """Returns a threshold with few digits from which on (almost) the highest ``decided`` values lie."""
    ordered = np.sort(p)
    if decided == len(ordered):
        return 0.0
    highest_left = float(ordered[len(ordered) - decided - 1])
    for unit in _units(1 - highest_left):
        rounded = float(Decimal(highest_left).quantize(unit, ROUND_FLOOR) + unit)
        if rounded <= (1.0 if start is None else start):
            inside = len(ordered) - int(np.searchsorted(ordered, rounded, "left"))
            if _ENOUGH * decided <= inside <= decided:
                return rounded
    return float(ordered[len(ordered) - decided]) if decided else math.nextafter(max(highest_left, 1.0), 2.0)


def _units(value: float) -> Iterator[Decimal]:
    """Yields the units of the second to the twelfth digit of a number."""
    size = Decimal(value).adjusted() if value else 0
    for digits in range(1, _MAX_DIGITS):
        yield Decimal(1).scaleb(size - digits)

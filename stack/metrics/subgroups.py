"""Compares the AUC within subgroups (sex, age band, site, source) to the AUC of all other rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from stack.metrics.intervals import auc_components, clustered_auc, interval
from stack.metrics.scores import Bools, auc, checked

MIN_GROUPS = 5  # groups with a positive, and with a negative, needed on each side; with fewer only counts are shown
AGE_BANDS = (0, 20, 40, 60, 80)  # years: the lower edges; the last band has no upper edge
MISSING = "not known"
_MAX_CORRELATION = 0.95  # of the AUCs of both sides; an estimate from few groups can exceed any possible value
_TYPES = {"by": "str", "subgroup": "str", "rows": "int64", "groups": "int64", "positives": "int64", "apart": "bool"}
_MAX_LEVELS = 12  # maximum of subgroups for a column; the rarest levels share one


SKIN_TONE = re.compile(r"fitz|skin[ _-]?(tone|type|colou?r)|photo[ _-]?type|monk[ _-]?(skin|scale|tone)", re.IGNORECASE)


class Subgroup(NamedTuple):
    """Subgroup of the rows (n,): the column that defines it, its name and its rows."""

    by: str
    name: str
    rows: Bools


def subgroups(
    y: ArrayLike, s: ArrayLike, split_group: ArrayLike, parts: Sequence[Subgroup], *, draws: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Returns, for each subgroup, the AUC of scores `s` (n,) for targets `y` (n,) and its difference to all other rows.

    Columns: by, subgroup, rows, groups, positives, prevalence; auc with its 95 % bootstrap interval low and high;
    difference (AUC of the subgroup minus AUC of the other rows) with its interval wide_low and wide_high; apart,
    whether that excludes 0. Where a side has fewer than MIN_GROUPS groups of a class, the AUC columns are NaN and apart
    is False. low and high are NaN where all draws are equal, for example where the scores separate the classes.

    The two sides have different rows but can share groups, whose rows are dependent: where they do, their covariance is
    subtracted. The standard error of a side assumes that the score orders both sides equally well: the structural
    components (DeLong et al. 1988) of all rows, divided by the numbers of positives and negatives on each side, times
    the design effect of groups (Obuchowski 1997). A bootstrap of the difference fails here: a side with few positives
    whose AUC is high by chance has a high AUC in every draw. With ten subgroups without a difference it raised a false
    alarm in a third of the data sets, this standard error in 5 %.
    The wide interval is corrected by Bonferroni: 95 % for all comparisons together, where a subgroup and its complement
    count as one comparison.
    """
    positive, s = checked(y, s)
    group, _ = pd.factorize(np.asarray(split_group, dtype=object))
    comparable = [_is_comparable(positive, group, part.rows) for part in parts]
    compared = {_cut_key(part.rows) for part, is_comparable in zip(parts, comparable, strict=True) if is_comparable}
    width = float(-ndtri(0.025 / max(len(compared), 1)))
    spread = variance_components(positive, s, group) if compared else (np.nan, np.nan)
    records = []
    for part, is_comparable in zip(parts, comparable, strict=True):
        rows = part.rows
        record: dict[str, object] = {
            "by": part.by, "subgroup": part.name, "rows": int(rows.sum()), "groups": len(np.unique(group[rows])),
            "positives": int(positive[rows].sum()), "prevalence": float(positive[rows].mean()),
        }  # fmt: skip
        record["apart"] = False
        if is_comparable:
            here = interval("auc", positive[rows], s[rows], group[rows], draws=draws, seed=seed)
            apart = here.value - auc(positive[~rows], s[~rows])
            half = width * np.sqrt(_variance_of_difference(spread, positive, s, group, rows))
            record |= {"auc": here.value, "difference": apart, "wide_low": apart - half, "wide_high": apart + half}
            record["apart"] = bool(abs(apart) > half)
            if here.low < here.high:
                record |= {"low": here.low, "high": here.high}
        records.append(record)
    columns = ["by", "subgroup", "rows", "groups", "positives", "prevalence"]
    columns += ["auc", "low", "high", "difference", "wide_low", "wide_high", "apart"]
    if not records:  # without a type of its own, an empty column of words would be one of numbers
        return pd.DataFrame({name: pd.Series(dtype=_TYPES.get(name, "float64")) for name in columns})
    return pd.DataFrame(records).reindex(columns=columns)


MAX_FURTHER = 6  # further categorical columns of which subgroups are shown


def find_subgroups(rows: pd.DataFrame, further: Mapping[str, str] | None = None) -> list[Subgroup]:
    """Returns the subgroups of table rows by sex, age band, site, source and ``further`` columns of words.

    ``further`` has the name of each subgroup's column by its name in ``rows``. Columns with fewer than two
    subgroups are left out. Rows with a missing value are a subgroup of their own.
    """
    parts = []
    named = {column: column for column in ("sex", "age", "site", "source")} | dict(further or {})
    for column, by in named.items():
        if column not in rows or not rows[column].notna().any():
            continue
        levels = _age_bands(rows[column]) if column == "age" else rows[column].astype("object")
        order = [name for name in _age_names() if (levels == name).any()] if column == "age" else _commonest(levels)
        rare = levels[levels.notna() & ~levels.isin(order)].unique()
        found = [Subgroup(by, str(name), (levels == name).to_numpy(bool)) for name in order]
        if len(rare):
            found.append(Subgroup(by, f"other ({len(rare)} kinds)", levels.isin(rare).to_numpy(bool)))
        if levels.isna().any():
            found.append(Subgroup(by, MISSING, levels.isna().to_numpy(bool)))
        parts += found if len(found) > 1 else []
    return parts


def columns_to_cut(rows: pd.DataFrame, columns: Mapping[str, str]) -> dict[str, str]:
    """Returns the columns of words, as in `find_subgroups`, that have subgroups worth a line: at most `MAX_FURTHER`.

    A skin tone goes first, and a column of few words before one of many, of which most would share a line.
    """
    words = {name: rows[name].nunique() for name in columns}
    several = [name for name in columns if words[name] > 1]
    order = sorted(several, key=lambda name: (not SKIN_TONE.search(columns[name]), words[name] > _MAX_LEVELS))  # stable
    first = order[:MAX_FURTHER]
    return {name: columns[name] for name in columns if name in first}


_MAX_CODES = 12  # different values of a column of numbers that is read as codes of the skin tone


def shown_subgroups(
    rows: pd.DataFrame, words: Mapping[str, str], numeric: Mapping[str, str]
) -> tuple[list[Subgroup], int]:
    """Returns the subgroups of table rows that the report shows, and the number of columns of words left out.

    ``words`` and ``numeric`` have the shown name of each further column by its name in ``rows``. Of the columns of
    numbers, those are taken that are codes of a skin tone.
    """
    rows, tones = with_skin_tone(rows, numeric)
    cut = columns_to_cut(rows, {**tones, **words})
    return find_subgroups(rows, cut), len(tones) + len(words) - len(cut)


def with_skin_tone(rows: pd.DataFrame, numeric: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns the rows with columns of numbers that are codes of a skin tone as words, and these columns.

    ``numeric`` has the shown name of each column of numbers by its name in ``rows``. A code, such as Fitzpatrick's 1
    to 6, is a column whose name says so and that has at most 12 different values, all whole numbers.
    """
    found = {}
    for name, shown in numeric.items():
        values = rows[name].dropna().unique() if name in rows and SKIN_TONE.search(shown) else np.empty(0)
        if 1 < len(values) <= _MAX_CODES and np.array_equal(values, np.round(values)):
            found[name] = shown
    words = {name: rows[name].map(lambda value: f"{value:.0f}", na_action="ignore").astype("object") for name in found}
    return rows.assign(**words), found


def _is_comparable(positive: Bools, group: NDArray[np.intp], rows: Bools) -> bool:
    """Returns whether the subgroup and the other rows have at least MIN_GROUPS groups with each class."""
    cells = (side & of for side in (rows, ~rows) for of in (positive, ~positive))
    return all(len(np.unique(group[cell])) >= MIN_GROUPS for cell in cells)


def _cut_key(rows: Bools) -> bytes:
    """Returns a key that is the same for a subgroup and its complement."""
    return bytes(np.packbits(rows ^ rows[0]))


def variance_components(positive: Bools, s: NDArray[np.generic], group: NDArray[np.intp]) -> tuple[float, float]:
    """Returns two terms of the variance of an AUC: to divide by the number of positives and by that of negatives."""
    above, below = auc_components(np.asarray(s, np.float64), positive)
    of_positive, of_negative = float(above.var(ddof=1)), float(below.var(ddof=1))
    independent = of_positive / positive.sum() + of_negative / (~positive).sum()
    effect = (
        max(1.0, float(clustered_auc(positive, s, group).covariance[0, 0]) / independent) if independent > 0 else 1.0
    )
    return effect * of_positive, effect * of_negative


def _variance_of_difference(
    spread: tuple[float, float], positive: Bools, s: NDArray[np.generic], group: NDArray[np.intp], rows: Bools
) -> float:
    """Returns the variance of the AUC of ``rows`` minus that of the others, less twice the covariance of the two.

    The covariance is that of groups with rows on both sides (Obuchowski 1997): the sum over groups of the product of
    their contributions to either AUC. It is 0 where no group is on both sides.
    """
    above, below = auc_components(np.asarray(s, np.float64), positive)
    deviation = np.empty(len(positive))
    deviation[positive], deviation[~positive] = above - above.mean(), below - below.mean()
    sums = []
    for side in (rows, ~rows):
        share = np.where(positive, 1 / positive[side].sum(), 1 / (~positive)[side].sum())
        sums.append(np.bincount(group[side], (deviation * share)[side], int(group.max()) + 1))
    if len(np.intersect1d(group[rows], group[~rows])):  # within a side, a group has only its rows on this side
        spread = variance_components(positive, s, 2 * group + rows)
    variances = [_variance(spread, positive[side]) for side in (rows, ~rows)]
    limit = _MAX_CORRELATION * float(np.sqrt(variances[0] * variances[1]))
    return sum(variances) - 2 * float(np.clip(sums[0] @ sums[1], -limit, limit))


def _variance(spread: tuple[float, float], positive: Bools) -> float:
    return float(spread[0] / positive.sum() + spread[1] / (~positive).sum())


def _age_names() -> list[str]:
    closed = [f"{low}–{high - 1}" for low, high in pairwise(AGE_BANDS)]
    return [*closed, f"{AGE_BANDS[-1]} and over"]


def _age_bands(age: pd.Series) -> pd.Series:
    return pd.cut(age, [*AGE_BANDS, np.inf], right=False, labels=_age_names()).astype("object")


def _commonest(levels: pd.Series) -> list[str]:
    """Returns the commonest words of a column, the commonest first; steps of a scale (1 to 6, I to VI) in order."""
    counts = levels.value_counts()
    found = list(counts.index if len(counts) <= _MAX_LEVELS else counts.index[: _MAX_LEVELS - 1])
    if all(str(name) in _ROMAN for name in found):
        return sorted(found, key=lambda name: _ROMAN.index(str(name)))
    return sorted(found, key=lambda name: int(str(name))) if all(str(name).isdecimal() for name in found) else found


_ROMAN = ("I", "II", "III", "IV", "V", "VI")  # skin types after Fitzpatrick

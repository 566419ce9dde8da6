"""What a row says beside the other rows of its group: "is this lesion unlike the patient's others?".

Every feature comes from the rows of one group alone: never another group, never a target, never a count
(law 8). A missing value takes no part; a group with nothing but missing values gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tabular.errors import TabularError

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]


def metadata_aggregates(frame: pd.DataFrame) -> pd.DataFrame:
    """Age across the group's rows, from the columns `group` and `age` (NaN where missing); years.

    Gives float32 columns `age_group_min`, `age_group_max`, `age_group_spread` (max - min) and
    `age_since_group_min` (the row's distance to the group's youngest: 0 in a group of one), index of `frame`.
    """
    absent = [column for column in ("group", "age") if column not in frame.columns]
    if absent:
        raise TabularError(f"column {', '.join(map(repr, absent))} absent: age aggregates need 'group' and 'age'")
    codes, groups = code_groups(frame["group"])
    age = _finite(frame["age"].to_numpy(np.float64, na_value=np.nan), "age")
    known = _Known.of(age, codes)
    youngest, oldest = known.for_groups(known.min, groups)[codes], known.for_groups(known.max, groups)[codes]
    features = {
        "age_group_min": youngest,
        "age_group_max": oldest,
        "age_group_spread": oldest - youngest,
        "age_since_group_min": age - youngest,
    }
    return pd.DataFrame(features, index=frame.index).astype(np.float32)


def prediction_aggregates(group: ArrayLike, logits: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """Each run's logits across the group's rows: group (n,), logits (n, r), names the r runs.

    Gives (n, 8 r) float32, for each run `<run>_group_` followed by
        mean, max, min, std     of the group; std is the population's, so 0 in a group of one
        rank                    average rank among the group's rows, scaled to 0..1; 0.5 in a group of one
        z                       (logit - mean) / std; 0 where the group has no spread
        others_mean             mean of the other rows; in a group of one the row's own value
        others_diff             logit - others_mean; in a group of one 0
    A row whose own logit is NaN has its group's mean, max, min, std and others_mean, and NaN in the rest.
    The result doesn't depend on the order of the rows, to the last bit. The index is that of `group`, if any.
    """
    matrix = np.asarray(logits, dtype=np.float64)
    index = group.index if isinstance(group, pd.Series) else None
    codes, groups = code_groups(group)
    if matrix.shape != (len(codes), len(names)):
        raise TabularError(
            f"logits of shape {matrix.shape} for {len(codes)} rows and {len(names)} runs "
            f"({', '.join(names)}): one row an id and one column a run"
        )
    if len(set(names)) < len(names):
        raise TabularError(f"a run is named twice in {', '.join(names)}: give each its own name")
    features: dict[str, NDArray[np.float32]] = {}
    for column, run in zip(matrix.T, names, strict=True):
        known = _Known.of(_finite(column, run), codes)
        for name, values in _run_features(known, codes, groups).items():
            features[f"{run}_group_{name}"] = values.astype(np.float32)
    return pd.DataFrame(features, index=pd.RangeIndex(len(codes)) if index is None else index)


def context_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """How many images and visits the group has: an artefact of collection (law 8), off by default.

    Columns `group`, `site` (missing sites count together) and `age`, whose distinct values are the visits. Gives
    float32 `group_images`, `group_images_of_site` and `group_visits`, as logarithms.
    """
    codes, groups = code_groups(frame["group"])
    sites, _ = pd.factorize(frame["site"])  # -1 where missing
    at_site, places = code_groups(codes * (sites.max(initial=0) + 2) + sites + 1)
    ages, years = pd.factorize(frame["age"])  # -1 where missing
    visits = pd.unique(codes[ages >= 0] * max(len(years), 1) + ages[ages >= 0]) // max(len(years), 1)
    features = {
        "group_visits": np.maximum(np.bincount(visits, minlength=groups), 1)[codes],
        "group_images": np.bincount(codes, minlength=groups)[codes],
        "group_images_of_site": np.bincount(at_site, minlength=places)[at_site],
    }
    logs = {name: np.log(counts) for name, counts in features.items()}
    return pd.DataFrame(logs, index=frame.index).astype(np.float32)


def code_groups(group: ArrayLike) -> tuple[Positions, int]:
    """Whole numbers from 0 for the groups (n,), and how many there are. Raises TabularError for a missing group."""
    codes, groups = pd.factorize(group if isinstance(group, pd.Series) else pd.Series(np.asarray(group)))
    if (codes < 0).any():
        raise TabularError(
            f"{(codes < 0).sum()} rows have no group, first row {int(np.argmax(codes < 0))}: "
            "name their group, or give each a group of its own"
        )
    return codes, len(groups)


def _run_features(known: _Known, codes: Positions, groups: int) -> dict[str, Floats]:
    size, segment = known.size, known.segment
    # Shifted by the minimum first: equal logits then have deviations of exactly zero, and a z of 0 instead of
    # a rounding error divided by a rounding error.
    shift = known.value - known.min[segment]
    mean_shift = np.add.reduceat(shift, known.start) / size
    deviation = shift - mean_shift[segment]
    variance = np.add.reduceat(deviation**2, known.start) / size
    std = np.sqrt(variance)
    z = np.divide(deviation, std[segment], out=np.zeros_like(deviation), where=std[segment] > 0)
    mean = known.min + mean_shift
    # Through deviations and not as (sum - own) / (size - 1), which cancels where the logits are large.
    others = np.maximum(size - 1, 1)[segment]
    group_mean = known.for_groups(mean, groups)[codes]
    others_mean = group_mean.copy()
    others_mean[known.row] = mean[segment] - deviation / others
    return {
        "mean": group_mean,
        "max": known.for_groups(known.max, groups)[codes],
        "min": known.for_groups(known.min, groups)[codes],
        "std": known.for_groups(std, groups)[codes],
        "rank": known.for_rows(_scaled_rank(known), len(codes)),
        "z": known.for_rows(z, len(codes)),
        "others_mean": others_mean,
        "others_diff": known.for_rows(deviation * (size[segment] / others), len(codes)),
    }


def _scaled_rank(known: _Known) -> Floats:
    """(average rank - 1) / (size - 1) of each known value; equal values share the middle of their places."""
    new = np.ones(len(known.value), dtype=np.bool_)
    new[1:] = (known.value[1:] != known.value[:-1]) | (known.segment[1:] != known.segment[:-1])
    first = np.flatnonzero(new)
    tied = np.diff(first, append=len(new))
    place = np.repeat(first + (tied - 1) / 2, tied) - known.start[known.segment]
    last = (known.size - 1)[known.segment]
    scaled = np.full(len(place), 0.5)
    np.divide(place, last, out=scaled, where=last > 0)
    return scaled


@dataclass(frozen=True)
class _Known:
    """The values that aren't missing, sorted by group, then value: minimum, maximum and ranks are places, and
    sums run in an order that the rows of the table can't change."""

    value: Floats
    row: Positions  # where each value stands in the table
    group: Positions  # group of each segment: the groups that have a known value
    start: Positions  # first place of each segment
    size: Positions  # values in each segment
    segment: Positions  # segment of each value

    @classmethod
    def of(cls, values: Floats, codes: Positions) -> _Known:
        known = np.flatnonzero(~np.isnan(values))
        row = known[np.lexsort((values[known], codes[known]))]
        code = codes[row]
        start = np.flatnonzero(np.diff(code, prepend=-1))
        size = np.diff(start, append=len(row))
        return cls(values[row], row, code[start], start, size, np.repeat(np.arange(len(start)), size))

    @property
    def min(self) -> Floats:
        return np.take(self.value, self.start)

    @property
    def max(self) -> Floats:
        return np.take(self.value, self.start + self.size - 1)

    def for_groups(self, values: Floats, groups: int) -> Floats:
        spread = np.full(groups, np.nan)
        spread[self.group] = values
        return spread

    def for_rows(self, values: Floats, rows: int) -> Floats:
        spread = np.full(rows, np.nan)
        spread[self.row] = values
        return spread


def _finite(values: Floats, name: str) -> Floats:
    infinite = np.isinf(values)
    if infinite.any():
        raise TabularError(
            f"{name} is infinite in {infinite.sum()} rows, first row {int(np.argmax(infinite))}: "
            "clip p away from 0 and 1 before taking logits, or mark the value as missing"
        )
    return values

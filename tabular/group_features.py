"""Features of a row relative to its group ("is this lesion unlike the patient's others?").

Group features use the rows of one group only, and no targets; counts, which reveal how the data was collected (law 8),
are only in `context_counts`. Missing values are ignored; a group without known values gives NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import TabularError

Floats = NDArray[np.float64]
Positions = NDArray[np.intp]

ROLES = ("age", "sex", "site")  # columns of the table with a meaning of their own


def metadata_aggregates(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns age features of each row's group, in years, from the columns `group` and `age` (NaN where missing).

    The float32 columns are `age_group_min`, `age_group_max`, `age_group_spread` (max - min) and `age_since_group_min`
    (the row's age minus the group's minimum: 0 in a group of one), with the index of `frame`.
    """
    absent = [column for column in ("group", "age") if column not in frame.columns]
    if absent:
        raise TabularError(f"column {', '.join(map(repr, absent))} absent: age aggregates need 'group' and 'age'")
    codes, groups = code_groups(frame["group"])
    age = _check_finite(frame["age"].to_numpy(np.float64, na_value=np.nan), "age")
    known = SortedByGroup.of(age, codes)
    youngest, oldest = known.scatter_groups(known.min, groups)[codes], known.scatter_groups(known.max, groups)[codes]
    features = {
        "age_group_min": youngest,
        "age_group_max": oldest,
        "age_group_spread": oldest - youngest,
        "age_since_group_min": age - youngest,
    }
    return pd.DataFrame(features, index=frame.index).astype(np.float32)


def prediction_aggregates(group: ArrayLike, logits: ArrayLike, names: Sequence[str]) -> pd.DataFrame:
    """Returns features of each run's logits relative to the row's group: group (n,), logits (n, r), names of r runs.

    The result is (n, 8 r) float32, for each run `<run>_group_` followed by
        mean, max, min, std     of the group; std is the population's, so 0 in a group of one
        rank                    average rank among the group's rows, scaled to 0..1; 0.5 in a group of one
        z                       (logit - mean) / std; 0 where std is 0
        others_mean             mean of the other rows; in a group of one the row's own value
        others_diff             logit - others_mean; in a group of one 0
    A row whose own logit is NaN gets the mean, max, min and std of its group, others_mean equal to that mean, and NaN
    in the rest. The result does not depend on the order of the rows, to the last bit. The index is that of `group`, if
    any.
    """
    matrix = np.asarray(logits, dtype=np.float64)
    index = group.index if isinstance(group, pd.Series) else None
    codes, groups = code_groups(group)
    if matrix.shape != (len(codes), len(names)):
        raise TabularError(
            f"logits of shape {matrix.shape} for {len(codes)} rows and {len(names)} runs "
            f"({', '.join(names)}): give one row for each id and one column for each run"
        )
    if len(set(names)) < len(names):
        raise TabularError(f"a run is named twice in {', '.join(names)}: give each its own name")
    features: dict[str, NDArray[np.float32]] = {}
    for column, run in zip(matrix.T, names, strict=True):
        known = SortedByGroup.of(_check_finite(column, run), codes)
        for name, values in _run_features(known, codes, groups).items():
            features[f"{run}_group_{name}"] = values.astype(np.float32)
    return pd.DataFrame(features, index=pd.RangeIndex(len(codes)) if index is None else index)


def context_counts(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the numbers of images and visits of each row's group, an artefact of data collection (law 8).

    Off by default. Reads the columns `group`, `site` (missing sites count as one site) and `age`, whose distinct values
    are the visits, at least 1. The result has the float32 columns `group_visits`, `group_images` and
    `group_images_of_site`, as natural logarithms.
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
    """Returns integer codes from 0 for the groups (n,), and the number of groups; TabularError for a missing group."""
    codes, groups = pd.factorize(group if isinstance(group, pd.Series) else pd.Series(np.asarray(group)))
    if (codes < 0).any():
        raise TabularError(
            f"{(codes < 0).sum()} rows have no group, first row {int(np.argmax(codes < 0))}: "
            "give their group, or each a group of its own"
        )
    return codes, len(groups)


def _run_features(known: SortedByGroup, codes: Positions, groups: int) -> dict[str, Floats]:
    size, segment = known.size, known.segment
    # Subtract the minimum first: equal logits then have deviations of exactly zero, and z is 0 instead of the quotient
    # of two rounding errors.
    shift = known.value - known.min[segment]
    mean_shift = np.add.reduceat(shift, known.start) / size
    deviation = shift - mean_shift[segment]
    variance = np.add.reduceat(deviation**2, known.start) / size
    std = np.sqrt(variance)
    z = np.divide(deviation, std[segment], out=np.zeros_like(deviation), where=std[segment] > 0)
    mean = known.min + mean_shift
    # Computed from deviations, because (sum - own) / (size - 1) loses precision for large logits.
    others = np.maximum(size - 1, 1)[segment]
    group_mean = known.scatter_groups(mean, groups)[codes]
    others_mean = group_mean.copy()
    others_mean[known.row] = mean[segment] - deviation / others
    return {
        "mean": group_mean,
        "max": known.scatter_groups(known.max, groups)[codes],
        "min": known.scatter_groups(known.min, groups)[codes],
        "std": known.scatter_groups(std, groups)[codes],
        "rank": known.scatter_rows(scaled_rank(known), len(codes)),
        "z": known.scatter_rows(z, len(codes)),
        "others_mean": others_mean,
        "others_diff": known.scatter_rows(deviation * (size[segment] / others), len(codes)),
    }


def scaled_rank(known: SortedByGroup) -> Floats:
    """Returns (average rank - 1) / (size - 1) of each known value; equal values share their mean rank."""
    new = np.ones(len(known.value), dtype=np.bool_)
    new[1:] = (known.value[1:] != known.value[:-1]) | (known.segment[1:] != known.segment[:-1])
    first = np.flatnonzero(new)
    tie_count = np.diff(first, append=len(new))
    place = np.repeat(first + (tie_count - 1) / 2, tie_count) - known.start[known.segment]
    last = (known.size - 1)[known.segment]
    scaled = np.full(len(place), 0.5)
    np.divide(place, last, out=scaled, where=last > 0)
    return scaled


@dataclass(frozen=True)
class SortedByGroup:
    """The known values, sorted by group and value, so that minimum, maximum and ranks are positions.

    Sums are taken in this order, which does not depend on the order of the rows in the table.
    """

    value: Floats
    row: Positions  # row of each value in the table
    group: Positions  # group of each segment; only groups with a known value have one
    start: Positions  # first position of each segment
    size: Positions  # number of values in each segment
    segment: Positions  # segment of each value

    @classmethod
    def of(cls, values: Floats, codes: Positions) -> SortedByGroup:
        """Returns the values (n,) that are not NaN, sorted by their group's code and then by value."""
        known = np.flatnonzero(~np.isnan(values))
        row = known[np.lexsort((values[known], codes[known]))]
        code = codes[row]
        start = np.flatnonzero(np.diff(code, prepend=-1))
        size = np.diff(start, append=len(row))
        return cls(values[row], row, code[start], start, size, np.repeat(np.arange(len(start)), size))

    @property
    def min(self) -> Floats:
        """Smallest value of each segment."""
        return np.take(self.value, self.start)

    @property
    def max(self) -> Floats:
        """Largest value of each segment."""
        return np.take(self.value, self.start + self.size - 1)

    def scatter_groups(self, values: Floats, groups: int) -> Floats:
        """Returns one value for each group from one for each segment; NaN for groups without known values."""
        spread = np.full(groups, np.nan)
        spread[self.group] = values
        return spread

    def scatter_rows(self, values: Floats, rows: int) -> Floats:
        """Returns one value for each row of the table from one for each known value; NaN for the other rows."""
        spread = np.full(rows, np.nan)
        spread[self.row] = values
        return spread


def _check_finite(values: Floats, name: str) -> Floats:
    infinite = np.isinf(values)
    if infinite.any():
        raise TabularError(
            f"{name} is infinite in {infinite.sum()} rows, first row {int(np.argmax(infinite))}: "
            "clip p away from 0 and 1 before computing logits, or set the value to NaN"
        )
    return values


NEIGHBOURS = 10  # of the local outlier factor
MIN_OUTLIER_GROUP = 2 * NEIGHBOURS + 1  # in smaller groups most rows are neighbours of each other
CHUNK_ROWS = 1024  # rows of a group's distance matrix held at a time; all of 9,000 would take 300 MB
Floats32 = NDArray[np.float32]


def embedding_aggregates(group: ArrayLike, z: NDArray[np.floating], name: str) -> pd.DataFrame:
    """Returns features of each row's embedding relative to its group: group (n,), z (n, d).

    Embeddings must be centred, so that their directions differ. The result is (n, 3) float32, in cosine distance (0 for
    the same direction, 1 for orthogonal, 2 for opposite directions):
        <name>_group_centroid   to the mean direction of the group's other rows
        <name>_group_nearest    to the nearest of the other rows
        <name>_group_outlier    local outlier factor (Breunig et al. 2000) with 10 neighbours: about 1 for a row as
                                dense as its neighbours, larger for an isolated row; 1 in groups of fewer than 21 rows
    In a group of one both distances are 0. The cost is proportional to the sum of squared group sizes.
    """
    codes, groups = code_groups(group)
    if z.ndim != 2 or len(z) != len(codes):
        raise TabularError(f"{name}: embeddings of shape {z.shape} for {len(codes)} rows: give one row for each id")
    if not np.isfinite(z).all():
        raise TabularError(
            f"{name}: embeddings of {int((~np.isfinite(z)).any(axis=1).sum())} rows are not finite: embed them again"
        )
    order = np.argsort(codes, kind="stable")
    size = np.bincount(codes, minlength=groups)
    start = np.cumsum(size) - size
    made = np.zeros((len(codes), 3), np.float32)
    made[:, 2] = 1
    for rows in np.unique(size[(size > 1) & (size < MIN_OUTLIER_GROUP)]).tolist():
        firsts = start[size == rows]
        step = max(1, CHUNK_ROWS // rows)  # groups
        for some in range(0, len(firsts), step):  # groups of one size go through numpy together
            members = order[firsts[some : some + step, None] + np.arange(rows)]
            made[members, :2] = _distances_in_groups(_unit(z[members].astype(np.float32)))
    large = size >= MIN_OUTLIER_GROUP
    for first, rows in zip(start[large], size[large], strict=True):
        members = order[first : first + rows]
        made[members] = _features_in_large_group(_unit(z[members].astype(np.float32)))
    columns = [f"{name}_group_{feature}" for feature in ("centroid", "nearest", "outlier")]
    index = group.index if isinstance(group, pd.Series) else None
    return pd.DataFrame(made, columns=columns, index=index)


def _distances_in_groups(unit: Floats32) -> Floats32:
    """Returns the distances to the centroid and to the nearest row (m, n, 2) for m groups of unit vectors (m, n, d)."""
    rows = np.arange(unit.shape[1])
    distances = 1 - unit @ unit.swapaxes(1, 2)
    distances[:, rows, rows] = np.inf  # the row itself
    made: Floats32 = np.maximum(np.stack([_to_centroid(unit), distances.min(axis=2)], axis=2), 0)
    return made


def _to_centroid(unit: Floats32) -> Floats32:
    """Returns for unit vectors (…, n, d) of groups the distance (…, n) to the mean direction of the other vectors."""
    others = unit.sum(axis=-2, keepdims=True) - unit
    distance: Floats32 = 1 - np.einsum("...d,...d->...", _unit(others), unit)
    return distance


def _features_in_large_group(unit: Floats32) -> Floats32:
    """Returns the three features (n, 3) of one group's unit vectors (n, d), n at least MIN_OUTLIER_GROUP."""
    n, k = len(unit), NEIGHBOURS
    distance, neighbour = np.empty((n, k), np.float32), np.empty((n, k), np.intp)
    for first in range(0, n, CHUNK_ROWS):
        chunk = slice(first, min(first + CHUNK_ROWS, n))
        distances = unit[chunk] @ unit.T
        np.subtract(1, distances, out=distances)
        distances[np.arange(len(distances)), np.arange(first, first + len(distances))] = np.inf  # the row itself
        neighbour[chunk] = np.argpartition(distances, k, axis=1)[:, :k]
        distance[chunk] = np.take_along_axis(distances, neighbour[chunk], axis=1)
    made = [_to_centroid(unit), distance.min(axis=1)]
    return np.column_stack([np.maximum(made, 0).T, _local_outlier_factor(distance, neighbour)]).astype(np.float32)


def _local_outlier_factor(distance: Floats32, neighbour: NDArray[np.intp]) -> Floats32:
    """Returns local outlier factors (n,) (Breunig et al. 2000) from each row's k neighbours (n, k) and distances."""
    near = np.maximum(distance, 0)
    reach = np.maximum(near, near.max(axis=1)[neighbour])
    density = 1 / (reach.mean(axis=1) + np.float32(1e-10))  # as in scikit-learn: finite for duplicates
    factor: Floats32 = (density[neighbour].mean(axis=1) / density).astype(np.float32)
    return factor


def _unit(z: Floats32) -> Floats32:
    length = np.linalg.norm(z, axis=-1, keepdims=True)
    unit: Floats32 = (z / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
    return unit

"""Features of numeric columns relative to the rows of the same group, or of the same group and site.

"Is this lesion larger than the patient's others?" Like all group features they use the rows of one group only, and no
targets; a row's features are the same bytes whether its group is computed alone or in a larger table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import TabularError
from tabular.group_features import Floats, SortedByGroup, code_groups, scaled_rank

STATISTICS = ("median_diff", "mean_diff", "mean_ratio", "z", "rank", "spread")
LARGEST = 1e38  # of a value; differences of two such values are still finite in float32
_MEAN_IS_ZERO = 1e-12  # of the mean absolute value: a smaller mean is what rounding leaves of zero


def relative_features(
    group: ArrayLike,
    values: ArrayLike | pd.DataFrame,
    names: Sequence[str],
    *,
    word: str = "group",
    statistics: Sequence[str] = STATISTICS,
) -> pd.DataFrame:
    """Returns features of each value relative to its group: group (n,), values (n, c) with NaN, names of c columns.

    For rows of the same site, give ``cross_groups(group, site)`` as the group and ``word="group_site"``. The result is
    (n, c * len(statistics)) float32, for each column `<name>_<word>_` followed by the chosen of
        median_diff   value - median of the group
        mean_diff     value - mean of the group
        mean_ratio    value / mean of the group; 1 where they are equal, NaN where only the mean is 0
        z             (value - mean) / std; 0 where std is 0
        rank          average rank among the group's rows, scaled to 0..1
        spread        std of the group (the population's)
    A group of one has differences 0, ratio 1, z 0, rank 0.5 and spread 0. Missing values are ignored: a row whose own
    value is NaN gets the spread of its group and NaN in the rest, and a group without known values NaN. The result does
    not depend on the order of the rows, to the last bit. The index is that of `group`, if any.

    >>> relative_features(["a", "a", "b"], [[1.0], [3.0], [7.0]], ["size"], statistics=["mean_diff"])
       size_group_mean_diff
    0                  -1.0
    1                   1.0
    2                   0.0
    """
    index = group.index if isinstance(group, pd.Series) else None
    codes, groups = code_groups(group)
    matrix = _matrix(values, names)
    _check_arguments(matrix.shape, len(codes), names, statistics)
    # pandas keeps a frame's columns as rows of one array, and takes this one as it is.
    made = np.empty((len(names) * len(statistics), len(codes)), np.float32)
    for place, (column, name) in enumerate(zip(matrix.T, names, strict=True)):
        known = SortedByGroup.of(_check_size(column, name), codes)
        features = _column_features(known, statistics, len(codes))
        for offset, statistic in enumerate(statistics):
            of_group = known.scatter_groups(features[statistic], groups)[codes] if statistic == "spread" else None
            made[place * len(statistics) + offset] = features[statistic] if of_group is None else of_group
    columns = [f"{name}_{word}_{statistic}" for name in names for statistic in statistics]
    index = pd.RangeIndex(len(codes)) if index is None else index
    return pd.DataFrame(made.T, columns=columns, index=index, copy=False)


def ratio_to_mean(
    group: ArrayLike, probabilities: ArrayLike | pd.DataFrame, names: Sequence[str], *, word: str = "group"
) -> pd.DataFrame:
    """Returns each run's probability divided by its mean over the group: group (n,), probabilities (n, r) in 0..1.

    The result is (n, r) float32 with the columns `<run>_<word>_p_ratio`; it is the `mean_ratio` of `relative_features`,
    so 1 in a group of one. Raises TabularError for values outside 0..1, which are logits or ranks by mistake.
    """
    matrix = _matrix(probabilities, names)
    outside = (matrix < 0) | (matrix > 1)
    if outside.any():
        first = tuple(int(place) for place in np.argwhere(outside)[0])
        raise TabularError(
            f"{int(outside.sum())} probabilities are outside 0..1, first {matrix[first]:.6g} in row {first[0]}: "
            "convert logits with the sigmoid function before dividing by the group's mean"
        )
    made = relative_features(group, matrix, names, word=word, statistics=["mean_ratio"])
    return made.set_axis([f"{name}_{word}_p_ratio" for name in names], axis=1)


def cross_groups(group: ArrayLike, category: ArrayLike) -> pd.Series:
    """Returns integer codes of the pairs of group and category (n,), for example of patient and site, as a Series.

    Missing categories count as one category. The index is that of `group`, if any.

    >>> cross_groups(["a", "a", "a", "b"], ["arm", None, "arm", "arm"]).tolist()
    [0, 1, 0, 2]
    """
    codes, _ = code_groups(group)
    categories, _ = pd.factorize(category if isinstance(category, pd.Series) else pd.Series(np.asarray(category)))
    if len(categories) != len(codes):
        raise TabularError(f"{len(categories)} categories for {len(codes)} rows: give one category for each row")
    pairs, _ = pd.factorize(codes * (categories.max(initial=-1) + 2) + categories + 1)  # -1 is a missing category
    return pd.Series(pairs, index=group.index if isinstance(group, pd.Series) else None)


def _column_features(known: SortedByGroup, statistics: Sequence[str], rows: int) -> dict[str, Floats]:
    """Returns the statistics of one column: spread by segment, the others by row of the table."""
    size, start, segment = known.size, known.start, known.segment
    # Values are moved and scaled to 0..1 within their group first: equal values then deviate by exactly zero, and
    # squares of very large or very small deviations neither overflow nor vanish.
    width = known.max - known.min
    scaled = np.zeros_like(known.value)
    np.divide(known.value - known.min[segment], width[segment], out=scaled, where=width[segment] > 0)
    centre = np.add.reduceat(scaled, start) / size if len(start) else np.empty(0)
    deviation = scaled - centre[segment]
    made: dict[str, Floats] = {}
    if "median_diff" in statistics:
        low, high = known.value[start + (size - 1) // 2], known.value[start + size // 2]
        made["median_diff"] = known.scatter_rows(known.value - (low / 2 + high / 2)[segment], rows)
    if "mean_diff" in statistics:
        made["mean_diff"] = known.scatter_rows(deviation * width[segment], rows)
    if "mean_ratio" in statistics:
        made["mean_ratio"] = known.scatter_rows(_ratio(known, known.min + centre * width), rows)
    if "rank" in statistics:
        made["rank"] = known.scatter_rows(scaled_rank(known), rows)
    if "z" in statistics or "spread" in statistics:
        variance = np.add.reduceat(deviation**2, start) / size if len(start) else np.empty(0)
        std = np.sqrt(variance)
        z = np.divide(deviation, std[segment], out=np.zeros_like(deviation), where=std[segment] > 0)
        made["z"], made["spread"] = known.scatter_rows(z, rows), std * width
    return made


def _ratio(known: SortedByGroup, mean: Floats) -> Floats:
    """Returns value / mean of each known value, where the mean of values of both signs may be zero."""
    absolute = np.add.reduceat(np.abs(known.value), known.start) / known.size if len(mean) else np.empty(0)
    mean = np.where(np.abs(mean) > _MEAN_IS_ZERO * absolute, mean, 0.0)[known.segment]
    ratio = np.where(known.value == mean, 1.0, np.nan)
    return np.divide(known.value, mean, out=ratio, where=(mean != 0) & (known.value != mean))


def _matrix(values: ArrayLike | pd.DataFrame, names: Sequence[str]) -> Floats:
    if not isinstance(values, pd.DataFrame):
        return np.asarray(values, dtype=np.float64)
    if list(values.columns) != list(names):
        raise TabularError(
            f"a table with columns {', '.join(map(repr, values.columns[:10]))} for the names "
            f"{', '.join(map(repr, names[:10]))}: give the same columns in the same order"
        )
    text = [str(name) for name, kind in values.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if text:
        raise TabularError(f"column {', '.join(map(repr, text[:10]))} is not numeric: leave it out")
    return values.to_numpy(np.float64, na_value=np.nan)


def _check_arguments(shape: tuple[int, ...], rows: int, names: Sequence[str], statistics: Sequence[str]) -> None:
    if shape != (rows, len(names)):
        raise TabularError(
            f"values of shape {shape} for {rows} rows and {len(names)} columns ({', '.join(names[:10])}): "
            "give one row for each id and one column for each name"
        )
    twice = sorted({name for name in names if list(names).count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise TabularError(f"column {', '.join(map(repr, twice[:10]))} is named twice: give each its own name")
    unknown = [statistic for statistic in statistics if statistic not in STATISTICS]
    if unknown or not statistics or len(set(statistics)) < len(statistics):
        raise TabularError(
            f"statistics {', '.join(map(repr, statistics)) or 'are empty'}: choose each once, among "
            f"{', '.join(STATISTICS)}"
        )


def _check_size(values: NDArray[np.float64], name: str) -> Floats:
    """Returns the values without negative zeros, whose place among equal values would depend on the rows' order."""
    large = np.abs(values) > LARGEST
    if large.any():
        raise TabularError(
            f"column {name!r} is infinite or beyond {LARGEST:g} in {int(large.sum())} rows, first row "
            f"{int(np.argmax(large))}: correct these values or leave them empty"
        )
    cleaned: Floats = values + 0.0
    return cleaned

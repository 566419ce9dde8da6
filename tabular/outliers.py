"""Distances of a row to the other rows of its group over many numeric columns, and its local outlier factor.

"Ugly duckling" features of measured columns, as `embedding_aggregates` computes them of embeddings. The columns are
standardised by the training rows of a fold; distances are taken within one group only, and no targets are used.
"""

from __future__ import annotations

import json
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dermstack.errors import TabularError
from dermstack.threads import limit_threads
from tabular.group_features import Floats, Positions, code_groups
from tabular.relative import LARGEST

NEIGHBOURS = 30
FACTOR_SHARE = 0.5
MAX_COLUMNS = 64  # the cost is proportional to the columns, and distances over very many columns tell rows less apart
LARGEST_DEVIATION = 1e9  # in standard deviations; larger ones are cut off, so that no square overflows
LARGEST_FACTOR = 1e3  # of a local outlier factor; beyond are only neighbours of duplicates, up to 1e10
BLOCK_VALUES = 2**19  # distances held at a time (4 MiB, which stay in the cache)


class GroupOutliers(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """Distances to a row's nearest neighbours within its group, and local outlier factors, on standardised columns.

    ``neighbours`` is the number k of neighbours; in smaller groups these are all other rows. The local outlier factor
    uses at most ``factor_share`` of the other rows, because it compares a row's density with that of its neighbours:
    where these are the whole group (``factor_share=1``, groups of up to k + 1 rows) it does not tell an isolated row
    from the rest. Of the fitted rows' columns that vary, at most the first ``max_columns`` enter the distance.

    Fitted: `columns_`, the columns that enter; `left_out_`, those that do not; `mean_` and `scale_` of `columns_`.

    >>> table = pd.DataFrame({"size": [1.0, 2.0, 3.0, 9.0]})
    >>> GroupOutliers(neighbours=2).fit(table).transform(["a", "a", "a", "b"], table).columns.tolist()
    ['table_group_nearest', 'table_group_neighbours', 'table_group_outlier']
    """

    def __init__(
        self, neighbours: int = NEIGHBOURS, factor_share: float = FACTOR_SHARE, max_columns: int = MAX_COLUMNS
    ) -> None:
        self.neighbours = neighbours
        self.factor_share = factor_share
        self.max_columns = max_columns

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns mean and standard deviation of the numeric columns of these rows, missing values ignored.

        Columns without two different values are left out. Raises TabularError where there are no rows, for a column
        that is named twice, that holds text, or values that are infinite or beyond 1e38.
        """
        self._check_settings()
        if not len(frame):
            raise TabularError("no rows to fit outlier features on: give the training rows of a fold")
        twice = frame.columns[frame.columns.duplicated()]
        if len(twice):
            raise TabularError(f"column {twice[0]!r} is named twice: give each its own name")
        columns: list[str] = []
        means: list[float] = []
        scales: list[float] = []
        for column in frame.columns:
            values = _numbers(frame, column)
            known = values[~np.isnan(values)]
            # Deviations of equal values are not exactly zero when their mean is rounded, so the extremes decide.
            scale = float(known.std()) if len(known) and known.min() < known.max() else 0.0
            if scale > 0 and len(columns) < self.max_columns:
                columns.append(str(column))
                means.append(float(known.mean()))
                scales.append(scale)
        self._set_columns(columns, means, scales)
        self.left_out_ = [str(column) for column in frame.columns if str(column) not in set(columns)]
        return self

    def transform(self, group: ArrayLike, frame: pd.DataFrame, name: str = "table") -> pd.DataFrame:
        """Returns (n, 3) float32 for rows with these groups (n,) and columns, with the index of `frame`.

        Missing values count as the mean. In Euclidean distance on the standardised columns, which are cut off at a
        billion standard deviations:
            <name>_group_nearest      to the nearest of the group's other rows; 0 in a group of one
            <name>_group_neighbours   mean over the k nearest; 0 in a group of one
            <name>_group_outlier      local outlier factor (Breunig et al. 2000): about 1 for a row as dense as its
                                      neighbours, larger for an isolated row, at most 1,000; 1 in groups of one or two
        k is ``neighbours`` or the group's size - 1, if that is smaller; the factor uses the nearest k or
        ``factor_share`` of the size - 1, if that is smaller, at least one. Where no column entered, all rows are equal:
        0, 0 and 1. A row's features depend on the rows of its group, but not on their order, on other groups or on the
        number of threads, to the last bit; equal rows have equal features. The cost is proportional to the sum of
        squared group sizes, the memory to the number of rows.
        """
        check_is_fitted(self, "columns_")
        self._check_settings()
        absent = [column for column in self.columns_ if column not in frame.columns]
        if absent:
            raise TabularError(
                f"column {', '.join(map(repr, absent[:10]))} absent ({len(absent)} of the {len(self.columns_)} that "
                "outlier features were fitted on): add it, with NaN where the value is not known"
            )
        codes, _ = code_groups(group)
        if len(codes) != len(frame):
            raise TabularError(f"{len(codes)} groups for {len(frame)} rows: give one group for each row")
        made = np.tile(np.array([0, 0, 1], np.float32), (len(frame), 1))
        if self.columns_ and len(frame):
            _write_features(made, codes, self._standardise(frame), self.neighbours, self.factor_share)
        columns = [f"{name}_group_{feature}" for feature in ("nearest", "neighbours", "outlier")]
        return pd.DataFrame(made, columns=columns, index=frame.index)

    def to_json(self) -> str:
        """Returns the fitted state as JSON, for `from_json`."""
        check_is_fitted(self, "columns_")
        state = {
            "neighbours": self.neighbours,
            "factor_share": self.factor_share,
            "max_columns": self.max_columns,
            "columns": self.columns_,
            "left_out": self.left_out_,
            "mean": self.mean_.tolist(),
            "scale": self.scale_.tolist(),
        }
        return json.dumps(state, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the features stored by `to_json`; raises TabularError for any other text."""
        try:
            state = json.loads(text)
            made = cls(**{key: state[key] for key in ("neighbours", "factor_share", "max_columns")})
            made._check_settings()
            made._set_columns(
                [str(column) for column in _list(state["columns"])],
                [float(mean) for mean in _list(state["mean"])],
                [float(scale) for scale in _list(state["scale"])],
            )
            made.left_out_ = [str(column) for column in _list(state["left_out"])]
        except (ValueError, KeyError, TypeError, RecursionError) as error:  # TabularError is a ValueError
            raise TabularError(
                f"not the state of outlier features: {text[:60]!r} ({error}): train the model again, which writes it"
            ) from error
        return made

    def _check_settings(self) -> None:
        for key, value in (("neighbours", self.neighbours), ("max_columns", self.max_columns)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TabularError(f"{key} {value!r}: give a whole number from 1 on")
        share = self.factor_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise TabularError(f"factor_share {share!r}: give a number above 0 and up to 1")
        if self.neighbours > NEIGHBOURS:
            raise TabularError(f"neighbours {self.neighbours}: give at most {NEIGHBOURS}")

    def _set_columns(self, columns: list[str], mean: list[float], scale: list[float]) -> None:
        if not len(columns) == len(mean) == len(scale) or len(set(columns)) < len(columns):
            raise TabularError(f"{len(columns)} columns, {len(mean)} means and {len(scale)} scales do not fit together")
        self.columns_, self.mean_, self.scale_ = columns, np.array(mean, float), np.array(scale, float)
        if not (np.isfinite(self.mean_) & np.isfinite(self.scale_) & (self.scale_ > 0)).all():
            raise TabularError("means and scales are not finite, or a scale is not positive")

    def _standardise(self, frame: pd.DataFrame) -> Floats:
        made = np.empty((len(frame), len(self.columns_)))
        for place, (column, mean, scale) in enumerate(zip(self.columns_, self.mean_, self.scale_, strict=True)):
            with np.errstate(over="ignore"):
                values = (_numbers(frame, column) - mean) / scale
            values[np.isnan(values)] = 0
            np.clip(values, -LARGEST_DEVIATION, LARGEST_DEVIATION, out=made[:, place])
        made += 0.0  # negative zeros have other bytes, by which the rows are sorted
        return made


def _write_features(
    made: NDArray[np.float32], codes: Positions, values: Floats, neighbours: int, factor_share: float
) -> None:
    """Writes the features of all rows in groups of two and more: made (n, 3), codes (n,), values (n, c)."""
    # The rows of a group are sorted by their bytes: any total order makes the result independent of the table's order.
    content = np.argsort(values.view(f"V{values.itemsize * values.shape[1]}").ravel())
    order = content[np.argsort(codes[content], kind="stable")]
    size = np.bincount(codes)
    start = np.cumsum(size) - size
    with limit_threads(1, user_api="blas"):  # the last bits of a product depend on the number of threads
        for rows in np.unique(size[size > 1]):
            k = min(neighbours, int(rows) - 1)
            factor_k = min(k, max(int((rows - 1) * factor_share), 1))
            # Groups of equal size are computed together: a table may have 100,000 groups of two.
            groups = np.flatnonzero(size == rows)
            at_once = max(BLOCK_VALUES // (int(rows) * max(int(rows), values.shape[1])), 1)
            for first in range(0, len(groups), at_once):
                members = order[start[groups[first : first + at_once], None] + np.arange(rows)]
                made[members] = _features_of_groups(values[members], k, factor_k)


def _features_of_groups(values: Floats, k: int, factor_k: int) -> NDArray[np.float32]:
    """Returns the features (g, m, 3) of g groups of m sorted rows each: values (g, m, c), factor_k <= k < m."""
    groups, rows, _ = values.shape
    same = np.zeros((groups, rows), np.bool_)
    same[:, 1:] = (values[:, 1:] == values[:, :-1]).all(axis=2)
    distance, neighbour = _nearest(values, k)
    outlier = np.minimum(_local_outlier_factor(distance[..., :factor_k], neighbour[..., :factor_k]), LARGEST_FACTOR)
    features = np.stack([distance[..., 0], distance.mean(axis=2), outlier], axis=2).astype(np.float32)
    # Which of several equally distant rows are neighbours is arbitrary; equal rows get the features of the first.
    first = np.maximum.accumulate(np.where(same, 0, np.arange(rows)), axis=1)
    return np.take_along_axis(features, first[..., None], axis=1)


def _local_outlier_factor(distance: Floats, neighbour: Positions) -> Floats:
    """Returns the factors (g, m) (Breunig et al. 2000) from each row's neighbours (g, m, k) and their distances."""
    within = np.arange(len(distance))[:, None, None]
    reach = np.maximum(distance, distance[..., -1][within, neighbour])
    density = 1 / (reach.mean(axis=2) + 1e-10)  # as in scikit-learn: finite for duplicates
    factor: Floats = density[within, neighbour].mean(axis=2) / density
    return factor


def _nearest(values: Floats, k: int) -> tuple[Floats, Positions]:
    """Returns distances (g, m, k), ascending, and positions (g, m, k) of each row's k nearest other rows."""
    groups, rows, _ = values.shape
    # |a - b|² = |a|² - 2 a·b + |b|² of large vectors loses the digits of a small difference. It only selects the
    # neighbours, on vectors around the median, where one extreme row doesn't move the others; distances are then
    # computed from differences.
    centred = values - np.median(values, axis=1, keepdims=True)
    squares = np.einsum("gmc,gmc->gm", centred, centred)
    right = np.concatenate([centred, squares[..., None]], axis=2).swapaxes(1, 2).copy()
    left = np.concatenate([-2 * centred, np.ones((groups, rows, 1))], axis=2)
    distance, neighbour = np.empty((groups, rows, k)), np.empty((groups, rows, k), np.intp)
    step = max(BLOCK_VALUES // (groups * rows), 1)
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        product = left[:, part] @ right
        place = np.arange(product.shape[1])
        product[:, place, first + place] = np.inf  # the row itself
        near = np.argpartition(product, k - 1, axis=2)[..., :k]
        exact = _distances(values, part, near)
        order = np.argsort(exact, axis=2, kind="stable")
        distance[:, part] = np.take_along_axis(exact, order, axis=2)
        neighbour[:, part] = np.take_along_axis(near, order, axis=2)
    return distance, neighbour


def _distances(values: Floats, part: slice, near: Positions) -> Floats:
    """Returns the distances (g, p, k) of p rows to k rows each, one neighbour at a time to bound the memory."""
    made = np.empty(near.shape)
    groups = np.arange(len(values))[:, None]
    for place in range(near.shape[2]):
        difference = values[:, part] - values[groups, near[..., place]]
        made[..., place] = np.sqrt(np.einsum("gpc,gpc->gp", difference, difference))
    return made


def _numbers(frame: pd.DataFrame, column: str) -> Floats:
    """Returns one column as float64 with NaN for missing values; raises TabularError for anything else."""
    if not pd.api.types.is_numeric_dtype(frame[column]):
        raise TabularError(f"column {column!r} is not numeric ({frame[column].dtype}): leave it out of the distance")
    values: Floats = frame[column].to_numpy(np.float64, na_value=np.nan)
    large = np.abs(values) > LARGEST
    if large.any():
        raise TabularError(
            f"column {column!r} is infinite or beyond {LARGEST:g} in {int(large.sum())} rows, first row "
            f"{frame.index[int(np.argmax(large))]}: correct these values or leave them empty"
        )
    return values


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{value!r} is not a list")
    return value

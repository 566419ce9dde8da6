"""Encodes metadata (age, sex, site, other columns) as numbers, fitted on the training rows of a fold only."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from dermstack.errors import TabularError
from tabular.group_features import ROLES


def check_words(words: Sequence[str]) -> None:
    """Raises ValueError for words of a stored encoder in which no row's can be looked up: doubled, or no Unicode."""
    "".join(words).encode()  # a half of a surrogate pair is a UnicodeEncodeError, which is a ValueError
    if len(set(words)) < len(words):
        raise ValueError("a category stands twice")


class MetadataEncoder(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """Encoder that keeps numeric columns, makes categories one-hot and adds a missing indicator to each column.

    Nothing is imputed, since GBDTs can split on NaN. A category that is not in the fitted rows is encoded as zeros only
    (no training row is), and `unseen_` counts such rows in the last transform: {column: {value: rows}}.

    With `max_levels` only the most frequent categories of a column are indicated, and the others are zeros as well.
    With `sparse` a column has a missing indicator only where a fitted row lacks its value, for tables of many columns.

    Fitted: `categories_`, {column: sorted values}, `columns_`, the column names of `transform`, and `sources_`, the
    column that each of them is made of, in the same order.

    >>> train = pd.DataFrame({"age": [40.0, None], "sex": ["male", None], "site": ["torso", "head/neck"]})
    >>> MetadataEncoder().fit(train).columns_
    ['age', 'age_missing', 'sex=male', 'sex_missing', 'site=head/neck', 'site=torso', 'site_missing']
    """

    def __init__(
        self,
        numeric: Sequence[str] = ("age",),
        categorical: Sequence[str] = ("sex", "site"),
        *,
        max_levels: int | None = None,
        sparse: bool = False,
    ) -> None:
        self.numeric = numeric
        self.categorical = categorical
        self.max_levels = max_levels
        self.sparse = sparse

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns the categories of these rows.

        Raises TabularError where there are no rows, for a missing column and for a numeric column with other values.
        """
        if frame.empty:
            raise TabularError("no rows to fit the metadata encoder on: give the training rows of a fold")
        self._check_columns(frame)
        lacking = {column for column in self.numeric if np.isnan(_numbers(frame[column])).any()}
        lacking |= {column for column in self.categorical if frame[column].isna().any()}
        kept, rare = {}, {}
        for column in self.categorical:
            counts = frame[column].dropna().astype("str").value_counts()
            names = sorted(counts.index, key=lambda name: (-counts[name], name))
            kept[column], rare[column] = (
                sorted(names[: self.max_levels]),
                sorted(names[len(names[: self.max_levels]) :]),
            )
        self._set_categories(kept, rare, lacking if self.sparse else {*self.numeric, *self.categorical})
        return self

    def transform(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns (n, len(columns_)) float32 with the index of `frame`; only the numeric columns have NaN."""
        check_is_fitted(self, "categories_")
        self._check_columns(frame)
        blocks: list[NDArray[Any]] = []
        for column in self.numeric:
            numbers = _numbers(frame[column])
            blocks.append(np.column_stack([numbers, np.isnan(numbers)] if column in self.indicated_ else [numbers]))
        self.unseen_: dict[str, dict[str, int]] = {}
        for column, categories in self.categories_.items():
            strings = frame[column].astype("str")
            codes = pd.Index(categories, dtype="str").get_indexer(pd.Index(strings))
            others = strings[codes < 0].dropna()
            unseen = others[~others.isin(self.rare_[column])].value_counts().sort_index()
            if len(unseen):
                self.unseen_[column] = {str(value): int(rows) for value, rows in unseen.items()}
            blocks.append(codes[:, None] == np.arange(len(categories)))
            if column in self.indicated_:
                blocks.append(strings.isna().to_numpy()[:, None])
        encoded = np.column_stack(blocks) if blocks else np.empty((len(frame), 0))
        return pd.DataFrame(encoded.astype(np.float32), index=frame.index, columns=self.columns_)

    def made_of(self, column: str) -> list[str]:
        """Returns the names in `columns_` that are made of a categorical ``column``."""
        missing = [f"{column}_missing"] if column in self.indicated_ else []
        return [*(f"{column}={value}" for value in self.categories_[column]), *missing]

    def to_json(self) -> str:
        """Returns the fitted state as JSON, for `from_json`."""
        check_is_fitted(self, "categories_")
        state: dict[str, object] = {"numeric": list(self.numeric), "categories": self.categories_}
        if self.sparse or self.max_levels is not None:
            state |= {"rare": self.rare_, "indicated": sorted(self.indicated_)}
        return json.dumps(state, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the encoder stored by `to_json`; raises TabularError for any other text."""
        try:
            state = json.loads(text)
            numeric = [str(column) for column in state["numeric"]]
            categories = {str(column): [str(v) for v in values] for column, values in state["categories"].items()}
            rare = {str(column): [str(v) for v in values] for column, values in state.get("rare", {}).items()}
            indicated = {str(column) for column in state.get("indicated", [*numeric, *categories])}
            for column, words in categories.items():
                check_words([*words, *rare.get(column, ())])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise TabularError(
                f"not a metadata encoder: {text[:60]!r} ({error}): train the model again, which writes it"
            ) from error
        encoder = cls(numeric=numeric, categorical=list(categories), sparse="indicated" in state)
        encoder._set_categories(categories, {column: rare.get(column, []) for column in categories}, indicated)
        return encoder

    def _set_categories(
        self, categories: dict[str, list[str]], rare: dict[str, list[str]], indicated: Collection[str]
    ) -> None:
        self.categories_ = categories
        self.rare_ = rare
        self.indicated_ = frozenset(indicated)
        self.unseen_ = {}
        made = [(column, column) for column in self.numeric]
        made += [(column, f"{column}={value}") for column, values in categories.items() for value in values]
        # "=" distinguishes a category named "missing" from the indicator, which is the last of a column
        order = {column: place for place, column in enumerate([*self.numeric, *categories])}
        made += [(column, f"{column}_missing") for column in order if column in self.indicated_]
        made.sort(key=lambda pair: order[pair[0]])  # stable
        self.columns_ = [name for _, name in made]
        self.sources_ = [column for column, _ in made]

    @property
    def words(self) -> dict[str, list[str]]:
        """The sorted words of the fitted rows, by categorical column, also those without an indicator."""
        return {column: sorted([*values, *self.rare_[column]]) for column, values in self.categories_.items()}

    def _check_columns(self, frame: pd.DataFrame) -> None:
        absent = [column for column in (*self.numeric, *self.categorical) if column not in frame.columns]
        if absent:
            raise TabularError(
                f"metadata column {', '.join(map(repr, absent))} absent (the rows have "
                f"{', '.join(map(repr, frame.columns))}): add it, with NaN where the value is not known"
            )


def _numbers(values: pd.Series) -> NDArray[np.float32]:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind == "f":  # a table of thousands has only these
        floats = values.to_numpy(np.float32)
        if not np.isinf(floats).any():
            return floats
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(np.float32, na_value=np.nan)
    bad = values[(np.isnan(numbers) & values.notna().to_numpy()) | np.isinf(numbers)]
    if len(bad):
        raise TabularError(
            f"column {values.name!r} holds {len(bad)} values that are not finite numbers, first "
            f"{str(bad.iloc[0])!r} in row {bad.index[0]}: correct them or leave them empty"
        )
    return numbers


MAX_LEVELS = 20  # most frequent words of a further categorical column that have an indicator each
_FURTHEST = 10.0  # standard deviations: a value of a further column that is further from the mean is set to this


class DenseMetadata(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """Encoder that standardises the columns of `MetadataEncoder`: (n, m) float32, with 0 for missing numbers.

    ``columns`` are any of age, sex and site, which come first, and further ones, of which ``numeric`` hold numbers and
    the others words. With ``dropout`` columns are dropped in training, so that each has a missing indicator; without,
    a further column has one where a fitted row lacks its value. What does not vary in training is 0 throughout in the
    further columns, because a net learns no weight for it.

    >>> rows = pd.DataFrame({"age": [40.0, None, 60.0], "sex": ["male", None, "female"]})
    >>> DenseMetadata(["age", "sex"]).fit(rows).transform(rows)[:, 0].tolist()
    [-1.0, 0.0, 1.0]
    """

    def __init__(self, columns: Sequence[str] = ROLES, *, numeric: Collection[str] = (), dropout: bool = False) -> None:
        self.columns = columns
        self.numeric = numeric
        self.dropout = dropout

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learns categories, means and standard deviations of these rows; raises as `MetadataEncoder` does."""
        encoders = []
        if roles := [column for column in self.columns if column in ROLES]:
            numbers = [column for column in roles if column == "age"]
            encoders.append(MetadataEncoder(numbers, [column for column in roles if column not in numbers]))
        if further := [column for column in self.columns if column not in ROLES]:
            numbers = [column for column in further if column in self.numeric]
            words = [column for column in further if column not in numbers]
            encoders.append(MetadataEncoder(numbers, words, max_levels=MAX_LEVELS, sparse=not self.dropout))
        self.encoders_ = [encoder.fit(frame) for encoder in encoders]
        encoded = self._encoded(frame)
        known = np.maximum((~np.isnan(encoded)).sum(axis=0), 1)
        self.mean_ = np.nansum(encoded, axis=0) / known
        std = np.sqrt(np.nansum((encoded - self.mean_) ** 2, axis=0) / known)
        varies = std > 1e-6 * np.abs(self.mean_) if further else std > 0  # of a large constant, rounding leaves a rest
        self.scale_ = np.where(varies, std, 1.0)
        self.used_ = varies | np.isin(self.sources, ROLES) | (self.dropout & ~self._holds_numbers())
        return self

    def transform(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """Returns (n, m) float32; categories that are not in the fitted rows are zeros before standardising."""
        dense = np.nan_to_num((self._encoded(frame) - self.mean_) / self.scale_)
        further = ~np.isin(self.sources, ROLES)
        dense[:, further] = np.clip(dense[:, further], -_FURTHEST, _FURTHEST) * self.used_[further]
        encoded: NDArray[np.float32] = dense.astype(np.float32)
        return encoded

    def all_missing(self) -> NDArray[np.float32]:
        """Returns (m,): the encoding of a row without any value."""
        nothing = {
            column: pd.Series([np.nan], dtype="str" if column in encoder.categories_ else "float32")
            for encoder in self.encoders_
            for column in (*encoder.numeric, *encoder.categories_)
        }
        return self.transform(pd.DataFrame(nothing)).ravel()

    @property
    def sources(self) -> list[str]:
        """The column (m,) from which each encoded column comes."""
        return [source for encoder in self.encoders_ for source in encoder.sources_]

    @property
    def words(self) -> dict[str, list[str]]:
        """The sorted words of the fitted rows, by categorical column."""
        return {column: words for encoder in self.encoders_ for column, words in encoder.words.items()}

    @property
    def width(self) -> int:
        """Number m of encoded columns."""
        return len(self.mean_)

    def to_json(self) -> str:
        """Returns the fitted state as JSON, for `from_json`."""
        state: dict[str, Any] = {"columns": list(self.columns)}
        state |= {"mean": self.mean_.tolist(), "scale": self.scale_.tolist()}
        names = ("encoder", "further") if set(self.columns) & set(ROLES) else ("further",)
        state |= {name: json.loads(encoder.to_json()) for name, encoder in zip(names, self.encoders_, strict=False)}
        if "further" in state:
            state |= {"dropout": self.dropout, "used": self.used_.tolist()}
        return json.dumps(state, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Returns the encoder stored by `to_json`; raises TabularError for any other text."""
        try:
            state = json.loads(text)
            dense = cls([str(column) for column in state["columns"]], dropout=bool(state.get("dropout", False)))
            parts = [state[name] for name in ("encoder", "further") if name in state]
            dense.encoders_ = [MetadataEncoder.from_json(json.dumps(part)) for part in parts]
            dense.numeric = [column for encoder in dense.encoders_ for column in encoder.numeric]
            dense.mean_, dense.scale_ = np.array(state["mean"], float), np.array(state["scale"], float)
            width = len(dense.sources)
            dense.used_ = np.array(state.get("used", [True] * width), bool)
            if not parts or {dense.mean_.shape, dense.scale_.shape, dense.used_.shape} != {(width,)}:
                raise ValueError(f"{dense.mean_.shape} means and {dense.scale_.shape} scales of {width} columns")
            if not np.isfinite([dense.mean_, dense.scale_]).all() or not (dense.scale_ > 0).all():
                raise ValueError("a mean or scale is out of range")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise TabularError(f"not a metadata encoder: {text[:60]!r} ({error}): train the model again") from error
        return dense

    def _encoded(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        return np.column_stack([encoder.transform(frame).to_numpy(np.float64) for encoder in self.encoders_])

    def _holds_numbers(self) -> NDArray[np.bool_]:
        """Marks the encoded columns (m,) that are values of a column of numbers, not indicators."""
        return np.array([name in encoder.numeric for encoder in self.encoders_ for name in encoder.columns_], bool)

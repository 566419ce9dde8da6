"""Metadata for a network: every encoded column standardised on the training rows, missing values at their mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from tabular.encode import MetadataEncoder
from tabular.errors import TabularError


class DenseMetadata(BaseEstimator):  # type: ignore[misc]  # scikit-learn comes without types
    """`MetadataEncoder`'s columns as (n, m) float32 without NaN; a missing number is 0 and its indicator says so.

    >>> rows = pd.DataFrame({"age": [40.0, None, 60.0], "sex": ["male", None, "female"]})
    >>> DenseMetadata(["age", "sex"]).fit(rows).transform(rows)[:, 0].tolist()
    [-1.0, 0.0, 1.0]
    """

    def __init__(self, columns: Sequence[str] = ("age", "sex", "site")) -> None:
        self.columns = columns

    def fit(self, frame: pd.DataFrame) -> Self:
        """Learn categories, means and spreads of these rows; raises TabularError as `MetadataEncoder` does."""
        numeric = [column for column in self.columns if column == "age"]
        self.encoder_ = MetadataEncoder(numeric, [column for column in self.columns if column not in numeric])
        encoded = self.encoder_.fit(frame).transform(frame).to_numpy(np.float64)
        known = np.maximum((~np.isnan(encoded)).sum(axis=0), 1)
        self.mean_ = np.nansum(encoded, axis=0) / known
        std = np.sqrt(np.nansum((encoded - self.mean_) ** 2, axis=0) / known)
        self.scale_ = np.where(std > 0, std, 1.0)
        return self

    def transform(self, frame: pd.DataFrame) -> NDArray[np.float32]:
        """(n, m) float32; categories that the fitted rows lack are all zeros before standardising."""
        encoded = self.encoder_.transform(frame).to_numpy(np.float64)
        dense: NDArray[np.float32] = np.nan_to_num((encoded - self.mean_) / self.scale_).astype(np.float32)
        return dense

    @property
    def width(self) -> int:
        """The number m of encoded columns."""
        return len(self.mean_)

    def to_json(self) -> str:
        """Everything that `from_json` needs to encode new rows the same way."""
        state = {"columns": list(self.columns), "mean": self.mean_.tolist(), "scale": self.scale_.tolist()}
        return json.dumps(state | {"encoder": json.loads(self.encoder_.to_json())}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` gave; raises TabularError for anything else."""
        try:
            state = json.loads(text)
            dense = cls([str(column) for column in state["columns"]])
            dense.mean_, dense.scale_ = np.array(state["mean"], float), np.array(state["scale"], float)
            dense.encoder_ = MetadataEncoder.from_json(json.dumps(state["encoder"]))
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise TabularError(f"no encoded metadata: {text[:60]!r} ({error}); train the model again") from error
        return dense

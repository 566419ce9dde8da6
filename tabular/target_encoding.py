"""Encodes codes of categories by the log odds of the target among other rows with the same code."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import logit

from dermstack.errors import TabularError

SMOOTHING = 10.0  # rows at the prevalence that are added to the rows of each code
INNER = -1  # part of the rows on which a stacker chooses its rounds or ridge strength


@dataclass(frozen=True)
class TargetEncoding:
    """Log odds of the target by code, for each column (`values`), and of a code that no fitted row has (`prior`)."""

    values: Mapping[str, NDArray[np.float32]]
    prior: float

    def __call__(self, X: pd.DataFrame) -> pd.DataFrame:
        """Returns X (n, columns) with the log odds in place of the codes; missing codes get the prior."""
        return _replaced(X, {name: _looked_up(X[name], values, self.prior) for name, values in self.values.items()})

    def of(self, X: pd.DataFrame) -> TargetEncoding | None:
        """Returns the encoding of the columns that X has; None where it has none."""
        values = {name: one for name, one in self.values.items() if name in X}
        return replace(self, values=values) if values else None

    def to_json(self) -> str:
        """Returns the encoding as JSON, for `encoding_from_json`."""
        values = {name: [float(value) for value in values] for name, values in self.values.items()}
        return json.dumps({"prior": self.prior, "values": values}, ensure_ascii=False)


def encoding_from_json(text: str, name: str) -> TargetEncoding:
    """Returns the encoding stored by `TargetEncoding.to_json`. Raises TabularError, calling the file ``name``."""
    try:
        state = json.loads(text)
        values = {str(column): np.array(listed, np.float32) for column, listed in state["values"].items()}
        made = TargetEncoding(values, float(state["prior"]))
        if any(one.ndim != 1 for one in values.values()):
            raise ValueError("the log odds of a column are no list")
        if not np.isfinite([made.prior, *(value for one in values.values() for value in one)]).all():
            raise ValueError("it holds values that are not finite")
    except (json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise TabularError(f"{name} is not a target encoding ({str(error)[:80]}): fit the model again") from error
    return made


def fit_target_encoding(
    X: pd.DataFrame, y: NDArray[np.generic], parts: NDArray[np.integer], columns: Collection[str]
) -> tuple[pd.DataFrame, TargetEncoding]:
    """Returns the training rows X (n, columns) encoded, and the encoding for other rows.

    ``parts`` (n,) are parts of whole groups, `INNER` for the rows that a stacker sets aside. A row of another part is
    encoded from the rows of all other parts except `INNER`, a row of `INNER` from all parts except it, so that no row's
    own group enters its value and nothing of the rows set aside enters the others'. Other rows are encoded from all
    rows. The log odds are shrunk to those of all rows, by `SMOOTHING`; the same value in each part, as the prevalence
    of the other parts would tell a row's own part.
    """
    target, names = np.asarray(y, np.float64), [str(name) for name in X if str(name) in columns]
    prevalence = float(np.clip(target.mean(), 1e-6, 1 - 1e-6))
    values, encoded = {}, {}
    for name in names:
        codes = X[name].to_numpy(np.float64, na_value=np.nan)
        size = int(np.nanmax(codes)) + 1 if np.isfinite(codes).any() else 0
        values[name] = _log_odds(codes, target, size, prevalence)
        made = np.empty(len(X), np.float32)
        for part in np.unique(parts):
            own = parts == part
            others = ~own & (parts != INNER)
            made[own] = _looked_up(
                X[name][own], _log_odds(codes[others], target[others], size, prevalence), float(logit(prevalence))
            )
        encoded[name] = made
    return _replaced(X, encoded), TargetEncoding(values, float(logit(prevalence)))


def _log_odds(codes: NDArray[np.float64], y: NDArray[np.float64], size: int, prevalence: float) -> NDArray[np.float32]:
    known = np.isfinite(codes)
    at = codes[known].astype(np.intp)
    rows, positives = np.bincount(at, minlength=size), np.bincount(at, y[known], minlength=size)
    shrunk: NDArray[np.float32] = logit((positives + SMOOTHING * prevalence) / (rows + SMOOTHING)).astype(np.float32)
    return shrunk


def _looked_up(codes: pd.Series, values: NDArray[np.float32], prior: float) -> NDArray[np.float32]:
    numbers = codes.to_numpy(np.float64, na_value=np.nan)
    made = np.full(len(numbers), prior, np.float32)
    known = (numbers >= 0) & (numbers < len(values))  # False for NaN
    made[known] = values[numbers[known].astype(np.intp)]
    return made


def _replaced(X: pd.DataFrame, columns: Mapping[str, NDArray[np.float32]]) -> pd.DataFrame:
    return X.assign(**columns) if columns else X

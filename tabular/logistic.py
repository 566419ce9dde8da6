"""A ridge logistic regression on standardised features, as a level-2 model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from dermstack.errors import TabularError
from dermstack.files import atomic_write
from tabular.gbdt import check_columns

C_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # inverse ridge strengths, for standardised features
CLIP_SD = 6.0  # standardised features are clipped to ± this value, to limit the influence of single rows


@dataclass(frozen=True)
class Logistic:
    """Logistic regression: logit = clip((x - mean) / scale) · weight + bias; missing values are set to the mean."""

    columns: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: float
    C: float

    def logit(self, X: pd.DataFrame) -> NDArray[np.float32]:
        """Returns log odds (n,), float32, of features (n, columns); TabularError for other columns than the fit's."""
        check_columns(self.columns, X)
        return (_standardised(X, self.mean, self.scale) @ self.weight + self.bias).astype(np.float32)

    def contributions(self, X: pd.DataFrame) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the logit relative to a row of means, (n, columns), and the bias.

        Contributions and bias sum to `logit`; they are SHAP values under independent columns.
        """
        check_columns(self.columns, X)
        added = _standardised(X, self.mean, self.scale) * self.weight
        return pd.DataFrame(added, columns=X.columns, index=X.index), self.bias


def fit_logistic(
    X: pd.DataFrame, y: ArrayLike, *, eval_set: tuple[pd.DataFrame, ArrayLike], C_grid: tuple[float, ...] = C_GRID
) -> Logistic:
    """Chooses the ridge strength by the log loss on ``eval_set`` (X, y), of other groups, and refits on all rows.

    X (n, columns) may have NaN; y (n,) is 0 and 1.
    """
    train, target = X, np.asarray(y)
    mean, scale = _moments(train)
    x, eval_x = _standardised(train, mean, scale), _standardised(eval_set[0], mean, scale)
    losses = [_log_loss(eval_set[1], _fit(x, target, C).decision_function(eval_x)) for C in C_grid]
    C = C_grid[int(np.argmin(losses))]
    both, target = pd.concat([train, eval_set[0]]), np.concatenate([target, np.asarray(eval_set[1])])
    mean, scale = _moments(both)
    model = _fit(_standardised(both, mean, scale), target, C)
    return Logistic(tuple(map(str, X.columns)), mean, scale, model.coef_[0], float(model.intercept_[0]), C)


def write_logistic(model: Logistic, path: Path) -> None:
    """Writes the model as JSON, floats exact to the last bit; the file is complete or not written."""
    state = {
        "columns": model.columns, "mean": model.mean.tolist(), "scale": model.scale.tolist(),
        "weight": model.weight.tolist(), "bias": model.bias, "strength": model.C,
    }  # fmt: skip
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(state, ensure_ascii=False, indent=1), encoding="utf-8")


def logistic_from_bytes(content: bytes, name: str) -> Logistic:
    """Reads the content of a file of `write_logistic`, which errors call ``name``; TabularError for any other."""
    try:
        state = json.loads(content)
        columns = tuple(str(column) for column in state["columns"])
        mean, scale, weight = (np.array(state[key], float) for key in ("mean", "scale", "weight"))
        bias, strength = float(state["bias"]), float(state["strength"])
        if not {values.shape for values in (mean, scale, weight)} == {(len(columns),)}:
            raise ValueError(f"mean, scale and weight are not of {len(columns)} columns")
        if not np.isfinite([*mean, *scale, *weight, bias]).all() or not (scale > 0).all():
            raise ValueError("a coefficient is not a finite number, or a scale is not positive")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise TabularError(f"{name} is not a logistic model ({error}): remove it and fit the model again") from error
    return Logistic(columns, mean, scale, weight, bias, strength)


def _moments(X: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = X.to_numpy(np.float64)
    known = np.maximum((~np.isnan(values)).sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / known
    std = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / known)
    return mean, np.where(std > 1e-9, std, 1.0)


def _standardised(X: pd.DataFrame, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.nan_to_num((X.to_numpy(np.float64) - mean) / scale)
    return np.clip(values, -CLIP_SD, CLIP_SD)


def _fit(x: NDArray[np.float64], y: NDArray[np.generic], C: float) -> LogisticRegression:
    return LogisticRegression(C=C, max_iter=2000).fit(x, y)


def _log_loss(y: ArrayLike, log_odds: NDArray[np.float64]) -> float:
    """Returns the log loss of targets (n,); scikit-learn's checks its input for longer than a fit to few rows takes."""
    return float(np.mean(np.logaddexp(0, log_odds) - np.asarray(y) * log_odds))

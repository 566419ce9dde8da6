"""A regularised logistic regression on the level-2 matrix: the simple second opinion beside the GBDTs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from tabular.errors import TabularError

STRENGTHS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # inverse ridge strengths, on standardised features
EXTREME = 6.0  # standard deviations at which a standardised feature is cut: one row must not steer the line


@dataclass(frozen=True)
class Logistic:
    """logit = clip((x - mean) / scale) · weight + bias, a missing value at its mean."""

    columns: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weight: NDArray[np.float64]
    bias: float
    strength: float

    def logit(self, X: pd.DataFrame) -> NDArray[np.float32]:
        """Of features (n, columns): float32 (n,). Raises TabularError unless X has the columns of the fit."""
        self._check(X)
        return (_standardised(X, self.mean, self.scale) @ self.weight + self.bias).astype(np.float32)

    def contributions(self, X: pd.DataFrame) -> tuple[pd.DataFrame, float]:
        """What each column adds to the logit of each row against a row of means: (n, columns), and the bias.

        They sum to `logit`, and are SHAP values of columns that are taken as independent.
        """
        self._check(X)
        added = _standardised(X, self.mean, self.scale) * self.weight
        return pd.DataFrame(added, columns=X.columns, index=X.index), self.bias

    def _check(self, X: pd.DataFrame) -> None:
        if tuple(map(str, X.columns)) != self.columns:
            raise TabularError("the columns aren't those of the fit: build the features with the fit's settings")


def fit_logistic(
    X: pd.DataFrame, y: ArrayLike, *, stop: tuple[pd.DataFrame, ArrayLike], strengths: tuple[float, ...] = STRENGTHS
) -> Logistic:
    """Choose the ridge strength by log loss on the rows of ``stop`` (X, y), of other groups; refit on the rows of both.

    X (n, columns) may hold NaN, y (n,) is 0 and 1.
    """
    train, target = X, np.asarray(y)
    mean, scale = _moments(train)
    x, watched = _standardised(train, mean, scale), _standardised(stop[0], mean, scale)
    losses = [
        log_loss(stop[1], _fit(x, target, strength).predict_proba(watched)[:, 1], labels=[0, 1])
        for strength in strengths
    ]
    strength = strengths[int(np.argmin(losses))]
    both, target = pd.concat([train, stop[0]]), np.concatenate([target, np.asarray(stop[1])])
    mean, scale = _moments(both)
    model = _fit(_standardised(both, mean, scale), target, strength)
    return Logistic(tuple(map(str, X.columns)), mean, scale, model.coef_[0], float(model.intercept_[0]), strength)


def write_logistic(model: Logistic, path: Path) -> None:
    """As JSON, all or nothing; its floats read back to the last bit."""
    state = {
        "columns": model.columns, "mean": model.mean.tolist(), "scale": model.scale.tolist(),
        "weight": model.weight.tolist(), "bias": model.bias, "strength": model.strength,
    }  # fmt: skip
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(state, ensure_ascii=False, indent=1), encoding="utf-8")
    partial.replace(path)


def read_logistic(path: Path) -> Logistic:
    """Read what `write_logistic` wrote; raises TabularError for anything else."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        mean, scale, weight = (np.array(state[name], float) for name in ("mean", "scale", "weight"))
        return Logistic(tuple(state["columns"]), mean, scale, weight, float(state["bias"]), float(state["strength"]))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TabularError(f"{path} is no logistic model ({error}): remove it and fit it again") from error


def _moments(X: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values = X.to_numpy(np.float64)
    known = np.maximum((~np.isnan(values)).sum(axis=0), 1)
    mean = np.nansum(values, axis=0) / known
    std = np.sqrt(np.nansum((values - mean) ** 2, axis=0) / known)
    return mean, np.where(std > 1e-9, std, 1.0)


def _standardised(X: pd.DataFrame, mean: NDArray[np.float64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    values = np.nan_to_num((X.to_numpy(np.float64) - mean) / scale)
    return np.clip(values, -EXTREME, EXTREME)


def _fit(x: NDArray[np.float64], y: NDArray[np.generic], strength: float) -> LogisticRegression:
    return LogisticRegression(C=strength, max_iter=2000).fit(x, y)

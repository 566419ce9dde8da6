"""A level-2 model of any kind: fitted with an inner part for what it chooses, refitted on all, written, applied."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from tabular.errors import TabularError
from tabular.gbdt import Gbdt, fit_gbdt, predict_logit, write_gbdt
from tabular.logistic import Logistic, fit_logistic, write_logistic

Model = Gbdt | Logistic
FILES = {"lightgbm": "model.txt", "xgboost": "model.ubj", "logistic": "model.json"}


def fit_model(
    kind: str,
    X: pd.DataFrame,
    y: ArrayLike,
    inner: NDArray[np.bool_],
    *,
    params: Mapping[str, float | bool],
    seed: int,
    threads: int,
) -> Model:
    """Fit ``kind`` to X (n, columns) and y (n,); ``inner`` (n,) marks the rows, whole groups, on which it chooses its
    rounds or its strength before it is refitted on all. Raises TabularError for parameters that it doesn't have."""
    target = np.asarray(y)
    stop = X[inner], target[inner]
    if kind == "logistic":
        if params:
            raise TabularError(f"logistic has no parameters, got {', '.join(params)}: drop them")
        return fit_logistic(X[~inner], target[~inner], stop=stop)
    return fit_gbdt(kind, X[~inner], target[~inner], stop=stop, params=params, seed=seed, threads=threads)


def predict_model(model: Model, X: pd.DataFrame, *, threads: int) -> NDArray[np.float32]:
    """Log odds (n,)."""
    return model.logit(X) if isinstance(model, Logistic) else predict_logit(model, X, threads=threads)


def write_model(model: Model, folder: Path) -> Path:
    """The file in ``folder`` that holds it, in a format that executes nothing when read."""
    if isinstance(model, Logistic):
        path = folder / FILES["logistic"]
        write_logistic(model, path)
    else:
        path = folder / FILES[model.kind]
        write_gbdt(model, path)
    return path


def chosen_of(model: Model) -> float:
    """What the inner part chose: rounds, or the ridge strength."""
    return model.strength if isinstance(model, Logistic) else model.rounds

"""Level-2 models: a ridge logistic regression, and bags of models of one kind (logistic regressions or GBDTs)."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dermstack.errors import TabularError
from dermstack.files import atomic_write
from tabular.gbdt import Gbdt, fit_gbdt, importance, predict_logit, read_gbdt, shap_values, write_gbdt
from tabular.gbdt_libraries import LIBRARIES

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
        self._check(X)
        return (_standardised(X, self.mean, self.scale) @ self.weight + self.bias).astype(np.float32)

    def contributions(self, X: pd.DataFrame) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the logit relative to a row of means, (n, columns), and the bias.

        Contributions and bias sum to `logit`; they are SHAP values under independent columns.
        """
        self._check(X)
        added = _standardised(X, self.mean, self.scale) * self.weight
        return pd.DataFrame(added, columns=X.columns, index=X.index), self.bias

    def _check(self, X: pd.DataFrame) -> None:
        if tuple(map(str, X.columns)) != self.columns:
            raise TabularError("the columns are not those of the fit: build the features with the settings of the fit")


def fit_logistic(
    X: pd.DataFrame, y: ArrayLike, *, eval_set: tuple[pd.DataFrame, ArrayLike], C_grid: tuple[float, ...] = C_GRID
) -> Logistic:
    """Chooses the ridge strength by the log loss on ``eval_set`` (X, y), of other groups, and refits on all rows.

    X (n, columns) may have NaN; y (n,) is 0 and 1.
    """
    train, target = X, np.asarray(y)
    mean, scale = _moments(train)
    x, eval_x = _standardised(train, mean, scale), _standardised(eval_set[0], mean, scale)
    losses = [log_loss(eval_set[1], _fit(x, target, C).predict_proba(eval_x)[:, 1], labels=[0, 1]) for C in C_grid]
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


def read_logistic(path: Path) -> Logistic:
    """Reads a model written by `write_logistic`; raises TabularError for any other file."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        mean, scale, weight = (np.array(state[name], float) for name in ("mean", "scale", "weight"))
        return Logistic(tuple(state["columns"]), mean, scale, weight, float(state["bias"]), float(state["strength"]))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TabularError(f"{path} is not a logistic model ({error}): remove it and fit the model again") from error


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


@dataclass(frozen=True)
class Bag:
    """Models of one kind fitted with different draws; their logits are averaged and corrected to the rows' prior."""

    models: tuple[Gbdt | Logistic, ...]
    shift: float  # added to the mean logit: the correction to the prior

    def logit(self, X: pd.DataFrame, *, threads: int = 1) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns)."""
        made = [
            model.logit(X) if isinstance(model, Logistic) else predict_logit(model, X, threads=threads)
            for model in self.models
        ]
        mean = np.stack(made).mean(axis=0, dtype=np.float64) + self.shift
        return np.asarray(mean, np.float32)

    def contributions(self, X: pd.DataFrame, *, threads: int = 1) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the log odds, (n, columns), and the bias; they sum to `logit`.

        These are exact SHAP values for GBDTs (`shap_values`) and the exact terms for logistic regressions.
        """
        made = [
            model.contributions(X) if isinstance(model, Logistic) else shap_values(model, X, threads=threads)
            for model in self.models
        ]
        mean = np.mean([added.to_numpy(np.float64) for added, _ in made], axis=0)
        bias = float(np.mean([bias for _, bias in made])) + self.shift
        return pd.DataFrame(mean, columns=X.columns, index=X.index), bias

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the fit, in order."""
        return self.models[0].columns

    @property
    def gains(self) -> dict[str, float]:
        """Share of each column in the total gain of a GBDT's splits or in the absolute weights of a regression."""
        made = []
        for model in self.models:
            if isinstance(model, Logistic):
                made.append(pd.Series(np.abs(model.weight), index=list(model.columns)))
            elif isinstance(model, Gbdt):
                made.append(importance(model))
        if not made:
            return {}
        total = pd.concat([gain / max(float(gain.sum()), 1e-300) for gain in made], axis=1).mean(axis=1)
        return {str(name): float(share) for name, share in total.items()}

    @property
    def chosen(self) -> list[float]:
        """Value that each model chose on the inner rows: the number of rounds, or the inverse ridge strength."""
        return [model.C if isinstance(model, Logistic) else model.rounds for model in self.models]


def fit_bag(
    kind: str,
    X: pd.DataFrame,
    y: ArrayLike,
    inner: NDArray[np.bool_],
    *,
    params: Mapping[str, float | bool],
    seed: int,
    threads: int,
    bags: int = 1,
    negatives: float = 1.0,
    positive_weight: float = 1.0,
    increasing: Collection[str] = (),
    gpu: bool = False,
) -> Bag:
    """Fits ``bags`` models of ``kind`` to X (n, columns) and y (n,) of 0 and 1, with seeds from ``seed`` on.

    ``inner`` (n,) marks the rows, whole groups, on which each model chooses its rounds or ridge strength before it is
    refitted on all its rows. Each model uses all positive rows, with weight ``positive_weight``, and its own random
    share ``negatives`` of the negative rows; the effect of both on the log odds is removed (King & Zeng 2001). The
    logit of a GBDT never falls with the value of an ``increasing`` column. A logistic regression on all rows is the
    same for every seed, so it is fitted once. Raises TabularError for parameters that the kind does not have.
    """
    target = np.asarray(y)
    if kind == "logistic" and positive_weight != 1:
        raise TabularError(f"logistic has no positive_weight, got {positive_weight}: drop it, or use `negatives`")
    if kind == "logistic" and params:
        raise TabularError(f"logistic has no parameters, got {', '.join(params)}: drop them")
    models: list[Gbdt | Logistic] = []
    for number in range(1 if kind == "logistic" and negatives == 1 else bags):
        taken = np.ones(len(target), bool)
        if negatives < 1:
            taken = (target == 1) | (np.random.default_rng((seed, number)).random(len(target)) < negatives)
        train_mask, eval_mask = taken & ~inner, taken & inner
        eval_set = X[eval_mask], target[eval_mask]
        if kind == "logistic":
            models.append(fit_logistic(X[train_mask], target[train_mask], eval_set=eval_set))
        else:
            models.append(
                fit_gbdt(
                    kind, X[train_mask], target[train_mask], eval_set=eval_set, params=params, seed=seed + number,
                    threads=threads, increasing=increasing, positive_weight=positive_weight, gpu=gpu,
                )
            )  # fmt: skip
    return Bag(tuple(models), float(np.log(negatives) - np.log(positive_weight)))


def write_bag(bag: Bag, folder: Path) -> list[Path]:
    """Writes each model to a file in ``folder``, in formats that execute nothing when read, and returns the paths."""
    paths = []
    for number, model in enumerate(bag.models):
        suffix = ".json" if isinstance(model, Logistic) else LIBRARIES[model.kind].suffix
        path = folder / f"model{f'_{number}' if number else ''}{suffix}"
        if isinstance(model, Logistic):
            write_logistic(model, path)
        else:
            write_gbdt(model, path)
        paths.append(path)
    return paths


def read_bag(kind: str, folder: Path, *, shift: float) -> Bag:
    """Reads the models that `write_bag` wrote (model, model_1, …); TabularError where none exists or one is damaged."""
    suffix = ".json" if kind == "logistic" else LIBRARIES[kind].suffix
    models: list[Gbdt | Logistic] = []
    while (path := folder / f"model{f'_{len(models)}' if models else ''}{suffix}").exists():
        models.append(read_logistic(path) if kind == "logistic" else read_gbdt(path))
    if not models:
        raise TabularError(f"{folder} holds no {kind} model: fit the model again")
    return Bag(tuple(models), shift)

"""Classifiers of scikit-learn by import path as level-2 models: imputed, scaled, calibrated, never written to disk."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import logit
from sklearn.base import BaseEstimator, is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.validation import has_fit_parameter

from dermstack.errors import TabularError
from tabular.gbdt import check_columns
from tabular.gbdt_libraries import did_you_mean

PACKAGE = "sklearn."
_TREES = ("sklearn.tree", "sklearn.ensemble")  # modules whose estimators need no scaling
_EXAMPLE = "write the import path of a classifier with predict_proba, such as sklearn.ensemble.ExtraTreesClassifier"


@dataclass(frozen=True)
class Estimator:
    """A fitted classifier: logit = slope · logit(p) + bias, where p is its smoothed probability."""

    path: str
    columns: tuple[str, ...]
    pipeline: Pipeline = field(repr=False)
    slope: float
    bias: float
    smoothing: float  # p is moved this far from 0 and 1, as a forest has rows with p of exactly 0

    def logit(self, X: pd.DataFrame) -> NDArray[np.float32]:
        """Returns log odds (n,), float32, of features (n, columns); TabularError for other columns than the fit's."""
        check_columns(self.columns, X)
        if not len(X):
            return np.empty(0, np.float32)
        return (self.slope * _log_odds(self.pipeline, X, self.smoothing) + self.bias).astype(np.float32)


def estimator_class(path: str) -> type[BaseEstimator]:
    """Returns the scikit-learn classifier with this import path.

    Raises TabularError for a path outside scikit-learn, whose import would run code that a config names, and for what
    is no classifier with predict_proba.
    """
    if not path.startswith(PACKAGE) or not all(part.isidentifier() for part in path.split(".")):
        raise TabularError(f"estimator {path!r} is not of scikit-learn, and nothing else is imported: {_EXAMPLE}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise TabularError(f"scikit-learn has no {path!r} ({error}): {_EXAMPLE}") from error
    # A module of scikit-learn also holds names that it imported from elsewhere.
    if not (isinstance(found, type) and issubclass(found, BaseEstimator) and found.__module__.startswith(PACKAGE)):
        raise TabularError(f"{path!r} is not a classifier of scikit-learn: {_EXAMPLE}")
    return found


def make_estimator(path: str, params: Mapping[str, Any], *, seed: int, threads: int) -> BaseEstimator:
    """Returns the unfitted classifier with ``params``, and with ``seed`` and ``threads`` where it takes them.

    Raises TabularError for an unknown class or parameter, and where it is no classifier with predict_proba.
    """
    of_class = estimator_class(path)
    try:
        estimator = of_class()
        known = estimator.get_params()
    except TypeError as error:  # a meta-estimator, such as VotingClassifier
        raise TabularError(
            f"{path} needs another estimator, which a config cannot give: {_EXAMPLE} that stands alone"
        ) from error
    for name in params:
        if name in ("random_state", "n_jobs"):
            key = "seed" if name == "random_state" else "threads"
            raise TabularError(f"{path}: {name} is set from the config's key `{key}`: drop it from params")
        if name not in known:
            raise TabularError(f"{path} has no parameter {name!r}: {did_you_mean(name, known)}")
    given = {"random_state": seed, "n_jobs": threads}
    estimator.set_params(**params, **{name: value for name, value in given.items() if name in known})
    try:
        is_fit_for_use = is_classifier(estimator) and hasattr(estimator, "predict_proba")
    except AttributeError as error:  # a meta-estimator whose estimator is None, such as SelfTrainingClassifier
        raise TabularError(
            f"{path} needs another estimator, which a config cannot give: {_EXAMPLE} that stands alone"
        ) from error
    if not is_fit_for_use:
        hint = "; set params: {probability: true}" if "probability" in known else ""
        raise TabularError(f"{path} is no classifier with predict_proba{hint}: {_EXAMPLE}")
    return estimator


def is_random(path: str) -> bool:
    """Whether the classifier draws random numbers, so that another seed gives another model."""
    return "random_state" in estimator_class(path)().get_params()


def fit_estimator(
    path: str,
    X: pd.DataFrame,
    y: ArrayLike,
    *,
    eval_set: tuple[pd.DataFrame, ArrayLike],
    params: Mapping[str, Any],
    seed: int,
    threads: int,
    positive_weight: float = 1.0,
) -> Estimator:
    """Fits the classifier to X (n, columns), with NaN for missing values, and y (n,) of 0 and 1.

    It is fitted on these rows, the slope and bias of its log odds on the rows of ``eval_set`` (X, y), which are of
    other groups (Platt 1999), and then the classifier again on all rows. Where it takes no NaN, missing values are set
    to the column's median; except for trees, columns are standardised. Raises TabularError for what scikit-learn
    refuses.
    """
    y, eval_X, eval_y = np.asarray(y), eval_set[0], np.asarray(eval_set[1])
    if len(np.unique(y)) < 2:
        raise TabularError(f"the {len(X)} training rows hold one class only: give rows of both classes")
    smoothing = 0.5 / (len(X) + len(eval_X) + 1)

    def fitted(rows: pd.DataFrame, target: NDArray[Any]) -> Pipeline:
        known = np.flatnonzero(rows.notna().to_numpy().any(axis=0))
        pipeline = _pipeline(path, params, known, seed, threads)
        weights = {}
        if positive_weight != 1:
            if not has_fit_parameter(pipeline[-1], "sample_weight"):
                raise TabularError(
                    f"{path} takes no weights, so it has no positive_weight: drop it, or use `positives`"
                )
            weights["model__sample_weight"] = np.where(target == 1, positive_weight, 1.0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of `n_jobs`, where it has no effect any more
                pipeline.fit(rows.to_numpy(np.float32), target, **weights)
        except (ValueError, TypeError, ArithmeticError) as error:
            reason = _first_line(error)
            raise TabularError(f"{path} with the parameters {dict(params)} cannot be fitted: {reason}") from error
        if "n_jobs" in pipeline[-1].get_params():  # threads would add the trees' probabilities in any order
            pipeline[-1].set_params(n_jobs=1)
        return pipeline

    slope, bias = _calibrated(_log_odds(fitted(X, y), eval_X, smoothing), eval_y, positive_weight)
    everything = fitted(pd.concat([X, eval_X]), np.concatenate([y, eval_y]))
    return Estimator(path, tuple(map(str, X.columns)), everything, slope, bias, smoothing)


def _pipeline(path: str, params: Mapping[str, Any], known: NDArray[np.intp], seed: int, threads: int) -> Pipeline:
    """Returns the unfitted steps for the ``known`` columns; the others have no value, which some estimators refuse."""
    estimator = make_estimator(path, params, seed=seed, threads=threads)
    steps: list[tuple[str, BaseEstimator]] = [("known", ColumnTransformer([("known", "passthrough", known)]))]
    if not get_tags(estimator).input_tags.allow_nan:
        steps.append(("impute", SimpleImputer(strategy="median")))
    if not path.startswith(_TREES):
        steps.append(("scale", StandardScaler()))
    return Pipeline([*steps, ("model", estimator)])


def _log_odds(pipeline: Pipeline, X: pd.DataFrame, smoothing: float) -> NDArray[np.float64]:
    try:
        p = pipeline.predict_proba(X.to_numpy(np.float32))[:, 1].astype(np.float64)
    except (ValueError, TypeError, ArithmeticError) as error:  # such as more neighbours than rows
        raise TabularError(
            f"{_described(pipeline)} cannot predict {len(X):,} rows ({_first_line(error)}): change `params`, or take "
            "another classifier"
        ) from error
    if not np.isfinite(p).all():
        raise TabularError(
            f"{_described(pipeline)} has no probability for {int((~np.isfinite(p)).sum()):,} of {len(p):,} rows: "
            "change `params`, or take another classifier"
        )
    odds: NDArray[np.float64] = logit(smoothing + (1 - 2 * smoothing) * p)
    return odds


def _described(pipeline: Pipeline) -> str:
    """Returns the fitted classifier with the parameters that differ from scikit-learn's, on one line."""
    return " ".join(str(pipeline[-1]).split())


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _calibrated(log_odds: NDArray[np.float64], y: NDArray[Any], positive_weight: float) -> tuple[float, float]:
    """Returns slope and bias of the log odds on rows that the classifier has not seen; the order of rows stays."""
    weights = np.where(y == 1, positive_weight, 1.0)
    fit = LogisticRegression(C=1.0).fit(log_odds[:, None], y, sample_weight=weights)
    if (slope := float(fit.coef_[0, 0])) > _LEAST_SLOPE:
        return slope, float(fit.intercept_[0])
    # The order of these rows is no better than chance. It is kept, with differences that hardly move an average.
    share = float(np.average(y, weights=weights))
    return _LEAST_SLOPE, float(logit(share)) - _LEAST_SLOPE * float(np.mean(log_odds))


_LEAST_SLOPE = 0.01

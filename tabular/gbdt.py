"""LightGBM and XGBoost behind one pair of functions: fit, predict logits, write, read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import lightgbm
import numpy as np
import pandas as pd
import xgboost
from numpy.typing import ArrayLike, NDArray

from tabular.errors import TabularError

Params = Mapping[str, str | float | bool]
Matrix = NDArray[np.float32]
Rows = tuple[Matrix, Matrix]  # features (n, columns), targets (n,)

# Every parameter that can be set, for 8,000 to 30,000 rows at 2 to 10 % positives: shallow trees, leaves of
# some tens of rows, slow learning. One name a setting and no aliases, so that an override can't stand beside
# what it overrides; no class weights, which shift the logits away from the prevalence.
DEFAULTS: Mapping[str, Mapping[str, float | bool]] = {
    "lightgbm": {
        "rounds": 2000,  # at most; early stopping finds the number
        "patience": 100,  # rounds without a better log loss
        "learning_rate": 0.03,
        "num_leaves": 15,
        "max_depth": 5,
        "min_data_in_leaf": 40,
        "min_sum_hessian_in_leaf": 0.5,
        "min_gain_to_split": 0.0,
        "lambda_l1": 0.0,
        "lambda_l2": 5.0,
        "bagging_fraction": 0.8,
        "bagging_freq": 1,
        "feature_fraction": 0.5,
        "feature_fraction_bynode": 1.0,
        "path_smooth": 0.0,
        "extra_trees": True,  # random thresholds: +0.003 on HAM10000, +0.002 on SIIM-ISIC (docs/log.md)
        "max_bin": 255,
    },
    "xgboost": {
        "rounds": 2000,
        "patience": 100,
        "learning_rate": 0.03,
        "max_depth": 4,
        "max_leaves": 0,
        "min_child_weight": 1.0,  # a sum of p (1 - p): about 50 rows at 2 % positives
        "gamma": 0.0,
        "reg_alpha": 0.0,
        "reg_lambda": 5.0,
        "subsample": 0.8,
        "colsample_bytree": 0.6,
        "colsample_bynode": 1.0,
        "max_bin": 256,
    },
}
SUFFIXES: Mapping[str, str] = {"lightgbm": ".txt", "xgboost": ".ubj"}

_FIXED: Mapping[str, Params] = {
    "lightgbm": {
        "objective": "binary",
        "metric": "binary_logloss",
        "deterministic": True,
        "force_row_wise": True,  # else it times both layouts and takes the faster, not always the same one
        "verbosity": -1,
    },
    "xgboost": {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "verbosity": 0,
    },
}
# First and last bytes of a whole file. On some files that were cut short both libraries end the process
# (abort, segmentation fault), and LightGBM reads others as if nothing were wrong.
_ENDS: Mapping[str, tuple[bytes, bytes]] = {
    "lightgbm": (b"tree\n", b"pandas_categorical:null\n"),
    "xgboost": (b"{", b"}"),
}


@dataclass(frozen=True)
class Gbdt:
    """A fitted model: the library's own booster, the columns it met in training, in order, and its rounds."""

    kind: str
    booster: Any
    columns: tuple[str, ...]
    rounds: int


def fit_gbdt(
    kind: str,
    X: pd.DataFrame,
    y: ArrayLike,
    *,
    stop: tuple[pd.DataFrame, ArrayLike] | None,
    params: Mapping[str, float | bool],
    seed: int,
    threads: int,
) -> Gbdt:
    """Fit a binary logistic GBDT to X (n, columns), numeric with NaN where missing, and y (n,) of 0 and 1.

    `stop` holds the rows (X, y) that early stopping watches, of other groups than X. It watches the log loss,
    which moves with every row, where AUC jumps at few positives. The model is then fitted again on the rows
    of both with the rounds found. Without `stop`, `params["rounds"]` is the number of rounds.

    `params` override DEFAULTS[kind]. The same rows, seed and threads give the same bytes. Raises TabularError
    for an unknown kind or parameter, columns that aren't finite numbers, and targets other than both 0 and 1.
    """
    if kind not in DEFAULTS:
        raise TabularError(f"unknown GBDT {kind!r}: {_nearest(kind, DEFAULTS)}")
    settings = _settings(kind, params)
    rounds, patience = int(settings.pop("rounds")), int(settings.pop("patience"))
    # nthread is LightGBM's name too; it derives all its other seeds from `seed`
    fixed = {**settings, **_FIXED[kind], "seed": seed, "nthread": threads}
    columns = _columns(X)
    train = _features(X), _targets(y, len(X))
    if len(np.unique(train[1])) < 2:
        raise TabularError(f"the {len(X)} training rows hold one class only: both are needed")
    if (stop is None and "rounds" not in params) or (stop is not None and not len(stop[0])):
        raise TabularError(f"{kind} has no rows to stop early on: give them, or None and params['rounds']")
    boost = _boost_lightgbm if kind == "lightgbm" else _boost_xgboost
    names = [quote(name, safe="") for name in columns]  # LightGBM takes no blanks, XGBoost no brackets
    try:
        if stop is not None:
            _check_columns(columns, stop[0])
            watch = _features(stop[0]), _targets(stop[1], len(stop[0]))
            rounds = boost(train, rounds, names, fixed, watch, patience)[1]
            train = np.concatenate([train[0], watch[0]]), np.concatenate([train[1], watch[1]])
        booster, rounds = boost(train, rounds, names, fixed, None, patience)
    except (lightgbm.basic.LightGBMError, xgboost.core.XGBoostError) as error:
        reason = str(error).strip().splitlines()[0]
        raise TabularError(f"{kind} refuses {dict(params)}: {reason}") from error
    return Gbdt(kind, booster, columns, rounds)


def predict_logit(model: Gbdt, X: pd.DataFrame, *, threads: int = 1) -> Matrix:
    """Log odds (n,), float32. Raises TabularError unless X has the columns of the fit, in their order."""
    _check_columns(model.columns, X)
    features = _features(X)
    if not len(features):
        return np.empty(0, dtype=np.float32)
    if model.kind == "lightgbm":
        margin = model.booster.predict(features, raw_score=True, num_threads=threads)
    else:
        model.booster.set_param({"nthread": threads})
        margin = model.booster.inplace_predict(features, predict_type="margin", validate_features=False)
    return np.asarray(margin, dtype=np.float32)


def write_gbdt(model: Gbdt, path: Path) -> None:
    """Write LightGBM's text (to a name ending in .txt) or XGBoost's UBJSON (.ubj), all or nothing."""
    if path.suffix != SUFFIXES[model.kind]:
        raise TabularError(f"{path}: a {model.kind} model is written to a name ending in {SUFFIXES[model.kind]}")
    if model.kind == "lightgbm":
        content = model.booster.model_to_string().encode()
    else:
        content = bytes(model.booster.save_raw("ubj"))
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_gbdt(path: Path) -> Gbdt:
    """Read what `write_gbdt` wrote, by its suffix; it predicts the same, to the last bit."""
    kind = next((kind for kind, suffix in SUFFIXES.items() if suffix == path.suffix), None)
    if kind is None:
        raise TabularError(f"{path}: a model's name ends in {' or '.join(SUFFIXES.values())}")
    content = path.read_bytes()
    start, end = _ENDS[kind]
    if not (content.startswith(start) and content.endswith(end)):
        raise TabularError(f"{path} is no whole {kind} model: remove it and fit it again")
    try:
        if kind == "lightgbm":
            booster = lightgbm.Booster(model_str=content.decode())
            names, rounds = booster.feature_name(), booster.num_trees()
        else:
            booster = xgboost.Booster(model_file=bytearray(content))
            names, rounds = booster.feature_names, booster.num_boosted_rounds()
    except (lightgbm.basic.LightGBMError, xgboost.core.XGBoostError, UnicodeDecodeError) as error:
        raise TabularError(f"{path} is a damaged {kind} model: remove it and fit it again") from error
    return Gbdt(kind, booster, tuple(unquote(name) for name in names or ()), rounds)


def importance(model: Gbdt) -> pd.Series:
    """Total gain of every column, largest first; 0 where no tree splits on it."""
    if model.kind == "lightgbm":
        gain = pd.Series(model.booster.feature_importance("gain"), index=model.columns, dtype=np.float64)
    else:
        found = model.booster.get_score(importance_type="total_gain")
        gain = pd.Series({name: found.get(quote(name, safe=""), 0.0) for name in model.columns}, dtype=np.float64)
    return gain.rename("gain").sort_values(ascending=False, kind="stable")


def _boost_lightgbm(
    train: Rows, rounds: int, names: list[str], params: Params, watch: Rows | None, patience: int
) -> tuple[lightgbm.Booster, int]:
    data = lightgbm.Dataset(*train, feature_name=names)
    if watch is None:
        booster = lightgbm.train(dict(params), data, rounds)
        return booster, booster.num_trees()
    watched = lightgbm.Dataset(*watch, reference=data)
    stopping = lightgbm.early_stopping(patience, verbose=False)
    booster = lightgbm.train(dict(params), data, rounds, valid_sets=[watched], callbacks=[stopping])
    return booster, booster.best_iteration


def _boost_xgboost(
    train: Rows, rounds: int, names: list[str], params: Params, watch: Rows | None, patience: int
) -> tuple[xgboost.Booster, int]:
    threads = params["nthread"]
    data = xgboost.DMatrix(*train, feature_names=names, nthread=threads)
    if watch is None:
        booster = xgboost.train(params, data, rounds)
        return booster, booster.num_boosted_rounds()
    watched = xgboost.DMatrix(*watch, feature_names=names, nthread=threads)
    early = {"evals": [(watched, "stop")], "early_stopping_rounds": patience, "verbose_eval": False}
    booster = xgboost.train(params, data, rounds, **early)
    return booster, booster.best_iteration + 1


def _settings(kind: str, params: Mapping[str, float | bool]) -> dict[str, float | bool]:
    defaults = DEFAULTS[kind]
    for name, value in params.items():
        if name not in defaults:
            raise TabularError(f"{kind} has no parameter {name!r} here: {_nearest(name, defaults)}")
        wanted = type(defaults[name])
        taken = (int, float) if wanted is float else wanted
        if not isinstance(value, taken) or isinstance(value, bool) != (wanted is bool):
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give one {wanted.__name__}")
        if name in ("rounds", "patience") and value < 1:
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give at least 1")
    return {**defaults, **params}


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def _columns(X: pd.DataFrame) -> tuple[str, ...]:
    columns = tuple(map(str, X.columns))
    doubled = sorted({name for name in columns if columns.count(name) > 1})
    if doubled or not columns:
        raise TabularError(f"doubled columns {', '.join(doubled)}" if doubled else "no columns to fit on")
    return columns


def _check_columns(columns: tuple[str, ...], X: pd.DataFrame) -> None:
    given = list(map(str, X.columns))
    if given == list(columns):
        return
    missing = [name for name in columns if name not in given]
    extra = [name for name in given if name not in columns]
    parts = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
    raise TabularError(
        f"the columns aren't those of the fit; {'; '.join(parts) or 'their order differs'}: "
        "build the features with the settings that the model was fitted with"
    )


def _features(X: pd.DataFrame) -> Matrix:
    text = [str(name) for name, dtype in X.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if text:
        raise TabularError(f"columns that aren't numeric: {', '.join(text)}; encode them first")
    features = X.to_numpy(np.float32, na_value=np.nan)
    infinite = np.isinf(features).any(axis=0)
    if infinite.any():
        names = ", ".join(map(str, X.columns[infinite]))
        raise TabularError(f"infinite values in {names}: mark them missing (NaN) or clip them")
    return np.ascontiguousarray(features)


def _targets(y: ArrayLike, rows: int) -> Matrix:
    targets = np.asarray(y, dtype=np.float32)
    if targets.shape != (rows,):
        raise TabularError(f"{targets.shape} targets for {rows} rows: one target a row")
    bad = ~np.isin(targets, (0, 1))
    if bad.any():
        raise TabularError(f"target {targets[bad][0]:g} in row {int(np.argmax(bad))}: targets are 0 or 1")
    return targets

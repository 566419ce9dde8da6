"""The parameters of each GBDT library: what can be set, its default, and what is fixed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tabular.errors import TabularError

Params = Mapping[str, str | float | bool]

# Every parameter that can be set, for 8,000 to 30,000 rows at 2 to 10 % positives: shallow trees, leaves of
# some tens of rows, slow learning. One name a setting and no aliases, so that an override can't stand beside
# what it overrides; no class weights: `fit_bag` has one, and puts the prior back.
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
    "catboost": {
        "rounds": 2000,
        "patience": 100,
        "learning_rate": 0.05,
        "depth": 5,
        "l2_leaf_reg": 10.0,
        "random_strength": 1.0,
        "subsample": 0.8,
        "rsm": 0.5,
        "border_count": 128,
    },
}
FIXED: Mapping[str, Params] = {
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
    "catboost": {
        "loss_function": "Logloss",
        "bootstrap_type": "Bernoulli",
        "allow_writing_files": False,
        "logging_level": "Silent",
    },
}
ON_GPU: Mapping[str, Params] = {
    "lightgbm": {"device_type": "gpu"},
    "xgboost": {"device": "cuda"},
    "catboost": {"task_type": "GPU", "rsm": 1.0},  # it has no columns to leave out there
}


def gbdt_settings(kind: str, params: Mapping[str, float | bool]) -> dict[str, float | bool]:
    """The defaults of ``kind`` with ``params`` over them. Raises TabularError for unknown names and wrong types."""
    defaults = DEFAULTS[kind]
    for name, value in params.items():
        if name not in defaults:
            raise TabularError(f"{kind} has no parameter {name!r} here: {nearest(name, defaults)}")
        wanted = type(defaults[name])
        taken = (int, float) if wanted is float else wanted
        if not isinstance(value, taken) or isinstance(value, bool) != (wanted is bool):
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give one {wanted.__name__}")
        if name in ("rounds", "patience") and value < 1:
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give at least 1")
    return {**defaults, **params}


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """What an unknown name may have meant."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"

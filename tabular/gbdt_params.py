"""Parameters of the GBDT libraries: defaults, what a config can set, and what is fixed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from dermstack.errors import TabularError

Params = Mapping[str, str | float | bool]

FIT_VERSION = 2  # increase it when a GBDT that is fitted to the same rows with the same settings becomes another one

# All parameters that can be set, with defaults for 8,000 to 30,000 rows with 2 to 10 % positives: shallow trees,
# leaves of some tens of rows, a low learning rate (lower ones have the same AUC there and take longer: docs/log.md). No
# aliases, so that an override and the default cannot both be passed; no class weights: `fit_bag` has one and corrects
# the prior.
DEFAULTS: Mapping[str, Mapping[str, float | bool]] = {
    "lightgbm": {
        "rounds": 2000,  # maximum; early stopping chooses the number
        "patience": 60,  # rounds without a lower log loss before early stopping
        "learning_rate": 0.05,
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
        "patience": 60,
        "learning_rate": 0.05,
        "max_depth": 4,
        "max_leaves": 0,
        "min_child_weight": 1.0,  # a sum of p (1 - p): about 50 rows at 2 % positives
        "gamma": 0.0,
        "reg_alpha": 0.0,
        "reg_lambda": 5.0,
        "subsample": 0.8,
        "colsample_bytree": 0.6,
        "colsample_bynode": 1.0,
        "max_bin": 64,  # 256 has the same AUC and takes a third longer
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
# The same for matrices with native categories. LightGBM's own smoothing of 10 passes over words of fewer rows than
# that, and it needs 100 rows in a set of words: with 300 words in 2,500 simulated rows the AUC was 0.720 with its
# defaults and 0.774 with these, and equal with 60 words. The others are the libraries' own.
CATEGORY_DEFAULTS: Mapping[str, Mapping[str, float | bool]] = {
    "lightgbm": {
        "cat_smooth": 2.0,
        "cat_l2": 10.0,
        "min_data_per_group": 20,
        "max_cat_threshold": 32,
    },
    "xgboost": {"max_cat_threshold": 64},
    "catboost": {"one_hot_max_size": 2, "max_ctr_complexity": 1},
}
FIXED_PARAMS: Mapping[str, Params] = {
    "lightgbm": {
        "objective": "binary",
        "metric": "binary_logloss",
        "deterministic": True,
        "force_col_wise": True,  # otherwise the layout is chosen by a timing, which can differ between runs
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
GPU_PARAMS: Mapping[str, Params] = {
    "lightgbm": {"device_type": "gpu"},
    "xgboost": {"device": "cuda"},
    "catboost": {"task_type": "GPU", "rsm": 1.0},  # CatBoost cannot sample columns on a GPU
}


def gbdt_settings(
    kind: str, params: Mapping[str, float | bool], *, categories: bool = False
) -> dict[str, float | bool]:
    """Returns the defaults of ``kind`` updated with ``params``; TabularError for unknown names and wrong types.

    Parameters of native categories are left out unless the matrix has ``categories``.
    """
    defaults = {**DEFAULTS[kind], **CATEGORY_DEFAULTS[kind]}
    for name, value in params.items():
        if name not in defaults:
            raise TabularError(f"{kind} has no settable parameter {name!r}: {did_you_mean(name, defaults)}")
        wanted = type(defaults[name])
        taken = (int, float) if wanted is float else wanted
        if not isinstance(value, taken) or isinstance(value, bool) != (wanted is bool):
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give a value of type {wanted.__name__}")
        if name in ("rounds", "patience") and value < 1:
            raise TabularError(f"{kind} parameter {name!r} is {value!r}: give at least 1")
    return {
        name: value
        for name, value in {**defaults, **params}.items()
        if categories or name not in CATEGORY_DEFAULTS[kind]
    }


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """Returns a hint for an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(known)}"

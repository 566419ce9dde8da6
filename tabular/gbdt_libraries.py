"""Adapters of LightGBM, XGBoost and CatBoost to one interface (`Library`); the only module that imports them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import lightgbm
import numpy as np
import xgboost
from numpy.typing import NDArray

from dermstack.errors import TabularError

Params = Mapping[str, str | float | bool]

# All parameters that can be set, with defaults for 8,000 to 30,000 rows with 2 to 10 % positives: shallow trees,
# leaves of some tens of rows, a low learning rate. No aliases, so that an override and the default cannot both be
# passed; no class weights: `fit_bag` has one and corrects the prior.
DEFAULTS: Mapping[str, Mapping[str, float | bool]] = {
    "lightgbm": {
        "rounds": 2000,  # maximum; early stopping chooses the number
        "patience": 100,  # rounds without a lower log loss before early stopping
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
        "force_row_wise": True,  # otherwise the layout is chosen by a timing, which can differ between runs
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


Matrix = NDArray[np.float32]
Boosted = tuple[Any, int]  # the booster and its rounds


class LabelledRows(NamedTuple):
    """Rows to fit or to stop on."""

    features: Matrix  # (n, columns)
    targets: Matrix  # (n,)
    weights: Matrix | None  # (n,); None: all one


@dataclass(frozen=True)
class Boosting:
    """What one call of `Library.boost` fits: rows, parameters, and the rows for early stopping."""

    train: LabelledRows
    names: list[str]  # of the columns, from `library_names`
    params: Params
    categories: list[int]  # positions of the native categories, whose values are codes from 0 on, NaN for missing
    rounds: int  # with `stop_rows` the maximum
    patience: int  # rounds without a lower log loss of `stop_rows` before early stopping
    stop_rows: LabelledRows | None = None


@dataclass(frozen=True)
class Library:
    """Interface of a GBDT library; column names are those of `library_names`."""

    suffix: str  # of its model files
    # Whether the content of a file is complete. On some truncated files LightGBM and XGBoost end the process (abort,
    # segmentation fault), and LightGBM and CatBoost load others without an error.
    is_complete: Callable[[bytes], bool]
    boost: Callable[[Boosting], Boosted]
    margin: Callable[[Any, Matrix, int], NDArray[np.floating]]  # log odds (n,)
    # SHAP values of the log odds by exact TreeSHAP, the bias in the last column: (n, columns + 1), which sum to the
    # margin.
    contributions: Callable[[Any, Matrix, list[str], int], NDArray[np.floating]]
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], tuple[Any, list[str], int]]  # booster, names, rounds
    gain: Callable[[Any, list[str]], NDArray[np.float64]]
    increasing: Callable[[list[bool]], Params]  # parameters so that the logit never falls with the flagged columns
    exceptions: tuple[type[Exception], ...]


def _boost_lightgbm(fit: Boosting) -> Boosted:
    features, targets, weights = fit.train
    data = lightgbm.Dataset(
        features, targets, weight=weights, feature_name=fit.names, categorical_feature=fit.categories or "auto"
    )
    if fit.stop_rows is None:
        booster = lightgbm.train(dict(fit.params), data, fit.rounds)
        return booster, booster.num_trees()
    features, targets, weights = fit.stop_rows
    stop_data = lightgbm.Dataset(features, targets, weight=weights, reference=data)
    stopping = lightgbm.early_stopping(fit.patience, verbose=False)
    booster = lightgbm.train(dict(fit.params), data, fit.rounds, valid_sets=[stop_data], callbacks=[stopping])
    return booster, booster.best_iteration


def _load_lightgbm(content: bytes) -> tuple[Any, list[str], int]:
    booster = lightgbm.Booster(model_str=content.decode())
    return booster, booster.feature_name(), booster.num_trees()


def _boost_xgboost(fit: Boosting) -> Boosted:
    def matrix(rows: LabelledRows) -> Any:
        return xgboost.DMatrix(
            rows.features, rows.targets, weight=rows.weights, feature_names=fit.names, nthread=fit.params["nthread"],
            **_types_xgboost(len(fit.names), fit.categories),
        )  # fmt: skip

    if fit.stop_rows is None:
        booster = xgboost.train(fit.params, matrix(fit.train), fit.rounds)
        return booster, booster.num_boosted_rounds()
    booster = xgboost.train(
        fit.params, matrix(fit.train), fit.rounds, evals=[(matrix(fit.stop_rows), "stop")],
        early_stopping_rounds=fit.patience, verbose_eval=False,
    )  # fmt: skip
    return booster, booster.best_iteration + 1


def _types_xgboost(columns: int, categories: Sequence[int]) -> dict[str, Any]:
    """Returns the arguments of a DMatrix that flag the native categories; none where there are none."""
    if not categories:
        return {}
    flagged = set(categories)
    types = ["c" if place in flagged else "q" for place in range(columns)]
    return {"feature_types": types, "enable_categorical": True}


def _margin_xgboost(booster: Any, features: Matrix, threads: int) -> NDArray[np.floating]:
    booster.set_param({"nthread": threads})
    margin: NDArray[np.floating] = booster.inplace_predict(features, predict_type="margin", validate_features=False)
    return margin


def _contributions_xgboost(booster: Any, features: Matrix, names: list[str], threads: int) -> NDArray[np.floating]:
    booster.set_param({"nthread": threads})
    types = [place for place, kind in enumerate(booster.feature_types or []) if kind == "c"]
    rows = xgboost.DMatrix(features, feature_names=names, nthread=threads, **_types_xgboost(len(names), types))
    found: NDArray[np.floating] = booster.predict(rows, pred_contribs=True)
    return found


def _load_xgboost(content: bytes) -> tuple[Any, list[str], int]:
    booster = xgboost.Booster(model_file=bytearray(content))
    return booster, booster.feature_names or [], booster.num_boosted_rounds()


def _gain_xgboost(booster: Any, names: list[str]) -> NDArray[np.float64]:
    found = booster.get_score(importance_type="total_gain")
    return np.array([found.get(name, 0.0) for name in names], np.float64)


class _CatBoostError(Exception):
    """Stands for catboost.CatBoostError, which would need the import of catboost, about one second."""


@contextmanager
def _imported_catboost() -> Iterator[Any]:
    """Yields the catboost module and turns its errors into `_CatBoostError`; TabularError if it is not installed."""
    try:
        import catboost
    except ImportError as error:
        raise TabularError(
            "catboost is not installed: pip install 'dermstack[catboost]', or choose lightgbm"
        ) from error
    try:
        yield catboost
    except catboost.CatBoostError as error:
        raise _CatBoostError(str(error)) from error


def _boost_catboost(fit: Boosting) -> Boosted:
    renamed = {"nthread": "thread_count", "seed": "random_seed"}
    settings = {renamed.get(name, name): value for name, value in fit.params.items()}
    with _imported_catboost() as catboost:

        def pool(rows: LabelledRows) -> Any:
            return catboost.Pool(
                _rows_catboost(rows.features, fit.names, fit.categories), rows.targets, weight=rows.weights,
                **_names_catboost(fit.names, fit.categories),
            )  # fmt: skip

        model = catboost.CatBoost(settings | {"iterations": fit.rounds})
        if fit.stop_rows is None:
            model.fit(pool(fit.train))
        else:
            model.fit(
                pool(fit.train), eval_set=pool(fit.stop_rows), early_stopping_rounds=fit.patience, use_best_model=True
            )
    return model, model.tree_count_


def _rows_catboost(features: Matrix, names: Sequence[str], categories: Sequence[int]) -> Any:
    """Returns the rows as CatBoost takes them: with native categories as a frame, where these are integers, -1 missing.

    A matrix of numbers cannot hold them, and CatBoost refuses NaN in them.
    """
    if not categories:
        return features
    import pandas as pd  # not for the other libraries, as the child processes of gbdt_trial start faster without it

    frame = pd.DataFrame(features, columns=list(names))
    codes = {names[place]: np.nan_to_num(features[:, place], nan=-1).astype(np.int64) for place in categories}
    return frame.assign(**codes)


def _names_catboost(names: list[str], categories: list[int]) -> dict[str, Any]:
    return {"cat_features": categories} if categories else {"feature_names": names}


def _margin_catboost(model: Any, features: Matrix, threads: int) -> NDArray[np.floating]:
    rows = _rows_catboost(features, model.feature_names_, model.get_cat_feature_indices())
    margin: NDArray[np.floating] = model.predict(rows, prediction_type="RawFormulaVal", thread_count=threads)
    return margin


def _contributions_catboost(model: Any, features: Matrix, names: list[str], threads: int) -> NDArray[np.floating]:
    with _imported_catboost() as catboost:
        categories = model.get_cat_feature_indices()
        rows = catboost.Pool(_rows_catboost(features, names, categories), **_names_catboost(names, categories))
        found = model.get_feature_importance(rows, type="ShapValues", thread_count=threads)
    return np.asarray(found, np.float64)


def _dump_catboost(model: Any) -> bytes:
    metadata = model.get_metadata()  # time, a random name and losses, which would make the bytes of each fit differ
    for name in list(metadata.keys()):
        del metadata[name]
    content: bytes = model._serialize_model()  # the bytes that save_model writes
    return content


def _is_complete_catboost(content: bytes) -> bool:
    """Whether the trees are complete and, with native categories, all tables of statistics that follow them.

    Each part stands behind its size in 4 bytes; behind the trees comes the number of tables.
    """
    if not content.startswith(b"CBM1"):
        return False
    place = 8 + int.from_bytes(content[4:8], "little")
    if len(content) <= place:
        return len(content) == place
    tables, place = int.from_bytes(content[place : place + 4], "little"), place + 4
    for _ in range(tables):
        if place + 4 > len(content):
            return False
        place += 4 + int.from_bytes(content[place : place + 4], "little")
    return place == len(content)


def _load_catboost(content: bytes) -> tuple[Any, list[str], int]:
    with _imported_catboost() as catboost:
        model = catboost.CatBoost()
        model.load_model(blob=content)
        # dermstack fits symmetric trees, which have no children that a file could make a cycle of.
        if model.tree_count_ and not model._object._is_oblivious():
            raise TabularError("its trees are not symmetric, so dermstack did not fit it")
    return model, model.feature_names_, model.tree_count_


def _flags(increasing: list[bool]) -> list[int]:
    return [int(flag) for flag in increasing]


LIBRARIES: Mapping[str, Library] = {
    "lightgbm": Library(
        suffix=".txt",
        is_complete=lambda content: content.startswith(b"tree\n") and content.endswith(b"pandas_categorical:null\n"),
        boost=_boost_lightgbm,
        margin=lambda booster, x, threads: booster.predict(x, raw_score=True, num_threads=threads),
        contributions=lambda booster, x, _, threads: booster.predict(x, pred_contrib=True, num_threads=threads),
        dump=lambda booster: booster.model_to_string().encode(),
        load=_load_lightgbm,
        gain=lambda booster, names: booster.feature_importance("gain").astype(np.float64),
        increasing=lambda flags: {"monotone_constraints": ",".join(map(str, _flags(flags)))},
        exceptions=(lightgbm.basic.LightGBMError,),
    ),
    "xgboost": Library(
        suffix=".ubj",
        is_complete=lambda content: content.startswith(b"{") and content.endswith(b"}"),
        boost=_boost_xgboost,
        margin=_margin_xgboost,
        contributions=_contributions_xgboost,
        dump=lambda booster: bytes(booster.save_raw("ubj")),
        load=_load_xgboost,
        gain=_gain_xgboost,
        increasing=lambda flags: {"monotone_constraints": f"({','.join(map(str, _flags(flags)))})"},
        exceptions=(xgboost.core.XGBoostError,),
    ),
    "catboost": Library(
        suffix=".cbm",
        is_complete=_is_complete_catboost,
        boost=_boost_catboost,
        margin=_margin_catboost,
        contributions=_contributions_catboost,
        dump=_dump_catboost,
        load=_load_catboost,
        gain=lambda model, names: np.asarray(model.get_feature_importance(), np.float64),
        increasing=lambda flags: {"monotone_constraints": f"({','.join(map(str, _flags(flags)))})"},
        exceptions=(_CatBoostError,),
    ),
}


def load_library(kind: str) -> None:
    """Imports the library of ``kind`` if that has not been done. Raises TabularError if it is not installed."""
    if kind == "catboost":
        with _imported_catboost():
            pass


_NO_NAME = "%"  # stands for an empty name, for which CatBoost makes up another; no quoted name is equal to it


def library_names(columns: tuple[str, ...]) -> list[str]:
    """Returns quoted column names: LightGBM accepts no blanks, XGBoost no brackets, CatBoost no empty name."""
    return [quote(name, safe="") or _NO_NAME for name in columns]


def column_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the column names that `library_names` quoted."""
    return tuple("" if name == _NO_NAME else unquote(name) for name in names)

"""Adapters of LightGBM, XGBoost and CatBoost to one interface (`Library`); the only module that imports them."""

from __future__ import annotations

import sys
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
from tabular.gbdt_params import DEFAULTS as DEFAULTS
from tabular.gbdt_params import FIT_VERSION as FIT_VERSION
from tabular.gbdt_params import FIXED_PARAMS as FIXED_PARAMS
from tabular.gbdt_params import GPU_PARAMS as GPU_PARAMS
from tabular.gbdt_params import Params
from tabular.gbdt_params import did_you_mean as did_you_mean
from tabular.gbdt_params import gbdt_settings as gbdt_settings

Matrix = NDArray[np.float32]
Boosted = tuple[Any, int]  # the booster and its rounds


class LabelledRows(NamedTuple):
    """Rows to fit or to stop on."""

    features: Matrix  # (n, columns)
    targets: Matrix  # (n,)
    weights: Matrix | None  # (n,); None: all one


@dataclass(frozen=True)
class Boosting:
    """What `Library.boost` fits: rows, parameters, and the rows for early stopping."""

    train: LabelledRows
    names: list[str]  # of the columns, from `library_names`
    params: Params
    categories: list[int]  # positions of the native categories, whose values are codes from 0 on, NaN for missing
    rounds: int  # with `stop_rows` the maximum
    patience: int  # rounds without a lower log loss of `stop_rows` before early stopping
    stop_rows: LabelledRows | None = None


class Binned(NamedTuple):
    """Rows in the form of a library, which bins the features once for all models that are fitted to them."""

    train: Any
    stop: Any | None  # the rows for early stopping, if there are any


@dataclass(frozen=True)
class Library:
    """Interface of a GBDT library; column names are those of `library_names`."""

    suffix: str  # of its model files
    # Whether the content of a file is complete. On some truncated files LightGBM and XGBoost end the process (abort,
    # segmentation fault), and LightGBM and CatBoost load others without an error.
    is_complete: Callable[[bytes], bool]
    bins: Callable[[Boosting], Binned]
    boost: Callable[[Boosting, Binned], Boosted]  # of the same rows, names and categories as the bins, any seed
    # Most rows for which the bins do not depend on the seed, so that models of other seeds may share them.
    most_shared: int
    margin: Callable[[Any, Matrix, int], NDArray[np.floating]]  # log odds (n,)
    # SHAP values of the log odds by exact TreeSHAP, the bias in the last column: (n, columns + 1), which sum to the
    # margin.
    contributions: Callable[[Any, Matrix, list[str], int], NDArray[np.floating]]
    dump: Callable[[Any], bytes]
    load: Callable[[bytes], tuple[Any, list[str], int]]  # booster, names, rounds
    gain: Callable[[Any, list[str]], NDArray[np.float64]]
    increasing: Callable[[list[bool]], Params]  # parameters so that the logit never falls with the flagged columns
    exceptions: tuple[type[Exception], ...]


def _bins_lightgbm(fit: Boosting) -> Binned:
    """Returns data sets that LightGBM bins at the first fit to them."""
    features, targets, weights = fit.train
    data = lightgbm.Dataset(
        features, targets, weight=weights, feature_name=fit.names, categorical_feature=fit.categories or "auto"
    )
    if fit.stop_rows is None:
        return Binned(data, None)
    features, targets, weights = fit.stop_rows
    return Binned(data, lightgbm.Dataset(features, targets, weight=weights, reference=data))


def _boost_lightgbm(fit: Boosting, data: Binned) -> Boosted:
    if data.stop is None:
        booster = lightgbm.train(dict(fit.params), data.train, fit.rounds)
        return booster, booster.num_trees()
    stopping = lightgbm.early_stopping(fit.patience, verbose=False)
    booster = lightgbm.train(dict(fit.params), data.train, fit.rounds, valid_sets=[data.stop], callbacks=[stopping])
    return booster, booster.best_iteration


def _load_lightgbm(content: bytes) -> tuple[Any, list[str], int]:
    booster = lightgbm.Booster(model_str=content.decode())
    return booster, booster.feature_name(), booster.num_trees()


def _bins_xgboost(fit: Boosting) -> Binned:
    """Returns matrices that hold bins alone on the CPU; on a GPU XGBoost bins them there, at the first fit."""
    on_gpu = "device" in fit.params

    def matrix(rows: LabelledRows, bins_of: Any = None) -> Any:
        binned = {} if on_gpu else {"max_bin": fit.params["max_bin"], "ref": bins_of}
        return (xgboost.DMatrix if on_gpu else xgboost.QuantileDMatrix)(
            rows.features, rows.targets, weight=rows.weights, feature_names=fit.names, nthread=fit.params["nthread"],
            **_types_xgboost(len(fit.names), fit.categories), **binned,
        )  # fmt: skip

    train = matrix(fit.train)
    return Binned(train, None if fit.stop_rows is None else matrix(fit.stop_rows, train))


def _boost_xgboost(fit: Boosting, data: Binned) -> Boosted:
    if data.stop is None:
        booster = xgboost.train(fit.params, data.train, fit.rounds)
        return booster, booster.num_boosted_rounds()
    booster = xgboost.train(
        fit.params, data.train, fit.rounds, evals=[(data.stop, "stop")], early_stopping_rounds=fit.patience,
        verbose_eval=False,
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


def _bins_catboost(fit: Boosting) -> Binned:
    """Returns pools of the values; CatBoost bins them in each fit, as the models hold the borders of that."""
    with _imported_catboost() as catboost:

        def pool(rows: LabelledRows) -> Any:
            return catboost.Pool(
                _rows_catboost(rows.features, fit.names, fit.categories), rows.targets, weight=rows.weights,
                **_names_catboost(fit.names, fit.categories),
            )  # fmt: skip

        return Binned(pool(fit.train), None if fit.stop_rows is None else pool(fit.stop_rows))


def _boost_catboost(fit: Boosting, data: Binned) -> Boosted:
    renamed = {"nthread": "thread_count", "seed": "random_seed"}
    settings = {renamed.get(name, name): value for name, value in fit.params.items()}
    with _imported_catboost() as catboost:
        model = catboost.CatBoost(settings | {"iterations": fit.rounds})
        if data.stop is None:
            model.fit(data.train)
        else:
            model.fit(data.train, eval_set=data.stop, early_stopping_rounds=fit.patience, use_best_model=True)
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
        bins=_bins_lightgbm,
        boost=_boost_lightgbm,
        most_shared=200_000,  # its bin_construct_sample_cnt: of more rows it draws a sample by the seed
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
        bins=_bins_xgboost,
        boost=_boost_xgboost,
        most_shared=sys.maxsize,
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
        bins=_bins_catboost,
        boost=_boost_catboost,
        most_shared=sys.maxsize,
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

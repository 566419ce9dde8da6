"""Fits, applies, explains, writes and reads GBDTs, with the same functions for every library."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import TabularError
from dermstack.files import atomic_write
from tabular.gbdt_libraries import (
    DEFAULTS,
    FIXED_PARAMS,
    GPU_PARAMS,
    LIBRARIES,
    Boosted,
    Boosting,
    LabelledRows,
    Library,
    Matrix,
    column_names,
    did_you_mean,
    gbdt_settings,
    library_names,
)
from tabular.gbdt_structure import MAX_CODES, check_structure


@dataclass(frozen=True)
class Gbdt:
    """A fitted GBDT: the library's booster, its columns in the order of the fit, and its number of rounds."""

    kind: str
    booster: Any
    columns: tuple[str, ...]
    rounds: int


def fit_gbdt(kind: str, X: pd.DataFrame, y: ArrayLike, *, seed: int, **options: Any) -> Gbdt:
    """Fits one GBDT with `fit_gbdts`."""
    return fit_gbdts(kind, X, y, seeds=(seed,), **options)[0]


def fit_gbdts(
    kind: str,
    X: pd.DataFrame,
    y: ArrayLike,
    *,
    eval_set: tuple[pd.DataFrame, ArrayLike] | None,
    params: Mapping[str, float | bool],
    seeds: Sequence[int],
    threads: int,
    increasing: Collection[str] = (),
    positive_weight: float = 1.0,
    gpu: bool = False,
    categorical: Collection[str] = (),
) -> list[Gbdt]:
    """Fits binary logistic GBDTs, one for each of `seeds`.

    X (n, columns) is numeric with NaN for missing values, and y (n,) holds 0 and 1.

    `eval_set` has the rows (X, y) for early stopping, of other groups than X. Early stopping uses the log loss, to
    which every row contributes; AUC changes in steps where positives are few. It is done once, with the first seed,
    and a model of each seed is then fitted to all rows with the number of rounds found. Without `eval_set`,
    `params["rounds"]` is the number of rounds.

    Columns of `categorical` hold codes of categories, 0, 1, 2, … (`CategoryCodes`), which the library splits by sets of
    codes; names that X lacks are ignored.

    The logit never falls with the value of a column of `increasing`; names that X lacks are ignored. `positive_weight`
    is the weight of positive rows, which raises the logits by about its logarithm. `params` override DEFAULTS[kind].
    The same rows, seeds and threads give the same bytes. The models share the binned features, which do not depend on
    the seed. Raises TabularError for an unknown kind or parameter, for columns that are not numeric or are infinite,
    and unless the targets hold both 0 and 1 and nothing else.
    """
    if kind not in DEFAULTS:
        raise TabularError(f"unknown GBDT {kind!r}: {did_you_mean(kind, DEFAULTS)}")
    library, columns = LIBRARIES[kind], _columns(X)
    categories = [place for place, name in enumerate(columns) if name in categorical]
    settings = gbdt_settings(kind, params, categories=bool(categories))
    rounds, patience = int(settings.pop("rounds")), int(settings.pop("patience"))
    _check_codes(X.iloc[:, categories])
    # nthread is LightGBM's name too; it derives all its other seeds from `seed`
    fixed = {**settings, **FIXED_PARAMS[kind], **(GPU_PARAMS[kind] if gpu else {}), "nthread": threads}
    if any(flags := [name in increasing for name in columns]):
        fixed |= library.increasing(flags)
    train = _labelled_rows(X, y, positive_weight)
    if len(np.unique(train.targets)) < 2:
        raise TabularError(f"the {len(X)} training rows hold one class only: give rows of both classes")
    if (eval_set is None and "rounds" not in params) or (eval_set is not None and not len(eval_set[0])):
        raise TabularError(
            f"{kind} has no rows for early stopping: give them in eval_set, or None and params['rounds']"
        )
    fit = Boosting(train, library_names(columns), fixed, categories, rounds, patience)
    try:
        if eval_set is not None:
            check_columns(columns, eval_set[0])
            stopped = replace(fit, stop_rows=_labelled_rows(*eval_set, positive_weight))
            (_, found), *_ = _boosted(library, stopped, seeds[:1])
            fit = replace(fit, train=_labelled_rows(*_joined((X, y), eval_set), positive_weight), rounds=found)
        return [Gbdt(kind, booster, columns, rounds) for booster, rounds in _boosted(library, fit, seeds)]
    except library.exceptions as error:
        reason = str(error).strip().splitlines()[0]
        raise TabularError(f"{kind} rejects the parameters {dict(params)}: {reason}") from error


def _boosted(library: Library, fit: Boosting, seeds: Sequence[int]) -> Iterator[Boosted]:
    """Yields the booster and rounds of each seed; the features are binned once where this gives the same bytes."""
    shared = library.bins(fit) if len(fit.train.targets) <= library.most_shared else None
    for seed in seeds:
        own = replace(fit, params={**fit.params, "seed": seed})
        yield library.boost(own, shared or library.bins(own))


def predict_logit(model: Gbdt, X: pd.DataFrame, *, threads: int = 1) -> Matrix:
    """Returns log odds (n,), float32; raises TabularError unless X has the columns of the fit in the same order."""
    check_columns(model.columns, X)
    features = _features(X)
    if not len(features):
        return np.empty(0, dtype=np.float32)
    margin = LIBRARIES[model.kind].margin(model.booster, features, threads)
    return np.asarray(margin, dtype=np.float32)


def shap_values(model: Gbdt, X: pd.DataFrame, *, threads: int = 1) -> tuple[pd.DataFrame, float]:
    """Returns the SHAP values of each row, (n, columns), and the bias, which is the same for all rows.

    A row's values and the bias sum to its `predict_logit`. They are exact for the trees and the rows of the fit
    (TreeSHAP, Lundberg et al. 2020), computed by each library itself. Raises TabularError as `predict_logit` does.
    """
    check_columns(model.columns, X)
    features = _features(X)
    if not len(features):
        return pd.DataFrame(np.empty(X.shape), columns=X.columns, index=X.index), 0.0
    found = LIBRARIES[model.kind].contributions(model.booster, features, library_names(model.columns), threads)
    return pd.DataFrame(found[:, :-1], columns=X.columns, index=X.index, dtype=np.float64), float(found[0, -1])


def importance(model: Gbdt) -> pd.Series:
    """Returns the total gain of every column, largest first; 0 for a column without splits."""
    found = LIBRARIES[model.kind].gain(model.booster, library_names(model.columns))
    gain = pd.Series(found, index=list(model.columns))
    return gain.rename("gain").sort_values(ascending=False, kind="stable")


def _labelled_rows(X: pd.DataFrame, y: ArrayLike, positive_weight: float) -> LabelledRows:
    target = _targets(y, len(X))
    weight = None if positive_weight == 1 else np.where(target == 1, np.float32(positive_weight), np.float32(1))
    return LabelledRows(_features(X), target, weight)


def _joined(
    a: tuple[pd.DataFrame, ArrayLike], b: tuple[pd.DataFrame, ArrayLike]
) -> tuple[pd.DataFrame, NDArray[np.float32]]:
    return pd.concat([a[0], b[0]]), np.concatenate([np.asarray(a[1], np.float32), np.asarray(b[1], np.float32)])


def _columns(X: pd.DataFrame) -> tuple[str, ...]:
    columns = tuple(map(str, X.columns))
    doubled = sorted(name for name, times in Counter(columns).items() if times > 1)
    if doubled or not columns:
        raise TabularError(
            f"repeated columns {', '.join(doubled)}: give each its own name"
            if doubled
            else "no columns to fit on: give at least one"
        )
    return columns


def check_columns(columns: tuple[str, ...], X: pd.DataFrame) -> None:
    """Raises TabularError, naming the differences, unless X has the ``columns`` of the fit in the same order."""
    given = list(map(str, X.columns))
    if given == list(columns):
        return
    missing = [name for name in columns if name not in given]
    extra = [name for name in given if name not in columns]
    parts = [f"{what}: {', '.join(names)}" for what, names in (("missing", missing), ("extra", extra)) if names]
    raise TabularError(
        f"the columns are not those of the fit; {'; '.join(parts) or 'their order differs'}: "
        "build the features with the settings of the fit"
    )


def _features(X: pd.DataFrame) -> Matrix:
    text = [str(name) for name, dtype in X.dtypes.items() if not pd.api.types.is_numeric_dtype(dtype)]
    if text:
        raise TabularError(f"columns that are not numeric: {', '.join(text)}; encode them first")
    features = X.to_numpy(np.float32, na_value=np.nan)
    infinite = np.isinf(features).any(axis=0)
    if infinite.any():
        names = ", ".join(map(str, X.columns[infinite]))
        raise TabularError(f"infinite values in {names}: replace them with NaN or clip them")
    return np.ascontiguousarray(features)


def _check_codes(X: pd.DataFrame) -> None:
    """Raises TabularError for a column of categories that holds anything but codes 0, 1, 2, … and NaN."""
    for name, values in X.items():
        codes = values.to_numpy(np.float64, na_value=np.nan)
        codes = codes[~np.isnan(codes)]
        if len(bad := codes[(codes < 0) | (codes >= MAX_CODES) | (codes != np.floor(codes))]):
            raise TabularError(
                f"column {name!r} is a category and holds {bad[0]:g}: codes are whole numbers from 0 to "
                f"{MAX_CODES - 1:,}; make them with CategoryCodes"
            )


def _targets(y: ArrayLike, rows: int) -> Matrix:
    targets = np.asarray(y, dtype=np.float32)
    if targets.shape != (rows,):
        raise TabularError(f"{targets.shape} targets for {rows} rows: give one target for each row")
    bad = ~np.isin(targets, (0, 1))
    if bad.any():
        raise TabularError(f"target {targets[bad][0]:g} in row {int(np.argmax(bad))}: targets are 0 or 1")
    return targets


LOAD_ERRORS: tuple[type[Exception], ...] = (
    UnicodeDecodeError,
    TabularError,
    *(refusal for library in LIBRARIES.values() for refusal in library.exceptions),
)


def write_gbdt(model: Gbdt, path: Path) -> None:
    """Writes LightGBM's text (.txt), XGBoost's UBJSON (.ubj) or CatBoost's .cbm; the file is complete or not written.

    Raises TabularError where the suffix of `path` is not the library's.
    """
    library = LIBRARIES[model.kind]
    if path.suffix != library.suffix:
        raise TabularError(f"{path}: give a name ending in {library.suffix} for a {model.kind} model")
    content = library.dump(model.booster)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def read_gbdt(path: Path) -> Gbdt:
    """Reads a model written by `write_gbdt`, of the kind of its suffix; its predictions are equal to the last bit.

    Raises TabularError for another suffix and for an incomplete or damaged file.
    """
    kind = next((kind for kind, library in LIBRARIES.items() if library.suffix == path.suffix), None)
    if kind is None:
        raise TabularError(
            f"{path}: give a name ending in {' or '.join(library.suffix for library in LIBRARIES.values())}"
        )
    return gbdt_from_bytes(kind, path.read_bytes(), str(path))


def check_gbdt(kind: str, content: bytes, name: str) -> None:
    """Checks a model file's completeness and structure. Raises TabularError that calls the file ``name``."""
    if not LIBRARIES[kind].is_complete(content):
        raise TabularError(f"{name} is an incomplete {kind} model: remove it and fit the model again")
    try:
        check_structure(kind, content)
    except ValueError as error:
        raise TabularError(f"{name} is a damaged {kind} model ({error}): remove it and fit the model again") from error


def gbdt_from_bytes(kind: str, content: bytes, name: str, *, checked: bool = False) -> Gbdt:
    """Reads a model from the content of a file, which errors call ``name``; as `read_gbdt`.

    Content that `check_gbdt` has ``checked`` before is not checked again.
    """
    if not checked:
        check_gbdt(kind, content, name)
    try:
        booster, names, rounds = LIBRARIES[kind].load(content)
    except LOAD_ERRORS as error:
        raise TabularError(f"{name} is a damaged {kind} model: remove it and fit the model again") from error
    return Gbdt(kind, booster, column_names(names), rounds)

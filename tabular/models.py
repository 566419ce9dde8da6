"""Level-2 models: a ridge logistic regression, and bags of models of one kind (GBDTs, logistic, and others)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression

from dermstack.errors import TabularError
from dermstack.files import atomic_write
from tabular.estimators import Estimator, fit_estimator, is_random
from tabular.gbdt import (
    Gbdt,
    check_columns,
    fit_gbdt,
    fit_gbdts,
    gbdt_from_bytes,
    importance,
    predict_logit,
    shap_values,
    write_gbdt,
)
from tabular.gbdt_libraries import LIBRARIES
from tabular.target_encoding import INNER, TargetEncoding, encoding_from_json, fit_target_encoding

C_GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # inverse ridge strengths, for standardised features
ENCODING_FILE = "target_encoding.json"  # beside the models of a bag
_SELECTION_ROUNDS = 100  # of the fit whose gain selects columns
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
        check_columns(self.columns, X)
        return (_standardised(X, self.mean, self.scale) @ self.weight + self.bias).astype(np.float32)

    def contributions(self, X: pd.DataFrame) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the logit relative to a row of means, (n, columns), and the bias.

        Contributions and bias sum to `logit`; they are SHAP values under independent columns.
        """
        check_columns(self.columns, X)
        added = _standardised(X, self.mean, self.scale) * self.weight
        return pd.DataFrame(added, columns=X.columns, index=X.index), self.bias


def fit_logistic(
    X: pd.DataFrame, y: ArrayLike, *, eval_set: tuple[pd.DataFrame, ArrayLike], C_grid: tuple[float, ...] = C_GRID
) -> Logistic:
    """Chooses the ridge strength by the log loss on ``eval_set`` (X, y), of other groups, and refits on all rows.

    X (n, columns) may have NaN; y (n,) is 0 and 1.
    """
    train, target = X, np.asarray(y)
    mean, scale = _moments(train)
    x, eval_x = _standardised(train, mean, scale), _standardised(eval_set[0], mean, scale)
    losses = [_log_loss(eval_set[1], _fit(x, target, C).decision_function(eval_x)) for C in C_grid]
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


def logistic_from_bytes(content: bytes, name: str) -> Logistic:
    """Reads the content of a file of `write_logistic`, which errors call ``name``; TabularError for any other."""
    try:
        state = json.loads(content)
        columns = tuple(str(column) for column in state["columns"])
        mean, scale, weight = (np.array(state[key], float) for key in ("mean", "scale", "weight"))
        bias, strength = float(state["bias"]), float(state["strength"])
        if not {values.shape for values in (mean, scale, weight)} == {(len(columns),)}:
            raise ValueError(f"mean, scale and weight are not of {len(columns)} columns")
        if not np.isfinite([*mean, *scale, *weight, bias]).all() or not (scale > 0).all():
            raise ValueError("a coefficient is not a finite number, or a scale is not positive")
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise TabularError(f"{name} is not a logistic model ({error}): remove it and fit the model again") from error
    return Logistic(columns, mean, scale, weight, bias, strength)


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


def _log_loss(y: ArrayLike, log_odds: NDArray[np.float64]) -> float:
    """Returns the log loss of targets (n,); scikit-learn's checks its input for longer than a fit to few rows takes."""
    return float(np.mean(np.logaddexp(0, log_odds) - np.asarray(y) * log_odds))


class GroupModel(Protocol):
    """A model, made outside this package, that predicts a row together with the other rows of its group."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the fit, in order."""

    @property
    def epochs(self) -> int:
        """Number of epochs, chosen on the inner rows."""

    def logit(self, X: pd.DataFrame, groups: ArrayLike) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns) of rows in these ``groups`` (n,)."""

    def to_bytes(self) -> bytes:
        """Returns the content of its file."""


Model = Gbdt | Logistic | Estimator | GroupModel
FitGroups = Callable[..., GroupModel]  # X, y, inner; params, seed, positive_weight and epochs by name
ReadGroups = Callable[[bytes, str], GroupModel]  # the content of a file, and its name for errors
GROUP_KIND, GROUP_SUFFIX = "set_transformer", ".safetensors"  # the kind of such models, and the end of their files


@dataclass(frozen=True)
class Bag:
    """Models of one kind fitted with different draws; their logits are averaged and corrected to the rows' prior."""

    models: tuple[Model, ...]
    shift: float  # added to the mean logit: the correction to the prior
    encoding: TargetEncoding | None = None  # applied to the features first

    def logit(self, X: pd.DataFrame, *, groups: ArrayLike | None = None, threads: int = 1) -> NDArray[np.float32]:
        """Returns log odds (n,) of features (n, columns) of rows in these ``groups`` (n,), by default each in its own.

        X must hold all rows of each group; only a `GroupModel` uses the groups.
        """
        X = X if self.encoding is None else self.encoding(X)
        made = []
        for model in self.models:
            if isinstance(model, Gbdt):
                made.append(predict_logit(model, X, threads=threads))
            elif isinstance(model, Logistic | Estimator):
                made.append(model.logit(X))
            else:
                made.append(model.logit(X, np.arange(len(X)) if groups is None else groups))
        mean = np.stack(made).mean(axis=0, dtype=np.float64) + self.shift
        return np.asarray(mean, np.float32)

    def contributions(self, X: pd.DataFrame, *, threads: int = 1) -> tuple[pd.DataFrame, float]:
        """Returns each column's contribution to the log odds, (n, columns), and the bias; they sum to `logit`.

        These are exact SHAP values for GBDTs (`shap_values`) and the exact terms for logistic regressions. Raises
        TabularError for classifiers of scikit-learn and for models of whole groups, which have none.
        """
        made, X = [], X if self.encoding is None else self.encoding(X)
        for model in self.models:
            if isinstance(model, Estimator):
                raise TabularError(f"{model.path} has no exact contributions: explain a GBDT or a logistic regression")
            if not isinstance(model, Gbdt | Logistic):
                raise TabularError(
                    f"a {GROUP_KIND} has no exact contributions: explain a GBDT or a logistic regression"
                )
            made.append(
                model.contributions(X) if isinstance(model, Logistic) else shap_values(model, X, threads=threads)
            )
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
        """Value that each model chose on the inner rows: rounds, inverse ridge strength, slope of the logit, epochs."""
        return [_chosen(model) for model in self.models]


def _chosen(model: Model) -> float:
    if isinstance(model, Gbdt):
        return model.rounds
    if isinstance(model, Logistic):
        return model.C
    return model.slope if isinstance(model, Estimator) else model.epochs


def fit_bag(
    kind: str,
    X: pd.DataFrame,
    y: ArrayLike,
    inner: NDArray[np.bool_],
    *,
    params: Mapping[str, Any],
    seed: int,
    threads: int,
    bags: int = 1,
    negatives: float = 1.0,
    positives: float = 1.0,
    positive_weight: float = 1.0,
    increasing: Collection[str] = (),
    gpu: bool = False,
    categorical: Collection[str] = (),
    estimator: str = "",
    encoded: Collection[str] = (),
    parts: NDArray[np.integer] | None = None,
    select: int = 0,
    rounds: int | None = None,
    fit_groups: FitGroups | None = None,
) -> Bag:
    """Fits ``bags`` models of ``kind`` to X (n, columns) and y (n,) of 0 and 1, with seeds from ``seed`` on.

    ``inner`` (n,) marks the rows, whole groups, on which each model chooses its rounds or ridge strength before it is
    refitted on all its rows; GBDTs of one bag share the rounds that the first of them chose. Each model uses
    ``positives`` copies of each positive row, of a fraction for a random part of these, with weight
    ``positive_weight``, and its own random share ``negatives`` of the negative rows; the effect of all three on the
    log odds is removed (King & Zeng 2001). Copies of a row are on the same side of ``inner``. The logit of a GBDT never
    falls with the value of an ``increasing`` column, and ``categorical`` columns hold codes of categories, for GBDTs
    only. A logistic regression on all rows is the same for every seed, so it is fitted once, as is a classifier without
    random numbers. ``estimator`` is the import path of the classifier of kind `sklearn`.

    Codes of categories in ``encoded`` columns become log odds of the target (`fit_target_encoding`), for which
    ``parts`` (n,) are parts of whole groups, `INNER` where ``inner`` is set. With ``select``, the models get at most so
    many columns (`strongest_columns`), chosen without the ``inner`` rows. With ``rounds``, every GBDT has that number
    of rounds, and every model of groups that number of epochs, and none is fitted to choose it. ``fit_groups`` fits a
    `GroupModel`, whose rows are always all of X. Raises TabularError for parameters that the kind does not have.
    """
    target = np.asarray(y)
    if kind == "logistic" and positive_weight != 1:
        raise TabularError(f"logistic has no positive_weight, got {positive_weight}: drop it, or use `positives`")
    if kind == "logistic" and params:
        raise TabularError(f"logistic has no parameters, got {', '.join(params)}: drop them")
    codes = [str(name) for name in X if str(name) in categorical]
    if kind not in LIBRARIES and codes:
        raise TabularError(f"{kind} takes no codes of categories, got {codes[0]!r}: make the column one-hot")
    encoding = None
    if any(str(name) in encoded for name in X):
        assert parts is not None
        assert np.array_equal(parts == INNER, inner)
        X, encoding = fit_target_encoding(X, target, parts, encoded)
    if 0 < select < X.shape[1]:
        X = X[strongest_columns(X[~inner], target[~inner], select, categorical, seed=seed, threads=threads)]
        encoding = encoding and encoding.of(X)
    if kind == GROUP_KIND:
        assert fit_groups is not None
        assert negatives == 1 == positives, "a group without some of its rows is another group"
        nets = [
            fit_groups(
                X, target, inner, params=params, seed=seed + number, positive_weight=positive_weight, epochs=rounds
            )
            for number in range(bags)
        ]
        return Bag(tuple(nets), float(-np.log(positive_weight)), encoding)
    is_drawn = negatives < 1 or positives % 1 or (is_random(estimator) if kind == "sklearn" else kind != "logistic")
    count = bags if is_drawn else 1
    # Without a draw of rows all models of a bag have the same ones, and GBDTs share their binned features.
    shares_rows = negatives == 1 and positives % 1 == 0 and kind in LIBRARIES
    models: list[Model] = []
    for number in range(1 if shares_rows else count):
        times = _copies(target, negatives, positives, seed=(seed, number))
        train_rows, eval_rows = (np.repeat(np.flatnonzero(side), times[side]) for side in (~inner, inner))
        train, eval_set = X.iloc[train_rows], (X.iloc[eval_rows], target[eval_rows])
        if kind == "logistic":
            models.append(fit_logistic(train, target[train_rows], eval_set=eval_set))
        elif kind == "sklearn":
            models.append(
                fit_estimator(
                    estimator, train, target[train_rows], eval_set=eval_set, params=params, seed=seed + number,
                    threads=threads, positive_weight=positive_weight,
                )
            )  # fmt: skip
        else:
            seeds = range(seed, seed + count) if shares_rows else (seed + number,)
            if rounds is not None:  # the rows in the order of a refit after early stopping
                train_rows = np.concatenate([train_rows, eval_rows])
            made = fit_gbdts(
                kind, X.iloc[train_rows], target[train_rows], eval_set=eval_set if rounds is None else None,
                params=params if rounds is None else {**params, "rounds": rounds}, seeds=seeds, threads=threads,
                increasing=increasing, positive_weight=positive_weight, gpu=gpu, categorical=categorical,
            )  # fmt: skip
            rounds = made[0].rounds
            models += made
    return Bag(tuple(models), float(np.log(negatives) - np.log(positives) - np.log(positive_weight)), encoding)


def strongest_columns(
    X: pd.DataFrame, y: NDArray[np.generic], most: int, categorical: Collection[str], *, seed: int, threads: int
) -> list[str]:
    """Returns the ``most`` columns with the largest total gain in a LightGBM fit of 100 rounds, in the order of X.

    Columns without any gain are left out too, except that one column is always kept.
    """
    model = fit_gbdt(
        "lightgbm", X, y, eval_set=None, params={"rounds": _SELECTION_ROUNDS}, seed=seed, threads=threads,
        categorical=categorical,
    )  # fmt: skip
    gain = importance(model)
    kept = set(gain.index[: max(min(most, int((gain > 0).sum())), 1)])
    return [str(name) for name in X if str(name) in kept]


def _copies(
    target: NDArray[np.generic], negatives: float, positives: float, *, seed: tuple[int, int]
) -> NDArray[np.intp]:
    """Returns how often (n,) each row is taken: a random share of the negative rows once, positive rows repeatedly."""
    times, rng = np.ones(len(target), np.intp), np.random.default_rng(seed)
    if negatives < 1:
        times[(target != 1) & (rng.random(len(target)) >= negatives)] = 0
    if positives > 1:
        times[target == 1] = int(positives)
        times[(target == 1) & (rng.random(len(target)) < positives % 1)] += 1
    return times


def write_bag(bag: Bag, folder: Path) -> list[Path]:
    """Writes each model to a file in ``folder``, in formats that execute nothing when read, and returns the paths.

    Classifiers of scikit-learn are not written: their format is pickle, and reading one runs what it contains.
    """
    paths = []
    for number, model in enumerate(bag.models):
        if isinstance(model, Estimator):
            continue
        if isinstance(model, Logistic):
            path = folder / _model_name("logistic", number)
            write_logistic(model, path)
        elif isinstance(model, Gbdt):
            path = folder / _model_name(model.kind, number)
            write_gbdt(model, path)
        else:
            path = folder / _model_name(GROUP_KIND, number)
            with atomic_write(path) as temporary:
                temporary.write_bytes(model.to_bytes())
        paths.append(path)
    if bag.encoding is not None:
        paths.append(folder / ENCODING_FILE)
        with atomic_write(paths[-1]) as temporary:
            temporary.write_text(bag.encoding.to_json(), encoding="utf-8")
    return paths


def read_bag(kind: str, folder: Path, *, shift: float, read_groups: ReadGroups | None = None) -> Bag:
    """Reads the models that `write_bag` wrote (model, model_1, …); TabularError where none exists or one is damaged.

    ``read_groups`` reads a `GroupModel`.
    """
    if kind == "sklearn":
        raise TabularError(f"{folder}: classifiers of scikit-learn are not kept on disk: fit the model again")
    files = [*folder.glob(f"model*{_suffix(kind)}"), *folder.glob(ENCODING_FILE)]
    contents = {path.name: path.read_bytes() for path in files}
    return bag_from_contents(kind, contents, str(folder), shift=shift, read_groups=read_groups)


def bag_from_contents(
    kind: str,
    contents: Mapping[str, bytes],
    folder: str,
    *,
    shift: float,
    checked: bool = False,
    read_groups: ReadGroups | None = None,
) -> Bag:
    """Reads the models of a bag from the contents of the files in ``folder``, by name; as `read_bag`.

    GBDTs that `check_gbdt` has ``checked`` before are not checked again.
    """
    models: list[Model] = []
    for name in model_names(kind, contents):
        content, where = contents[name], f"{folder}/{name}"
        if kind == "logistic":
            models.append(logistic_from_bytes(content, where))
        elif kind == GROUP_KIND:
            assert read_groups is not None
            models.append(read_groups(content, where))
        else:
            models.append(gbdt_from_bytes(kind, content, where, checked=checked))
    if not models:
        raise TabularError(f"{folder} holds no {kind} model: fit the model again")
    encoding = None
    if ENCODING_FILE in contents:
        where = f"{folder}/{ENCODING_FILE}"
        encoding = encoding_from_json(contents[ENCODING_FILE].decode("utf-8", "replace"), where)
        if lost := [name for name in encoding.values if name not in models[0].columns]:
            raise TabularError(f"{where} encodes {lost[0]!r}, which the models do not have: fit the model again")
    return Bag(tuple(models), shift, encoding)


def model_names(kind: str, names: Collection[str]) -> list[str]:
    """Returns which of the file ``names`` are a bag's models, in the order of the bag: model, model_1, …"""
    found: list[str] = []
    while (name := _model_name(kind, len(found))) in names:
        found.append(name)
    return found


def _model_name(kind: str, number: int) -> str:
    return f"model{f'_{number}' if number else ''}{_suffix(kind)}"


def _suffix(kind: str) -> str:
    if kind in LIBRARIES:
        return LIBRARIES[kind].suffix
    return {"logistic": ".json", GROUP_KIND: GROUP_SUFFIX}[kind]

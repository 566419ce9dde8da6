"""Fits bags of level-2 models: the rows and weights of each model, the columns that it sees, and early stopping."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import TabularError
from tabular.estimators import fit_estimator, is_random
from tabular.gbdt import fit_gbdt, fit_gbdts, importance
from tabular.gbdt_libraries import LIBRARIES
from tabular.logistic import fit_logistic
from tabular.models import GROUP_KIND, Bag, GroupModel, Model
from tabular.target_encoding import INNER, TargetEncoding, fit_target_encoding

_SELECTION_ROUNDS = 100  # of the fit whose gain selects columns

FitGroups = Callable[..., GroupModel]  # X, y, inner; params, seed, positive_weight and epochs by name


@dataclass(frozen=True)
class Sampling:
    """Which rows each model of a bag is fitted to. What this does to the log odds is removed (King & Zeng 2001)."""

    negatives: float = 1.0  # its own random share of the negative rows
    positives: float = 1.0  # copies of each positive row; the fraction is the share of them with a further copy
    positive_weight: float = 1.0  # weight of a positive row

    @property
    def is_drawn(self) -> bool:
        """Whether the models of a bag have different rows."""
        return self.negatives < 1 or self.positives % 1 != 0

    @property
    def shift(self) -> float:
        """What the logits of a model fitted to such rows need to be those of all rows."""
        return float(np.log(self.negatives) - np.log(self.positives) - np.log(self.positive_weight))

    def copies(self, target: NDArray[np.generic], *, seed: tuple[int, int]) -> NDArray[np.intp]:
        """Returns how often (n,) each row is taken: negative rows once or not at all, positive rows repeatedly."""
        times, rng = np.ones(len(target), np.intp), np.random.default_rng(seed)
        if self.negatives < 1:
            times[(target != 1) & (rng.random(len(target)) >= self.negatives)] = 0
        if self.positives > 1:
            times[target == 1] = int(self.positives)
            times[(target == 1) & (rng.random(len(target)) < self.positives % 1)] += 1
        return times


@dataclass(frozen=True)
class ColumnRoles:
    """What the columns of the features are, by name; names that the features lack are ignored."""

    increasing: Collection[str] = ()  # the logit of a GBDT never falls with their value
    categorical: Collection[str] = ()  # they hold codes of categories, for GBDTs only
    encoded: Collection[str] = ()  # their codes become log odds of the target (`fit_target_encoding`)


@dataclass(frozen=True)
class BagSettings:
    """Settings of a bag of models of one kind."""

    kind: str  # of `LIBRARIES`, "logistic", "sklearn" or `GROUP_KIND`
    params: Mapping[str, Any] = field(default_factory=dict)  # of the kind; the others have its defaults
    bags: int = 1  # number of models
    sampling: Sampling = Sampling()
    columns: ColumnRoles = ColumnRoles()
    select: int = 0  # the models get at most so many columns (`strongest_columns`); 0: all
    estimator: str = ""  # import path of the classifier of kind "sklearn"
    gpu: bool = False


def fit_bag(
    settings: BagSettings,
    X: pd.DataFrame,
    y: ArrayLike,
    inner: NDArray[np.bool_],
    *,
    seed: int,
    threads: int,
    rounds: int | None = None,
    parts: NDArray[np.integer] | None = None,
    fit_groups: FitGroups | None = None,
) -> Bag:
    """Fits a bag of models to X (n, columns) and y (n,) of 0 and 1, with seeds from ``seed`` on.

    ``inner`` (n,) marks the rows, whole groups, on which each model chooses its rounds or ridge strength before it is
    refitted on all its rows; copies of a row are on the same side of it, columns are selected without these rows, and
    GBDTs of one bag share the rounds that the first of them chose. With ``rounds``, every GBDT has that number of
    rounds, and every model of groups that number of epochs, and none is fitted to choose it.

    Models without random numbers (`BagSettings.sampling` draws none, and the kind has none) are the same for every
    seed, so one is fitted. Encoded columns need ``parts`` (n,) of whole groups, `INNER` where ``inner`` is set.
    ``fit_groups`` fits a `GroupModel`, whose rows are always all of X. Raises TabularError for parameters that the kind
    does not have.
    """
    target = np.asarray(y)
    _check(settings, X)
    X, encoding = _seen_columns(settings, X, target, inner, parts, seed=seed, threads=threads)
    if settings.kind == GROUP_KIND:
        assert fit_groups is not None
        assert settings.sampling.negatives == 1 == settings.sampling.positives, (
            "a group without some of its rows is another group"
        )
        models: list[Model] = [
            fit_groups(
                X, target, inner, params=settings.params, seed=seed + number, epochs=rounds,
                positive_weight=settings.sampling.positive_weight,
            )
            for number in range(settings.bags)
        ]  # fmt: skip
    else:
        models = _fit_rows(settings, X, target, inner, seed=seed, threads=threads, rounds=rounds)
    return Bag(tuple(models), settings.sampling.shift, encoding)


def _check(settings: BagSettings, X: pd.DataFrame) -> None:
    """Raises TabularError for settings that the kind does not have."""
    kind, weight = settings.kind, settings.sampling.positive_weight
    if kind == "logistic" and weight != 1:
        raise TabularError(f"logistic has no positive_weight, got {weight}: drop it, or use `positives`")
    if kind == "logistic" and settings.params:
        raise TabularError(f"logistic has no parameters, got {', '.join(settings.params)}: drop them")
    codes = [str(name) for name in X if str(name) in settings.columns.categorical]
    if kind not in LIBRARIES and codes:
        raise TabularError(f"{kind} takes no codes of categories, got {codes[0]!r}: make the column one-hot")


def _seen_columns(
    settings: BagSettings,
    X: pd.DataFrame,
    target: NDArray[np.generic],
    inner: NDArray[np.bool_],
    parts: NDArray[np.integer] | None,
    *,
    seed: int,
    threads: int,
) -> tuple[pd.DataFrame, TargetEncoding | None]:
    """Returns the features that the models see, encoded and selected, and the encoding that new rows need."""
    columns, encoding = settings.columns, None
    if any(str(name) in columns.encoded for name in X):
        assert parts is not None
        assert np.array_equal(parts == INNER, inner)
        X, encoding = fit_target_encoding(X, target, parts, columns.encoded)
    if 0 < settings.select < X.shape[1]:
        kept = strongest_columns(
            X[~inner], target[~inner], settings.select, columns.categorical, seed=seed, threads=threads
        )
        X = X[kept]
        encoding = encoding and encoding.of(X)
    return X, encoding


def _fit_rows(
    settings: BagSettings,
    X: pd.DataFrame,
    target: NDArray[np.generic],
    inner: NDArray[np.bool_],
    *,
    seed: int,
    threads: int,
    rounds: int | None,
) -> list[Model]:
    """Fits the models of a kind that sees each row by itself."""
    kind, params, sampling = settings.kind, settings.params, settings.sampling
    is_drawn = sampling.is_drawn or (is_random(settings.estimator) if kind == "sklearn" else kind != "logistic")
    count = settings.bags if is_drawn else 1
    # Without a draw of rows all models of a bag have the same ones, and GBDTs share their binned features.
    shares_rows = not sampling.is_drawn and kind in LIBRARIES
    models: list[Model] = []
    for number in range(1 if shares_rows else count):
        times = sampling.copies(target, seed=(seed, number))
        train_rows, eval_rows = (np.repeat(np.flatnonzero(side), times[side]) for side in (~inner, inner))
        train, eval_set = X.iloc[train_rows], (X.iloc[eval_rows], target[eval_rows])
        if kind == "logistic":
            models.append(fit_logistic(train, target[train_rows], eval_set=eval_set))
        elif kind == "sklearn":
            models.append(
                fit_estimator(
                    settings.estimator, train, target[train_rows], eval_set=eval_set, params=params,
                    seed=seed + number, threads=threads, positive_weight=sampling.positive_weight,
                )
            )  # fmt: skip
        else:
            seeds = range(seed, seed + count) if shares_rows else (seed + number,)
            if rounds is not None:  # the rows in the order of a refit after early stopping
                train_rows = np.concatenate([train_rows, eval_rows])
            made = fit_gbdts(
                kind, X.iloc[train_rows], target[train_rows], eval_set=eval_set if rounds is None else None,
                params=params if rounds is None else {**params, "rounds": rounds}, seeds=seeds, threads=threads,
                increasing=settings.columns.increasing, positive_weight=sampling.positive_weight, gpu=settings.gpu,
                categorical=settings.columns.categorical,
            )  # fmt: skip
            rounds = made[0].rounds
            models += made
    return models


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

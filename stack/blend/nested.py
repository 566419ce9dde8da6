"""Nested estimate of a blend: weights and method are chosen without the rows that are scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone

from dermstack.errors import ConfigError, DataError
from image_models.processes import run_parallel
from stack.blend.blender import METHODS, Blender, PredictionsError, check_run_names
from stack.blend.choice import choose_method
from stack.blend.columns import LeftOutFolds, NetScaler, Weighting
from stack.blend.preselection import informative_runs
from stack.metrics.intervals import GIVE_GROUPS, interval, paired_difference
from stack.metrics.scores import Bools, Floats, check_one_type, check_same_order, raise_for_rows, score
from stack.ranks import Ecdf, whole_numbers


@dataclass(frozen=True)
class NestedBlend:
    """Result of `blend_nested`; each score array is (n,), in the order of the rows of `P`.

    The blends of different folds have different weights, and often scales. `score` and `comparable` have one scale: the
    score of a row is its rank among the scores that the same fold's blend gives to all rows. For "logloss" all scores
    stay as they are. Calibrate on `by_method[chosen]`, which has the scale of the scores of `final` on new rows.
    """

    chosen: str  # method of the final blend, chosen on all rows
    chosen_by_fold: dict[int, str]  # method chosen without this fold
    score: Floats  # scores of the headline: for each fold, method and weights are chosen on the other folds
    by_method: dict[str, Floats]  # scores of each method with weights from the other folds; simplest method first
    comparable: dict[str, Floats]  # the same on one scale for all folds and methods
    tuned: dict[str, Floats]  # in-sample scores of each method, with weights from all rows
    final: Blender  # blend by `chosen`, fitted on all rows
    used_runs: Bools  # (runs,): False for runs that the pre-selection left out of `final`

    def summary(self, y: ArrayLike, split_group: ArrayLike, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Returns one row for each method, simplest first, with the nested and the in-sample value of the objective.

        Columns: method; nested, with its interval low and high; tuned, the in-sample value; gap, tuned minus nested;
        difference, nested minus that of the first method, with its interval difference_low and difference_high; chosen.
        A method is not shown to be better than the first one while that interval contains 0.
        """
        objective, first = self.final.objective, next(iter(self.comparable.values()))
        rows = []
        for method, nested in self.comparable.items():
            value = interval(objective, y, nested, split_group, draws=draws, seed=seed)
            gain = paired_difference(objective, y, nested, first, split_group, draws=draws, seed=seed)
            tuned = score(objective, y, self.tuned[method])
            row = {"method": method, "nested": value.value, "low": value.low, "high": value.high}
            row |= {"tuned": tuned, "gap": tuned - value.value}
            row |= {"difference": gain.value, "difference_low": gain.low, "difference_high": gain.high}
            rows.append(row | {"chosen": method == self.chosen})
        return pd.DataFrame(rows)


def blend_nested(
    P: ArrayLike | pd.DataFrame,
    y: ArrayLike,
    *,
    nets: ArrayLike,
    fold: ArrayLike,
    split_group: ArrayLike,
    methods: Iterable[str] = METHODS,
    objective: str = "auc",
    trials: int = 100,
    power: bool = False,
    replacement: bool = True,
    bags: int = 5,
    preselect: bool = True,
    seed: int = 0,
    n_jobs: int = 1,
    tuned: Mapping[LeftOutFolds, Weighting] | None = None,
) -> NestedBlend:
    """Blends out-of-fold predictions `P` (n, runs) of 0/1 targets `y` (n,), with a nested estimate of the quality.

    Each fold is scored by the method chosen, and the weights tuned, on the other folds. The choice is nested once more:
    among the other folds, fold j is scored by weights tuned without j and without the fold held out. The same weights
    are used where j is held out, so k folds need 1 + k + k (k - 1) / 2 fits of each method. Ranks and scales
    are computed for each run and net (`nets` (n,) or (n, runs)) over all rows, without targets. `trials`, `power`,
    `replacement` and `bags` are those of `Blender`; `tuned` holds weightings that earlier studies found for "optuna",
    by the folds they left out. With `preselect`, each fit leaves out the runs that carry nothing on the rows it is
    fitted to (`informative_runs`). The method is chosen by `choose_method`, on scores that have one scale.

    The result is the same for any `n_jobs`. Raises DataError for a split_group in two folds, for fewer than two folds,
    or three with more than one method, for folds that are not whole numbers, for targets other than 0 and 1, for arrays
    of another length, for pandas objects with the same index in a different order, for missing split_groups, and
    wherever `Blender` does; ConfigError for unknown methods.
    """
    check_run_names(P)
    frame = P if isinstance(P, pd.DataFrame) else pd.DataFrame(np.asarray(P))
    check_same_order(P=P, y=y, nets=nets, fold=fold, split_group=split_group)
    frame = _numbers(frame)
    y, nets, fold = np.asarray(y), np.asarray(nets), whole_numbers(fold, "fold")
    split_group, methods = np.asarray(split_group), _simplest_first(methods)
    _check_rows(len(frame), y, nets=nets, fold=fold, split_group=split_group)
    folds = _checked_folds(fold, split_group, methods)
    _check_runs(frame)
    columns = NetScaler().fit(frame, nets)
    blenders = [Blender(method, objective, trials, power, replacement, bags, seed) for method in methods]
    rows = _Rows(frame, y, nets, fold, split_group, columns)
    fits = list(
        run_parallel(
            (
                partial(_fit_without, without, blenders, rows, preselect, tuned)
                for without in left_out_sets(folds, methods)
            ),
            n_jobs,
        )
    )
    by_set = {fit.without: fit for fit in fits}

    def nested(without: LeftOutFolds) -> dict[str, Floats]:
        """Returns each method's comparable scores (n,), with weights tuned without `without` and the row's fold.

        Rows in the folds of `without` are NaN.
        """
        pieces = {k: by_set[without | {k}].comparable for k in folds if k not in without}
        return {m: _assemble_folds(fold, {k: made[i] for k, made in pieces.items()}) for i, m in enumerate(methods)}

    def choice(without: LeftOutFolds) -> str:
        if len(methods) == 1:
            return methods[0]
        kept = ~np.isin(fold, list(without))
        candidates = {method: s[kept] for method, s in nested(without).items()}
        return choose_method(objective, y[kept], candidates, split_group[kept], seed=seed)

    every, comparable = by_set[frozenset()], nested(frozenset())
    singles = {k: by_set[frozenset({k})].scores for k in folds}
    chosen, chosen_by_fold = choice(frozenset()), {k: choice(frozenset({k})) for k in folds}
    return NestedBlend(
        chosen=chosen,
        chosen_by_fold=chosen_by_fold,
        score=_assemble_folds(fold, {k: comparable[method] for k, method in chosen_by_fold.items()}),
        by_method={m: _assemble_folds(fold, {k: singles[k][i] for k in folds}) for i, m in enumerate(methods)},
        comparable=comparable,
        tuned=dict(zip(methods, every.scores, strict=True)),
        final=dict(zip(methods, every.blenders, strict=True))[chosen],
        used_runs=every.used_runs,
    )


def left_out_sets(folds: Iterable[int], methods: Iterable[str] = METHODS) -> list[LeftOutFolds]:
    """Returns the sets of folds that `blend_nested` leaves out of a fit.

    The empty set comes first, then each fold, then, with more than one method, each pair of folds.
    """
    folds = sorted(folds)
    sizes = (0, 1, 2) if len(tuple(methods)) > 1 else (0, 1)
    return [frozenset(without) for size in sizes for without in combinations(folds, size)]


@dataclass(frozen=True)
class _Rows:
    """Rows that a blend is fitted to and scored on."""

    frame: pd.DataFrame  # predictions (n, runs)
    y: NDArray[Any]
    nets: NDArray[Any]
    fold: NDArray[Any]
    split_group: NDArray[Any]
    columns: NetScaler


@dataclass(frozen=True)
class _Fits:
    """Blends of all methods fitted without some folds."""

    without: LeftOutFolds
    scores: list[Floats]  # for each method (n,): scores of the rows left out, or of all where no fold is left out
    comparable: list[Floats]  # the same as ranks among all rows
    blenders: list[Blender]  # empty where a fold is left out
    used_runs: Bools


def _fit_without(
    without: LeftOutFolds,
    blenders: list[Blender],
    rows: _Rows,
    preselect: bool,
    tuned: Mapping[LeftOutFolds, Weighting] | None,
) -> _Fits:
    """Fits each blender without the folds `without` and scores their rows, or all rows where no fold is left out."""
    if tuned is not None and without not in tuned:
        raise ConfigError(
            f"no tuned weights that leave out the folds {sorted(without)}: run `dermstack tune blend` again"
        )
    weighting = None if tuned is None else tuned[without]
    unseen = np.isin(rows.fold, list(without))
    seen, scored = ~unseen, unseen if without else ~unseen
    frame, y, nets = rows.frame[seen], rows.y[seen], rows.nets[seen]
    used = np.ones(frame.shape[1], np.bool_)
    if preselect:
        used = informative_runs(rows.columns.ranks_.transform(frame, nets), y, rows.split_group[seen])
    fitted, scores, comparable = [clone(blender) for blender in blenders], [], []
    for blender in fitted:
        blender.fit(frame, y, nets=nets, columns_from=rows.columns, weighting=weighting, use_runs=used)
        made = blender.predict_proba(rows.frame, nets=rows.nets)[:, 1]
        on_one_scale = made if blender.objective == "logloss" or not without else Ecdf().fit(made)(made)
        scores.append(np.where(scored, made, np.nan))
        comparable.append(np.where(scored, on_one_scale, np.nan))
    return _Fits(without, scores, comparable, [] if without else fitted, used)


def _assemble_folds(fold: NDArray[Any], pieces: Mapping[int, Floats]) -> Floats:
    """Returns (n,) with each fold's rows from its own array of `pieces`; NaN in folds without one."""
    assembled = np.full(len(fold), np.nan)
    for k, piece in pieces.items():
        assembled[fold == k] = piece[fold == k]
    return assembled


def _simplest_first(methods: Iterable[str]) -> tuple[str, ...]:
    requested = (methods,) if isinstance(methods, str) else tuple(methods)
    unknown = [method for method in requested if method not in METHODS]
    if unknown or not requested:
        raise ConfigError(f"blend methods {', '.join(requested) or '(none)'}: choose from {', '.join(METHODS)}")
    return tuple(method for method in METHODS if method in requested)


def _numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the predictions; raises DataError for a column that is no number, such as the ids."""
    for name, column in frame.items():
        if not pd.api.types.is_numeric_dtype(column.dtype) and pd.to_numeric(column, errors="coerce").isna().any():
            raise DataError(
                f"P has the column {name!r}, which holds {column.iloc[0]!r}: give only predictions, as numbers"
            )
    return frame


def _check_rows(rows: int, y: NDArray[Any], **others: NDArray[Any]) -> None:
    """Raises DataError for arrays of another length than the predictions, and for targets that are not 0 and 1."""
    for name, values in {"y": y, **others}.items():
        is_right = values.shape == (rows,) or (name == "nets" and values.ndim == 2 and len(values) == rows)
        if not is_right:
            raise DataError(f"{name} has shape {values.shape}, but P has {rows} rows: give one value for each row")
    if not np.isin(y, (0, 1)).all():
        raise DataError(f"y holds {y[~np.isin(y, (0, 1))][:1].tolist()[0]!r}: give targets of 0 and 1")


def _check_runs(frame: pd.DataFrame) -> None:
    """Raises PredictionsError, naming the runs, for no run and for predictions that are NaN or inf."""
    if not frame.shape[1]:
        raise PredictionsError("P has no columns: give the predictions of at least one run")
    finite = np.isfinite(frame.to_numpy(np.float64, na_value=np.nan))
    if not finite.all():
        names = ", ".join(map(str, frame.columns[~finite.all(axis=0)]))
        raise PredictionsError(
            f"{names}: {(~finite).sum()} predictions are NaN or inf (first in row {np.argmin(finite.all(axis=1))}): "
            "drop these rows or leave the run out"
        )


def _checked_folds(fold: NDArray[Any], split_group: NDArray[Any], methods: tuple[str, ...]) -> list[int]:
    folds = [int(k) for k in np.unique(fold)]
    needed = 3 if len(methods) > 1 else 2
    if len(folds) < needed:
        raise DataError(
            f"{len(folds)} folds: a nested estimate of {len(methods)} methods needs {needed}; make more folds"
            + (", or name one method" if len(folds) == 2 else "")
        )
    missing = pd.isna(split_group)
    raise_for_rows(missing, split_group, "split_groups are missing", GIVE_GROUPS)
    assignments = pd.DataFrame({"split_group": split_group, "fold": fold}).drop_duplicates()
    check_one_type(assignments["split_group"].unique(), "split_group")
    straddling = assignments["split_group"][assignments["split_group"].duplicated()].unique()
    if len(straddling):
        raise DataError(
            f"{len(straddling)} split_groups sit in more than one fold ({straddling[0]}): make the folds by group"
        )
    return folds

"""Nested estimate of a blend: weights and method are chosen without the rows that are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from dermstack.errors import ConfigError
from image_models.processes import run_parallel
from image_models.settings import DoneBefore
from stack.blend.blender import Blender, check_run_names, check_two_classes
from stack.blend.choice import choose_method
from stack.blend.columns import LeftOutFolds, NetScaler, Weighting
from stack.blend.fold_fits import FitRows, Fits, fit_without
from stack.blend.row_checks import check_rows, check_runs, checked_folds, checked_numbers, simplest_first
from stack.blend.stored_fits import StoredFits, data_key
from stack.blend.transformed import TransformedRuns
from stack.blend.weights import DEFAULT_METHODS, Settings
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import Bools, Floats, check_same_order, score
from stack.predictions.ranks import whole_numbers


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
    methods: Iterable[str] = DEFAULT_METHODS,
    objective: str = "auc",
    trials: int = 100,
    power: bool = False,
    replacement: bool = True,
    bags: int = 5,
    preselect: bool = True,
    seed: int = 0,
    n_jobs: int = 1,
    tuned: Mapping[LeftOutFolds, Weighting] | None = None,
    keep_in: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> NestedBlend:
    """Blends out-of-fold predictions `P` (n, runs) of 0/1 targets `y` (n,), with a nested estimate of the quality.

    Each fold is scored by the method chosen, and the weights tuned, on the other folds. The choice is nested once more:
    among the other folds, fold j is scored by weights tuned without j and without the fold held out. The same weights
    are used where j is held out, so k folds need 1 + k + k (k - 1) / 2 fits of each method. Ranks and scales are
    computed over all rows, for each run and, where its nets differ in scale, each net (`nets` (n,) or (n, runs)),
    without targets. `trials`, `power`, `replacement` and `bags` are those of `Blender`; `tuned` holds weightings that
    earlier studies found for "optuna", by the folds they left out. With `preselect`, each fit leaves out the runs that
    are not shown to be better than chance on its rows (`informative_runs`). The method is chosen by `choose_method`, on
    scores that have one scale.

    The fits share the transformed columns, which use no targets. Each fit starts from its own rows alone, never from
    the weights that other folds found: those have seen the targets of the fold held out, and where a fit starts shows
    in the last digits of where it ends. With `keep_in`, a folder, each finished fit of a method is kept there, and a
    call with the same data and settings goes on from what is there (`StoredFits`). `progress` is called with the number
    of fits just finished, of `number_of_fits`.

    The result is the same for any `n_jobs`, and whether or not it was stopped before. Raises DataError for a
    split_group in two folds, for fewer than two folds, or three with more than one method, for folds that are not whole
    numbers, for targets other than 0 and 1, for arrays of another length, for pandas objects with the same index in a
    different order, for missing split_groups, and wherever `Blender` does; ConfigError for unknown methods.
    """
    of_methods = Settings(objective, trials, power, replacement, bags, seed)
    settings = NestedSettings(methods, of_methods, preselect, n_jobs, tuned, keep_in, progress)
    return blend_rows(BlendRows(P, y, nets, fold, split_group), settings)


@dataclass(frozen=True)
class BlendRows:
    """Out-of-fold predictions `P` (n, runs) and what is known of their rows, as `blend_nested` takes them."""

    P: ArrayLike | pd.DataFrame
    y: ArrayLike
    nets: ArrayLike
    fold: ArrayLike
    split_group: ArrayLike


@dataclass(frozen=True)
class NestedSettings:
    """How a nested blend is made, apart from its rows; `blend_nested` describes each setting."""

    methods: Iterable[str] = DEFAULT_METHODS
    of_methods: Settings = field(default_factory=Settings)
    preselect: bool = True
    n_jobs: int = 1
    tuned: Mapping[LeftOutFolds, Weighting] | None = None
    keep_in: Path | None = None
    progress: Callable[[int], None] | None = None


def blend_rows(rows: BlendRows, settings: NestedSettings) -> NestedBlend:
    """Does what `blend_nested` does, which takes the same rows and settings one by one."""
    return choose_nested({"": fit_methods(rows, settings)})


@dataclass(frozen=True)
class FittedMethods:
    """Blends of some methods on one matrix of predictions, fitted without each set of folds that a choice needs."""

    methods: tuple[str, ...]  # simplest first
    by_set: Mapping[LeftOutFolds, Fits]
    blenders: Mapping[str, Blender]  # by method, not yet fitted
    frame: pd.DataFrame
    rows: FitRows
    scaler: NetScaler
    split_group: NDArray[Any]

    @property
    def folds(self) -> list[int]:
        """The folds of the rows."""
        return [int(k) for k in np.unique(self.rows.fold)]

    @property
    def used_runs(self) -> Bools:
        """Which runs (runs,) the fits to all rows use."""
        return self.by_set[frozenset()].used_runs

    def comparable(self, without: LeftOutFolds) -> dict[str, Floats]:
        """Returns each method's comparable scores (n,), with weights tuned without `without` and the row's fold.

        Rows in the folds of `without` are NaN.
        """
        fold = self.rows.fold
        pieces = {k: self.by_set[without | {k}] for k in self.folds if k not in without}
        return {
            m: _assemble_folds(fold, {k: made.comparable[i] for k, made in pieces.items()}, pieces)
            for i, m in enumerate(self.methods)
        }

    def scores(self) -> dict[str, Floats]:
        """Returns each method's scores (n,) with weights tuned without the row's fold."""
        singles = {k: self.by_set[frozenset({k})] for k in self.folds}
        return {
            m: _assemble_folds(self.rows.fold, {k: single.scores[i] for k, single in singles.items()}, singles)
            for i, m in enumerate(self.methods)
        }

    def tuned(self) -> dict[str, Floats]:
        """Returns each method's scores (n,) with weights tuned on the same rows."""
        return dict(zip(self.methods, self.by_set[frozenset()].scores, strict=True))

    def final(self, method: str) -> Blender:
        """Returns the blend by a method, fitted on all rows."""
        fit = self.by_set[frozenset()].fitted[self.methods.index(method)]
        return self.blenders[method].prepared_for(self.frame, self.scaler).set_fitted(self.rows.columns, fit)


def fit_methods(rows: BlendRows, settings: NestedSettings, *, candidates: int = 1) -> FittedMethods:
    """Fits each method without every set of folds that `choose_nested` leaves out, as `blend_nested` describes.

    `candidates` is the number among which that will choose, where this is more than these methods.
    """
    check_run_names(rows.P)
    frame = rows.P if isinstance(rows.P, pd.DataFrame) else pd.DataFrame(np.asarray(rows.P))
    check_same_order(P=rows.P, y=rows.y, nets=rows.nets, fold=rows.fold, split_group=rows.split_group)
    frame = checked_numbers(frame)
    y, nets, fold = np.asarray(rows.y), np.asarray(rows.nets), whole_numbers(rows.fold, "fold")
    split_group, methods = np.asarray(rows.split_group), simplest_first(settings.methods)
    check_rows(len(frame), y, nets=nets, fold=fold, split_group=split_group)
    folds = checked_folds(fold, split_group, max(candidates, len(methods)))
    check_runs(frame)
    scaler = NetScaler().fit(frame, nets, split_group)
    blenders = {method: Blender(method, **asdict(settings.of_methods)) for method in methods}
    final = next(iter(blenders.values())).prepared_for(frame, scaler)
    sets = left_out_sets(folds, methods, candidates=candidates)
    for without in sets:
        check_two_classes((y == 1).astype(int)[~np.isin(fold, list(without))])
    by_study: dict[LeftOutFolds, Weighting] = {}
    if settings.tuned is not None and "optuna" in methods:
        by_study = _checked_weightings(settings.tuned, sets, final)
    stored, p = None, frame.to_numpy(np.float64)
    if settings.keep_in is not None:
        stored = StoredFits(settings.keep_in, data_key(p, y, nets, fold, split_group, settings.preselect))
    columns = TransformedRuns(scaler, p, nets).prepared()
    fit_rows = FitRows(columns, y == 1, fold, pd.factorize(split_group)[0])
    tasks = [
        partial(
            fit_without, without, rows=fit_rows, methods=methods, settings=final.settings,
            preselect=settings.preselect, weighting=by_study.get(without), stored=stored,
        )
        for without in sets
    ]  # fmt: skip
    fits = []
    for fit in run_parallel(tasks, settings.n_jobs):
        fits.append(fit)
        if settings.progress is not None:
            if fit.kept:
                settings.progress(DoneBefore(fit.kept))
            if fit.kept < len(methods):
                settings.progress(len(methods) - fit.kept)
    return FittedMethods(methods, {fit.without: fit for fit in fits}, blenders, frame, fit_rows, scaler, split_group)


def choose_nested(families: Mapping[str, FittedMethods]) -> NestedBlend:
    """Chooses among the methods of one or more `FittedMethods` of the same rows, for all rows and for each fold.

    A candidate is called by its method, or "family/method" where the family has a name; the simplest is the first. The
    choice for a fold uses neither its targets nor weights that were tuned on them.
    """
    first = next(iter(families.values()))
    y, fold, split_group = first.rows.positive.astype(int), first.rows.fold, first.split_group
    any_blender = next(iter(first.blenders.values()))
    of_candidate = {
        f"{name}/{method}" if name else method: (family, method)
        for name, family in families.items()
        for method in family.methods
    }

    def collect(values: Callable[[FittedMethods], dict[str, Floats]]) -> dict[str, Floats]:
        made = [of_method for family in families.values() for of_method in values(family).values()]
        return dict(zip(of_candidate, made, strict=True))

    def choice(without: LeftOutFolds) -> str:
        if len(of_candidate) == 1:
            return next(iter(of_candidate))
        kept = ~np.isin(fold, list(without))
        found = collect(lambda family: family.comparable(without))
        candidates = {name: scores[kept] for name, scores in found.items()}
        return choose_method(any_blender.objective, y[kept], candidates, split_group[kept], seed=any_blender.seed)

    comparable = collect(lambda family: family.comparable(frozenset()))
    chosen, chosen_by_fold = choice(frozenset()), {k: choice(frozenset({k})) for k in first.folds}
    score = np.full(len(fold), np.nan)
    for k, candidate in chosen_by_fold.items():
        score[fold == k] = comparable[candidate][fold == k]
    family, method = of_candidate[chosen]
    return NestedBlend(
        chosen=chosen,
        chosen_by_fold=chosen_by_fold,
        score=score,
        by_method=collect(FittedMethods.scores),
        comparable=comparable,
        tuned=collect(FittedMethods.tuned),
        final=family.final(method),
        used_runs=family.used_runs,
    )


def left_out_sets(
    folds: Iterable[int], methods: Iterable[str] = DEFAULT_METHODS, *, candidates: int = 1
) -> list[LeftOutFolds]:
    """Returns the sets of folds that `blend_nested` leaves out of a fit.

    The empty set comes first, then each fold, then, with more than one method or candidate, each pair of folds.
    """
    folds = sorted(folds)
    sizes = (0, 1, 2) if max(candidates, len(tuple(methods))) > 1 else (0, 1)
    return [frozenset(without) for size in sizes for without in combinations(folds, size)]


def number_of_fits(folds: int, methods: Sequence[str], *, candidates: int = 1) -> int:
    """Returns how many fits `fit_methods` makes: one of each method for each set of folds left out."""
    return len(left_out_sets(range(folds), methods, candidates=candidates)) * len(methods)


def _assemble_folds(fold: NDArray[Any], pieces: Mapping[int, Floats], fits: Mapping[int, Fits]) -> Floats:
    """Returns (n,) with each fold's rows from its own piece, the scores of the rows of a fit; NaN in other folds."""
    assembled = np.full(len(fold), np.nan)
    for k, piece in pieces.items():
        of_fit = fold[fits[k].rows(fold)]
        assembled[fold == k] = piece[of_fit == k]
    return assembled


def _checked_weightings(
    tuned: Mapping[LeftOutFolds, Weighting], sets: Iterable[LeftOutFolds], blender: Blender
) -> dict[LeftOutFolds, Weighting]:
    """Returns the tuned weighting of each set.

    Raises ConfigError for a missing one, and DataError for one of other runs.
    """
    found = {}
    for without in sets:
        if without not in tuned:
            raise ConfigError(
                f"no tuned weights that leave out the folds {sorted(without)}: run `dermstack tune blend` again"
            )
        found[without] = blender.checked_weighting(tuned[without])
    return found

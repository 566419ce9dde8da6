"""Fits the weights of each blend method to one set of rows; methods share what they have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from scipy.special import expit

from stack.blend.columns import TRANSFORMS, Weighting
from stack.blend.logistic import fit_line, logistic_weights, logit_share
from stack.blend.search import best_weighting, search_trials
from stack.blend.selection import hill_climb, select_backward, select_forward
from stack.blend.transformed import TransformedRuns
from stack.metrics.scores import Bools, Floats
from stack.predictions.ranks import Ecdf

if TYPE_CHECKING:
    from stack.settings.config import Config

METHODS = (  # simplest first
    "rank_mean", "mean", "backward", "forward", "rank_logistic", "logistic", "averaged_logistic", "hill_climb",
    "optuna",
)  # fmt: skip
# Where runs are equal, searched weights cost accuracy and the choice sometimes takes them; where runs differ, the
# regressions find as much (`python -m benchmarks.choice design`). So no search is a default.
DEFAULT_METHODS = ("rank_mean", "mean", "averaged_logistic")
WITHOUT_TARGETS = ("rank_mean", "mean")  # methods that fit nothing
# Methods whose score is the probability of a logistic regression.
BY_REGRESSION = ("rank_logistic", "logistic", "averaged_logistic")

_HELD_COLUMNS = 128  # that a search keeps in memory between its trials


@dataclass(frozen=True)
class Fitted:
    """What a method found on the rows that it was fitted to."""

    weighting: Weighting
    slope: float = 1.0  # of `BY_REGRESSION`: the score is expit(slope · total + intercept)
    intercept: float = 0.0
    trial_values: tuple[float, ...] = ()  # of "optuna"

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Fitted:
        """Returns what `dataclasses.asdict` stored. Raises KeyError, TypeError or ValueError for anything else."""
        values = tuple(map(float, state["trial_values"]))
        return cls(Weighting.from_dict(state["weighting"]), float(state["slope"]), float(state["intercept"]), values)

    def to_dict(self) -> dict[str, Any]:
        """Returns a dict for JSON."""
        return asdict(self)

    def spread_over(self, used: Bools) -> Fitted:
        """Returns the fit of all runs (runs,) where this one has only those `used`; the others weigh nothing."""
        return replace(self, weighting=self.weighting.spread_over(used))


@dataclass(frozen=True)
class Settings:
    """Settings of the methods, as of `Blender`."""

    objective: str = "auc"
    trials: int = 100
    power: bool = False
    replacement: bool = True
    bags: int = 5
    seed: int = 0
    timeout: float | None = None

    def used_by(self, method: str) -> dict[str, Any]:
        """Returns the settings that a method depends on, by name."""
        of_selection = ("objective", "seed")
        of_climb = (*of_selection, "replacement", "bags")
        names: dict[str, tuple[str, ...]] = {
            "backward": of_selection,
            "forward": of_selection,
            "hill_climb": of_climb,
            "optuna": (*of_climb, "trials", "power", "timeout"),
        }
        return {name: getattr(self, name) for name in names.get(method, ())}


def method_settings(config: Config) -> Settings:
    """Returns the settings that the config gives the blend methods, in the blend and in its studies."""
    blend = config.blend
    return Settings(config.objective, blend.trials, blend.power, blend.replacement, blend.bags, config.seed)


@dataclass
class WeightFits:
    """Fits methods to the same rows; the climb and the regressions with which "optuna" starts are fitted once.

    `known` holds fits that were made before, on the same rows with the same settings.
    """

    columns: TransformedRuns
    positive: Bools
    settings: Settings
    known: dict[str, Fitted] = field(default_factory=dict)

    def fit(self, method: str, study: optuna.Study | None = None) -> Fitted:
        """Returns the fit of a method; with "optuna" a given `study` is continued instead of a new one in memory."""
        if study is not None:
            return self._fit(method, study)
        if method not in self.known:
            self.known[method] = self._fit(method, None)
        return self.known[method]

    def _fit(self, method: str, study: optuna.Study | None) -> Fitted:
        runs = self.columns.runs
        ranks, equal = ("rank",) * runs, np.ones(runs)
        if method == "rank_mean":
            return Fitted(Weighting.of(ranks, equal))
        if method == "mean":
            return Fitted(Weighting.of(self._probabilities, equal))
        if method == "averaged_logistic":
            return self._average()
        if method in BY_REGRESSION:
            transforms = list(ranks) if method == "rank_logistic" else _logits(self.columns.is_probability)
            V = self.columns.matrix(transforms, standard=True)
            coefficients, intercept = logistic_weights(V, self.positive)
            slope = max(float(coefficients.sum()), 1e-6)  # 0 if every run ranks rows in reverse: keep their mean
            return Fitted(Weighting.of(transforms, coefficients), slope, intercept)
        if method == "optuna":
            return self._search(study)
        settings = self.settings
        V = self.columns.matrix(self._selected_from, standard=False)
        given: dict[str, Any] = {"objective": settings.objective, "seed": settings.seed, "are_ranks": True}
        if method == "hill_climb":
            weights = hill_climb(V, self.positive, replacement=settings.replacement, bags=settings.bags, **given)
        else:
            weights = {"forward": select_forward, "backward": select_backward}[method](V, self.positive, **given)
        return Fitted(Weighting.of(self._selected_from, weights))

    def _average(self) -> Fitted:
        """Fits "averaged_logistic": the average of the regressions on ranks and on logits, both with spread 1."""
        fits = [self.fit("rank_logistic"), self.fit("logistic")]
        totals = [self.columns.total(fit.weighting, standard=True) for fit in fits]
        spreads = [float(total.std()) or 1.0 for total in totals]
        share = logit_share(self.positive, by_rank=totals[0], by_logit=totals[1])
        of_ranks, of_logits = (
            part / spread * np.array(fit.weighting.weights)
            for part, spread, fit in zip((1 - share, share), spreads, fits, strict=True)
        )
        weights = of_ranks + of_logits
        logits = np.where(self.columns.is_probability, of_logits, 0.0)  # the others are ranks in both
        shares = np.divide(logits, weights, out=np.zeros_like(weights), where=weights > 0)
        weighting = replace(
            Weighting.of(("rank",) * self.columns.runs, weights), logit_shares=tuple(map(float, shares))
        )
        slope, intercept = fit_line(self.columns.total(weighting, standard=True), self.positive)
        return Fitted(weighting, slope, intercept)

    @property
    def _probabilities(self) -> tuple[str, ...]:
        return tuple("probability" if inside else "rank" for inside in self.columns.is_probability)

    @property
    def _selected_from(self) -> tuple[str, ...]:
        """The transforms on which runs are selected."""
        return self._probabilities if self.settings.objective == "logloss" else ("rank",) * self.columns.runs

    def _search(self, study: optuna.Study | None) -> Fitted:
        """Fits "optuna": searches weights and transforms, from equal weights and the fits of simpler methods on."""
        settings, columns = self.settings, self.columns
        equal = np.ones(columns.runs)

        def climbed() -> Weighting:
            return self.fit("hill_climb").weighting

        if settings.objective == "logloss":
            unscaled = self._selected_from
            allowed: list[tuple[str, ...]] = [(kind,) for kind in unscaled]
            warm_starts = [lambda: Weighting.of(unscaled, equal), climbed]
            column = lru_cache(_HELD_COLUMNS)(lambda kind, run: columns.unscaled(run, kind))
            # As a matrix for each kind: what a study notes about its predictions.
            noted = (
                {kind: columns.matrix(unscaled, standard=False) for kind in ("probability", "rank")} if study else {}
            )
            ranks = None
        else:
            is_probability = columns.is_probability
            spread = np.where(is_probability, [spread for _, spread in columns.moments], 1.0)
            allowed = [TRANSFORMS if probability else ("rank",) for probability in is_probability]
            warm_starts = [
                lambda: Weighting.of(("rank",) * columns.runs, equal),
                lambda: Weighting.of(self._probabilities, spread),  # the plain mean, on standardised columns
                lambda: Weighting.of(_logits(is_probability), equal),
                lambda: self.fit("rank_logistic").weighting,
                lambda: self.fit("logistic").weighting,
                climbed,
            ]
            column = lru_cache(_HELD_COLUMNS)(lambda kind, run: columns.standardised(run, kind))
            noted = {
                kind: columns.matrix([kind if inside else "rank" for inside in is_probability], standard=True)
                for kind in (TRANSFORMS if study else ())
            }
            ranks = columns.matrix(("rank",) * columns.runs, standard=False) if settings.power else None
        history = search_trials(
            noted or column,
            allowed,
            self.positive,
            objective=settings.objective,
            trials=settings.trials,
            timeout=settings.timeout,
            seed=settings.seed,
            warm_starts=warm_starts,
            ranks=ranks,
            study=study,
        )
        return Fitted(best_weighting(history, allowed), trial_values=tuple(value for _, value in history))


def is_rank_of_sum(method: str, objective: str) -> bool:
    """Whether a method's score is the rank of its weighted sum among the rows of the fit."""
    return method == "optuna" and objective != "logloss"


def total_of(method: str, objective: str, weighting: Weighting, columns: TransformedRuns) -> Floats:
    """Returns the weighted sum (n,) of which a method makes its score."""
    return columns.total(weighting, standard=method in BY_REGRESSION or is_rank_of_sum(method, objective))


def score_of_total(method: str, total: Floats, slope: float, intercept: float, ecdf: Ecdf | None) -> Floats:
    """Returns the score (n,) in [0, 1] that a method makes of a weighted sum (n,)."""
    if ecdf is not None:
        return ecdf(total)
    if method in BY_REGRESSION:
        score: Floats = expit(slope * total + intercept)
        return score
    return np.clip(total, 0, 1)


def score_all(method: str, objective: str, fit: Fitted, columns: TransformedRuns, fitted_rows: Bools) -> Floats:
    """Returns the scores (n,) of all rows of `columns` by a method that was fitted to some of them."""
    total = total_of(method, objective, fit.weighting, columns)
    ecdf = Ecdf().fit(total[fitted_rows]) if is_rank_of_sum(method, objective) else None
    return score_of_total(method, total, fit.slope, fit.intercept, ecdf)


def _logits(is_probability: Bools) -> list[str]:
    return ["logit" if probability else "rank" for probability in is_probability]

"""`Blender`, a scikit-learn estimator that combines the predictions of many runs into one score."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from dermstack.errors import ConfigError, DataError
from stack.blend.columns import NetScaler, Weighting
from stack.blend.transformed import TransformedRuns
from stack.blend.weights import METHODS, Fitted, Settings, WeightFits, is_rank_of_sum, score_of_total, total_of
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import OBJECTIVES, Bools, Floats, check_same_order, is_objective
from stack.predictions.ranks import AVERAGED, Ecdf, whole_numbers

_FEW_VALUES = 10  # distinct predictions; the scale of fewer is not judged
_CHANCE = 1e-9


class PredictionsError(DataError, ValueError):
    """Predictions or targets that cannot be blended; also a ValueError, as scikit-learn's contract requires."""


class Blender(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Weighted mean of runs, for any matrix of out-of-fold predictions (rows, runs) and two classes.

    `method`, simplest first:

    - `rank_mean`: equal weights on ranks.
    - `mean`: equal weights on probabilities.
    - `backward`: equal weights on the ranks of the runs that greedy elimination leaves, from all runs on.
    - `forward`: the same for the runs that greedy selection adds, from the best run on.
    - `rank_logistic`: logistic regression on ranks without negative weights, shrunk towards equal weights as far as the
      rows leave them uncertain; its score is a probability.
    - `logistic`: the same on standardised logits.
    - `averaged_logistic`: the average of these two, each weighted by how well it orders the rows, with a preference for
      ranks; its score is a probability.
    - `hill_climb`: greedy selection of ranks, with repetition if `replacement`, averaged over `bags` climbs.
    - `optuna`: a search of `trials` trials for each run's weight, its transform (probability, logit or rank) and, with
      `power`, an exponent of its ranks. The first trials are `rank_mean`, `mean`, the mean logit, `rank_logistic`,
      `logistic` and `hill_climb`. Its score is a rank among the fitted rows. For "logloss" it searches only weights,
      from `mean` and `hill_climb` on, and its score is a probability. No trial starts after `timeout` seconds.

    A run with values outside [0, 1] is used by its rank, also for "logloss". Each run must be higher for the second of
    `classes_`. `objective` is what all methods from `backward` on maximise, except the regressions.

    A score made from ranks orders rows but is no probability (`stack.blend.calibration` calibrates it). The score of
    tuned weights on the rows that tuned them is optimistic (`stack.blend.nested` gives an unbiased estimate).

    Fitted: `weighting_`, with `weights_` (runs,), never negative, sum 1, and `transforms_` (runs,); `scaler_`, fitted
    without targets; `slope_` and `intercept_` of the regressions; `classes_`; `trial_values_` (trials,), empty unless
    this fit ran or continued a study; `in_sample_`, the Interval of the objective over `groups` on the fitted rows,
    None without groups.

        >>> P = [[0.1, 0.3], [0.2, 0.1], [0.7, 0.8], [0.9, 0.6]]
        >>> Blender("rank_mean").fit(P, [0, 0, 1, 1]).predict_proba(P)[:, 1]
        array([0.25, 0.25, 0.75, 0.75])
    """

    def __init__(
        self,
        method: str = "rank_mean",
        objective: str = "auc",
        trials: int = 100,
        power: bool = False,
        replacement: bool = True,
        bags: int = 5,
        seed: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.method = method
        self.objective = objective
        self.trials = trials
        self.power = power
        self.replacement = replacement
        self.bags = bags
        self.seed = seed
        self.timeout = timeout

    def fit(
        self,
        P: ArrayLike,
        y: ArrayLike,
        *others: ArrayLike,
        groups: ArrayLike | None = None,
        nets: ArrayLike | None = None,
        columns_from: NetScaler | tuple[ArrayLike | None, ...] | None = None,
        study: optuna.Study | None = None,
        weighting: Weighting | None = None,
        use_runs: ArrayLike | None = None,
    ) -> Blender:
        """Fits the weights of predictions `P` (n, runs) to targets `y` (n,).

        `nets` (n,) or (n, runs) names the fold net that made each prediction (default: no particular net). Ranks and
        scales are computed for each run and net from `columns_from`: a fitted NetScaler, or predictions, their nets
        and, if known, their groups, without targets (default: `P`, `nets` and `groups`). With "optuna", a given `study`
        of the same predictions and targets is continued up to `trials` trials instead of a new one in memory, and a
        given `weighting`, found by an earlier study, is used unchanged. The method is fitted to the runs in the mask
        `use_runs` (runs,) alone; the others get weight 0 (default: all are used). There are no sample weights, and
        `groups` is given by name.

        Raises PredictionsError for NaN or inf, naming the run, for a run outside [0, 1] that is not in `columns_from`,
        for two runs of one name, and for a number of classes other than two; DataError for pandas objects with the same
        index in a different order, for a `weighting` or a mask that does not fit the runs, and for a `study` of other
        data; ConfigError for a setting that is unknown or out of range, and a third argument without name.
        """
        if others:
            raise ConfigError(
                "Blender.fit takes P and y by position and the rest by name: give groups=… for the groups; it has no "
                "sample weights"
            )
        self._check_settings()
        check_same_order(P=P, y=y, groups=groups, nets=nets)
        check_run_names(P)
        p, labels = validate_data(self, P, y, dtype=np.float64, ensure_all_finite=False)
        self._check_finite(p)
        positive = self._learn_classes(labels)
        made_by = _nets(nets, p)
        given = columns_from if columns_from is not None else (p, made_by, groups)
        self.scaler_ = given if isinstance(given, NetScaler) else NetScaler().fit(*given)
        self._check_scale(p, "columns_from")
        self.slope_, self.intercept_, self.trial_values_ = 1.0, 0.0, np.empty(0)
        used, columns = _mask_of_runs(use_runs, p.shape[1]), TransformedRuns(self.scaler_, p, made_by)
        if self.method == "optuna" and weighting is not None:
            self.weighting_ = self.checked_weighting(weighting)
        else:
            fits = WeightFits(columns.part(runs=used), positive, self.settings)
            found = fits.fit(self.method, study).spread_over(used)
            self.weighting_, self.slope_, self.intercept_ = found.weighting, found.slope, found.intercept
            self.trial_values_ = np.array(found.trial_values)
        return self._finish(columns, positive, groups)

    def prepared_for(self, frame: pd.DataFrame, scaler: NetScaler) -> Blender:
        """Checks the settings and notes runs and scaler, as the first part of a fit to targets of 0 and 1 does.

        Returns itself; `set_fitted` completes it.
        """
        self._check_settings()
        validate_data(self, frame, dtype=np.float64, ensure_all_finite=False)
        self.scaler_, self.classes_ = scaler, np.array([0, 1])
        return self

    def set_fitted(self, columns: TransformedRuns, found: Fitted) -> Blender:
        """Takes what was fitted before to the rows of `columns`, and returns itself as `fit` on these rows would."""
        self.weighting_, self.slope_, self.intercept_ = found.weighting, found.slope, found.intercept
        self.trial_values_ = np.array(found.trial_values)
        return self._finish(columns, np.empty(0, np.bool_), None)

    def checked_weighting(self, weighting: Weighting) -> Weighting:
        """Returns a weighting that a study found; raises DataError where it does not fit the runs or their scale."""
        checked = weighting.checked(self.n_features_in_)
        self._check_transforms(checked)
        return checked

    def _finish(self, columns: TransformedRuns, positive: Bools, groups: ArrayLike | None) -> Blender:
        total = total_of(self.method, self.objective, self.weighting_, columns)
        self.total_ecdf_ = Ecdf().fit(total) if is_rank_of_sum(self.method, self.objective) else None
        self.in_sample_: Interval | None = None
        if groups is not None:
            self.in_sample_ = interval(self.objective, positive, self._score(total), groups)
        return self

    @property
    def weights_(self) -> Floats:
        """Weight of each run (runs,), none negative, with sum 1."""
        return np.array(self.weighting_.weights)

    @property
    def transforms_(self) -> NDArray[np.str_]:
        """Transform of each run (runs,): "probability", "logit" or "rank"."""
        return np.array(self.weighting_.transforms)

    def predict_proba(self, P: ArrayLike, *, nets: ArrayLike | None = None) -> Floats:
        """Returns 1 - score and score, (n, 2), for predictions `P` (n, runs) made by `nets` (n,) or (n, runs)."""
        check_is_fitted(self)
        check_same_order(P=P, nets=nets)
        p = validate_data(self, P, dtype=np.float64, ensure_all_finite=False, reset=False)
        self._check_finite(p)
        self._check_scale(p, "the fit")
        score = self.score_of(TransformedRuns(self.scaler_, p, _nets(nets, p)))
        return np.column_stack([1 - score, score])

    def predict(self, P: ArrayLike, *, nets: ArrayLike | None = None) -> NDArray[Any]:
        """Returns the class with the higher column of predict_proba, (n,).

        A score made from ranks is cut at 0.5, the middle of the ranks: that is no diagnosis.
        """
        score = self.predict_proba(P, nets=nets)
        labels: NDArray[Any] = self.classes_[np.argmax(score, axis=1)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.classifier_tags.poor_score = True  # scikit-learn's checks pass features, which may rank rows in reverse
        return tags

    @property
    def settings(self) -> Settings:
        """The settings of the methods."""
        return Settings(self.objective, self.trials, self.power, self.replacement, self.bags, self.seed, self.timeout)

    def score_of(self, columns: TransformedRuns) -> Floats:
        """Returns the second column of `predict_proba`, (n,), from columns that its scaler transformed."""
        return self._score(total_of(self.method, self.objective, self.weighting_, columns))

    def _score(self, total: Floats) -> Floats:
        return score_of_total(self.method, total, self.slope_, self.intercept_, self.total_ecdf_)

    def _learn_classes(self, y: NDArray[Any]) -> Bools:
        check_classification_targets(y)
        self.classes_, code = np.unique(y, return_inverse=True)
        check_two_classes(y)
        if len(self.classes_) > 2:
            raise PredictionsError(
                "Only binary classification is supported. The type of the target is multiclass: "
                f"{len(self.classes_)} classes, {self.classes_[:5]}"
            )
        positive: Bools = code == 1
        return positive

    def _check_finite(self, P: Floats) -> None:
        non_finite: Bools = ~np.isfinite(P)
        if non_finite.any():
            raise PredictionsError(
                f"{self._run_names(np.any(non_finite, axis=0))}: {non_finite.sum()} predictions are NaN or inf "
                f"(first in row {np.argmax(non_finite.any(axis=1))}): drop these rows or leave the run out"
            )

    def _check_scale(self, P: Floats, where: str) -> None:
        """Raises PredictionsError for runs on another scale than in ``where``: their ranks would mislead.

        Probabilities have become something else if one leaves [0, 1]; other predictions have become probabilities if
        all lie in [0, 1] and that would be chance in less than one of a billion samples of the fitted predictions.
        """
        outside: Bools = self.scaler_.is_probability_ & ((P.min(axis=0) < 0) | (P.max(axis=0) > 1))
        if outside.any():
            raise PredictionsError(
                f"{self._run_names(outside)}: probabilities in {where}, but now outside [0, 1]: give probabilities, "
                "such as scipy.special.expit of logits"
            )
        inside: Bools = ~self.scaler_.is_probability_ & (P.min(axis=0) >= 0) & (P.max(axis=0) <= 1)
        for run in np.flatnonzero(inside):
            distinct = len(np.unique(P[:, run]))
            inside[run] = distinct >= _FEW_VALUES and self.scaler_.share_inside(int(run)) ** distinct < _CHANCE
        if inside.any():
            raise PredictionsError(
                f"{self._run_names(inside)}: not all in [0, 1] in {where}, as logits are, but now all {len(P):,} "
                "predictions lie in [0, 1], as probabilities do: give both on one scale, such as scipy.special.logit "
                "of probabilities"
            )

    def _check_transforms(self, weighting: Weighting) -> None:
        """Raises PredictionsError for a weighting that takes runs outside [0, 1] for probabilities."""
        of_probabilities: Bools = np.array(weighting.transforms) != "rank"
        if weighting.logit_shares:
            of_probabilities |= np.array(weighting.logit_shares) > 0
        if (wrong := of_probabilities & ~self.scaler_.is_probability_).any():
            raise PredictionsError(
                f"{self._run_names(wrong)}: the weighting was found on probabilities, but these predictions lie "
                "outside [0, 1]: give probabilities, such as scipy.special.expit of logits"
            )

    def _check_settings(self) -> None:
        """Raises ConfigError for a parameter that is unknown or out of range."""
        _refuse_unknown("blend method", self.method, METHODS)
        if not is_objective(self.objective):
            _refuse_unknown("objective", self.objective, OBJECTIVES)
        for name, least in (("trials", 1), ("bags", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer) or value < least:
                raise ConfigError(f"{name}={value!r}: give a whole number of at least {least}")
        for name in ("power", "replacement"):
            if not isinstance(value := getattr(self, name), bool | np.bool_):
                raise ConfigError(f"{name}={value!r}: give True or False")
        if self.timeout is not None and not self.timeout >= 0:
            raise ConfigError(f"timeout={self.timeout!r}: give seconds of at least 0, or None")

    def _run_names(self, runs: Bools) -> str:
        names = getattr(self, "feature_names_in_", np.arange(runs.size))[runs]
        return f"run{'s' if len(names) > 1 else ''} {', '.join(map(str, names))}"


def check_two_classes(y: NDArray[Any]) -> None:
    """Raises PredictionsError where all targets (n,) are of one class."""
    if len(y) and (y == y[0]).all():
        raise PredictionsError(f"all {len(y)} targets are of only one class, {y[0]}: give two classes")


def check_run_names(P: object) -> None:
    """Raises PredictionsError where two columns of a data frame have one name."""
    if isinstance(P, pd.DataFrame) and not P.columns.is_unique:
        doubled = ", ".join(map(str, P.columns[P.columns.duplicated()].unique()))
        raise PredictionsError(f"P has more than one column named {doubled}: give each run its own name")


def _nets(nets: ArrayLike | None, P: Floats) -> NDArray[Any]:
    if nets is None:
        return np.full(len(P), AVERAGED)
    given = whole_numbers(nets, "nets")
    if given.shape not in (P.shape, (len(P),), (len(P), 1)):
        raise DataError(f"nets have shape {given.shape}, predictions {P.shape}: give one a row or one a prediction")
    return given


def _mask_of_runs(use_runs: ArrayLike | None, runs: int) -> Bools:
    used: Bools = np.ones(runs, np.bool_) if use_runs is None else np.asarray(use_runs)
    if used.dtype != np.bool_ or used.shape != (runs,) or not used.any():
        raise DataError(f"use_runs {use_runs!r}: give True or False for each of the {runs} runs, True for one or more")
    return used


def _refuse_unknown(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")

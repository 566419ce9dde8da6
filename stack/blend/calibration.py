"""Calibration of a score that orders rows into a probability: Platt scaling, beta calibration, isotonic regression.

`calibrate_nested` chooses the map and estimates its quality without the fold that is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit

from dermstack.errors import DataError
from stack.blend.choice import choose_method
from stack.metrics.intervals import paired_difference
from stack.metrics.resolution import Limits, checked_limits, clip_limits, clipped_logit
from stack.metrics.row_values import varies
from stack.metrics.scores import Bools, Floats, auc, brier, expected_calibration_error, log_loss

_EDGE = 1e-9  # scores are clipped at least this far from 0 and 1, so that their logits are finite; rounded ones further
RISK_LIMITS = _EDGE, 1 - _EDGE  # between which probabilities are clipped before a line moves their logits


@dataclass(frozen=True)
class Platt:
    """Platt scaling: p = 1 / (1 + exp(-(slope · logit(score) + intercept))), for scores in [0, 1].

    It uses the logit of the score because risk rises steeply towards rank 1: on the rank average of two CNNs of
    SIIM-ISIC 2020 the log loss is 0.0609 with the logit and 0.0620 without, on their mean probability 0.0620 and
    0.0648. The order of rows is kept, unless the slope is negative because the scores rank rows in reverse.
    """

    slope: float
    intercept: float
    low: float = _EDGE  # scores are clipped to this and `high`: half a step inside where they are rounded
    high: float = 1 - _EDGE

    def __call__(self, score: ArrayLike) -> Floats:
        """Returns probabilities (n,) of scores (n,); raises DataError for NaN and values outside [0, 1]."""
        p: Floats = expit(self.slope * _logit(score, (self.low, self.high)) + self.intercept)
        return p


def fit_platt(score: ArrayLike, y: ArrayLike) -> Platt:
    """Fits Platt scaling to scores (n,) in [0, 1] and 0/1 targets `y` (n,).

    The scores must not have been fitted on these targets; nested scores qualify. Maximum likelihood with the smoothed
    targets of Platt (1999), which keep the slope finite where the scores separate the classes. Raises DataError for
    NaN, scores outside [0, 1], targets other than 0 and 1, and a single class. Scores that are all equal, but for
    rounding errors, give the slope 0 and the share of positives.
    """
    auc(y, score)  # raises DataError for invalid scores or targets
    limits = _limits(score)
    x, positive = _logit(score, limits), np.asarray(y) == 1
    n, positives = len(x), int(positive.sum())
    target = _smoothed(positive)
    if not varies(score) or not np.ptp(x):  # a std of 1e-16 instead of 0 makes rounding errors look like evidence
        return Platt(0.0, float(logit(target.mean())))
    centre, spread = x.mean(), x.std()
    design = np.stack([(x - centre) / spread, np.ones(n)])

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = theta @ design
        return float(np.mean(np.logaddexp(0, z) - target * z)), design @ (expit(z) - target) / n

    def curvature(theta: Floats) -> Floats:
        p = expit(theta @ design)
        hessian: Floats = (design * (p * (1 - p))) @ design.T / n
        return hessian

    start = np.array([0.0, logit(positives / n)])
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-10})
    slope = float(found.x[0] / spread)
    return Platt(slope, float(found.x[1] - slope * centre), *limits)


@dataclass(frozen=True)
class Beta:
    """Beta calibration (Kull, Silva Filho & Flach 2017), with a and b not negative.

    p = 1 / (1 + exp(-(a · ln score - b · ln(1 - score) + c))). With a = b it equals Platt scaling of the logit; two
    slopes fit better where most scores are near one end.
    """

    a: float
    b: float
    c: float
    low: float = _EDGE  # as of `Platt`
    high: float = 1 - _EDGE

    def __call__(self, score: ArrayLike) -> Floats:
        """Returns probabilities (n,) of scores (n,); raises DataError for NaN and values outside [0, 1]."""
        low, high = _log_and_log1m(score, (self.low, self.high))
        p: Floats = expit(self.a * low - self.b * high + self.c)
        return p


def fit_beta(score: ArrayLike, y: ArrayLike) -> Beta:
    """Fits beta calibration to scores (n,) and targets `y` (n,) by maximum likelihood, as `fit_platt` does."""
    auc(y, score)
    positive = np.asarray(y) == 1
    target = _smoothed(positive)
    limits = _limits(score)
    low, high = _log_and_log1m(score, limits)
    design = np.stack([low, -high, np.ones(len(target))])
    if not varies(score) or not np.ptp(low):
        return Beta(0.0, 0.0, float(logit(target.mean())))
    scale = np.array([low.std() or 1.0, high.std() or 1.0, 1.0])

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = (theta / scale) @ design
        return float(np.mean(np.logaddexp(0, z) - target * z)), (design @ (expit(z) - target)) / scale / len(target)

    bounds = [(0, None), (0, None), (None, None)]
    start = np.array([*scale[:2], logit(target.mean())])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000, "gtol": 1e-10})
    a, b, c = found.x / scale
    return Beta(float(a), float(b), float(c), *limits)


@dataclass(frozen=True)
class Isotonic:
    """Isotonic regression (scikit-learn's): linear between the steps; scores of one step get the same probability."""

    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, score: ArrayLike) -> Floats:
        """Returns probabilities (n,) of scores (n,); raises DataError for NaN and values outside [0, 1]."""
        _check(score)
        return np.interp(np.asarray(score, dtype=np.float64), self.scores, self.values)


def fit_isotonic(score: ArrayLike, y: ArrayLike) -> Isotonic:
    """Fits isotonic regression to scores (n,) in [0, 1] and targets `y` (n,), with the requirements of `fit_platt`.

    Fitted values are clipped to [0.5 / n, 1 - 0.5 / n], so that the log loss is finite.
    """
    from sklearn.isotonic import IsotonicRegression  # its import takes as long as all that a worker of a blend imports

    auc(y, score)
    _check(score)
    edge = 0.5 / len(np.asarray(score))
    fitted = IsotonicRegression(y_min=edge, y_max=1 - edge).fit(np.asarray(score, np.float64), np.asarray(y))
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


@dataclass(frozen=True)
class Rescaled:
    """Another map followed by a line on its logits: p = 1 / (1 + exp(-(slope · logit(of(score)) + intercept))).

    `stack.blend.fold_average` fits the line for scores averaged over fold nets, `dermstack recalibrate` for the
    patients of another hospital. The slope is positive, so that the order of rows is kept.
    """

    of: Platt | Beta | Isotonic
    slope: float
    intercept: float

    def __call__(self, score: ArrayLike) -> Floats:
        """Returns probabilities (n,) of scores (n,); raises DataError for NaN and values outside [0, 1]."""
        return self.line(self.of(score))

    def line(self, p: ArrayLike) -> Floats:
        """Returns probabilities ``p`` (n,) with their logits moved along the line."""
        moved: Floats = expit(self.slope * clipped_logit(p, RISK_LIMITS) + self.intercept)
        return moved


Calibrator = Platt | Beta | Isotonic | Rescaled


def rescaled(of: Calibrator, slope: float, intercept: float) -> Rescaled:
    """Returns the map ``of`` followed by a line on its logits; two lines after one another become one."""
    if isinstance(of, Rescaled):
        return Rescaled(of.of, slope * of.slope, slope * of.intercept + intercept)
    return Rescaled(of, slope, intercept)


CALIBRATOR_FITS: dict[str, Callable[[ArrayLike, ArrayLike], Calibrator]] = {  # simplest first
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
}
_KINDS: dict[str, type[Any]] = {"platt": Platt, "beta": Beta, "isotonic": Isotonic}
_RESCALED = "rescaled"  # a kind that earlier versions do not know, so that they refuse it instead of leaving it out


def calibrator_state(calibrator: Calibrator) -> dict[str, Any]:
    """Returns a calibrator as a dict for JSON, which `calibrator_from_state` reads."""
    if isinstance(calibrator, Rescaled):
        line = {"slope": calibrator.slope, "intercept": calibrator.intercept}
        return {"kind": _RESCALED, **line, "of": calibrator_state(calibrator.of)}
    kind = next(name for name, of in _KINDS.items() if isinstance(calibrator, of))
    state = asdict(calibrator)
    if (state.get("low"), state.get("high")) == RISK_LIMITS:  # as before limits were stored
        del state["low"], state["high"]
    return {"kind": kind, **state}


def calibrator_from_state(state: Mapping[str, Any]) -> Calibrator:
    """Returns the calibrator stored by `calibrator_state`.

    Raises KeyError or TypeError for another kind or other parameters, ValueError for values that are not finite or, of
    an isotonic regression, do not rise, and for a line that does not.
    """
    if state["kind"] == _RESCALED:
        if state["of"]["kind"] == _RESCALED:  # `rescaled` makes one line of two; a file may nest them without end
            raise ValueError("the calibration has a line after a line")
        of, slope, intercept = calibrator_from_state(state["of"]), float(state["slope"]), float(state["intercept"])
        if not (0 < slope < np.inf and np.isfinite(intercept)):
            raise ValueError(f"the calibration has the line {slope:g} · logit + {intercept:g}, which does not rise")
        return rescaled(of, slope, intercept)
    kind = _KINDS[str(state["kind"])]
    values: dict[str, Any] = {
        name: tuple(map(float, value)) if isinstance(value, list) else float(value)
        for name, value in state.items()
        if name != "kind"
    }
    if "low" in values or "high" in values:
        values["low"], values["high"] = checked_limits(values["low"], values["high"])
    made: Calibrator = kind(**values)
    if not all(np.isfinite(value).all() for value in values.values()):
        raise ValueError("the calibration has a parameter that is not finite")
    if isinstance(made, Isotonic):
        steps = np.stack([made.scores, made.values])  # raises ValueError for unequal lengths
        if not steps.shape[1] or (np.diff(steps) < 0).any() or steps[1].min() < 0 or steps[1].max() > 1:
            raise ValueError("the calibration does not rise from 0 to 1")
    return made


_HALVINGS = 64  # of the interval that is searched for a score


def score_at(calibrator: Calibrator, p: ArrayLike) -> Floats:
    """Returns the scores (n,) in [0, 1] that the calibrator maps to probabilities ``p`` (n,): its inverse.

    Where many scores have this probability, it is the middle of their range; where none has, the end that is nearer.
    """
    wanted: Floats = np.asarray(p, np.float64)
    ends = calibrator(np.array([0.0, 1.0]))
    falls = ends[0] > ends[1]

    def first(is_reached: Callable[[Floats], Bools]) -> Floats:
        """Returns the lowest score (n,) from which on the probability has reached what is asked, by halving."""
        low, high = np.zeros(len(wanted)), np.ones(len(wanted))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            reached = is_reached(calibrator(1 - middle if falls else middle))
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return high

    middle = (first(lambda found: found >= wanted) + first(lambda found: found > wanted)) / 2
    return 1 - middle if falls else middle


def _smoothed(positive: Bools) -> Floats:
    """Platt's smoothed targets (n,): (n₁ + 1) / (n₁ + 2) for n₁ positive rows, 1 / (n₀ + 2) for n₀ negative rows."""
    n, positives = len(positive), int(positive.sum())
    return np.where(positive, (positives + 1) / (positives + 2), 1 / (n - positives + 2))


def _limits(score: ArrayLike) -> Limits:
    _check(score)
    return clip_limits(score, _EDGE)


def _log_and_log1m(score: ArrayLike, limits: Limits) -> tuple[Floats, Floats]:
    """Returns ln(score) and ln(1 - score), of scores clipped to ``limits``."""
    _check(score)
    clipped = np.clip(np.asarray(score, dtype=np.float64), *limits)
    return np.log(clipped), np.log1p(-clipped)


def _logit(score: ArrayLike, limits: Limits) -> Floats:
    _check(score)
    return clipped_logit(score, limits)


def _check(score: ArrayLike) -> None:
    given: Floats = np.asarray(score, dtype=np.float64)
    outside = np.flatnonzero(~((given >= 0) & (given <= 1)))
    if outside.size:
        first = given[outside[0]]
        raise DataError(
            f"{outside.size} scores are not in [0, 1] (row {outside[0]}: {first:g}): convert scores to ranks first"
        )


@dataclass(frozen=True)
class NestedCalibration:
    """Result of `calibrate_nested`."""

    chosen: str  # kind of map chosen on all rows
    chosen_by_fold: dict[int, str]  # kind of map chosen without this fold
    p: Floats  # (n,): for each row, the kind of map is chosen and the map is fitted without the row's fold
    by_kind: dict[str, Floats]  # (n,) for each kind of map: the map is fitted without the row's fold
    final: Calibrator  # of the chosen kind, fitted on all rows

    def summary(self, y: ArrayLike, split_group: ArrayLike) -> pd.DataFrame:
        """Returns one row for each kind of map and one for the nested choice.

        Columns: log loss, brier, ece, "less platt" (log loss minus that of Platt scaling) with its interval, chosen.
        """
        first = next(iter(self.by_kind.values()))
        rows = []
        for kind, p in {**self.by_kind, "chosen in each fold": self.p}.items():
            difference = paired_difference("logloss", y, first, p, split_group)  # of negated losses: loss - first loss
            rows.append({
                "map": kind, "log loss": log_loss(y, p), "brier": brier(y, p), "ece": expected_calibration_error(y, p),
                "less platt": difference.value, "low": difference.low, "high": difference.high, "chosen": kind ==
                self.chosen,
            })  # fmt: skip
        return pd.DataFrame(rows)


def calibrate_nested(score: ArrayLike, y: ArrayLike, fold: ArrayLike, split_group: ArrayLike) -> NestedCalibration:
    """Calibrates scores (n,) in [0, 1] that were not fitted on their own targets `y` (n,), such as nested scores.

    For each fold, the kind of map is chosen by its cross-fitted log loss on the other folds: a more complex kind only
    if its gain is real (`choose_method`). With two folds the simplest kind is used.
    """
    score, y, fold, split_group = (np.asarray(values) for values in (score, y, fold, split_group))
    folds = [int(k) for k in np.unique(fold)]

    def cross_fitted(rows: NDArray[np.bool_]) -> dict[str, Floats]:
        """Returns p (n,) of each kind: each fold of ``rows`` by a map fitted on their other folds; NaN elsewhere."""
        made = {kind: np.full(len(score), np.nan) for kind in CALIBRATOR_FITS}
        for k in np.unique(fold[rows]):
            train, held = rows & (fold != k), rows & (fold == k)
            for kind, fit in CALIBRATOR_FITS.items():
                made[kind][held] = fit(score[train], y[train])(score[held])
        return made

    def choice(made: Mapping[str, Floats], rows: NDArray[np.bool_]) -> str:
        return choose_method("logloss", y[rows], {kind: p[rows] for kind, p in made.items()}, split_group[rows])

    all_rows = np.ones(len(score), np.bool_)
    by_kind = cross_fitted(all_rows)
    chosen_by_fold = {}
    p = np.full(len(score), np.nan)
    for k in folds:
        other_folds = fold != k
        # With two folds a single other fold remains, which leaves no fold to score the choice on.
        chosen_by_fold[k] = (
            choice(cross_fitted(other_folds), other_folds) if len(folds) > 2 else next(iter(CALIBRATOR_FITS))
        )
        p[fold == k] = by_kind[chosen_by_fold[k]][fold == k]
    chosen = choice(by_kind, all_rows)
    return NestedCalibration(chosen, chosen_by_fold, p, by_kind, CALIBRATOR_FITS[chosen](score, y))


def calibration_record(found: NestedCalibration, y: ArrayLike, split_group: ArrayLike) -> dict[str, Any]:
    """Returns the chosen kinds of map and the scores of each kind, for run.json."""
    return {
        "chosen": found.chosen,
        "chosen_by_fold": found.chosen_by_fold,
        "maps": found.summary(y, split_group).to_dict("records"),
    }

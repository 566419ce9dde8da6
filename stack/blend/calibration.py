"""From a score that orders rows to a probability: Platt scaling, beta calibration, isotonic regression."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from stack.blend.nested import choose_method
from stack.errors import DataError
from stack.metrics.intervals import paired_difference
from stack.metrics.scores import Bools, Floats, auc, brier, expected_calibration_error, log_loss

_EDGE = 1e-9  # a score nearer to 0 or 1 is taken as this near, so that its logit is finite


@dataclass(frozen=True)
class Platt:
    """p = 1 / (1 + exp(-(slope · logit(score) + intercept))), for scores in [0, 1].

    The logit, since risk climbs steeply towards rank 1: on the rank average of two CNNs of SIIM-ISIC 2020 the log loss
    is 0.0609 with it and 0.0620 without, on their mean probability 0.0620 and 0.0648. Rows keep their order; only a
    negative slope, of scores that point the wrong way, turns it. `dataclasses.asdict` makes it JSON, `Platt(**d)` it.
    """

    slope: float
    intercept: float

    def __call__(self, score: ArrayLike) -> Floats:
        """Probabilities (n,) of scores (n,); DataError for NaN and what is outside [0, 1]."""
        p: Floats = expit(self.slope * _logit(score) + self.intercept)
        return p


def fit_platt(score: ArrayLike, y: ArrayLike) -> Platt:
    """Fit to scores (n,) in [0, 1] of 0/1 targets `y` (n,) that these scores did not look at, such as nested ones.

    Maximum likelihood with the smoothed targets of Platt (1999), which keep the slope finite where the scores part the
    classes. Raises DataError for NaN, other scores, other targets and a single class.
    """
    auc(y, score)  # refuses by name
    x, positive = _logit(score), np.asarray(y) == 1
    n, positives = len(x), int(positive.sum())
    target = _smoothed(positive)
    # Equal scores: their mean may round to something else, and their std to 1e-16, which would then pass for a spread.
    centre, spread = (x.mean(), x.std()) if np.ptp(x) > 0 else (x[0], 1.0)
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
    return Platt(slope, float(found.x[1] - slope * centre))


@dataclass(frozen=True)
class Beta:
    """p = 1 / (1 + exp(-(a · ln score - b · ln(1 - score) + c))), a and b not negative.

    Beta calibration (Kull, Silva Filho & Flach 2017). With a = b it is Platt's map of the logit; the two slopes let it
    bend where scores crowd at one end.
    """

    a: float
    b: float
    c: float

    def __call__(self, score: ArrayLike) -> Floats:
        """Probabilities (n,) of scores (n,); DataError for NaN and what is outside [0, 1]."""
        low, high = _log_and_log1m(score)
        p: Floats = expit(self.a * low - self.b * high + self.c)
        return p


def fit_beta(score: ArrayLike, y: ArrayLike) -> Beta:
    """Maximum likelihood on scores (n,) in [0, 1], as `fit_platt`, with Platt's smoothed targets."""
    auc(y, score)
    positive = np.asarray(y) == 1
    target = _smoothed(positive)
    low, high = _log_and_log1m(score)
    design = np.stack([low, -high, np.ones(len(target))])
    scale = np.array([low.std() or 1.0, high.std() or 1.0, 1.0])

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = (theta / scale) @ design
        return float(np.mean(np.logaddexp(0, z) - target * z)), (design @ (expit(z) - target)) / scale / len(target)

    bounds = [(0, None), (0, None), (None, None)]
    start = np.array([*scale[:2], logit(target.mean())])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 1000, "gtol": 1e-10})
    a, b, c = found.x / scale
    return Beta(float(a), float(b), float(c))


@dataclass(frozen=True)
class Isotonic:
    """The steps of an isotonic regression, straight between them (scikit-learn's); scores of one step tie."""

    scores: tuple[float, ...]
    values: tuple[float, ...]

    def __call__(self, score: ArrayLike) -> Floats:
        """Probabilities (n,) of scores (n,); DataError for NaN and what is outside [0, 1]."""
        _logit(score)  # refuses by name
        return np.interp(np.asarray(score, dtype=np.float64), self.scores, self.values)


def fit_isotonic(score: ArrayLike, y: ArrayLike) -> Isotonic:
    """Fit to scores (n,) in [0, 1]; no value is nearer to 0 or 1 than half a row, so that log loss stays finite."""
    auc(y, score)
    _logit(score)
    edge = 0.5 / len(np.asarray(score))
    fitted = IsotonicRegression(y_min=edge, y_max=1 - edge).fit(np.asarray(score, np.float64), np.asarray(y))
    return Isotonic(tuple(fitted.X_thresholds_.tolist()), tuple(fitted.y_thresholds_.tolist()))


Calibrator = Platt | Beta | Isotonic
CALIBRATOR_FITS: dict[str, Callable[[ArrayLike, ArrayLike], Calibrator]] = {  # simplest first
    "platt": fit_platt,
    "beta": fit_beta,
    "isotonic": fit_isotonic,
}
_KINDS: dict[str, type[Any]] = {"platt": Platt, "beta": Beta, "isotonic": Isotonic}


def calibrator_state(calibrator: Calibrator) -> dict[str, Any]:
    """As JSON can hold it; `calibrator_from_state` makes it whole."""
    kind = next(name for name, of in _KINDS.items() if isinstance(calibrator, of))
    return {"kind": kind, **asdict(calibrator)}


def calibrator_from_state(state: Mapping[str, Any]) -> Calibrator:
    """What `calibrator_state` gave."""
    kind = _KINDS[str(state["kind"])]
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in state.items()}
    del values["kind"]
    made: Calibrator = kind(**values)
    return made


def _smoothed(positive: Bools) -> Floats:
    """Platt's targets: a class of n rows aims at (n + 1) / (n + 2), or at 1 / (n + 2)."""
    n, positives = len(positive), int(positive.sum())
    return np.where(positive, (positives + 1) / (positives + 2), 1 / (n - positives + 2))


def _log_and_log1m(score: ArrayLike) -> tuple[Floats, Floats]:
    """Logarithms of a score and of what it lacks of 1."""
    _logit(score)
    clipped = np.clip(np.asarray(score, dtype=np.float64), _EDGE, 1 - _EDGE)
    return np.log(clipped), np.log1p(-clipped)


def _logit(score: ArrayLike) -> Floats:
    given: Floats = np.asarray(score, dtype=np.float64)
    outside = np.flatnonzero(~((given >= 0) & (given <= 1)))
    if outside.size:
        first = given[outside[0]]
        raise DataError(
            f"{outside.size} scores are not in [0, 1] (row {outside[0]}: {first:g}): take their ranks first"
        )
    logits: Floats = logit(np.clip(given, _EDGE, 1 - _EDGE))
    return logits


@dataclass(frozen=True)
class NestedCalibration:
    """What `calibrate_nested` found."""

    chosen: str
    chosen_by_fold: dict[int, str]
    p: Floats  # (n,): each row by the map, and the kind of map, chosen without its fold
    by_kind: dict[str, Floats]  # (n,): each row by this kind of map, fitted without its fold
    final: Calibrator  # of the chosen kind, fitted on all rows

    def summary(self, y: ArrayLike, split_group: ArrayLike) -> pd.DataFrame:
        """A row a kind and one for the choice: log loss, brier, ece, and the loss less Platt's with its interval."""
        first = next(iter(self.by_kind.values()))
        rows = []
        for kind, p in {**self.by_kind, "chosen in each fold": self.p}.items():
            difference = paired_difference("logloss", y, first, p, split_group)  # of negated losses
            rows.append({
                "map": kind, "log loss": log_loss(y, p), "brier": brier(y, p), "ece": expected_calibration_error(y, p),
                "less platt": difference.value, "low": difference.low, "high": difference.high, "chosen": kind ==
                self.chosen,
            })  # fmt: skip
        return pd.DataFrame(rows)


def calibrate_nested(score: ArrayLike, y: ArrayLike, fold: ArrayLike, split_group: ArrayLike) -> NestedCalibration:
    """Calibrate scores (n,) in [0, 1] that did not look at their own targets `y` (n,), such as nested ones.

    Each fold's p comes from the kind of map that has, on the other folds and fitted without the one it is scored
    on, the lowest log loss, or from a simpler one within a standard error of it (`choose_method`). Of two folds from
    the simplest kind.
    """
    score, y, fold, split_group = (np.asarray(values) for values in (score, y, fold, split_group))
    folds = [int(k) for k in np.unique(fold)]

    def cross_fitted(rows: NDArray[np.bool_]) -> dict[str, Floats]:
        """Each kind's p on ``rows``, a fold by the map of the other folds among them; NaN elsewhere."""
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
        # Of two folds the other is one alone: nothing is left to choose on, and the simplest map is taken.
        chosen_by_fold[k] = (
            choice(cross_fitted(other_folds), other_folds) if len(folds) > 2 else next(iter(CALIBRATOR_FITS))
        )
        p[fold == k] = by_kind[chosen_by_fold[k]][fold == k]
    chosen = choice(by_kind, all_rows)
    return NestedCalibration(chosen, chosen_by_fold, p, by_kind, CALIBRATOR_FITS[chosen](score, y))


def calibration_record(found: NestedCalibration, y: ArrayLike, split_group: ArrayLike) -> dict[str, Any]:
    """For run.json: what was chosen where, and what each kind of map is worth."""
    return {
        "chosen": found.chosen,
        "chosen_by_fold": found.chosen_by_fold,
        "maps": found.summary(y, split_group).to_dict("records"),
    }

"""One joint test of several correlated estimates: the largest standardised difference against its null distribution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from scipy.special import expit

from stack.metrics.calibration import EDGE
from stack.metrics.intervals import bootstrap_scores, bootstrap_sums
from stack.metrics.resolution import clip_limits, clipped_logit
from stack.metrics.scores import Floats, checked

_NULL_DRAWS = 20_000


@dataclass(frozen=True)
class JointTest:
    """Result of testing several differences at once."""

    values: int  # number of differences tested
    p: float  # probability that the largest of them is at least as large by chance; NaN where none can be tested
    critical: float  # standard errors that any of them exceeds in one of twenty comparisons without a difference


def joint_test(z: ArrayLike, correlation: Floats, *, level: float = 0.05, seed: int = 0) -> JointTest:
    """Tests standardised differences ``z`` (m,) with this correlation (m, m): the single-step max-T test.

    Westfall & Young 1993. The error rate holds for all differences together, so that a difference beyond ``critical``
    exists exactly where p is below ``level``. The null distribution is simulated.
    """
    z = np.abs(np.asarray(z, np.float64))
    if not len(z):
        return JointTest(0, float("nan"), float("nan"))
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    drawn = np.random.default_rng(seed).standard_normal((_NULL_DRAWS, len(z))) @ root.T
    largest = np.abs(drawn).max(axis=1)
    critical = float(np.quantile(largest, 1 - level))
    return JointTest(len(z), float((1 + (largest >= z.max()).sum()) / (1 + _NULL_DRAWS)), critical)


def correlation_of(draws: Sequence[Floats]) -> Floats:
    """Returns the correlation (m, m) of ``draws``, m arrays of paired draws; 0 for an estimate that never varies."""
    table = np.stack(draws)
    table = table[:, np.isfinite(table).all(axis=0)]
    spread = table.std(axis=1)
    centred = (table - table.mean(axis=1, keepdims=True)) / np.where(spread > 1e-12, spread, np.inf)[:, None]
    found: Floats = centred @ centred.T / max(table.shape[1], 1)
    np.fill_diagonal(found, 1.0)
    return found


def paired_draws(
    y: ArrayLike,
    score: ArrayLike,
    p: ArrayLike,
    group: ArrayLike,
    *,
    thresholds: Sequence[float],
    in_the_large: float,
    line: tuple[float, float],
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, Floats]:
    """Returns (draws,) of each metric, from the same draws of whole groups: auc, pauc80, ap, log_loss, and so on.

    ``sensitivity 0``, ``specificity 0``, … are those at each of ``thresholds`` of p. The calibration metrics, with
    estimates ``in_the_large`` and ``line`` (intercept and slope), are linearised: their draws are changes.
    """
    positive, p = checked(y, p)
    made = {
        name: bootstrap_scores(metric, positive, of, group, draws=draws, seed=seed)[:, 0]
        for name, metric, of in (
            ("auc", "auc", score), ("pauc80", "pauc80", score), ("ap", "ap", score), ("log_loss", "logloss", p),
        )
    }  # fmt: skip
    made["log_loss"] = -made["log_loss"]
    columns: list[np.ndarray] = [positive, ~positive]
    for threshold in thresholds:
        columns += [(p >= threshold) & positive, (p < threshold) & ~positive]
    x = clipped_logit(p, clip_limits(p, EDGE))  # as in the fits of the level and the line
    columns += [positive - expit(x + in_the_large), _slope_influence(positive, x, line)]
    values = sparse.csr_array(np.column_stack(columns).astype(np.float64))
    sums = bootstrap_sums(positive, values, group, draws=draws, seed=seed)
    for number in range(len(thresholds)):
        made[f"sensitivity {number}"] = sums[:, 2 + 2 * number] / sums[:, 0]
        made[f"specificity {number}"] = sums[:, 3 + 2 * number] / np.maximum(sums[:, 1], 1)
    return made | {"in_the_large": sums[:, -2], "slope": sums[:, -1]}


def _slope_influence(positive: np.ndarray, x: Floats, line: tuple[float, float]) -> Floats:
    """Returns each row's influence (n,) on the slope of a logistic model with this intercept and slope; 0 if NaN."""
    if not np.isfinite(line).all():
        return np.zeros(len(x))
    risk = expit(line[0] + line[1] * x)
    weight = risk * (1 - risk)
    centred = x - (weight @ x) / weight.sum()
    influence: Floats = centred * (positive - risk) / (weight @ centred**2)
    return influence

"""Weights by logistic regression, shrunk towards equal weights as far as the rows leave them uncertain.

Regressions on ranks and on logits are averaged by how well each orders the rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logit, softmax

from dermstack.threads import limit_threads
from stack.blend.calibration import fit_beta
from stack.metrics.scores import Bools, Floats, log_loss
from stack.predictions.ranks import mid_ranks

# Ridge penalties that are weighed against each other, on columns of spread 1 and the summed log likelihood. The weakest
# is scikit-learn's C = 1; under the strongest, coefficients differ by about 0.01.
RIDGES = np.logspace(0, 4, 81)
ZERO_RIDGE = 0.01  # pulls towards zero: coefficients stay finite where columns separate the classes

# Log odds for ranks over logits before the targets are seen. Logits with heavy tails cost the regression on them much,
# and few rows do not show it; where logits are the right scale, thousands of rows do show it
# (`python -m benchmarks.choice design`).
RANKS_FIRST = 2.0

_MOST_ROUNDS = 10
_SAME_RIDGE = 0.02  # difference of logarithms below which the ridge has settled


def logistic_weights(V: Floats, y: ArrayLike) -> tuple[Floats, float]:
    """Returns coefficients (runs,), none negative, and intercept of a logistic regression of targets `y` (n,).

    The columns of `V` (n, runs) have standard deviation 1. A ridge penalty pulls towards equal coefficients, not
    towards zero. Its strength comes from the rows themselves (empirical Bayes; MacKay 1992): it is the geometric mean
    of `RIDGES`, each weighted by how likely it makes the targets. So equally good runs, or few rows, give nearly equal
    weights, and runs that differ by more than noise get weights of their own.
    """
    runs = V.shape[1]
    positive = np.asarray(y) == 1
    with limit_threads(1):  # so that the last bits of these small products do not depend on the number of cores
        start = np.array([1.0, logit(positive.mean())])
        slope, intercept = _fit(V.mean(axis=1, keepdims=True), positive, 0.0, start)
        theta = np.append(np.full(runs, slope / runs), intercept)
        ridge = np.inf
        for _ in range(_MOST_ROUNDS if runs > 1 else 0):
            before, ridge = ridge, _likely_ridge(V, positive, theta)
            if abs(np.log(ridge) - np.log(before)) < _SAME_RIDGE:
                break
            theta = _fit(V, positive, ridge, theta)
    return theta[:-1], float(theta[-1])


def logit_share(y: ArrayLike, *, by_rank: Floats, by_logit: Floats) -> float:
    """Returns the share, in (0, 1), of a score made of logits in its average with one made of ranks, both (n,).

    It is the probability that the score made of logits orders the targets `y` (n,) better: prior odds of
    `RANKS_FIRST`, times the ratio of likelihoods (Bayesian model averaging; Hoeting et al. 1999).
    """
    with limit_threads(1):
        return float(expit(_order_likelihood(by_logit, y) - _order_likelihood(by_rank, y) - RANKS_FIRST))


def fit_line(score: Floats, y: ArrayLike) -> tuple[float, float]:
    """Returns slope, at least 0, and intercept of a logistic regression of targets `y` (n,) on a score (n,)."""
    positive = np.asarray(y) == 1
    with limit_threads(1):
        slope, intercept = _fit(score[:, None], positive, 0.0, np.array([1.0, logit(positive.mean())]))
    return float(slope), float(intercept)


def _order_likelihood(score: Floats, y: ArrayLike) -> float:
    """Returns the log likelihood of targets `y` (n,) by the order of a score (n,) alone, not by its scale.

    Beta calibration of the ranks gives the probabilities, so that a score is not preferred for being nearer to linear
    in the log odds.
    """
    rank = mid_ranks(score)
    return -len(score) * log_loss(y, fit_beta(rank, y)(rank))


def _fit(V: Floats, positive: Bools, ridge: float, start: Floats) -> Floats:
    """Returns coefficients, none negative, and intercept (runs + 1,); `ridge` pulls towards equal coefficients."""
    n, runs = V.shape

    def loss(theta: Floats) -> tuple[float, Floats]:
        z = V @ theta[:-1] + theta[-1]
        deviation = theta[:-1] - theta[:-1].mean()
        pull = ridge * deviation + ZERO_RIDGE * theta[:-1]
        residual = expit(z) - positive
        gradient = np.append(V.T @ residual + pull, np.sum(residual))
        return float((np.sum(np.logaddexp(0, z) - positive * z) + theta[:-1] @ pull / 2) / n), gradient / n

    bounds = [(0, None)] * runs + [(None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 500, "gtol": 1e-9})
    theta: Floats = found.x
    return theta


def _likely_ridge(V: Floats, positive: Bools, theta: Floats) -> float:
    """Returns the geometric mean of `RIDGES`, weighted by the likelihood of the targets under each.

    Under a ridge, the coefficients' deviations d from their mean are normal with variance 1 / ridge; that mean and the
    intercept are free. The log likelihood is expanded to second order around `theta` (runs + 1,), coefficients and
    intercept, and d is integrated out. Along each principal axis of the curvature, the integral of exp(t d - s d² / 2)
    over d is √(ridge / (s + ridge)) exp(t² / 2 (s + ridge)).
    """
    runs = V.shape[1]
    p = expit(V @ theta[:-1] + theta[-1])
    X = np.column_stack([V, np.ones(len(V))])
    basis = np.eye(runs + 1)  # its first direction becomes the coefficients' mean; the last is the intercept
    basis[:runs, :runs] = np.linalg.qr(np.column_stack([np.ones(runs), np.eye(runs)[:, : runs - 1]]))[0]
    free, deviations = [0, runs], slice(1, runs)
    gradient = basis.T @ (X.T @ (p - positive))
    information = basis.T @ ((X * (p * (1 - p))[:, None]).T @ X + ZERO_RIDGE * np.eye(runs + 1)) @ basis
    across = np.linalg.solve(information[np.ix_(free, free)], information[free, deviations])
    curvature = information[deviations, deviations] - information[deviations, free] @ across
    s, axes = np.linalg.eigh(curvature)
    t = axes.T @ (curvature @ (basis.T @ theta)[deviations] - gradient[deviations] + across.T @ gradient[free])
    ridges = RIDGES[:, None]
    log_likelihood = (t**2 / (s + ridges) + np.log(ridges / (s + ridges))).sum(axis=1) / 2
    return float(np.exp(softmax(log_likelihood) @ np.log(RIDGES)))

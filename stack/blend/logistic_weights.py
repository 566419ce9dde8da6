"""A logistic regression over runs whose weights can't be negative: a run that helps only upside down is left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logit
from threadpoolctl import threadpool_limits

from stack.metrics.curve import Floats

RIDGE = 1.0  # of the summed log likelihood, as scikit-learn's C = 1; on columns of spread 1
FINITE = 0.01  # of that ridge about zero: where the columns part the classes, the coefficients have an end


def logistic_weights(V: Floats, y: ArrayLike) -> tuple[Floats, float]:
    """Coefficients (runs,), none negative, and intercept of log odds on the columns of `V` (n, runs), spread 1 each.

    The ridge is about equal coefficients, not about zero: runs of one strength share their weight, and
    without evidence the blend is their mean.
    """
    n, runs = V.shape
    positive = np.asarray(y) == 1

    def loss(at: Floats) -> tuple[float, Floats]:
        z = V @ at[:-1] + at[-1]
        off = at[:-1] - at[:-1].mean()
        gradient = np.append(
            V.T @ (expit(z) - positive) + RIDGE * (off + FINITE * at[:-1]), np.sum(expit(z) - positive)
        )
        penalty = RIDGE / 2 * (off @ off + FINITE * at[:-1] @ at[:-1])
        return float((np.sum(np.logaddexp(0, z) - positive * z) + penalty) / n), gradient / n

    share = positive.mean()
    start = np.append(np.full(runs, 1 / runs), logit(share))
    bounds = [(0, None)] * runs + [(None, None)]
    options = {"maxiter": 500, "gtol": 1e-9}
    with threadpool_limits(1):  # small products, whose last bits shall not depend on the cores of the machine
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return found.x[:-1], float(found.x[-1])

"""The prevalence without labels: against the expectation-maximisation it is named after, and where it must refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from dermstack.errors import DataError
from stack.metrics.prior_shift import estimate_prevalence, given_prevalence


def risks(rng: np.random.Generator, n: int, prevalence: float, reference: float) -> np.ndarray:
    """Calibrated for the reference; scores of a class are normal, whatever the prevalence."""
    return expit(2 * (rng.normal(size=n) + 2 * (rng.random(n) < prevalence)) - 2 + logit(reference))


@pytest.mark.parametrize(("prevalence", "reference"), [(0.05, 0.2), (0.5, 0.2), (0.2, 0.2)])
def test_it_is_where_expectation_maximisation_converges(
    rng: np.random.Generator, prevalence: float, reference: float
) -> None:
    p = risks(rng, 5_000, prevalence, reference)
    share = reference
    for _ in range(3_000):  # Saerens et al., equation 2.4
        up, down = p * share / reference, (1 - p) * (1 - share) / (1 - reference)
        share = float((up / (up + down)).mean())
    found = estimate_prevalence(p, reference, np.arange(len(p)))
    assert found.interval.value == pytest.approx(share, rel=1e-4)
    assert found.interval.value == pytest.approx(prevalence, rel=0.15)
    assert expit(logit(p) + found.intercept).mean() == pytest.approx(found.interval.value, rel=1e-6)
    assert found.is_shown == (prevalence != reference)


def test_images_of_few_patients_say_less(rng: np.random.Generator) -> None:
    p = risks(rng, 200, 0.1, 0.2)
    alone = estimate_prevalence(p, 0.2, np.arange(200))
    tenfold = estimate_prevalence(np.repeat(p, 10), 0.2, np.repeat(np.arange(200), 10))
    assert tenfold.interval.value == pytest.approx(alone.interval.value, rel=1e-6)
    assert tenfold.se_logit == pytest.approx(alone.se_logit, rel=0.35)


def test_a_given_prevalence_moves_the_odds(rng: np.random.Generator) -> None:
    found = given_prevalence(0.1, 0.2)
    assert expit(logit(0.2) + found.intercept) == pytest.approx(0.1)
    assert found.interval.low == found.interval.high == 0.1
    assert found.se_logit == 0


def test_rows_that_fit_no_class_or_no_second_group_are_refused() -> None:
    with pytest.raises(DataError, match="no positive one at all"):
        estimate_prevalence(np.full(50, 0.01), 0.2, np.arange(50))
    with pytest.raises(DataError, match="no negative one at all"):
        estimate_prevalence(np.full(50, 0.9), 0.2, np.arange(50))
    with pytest.raises(DataError, match="at least two"):
        estimate_prevalence([0.1, 0.4], 0.2, ["a", "a"])

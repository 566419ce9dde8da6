from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.decomposition import PCA

from dermstack.errors import TabularError
from tabular.embeddings import fit_density


def rows(rng: np.random.Generator, n: int, shift: float = 0.0) -> np.ndarray:
    """Embeddings with three strong factors among twelve axes."""
    loads = np.vstack([np.eye(12)[:3] * [[5], [3], [2]], np.zeros((0, 12))])
    return rng.normal(size=(n, 3)) @ loads + 0.3 * rng.normal(size=(n, 12)) + shift


def test_distance_orders_rows_as_the_likelihood_of_probabilistic_pca_does(rng: np.random.Generator) -> None:
    z = rows(rng, 400)
    density = fit_density(z, np.arange(400))
    new = rows(rng, 50, shift=0.4)
    covariance = PCA(11).fit(z).get_covariance()
    oracle = -2 * multivariate_normal(z.mean(axis=0), covariance).logpdf(new)
    made = density.distance(new) * 12
    np.testing.assert_allclose(made - made.mean(), oracle - oracle.mean(), rtol=1e-3, atol=1e-2)


def test_rows_of_the_same_kind_are_flagged_as_often_as_said_and_others_always(rng: np.random.Generator) -> None:
    density = fit_density(rows(rng, 2000).astype(np.float16), np.arange(2000) // 2)
    same = density.share_nearer(rows(rng, 4000))
    assert np.mean(same > 0.95) == pytest.approx(0.05, abs=0.02)
    assert np.mean(same) == pytest.approx(0.5, abs=0.05)
    other = rows(rng, 100)
    other[:, 7] += 3  # along an axis on which the rows hardly move
    assert (density.share_nearer(other) == 1).all()


def test_twins_across_halves_do_not_make_the_rows_look_usual(rng: np.random.Generator) -> None:
    """Copies in one group stay in one half."""
    z = np.repeat(rng.normal(size=(60, 40)), 2, axis=0)
    apart, together = (fit_density(z, group).reference.mean() for group in (np.arange(120), np.arange(120) // 2))
    assert together > apart


def test_too_few_rows_say_nothing(rng: np.random.Generator) -> None:
    with pytest.raises(TabularError, match="24 rows"):
        fit_density(rows(rng, 24), np.arange(24))
    with pytest.raises(TabularError, match="1 groups"):
        fit_density(rows(rng, 40), np.zeros(40))

from __future__ import annotations

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group

from dermstack.errors import TabularError
from tabular.embeddings import fit_alignment


def simulated_rows(
    rng: np.random.Generator, *, nets: int, n: int, d: int, noise: float
) -> tuple[np.ndarray, np.ndarray]:
    """Nets that see the same ten factors, each on axes, at a scale and around a middle of its own."""
    factors = rng.normal(size=(n, 10)) * np.linspace(3, 1, 10)
    embed = np.stack([
        (factors @ ortho_group.rvs(d, random_state=k)[:10]) * (k + 1) + rng.normal(size=d) * 5
        + noise * (k + 1) * rng.normal(size=(n, d))
        for k in range(nets)
    ])  # fmt: skip
    return embed, factors


def test_turned_nets_come_to_lie_on_each_other(rng: np.random.Generator) -> None:
    z, _ = simulated_rows(rng, nets=4, n=800, d=24, noise=0.02)
    alignment = fit_alignment(z[:, :500], 24)
    made = np.stack([alignment.transform(z[k, 500:], k) for k in range(4)])  # none of the anchors
    spread = made.std()
    assert np.abs(made - made.mean(axis=0)).max() < 0.2 * spread
    assert alignment.residual < 0.01
    assert alignment.unaligned > 0.5


def test_unrelated_nets_have_a_residual_near_one(rng: np.random.Generator) -> None:
    z = rng.normal(size=(3, 400, 20))
    alignment = fit_alignment(z, 10)
    assert alignment.residual > 0.8


def test_distances_within_a_net_stay_what_they_were(rng: np.random.Generator) -> None:
    z, _ = simulated_rows(rng, nets=3, n=200, d=12, noise=0.1)
    alignment = fit_alignment(z, 12)
    for k in range(3):
        spread = np.sqrt(((z[k] - z[k].mean(axis=0)) ** 2).sum(axis=1).mean())
        apart = np.linalg.norm(z[k, :50, None] - z[k, None, :50], axis=2) / spread
        made = alignment.transform(z[k, :50], k)
        np.testing.assert_allclose(np.linalg.norm(made[:, None] - made[None], axis=2), apart, atol=1e-3)
        np.testing.assert_allclose(
            alignment.projection[k] @ alignment.projection[k].T * spread**2, np.eye(12), atol=1e-5
        )


def test_two_nets_agree_as_scipys_procrustes_makes_them(rng: np.random.Generator) -> None:
    z, _ = simulated_rows(rng, nets=2, n=300, d=10, noise=0.3)
    alignment = fit_alignment(z, 10)
    first, second = (alignment.transform(z[k], k).astype(np.float64) for k in range(2))
    best, _ = orthogonal_procrustes(second, first)
    assert np.linalg.norm(second - first) <= np.linalg.norm(second @ best - first) * 1.001


def test_components_are_at_most_a_fifth_of_the_anchors(rng: np.random.Generator) -> None:
    z, _ = simulated_rows(rng, nets=2, n=50, d=24, noise=0.1)
    assert fit_alignment(z, 64).projection.shape == (2, 24, 10)
    assert fit_alignment(z, 4).projection.shape == (2, 24, 4)
    with pytest.raises(TabularError, match="24 anchors are too few"):
        fit_alignment(z[:, :24], 4)


def test_the_same_anchors_make_the_same_bytes(rng: np.random.Generator) -> None:
    z, _ = simulated_rows(rng, nets=3, n=100, d=12, noise=0.1)
    a, b = fit_alignment(z.astype(np.float16), 8), fit_alignment(z.astype(np.float16), 8)
    assert all((getattr(a, name) == getattr(b, name)).all() for name in ("mean", "projection"))

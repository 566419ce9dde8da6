"""How usual an embedding is among those that a net gives the images that it was made for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from tabular.errors import TabularError

COMPONENTS = 64
FEWEST = 25  # rows, below which nothing is said
QUANTILES = 1001  # of the distances that are kept to compare with


@dataclass(frozen=True)
class Density:
    """Probabilistic principal components (Tipping & Bishop 1999) of embeddings, and how far unseen ones lie off."""

    mean: NDArray[np.float32]  # (d,)
    axes: NDArray[np.float32]  # (d, r), each divided by the spread along it
    noise: float  # spread along each of the d - r axes that are left out
    reference: NDArray[np.float32]  # quantiles of the distances of rows that were not fitted on

    def distance(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Mean squared deviation (n,) of embeddings (n, d) over all axes, each by its own spread: 1 is usual."""
        centred = z.astype(np.float32) - self.mean
        along = centred @ self.axes
        lengths = (self.axes.astype(np.float64) ** 2).sum(axis=0)  # 1 / spread² of each axis
        inside = (along.astype(np.float64) ** 2 / lengths).sum(axis=1)
        left = np.maximum((centred.astype(np.float64) ** 2).sum(axis=1) - inside, 0)
        far: NDArray[np.float64] = ((along.astype(np.float64) ** 2).sum(axis=1) + left / self.noise**2) / z.shape[1]
        return far

    def share_nearer(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Share (n,) of unseen training images that lie nearer to the others than these do: 0 usual, 1 unlike any."""
        return np.interp(self.distance(z), self.reference, np.linspace(0, 1, len(self.reference)))


def fit_density(z: NDArray[np.floating], group: ArrayLike) -> Density:
    """Fit to embeddings (n, d) of a net; ``group`` (n,) keeps together what must not tell about itself.

    The reference are distances of each half of the groups from a fit of the other half. Raises TabularError for fewer
    than 25 rows or two groups.
    """
    codes = np.unique(np.asarray(group).astype(str), return_inverse=True)[1]
    half = codes % 2 == 0
    if len(z) < FEWEST or half.all() or not half.any():
        raise TabularError(f"{len(z)} rows in {codes.max(initial=-1) + 1} groups are too few to say what is usual")
    distances = [Density(*_axes(z[learn]), np.empty(0, np.float32)).distance(z[~learn]) for learn in (half, ~half)]
    quantiles = np.quantile(np.concatenate(distances), np.linspace(0, 1, QUANTILES)).astype(np.float32)
    return Density(*_axes(z), quantiles)


def _axes(z: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    rows, width = z.shape
    r = max(1, min(COMPONENTS, rows // 5, width - 1))
    pca = PCA(r, svd_solver="covariance_eigh" if width < rows else "full").fit(z.astype(np.float64))
    spread = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    axes = (pca.components_ / spread[:, None]).T
    return pca.mean_.astype(np.float32), axes.astype(np.float32), float(np.sqrt(max(pca.noise_variance_, 1e-12)))

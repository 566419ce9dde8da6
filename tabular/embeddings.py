"""Embeddings of fold nets: their alignment onto shared axes, and a density that shows which images are unusual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from dermstack.errors import TabularError

PROCRUSTES_ROUNDS = 5  # of generalised Procrustes; the residual is constant after three
HELD_OUT_EVERY = 5  # every fifth anchor is held out to measure how well the rotation fits


@dataclass(frozen=True)
class Alignment:
    """Map of each net's embeddings to shared components (n, r): (z - mean[k]) @ projection[k] for net k.

    A projection combines the net's scale, shared principal axes and an orthogonal rotation, so that distances within
    a net change only by the scale and the reduction to r axes.
    """

    mean: NDArray[np.float32]  # (nets, d)
    projection: NDArray[np.float32]  # (nets, d, r)
    residual: float  # on held-out anchors, share of the variance between nets: 0 for identical, 1 for unrelated nets
    unaligned: float  # the residual without rotations

    def transform(self, z: NDArray[np.floating], net: int) -> NDArray[np.float32]:
        """Returns the components (n, r) of embeddings (n, d) of net number ``net``."""
        components: NDArray[np.float32] = (z.astype(np.float32) - self.mean[net]) @ self.projection[net]
        return components

    @property
    def components(self) -> int:
        """Number r of shared axes."""
        return int(self.projection.shape[2])


def fit_alignment(anchors: NDArray[np.floating], components: int) -> Alignment:
    """Fits the alignment on ``anchors`` (nets, n, d): the embeddings of the same n images by each net, without targets.

    ``components`` is limited to n / 5, beyond which a rotation fits noise, and to d. Each net is centred and scaled,
    reduced to the principal axes of all nets' anchors together, and rotated onto the mean of the nets by orthogonal
    Procrustes (Schönemann 1966); rotations and mean are computed in turn (Gower 1975). The residual is that of a fit to
    four fifths of the anchors on the other fifth. Raises TabularError for fewer than 25 anchors.
    """
    nets, n, width = anchors.shape
    if n < 25:
        raise TabularError(f"{n} anchors are too few to align embeddings on: give at least 25, or drop the embeddings")
    r = max(1, min(components, n // 5, width))
    held = np.arange(n) % HELD_OUT_EVERY == 0
    trial = _fit(anchors[:, ~held], min(r, max(1, int((~held).sum()) // 5)))
    residual = _residual(trial, anchors[:, held])
    unrotated = _Procrustes(trial.mean, trial.scale, trial.basis, np.stack([np.eye(trial.basis.shape[1])] * nets))
    unaligned = _residual(unrotated, anchors[:, held])
    fitted = _fit(anchors, r)
    projection = (fitted.basis @ fitted.rotation) / fitted.scale[:, None, None]
    return Alignment(fitted.mean.astype(np.float32), projection.astype(np.float32), residual, unaligned)


@dataclass(frozen=True)
class _Procrustes:
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    basis: NDArray[np.float64]
    rotation: NDArray[np.float64]

    def components(self, anchors: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns the anchors' components (nets, n, r) on the shared axes."""
        scaled = (anchors - self.mean[:, None]) / self.scale[:, None, None]
        turned: NDArray[np.float64] = scaled @ (self.basis @ self.rotation)
        return turned


def _fit(anchors: NDArray[np.floating], r: int) -> _Procrustes:
    z = anchors.astype(np.float64)
    mean = z.mean(axis=1)
    centred = z - mean[:, None]
    scale = np.sqrt((centred**2).sum(axis=2).mean(axis=1))
    scale = np.where(scale > 0, scale, 1.0)
    centred /= scale[:, None, None]
    stacked = centred.reshape(-1, centred.shape[2])
    _, vectors = np.linalg.eigh(stacked.T @ stacked)  # ascending
    basis = vectors[:, ::-1][:, :r]
    # The sign of an axis is arbitrary and depends on LAPACK; a fixed rule keeps the results identical.
    basis = basis * np.where(basis[np.abs(basis).argmax(axis=0), np.arange(r)] < 0, -1, 1)
    plain = centred @ basis
    rotation = np.stack([np.eye(r)] * len(z))
    reference = plain[0]
    for _ in range(PROCRUSTES_ROUNDS):
        for net, own in enumerate(plain):
            left, _, right = np.linalg.svd(own.T @ reference)
            rotation[net] = left @ right
        reference = (plain @ rotation).mean(axis=0)
    return _Procrustes(mean, scale, basis, rotation)


def _residual(fitted: _Procrustes, anchors: NDArray[np.floating]) -> float:
    """Returns the variance between nets as a share of the total variance: 0 for identical, 1 for unrelated nets."""
    nets = len(anchors)
    if nets == 1:
        return 0.0
    components = fitted.components(anchors)
    between = ((components - components.mean(axis=0)) ** 2).sum() / (nets - 1)
    total = (components**2).sum() / nets
    return float(between / total) if total else 0.0


MAX_COMPONENTS = 64
MIN_ROWS = 25  # minimum number of rows for a fit
N_QUANTILES = 1001  # number of stored quantiles of the reference distances


@dataclass(frozen=True)
class Density:
    """Probabilistic principal components (Tipping & Bishop 1999) of embeddings, for the distance of new ones."""

    mean: NDArray[np.float32]  # (d,)
    axes: NDArray[np.float32]  # (d, r), each divided by the standard deviation along it
    noise: float  # standard deviation along each of the d - r other axes
    reference: NDArray[np.float32]  # quantiles of the distances of held-out training rows

    def distance(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns the mean squared z-score over all axes (n,) of embeddings (n, d): about 1 for usual ones."""
        centred = z.astype(np.float32) - self.mean
        along = centred @ self.axes
        lengths = (self.axes.astype(np.float64) ** 2).sum(axis=0)  # 1 / spread² of each axis
        inside = (along.astype(np.float64) ** 2 / lengths).sum(axis=1)
        left = np.maximum((centred.astype(np.float64) ** 2).sum(axis=1) - inside, 0)
        far: NDArray[np.float64] = ((along.astype(np.float64) ** 2).sum(axis=1) + left / self.noise**2) / z.shape[1]
        return far

    def share_nearer(self, z: NDArray[np.floating]) -> NDArray[np.float64]:
        """Returns the share (n,) of held-out training rows with a smaller distance: 1 for embeddings unlike any."""
        return np.interp(self.distance(z), self.reference, np.linspace(0, 1, len(self.reference)))


def fit_density(z: NDArray[np.floating], group: ArrayLike) -> Density:
    """Fits the density of embeddings (n, d) of one net; rows of one ``group`` (n,) are held out together.

    The reference distances are those of each half of the groups to a fit on the other half. Raises TabularError for
    fewer than 25 rows or two groups.
    """
    codes = np.unique(np.asarray(group).astype(str), return_inverse=True)[1]
    half = codes % 2 == 0
    if len(z) < MIN_ROWS or half.all() or not half.any():
        raise TabularError(
            f"{len(z)} rows in {codes.max(initial=-1) + 1} groups are too few to fit their density: "
            f"give at least {MIN_ROWS} rows in two groups"
        )
    distances = [
        Density(*_principal_axes(z[train]), np.empty(0, np.float32)).distance(z[~train]) for train in (half, ~half)
    ]
    quantiles = np.quantile(np.concatenate(distances), np.linspace(0, 1, N_QUANTILES)).astype(np.float32)
    return Density(*_principal_axes(z), quantiles)


def _principal_axes(z: NDArray[np.floating]) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    rows, width = z.shape
    r = max(1, min(MAX_COMPONENTS, rows // 5, width - 1))
    pca = PCA(r, svd_solver="covariance_eigh").fit(
        z.astype(np.float64)
    )  # gives all d eigenvalues, also where there are fewer rows
    spread = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    axes = (pca.components_ / spread[:, None]).T
    return pca.mean_.astype(np.float32), axes.astype(np.float32), float(np.sqrt(max(pca.noise_variance_, 1e-12)))

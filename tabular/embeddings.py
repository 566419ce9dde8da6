"""Embeddings of different fold nets brought onto shared axes, fitted on images that every net has embedded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA

from tabular.errors import TabularError

PROCRUSTES_ROUNDS = 5  # of generalised Procrustes; the residual moves no more after three
HELD_OUT_EVERY = 5  # every fifth anchor measures how well the others' rotation fits


@dataclass(frozen=True)
class Alignment:
    """z of net k → (z - mean[k]) @ projection[k]: components (n, r) that mean the same for all nets.

    A projection is the net's scale, shared principal axes and a rotation, which is orthogonal, so that distances within
    one net stay what they are but for the scale.
    """

    mean: NDArray[np.float32]  # (nets, d)
    projection: NDArray[np.float32]  # (nets, d, r)
    residual: float  # on held-out anchors, share of the shared components' spread: 0 perfect, 1 no better than nothing
    unaligned: float  # the same without rotations

    def transform(self, z: NDArray[np.floating], net: int) -> NDArray[np.float32]:
        """Components (n, r) of net ``net``'s embeddings (n, d)."""
        components: NDArray[np.float32] = (z.astype(np.float32) - self.mean[net]) @ self.projection[net]
        return components

    @property
    def components(self) -> int:
        """The number r of shared axes."""
        return int(self.projection.shape[2])


def fit_alignment(anchors: NDArray[np.floating], components: int) -> Alignment:
    """Fit on ``anchors`` (nets, n, d), the same n images as each net embeds them; no targets.

    ``components`` is at most n / 5, beyond which a rotation fits noise, and at most d. Centre and scale each net,
    reduce by the principal axes of all nets' anchors together, rotate each net onto the nets' mean by orthogonal
    Procrustes (Schönemann 1966), the mean again by turns (Gower 1975). The residual is measured by the same fit on
    four fifths of the anchors. Raises TabularError for fewer than 25 anchors.
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
        """(nets, n, r) on the shared axes."""
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
    # An axis and its opposite are one; a sign by rule keeps the bytes the same wherever LAPACK turns it.
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
    """Spread of the nets about their mean, as a share of all spread: its least is 0, unrelated nets have 1."""
    nets = len(anchors)
    if nets == 1:
        return 0.0
    components = fitted.components(anchors)
    between = ((components - components.mean(axis=0)) ** 2).sum() / (nets - 1)
    total = (components**2).sum() / nets
    return float(between / total) if total else 0.0


MAX_COMPONENTS = 64
MIN_ROWS = 25  # rows, below which nothing is said
N_QUANTILES = 1001  # of the distances that are kept to compare with


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
    if len(z) < MIN_ROWS or half.all() or not half.any():
        raise TabularError(f"{len(z)} rows in {codes.max(initial=-1) + 1} groups are too few to say what is usual")
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
    )  # eigenvalues over d - r axes, also of few rows
    spread = np.sqrt(np.maximum(pca.explained_variance_, 1e-12))
    axes = (pca.components_ / spread[:, None]).T
    return pca.mean_.astype(np.float32), axes.astype(np.float32), float(np.sqrt(max(pca.noise_variance_, 1e-12)))

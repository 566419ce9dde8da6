"""Heat maps of new images: Grad-CAM of a bundle's networks, drawn on the image in the size that the page shows."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermstack.errors import ImageError
from dermstack.report.pictures import overlay
from dermstack.serve.bundle import Bundle
from dermstack.serve.image_runs import encoded_metadata, fold_folder
from dermstack.serve.manifest import ImageRun
from image_models.cache import ImageCache
from image_models.device import pick_device
from image_models.explain import pixel_risk_maps
from image_models.saved import NetCache

PAGE_SIDE = 480  # pixels of a shown image's longer side
_JPEG_QUALITY = 90


def heat_maps(
    bundle: Bundle,
    store: NetCache,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    preferred_run: str | None = None,
    device: str = "auto",
) -> tuple[NDArray[np.float32], ImageRun]:
    """Returns Grad-CAM maps (n, s, s) in 0..1 of the rows' cached images, and the run that they are from.

    A map is the mean of `risk_maps` over the run's fold networks, divided by its maximum; all zero if no network finds
    anything. Runs are tried until one has maps: trained runs first, then frozen ones (their first fold's head only),
    ``preferred_run`` first among its kind. Raises ImageError if no run is a convolutional network with a late feature
    map.
    """
    where = pick_device(device).type
    runs = sorted(bundle.image_runs, key=lambda run: (run.kind == "frozen", run.name != preferred_run))
    for run in runs:
        cache = caches[int(run.settings["size"])]
        pixels = cache.take(cache.rows_for(frame["id"]))
        folds = range(bundle.folds if run.kind != "frozen" else 1)
        try:
            maps = [_net_heat_map(bundle, store, run, fold, pixels, frame, where) for fold in folds]
        except ImageError:  # a transformer: another run may have a map
            continue
        mean = np.mean(maps, axis=0, dtype=np.float32)
        top = mean.max(axis=(1, 2), keepdims=True)
        return np.where(top > 0, mean / np.where(top > 0, top, 1), 0).astype(np.float32), run
    raise ImageError(
        f"no heat map: none of {', '.join(run.name for run in runs)} is a convolutional network whose last feature "
        "map has more than one position"
    )


def heat_overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], *, squeezed: bool) -> NDArray[np.uint8]:
    """Draws a heat map (s, s) on an image (h, w, 3): on all of it or, if not ``squeezed``, on the centre square."""
    height, width = image.shape[:2]
    side = min(height, width)
    covered = (height, width) if squeezed else (side, side)
    stretched = np.asarray(Image.fromarray(heat).resize(covered[::-1], Image.Resampling.BILINEAR)).clip(0, 1)
    top, left = (height - covered[0]) // 2, (width - covered[1]) // 2
    full_heat = np.zeros((height, width), np.float32)
    full_heat[top : top + covered[0], left : left + covered[1]] = stretched
    return overlay(image, full_heat)


def page_sized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Returns the image (h, w, 3) reduced to the size in which the page shows it."""
    small = Image.fromarray(image)
    small.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Encodes the pixels as JPEG, without metadata of the original file such as place or patient."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=_JPEG_QUALITY)
        return file.getvalue()


def _net_heat_map(
    bundle: Bundle,
    store: NetCache,
    run: ImageRun,
    fold: int,
    pixels: NDArray[np.uint8],
    frame: pd.DataFrame,
    device: str,
) -> NDArray[np.float32]:
    """Returns the maps (n, s, s) of the first seed's network of a fold."""
    metadata = encoded_metadata(bundle, run, fold, frame)
    nets = store.read(
        fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1], device=device
    )
    return pixel_risk_maps(nets[0], pixels, metadata, threads=int(bundle.manifest["threads"]))

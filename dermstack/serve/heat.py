"""Where the networks see risk in new pictures, painted over each for people to look at."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermstack.report.cases import overlay
from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.level1 import encoded_metadata, fold_folder
from image_models.cache import ImageCache
from image_models.device import pick_device
from image_models.errors import ImageError
from image_models.explain import pixel_risk_maps
from image_models.saved import NetStore

SIDE = 480  # pixels of a shown picture's longer side
_QUALITY = 90


def heat_maps(
    bundle: Bundle,
    store: NetStore,
    caches: dict[int, ImageCache],
    frame: pd.DataFrame,
    *,
    first: str | None = None,
    device: str = "auto",
) -> tuple[NDArray[np.float32], ImageRun]:
    """Grad-CAM (n, s, s) in 0..1 of the rows' cached pictures by one run, and that run: the mean over its fold nets,
    as `risk_maps` of each, as a share of the picture's greatest; all zero where no net finds any.

    The run is ``first``, or else the next that has a map: trained ones before frozen ones, of which one head is asked.
    Raises ImageError where no run is a convolutional net with a late feature map.
    """
    where = pick_device(device).type
    runs = sorted(bundle.image_runs, key=lambda run: (run.kind == "frozen", run.name != first))
    for run in runs:
        cache = caches[int(run.settings["size"])]
        pixels = cache.take(cache.rows_for(frame["id"]))
        folds = range(bundle.folds if run.kind != "frozen" else 1)
        try:
            maps = [_of_net(bundle, store, run, fold, pixels, frame, where) for fold in folds]
        except ImageError:  # a transformer: another run may have a map
            continue
        mean = np.mean(maps, axis=0, dtype=np.float32)
        top = mean.max(axis=(1, 2), keepdims=True)
        return np.where(top > 0, mean / np.where(top > 0, top, 1), 0).astype(np.float32), run
    raise ImageError(
        f"no heat map: none of {', '.join(run.name for run in runs)} is a convolutional network whose last feature "
        "map has more than one place"
    )


def painted(image: NDArray[np.uint8], heat: NDArray[np.float32], *, squeezed: bool) -> NDArray[np.uint8]:
    """A picture (h, w, 3) under its heat (s, s), which covers all of it or, if not ``squeezed``, the middle square."""
    height, width = image.shape[:2]
    side = min(height, width)
    covered = (height, width) if squeezed else (side, side)
    stretched = np.asarray(Image.fromarray(heat).resize(covered[::-1], Image.Resampling.BILINEAR)).clip(0, 1)
    top, left = (height - covered[0]) // 2, (width - covered[1]) // 2
    whole = np.zeros((height, width), np.float32)
    whole[top : top + covered[0], left : left + covered[1]] = stretched
    return overlay(image, whole)


def shown(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) no larger than a page shows it."""
    small = Image.fromarray(image)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Pixels alone: what else the file said, of place or patient, is not in it."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "JPEG", quality=_QUALITY)
        return file.getvalue()


def _of_net(
    bundle: Bundle,
    store: NetStore,
    run: ImageRun,
    fold: int,
    pixels: NDArray[np.uint8],
    frame: pd.DataFrame,
    device: str,
) -> NDArray[np.float32]:
    """By the first seed's net of a fold."""
    metadata = encoded_metadata(bundle, run, fold, frame)
    nets = store.read(
        fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1], device=device
    )
    return pixel_risk_maps(nets[0], pixels, metadata, threads=int(bundle.manifest["threads"]))

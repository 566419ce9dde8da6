"""Images of single cases as the image models saw them, as data URIs, with heat maps of where a network sees risk."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from stack.experiment import Experiment
from stack.images import existing_cache
from stack.net_metadata import encoded_columns
from stack.store import Run, fingerprint, read_run, read_verified_run, write_run

if TYPE_CHECKING:
    from image_models.cache import ImageCache

Pixels = NDArray[np.uint8]

PICTURE_SIDE = 160  # pixels
_COLOUR_MAP = "viridis"  # its colours do not occur in skin and are readable without red-green vision
HEAT_OPACITY = 0.65  # opacity of the strongest heat
_MAX_KEPT = 500  # heat maps of earlier reports that are kept
_HEAT_VERSION = 1  # raise it where kept heat maps would look otherwise


@dataclass(frozen=True)
class CasePictures:
    """Images as data URIs by id; if the network has no heat maps, ``heat`` is empty and ``note`` says why."""

    picture: dict[str, str]
    heat: dict[str, str]
    shape: dict[str, tuple[int, int]]  # width and height for display
    note: str = ""


NO_PICTURES = CasePictures({}, {}, {})


def cached_case_pictures(
    experiment: Experiment, run: Run, ids: Sequence[str], *, heated: bool = True
) -> tuple[CasePictures, str]:
    """Returns `case_pictures` of cached images and a note for the page; no images if they are not available."""
    try:
        pictures = existing_cache(experiment, run.meta["settings"]["size"])
        if set(ids) <= set(pictures.index["id"]):
            made = case_pictures(experiment, run, pictures, ids, heated=heated)
            return made, made.note
    except ImportError:
        return NO_PICTURES, "No images: the extra [image] is not installed (pip install 'dermstack[image]')."
    return NO_PICTURES, "The image cache lacks these images: run `dermstack oof` to make it again."


def case_pictures(
    experiment: Experiment, run: Run, pictures: ImageCache, ids: Sequence[str], *, heated: bool = True
) -> CasePictures:
    """Returns the images of training rows as the image run ``run`` saw them, with Grad-CAM heat maps.

    A heat map comes from the first seed's network that did not see the row's fold. Raises ImageError if an image is not
    in the cache ``pictures`` or weights cannot be read.
    """
    rows = pictures.rows_for(ids)
    pixels = pictures.take(rows)
    index = pictures.index.iloc[rows]
    # resize "square" squeezes the whole image; otherwise the network sees the central square.
    source_sizes = zip(index["source_width"].tolist(), index["source_height"].tolist(), strict=True)
    shape = dict(
        zip(
            ids, source_sizes if pictures.resize == "square" else [(PICTURE_SIDE, PICTURE_SIDE)] * len(ids), strict=True
        )
    )
    picture = {row_id: data_uri(_resized(image)) for row_id, image in zip(ids, pixels, strict=True)}
    heat, note = _heat_overlays(experiment, run, ids, pixels) if heated else ({}, "")
    return CasePictures(picture, heat, shape, note)


def overlay(picture: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Lays heat (h, w) in 0..1 over an image (h, w, 3); opacity grows with the heat."""
    cover = HEAT_OPACITY * heat[..., None]
    covered: Pixels = ((1 - cover) * picture + cover * colour(heat)).round().astype(np.uint8)
    return covered


def colour(heat: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the RGB colours (…, 3) in 0..255 of heat (…) in 0..1."""
    rgb: NDArray[np.float64] = _colour_map()[np.rint(255 * heat).astype(np.intp)]
    return rgb


@cache
def _colour_map() -> NDArray[np.float64]:
    from matplotlib import colormaps

    return 255 * colormaps[_COLOUR_MAP](np.arange(256))[:, :3]


def has_heat_maps(experiment: Experiment, run: Run, ids: Sequence[str]) -> bool:
    """Whether the heat maps of these images were kept by an earlier report, so that `case_pictures` takes no time."""
    kept = _kept_heat_maps(experiment, run)
    return kept is not None and set(ids) <= set(kept)


def _heat_overlays(experiment: Experiment, run: Run, ids: Sequence[str], pixels: Pixels) -> tuple[dict[str, str], str]:
    """Returns the overlays by id and a note; without heat maps no overlays, and the note says why.

    They are kept on disk for the next report: which cases it shows depends on the blend, but their heat maps on this
    run alone, and importing torch takes seconds.
    """
    known = _kept_heat_maps(experiment, run) or {}
    new = [place for place, row_id in enumerate(ids) if row_id not in known]
    if new:
        made, note = _new_heat_overlays(experiment, run, [ids[place] for place in new], pixels[new])
        if note:
            return {}, note
        known |= made
        earlier = [row_id for row_id in known if row_id not in set(ids)][-_MAX_KEPT:]
        known = {row_id: known[row_id] for row_id in [*earlier, *ids]}
        folder = _heat_folder(experiment)
        shutil.rmtree(folder, ignore_errors=True)  # it can be made again, so it is not set aside
        frame = pd.DataFrame({"id": list(known), "heat": list(known.values())})
        write_run(folder, {"kind": "heat_maps", "fingerprint": _heat_inputs(run)}, frames={"heat_maps": frame})
    return {row_id: known[row_id] for row_id in ids}, ""


def _kept_heat_maps(experiment: Experiment, run: Run) -> dict[str, str] | None:
    """Returns the kept overlays of this run by id; None where there are none, or the run was made again since."""
    kept = read_run(_heat_folder(experiment))
    if kept is None or kept.meta.get("fingerprint") != _heat_inputs(run):
        return None
    frame = kept.frame("heat_maps")
    return dict(zip(frame["id"], frame["heat"], strict=True))


def _heat_folder(experiment: Experiment) -> Path:
    return experiment.folder / "report" / "heat_maps"


def _heat_inputs(run: Run) -> str:
    made_of = {"run": run.name, "inputs": run.meta["inputs"], "files": run.meta["files"]}
    return fingerprint({"version": _HEAT_VERSION, **made_of})


def _new_heat_overlays(
    experiment: Experiment, run: Run, ids: Sequence[str], pixels: Pixels
) -> tuple[dict[str, str], str]:
    from dermstack.errors import ImageError
    from image_models.explain import pixel_risk_maps
    from image_models.saved import read_fold_nets

    read_verified_run(run.folder)
    fold = run.frame("oof").set_index("id")["fold"].loc[list(ids)].to_numpy()
    table = experiment.table.train.set_index("id").loc[list(ids)].reset_index()
    made: dict[str, str] = {}
    for k in np.unique(fold):
        held, folder = np.flatnonzero(fold == k), run.folder / f"fold_{k}"
        metadata = encoded_columns(folder, run.meta["settings"], table.iloc[held])
        net, *_ = read_fold_nets(
            folder,
            run.meta["settings"],
            positive=run.meta.get("positive", (False, True)),
            metadata=metadata.shape[1],
            device=experiment.config.device,
        )
        try:
            maps = pixel_risk_maps(net, pixels[held], metadata, threads=experiment.config.threads)
        except ImageError as error:  # a transformer has no feature map for Grad-CAM
            return {}, f"No heat maps for {run.name}: {error}."
        for place, heat in zip(held.tolist(), maps, strict=True):
            made[ids[place]] = data_uri(_resized(overlay(pixels[place], heat)))
    return made, ""


def _resized(picture: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS))


def data_uri(pixels: Pixels) -> str:
    """Encodes an image (h, w) or (h, w, 3) as a JPEG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")

"""Pictures of single cases with the heat of the net that did not see them: where it found its reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermstack.report.contact_sheet import Pixels, data_uri
from stack.experiment import Experiment
from stack.images import cache_at_hand
from stack.store import Run, read_whole
from tabular.dense import DenseMetadata

if TYPE_CHECKING:  # the image half is an extra
    from image_models.cache import ImageCache

SIDE = 160  # pixels
_HEAT = "viridis"  # no skin has its colours, and it reads the same without red or green
COVER = 0.65  # how much of the picture the strongest heat hides


@dataclass(frozen=True)
class CasePictures:
    """Data URIs by id; ``heat`` is empty where the net can't be asked, and ``note`` says why."""

    picture: dict[str, str]
    heat: dict[str, str]
    shape: dict[str, tuple[int, int]]  # width and height of the file that the picture was made from
    note: str = ""


NO_PICTURES = CasePictures({}, {}, {})


def pictures_at_hand(
    experiment: Experiment, run: Run, ids: Sequence[str], *, heated: bool = True
) -> tuple[CasePictures, str]:
    """`case_pictures` of what is cached, and what must be said of them; none where they are not at hand."""
    try:
        pictures = cache_at_hand(experiment, run.meta["settings"]["size"])
        if set(ids) <= set(pictures.index["id"]):
            made = case_pictures(experiment, run, pictures, ids, heated=heated)
            return made, made.note
    except ImportError:
        return NO_PICTURES, "Made where the image half is not installed: pip install 'dermstack[image]' for pictures."
    return NO_PICTURES, "The image cache lacks these pictures: `dermstack oof` makes it again."


def words_of(row: pd.Series) -> list[str]:
    """Diagnosis, sex, site and age of a row of the table, as far as they are known."""
    known = [str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))]
    return known + ([f"{row['age']:.0f}\N{NO-BREAK SPACE}years"] if pd.notna(row["age"]) else [])


def case_pictures(
    experiment: Experiment, run: Run, pictures: ImageCache, ids: Sequence[str], *, heated: bool = True
) -> CasePictures:
    """Of training rows, as the image run ``run`` saw them: heat by Grad-CAM from the first seed's net of their fold.

    Raises ImageError where a picture is not among ``pictures`` or weights can't be read.
    """
    rows = pictures.rows_for(ids)
    pixels = pictures.take(rows)
    index = pictures.index.iloc[rows]
    # Of a picture kept by its short side the net sees the central square, of another the whole, squeezed.
    whole = zip(index["source_width"].tolist(), index["source_height"].tolist(), strict=True)
    shape = dict(zip(ids, whole if pictures.resize == "square" else [(SIDE, SIDE)] * len(ids), strict=True))
    picture = {row_id: data_uri(_small(image)) for row_id, image in zip(ids, pixels, strict=True)}
    heat, note = _heat(experiment, run, ids, pixels) if heated else ({}, "")
    return CasePictures(picture, heat, shape, note)


def overlay(picture: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """A picture (h, w, 3) under its heat (h, w) in 0..1: the hotter, the more of it is covered."""
    cover = COVER * heat[..., None]
    covered: Pixels = ((1 - cover) * picture + cover * colour(heat)).round().astype(np.uint8)
    return covered


def colour(heat: NDArray[np.floating]) -> NDArray[np.float64]:
    """RGB in 0..255 of heat (…) in 0..1: (…, 3)."""
    rgb: NDArray[np.float64] = _map()[np.rint(255 * heat).astype(np.intp)]
    return rgb


@cache
def _map() -> NDArray[np.float64]:
    from matplotlib import colormaps

    return 255 * colormaps[_HEAT](np.arange(256))[:, :3]


def _heat(experiment: Experiment, run: Run, ids: Sequence[str], pixels: Pixels) -> tuple[dict[str, str], str]:
    """The overlays by id, or none and why."""
    from image_models.errors import ImageError
    from image_models.explain import pixel_risk_maps
    from image_models.saved import read_fold_nets

    read_whole(run.folder)
    fold = run.frame("oof").set_index("id")["fold"].loc[list(ids)].to_numpy()
    table = experiment.table.train.set_index("id").loc[list(ids)].reset_index()
    made: dict[str, str] = {}
    for k in np.unique(fold):
        held, folder = np.flatnonzero(fold == k), run.folder / f"fold_{k}"
        metadata = np.empty((len(held), 0), np.float32)
        if run.meta["settings"]["metadata"]:
            encoder = DenseMetadata.from_json((folder / "metadata.json").read_text(encoding="utf-8"))
            metadata = encoder.transform(table.iloc[held])
        net, *_ = read_fold_nets(
            folder,
            run.meta["settings"],
            positive=run.meta.get("positive", (False, True)),
            metadata=metadata.shape[1],
            device=experiment.config.device,
        )
        try:
            maps = pixel_risk_maps(net, pixels[held], metadata, threads=experiment.config.threads)
        except ImageError as error:  # a transformer: it has no map to look at
            return {}, f"No heat maps of {run.name}: {error}."
        for place, heat in zip(held.tolist(), maps, strict=True):
            made[ids[place]] = data_uri(_small(overlay(pixels[place], heat)))
    return made, ""


def _small(picture: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS))

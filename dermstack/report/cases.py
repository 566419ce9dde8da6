"""Images of single cases on the pages: contact sheets, most confident errors with heat maps, doubtful labels."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from dermstack.audit.labels import NEIGHBOURS, kept_doubtful_labels
from dermstack.report.report import TEMPLATE_FOLDER, Section, render_template
from dermstack.report.units import Scored, run_weights
from stack.experiment import Experiment
from stack.history import auc_of
from stack.images import existing_cache
from stack.net_metadata import encoded_columns
from stack.store import Run, read_verified_run

if TYPE_CHECKING:
    from image_models.cache import ImageCache


Pixels = NDArray[np.uint8]


class Tile(NamedTuple):
    """An image and its edges, each as the data URI of a JPEG."""

    id: str
    words: str  # its metadata
    picture: str
    edges: str


def sample_ids(train: pd.DataFrame, *, each: int, seed: int) -> list[str]:
    """Draws ids of at most `each` negatives, then of as many positives; one per group while there are enough groups.

    The ids do not depend on the order of the rows.
    """
    rng = np.random.default_rng(seed)
    ids: list[str] = []
    for label in (0, 1):
        rows = train.loc[train["target"] == label, ["id", "group"]].sort_values("id")
        rows = rows.iloc[rng.permutation(len(rows))]
        turn = rows.groupby("group", sort=False).cumcount()  # the first of each group, then the second, …
        ids += rows.iloc[np.argsort(turn.to_numpy(), kind="stable")[:each]]["id"].tolist()
    return ids


def tiles(train: pd.DataFrame, ids: list[str], thumbnails: Pixels) -> list[Tile]:
    """Makes the tiles of the images `thumbnails` (n, h, w, 3) of these `ids` of `train`, in their order."""
    rows = train.set_index("id").loc[ids].reset_index()
    return [
        Tile(row["id"], _tile_caption(row), data_uri(picture), data_uri(edges(picture)))
        for (_, row), picture in zip(rows.iterrows(), thumbnails, strict=True)
    ]


def edges(picture: Pixels) -> Pixels:
    """Returns the edges of an image (h, w, 3) as dark lines on white (h, w): Sobel gradient of the smoothed brightness.

    The strongest 1 % of the pixels is black; an image of one colour stays white.
    """
    grey = ndimage.gaussian_filter(picture.astype(np.float64) @ (0.299, 0.587, 0.114), 1.0)
    strength = np.hypot(ndimage.sobel(grey, axis=0), ndimage.sobel(grey, axis=1))
    # A gradient of a few grey levels is noise of the JPEG encoding and must not be stretched to black.
    darkest = max(float(np.quantile(strength, 0.99)), 16.0)
    drawn: Pixels = (255 * (1 - np.clip(strength / darkest, 0, 1))).round().astype(np.uint8)
    return drawn


def data_uri(pixels: Pixels) -> str:
    """Encodes an image (h, w) or (h, w, 3) as a JPEG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _tile_caption(row: pd.Series) -> str:
    known = [f"{row['age']:.0f} years"] if pd.notna(row["age"]) else []
    return ", ".join([str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))] + known)


PICTURE_SIDE = 160  # pixels
_COLOUR_MAP = "viridis"  # its colours do not occur in skin and are readable without red-green vision
HEAT_OPACITY = 0.65  # opacity of the strongest heat


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


def metadata_words(row: pd.Series) -> list[str]:
    """Returns the known values of diagnosis, sex, site and age of a row of the table."""
    known = [str(row[name]) for name in ("diagnosis", "sex", "site") if pd.notna(row.get(name))]
    return known + ([f"{row['age']:.0f}\N{NO-BREAK SPACE}years"] if pd.notna(row["age"]) else [])


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


def _heat_overlays(experiment: Experiment, run: Run, ids: Sequence[str], pixels: Pixels) -> tuple[dict[str, str], str]:
    """Returns the overlays by id and a note; without heat maps no overlays, and the note says why."""
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


class _HardCase(NamedTuple):
    name: str
    p: float  # calibrated
    p_image_model: float | None  # probability of the image model
    words: list[str]  # known values of diagnosis, sex, site, age
    picture: str | None
    heat: str | None
    shape: tuple[int, int] | None


def hard_cases(
    experiment: Experiment,
    blend: Run,
    runs: Sequence[Run],
    *,
    display_name: Callable[[str], str],
    scored: Scored | None = None,
    no_images: bool = False,
    each: int = 20,
) -> Section:
    """Returns the section with the ``each`` most confident misses and false alarms of the blend of ``runs``.

    Cases are shown with image, heat map and metadata, or as a table with ``no_images`` and if the images or the extra
    `[image]` are not available. ``display_name`` maps an id to the name on the page. ``scored`` are the rows that the
    blend scores, by default the images; of a unit, the image with the highest risk is shown. Raises ImageError if
    weights cannot be read.
    """
    scored = scored or Scored(experiment, runs)
    oof = blend.frame("oof")
    rows = scored.experiment.rows_of(oof["id"])
    oof = oof.assign(target=scored.experiment.target[rows], split_group=scored.experiment.split_group[rows])
    missed, alarms = most_wrong(oof, each=each)
    ids = [*missed["id"], *alarms["id"]]
    run = image_run(blend, runs, experiment)
    pictures, note = NO_PICTURES, ""
    image_of = {} if run is None else scored.image_of(experiment, run, ids)
    if no_images:
        note = "This report was made without images."
    elif run is None:
        note = "The blend has no image model of this experiment, so no images are shown."
    elif ids:
        pictures, note = cached_case_pictures(experiment, run, list(image_of.values()))
    p_image_model = None
    if run is not None:
        p_image_model = next(one for one in scored.runs if one.name == run.name).frame("oof").set_index("id")["p"]
    table = scored.experiment.table.train.set_index("id")

    def case(row: pd.Series) -> _HardCase:
        row_id = row["id"]
        return _HardCase(
            name=display_name(row_id),
            p=row["p_calibrated"],
            p_image_model=None if p_image_model is None else float(p_image_model.loc[row_id]),
            words=metadata_words(table.loc[row_id]),
            picture=pictures.picture.get(image_of.get(row_id, row_id)),
            heat=pictures.heat.get(image_of.get(row_id, row_id)),
            shape=pictures.shape.get(image_of.get(row_id, row_id)),
        )

    markup = render_template(
        "hard_cases.html.j2",
        unit=scored.unit,
        coded=display_name is not str,
        lists=[
            ("missed", "Positives with the lowest probability", [case(row) for _, row in missed.iterrows()]),
            (
                "alarms",
                "Negatives with the highest probability",
                [case(row) for _, row in alarms.iterrows()],
            ),
        ],
        each=each,
        run=run.name if run else None,
        note=note,
        described=bool(len(ids)) and any(metadata_words(table.loc[row_id]) for row_id in ids),
        shown=bool(pictures.picture),
        heated=bool(pictures.heat),
        stops=", ".join(
            "rgb({:.0f} {:.0f} {:.0f} / {:.2f})".format(*colour(np.array(heat)), HEAT_OPACITY * heat)
            for heat in np.linspace(0, 1, 6)
        ),
        prevalence=float(oof["target"].mean()),
    )
    return Section(markup, (TEMPLATE_FOLDER / "cases.css").read_text(encoding="utf-8"))


def most_wrong(oof: pd.DataFrame, *, each: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Returns the positives with the lowest and negatives with the highest `p_calibrated`, one per split_group each.

    ``oof`` has id, target, split_group, score and p_calibrated. Only rows on the wrong side of the prevalence are
    included; ties are ordered by score, then by id.
    """
    prevalence = oof["target"].mean()
    found = []
    for target, rising in ((1, True), (0, False)):
        wrong = oof["p_calibrated"] < prevalence if target else oof["p_calibrated"] > prevalence
        some = oof[wrong & (oof["target"] == target)]
        some = some.sort_values(["p_calibrated", "score", "id"], ascending=[rising, rising, True])
        found.append(some.drop_duplicates("split_group").head(each))
    return found[0], found[1]


def image_run(blend: Run, runs: Sequence[Run], experiment: Experiment) -> Run | None:
    """Returns the blend's image model with the largest weight; ties are decided by AUC."""
    weight = run_weights(blend)
    images = [run for run in runs if run.name in weight and run.meta["kind"] in ("image", "frozen")]
    return max(images, key=lambda run: (weight[run.name], auc_of(experiment, run)), default=None)


TARGET_NAMES = {0: "negative", 1: "positive"}


class _CasePicture(NamedTuple):
    name: str
    target: str
    words: list[str]
    picture: str
    shape: tuple[int, int]


class _DoubtfulCase(NamedTuple):
    name: str
    p: float
    neighbours: float | None  # share of positives
    words: list[str]
    like: str | None
    pictures: list[_CasePicture]  # the row's own, then the nearest row of the other target


def doubtful_labels_section(
    experiment: Experiment,
    runs: Sequence[Run],
    *,
    display_name: Callable[[str], str],
    no_images: bool = False,
    each: int = 12,
) -> Section | None:
    """Returns the section of `doubtful_labels` for level-1 ``runs``, at most ``each`` per target; None without runs.

    ``display_name`` maps an id to the name on the page. The section is a table with ``no_images`` and if no image is
    available.
    """
    if not runs:
        return None
    doubtful = kept_doubtful_labels(experiment, runs)
    group = experiment.folds.frame.set_index("id")["split_group"].loc[doubtful["id"]].to_numpy()
    one_per_group = doubtful[~doubtful.assign(group=group).duplicated(["target", "group"])]
    lists = {target: one_per_group[one_per_group["target"] == target].head(each) for target in (1, 0)}
    shown = pd.concat(lists.values())
    ids = list(dict.fromkeys([*shown["id"], *shown["like"].dropna()]))
    image_runs = [run for run in runs if run.meta["kind"] in ("image", "frozen")]
    pictures, note = NO_PICTURES, ""
    if no_images:
        note = "This report was made without images."
    elif not image_runs:
        note = "The blend has no image model of this experiment, so no images are shown."
    elif ids:
        pictures, note = cached_case_pictures(experiment, image_runs[0], ids, heated=False)
    table = experiment.table.train.set_index("id")
    titles = {1: "Labelled positive, but similar to negatives", 0: "Labelled negative, but similar to positives"}
    cases = {
        target: [_doubtful_case(row, table, pictures, display_name) for _, row in some.iterrows()]
        for target, some in lists.items()
    }
    markup = render_template(
        "second_look.html.j2",
        coded=display_name is not str,
        found=len(doubtful),
        rows=len(experiment.target),
        runs=", ".join(run.name for run in runs),
        neighbours=NEIGHBOURS if any(run.has("oof_z") for run in runs) else None,
        each=each,
        note=note,
        lists=[(TARGET_NAMES[target], titles[target], some) for target, some in cases.items()],
        described=any(case.words for some in cases.values() for case in some),
        shown=bool(pictures.picture),
    )
    return Section(markup, (TEMPLATE_FOLDER / "cases.css").read_text(encoding="utf-8"))


def _doubtful_case(
    row: pd.Series, table: pd.DataFrame, pictures: CasePictures, display_name: Callable[[str], str]
) -> _DoubtfulCase:
    pair = [(row["id"], row["target"])] + ([] if pd.isna(row["like"]) else [(row["like"], 1 - row["target"])])
    return _DoubtfulCase(
        name=display_name(row["id"]),
        p=row["p"],
        neighbours=None if pd.isna(row["neighbours"]) else row["neighbours"],
        words=metadata_words(table.loc[row["id"]]),
        like=display_name(row["like"]) if len(pair) > 1 else None,
        pictures=[
            _CasePicture(
                display_name(one),
                TARGET_NAMES[of],
                metadata_words(table.loc[one]),
                pictures.picture[one],
                pictures.shape[one],
            )
            for one, of in pair
            if one in pictures.picture
        ],
    )

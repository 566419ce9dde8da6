"""One patient's pictures in, what the ensemble says of each out; nothing of it outlives the call."""

from __future__ import annotations

import io
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from dermstack.report.cases import overlay
from dermstack.serve.bundle import Bundle, ImageRun
from dermstack.serve.ensemble import ENCODER, Level1, encoded_metadata, fold_folder, read_fitted
from dermstack.serve.expectations import cost_notes, read_novelty
from dermstack.serve.predict import score_pictures
from image_models.cache import ImageCache, build_cache
from image_models.device import pick_device
from image_models.errors import ImageError
from image_models.explain import pixel_risk_maps
from image_models.io.readers import DICOM_SUFFIXES, Source
from image_models.saved import NetCache
from stack.errors import DataError
from tabular.encode import DenseMetadata
from tabular.group_features import embedding_aggregates, prediction_aggregates


@dataclass(frozen=True)
class Standing:
    """One lesion among the others that were given with it."""

    others: int  # how many there are
    distance: float | None  # cosine distance of its embedding to the others' mean direction, 0..2; None: not measured
    place: int | None  # 1: no lesion lies further from the rest; None where two can't be told apart
    others_distance_range: tuple[float, float] | None  # least and greatest of the others'
    others_mean_risk: float | None  # mean calibrated risk of the others
    sentence: str


def standings(risk: NDArray[np.float64], embeddings: list[dict[str, NDArray[np.floating]]]) -> list[Standing]:
    """Of the n pictures of a patient: calibrated ``risk`` (n,), and each fold's centred components (n, r) by run.

    Distances are level 2's feature `<run>_group_centroid`, averaged over folds and runs.
    """
    n = len(risk)
    if n == 1:
        return [Standing(0, None, None, None, None, _ONLY_PICTURE)]
    patient = np.zeros(n, np.intp)
    others_mean_risk = prediction_aggregates(patient, risk[:, None], ["risk"])["risk_group_others_mean"].to_numpy(
        np.float64
    )
    distances = [
        embedding_aggregates(patient, z, name)[f"{name}_group_centroid"].to_numpy(np.float64)
        for fold in embeddings
        for name, z in fold.items()
    ]
    if not distances:
        return [
            Standing(n - 1, None, None, None, float(mean), f"{_NOT_MEASURED} {_risk_sentence(own, mean, n - 1)}")
            for own, mean in zip(risk, others_mean_risk, strict=True)
        ]
    distance = np.mean(distances, axis=0)
    made = []
    for row, (own, mean) in enumerate(zip(risk, others_mean_risk, strict=True)):
        rest = np.delete(distance, row)
        place = int((distance > distance[row]).sum()) + 1 if n > 2 else None
        span = (float(rest.min()), float(rest.max()))
        sentence = f"{_rank_sentence(float(distance[row]), place, span, n)} {_risk_sentence(own, mean, n - 1)}"
        made.append(Standing(n - 1, float(distance[row]), place, span, float(mean), sentence))
    return made


_ONLY_PICTURE = "The only picture: there are no others of this patient to compare it with."
_NOT_MEASURED = "This ensemble's level 2 takes no embedding, so how alike the lesions look is not measured."


def _rank_sentence(distance: float, place: int | None, span: tuple[float, float], n: int) -> str:
    if place is None:
        return f"Its distance to the other lesion is {distance:.2f}; of two, neither can be the odd one."
    others = f"{span[0]:.2f}" if f"{span[0]:.2f}" == f"{span[1]:.2f}" else f"{span[0]:.2f} to {span[1]:.2f}"
    rest = f"distance {distance:.2f}, the others' {others}"
    if place == 1:
        return f"Of these {n} lesions the networks find this one least like the rest ({rest})."
    return f"Number {place} of {n} by how far it lies from the rest ({rest})."


def _risk_sentence(own: float, mean: float, others: int) -> str:
    return f"Its risk is {percent(own)}, {'the mean of the others' if others > 1 else 'the other'} {percent(mean)}."


def percent(share: float) -> str:
    """A risk as people read it: two digits that count, and never "0 %" for what isn't nothing."""
    if 0 < share < 0.001:
        return "under 0.1 %"
    if 0.999 < share < 1:
        return "over 99.9 %"
    return f"{100 * share:.1f} %" if share < 0.1 or share > 0.99 else f"{100 * share:.0f} %"


PAGE_SIDE = 480  # pixels of a shown picture's longer side
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
    """Grad-CAM (n, s, s) in 0..1 of the rows' cached pictures by one run, and that run: the mean over its fold nets,
    as `risk_maps` of each, as a share of the picture's greatest; all zero where no net finds any.

    The run is ``first``, or else the next that has a map: trained ones before frozen ones, of which one head is asked.
    Raises ImageError where no run is a convolutional net with a late feature map.
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
        "map has more than one place"
    )


def heat_overlay(image: NDArray[np.uint8], heat: NDArray[np.float32], *, squeezed: bool) -> NDArray[np.uint8]:
    """A picture (h, w, 3) under its heat (s, s), which covers all of it or, if not ``squeezed``, the middle square."""
    height, width = image.shape[:2]
    side = min(height, width)
    covered = (height, width) if squeezed else (side, side)
    stretched = np.asarray(Image.fromarray(heat).resize(covered[::-1], Image.Resampling.BILINEAR)).clip(0, 1)
    top, left = (height - covered[0]) // 2, (width - covered[1]) // 2
    full_heat = np.zeros((height, width), np.float32)
    full_heat[top : top + covered[0], left : left + covered[1]] = stretched
    return overlay(image, full_heat)


def page_sized(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture (h, w, 3) no larger than a page shows it."""
    small = Image.fromarray(image)
    small.thumbnail((PAGE_SIDE, PAGE_SIDE), Image.Resampling.LANCZOS)
    return np.asarray(small)


def encode_jpeg(image: NDArray[np.uint8]) -> bytes:
    """Pixels alone: what else the file said, of place or patient, is not in it."""
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
    """By the first seed's net of a fold."""
    metadata = encoded_metadata(bundle, run, fold, frame)
    nets = store.read(
        fold_folder(bundle, run, fold), run.settings, positive=run.positive, metadata=metadata.shape[1], device=device
    )
    return pixel_risk_maps(nets[0], pixels, metadata, threads=int(bundle.manifest["threads"]))


NET_CACHE_BYTES = 4 << 30  # bytes of weights that stay in memory between two patients; what is beyond is read again
MAX_AGE = 120  # years
_ADVICE = "choose a picture or a DICOM file (.dcm) in its place"


@dataclass(frozen=True)
class Photo:
    """One picture as it was given: its encoded bytes and where on the body it was taken."""

    name: str
    data: bytes
    site: str | None = None


@dataclass(frozen=True)
class Lesion:
    """What the ensemble says of one picture."""

    name: str
    site: str | None
    score: float  # what ranks; a mean of ranks is no probability
    p_calibrated: float
    novelty: float | None  # share of training images nearer to the rest than this one; None: the bundle can't say
    far: bool  # hardly any training image lies further out
    picture: bytes  # JPEG, as a page shows it
    heat: bytes | None  # the same under its Grad-CAM; None: nothing was found, or no network has one
    standing: Standing


@dataclass(frozen=True)
class Reading:
    """All pictures of a patient, and what a reader must know of all of them."""

    lesions: list[Lesion]
    heat_map_run: str | None  # the run whose heat maps are shown
    notes: list[str]  # what unknown columns cost


class Ensemble:
    """A bundle read into memory, for one patient after the other."""

    def __init__(self, bundle: Bundle, *, device: str = "auto", net_cache_bytes: int = NET_CACHE_BYTES) -> None:
        self.bundle = bundle
        self.device = device
        self.fitted = read_fitted(bundle)
        self.novelty = read_novelty(bundle)
        self.store = NetCache(max_bytes=net_cache_bytes)
        self.lock = threading.Lock()  # patients take turns: each has the threads that the bundle names
        self.choices = {name: _categories(self, name) for name in ("sex", "site")}

    @property
    def group(self) -> str | None:
        """What the training csv calls the column that puts pictures together: patients, or lesions."""
        return self.bundle.columns.get("group")


def read_patient(
    ensemble: Ensemble,
    photos: Sequence[Photo],
    *,
    age: float | None = None,
    sex: str | None = None,
    together: bool = True,
) -> Reading:
    """Score, calibrated risk, heat map and standing among the others of each picture, in the order of ``photos``.

    The scores are those of `dermstack predict` for the same rows: ``together`` they are one group of training
    (a patient, if that is what its groups were), else each is a group of its own. Files lie in a temporary folder until
    the call ends. Raises DataError naming every file that is no picture, and values that no training row has.
    """
    if not photos:
        raise DataError("no picture was given: choose at least one")
    frame = _frame(ensemble, photos, age, sex, together)
    with ensemble.lock, TemporaryDirectory(prefix="dermstack-app-") as temporary:
        sources = [_source(Path(temporary), row, photo) for row, photo in enumerate(photos)]
        pictures = _decode_photos(photos, sources)
        caches = _caches(ensemble.bundle, Path(temporary), frame, sources)
        level1: list[Level1] = []
        made = score_pictures(
            ensemble.bundle, ensemble.fitted, ensemble.novelty, caches, frame, store=ensemble.store,
            device=ensemble.device, on_level1=level1.append,
        )  # fmt: skip
        heat_map_run, heats = _heat_overlays(ensemble, caches, frame, pictures)
    risk = made["p_calibrated"].to_numpy(np.float64)
    standing = standings(risk, ensemble.fitted.embeddings(level1[0]))
    lesions = [
        Lesion(
            photo.name, photo.site, float(made["score"].iloc[row]), float(risk[row]),
            float(made["novelty"].iloc[row]) if "novelty" in made else None,
            bool(made["far"].iloc[row]) if "far" in made else False,
            encode_jpeg(pictures[row]), heats[row], standing[row],
        )
        for row, photo in enumerate(photos)
    ]  # fmt: skip
    return Reading(lesions, heat_map_run, cost_notes(ensemble.bundle, _unknown_columns(frame, together)))


def _frame(
    ensemble: Ensemble, photos: Sequence[Photo], age: float | None, sex: str | None, together: bool
) -> pd.DataFrame:
    if age is not None and not 0 <= age <= MAX_AGE:
        raise DataError(f"age {age:g}: give years from 0 to {MAX_AGE}, or leave it empty")
    for name, value in [("sex", sex), *(("site", photo.site) for photo in photos)]:
        if value is not None and value not in ensemble.choices[name]:
            known = ", ".join(ensemble.choices[name]) or "none"
            raise DataError(f"{name} {value!r} is none that training knew: choose one of {known}, or leave it empty")
    ids = pd.Series([str(row) for row in range(len(photos))], dtype="str")
    return pd.DataFrame({
        "id": ids,
        "group": pd.Series(["patient"] * len(photos), dtype="str") if together else ids,
        "age": np.full(len(photos), np.nan if age is None else age, np.float32),
        "sex": pd.Series([sex] * len(photos), dtype="str"),
        "site": pd.Series([photo.site for photo in photos], dtype="str"),
    })  # fmt: skip


def _source(folder: Path, row: int, photo: Photo) -> Source:
    """Its bytes under a name of ours: what a browser calls a file may be any text."""
    path = folder / str(row)
    path.write_bytes(photo.data)
    is_dicom = Path(photo.name).suffix.lower() in DICOM_SUFFIXES
    return Source(path, "dicom" if is_dicom else "file", n_bytes=len(photo.data), stamp=path.stat().st_mtime_ns)


def _decode_photos(photos: Sequence[Photo], sources: Sequence[Source]) -> list[NDArray[np.uint8]]:
    """Each picture as a page shows it. Raises DataError with a line for every file that is none."""
    pictures, faults = [], []
    for photo, source in zip(photos, sources, strict=True):
        try:
            pictures.append(page_sized(source.read(min_side=1 << 9).image))
        except ImageError as error:
            reason = str(error).removeprefix(f"{source.name}: ").rpartition(": ")[0]
            faults.append(f"{photo.name}: {reason}: {_ADVICE}")
    if faults:
        raise DataError("\n".join(faults))
    return pictures


def _caches(bundle: Bundle, folder: Path, frame: pd.DataFrame, sources: list[Source]) -> dict[int, ImageCache]:
    return {
        size: build_cache(
            folder / f"pixels-{size}", frame["id"].tolist(), sources, size=size, resize=bundle.manifest["resize"],
            format=bundle.manifest["cache_format"],
        )
        for size in bundle.sizes
    }  # fmt: skip


def _heat_overlays(
    ensemble: Ensemble, caches: dict[int, ImageCache], frame: pd.DataFrame, pictures: list[NDArray[np.uint8]]
) -> tuple[str | None, list[bytes | None]]:
    """The run that is asked for heat maps and each picture under its own; None where no run has any."""
    preferred_run = ensemble.novelty.run if ensemble.novelty else None
    try:
        maps, run = heat_maps(
            ensemble.bundle, ensemble.store, caches, frame, preferred_run=preferred_run, device=ensemble.device
        )
    except ImageError:
        return None, [None] * len(pictures)
    squeezed = ensemble.bundle.manifest["resize"] == "square"
    return run.name, [
        encode_jpeg(heat_overlay(picture, heat, squeezed=squeezed)) if heat.any() else None
        for picture, heat in zip(pictures, maps, strict=True)
    ]


def _unknown_columns(frame: pd.DataFrame, together: bool) -> list[str]:
    """Columns of which nothing is known."""
    unknown = [name for name in ("age", "sex", "site") if frame[name].isna().all()]
    return unknown if together else [*unknown, "group"]


def _categories(ensemble: Ensemble, column: str) -> list[str]:
    """Every value that an encoder of level 2 or of a net knows, sorted; [] where none looks at the column."""
    encoders = [features.encoder_ for features in ensemble.fitted.features if features.settings.metadata]
    folder = ensemble.bundle.folder / "image_models"
    for path in sorted(folder.glob(f"*/fold_*/{ENCODER}")):
        encoders.append(DenseMetadata.from_json(path.read_text(encoding="utf-8")).encoder_)
    return sorted({value for encoder in encoders for value in encoder.categories_.get(column, ())})

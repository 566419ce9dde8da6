"""One patient's pictures in, what the ensemble says of each out; nothing of it outlives the call."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import Level1, read_fitted
from dermstack.serve.expectations import cost_notes
from dermstack.serve.heat import heat_maps, jpeg, painted, shown
from dermstack.serve.level1 import ENCODER
from dermstack.serve.novel import read_novelty
from dermstack.serve.others import Standing, standings
from dermstack.serve.predict import score_pictures
from image_models.cache import ImageCache
from image_models.cache_build import build_cache
from image_models.errors import ImageError
from image_models.io.readers import DICOM_SUFFIXES, Source
from image_models.saved import NetStore
from stack.errors import DataError
from tabular.dense import DenseMetadata

KEPT = 4 << 30  # bytes of weights that stay in memory between two patients; what is beyond is read again
OLDEST = 120  # years
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
    seen_by: str | None  # the run whose heat maps are shown
    notes: list[str]  # what unknown columns cost


class Ensemble:
    """A bundle read into memory, for one patient after the other."""

    def __init__(self, bundle: Bundle, *, device: str = "auto", kept: int = KEPT) -> None:
        self.bundle = bundle
        self.device = device
        self.fitted = read_fitted(bundle)
        self.novelty = read_novelty(bundle)
        self.store = NetStore(room=kept)
        self.busy = threading.Lock()  # patients take turns: each has the threads that the bundle names
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
    with ensemble.busy, TemporaryDirectory(prefix="dermstack-app-") as temporary:
        sources = [_source(Path(temporary), row, photo) for row, photo in enumerate(photos)]
        pictures = _decoded(photos, sources)
        caches = _caches(ensemble.bundle, Path(temporary), frame, sources)
        said: list[Level1] = []
        made = score_pictures(
            ensemble.bundle, ensemble.fitted, ensemble.novelty, caches, frame, store=ensemble.store,
            device=ensemble.device, tell=said.append,
        )  # fmt: skip
        seen_by, heats = _heats(ensemble, caches, frame, pictures)
    risk = made["p_calibrated"].to_numpy(np.float64)
    standing = standings(risk, ensemble.fitted.embeddings(said[0]))
    lesions = [
        Lesion(
            photo.name, photo.site, float(made["score"].iloc[row]), float(risk[row]),
            float(made["novelty"].iloc[row]) if "novelty" in made else None,
            bool(made["far"].iloc[row]) if "far" in made else False,
            jpeg(pictures[row]), heats[row], standing[row],
        )
        for row, photo in enumerate(photos)
    ]  # fmt: skip
    return Reading(lesions, seen_by, cost_notes(ensemble.bundle, _unknown(frame, together)))


def _frame(
    ensemble: Ensemble, photos: Sequence[Photo], age: float | None, sex: str | None, together: bool
) -> pd.DataFrame:
    if age is not None and not 0 <= age <= OLDEST:
        raise DataError(f"age {age:g}: give years from 0 to {OLDEST}, or leave it empty")
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


def _decoded(photos: Sequence[Photo], sources: Sequence[Source]) -> list[NDArray[np.uint8]]:
    """Each picture as a page shows it. Raises DataError with a line for every file that is none."""
    pictures, faults = [], []
    for photo, source in zip(photos, sources, strict=True):
        try:
            pictures.append(shown(source.read(at_least=1 << 9).image))
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


def _heats(
    ensemble: Ensemble, caches: dict[int, ImageCache], frame: pd.DataFrame, pictures: list[NDArray[np.uint8]]
) -> tuple[str | None, list[bytes | None]]:
    """The run that is asked for heat maps and each picture under its own; None where no run has any."""
    first = ensemble.novelty.run if ensemble.novelty else None
    try:
        maps, run = heat_maps(ensemble.bundle, ensemble.store, caches, frame, first=first, device=ensemble.device)
    except ImageError:
        return None, [None] * len(pictures)
    squeezed = ensemble.bundle.manifest["resize"] == "square"
    return run.name, [
        jpeg(painted(picture, heat, squeezed=squeezed)) if heat.any() else None
        for picture, heat in zip(pictures, maps, strict=True)
    ]


def _unknown(frame: pd.DataFrame, together: bool) -> list[str]:
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

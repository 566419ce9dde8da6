"""Predictions for one patient's images: risk, heat map and comparison with the patient's others; nothing is stored."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import DataError, ImageError
from dermstack.serve.bundle import Bundle
from dermstack.serve.ensemble import read_bundled_fallback, read_fitted
from dermstack.serve.expectations import cost_notes, lacking_columns, takes_age
from dermstack.serve.heat_maps import encode_jpeg, heat_maps, heat_overlay, page_sized
from dermstack.serve.image_runs import Level1, net_cache
from dermstack.serve.imported_runs import imported_with_images, inputs_text, one_prediction, prediction_notes
from dermstack.serve.novelty import read_novelty
from dermstack.serve.predict import score_pictures, with_unreadable
from dermstack.serve.questions import answered, questions_of, range_notes, read_ranges
from dermstack.serve.review import decided, review_notes
from dermstack.serve.standings import NOT_SEEN, Standing, standings
from dermstack.serve.words import WORDS, known_words
from image_models.cache import ImageCache, build_cache
from image_models.io.readers import DICOM_SUFFIXES, Source
from stack.fallback import FOLDER, STATE_FILE
from stack.tables.missing_codes import MAX_AGE, missing_codes
from stack.tables.units import UNIT

NET_CACHE_BYTES = 4 << 30  # weights kept in memory between patients; further weights are read again each time
_ADVICE = "choose an image or a DICOM file (.dcm) instead"


@dataclass(frozen=True)
class Photo:
    """One image as it was sent: its file name, its encoded bytes and the site on the body."""

    name: str
    data: bytes
    site: str | None = None
    unit: str | None = None  # which of the patient's units it shows, where predictions are for units: "L", "lesion 2"


@dataclass(frozen=True)
class Lesion:
    """The ensemble's prediction for one image."""

    name: str
    site: str | None
    score: float  # for ranking; not a probability if the blend is a mean of ranks
    p_calibrated: float
    novelty: float | None  # share of training images nearer to the others than this one; None: bundle without it
    far: bool  # novelty above 0.99
    picture: bytes | None  # JPEG in the size in which the page shows it; None: it cannot be read
    heat: bytes | None  # the same with its Grad-CAM on top; None: empty map, or no network supports Grad-CAM
    standing: Standing
    decision: str | None = None  # "negative", "positive" or "review"; None: the bundle has no review band
    unit: str | None = None  # the unit that has score, risk, novelty and decision; None: the image itself has them
    basis: str = "images"  # what it is predicted from: where the image cannot be read, "table" or "prevalence"


@dataclass(frozen=True)
class Reading:
    """Predictions for all images of a patient, and notes that concern all of them."""

    lesions: list[Lesion]
    heat_map_run: str | None  # the run whose heat maps are shown; None: no run has any
    notes: list[str]  # an age that may mean "unknown", and the measured cost of unknown columns


class Ensemble:
    """A bundle loaded into memory, for repeated calls of `read_patient`."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        net_cache_bytes: int = NET_CACHE_BYTES,
        on_unreadable: Literal["refuse", "table"] = "refuse",
    ) -> None:
        self.bundle = bundle
        self.fallback = read_bundled_fallback(bundle) if on_unreadable == "table" else None
        self.device = device
        self.fitted = read_fitted(bundle)
        self.novelty = read_novelty(bundle)
        self.store = net_cache(bundle, net_cache_bytes)
        self.lock = threading.Lock()  # one patient at a time, as each uses the number of threads that the bundle names
        words = known_words(bundle)
        self.choices = {name: words[name] for name in WORDS}
        self.questions = questions_of(bundle, words)
        self.takes_age = takes_age(bundle)  # else the form does not ask for it
        self.ages = read_ranges(bundle).get("age") if self.takes_age else None  # 98 % of the training images lie here

    @property
    def asked_for_units(self) -> tuple[str, ...]:
        """The csv's columns that name the unit of an image within its patient; empty where none must be asked for."""
        return tuple(csv for csv in self.bundle.unit_columns if csv != self.group)

    @property
    def group(self) -> str | None:
        """Name of the training csv's group column (patients or lesions); None without one."""
        return self.bundle.columns.get("group")


def read_patient(
    ensemble: Ensemble,
    photos: Sequence[Photo],
    *,
    age: float | None = None,
    sex: str | None = None,
    together: bool = True,
    values: Mapping[str, str] | None = None,
) -> Reading:
    """Returns score, calibrated risk, heat map and comparison with the others for each image, in the order of
    ``photos``.

    ``values`` has text of columns without a role, by their name in the csv of training, which counts for all images.
    Where the bundle predicts units, images of one unit (`Photo.unit`) share its score, risk, novelty and decision; a
    bundle that predicts groups has one unit, or without ``together`` one for each image.

    The scores equal those of `dermstack predict` for the same rows. If ``together``, the images form one group (a
    patient, if the groups of training were patients), else each image is its own group. Files are in a temporary
    folder until the call ends. Raises DataError naming every file that is not an image, unless the ensemble predicts
    these from the table alone, values that do not occur in training, and images whose unit is not given.
    """
    if not ensemble.bundle.takes_images:
        raise DataError(f"{ensemble.bundle.place} has no image model: predict one row of the table with `read_row`")
    if ensemble.bundle.imported_runs:
        raise DataError(imported_with_images(ensemble.bundle))
    if not photos:
        raise DataError("no image was given: choose at least one")
    given = _given(values)
    frame = _frame(ensemble, photos, age, sex, together, given)
    with ensemble.lock, TemporaryDirectory(prefix="dermstack-app-") as temporary:
        sources = [
            _source(Path(temporary), row, photo, int(ensemble.bundle.manifest.get("bits_stored", 0)))
            for row, photo in enumerate(photos)
        ]
        decoded = _decode_photos(photos, sources, refuse=ensemble.fallback is None)
        rows = list(decoded)
        seen, pictures = frame.iloc[rows].reset_index(drop=True), list(decoded.values())
        caches = _caches(ensemble.bundle, Path(temporary), seen, [sources[row] for row in rows]) if rows else {}
        level1: list[Level1] = []
        made = score_pictures(
            ensemble.bundle, ensemble.fitted, ensemble.novelty, caches, seen, store=ensemble.store,
            device=ensemble.device, on_level1=level1.append,
        )  # fmt: skip
        heat_map_run, heats = _heat_overlays(ensemble, caches, seen, pictures) if rows else (None, [])
    per_image = ensemble.bundle.predict_per is None
    if not per_image:  # the numbers of its unit for each image
        made = made.set_index("id").loc[frame[UNIT]].reset_index(drop=True).assign(id=frame["id"])
    risk = made["p_calibrated"].to_numpy(np.float64)
    of_seen = standings(risk, ensemble.fitted.embeddings(level1[0]), own_risk=per_image) if rows else []
    unknown = _unknown_columns(ensemble, frame, given, together)
    notes = [_unit_note(ensemble.bundle, frame)] if not per_image else []
    notes += _unknown_notes(ensemble, frame, unknown)
    if ensemble.fallback is not None:
        made = with_unreadable(made, frame, ensemble.fallback, ensemble.fitted)
        notes = [*_fallback_notes(ensemble.bundle, photos, made["basis"]), *notes]
    made = decided(ensemble.bundle, made, frame, unknown)
    unseen = Standing(len(rows), None, None, None, None, NOT_SEEN)
    place = {row: number for number, row in enumerate(rows)}
    lesions = [
        Lesion(
            photo.name, photo.site, float(made["score"].iloc[row]), float(made["p_calibrated"].iloc[row]),
            float(made["novelty"].iloc[row]) if "novelty" in made and row in place else None,
            bool(made["far"].iloc[row]) if "far" in made else False,
            encode_jpeg(decoded[row]) if row in place else None,
            heats[place[row]] if row in place else None,
            of_seen[place[row]] if row in place else unseen,
            decision=str(made["decision"].iloc[row]) if "decision" in made else None,
            basis=str(made["basis"].iloc[row]) if "basis" in made else "images",
            unit=None if per_image else str(frame[UNIT].iloc[row]),
        )
        for row, photo in enumerate(photos)
    ]  # fmt: skip
    return Reading(lesions, heat_map_run, [*notes, *_value_notes(ensemble, frame, age, given)])


def read_row(
    ensemble: Ensemble,
    *,
    age: float | None = None,
    sex: str | None = None,
    site: str | None = None,
    values: Mapping[str, str] | None = None,
    predictions: Mapping[str, float | None] | None = None,
) -> Reading:
    """Returns score and calibrated risk of one row of the table, with a bundle that has no image model.

    ``predictions`` has the probability of each imported run; that of one fold net or their mean, it counts for all. The
    row is a group of its own: features relative to the other rows of a patient take it as the only one. The score
    equals that of `dermstack predict` for a csv with this row. Raises DataError for a bundle with an image model, for
    values that do not occur in training, and for an imported run without a probability.
    """
    if ensemble.bundle.takes_images:
        raise DataError(f"{ensemble.bundle.place} predicts images: give them to `read_patient`")
    given = _given(values)
    row = Photo("this row", b"", site, "this row")
    frame = _frame(ensemble, [row], age, sex, True, given)
    frame = pd.concat([frame, one_prediction(ensemble.bundle, predictions or {})], axis=1)
    with ensemble.lock:
        made = score_pictures(ensemble.bundle, ensemble.fitted, None, {}, frame)
    unknown = _unknown_columns(ensemble, frame, given, True)
    made = decided(ensemble.bundle, made, frame, unknown)
    lesion = Lesion(
        row.name, site, float(made["score"].iloc[0]), float(made["p_calibrated"].iloc[0]), None, False, None, None,
        Standing(0, None, None, None, None, f"The risk is predicted from {inputs_text(ensemble.bundle)}."),
        decision=str(made["decision"].iloc[0]) if "decision" in made else None, basis="table",
    )  # fmt: skip
    notes = _unknown_notes(ensemble, frame, unknown)
    notes += prediction_notes(ensemble.bundle, predictions or {})
    return Reading([lesion], None, [*notes, *_value_notes(ensemble, frame, age, given)])


def _given(values: Mapping[str, str] | None) -> dict[str, str]:
    """Returns the values that are not empty, without spaces around them."""
    return {csv: text.strip() for csv, text in (values or {}).items() if text.strip()}


def _unknown_notes(ensemble: Ensemble, frame: pd.DataFrame, unknown: Sequence[str]) -> list[str]:
    """Returns notes on what ``unknown`` columns cost, and on decisions that they prevent."""
    lacking, _ = lacking_columns(ensemble.bundle, frame, unknown)
    return [*cost_notes(ensemble.bundle, unknown), *review_notes(ensemble.bundle, lacking)]


def _value_notes(ensemble: Ensemble, frame: pd.DataFrame, age: float | None, given: Mapping[str, str]) -> list[str]:
    """Returns notes on an age that may mean "unknown", and on numbers far from those of training."""
    codes = [code.value for code in missing_codes(frame, few_rows=True) if code.is_number]
    notes = [f"age {code} is often written for 'unknown': if it is here, leave the age empty" for code in codes]
    if age is not None and not codes and ensemble.ages and not ensemble.ages[0] <= age <= ensemble.ages[1]:
        low, high = ensemble.ages
        notes.append(
            f"the age {age:g} lies outside {low:.3g} to {high:.3g}, where 98 % of the ages of training lie: check it; "
            "if it is right, the ensemble has hardly seen such patients"
        )
    return [*notes, *range_notes(ensemble.questions, given)]


def _fallback_notes(bundle: Bundle, photos: Sequence[Photo], basis: pd.Series) -> list[str]:
    """Returns the note that names the files that are predicted without their image."""
    names = {
        what: [p.name for p, made_from in zip(photos, basis, strict=True) if made_from == what] for what in set(basis)
    }
    said = {"table": "from the table alone", "prevalence": "as the prevalence of training, as nothing else is known"}
    parts = [f"{', '.join(names[what])} {text}" for what, text in said.items() if what in names]
    if not parts:
        return []
    quality = bundle.json(f"{FOLDER}/{STATE_FILE}")["performance"]
    return [
        f"some images cannot be read; as declared at the start, these are predicted: {'; '.join(parts)}. The training "
        f"estimate does not apply to them; their fallback is {quality}"
    ]


def _frame(
    ensemble: Ensemble,
    photos: Sequence[Photo],
    age: float | None,
    sex: str | None,
    together: bool,
    given: Mapping[str, str],
) -> pd.DataFrame:
    if age is not None and not 0 <= age <= MAX_AGE:
        raise DataError(f"age {age:g} is out of range: give years from 0 to {MAX_AGE}, or leave it empty")
    for name, value in [("sex", sex), *(("site", photo.site) for photo in photos)]:
        if value is not None and value not in ensemble.choices[name]:
            known = ", ".join(ensemble.choices[name]) or "none"
            raise DataError(f"{name} {value!r} does not occur in training: choose one of {known}, or leave it empty")
    ids = pd.Series([str(row) for row in range(len(photos))], dtype="str")
    rows = pd.DataFrame({
        "id": ids,
        "group": pd.Series(["patient"] * len(photos), dtype="str") if together else ids,
        "age": np.full(len(photos), np.nan if age is None else age, np.float32),
        "sex": pd.Series([sex] * len(photos), dtype="str"),
        "site": pd.Series([photo.site for photo in photos], dtype="str"),
    })  # fmt: skip
    frame = pd.concat([rows, answered(ensemble.bundle, ensemble.questions, rows, given)], axis=1)
    return frame if ensemble.bundle.predict_per is None else frame.assign(**{UNIT: _units(ensemble, photos, together)})


def _units(ensemble: Ensemble, photos: Sequence[Photo], together: bool) -> pd.Series:
    """Returns the unit of each image, as text to show. Raises DataError naming the images whose unit is not given."""
    texts = [(photo.unit or "").strip() for photo in photos]
    if asked := ensemble.asked_for_units:
        if lacking := [photo.name for photo, text in zip(photos, texts, strict=True) if not text]:
            raise DataError(
                f"{', '.join(lacking)}: no {' and '.join(asked)} is given: there is one prediction for "
                f"{ensemble.bundle.per_text}, so name it for each image, such as L and R"
            )
    elif together:
        texts = ["all images"] * len(photos)
    if not together:  # each image is a patient of its own
        texts = [f"{photo.name} {text}".strip() for photo, text in zip(photos, texts, strict=True)]
        if len(set(texts)) < len(texts):
            texts = [f"{text} ({row})" for row, text in enumerate(texts, 1)]
    return pd.Series(texts, dtype="str")


def _unit_note(bundle: Bundle, frame: pd.DataFrame) -> str:
    """Returns what the numbers of an image are, where predictions are for units."""
    count = frame[UNIT].nunique()
    return (
        f"there is one prediction for {bundle.per_text}, called a unit: {len(frame)} images show {count} of them. "
        "Images of one unit share its risk, score and decision, and the mark of the most unusual of them; heat map and "
        "distance are those of each image"
    )


def _source(folder: Path, row: int, photo: Photo, bits_stored: int) -> Source:
    """Writes an image to a file named by its row number, since the name that a browser sends may be any text."""
    path = folder / str(row)
    path.write_bytes(photo.data)
    is_dicom = Path(photo.name).suffix.lower() in DICOM_SUFFIXES
    kind: Literal["dicom", "file"] = "dicom" if is_dicom else "file"
    return Source(path, kind, n_bytes=len(photo.data), stamp=path.stat().st_mtime_ns, bits_stored=bits_stored)


def _decode_photos(photos: Sequence[Photo], sources: Sequence[Source], *, refuse: bool) -> dict[int, NDArray[np.uint8]]:
    """Returns the images in the size of the page, by the number of their photo.

    Raises DataError with a line for every file that is not an image; without ``refuse`` these are left out.
    """
    pictures, faults = {}, []
    for row, (photo, source) in enumerate(zip(photos, sources, strict=True)):
        try:
            pictures[row] = page_sized(source.read(min_side=1 << 9).image)
        except ImageError as error:
            reason = str(error).removeprefix(f"{source.name}: ").rpartition(": ")[0]
            faults.append(f"{photo.name}: {reason}: {_ADVICE}")
    if faults and refuse:
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
    """Returns the name of the run with heat maps and each image under its own; None where there is none."""
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


def _unknown_columns(ensemble: Ensemble, frame: pd.DataFrame, given: Mapping[str, str], together: bool) -> list[str]:
    """Returns the columns that are not known for any image."""
    unknown = [name for name in ("age", "sex", "site") if frame[name].isna().all()]
    further = [question.name for question in ensemble.questions if question.csv not in given]
    return [*unknown, *([] if together else ["group"]), *further]

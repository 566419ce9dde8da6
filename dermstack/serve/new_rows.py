"""Reads the rows that a bundle predicts: a csv and its images, or every image of a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from dermstack.errors import ConfigError, DataError
from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import cost_notes, unknown_columns
from dermstack.serve.imported_runs import checked_predictions, read_imported
from dermstack.serve.questions import rows_out_of_range
from dermstack.serve.words import known_words, unknown_words
from image_models.io.folders import printable
from image_models.io.readers import PLAIN_NAMES, FileNames, Source, image_ids, image_sources, unused_files
from stack.console import Out
from stack.tables.columns import empty_values
from stack.tables.keys import words_as_in
from stack.tables.missing_codes import missing_codes, new_code_warnings
from stack.tables.table import read_new_frame

PREDICT_NAMES = FileNames(options=("--similar-names", "--follow-links"))
_MAX_LISTED = 5  # files listed for each reason why they get no prediction


@dataclass(frozen=True)
class NewRows:
    """Rows to predict and their images; ``frame`` has id, group, age, sex, site and, for units, `UNIT`."""

    frame: pd.DataFrame
    sources: list[Source]  # one for each row; none where the bundle reads no images
    missing: tuple[str, ...]  # columns that are not known: no values then; without group, each image is its own
    notes: tuple[str, ...] = ()  # what is odd about cells of their csv and, where they have them, about their labels


def image_files(rows: NewRows) -> list[Path]:
    """Returns the files that hold the images of ``rows``, each once."""
    return list(dict.fromkeys(source.path for source in rows.sources))


def read_new_rows(
    bundle: Bundle,
    images: Path | None,
    metadata: Path | None,
    *,
    id_column: str | None = None,
    files: FileNames = PLAIN_NAMES,
    swap_red_blue: bool = False,
    predictions: Mapping[str, Path | Sequence[Path]] | None = None,
) -> NewRows:
    """Reads the rows of the csv ``metadata`` with their images or, without a csv, a row for every image in ``images``.

    A bundle without an image model needs the csv, and no images; one that predicts units needs the csv, which names
    them. ``id_column`` is the csv's name of the id column if it differs from training. With ``swap_red_blue`` the
    images were encoded with red and blue exchanged, which is undone. ``predictions`` names the files of each imported
    run, which a bundle with such runs needs. Raises ConfigError where images, csv or predictions are missing or not
    needed, DataError, ImageError.
    """
    _check_given(bundle, images, metadata)
    given = checked_predictions(bundle, predictions or {})
    columns = {name: csv for name, csv in bundle.columns.items() if name != "target"}
    notes: list[str] = []
    if id_column:
        columns["id"] = id_column
    if metadata is not None:
        per = () if bundle.predict_per is None else bundle.predict_per.columns
        frame, missing = read_new_frame(metadata, columns, bundle.column_rules, bundle.table_columns, per, notes)
        frame = frame.assign(**{name: words_as_in(frame[name], known) for name, known in known_words(bundle).items()})
    elif bundle.unit_columns:
        raise DataError(
            f"{bundle.place} gives one prediction for {bundle.per_text}: name a csv that has "
            f"{'this column' if len(bundle.unit_columns) == 1 else 'these columns'} for each image with --metadata"
        )
    else:
        assert images is not None, "checked above"
        ids = pd.Series(image_ids(images, files=files), dtype="str")
        frame = pd.DataFrame({"id": ids, "group": ids, "age": np.full(len(ids), np.nan, np.float32)})
        frame = frame.assign(**{name: pd.Series(np.nan, index=frame.index, dtype="str") for name in ("sex", "site")})
        frame = pd.concat([frame, empty_values(bundle.table_columns, len(frame))], axis=1)
        missing = [name for name in columns if name != "id"] + list(bundle.table_inputs)
    imported, odd = read_imported(bundle, given, frame["id"])
    frame = pd.concat([frame, imported], axis=1)
    notes += odd
    sources: list[Source] = []
    if images is not None:
        bits_stored = int(bundle.manifest.get("bits_stored", 0))
        found = image_sources(images, frame["id"].tolist(), files=files, swap_red_blue=swap_red_blue)
        sources = [replace(source, bits_stored=bits_stored) for source in found]
    return NewRows(frame, sources, tuple(missing), tuple(notes))


def _check_given(bundle: Bundle, images: Path | None, metadata: Path | None) -> None:
    """Raises ConfigError where the bundle needs images or a csv that are not given, or is given images in vain."""
    if bundle.takes_images and images is None:
        raise ConfigError(f"--images is missing: {bundle.place} predicts images, so name their folder")
    if not bundle.takes_images and images is not None:
        raise ConfigError(
            f"--images {images}: {bundle.place} has no image model: leave out --images, and name the csv with the rows "
            "to predict with --metadata"
        )
    if not bundle.takes_images and metadata is None:
        raise ConfigError(
            f"--metadata is missing: {bundle.place} has no image model, so name the csv with the rows to predict"
        )


def report_rows(
    bundle: Bundle,
    rows: NewRows,
    images: Path | None,
    csv: Path | None,
    out: Out,
    *,
    files: FileNames = PLAIN_NAMES,
    strict: bool = False,
) -> None:
    """Warns of what is odd about the rows of the folder ``images`` and of ``csv``, before anything is predicted.

    These are files without a prediction, which are refused where ``strict`` is set (DataError), exchanged colours, and
    numbers that look like a code for "unknown".
    """
    if images is not None:
        _report_unused(rows, images, out, files=files, strict=strict)
        _report_colours(bundle, rows, out)
    _report_codes(bundle, rows, csv, out)


def _report_unused(rows: NewRows, images: Path, out: Out, *, files: FileNames, strict: bool) -> None:
    """Warns of the files in the folder ``images`` that get no prediction, by reason.

    Raises DataError with the same words where ``strict`` is set.
    """
    unused = unused_files(images, rows.frame["id"].tolist(), files=files)
    lines = []
    for reason in dict.fromkeys(skipped.reason for skipped in unused):
        paths = [printable(skipped.path) for skipped in unused if skipped.reason == reason]
        more = f", … {len(paths):,} in all" if len(paths) > _MAX_LISTED else ""
        advice = f" ({files.options[1]} enters it)" if reason == "linked folder" else ""
        lines.append(f"no prediction, {reason}{advice}: {', '.join(paths[:_MAX_LISTED])}{more}")
    if lines and strict:
        raise DataError("--strict: " + "\n".join(lines) + "\nmove these away, or run without --strict")
    for line in lines:
        out.warn(line)


def _report_colours(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """Warns where red and blue of the training images were exchanged, which was undone, and these are as they are."""
    if bundle.manifest.get("swap_red_blue") and not any(source.swap_red_blue for source in rows.sources):
        out.warn(
            "red and blue of the training images were exchanged, which was undone (data.swap_red_blue); these images "
            "are used as they are: if they were encoded in the same way, add --swap-red-blue"
        )


def _report_codes(bundle: Bundle, rows: NewRows, path: Path | None, out: Out) -> None:
    """Warns of numbers in the csv ``path`` that look like a code for "unknown"; `unknown_words` names new words."""
    found = missing_codes(rows.frame, few_rows=True, columns=bundle.table_columns)
    codes = [code for code in found if code.is_number and (code.is_further or code.column in bundle.columns)]
    for warning in new_code_warnings(str(path), codes):
        out.warn(warning)


def table_notes(bundle: Bundle, rows: NewRows) -> list[str]:
    """Returns sentences on what the models do not know of the rows, apart from their images.

    These are columns that are known for no row, with their measured cost; words that training does not have;
    numbers most of which lie outside those of training, as in another unit; infinite numbers; and labels that look like
    a positive word.
    """
    unknown = unknown_columns(bundle, rows.frame, rows.missing)
    outside = rows_out_of_range(bundle, rows.frame)
    return [*rows.notes, *cost_notes(bundle, unknown), *unknown_words(bundle, rows.frame), *outside]


def tolerant(rows: NewRows, on_unreadable: str) -> NewRows:
    """Returns the rows; with "tolerate", JPEGs with stray bytes after their last pixel are read."""
    tolerate = on_unreadable == "tolerate"
    return replace(rows, sources=[replace(source, tolerate=tolerate) for source in rows.sources])

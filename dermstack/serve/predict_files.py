"""The files of `dermstack predict`: a csv of predictions, the submission, and what is told about the rows."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dermstack.errors import ConfigError
from dermstack.listing import counted
from dermstack.serve.bundle import Bundle
from dermstack.serve.imported_runs import Given
from dermstack.serve.local_map import local_note
from dermstack.serve.new_rows import (
    PREDICT_NAMES,
    NewRows,
    image_files,
    read_new_rows,
    report_rows,
    table_notes,
    tolerant,
)
from dermstack.serve.predict import PredictOptions, drops_unreadable, predict_with_dropped
from dermstack.serve.review import say_decisions
from dermstack.serve.units import rows_to_predict
from image_models.io.readers import FileNames
from stack.console import Out
from stack.fallback import FOLDER, STATE_FILE
from stack.outputs import check_output, check_output_folder, is_stream, output_file
from stack.submission_csv import submission, submission_text
from stack.tables.units import UNIT

_MAX_LISTED = 5  # ids in a message


@dataclass(frozen=True)
class OutputFiles:
    """Output paths: ``csv``, optionally ``submission`` in the order of ``sample``, and ``work`` for the parts."""

    csv: Path
    submission: Path | None = None
    sample: Path | None = None
    work: Path | None = None


def predict_to_files(
    bundle: Bundle,
    images: Path | None,
    metadata: Path | None,
    out: Out,
    outputs: OutputFiles,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    on_unreadable: str = "refuse",
    files: FileNames = PREDICT_NAMES,
    swap_red_blue: bool = False,
    strict: bool = False,
    predictions: Given | None = None,
) -> pd.DataFrame:
    """Predicts every row, writes the files and returns the content of the csv. Raises the errors of `predict_rows`.

    ``predictions`` as for `read_new_rows`. Files in ``images`` without a prediction are named in warnings; with
    ``strict`` they are a DataError.
    """
    drops_unreadable(on_unreadable)  # refuses other words before any work
    if outputs.sample and not outputs.submission:
        raise ConfigError(f"--sample {outputs.sample} needs --submission: name the submission to write")
    inputs = [images if images and images.is_file() else None, metadata, outputs.sample, bundle.opened_zip]
    inputs += [path for paths in (predictions or {}).values() for path in paths]
    check_output(outputs.csv, "--out", inputs=inputs, closed=[bundle.folder])
    if outputs.submission:
        check_output(outputs.submission, "--submission", inputs=(*inputs, outputs.csv), closed=[bundle.folder])
        if outputs.submission.absolute() == outputs.csv.absolute():
            raise ConfigError(f"--out and --submission are both {outputs.csv}: name two files")
    if outputs.work:
        check_output_folder(outputs.work, "--work", closed=[bundle.folder])
    rows = read_new_rows(bundle, images, metadata, files=files, swap_red_blue=swap_red_blue, predictions=predictions)
    check_output(outputs.csv, "--out", inputs=image_files(rows))
    if outputs.submission:
        check_output(outputs.submission, "--submission", inputs=image_files(rows))
    rows = tolerant(rows, on_unreadable)
    report_rows(bundle, rows, images, metadata, out, files=files, strict=strict)
    _introduce(bundle, rows, out)
    if outputs.submission and on_unreadable != "drop":  # a sample of other ids is told before images are predicted
        _submission(bundle, rows, rows_to_predict(rows)["id"], None, outputs.sample)
    streamed = is_stream(outputs.csv)
    beside = Path(tempfile.mkdtemp(prefix="dermstack-predict-")) if streamed else outputs.csv.parent
    work = outputs.work or beside / f"{outputs.csv.name}.parts"
    options = PredictOptions(device, n_jobs, on_unreadable=on_unreadable)
    made, dropped = predict_with_dropped(bundle, rows, work, out, options)
    warn_of_fallback(bundle, made, out)
    say_decisions(bundle, made, rows.frame, rows.missing, out)
    write_csv(made, outputs.csv)
    if dropped:
        listed = outputs.csv.with_name(f"{outputs.csv.stem}.dropped.csv")
        if not streamed:
            write_csv(pd.DataFrame({"id": dropped}), listed)
        gone = "have no row" if bundle.predict_per is None else "are left out; the others of their unit are pooled"
        out.warn(f"{len(dropped):,} unreadable images {gone}" + ("" if streamed else f", see {listed}"))
    if outputs.submission:
        frame = _submission(bundle, rows, made["id"], made["score"], outputs.sample)
        with output_file(outputs.submission) as temporary:
            temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")
        out.say(f"submission: {outputs.submission}")
    shutil.rmtree(work)
    if streamed:
        shutil.rmtree(beside)
    if "far" in made and made["far"].any():
        what = "images lie" if bundle.predict_per is None else "units have an image that lies"
        out.warn(
            f"{int(made['far'].sum()):,} of {len(made):,} {what} further out than 99 % of the training images "
            "(column far): check them before you trust their score"
        )
    each = "" if bundle.predict_per is None else f", one for {bundle.per_text}"
    out.say(f"predictions: {outputs.csv}, {len(made):,} rows{each}")
    return made


def _submission(
    bundle: Bundle, rows: NewRows, ids: pd.Series, score: pd.Series | None, sample: Path | None
) -> pd.DataFrame:
    """Returns the submission of these rows, in the order of the sample; without scores, checks its ids alone."""
    return submission(
        ids, np.zeros(len(ids)) if score is None else score, id_column=bundle.id_column,
        target_column=bundle.columns["target"], sample=sample, of="the rows to predict (--metadata) and --sample",
        images=None if bundle.predict_per is None else rows.frame["id"],
    )  # fmt: skip


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """Writes rows without their index, with the same line ends on every platform."""
    with output_file(path) as temporary:
        temporary.write_text(rows.to_csv(index=False, lineterminator="\n"), encoding="utf-8", newline="\n")


def warn_of_fallback(bundle: Bundle, made: pd.DataFrame, out: Out) -> None:
    """Names the rows that are predicted without their image, and how good such predictions are."""
    if "basis" not in made or (made["basis"] == "images").all():
        return
    quality = bundle.json(f"{FOLDER}/{STATE_FILE}")["performance"]
    for basis, what in (("table", "from the table alone"), ("prevalence", "as the prevalence: no value in the table")):
        ids = made.loc[made["basis"] == basis, "id"]
        if len(ids):
            more = f", … {len(ids):,} in all" if len(ids) > _MAX_LISTED else ""
            out.warn(
                f"{counted(len(ids), 'images')} cannot be read, predicted {what}: {', '.join(ids[:_MAX_LISTED])}{more}"
            )
    out.warn(f"the training estimate does not apply to these rows; their fallback is {quality} (column basis)")


def _introduce(bundle: Bundle, rows: NewRows, out: Out) -> None:
    """Prints the training estimate of the bundle and the cost of missing columns."""
    manifest, headline = bundle.manifest, bundle.manifest["headline"]
    trained_on, units, what = "rows", "", "images" if bundle.takes_images else "rows"
    if bundle.predict_per is not None:
        trained_on, units = "units", f", one prediction for {bundle.per_text}: {rows.frame[UNIT].nunique():,} units"
    out.say(
        f"{manifest['experiment']}: {bundle.objective} {headline['value']:.4f} [{headline['low']:.4f}, "
        f"{headline['high']:.4f}] {bundle.estimate} on {manifest['training']['rows']:,} training {trained_on}; "
        f"{len(rows.frame):,} {what} of {rows.frame['group'].nunique():,} groups to predict{units}"
    )
    about = filter(None, (bundle.selection_note, local_note(bundle)))
    for note in [*about, *table_notes(bundle, rows)]:
        out.warn(note)

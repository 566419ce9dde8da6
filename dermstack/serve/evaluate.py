"""External validation (`dermstack evaluate`): predicts labelled images and compares with the training estimate."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.errors import ConfigError, DataError
from dermstack.listing import counted
from dermstack.report.evaluation import evaluation_html
from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import lacking_columns, read_promise
from dermstack.serve.imported_runs import Given
from dermstack.serve.local_map import is_fitted_on, local_noise, local_note
from dermstack.serve.new_rows import NewRows, read_new_rows, table_notes
from dermstack.serve.predict import PredictOptions, predict_rows, predict_with_dropped
from dermstack.serve.predict_files import warn_of_fallback, write_csv
from dermstack.serve.review import check_review
from dermstack.serve.units import rows_to_predict, targets_to_predict, units_note
from image_models.io.readers import PLAIN_NAMES, FileNames
from stack.console import Out
from stack.metrics.measures import Purpose, check_classes, jsonable
from stack.metrics.subgroups import columns_to_cut, with_skin_tone
from stack.metrics.validation import InternalValidation, Validation, validate
from stack.outputs import check_output, check_output_folder, output_file
from stack.store import fingerprint, frame_fingerprint
from stack.tables.cells import as_text, read_cells
from stack.tables.columns import TableColumns
from stack.tables.keys import keys_as_in
from stack.tables.table import read_external_frame

_MAX_LISTED = 5  # ids in a message
_FILES = "evaluation.json", "evaluation.html", "predictions.csv", "dropped.csv"


def read_labelled_rows(
    bundle: Bundle,
    images: Path | None,
    labels: Path,
    metadata: Path | None = None,
    *,
    id_column: str | None = None,
    target_column: str | None = None,
    files: FileNames = PLAIN_NAMES,
    swap_red_blue: bool = False,
    purpose: Purpose = "evaluation",
    predictions: Given | None = None,
) -> tuple[NewRows, pd.Series]:
    """Reads the rows of ``labels`` with their images, and their targets (0 or 1) by id.

    Group, age, sex and site come from ``metadata`` if it is given, else from ``labels``, and are named as in training;
    ``id_column`` (in both files) and ``target_column`` are other names for id and target. ``images`` may hold further
    images without labels, and is None for a bundle without an image model; ``swap_red_blue`` and ``predictions`` as for
    `read_new_rows`; errors say what ``purpose`` needs. Raises the errors of `read_new_rows`; DataError for duplicate
    ids, ids that are not in both files, targets other than 0 and 1, and a class that occurs in fewer than two groups;
    ImageError for labels without an image.
    """
    for path in filter(None, (labels, metadata)):
        if not path.is_file():
            raise DataError(f"{path}: no such file: check the paths of the labels csv and the metadata csv")
    csv_names = {"id": id_column or bundle.columns["id"], "target": target_column or bundle.columns["target"]}
    header = list(read_cells(labels).columns)
    for name, csv in csv_names.items():
        if csv not in header:
            raise DataError(
                f"{labels}: no column {csv!r}, it has {', '.join(map(repr, header))}: name the column of the "
                f"{name} with --{name}-column"
            )
    notes: list[str] = []
    targets = read_external_frame(labels, csv_names, bundle.column_rules, notes=notes).set_index("id")["target"]
    rows = read_new_rows(
        bundle, images, metadata or labels, id_column=csv_names["id"], files=files, swap_red_blue=swap_red_blue,
        predictions=predictions,
    )  # fmt: skip
    if metadata:
        targets = _with_ids_of(rows, targets, str(labels), str(metadata))
        _check_same_ids(targets.index, pd.Index(rows.frame["id"]), labels, metadata)
    rows_and_targets(bundle, rows, targets, purpose)  # raises the errors of labels that cannot be used
    return replace(rows, notes=(*notes, *rows.notes)), targets


def rows_and_targets(
    bundle: Bundle, rows: NewRows, labels: pd.Series, purpose: Purpose = "evaluation"
) -> tuple[pd.DataFrame, NDArray[np.int_]]:
    """Returns one row for each prediction (an image, or a unit) and their targets, from the labels of images by id.

    Raises DataError for labels that don't match the rows, and for a class that occurs in fewer than two groups.
    """
    frame, y = rows_to_predict(rows), targets_to_predict(bundle, rows, targets_of(rows, labels))
    check_classes(y, frame["group"], purpose=purpose)
    return frame, y


def targets_of(rows: NewRows, labels: pd.Series) -> pd.Series:
    """Returns the targets of ``rows`` in their order, joined by id.

    Raises DataError for ids without a label or with several, and for targets other than 0 and 1.
    """
    labels = _with_ids_of(rows, labels, "labels", "the rows")
    if labels.index.has_duplicates:
        raise DataError(
            f"labels: {_listed_ids(labels.index[labels.index.duplicated()].unique())} occur more than once: keep one"
        )
    _check_same_ids(labels.index, pd.Index(rows.frame["id"]), "labels", "the rows")
    y = labels.loc[rows.frame["id"]]
    if len(odd := y[~y.isin([0, 1])]):
        raise DataError(
            f"labels: target {odd.iloc[0]!r} of {odd.index[0]} is not 0 or 1, {len(odd)} in all: correct them"
        )
    return y.astype(int)


def _with_ids_of(rows: NewRows, labels: pd.Series, name: str, of: str) -> pd.Series:
    """Returns ``labels`` with the ids of its index in the spelling that the rows have."""
    ids = keys_as_in(as_text(pd.Series(labels.index)), rows.frame["id"], f"{name}: id", of=of)
    return labels.set_axis(pd.Index(ids, name="id"))


def _check_same_ids(labelled: pd.Index, described: pd.Index, labels: Path | str, metadata: Path | str) -> None:
    faults = [
        f"{there} has no row for {_listed_ids(missing)} of {here}"
        for missing, here, there in (
            (labelled.difference(described, sort=False), labels, metadata),
            (described.difference(labelled, sort=False), metadata, labels),
        )
        if len(missing)
    ]
    if faults:
        raise DataError(f"{'; '.join(faults)}: give both the same ids, each once")


def _listed_ids(ids: pd.Index) -> str:
    more = f", … {len(ids):,} in all" if len(ids) > _MAX_LISTED else ""
    return ", ".join(map(repr, ids[:_MAX_LISTED])) + more


def evaluate(bundle: Bundle, rows: NewRows, labels: pd.Series, *, device: str = "auto", n_jobs: int = 1) -> Validation:
    """Predicts ``rows`` and evaluates the predictions against ``labels``, 0 or 1 by id. Leaves no files.

    Raises BundleError for a bundle without a training estimate, DataError for labels that don't match the rows,
    ImageError for unreadable images.
    """
    promise = read_promise(bundle)
    frame, y = rows_and_targets(bundle, rows, labels)
    with TemporaryDirectory(prefix="dermstack-evaluate-") as work:
        made = predict_rows(bundle, rows, Path(work), Out(quiet=True), device=device, n_jobs=n_jobs)
    return _validated(bundle, promise, rows, made, y, frame, notes=_notes(bundle, rows, labels))


def evaluate_to_files(
    bundle: Bundle,
    rows: NewRows,
    labels: pd.Series,
    folder: Path,
    out: Out,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    on_unreadable: str = "refuse",
    inputs: Sequence[Path | None] = (),
    replace_earlier: bool = False,
) -> Validation:
    """Runs `evaluate` and writes evaluation.json, evaluation.html and predictions.csv to ``folder``.

    An interrupted call resumes there, and the same evaluation may be made again. Raises ConfigError where the folder
    has files of another one, unless it is to ``replace_earlier`` ones.

    With ``on_unreadable`` "drop", unreadable images are left out, counted and listed in dropped.csv; with "table" they
    are predicted from the table alone, evaluated like the others and counted in a note. ``inputs`` are files that have
    been read, none of which is replaced.
    """
    check_output_folder(folder, "--out", closed=[bundle.folder])
    for name in _FILES:
        check_output(folder / name, "--out", inputs=inputs)
    made_from = _fingerprint_of(bundle, rows, labels, on_unreadable)
    work = folder / "parts"
    if not replace_earlier:
        _check_not_another(folder, work, bundle, made_from)
    promise = read_promise(bundle)
    frame, y = rows_and_targets(bundle, rows, labels)
    notes = _notes(bundle, rows, labels)
    for note in notes:  # before the images are predicted, which may take minutes: a label may have to be corrected
        out.warn(note)
    options = PredictOptions(device, n_jobs, on_unreadable=on_unreadable)
    made, dropped = predict_with_dropped(bundle, rows, work, out, options)
    warn_of_fallback(bundle, made, out)
    there = frame["id"].isin(made["id"]).to_numpy()
    y_there, frame = y[there], frame[there].reset_index(drop=True)
    found = _validated(
        bundle, promise, rows, made, y_there, frame, notes=notes + _fallback_note(made), dropped=len(dropped)
    )
    write_csv(made.assign(target=y_there), folder / "predictions.csv")
    if dropped:
        write_csv(pd.DataFrame({"id": dropped}), folder / "dropped.csv")
        out.warn(f"{counted(len(dropped), 'unreadable images', 'are')} left out, see {folder / 'dropped.csv'}")
    else:
        (folder / "dropped.csv").unlink(missing_ok=True)  # of the evaluation that this one replaces
    content = {**jsonable(found), "made_from": made_from}
    if found.review is None:  # as before there were review bands
        del content["review"]
    if found.unit == "image":  # as before there were units
        del content["unit"]
    if found.estimate == "nested":
        del content["estimate"]
    _write(json.dumps(content, indent=1, ensure_ascii=False) + "\n", folder / "evaluation.json")
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = evaluation_html(found, y_there, made["score"].to_numpy(np.float64), created=created)
    _write(page, folder / "evaluation.html")
    shutil.rmtree(work)
    show_validation(replace(found, notes=tuple(note for note in found.notes if note not in notes)), out)
    out.say(f"page: {folder / 'evaluation.html'}; numbers: {folder / 'evaluation.json'}; predictions.csv beside them")
    return found


def _fingerprint_of(bundle: Bundle, rows: NewRows, labels: pd.Series, on_unreadable: str) -> str:
    """Returns a fingerprint of what an evaluation is made from; images count by name, size and time."""
    return fingerprint({
        "bundle": bundle.fingerprint,
        "rows": frame_fingerprint(rows.frame),
        "pictures": [(of.name, of.n_bytes, of.stamp, of.swap_red_blue) for of in rows.sources],
        "labels": targets_of(rows, labels).tolist(),
        "on_unreadable": on_unreadable,
    })  # fmt: skip


def _check_not_another(folder: Path, work: Path, bundle: Bundle, made_from: str) -> None:
    """Raises ConfigError where ``folder`` has files that this evaluation would overwrite, and did not write itself."""
    there = [name for name in _FILES if (folder / name).is_file()]
    if not there:
        return
    try:
        earlier = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        same = earlier.get("made_from") == made_from
        said = f"an evaluation of bundle {earlier['bundle']} already, made from other images, labels or options"
        if earlier["bundle"] != bundle.fingerprint:
            said = f"an evaluation of bundle {earlier['bundle']} already, and this one is of {bundle.fingerprint}"
    except FileNotFoundError:  # or this evaluation was killed before it wrote the last of its files
        same, said = (work / "job.json").is_file(), f"a file {there[0]} already"
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        same, said = False, "a file evaluation.json already, which is none of dermstack's"
    if not same:
        raise ConfigError(f"--out {folder} has {said}: name another folder, or overwrite its files with `--replace`")


def _validated(
    bundle: Bundle,
    promise: InternalValidation,
    rows: NewRows,
    made: pd.DataFrame,
    y: NDArray[np.int_],
    frame: pd.DataFrame,
    *,
    notes: list[str],
    dropped: int = 0,
) -> Validation:
    """Compares predictions ``made`` of ``frame`` (images, or units) with targets ``y`` and the training estimate."""
    images = rows.frame[rows.frame["id"].isin(made["id"])] if bundle.predict_per is None else rows.frame
    lacking, cost = lacking_columns(bundle, images, rows.missing)
    frame, further = cut_columns(bundle.table_columns, promise, frame)
    found = validate(
        promise, made, y, frame, experiment=bundle.manifest["experiment"], bundle=bundle.fingerprint, dropped=dropped,
        notes=notes, lacking=lacking, cost=cost, further=further, noise=local_noise(bundle),
    )  # fmt: skip
    review = check_review(bundle, made, y, frame, lacking=lacking, further=further)
    return replace(found, review=review, unit=bundle.unit, estimate=bundle.estimate)


def show_validation(found: Validation, out: Out) -> None:
    """Prints the main results."""
    here, expected = found.found, found.promise.measures
    out.say(
        f"{found.experiment}: AUC {here.auc} on {here.rows:,} {found.unit}s of {here.groups:,} groups, "
        f"{here.positives:,} positive ({here.prevalence.value:.2%}); expected from training ({found.estimate}): "
        f"{expected.auc}"
    )
    out.say(f"{found.experiment}: {found.summary}")
    number = found.expected_positives
    out.say(
        f"{found.experiment}: {here.positives:,} positives found, {number.value:,.1f} expected from calibrated risks "
        f"(95 % prediction interval {number.low:,.1f} to {number.high:,.1f})"
    )
    if found.risks_are:
        out.warn(
            f"the risks are too {found.risks_are} for these {found.unit}s: do not use a threshold of risk here before "
            "the bundle is recalibrated (`dermstack recalibrate`)"
        )
    compared = [
        [entry.quantity.replace("_", " "), entry.promised, entry.found, entry.difference, entry.noise, entry.verdict]
        for entry in found.comparisons
    ]
    columns = ["quantity", "expected", "found", "difference", "noise", "verdict"]
    out.table(
        pd.DataFrame(compared, columns=columns),
        f"Comparison with the values expected from training ({found.estimate})",
    )
    points = [
        [
            f"{of.promised.aim} {of.promised.level:.0%}", of.promised.threshold,
            str(of.found.sensitivity), of.sensitivity.verdict, str(of.found.specificity), of.specificity.verdict,
        ]
        for of in found.points
    ]  # fmt: skip
    columns = ["fixed in training at", "threshold", "sensitivity", "verdict", "specificity", "verdict "]
    out.table(pd.DataFrame(points, columns=columns), "Sensitivity and specificity at thresholds fixed in training")
    if found.review is not None:
        shares = found.review.found
        out.say(
            f"review band: {shares.review.value:.1%} go to a person, {found.review.expected_review:.1%} in training"
        )
        for sentence in found.review.sentences(found.unit):
            out.say(f"review band: {sentence}")
    for note in found.notes:
        out.warn(note)
    for entry in found.subgroups:
        if entry["apart"]:
            out.warn(
                f"{entry['by']} {entry['subgroup']}: AUC {entry['auc']:.3f}, {entry['difference']:+.3f} compared with "
                f"the other {found.unit}s [{entry['wide_low']:+.3f}, {entry['wide_high']:+.3f}]: beyond noise"
            )


def cut_columns(
    columns: TableColumns, promise: InternalValidation, frame: pd.DataFrame
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Returns new rows with codes of a skin tone as words, and the further ``columns`` of words that have subgroups.

    These are those of the training estimate where it has any. Bundles of before have none there; then the columns are
    chosen by the values of the new rows.
    """
    frame, tones = with_skin_tone(frame, columns.shown_numeric)
    words, promised = {**tones, **columns.shown_categorical}, {entry["by"] for entry in promise.subgroups}
    return frame, {name: shown for name, shown in words.items() if shown in promised} or columns_to_cut(frame, words)


def _notes(bundle: Bundle, rows: NewRows, labels: pd.Series) -> list[str]:
    """Returns the caveats to show with the results."""
    notes = [note] if (note := units_note(bundle, rows)) else []
    row = "image" if bundle.takes_images else "row"  # also where a prediction is for a unit of several
    if "group" in rows.missing:
        notes.append(
            f"The groups of these {row}s are not known, so each {row} counts as its own patient: if patients have "
            f"several {row}s, the intervals are too narrow."
        )
    if local := local_note(bundle):
        notes.append(f"{local[0].upper()}{local[1:]}.")
    if is_fitted_on(bundle, _with_ids_of(rows, labels, "labels", "the rows")):
        notes.append(
            "The bundle was recalibrated with these very labels, so calibration, log loss and expected positives are "
            f"optimistic here: evaluate it on other {row}s."
        )
    notes += [f"{note[0].upper()}{note[1:]}" for note in table_notes(bundle, rows)]
    return notes + ([bundle.selection_note] if bundle.selection_note else [])


def _fallback_note(made: pd.DataFrame) -> list[str]:
    """Returns the caveat about rows that are predicted without their image."""
    if not (number := int((made["basis"] != "images").sum()) if "basis" in made else 0):
        return []
    return [
        f"{number:,} of these images cannot be read and are predicted from the table alone, as declared: the estimate "
        "from training does not cover such rows."
    ]


def _write(text: str, path: Path) -> None:
    with output_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")

"""`dermstack evaluate`: predict images whose targets are known, and hold what comes out against the promise."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from dermstack.report.evaluation import evaluation_html
from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import cost_notes
from dermstack.serve.labelled import targets_of
from dermstack.serve.predict import NewRows, predict_rows
from dermstack.serve.promise import read_promise
from stack.console import Out
from stack.metrics.measures import check_classes, plain
from stack.metrics.validation import Validation, validate
from stack.store import atomic


def evaluate(bundle: Bundle, rows: NewRows, labels: pd.Series, *, device: str = "auto", n_jobs: int = 1) -> Validation:
    """Predict ``rows`` and judge the predictions by ``labels``, 0 or 1 by id. Writes nothing that stays.

    Raises BundleError for a bundle without a promise, DataError for labels that don't fit the rows, ImageError for
    pictures that can't be read.
    """
    promise, y = read_promise(bundle), targets_of(rows, labels)
    check_classes(y, rows.frame["group"])
    with TemporaryDirectory(prefix="dermstack-evaluate-") as work:
        made = predict_rows(bundle, rows, Path(work), Out(quiet=True), device=device, n_jobs=n_jobs)
    return validate(
        promise, made, y.to_numpy(), rows.frame, experiment=bundle.manifest["experiment"], bundle=bundle.fingerprint,
        notes=_notes(bundle, rows),
    )  # fmt: skip


def evaluate_to_files(
    bundle: Bundle,
    rows: NewRows,
    labels: pd.Series,
    folder: Path,
    out: Out,
    *,
    device: str = "auto",
    n_jobs: int = 1,
    drop_unreadable: bool = False,
) -> Validation:
    """`evaluate`, with evaluation.json, evaluation.html and predictions.csv in ``folder``; killed, it goes on there.

    ``drop_unreadable``: images that can't be read are left out, counted and listed in dropped.csv.
    """
    promise, y = read_promise(bundle), targets_of(rows, labels)
    check_classes(y, rows.frame["group"])
    work = folder / "parts"
    made = predict_rows(bundle, rows, work, out, device=device, n_jobs=n_jobs, drop_unreadable=drop_unreadable)
    there = rows.frame["id"].isin(made["id"]).to_numpy()
    y_there, frame = y.to_numpy()[there], rows.frame[there].reset_index(drop=True)
    found = validate(
        promise, made, y_there, frame, experiment=bundle.manifest["experiment"], bundle=bundle.fingerprint,
        dropped=int((~there).sum()), notes=_notes(bundle, rows),
    )  # fmt: skip
    _write_csv(made.assign(target=y_there), folder / "predictions.csv")
    if not there.all():
        _write_csv(rows.frame.loc[~there, ["id"]], folder / "dropped.csv")
        out.warn(f"{int((~there).sum()):,} images can't be read and are left out: {folder / 'dropped.csv'}")
    _write(json.dumps(plain(found), indent=1, ensure_ascii=False) + "\n", folder / "evaluation.json")
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = evaluation_html(found, y_there, made["score"].to_numpy(np.float64), created=created)
    _write(page, folder / "evaluation.html")
    shutil.rmtree(work)
    show_validation(found, out)
    out.say(f"page: {folder / 'evaluation.html'}; numbers: {folder / 'evaluation.json'}; predictions.csv beside them")
    return found


def show_validation(found: Validation, out: Out) -> None:
    """The numbers that count, on the terminal."""
    here, promised = found.found, found.promise.measures
    out.say(
        f"{found.experiment}: AUC {here.auc} on {here.rows:,} images of {here.groups:,} groups, {here.positives:,} "
        f"positive ({here.prevalence.value:.2%}); promised {promised.auc}: {found.verdict}"
    )
    compared = [
        [entry.quantity.replace("_", " "), entry.promised, entry.found, entry.difference, entry.noise, entry.verdict]
        for entry in found.comparisons
    ]
    columns = ["quantity", "promised", "found", "difference", "noise", "verdict"]
    out.table(pd.DataFrame(compared, columns=columns), "Against the promise of training")
    points = [
        [
            f"{of.promised.aim} {of.promised.level:.0%}", of.promised.threshold,
            str(of.found.sensitivity), of.sensitivity.verdict, str(of.found.specificity), of.specificity.verdict,
        ]
        for of in found.points
    ]  # fmt: skip
    columns = ["fixed in training at", "threshold", "sensitivity", "is", "specificity", "is "]
    out.table(pd.DataFrame(points, columns=columns), "At the thresholds that training fixed")
    for note in found.notes:
        out.warn(note)
    for entry in found.subgroups:
        if entry["apart"]:
            out.warn(
                f"{entry['by']} {entry['subgroup']}: AUC {entry['auc']:.3f}, {entry['difference']:+.3f} from the rest "
                f"[{entry['wide_low']:+.3f}, {entry['wide_high']:+.3f}]: beyond noise"
            )


def _notes(bundle: Bundle, rows: NewRows) -> list[str]:
    """What a reader must know to believe the numbers, or not."""
    notes = []
    if "group" in rows.missing:
        notes.append(
            "The groups of these images aren't known, so each counts as a patient of its own: where patients have "
            "several images, the intervals are too narrow."
        )
    notes += [f"{note[0].upper()}{note[1:]}" for note in cost_notes(bundle, rows.missing)]
    return notes + ([bundle.flattered] if bundle.flattered else [])


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    _write(frame.to_csv(index=False, lineterminator="\n"), path)


def _write(text: str, path: Path) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")

"""Blends runs, scores the blend with a nested estimate, and writes predictions, calibrated p and the submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from dermstack.errors import DataError
from stack.blend.blender import Blender
from stack.blend.calibration import calibrate_nested, calibration_record, calibrator_state
from stack.blend.copies import change_without_copies, copies_record, copies_text, near_copies
from stack.blend.fold_average import AverageCalibration, average_scores, calibrate_average
from stack.blend.nested import blend_nested, number_of_fits
from stack.blend.pooling import blend_pooled, number_of_pooled_fits, pool_all, pooling_and_method
from stack.blend.state import blender_state
from stack.blend.stored_fits import remove_fits
from stack.cells import read_cells
from stack.config import Config
from stack.console import Out
from stack.experiment import Experiment
from stack.fallback import list_fallback_rows, with_fallback
from stack.fold_needs import blend_methods, unit_poolings, warn_of_two_folds
from stack.keys import keys_as_in
from stack.level2_inputs import scale_inputs
from stack.metrics.expected_positives import CalibrationNoise, calibration_noise, expected_positives
from stack.metrics.intervals import interval
from stack.metrics.review_band import Band
from stack.metrics.scores import auc_by_fold
from stack.parallel import run_with_threads
from stack.predictions import Predictions, predictions_of
from stack.review import with_decisions, write_review
from stack.store import Run, atomic, fingerprint, read_run, read_verified_run, set_aside, write_frame, write_run
from stack.tuned import check_tuned_blend, tuned_fingerprint, tuned_weights
from stack.unit_rows import unit_rows, units_fingerprint, units_record, units_text
from stack.units import unit_name
from stack.views import blended_runs, check_blended_runs

FITS_FOLDER = "blend_fits"  # fits of a blend that is being made
_MAX_LISTED = 5  # values listed in an error, which also gives their number


def submission(
    ids: Sequence[str] | pd.Series,
    score: ArrayLike,
    *,
    id_column: str,
    target_column: str,
    sample: Path | None = None,
) -> pd.DataFrame:
    """Returns a submission: columns id (str) and score (float64 in [0, 1]), one row for each of `ids` (n,).

    With `sample` (a sample_submission.csv) the rows are joined to it by id and take its order and column names;
    its id column is `id_column`, or its first column where that name is absent. Without it, rows are in the order
    of `ids`. Raises DataError for ids that are missing, extra, duplicated or not strings, and for a score that is
    not a number in [0, 1].
    """
    values = np.asarray(score, dtype=np.float64)
    if values.shape != (len(ids),):
        raise DataError(f"{len(ids)} ids and scores of shape {values.shape}: give one score for each id")
    _check_ids(list(ids), "the predictions")
    names = pd.Series(ids, dtype="str").to_numpy()
    frame = pd.DataFrame({id_column: names, target_column: values})
    if sample is not None:
        frame, id_column = _in_sample_order(frame, _read_sample(sample), sample)
    check_submission(frame, id_column=id_column, sample=sample)
    return frame


def check_submission(frame: pd.DataFrame, *, id_column: str, sample: Path | None = None) -> None:
    """Raises DataError unless `frame` is a valid submission: ids and columns as in `sample`, scores in [0, 1]."""
    if frame.shape[1] != 2 or id_column not in frame:
        raise DataError(
            f"the submission has the columns {list(frame.columns)}: give the column {id_column!r} and one score"
        )
    ids = frame[id_column]
    _check_ids(list(ids), "the submission")
    if sample is not None:
        expected = _read_sample(sample)
        if list(frame.columns) != list(expected.columns):
            raise DataError(
                f"{sample} has the columns {list(expected.columns)}, the submission has {list(frame.columns)}: "
                "rename these"
            )
        _check_same_ids(ids, expected[id_column], sample)
        moved = ids.to_numpy() != expected[id_column].to_numpy()
        if moved.any():
            row = int(np.flatnonzero(moved)[0])
            raise DataError(
                f"{moved.sum()} ids are in other rows than in {sample} (row {row + 2}: {ids.iloc[row]!r} "
                f"instead of {expected[id_column].iloc[row]!r}): join the scores to the sample by id"
            )
    scores = frame[next(name for name in frame if name != id_column)].to_numpy(np.float64)
    bad = np.flatnonzero(~((scores >= 0) & (scores <= 1)))
    if bad.size:
        named = _listed([f"{ids.iloc[row]}: {scores[row]}" for row in bad])
        raise DataError(f"scores are not in [0, 1] ({named}): give one number in [0, 1] for each id")


def submission_text(frame: pd.DataFrame) -> str:
    """Returns the csv of a submission, the same for the same scores on every machine.

    Floats are written as by Python's repr, which pandas uses without a float_format: with the fewest digits that
    read back as the same float64, so that two scores tie in the file only if they are equal. A fixed number of
    digits would make ties in a rank blend; `%.17g` is as exact, but writes 0.1 as 0.10000000000000001.
    """
    return frame.to_csv(index=False, lineterminator="\n")  # by default the line ends depend on the platform


def _in_sample_order(frame: pd.DataFrame, expected: pd.DataFrame, sample: Path) -> tuple[pd.DataFrame, str]:
    """Returns `frame` (id, score) with the sample's order and column names, and the name of its id column."""
    id_column, target_column = map(str, frame.columns)
    id_name = id_column if id_column in expected else str(expected.columns[0])
    target_name = next(str(name) for name in expected if name != id_name)
    # The submission has the sample's spelling of an id: 17 where the sample has 17 and data.test 17.0.
    ids = keys_as_in(frame[id_column], expected[id_name], "the predictions: id", of=str(sample))
    frame = frame.assign(**{id_column: ids})
    _check_same_ids(frame[id_column], expected[id_name], sample)
    scores = frame.set_index(id_column)[target_column].reindex(expected[id_name])
    return expected.assign(**{target_name: scores.to_numpy()}), id_name


def _read_sample(path: Path) -> pd.DataFrame:
    """Reads a sample's two columns as the strings in the file: "007" stays "007", "NA" stays "NA"."""
    if not path.is_file():
        raise DataError(f"{path}: no such file: correct data.sample_submission in the config")
    cells = read_cells(path)
    header = list(map(str, cells.columns))
    if len(set(header)) != 2 or len(header) != 2:
        raise DataError(f"{path}: it has the columns {header}: a sample submission needs two, an id and a target")
    return cells


def _check_ids(ids: list[object], where: str) -> None:
    odd = [value for value in ids if not isinstance(value, str) or not value]
    if odd:
        raise DataError(f"{where}: {_listed(map(repr, odd))} is not an id: read the column as strings and fill it in")
    counts = pd.Series(ids, dtype="str").value_counts()
    doubled = sorted(counts.index[counts > 1])
    if doubled:
        raise DataError(f"{where}: duplicated ids {_listed(doubled)}: keep one row for each image")


def _check_same_ids(ids: pd.Series, expected: pd.Series, sample: Path) -> None:
    _check_ids(list(expected), str(sample))
    ours, theirs = set(ids), set(expected)
    faults = []
    if missing := [name for name in expected if name not in ours]:
        faults.append(f"without a score: {_listed(missing)}")
    if extra := [name for name in ids if name not in theirs]:
        faults.append(f"scored, but not in the sample: {_listed(extra)}")
    if faults:
        raise DataError(
            f"the ids are not those of {sample}; {'; '.join(faults)}. "
            "Check that data.test and data.sample_submission have the same ids"
        )


def _listed(values: Sequence[str] | map[str]) -> str:
    names = list(values)
    more = f", … {len(names)} in all" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def run_blend(experiment: Experiment, runs: list[Run], out: Out) -> Run:
    """Blends the runs (all, or those of `blend.runs`), with a nested score and final weights from all rows.

    Returns the blend. Writes blend/ and, where there are test rows, predictions.parquet and submission.csv. A complete
    blend of the same runs and settings is kept; a stale one is set aside. Finished fits are kept in blend_fits/ until
    the blend is complete, so that the same command goes on after it was stopped.
    """
    folder = experiment.folder / "blend"
    check_blended_runs(experiment.config, runs)
    every, runs = [run.name for run in runs], blended_runs(experiment.config, runs)
    inputs = blend_inputs(experiment, runs)
    run = read_run(folder)
    check_tuned_blend(experiment, runs, complete=run is not None and run.meta["inputs"] == inputs)
    if run is None or run.meta["inputs"] != inputs:
        if run and (aside := set_aside(folder, experiment.old)):
            out.say(f"blend: its inputs changed; the old one is kept as {aside}")
        run = run_with_threads(experiment.config.threads, _blend, experiment, runs, every, inputs, folder, out)
    else:
        read_verified_run(folder)
        out.say("blend: complete, skipped")
    band = write_review(experiment, run, out)
    if len(experiment.as_read.test):
        _write_predictions(experiment, run, band)
    return run


def blend_alone(experiment: Experiment, run: Run, out: Out) -> Run:
    """Calibrates one run as a blend of itself, in distilled/<run>/blend/; returns the blend. A fresh one is kept.

    ``experiment`` is that of the run alone (`stack.views.alone`).
    """
    folder, inputs = experiment.folder / "distilled" / run.name / "blend", blend_inputs(experiment, [run])
    known = read_verified_run(folder)
    if known is not None and known.meta["inputs"] == inputs:
        return known
    names = [run.name]
    return run_with_threads(experiment.config.threads, _blend, experiment, [run], names, inputs, folder, out)


def _blend(
    experiment: Experiment, runs: list[Run], every: list[str], inputs: dict[str, str], folder: Path, out: Out
) -> Run:
    config, fits_folder = experiment.config, folder.parent / FITS_FOLDER
    predictions = predictions_of(experiment, runs)
    names, covered = predictions.names, predictions.rows
    units = None if config.predict_per is None else unit_rows(experiment)
    scored = experiment if units is None else units.experiment  # one row for each prediction
    pooled = {} if units is None else pool_all(predictions, units.of_train, units.of_test, unit_poolings(experiment))
    rows = next(iter(pooled.values()), predictions).rows
    y, split_group = scored.target[rows], scored.split_group[rows]
    fold = scored.folds.frame["fold"].to_numpy()[rows]
    warn_of_two_folds(experiment, out)
    methods = blend_methods(experiment)
    out.say(f"blend: {len(runs)} runs, methods {', '.join(methods)}, nested over {experiment.folds.k} folds …")
    if units is not None:
        out.say(f"blend: {units_text(experiment, units, predictions.rows)}; poolings {', '.join(pooled)}")
    tuned, p = tuned_weights(experiment, predictions.names), expit(predictions.oof.astype(np.float64))
    given: dict[str, Any] = {
        "nets": predictions.nets,
        "fold": fold,
        "split_group": split_group,
        "objective": config.objective,
        "trials": config.blend.trials,
        "power": config.blend.power,
        "replacement": config.blend.replacement,
        "bags": config.blend.bags,
        "preselect": config.blend.preselect,
        "seed": config.seed,
        "n_jobs": config.n_jobs,
    }
    copies = near_copies(p, predictions.nets, predictions.groups)
    folds = len(np.unique(fold))
    fits = number_of_pooled_fits(folds, list(pooled), methods) if pooled else number_of_fits(folds, methods)
    with out.bar("blend", fits, "fits") as progress:
        if pooled:
            del given["nets"]
            nested = blend_pooled(pooled, y, **given, methods=methods, keep_in=fits_folder, progress=progress)
        else:
            nested = blend_nested(p, y, **given, methods=methods, tuned=tuned, keep_in=fits_folder, progress=progress)
    method = nested.chosen
    if pooled:
        pooling, method = pooling_and_method(nested.chosen)
        predictions = pooled[pooling]  # of the units, as the final blend takes them
        p, given["nets"] = expit(predictions.oof.astype(np.float64)), predictions.nets
    about_copies: dict[str, Any] = {}
    if copies.groups:
        change = None
        if tuned is None or nested.chosen != "optuna":  # a study's weights are those of all runs
            keep_in = fits_folder / "without_copies"
            with out.bar("near copies", number_of_fits(folds, [method]), "fits") as progress:
                change = change_without_copies(
                    copies, nested, p, y, **given, keep_in=keep_in, progress=progress, method=method
                )
        about_copies = {"near_copies": copies_record(copies, names, nested.chosen, change)}
        out.say(f"blend: {copies_text(about_copies['near_copies'], config.objective)}")
    used = {name for name, is_used in zip(names * (len(predictions.names) // len(names)), nested.used_runs, strict=True)
            if is_used}  # fmt: skip
    if left_out := [name for name in names if name not in used]:
        out.say(
            f"blend: left out {', '.join(left_out)}: AUC not shown to be above 0.5, and the rank mean is better "
            "without (`blend.preselect: false` keeps all runs)"
        )
    summary = nested.summary(y, split_group)
    headline = interval(config.objective, y, nested.score, split_group)
    # Calibrate the chosen method's scores: the headline's mix several scales where outer folds chose different methods.
    chosen_scores = nested.by_method[nested.chosen]
    calibration = calibrate_nested(chosen_scores, y, fold, split_group)
    oof = pd.DataFrame({"id": scored.table.train["id"].to_numpy()[rows], "fold": fold, "score": nested.score})
    oof["p_calibrated"] = calibration.p
    if units is not None:  # what `compare` reads of other blends from table.parquet
        oof = oof.assign(
            target=y, group=scored.table.train["group"].to_numpy(object)[rows], split_group=split_group,
            images=units.images(covered)[rows],
        )  # fmt: skip
    for name in nested.by_method:
        oof[f"{name}_nested"], oof[f"{name}_tuned"] = nested.by_method[name], nested.tuned[name]
    of_folds = fold_scores(nested.final, predictions)
    averaged = calibrate_average(calibration.final, of_folds)
    test = pd.DataFrame({"id": scored.table.test["id"], "score": average_scores(of_folds)})
    test["p_calibrated"] = averaged.final(test["score"].to_numpy()) if len(test) else np.empty(0)
    if len(test):
        _say_expected_positives(test["p_calibrated"], averaged, calibration_noise(y, calibration.p, split_group), out)
    settings, distributions = blender_state(nested.final)
    meta = {
        "fingerprint": fingerprint(inputs),
        "level": 3,
        "kind": "blend",
        "inputs": inputs,
        "made_with": blend_made_with(config),
        "objective": config.objective,
        "headline": asdict(headline),
        "within_folds": float(auc_by_fold(y, nested.score, fold).mean()),
        "tuned_in_sample": interval(config.objective, y, nested.tuned[nested.chosen], split_group).value,
        "chosen": nested.chosen,
        "chosen_by_fold": nested.chosen_by_fold,
        "weights": dict(zip(predictions.names, map(float, nested.final.weights_), strict=True)),
        "transforms": dict(zip(predictions.names, nested.final.transforms_.tolist(), strict=True)),
        "methods": summary.to_dict("records"),
        "blender": settings,
        "calibrator": calibrator_state(averaged.final),
        "calibration": {
            **calibration_record(calibration, y, split_group),
            "fold_average": averaged.record(),
        },
        "runs": list(names),
        **({} if every == list(names) else {"all_runs": every}),
        **about_copies,
        **({} if units is None else {"units": units_record(experiment, units, covered, y, split_group)}),
        "preselected": [name for name in names if name not in left_out],
        "left_out": len(experiment.target) - len(covered),
        "selected": [run.name for run in runs if run.meta.get("selected")],  # settings chosen on these rows
    }
    run = write_run(folder, meta, frames={"oof": oof, "test": test}, arrays=distributions)
    remove_fits(fits_folder)
    return run


def _say_expected_positives(p: pd.Series, averaged: AverageCalibration, noise: CalibrationNoise, out: Out) -> None:
    """Says how many test rows with calibrated risks ``p`` are expected to be positive, and why that may be too few."""
    number = expected_positives(p, noise)
    out.say(
        f"calibration: {number.value:,.0f} of {len(p):,} test rows are expected to be positive, 95 % prediction "
        f"interval {number.low:,.0f} to {number.high:,.0f} if they are of the population of training"
    )
    if averaged.kept:
        out.say(
            f"calibration: {averaged.kept}, so the risks of averaged scores are those of single fold nets, which are "
            "slightly too low on average and too little spread"
        )


def score_unseen(blender: Blender, predictions: Predictions) -> NDArray[np.float64]:
    """Returns the scores (rows,) of test rows: blends each fold net's predictions, then averages the blends' logits."""
    return average_scores(fold_scores(blender, predictions))


def fold_scores(blender: Blender, predictions: Predictions) -> NDArray[np.float64]:
    """Returns the scores (folds, rows) of test rows by the blend of each fold net's predictions."""
    folds, rows = predictions.test.shape[:2]
    if not rows:
        return np.empty((folds, 0))
    return np.stack(
        [
            blender.predict_proba(expit(logits.astype(np.float64)), nets=np.broadcast_to(nets, logits.shape))[:, 1]
            for logits, nets in zip(predictions.test, predictions.test_nets, strict=True)
        ]
    )


def _write_predictions(experiment: Experiment, blend: Run, band: Band | None) -> None:
    """Writes predictions.parquet and submission.csv from the blend's test rows: same bytes for the same blend.

    Test rows whose image cannot be read get the declared fallback, and are listed in fallback.csv.
    """
    test, data = with_fallback(experiment, blend, blend.frame("test")), experiment.config.data
    frame = submission(
        test["id"],
        test["score"],
        id_column=_id_column(experiment.config),
        target_column=data.columns.target_column,
        sample=data.sample_submission,
    )
    write_frame(experiment.folder / "predictions.parquet", with_decisions(test, band))
    with atomic(experiment.folder / "submission.csv") as temporary:
        temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")
    list_fallback_rows(experiment, test)


def check_sample(experiment: Experiment) -> None:
    """Raises DataError where the sample submission of predictions for units (`predict_per`) has other ids than they.

    A sample that names images is found here before anything is fitted, not after.
    """
    sample, units = experiment.config.data.sample_submission, experiment.table.units
    if units is None or sample is None or experiment.table.test.empty:
        return
    ids = units.loc[experiment.table.test["id"]].drop_duplicates().reset_index(drop=True)
    try:
        submission(
            ids, np.zeros(len(ids)), id_column=_id_column(experiment.config),
            target_column=experiment.config.data.columns.target_column, sample=sample,
        )  # fmt: skip
    except DataError as error:
        raise DataError(f"predict_per: one prediction for each {_id_column(experiment.config)}, but {error}") from error


def _id_column(config: Config) -> str:
    """Returns the name of the submission's id column, where a sample does not name it."""
    columns = config.data.columns
    return columns.id if config.predict_per is None else unit_name(config.predict_per.columns, columns.roles)


def blend_inputs(experiment: Experiment, runs: list[Run]) -> dict[str, str]:
    """Returns everything that the blend depends on, by name; a blend made from other inputs is stale."""
    config, runs = experiment.config, blended_runs(experiment.config, runs)
    return {
        "settings": fingerprint({
            "blend": config.blend.model_dump(exclude={"runs"}),  # "runs" below are those that are blended
            "objective": config.objective,
            "seed": config.seed,
            "tuned": tuned_fingerprint(config.tuned.blend),
            **_per_unit(config),
        }),
        **({} if experiment.table.units is None else {"units": units_fingerprint(experiment)}),
        "runs": fingerprint({run.name: run.meta["files"] for run in runs}),
        "rows or folds": experiment.rows_fingerprint,
        **scale_inputs(experiment),
    }  # fmt: skip


def blend_made_with(config: Config) -> dict[str, Any]:
    """Returns the settings that the blend depends on, as they are noted in its run.json."""
    return {
        "blend": config.blend.model_dump(mode="json", exclude={"runs"}),
        "objective": config.objective,
        "seed": config.seed,
        "tuned": tuned_fingerprint(config.tuned.blend),
        **_per_unit(config),
    }


def _per_unit(config: Config) -> dict[str, Any]:
    """Returns the setting of predictions for units, where there is one."""
    return {} if config.predict_per is None else {"predict_per": config.predict_per.model_dump(mode="json")}

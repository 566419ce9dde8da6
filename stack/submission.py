"""Blends runs, scores the blend with a nested estimate, and writes predictions, calibrated p and the submission."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import DataError
from dermstack.listing import counted
from stack.blend.blender import Blender
from stack.blend.calibration import Calibrator, calibrate_nested, calibration_record, calibrator_state
from stack.blend.copies import NearCopies, change_without_copies, copies_record, copies_text, near_copies
from stack.blend.fold_average import AverageCalibration, average_scores, calibrate_average
from stack.blend.nested import BlendRows, NestedBlend, NestedSettings, blend_rows, number_of_fits
from stack.blend.pooling import blend_pooled, number_of_pooled_fits, pool_all, pooling_and_method
from stack.blend.state import blender_state
from stack.blend.stored_fits import remove_fits
from stack.blend.weights import method_settings
from stack.console import Out
from stack.experiment import Experiment
from stack.fallback import list_fallback_rows, with_fallback
from stack.fold_needs import blend_methods, check_blend_needs, unit_poolings, warn_of_two_folds
from stack.level2.inputs import scale_inputs
from stack.metrics.expected_positives import CalibrationNoise, calibration_noise, expected_positives
from stack.metrics.intervals import interval
from stack.metrics.review_band import Band
from stack.metrics.scores import auc_by_fold
from stack.parallel import run_with_threads
from stack.predictions.joined import Predictions, predictions_of
from stack.review import with_decisions, write_review
from stack.settings.config import BLEND_VERSION, Config
from stack.store import Run, atomic, fingerprint, read_run, read_verified_run, set_aside, write_frame, write_run
from stack.submission_csv import submission, submission_text
from stack.tables.units import unit_name
from stack.tuned import check_tuned_blend, tuned_fingerprint, tuned_weights
from stack.unit_rows import unit_rows, units_fingerprint, units_record, units_text
from stack.views import blended_runs, check_blended_runs

FITS_FOLDER = "blend_fits"  # fits of a blend that is being made


def run_blend(experiment: Experiment, runs: list[Run], out: Out) -> Run:
    """Blends the runs (all, or those of `blend.runs`), with a nested score and final weights from all rows.

    Returns the blend. Writes blend/ and, where there are test rows, predictions.parquet and submission.csv. A complete
    blend of the same runs and settings is kept; a stale one is set aside. Finished fits are kept in blend_fits/ until
    the blend is complete, so that the same command goes on after it was stopped.
    """
    folder = experiment.folder / "blend"
    check_blended_runs(experiment.config, [run.name for run in runs])
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
    """Fits the blend of ``runs``, calibrates it and writes it to ``folder``.

    ``every`` has the names of all runs, also of those that `blend.runs` leaves out.
    """
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
    out.say(
        f"blend: {counted(len(runs), 'runs')}, methods {', '.join(methods)}, nested over {experiment.folds.k} folds …"
    )
    if units is not None:
        out.say(f"blend: {units_text(experiment, units, predictions.rows)}; poolings {', '.join(pooled)}")
    check_blend_needs(y, split_group, fold, candidates=len(methods) * max(1, len(pooled)), of_units=units is not None)
    tuned = tuned_weights(experiment, predictions.names)
    how = NestedSettings(
        methods, method_settings(config), config.blend.preselect, config.n_jobs, tuned, keep_in=fits_folder
    )
    copies = near_copies(predictions.p, predictions.nets, predictions.groups)
    folds = len(np.unique(fold))
    fits = number_of_pooled_fits(folds, list(pooled), methods) if pooled else number_of_fits(folds, methods)
    with out.bar("blend", fits, "fits") as progress:
        with_bar = replace(how, progress=progress)
        if pooled:
            nested = blend_pooled(pooled, y, with_bar, fold=fold, split_group=split_group)
            predictions = pooled[pooling_and_method(nested.chosen)[0]]  # of the units, as the final blend takes them
        else:
            nested = blend_rows(BlendRows(predictions.p, y, predictions.nets, fold, split_group), with_bar)
    about_copies = None
    if copies.groups:
        blended = BlendRows(predictions.p, y, predictions.nets, fold, split_group)
        about_copies = _about_copies(copies, names, nested, blended, how, out)
    left_out = _left_out(names, predictions, nested, out)
    summary = nested.summary(y, split_group)
    headline = interval(config.objective, y, nested.score, split_group)
    # Calibrate the chosen method's scores: the headline's mix several scales where outer folds chose different methods.
    chosen_scores = nested.by_method[nested.chosen]
    calibration = calibrate_nested(chosen_scores, y, fold, split_group)
    images = None if units is None else units.images(covered)[rows]
    oof = _oof_scores(scored, rows, nested, calibration.p, images)
    test, averaged = _test_scores(scored, predictions, nested.final, calibration.final)
    if len(test):
        noise = calibration_noise(y, calibration.p, split_group)
        what = "rows" if experiment.config.predict_per is None else "units"
        _say_expected_positives(test["p_calibrated"], averaged, noise, what, out)
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
        **_choice_record(nested, predictions.names),
        "methods": summary.to_dict("records"),
        "blender": settings,
        "calibrator": calibrator_state(averaged.final),
        "calibration": {
            **calibration_record(calibration, y, split_group),
            "fold_average": averaged.record(),
        },
        "runs": list(names),
        **({} if every == list(names) else {"all_runs": every}),
        **({} if about_copies is None else {"near_copies": about_copies}),
        **({} if units is None else {"units": units_record(experiment, units, covered, y, split_group)}),
        "preselected": [name for name in names if name not in left_out],
        "left_out": len(experiment.target) - len(covered),
        "selected": [run.name for run in runs if run.meta.get("selected")],  # settings chosen on these rows
    }
    run = write_run(folder, meta, frames={"oof": oof, "test": test}, arrays=distributions)
    remove_fits(fits_folder)
    return run


def _about_copies(
    copies: NearCopies,
    names: Sequence[str],
    nested: NestedBlend,
    rows: BlendRows,
    settings: NestedSettings,
    out: Out,
) -> dict[str, Any]:
    """Says which of the runs ``names`` are near copies and what leaving them out would change; returns it for run.json.

    ``nested`` is the blend of ``rows`` with these ``settings``.
    """
    change = None
    if settings.tuned is None or nested.chosen != "optuna":  # a study's weights are those of all runs
        method = nested.final.method  # the chosen candidate may be a pooling with this method
        keep_in = settings.keep_in and settings.keep_in / "without_copies"
        with out.bar("near copies", number_of_fits(len(nested.chosen_by_fold), [method]), "fits") as progress:
            again = replace(settings, keep_in=keep_in, progress=progress)
            change = change_without_copies(copies, nested, rows, again, method=method)
    record = copies_record(copies, names, nested.chosen, change)
    out.say(f"blend: {copies_text(record, nested.final.objective)} (`blend.runs` selects runs)")
    return record


def _test_scores(
    scored: Experiment, predictions: Predictions, blender: Blender, single: Calibrator
) -> tuple[pd.DataFrame, AverageCalibration]:
    """Returns score and p_calibrated of the test rows, and the map of averaged scores, from that of ``single`` nets."""
    of_folds = fold_scores(blender, predictions)
    averaged = calibrate_average(single, of_folds)
    test = pd.DataFrame({"id": scored.table.test["id"], "score": average_scores(of_folds)})
    test["p_calibrated"] = averaged.final(test["score"].to_numpy()) if len(test) else np.empty(0)
    return test, averaged


def _oof_scores(
    scored: Experiment,
    rows: NDArray[np.intp],
    nested: NestedBlend,
    p: NDArray[np.float64],
    images: NDArray[np.integer] | None,
) -> pd.DataFrame:
    """Returns the out-of-fold scores of a blend: its own, calibrated as ``p`` (n,), and those of each candidate.

    Of units, with the number of ``images`` (n,) of each, also what `compare` reads of other blends from table.parquet.
    """
    train = scored.table.train.iloc[rows]
    fold = scored.folds.frame["fold"].to_numpy()[rows]
    oof = pd.DataFrame({"id": train["id"].to_numpy(), "fold": fold, "score": nested.score, "p_calibrated": p})
    if images is not None:
        oof = oof.assign(
            target=scored.target[rows], group=train["group"].to_numpy(object), split_group=scored.split_group[rows],
            images=images,
        )  # fmt: skip
    for name in nested.by_method:
        oof[f"{name}_nested"], oof[f"{name}_tuned"] = nested.by_method[name], nested.tuned[name]
    return oof


def _choice_record(nested: NestedBlend, names: Sequence[str]) -> dict[str, Any]:
    """Returns what run.json says of the chosen candidates, and how the submitted one weights the columns ``names``."""
    return {
        "chosen": nested.chosen,
        "chosen_by_fold": nested.chosen_by_fold,
        "weights": dict(zip(names, map(float, nested.final.weights_), strict=True)),
        "transforms": dict(zip(names, nested.final.weighting_.in_words(), strict=True)),
    }


def _left_out(names: Sequence[str], predictions: Predictions, nested: NestedBlend, out: Out) -> list[str]:
    """Returns which of the runs ``names`` the pre-selection left out, and says so; ``predictions`` may be pooled."""
    times = len(predictions.names) // len(names)
    used = {name for name, is_used in zip([*names] * times, nested.used_runs, strict=True) if is_used}
    if left_out := [name for name in names if name not in used]:
        out.say(
            f"blend: left out {', '.join(left_out)}: AUC not shown to be above 0.5, and the rank mean is better "
            "without (`blend.preselect: false` keeps all runs)"
        )
    return left_out


def _say_expected_positives(
    p: pd.Series, averaged: AverageCalibration, noise: CalibrationNoise, what: str, out: Out
) -> None:
    """Says how many test rows (or units: ``what``) with risks ``p`` should be positive, and why that may be too few."""
    number = expected_positives(p, noise)
    out.say(
        f"calibration: {number.value:,.0f} of {len(p):,} test {what} are expected to be positive, 95 % prediction "
        f"interval {number.low:,.0f} to {number.high:,.0f} if they are of the population of training"
    )
    if averaged.kept:
        out.say(
            f"calibration: the risks of test {what} are not corrected for the averaging over fold nets, as "
            f"{averaged.kept}; they may be slightly too low on average and too little spread"
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
    """Raises DataError where the sample submission has other ids than the test rows, or their units (`predict_per`).

    Otherwise a sample of another data set would be refused after hours of training.
    """
    data, units = experiment.config.data, experiment.table.units
    test = experiment.as_read.test["id"]
    if data.sample_submission is None or test.empty:
        return
    ids = test if units is None else units.loc[test].drop_duplicates().reset_index(drop=True)
    try:
        submission(
            ids, np.zeros(len(ids)), id_column=_id_column(experiment.config),
            target_column=data.columns.target_column, sample=data.sample_submission,
            images=None if units is None else test,
        )  # fmt: skip
    except DataError as error:
        if units is None:
            raise
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
        "version of blend methods": str(BLEND_VERSION),
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

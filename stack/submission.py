"""From runs to predictions: blend them, honestly scored, and write score, calibrated p and submission."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from stack.blend.blend_state import blender_state
from stack.blend.blender import Blender
from stack.blend.calibrate_nested import calibrate_nested, calibration_record
from stack.blend.calibration import calibrator_state
from stack.blend.nested import blend_nested
from stack.console import Out
from stack.experiment import Experiment
from stack.features import Predictions, predictions_of
from stack.metrics.intervals import interval
from stack.metrics.scores import auc_by_fold
from stack.parallel import on_threads
from stack.store import Run, atomic, fingerprint, read_run, read_whole, set_aside, write_frame, write_run
from stack.submit import submission, submission_text
from stack.tuned import tuned_fingerprint, tuned_weights


def run_blend(experiment: Experiment, runs: list[Run], out: Out) -> Run:
    """Blend all runs, scored nested and refitted on all rows; write blend/, predictions.parquet and submission.csv.

    The same runs and settings again are skipped; a stale blend is set aside.
    """
    folder = experiment.folder / "blend"
    inputs = blend_inputs(experiment, runs)
    run = read_run(folder)
    if run is None or run.meta["inputs"] != inputs:
        if run and (aside := set_aside(folder, experiment.old)):
            out.say(f"blend: its inputs changed; the old one is kept as {aside}")
        run = on_threads(experiment.config.threads, _blend, experiment, runs, inputs, out)
    else:
        read_whole(folder)
        out.say("blend: complete, skipped")
    if len(experiment.table.test):
        _write_predictions(experiment, run)
    return run


def _blend(experiment: Experiment, runs: list[Run], inputs: dict[str, str], out: Out) -> Run:
    config = experiment.config
    predictions = predictions_of(experiment, runs)
    rows = predictions.rows
    y, split_group = experiment.target[rows], experiment.split_group[rows]
    fold = experiment.folds.frame["fold"].to_numpy()[rows]
    out.say(
        f"blend: {len(runs)} runs, methods {', '.join(config.blend.methods)}, nested over {experiment.folds.k} folds …"
    )
    nested = blend_nested(
        expit(predictions.oof.astype(np.float64)),
        y,
        nets=predictions.nets,
        fold=fold,
        split_group=split_group,
        methods=config.blend.methods,
        objective=config.objective,
        trials=config.blend.trials,
        power=config.blend.power,
        replacement=config.blend.replacement,
        bags=config.blend.bags,
        seed=config.seed,
        n_jobs=config.n_jobs,
        tuned=tuned_weights(experiment, predictions.names),
    )
    methods = nested.summary(y, split_group)
    headline = interval(config.objective, y, nested.score, split_group)
    # On the chosen method's own scale: the headline's is mixed where the outer folds chose different methods.
    honest = nested.by_method[nested.chosen]
    calibration = calibrate_nested(honest, y, fold, split_group)
    oof = pd.DataFrame({"id": experiment.table.train["id"].to_numpy()[rows], "fold": fold, "score": nested.score})
    oof["p_calibrated"] = calibration.p
    for name in nested.by_method:
        oof[f"{name}_nested"], oof[f"{name}_tuned"] = nested.by_method[name], nested.tuned[name]
    test = pd.DataFrame({"id": experiment.table.test["id"], "score": score_unseen(nested.final, predictions)})
    test["p_calibrated"] = calibration.final(test["score"].to_numpy()) if len(test) else np.empty(0)
    settings, distributions = blender_state(nested.final)
    meta = {
        "fingerprint": fingerprint(inputs),
        "level": 3,
        "kind": "blend",
        "inputs": inputs,
        "objective": config.objective,
        "headline": asdict(headline),
        "within_folds": float(auc_by_fold(y, nested.score, fold).mean()),
        "tuned_in_sample": interval(config.objective, y, nested.tuned[nested.chosen], split_group).value,
        "chosen": nested.chosen,
        "chosen_by_fold": nested.chosen_by_fold,
        "weights": dict(zip(predictions.names, map(float, nested.final.weights_), strict=True)),
        "transforms": dict(zip(predictions.names, nested.final.transforms_.tolist(), strict=True)),
        "methods": methods.to_dict("records"),
        "blender": settings,
        "calibrator": calibrator_state(calibration.final),
        "calibration": calibration_record(calibration, y, split_group),
        "runs": list(predictions.names),
        "left_out": len(experiment.target) - len(rows),
        "selected": [run.name for run in runs if run.meta.get("selected")],  # on these very rows
    }
    return write_run(experiment.folder / "blend", meta, frames={"oof": oof, "test": test}, arrays=distributions)


def score_unseen(blender: Blender, predictions: Predictions) -> NDArray[np.float64]:
    """Scores (rows,): each test row blended as each fold net sees it, the blends' logits averaged over the nets."""
    if not predictions.test.shape[1]:
        return np.empty(0)
    blended = [
        blender.predict_proba(expit(logits.astype(np.float64)), nets=np.broadcast_to(nets, logits.shape))[:, 1]
        for logits, nets in zip(predictions.test, predictions.test_nets, strict=True)
    ]
    scores: NDArray[np.float64] = expit(np.mean([logit(np.clip(score, 1e-12, 1 - 1e-12)) for score in blended], axis=0))
    return scores


def _write_predictions(experiment: Experiment, blend: Run) -> None:
    """predictions.parquet and submission.csv, from the blend's test rows: the same bytes for the same blend."""
    test, data = blend.frame("test"), experiment.config.data
    frame = submission(
        test["id"],
        test["score"],
        id_column=data.columns.id,
        target_column=data.columns.target,
        sample=data.sample_submission,
    )
    write_frame(experiment.folder / "predictions.parquet", test)
    with atomic(experiment.folder / "submission.csv") as temporary:
        temporary.write_text(submission_text(frame), encoding="utf-8", newline="\n")


def blend_inputs(experiment: Experiment, runs: list[Run]) -> dict[str, str]:
    """What the blend depends on, by name; one made of anything else is stale."""
    config = experiment.config
    return {
        "settings": fingerprint({
            "blend": config.blend.model_dump(),
            "objective": config.objective,
            "seed": config.seed,
            "tuned": tuned_fingerprint(config.tuned.blend),
        }),
        "runs": fingerprint({run.name: run.meta["files"] for run in runs}),
        "rows or folds": experiment.rows_fingerprint,
    }  # fmt: skip

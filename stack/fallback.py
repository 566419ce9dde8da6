"""The declared fallback for images that cannot be read: a model of the table alone, on the scale of the blend.

It predicts from age, sex, site, further columns and summaries of the group, which need no image. Where a row has no
such value, its prediction is the prevalence of the training rows, and named so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from dermstack.errors import StoreError
from stack.blend.calibration import (
    Calibrator,
    Rescaled,
    calibrate_nested,
    calibration_record,
    calibrator_from_state,
    calibrator_state,
    score_at,
)
from stack.blend.fold_average import calibrate_average
from stack.console import Out
from stack.experiment import Experiment
from stack.level2.features import CATEGORICAL, NUMERIC, FoldFeatures, early_stopping_rows
from stack.level2.stored_features import FEATURES_FILE, write_fold
from stack.metrics.intervals import Interval, interval
from stack.metrics.scores import objective_label
from stack.parallel import run_with_threads
from stack.settings.level2 import Features
from stack.store import (
    Run,
    atomic,
    fingerprint,
    frame_fingerprint,
    prediction_frame,
    read_run,
    read_verified_run,
    set_aside,
    write_run,
)
from stack.tables.columns import TableColumns
from tabular.fit_bag import BagSettings, fit_bag
from tabular.gbdt_params import FIT_VERSION
from tabular.models import Bag, bag_from_contents

FOLDER = "fallback"  # in the experiment's folder and in a bundle
STATE_FILE = "fallback.json"
TABLE, PREVALENCE = "table", "prevalence"  # what a prediction is made from
_MODEL = "model.json"
_KIND = "logistic"  # of the model; it extrapolates little and is calibrated where columns are few


def image_free(features: Features) -> Features:
    """Returns the blocks of ``features`` that need no image, with the columns of the table switched on."""
    off = {"logits": False, "cohort": False, "neighbours": False, "frozen_z": 0, "aligned_z": 0, "shortcuts": False}
    off |= {"probability_ratio": False, "native_categories": False, "target_encoding": False}
    return features.model_copy(update={**off, "metadata": True, "columns": True})


@dataclass(frozen=True)
class FoldModel:
    """The model of one fold, fitted on its training rows; without ``bag`` no training row has a value in the table."""

    features: FoldFeatures
    bag: Bag | None
    prior: float  # log odds of a positive among the training rows

    def logit(self, frame: pd.DataFrame, *, threads: int) -> NDArray[np.float32]:
        """Returns log odds (n,) of rows of whole groups; those of a row without any value in the table are `prior`."""
        made = np.full(len(frame), self.prior, np.float32)
        known = self.has_values(frame)
        if self.bag is not None and known.any():
            made[known] = self.bag.logit(_matrix(self.features, frame), threads=threads)[known]
        return made

    def has_values(self, frame: pd.DataFrame) -> NDArray[np.bool_]:
        """Marks the rows (n,) with a value in some column that the model reads."""
        columns = [*NUMERIC, *CATEGORICAL, *self.features.columns.names]
        return frame[columns].notna().any(axis=1).to_numpy(bool)


@dataclass(frozen=True)
class Fallback:
    """The models of all folds and the calibration of their mean."""

    models: tuple[FoldModel, ...]
    calibrator: Calibrator | None  # None where no training row has a value in the table
    threads: int

    def predict(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns p_calibrated and basis (`TABLE` or `PREVALENCE`) of rows of whole groups, with the frame's index."""
        logits = [model.logit(frame, threads=self.threads) for model in self.models]
        p = expit(np.mean(logits, axis=0, dtype=np.float64)) if len(frame) else np.empty(0)
        known = self.models[0].has_values(frame) & (self.calibrator is not None)
        if self.calibrator is not None:
            p = np.where(known, self.calibrator(p), p)
        return pd.DataFrame({"p_calibrated": p, "basis": np.where(known, TABLE, PREVALENCE)}, index=frame.index)

    def score(self, frame: pd.DataFrame, blend: Calibrator, local: Rescaled | None = None) -> pd.DataFrame:
        """Returns score, p_calibrated and basis: the score to which the blend's calibration gives this probability.

        ``local`` is the recalibration that ``blend`` ends with, in a recalibrated bundle; it moves these risks, too.
        """
        made = self.predict(frame)
        if local is not None:
            made["p_calibrated"] = local.line(made["p_calibrated"])
        return made.assign(score=score_at(blend, made["p_calibrated"]))[["score", "p_calibrated", "basis"]]


def run_fallback(experiment: Experiment, out: Out) -> Run | None:
    """Fits the fallback where the config declares it, prints its nested score and returns its run; else returns None.

    A complete fallback of the same rows and settings is kept; a stale one is set aside.
    """
    data = experiment.config.data
    if data.on_unreadable_test != "table" or data.images is None:
        return None
    folder, inputs = experiment.folder / FOLDER, fallback_inputs(experiment)
    run = read_run(folder)
    if run is None or run.meta["inputs"] != inputs:
        if run and (aside := set_aside(folder, experiment.old)):
            out.say(f"fallback: its inputs changed; the old one is kept as {aside}")
        run = run_with_threads(experiment.config.threads, _fit, experiment, inputs)
    else:
        read_verified_run(folder)
        out.say("fallback: complete, skipped")
    out.say(f"fallback for images that cannot be read: {performance(run)}")
    return run


def performance(run: Run) -> str:
    """Returns a sentence about what the fallback predicts from and how well, for messages and the report."""
    if run.meta["value"] is None:
        return "the table has no column to predict from, so each such row gets the prevalence of the training rows"
    value = Interval(**run.meta["value"])
    without = run.meta["rows_without_values"]
    more = f"; {without:,} training rows without any value count as the prevalence" if without else ""
    return f"the table alone, {objective_label(run.meta['objective'])} {value} nested on the training rows{more}"


def fallback_inputs(experiment: Experiment) -> dict[str, str]:
    """Returns everything that the fallback depends on, by name."""
    config, table = experiment.config, experiment.table
    rows = experiment.folds.frame[["id", "split_group", "fold"]].assign(target=experiment.target)
    columns = ["id", "group", *NUMERIC, *CATEGORICAL, *table.columns.names]
    parts = (table.train[columns], experiment.as_read.test[columns])
    settings = {
        "features": image_free(config.features).model_dump(), "seed": config.seed, "objective": config.objective,
        "fit": FIT_VERSION,
    }  # fmt: skip
    return {
        "settings": fingerprint(settings),
        "rows or folds": frame_fingerprint(rows),
        "metadata": " ".join(map(frame_fingerprint, parts)),
    }


def with_fallback(experiment: Experiment, blend: Run, test: pd.DataFrame) -> pd.DataFrame:
    """Returns ``test`` (id, score, p_calibrated) with the test rows whose image cannot be read, in the csv's order.

    Where there are such rows, the column `basis` is "images" for all others. Raises StoreError without a fallback.
    """
    lost = experiment.unreadable_test
    if lost.empty:
        return test
    run = read_run(experiment.folder / FOLDER)
    if run is None or run.meta["inputs"] != fallback_inputs(experiment):
        raise StoreError(
            f"{experiment.folder / FOLDER} is {'stale' if run else 'missing'}, which predicts the {len(lost)} test "
            f"rows whose image cannot be read: run `{experiment.command('stack')}`"
        )
    made = run.frame("predictions").set_index("id").loc[lost["id"]].reset_index()
    made = made.assign(score=score_at(calibrator_from_state(blend.meta["calibrator"]), made["p_calibrated"]))
    together = pd.concat([test.assign(basis="images"), made[["id", "score", "p_calibrated", "basis"]]])
    return together.set_index("id").loc[experiment.as_read.test["id"]].reset_index()


def list_fallback_rows(experiment: Experiment, predictions: pd.DataFrame) -> None:
    """Writes fallback.csv beside the submission: each row of the fallback with its reason; removes an earlier one."""
    path = experiment.folder / f"{FOLDER}.csv"
    if (lost := experiment.unreadable_test).empty:
        path.unlink(missing_ok=True)
        return
    listed = lost.merge(predictions, on="id", validate="one_to_one")
    with atomic(path) as temporary:
        listed[["id", "basis", "score", "p_calibrated", "reason"]].to_csv(temporary, index=False)


def _fit(experiment: Experiment, inputs: dict[str, str]) -> Run:
    """Fits the model of the table alone over the folds, calibrates it, predicts the test rows and writes all of it."""
    config, train, test = experiment.config, experiment.table.train, experiment.as_read.test
    y, fold_of = experiment.target, experiment.folds.frame["fold"].to_numpy()
    folder = experiment.folder / FOLDER
    models, parts = [], []
    for fold in range(experiment.folds.k):
        model = _fit_fold(experiment, np.flatnonzero(fold_of != fold))
        models.append(model)
        held = np.flatnonzero(fold_of == fold)
        parts.append(
            prediction_frame(train["id"].iloc[held], fold, model.logit(train.iloc[held], threads=config.threads))
        )
        write_fold(folder / f"fold_{fold}", model.bag, model.features, {"kind": FOLDER})
    oof = pd.concat(parts).set_index("id").loc[train["id"]].reset_index()
    known = models[0].has_values(train)
    value = calibrator = record = None
    if models[0].bag is not None:
        p = oof["p"].to_numpy(np.float64)
        calibration = calibrate_nested(p, y, fold_of, experiment.split_group)
        calibrator, record = calibration.final, calibration_record(calibration, y, experiment.split_group)
        oof["p_calibrated"] = np.where(known, calibration.p, p)
        score = oof["p_calibrated"] if config.objective == "logloss" else oof["p"]
        value = asdict(interval(config.objective, y, score.to_numpy(np.float64), experiment.split_group))
        if (rows := models[0].has_values(test)).any():
            logits = np.stack([model.logit(test, threads=config.threads)[rows] for model in models])
            averaged = calibrate_average(calibrator, expit(logits.astype(np.float64)))
            calibrator, record = averaged.final, {**record, "fold_average": averaged.record()}
    made = Fallback(tuple(models), calibrator, config.threads).predict(test)
    meta = {
        "fingerprint": fingerprint(inputs),
        "level": 2,
        "kind": FOLDER,
        "inputs": inputs,
        "objective": config.objective,
        "value": value,
        "rows_without_values": int((~known).sum()),
        "calibration": record,
        "state": fallback_state(models, calibrator),
    }
    predictions = made.assign(id=test["id"])[["id", "p_calibrated", "basis"]]
    return write_run(folder, meta, frames={"oof": oof, "predictions": predictions})


def _fit_fold(experiment: Experiment, rows: NDArray[np.intp]) -> FoldModel:
    config, frame, y = experiment.config, experiment.table.train.iloc[rows], experiment.target[rows]
    features = FoldFeatures(image_free(config.features), (), seed=config.seed, columns=experiment.table.columns)
    features.fit(frame, np.empty((len(frame), 0), np.float32), {})
    bare = FoldModel(features, None, float(logit(y.mean())))
    if not bare.has_values(experiment.table.train).any():  # of all folds alike: a fold without values is no other table
        return bare
    bag = fit_bag(
        BagSettings(_KIND),
        _matrix(features, frame),
        y,
        early_stopping_rows(experiment, rows),
        seed=config.seed,
        threads=config.threads,
    )
    return FoldModel(features, bag, bare.prior)


def _matrix(features: FoldFeatures, frame: pd.DataFrame) -> pd.DataFrame:
    return features.transform(frame, np.empty((len(frame), 0), np.float32), {})


def fallback_state(models: list[FoldModel], calibrator: Calibrator | None) -> dict[str, Any]:
    """Returns what `read_fallback` needs beside the files of the folds, as a dict for JSON."""
    return {
        "priors": [model.prior for model in models],
        "shifts": [None if model.bag is None else model.bag.shift for model in models],
        "calibrator": None if calibrator is None else calibrator_state(calibrator),
    }


def read_fallback(
    read: Callable[[str], bytes], state: Mapping[str, Any], features: Features, *, columns: TableColumns, threads: int
) -> Fallback:
    """Reads the fallback of an experiment or a bundle with these ``features`` and table ``columns``.

    ``read`` returns the content of a file by its name below the fallback's folder.

    Raises TabularError, OSError, ValueError, LookupError or TypeError for parts that are missing or damaged.
    """
    models = []
    for fold, (prior, shift) in enumerate(zip(state["priors"], state["shifts"], strict=True)):
        fitted = FoldFeatures(image_free(features), (), seed=0, columns=columns)
        fitted.restore(read(f"fold_{fold}/{FEATURES_FILE}").decode("utf-8"), {})
        bag = None
        if shift is not None:
            model = {_MODEL: read(f"fold_{fold}/{_MODEL}")}
            bag = bag_from_contents(_KIND, model, f"{FOLDER}/fold_{fold}", shift=float(shift))
        models.append(FoldModel(fitted, bag, float(prior)))
    calibrator = None if state["calibrator"] is None else calibrator_from_state(state["calibrator"])
    return Fallback(tuple(models), calibrator, threads)


def write_state(folder: Path, run: Run) -> None:
    """Writes the state and the nested score of a fallback's run as JSON, for a bundle."""
    content = {"state": run.meta["state"], "performance": performance(run)}
    (folder / STATE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")

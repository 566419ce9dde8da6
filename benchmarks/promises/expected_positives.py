"""Simulates how many positives new rows have, and how many their calibrated risks say.

Each repetition is another data set: patients with features and a risk that is known, three small models fitted for each
of five folds, the pipeline's nested blend and Platt scaling, and new patients, whose rows every fold's models predict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from benchmarks.promises.promise import Promise
from stack.blend.calibration import fit_platt
from stack.blend.fold_average import average_scores, calibrate_average
from stack.blend.nested import blend_nested
from stack.metrics.expected_positives import calibration_noise, expected_positives
from stack.predictions.joined import Predictions
from stack.submission import fold_scores

Floats = NDArray[np.float64]
FOLDS, FEATURES, STRENGTH = 5, 30, 1.5
PENALTIES = (1.0, 0.1, 0.01)  # of the three models: the first overfits, the last underfits
SETTINGS = {  # patients in training and among new rows, log odds of the average patient, method of the blend
    "500 patients, 1,500 rows, 6 % positive; 300 new patients; rank_mean": (500, 300, -4.0, "rank_mean"),
    "300 patients, 900 rows, 11 % positive; 800 new patients; averaged_logistic": (300, 800, -3.0, "averaged_logistic"),
}


@dataclass(frozen=True)
class Rows:
    """Generated rows: features (n, d), targets, true risks and patients (n,)."""

    x: Floats
    y: NDArray[np.int64]
    risk: Floats
    patient: NDArray[np.int64]


@dataclass(frozen=True)
class Outcome:
    """Expected positives of new rows with their interval, and what they were."""

    expected: float
    of_single_nets_map: float  # expected by the map of single nets, applied to averages
    low: float
    high: float
    observed: int
    true: float  # sum of the true risks


def draw(patients: int, weights: Floats, level: float, rng: np.random.Generator) -> Rows:
    """Draws patients with one to many rows, which share a part of their features and of their risk."""
    patient = np.repeat(np.arange(patients), 1 + rng.poisson(2, patients))
    x = rng.normal(size=(len(patient), weights.size)) + 0.5 * rng.normal(size=(patients, weights.size))[patient]
    risk = expit(level + x @ weights + 0.5 * rng.normal(size=patients)[patient])
    return Rows(x, (rng.random(len(risk)) < risk).astype(np.int64), risk, patient)


def one(patients: int, new_patients: int, level: float, method: str, rng: np.random.Generator) -> Outcome:
    """Makes a data set, fits everything on it and predicts new patients of the same population.

    The calibration is Platt scaling, without the nested choice of a map, which takes most of the time.
    """
    weights = rng.normal(size=FEATURES)
    weights *= STRENGTH / np.linalg.norm(weights)
    train, new = draw(patients, weights, level, rng), draw(new_patients, weights, level, rng)
    fold = rng.permutation(np.arange(patients) % FOLDS)[train.patient].astype(np.int8)
    oof, test = np.empty((len(train.y), len(PENALTIES))), np.empty((FOLDS, len(new.y), len(PENALTIES)))
    for run, strength in enumerate(PENALTIES):
        seen = rng.random(FEATURES) < 0.7  # each run looks at other features
        for k in range(FOLDS):
            rest = fold != k
            model = LogisticRegression(C=strength, max_iter=200).fit(train.x[rest][:, seen], train.y[rest])
            oof[~rest, run] = model.predict_proba(train.x[~rest][:, seen])[:, 1]
            test[k, :, run] = model.predict_proba(new.x[:, seen])[:, 1]
    nets, folds = np.repeat(fold[:, None], len(PENALTIES), 1), np.arange(FOLDS, dtype=np.int8)
    found = blend_nested(oof, train.y, nets=nets, fold=fold, split_group=train.patient, methods=(method,))
    nested = found.by_method[method]
    single, held_out = fit_platt(nested, train.y), np.empty(len(nested))
    for k in range(FOLDS):
        held_out[fold == k] = fit_platt(nested[fold != k], train.y[fold != k])(nested[fold == k])
    predictions = Predictions(
        tuple(f"run{number}" for number in range(len(PENALTIES))), np.arange(len(train.y)),
        logit(oof).astype(np.float32), nets, logit(test).astype(np.float32),
        np.repeat(folds[:, None], len(PENALTIES), 1),
    )  # fmt: skip
    scores = fold_scores(found.final, predictions)
    p = calibrate_average(single, scores).final(average_scores(scores))
    number = expected_positives(p, calibration_noise(train.y, held_out, train.patient))
    return Outcome(
        number.value, float(single(average_scores(scores)).sum()), number.low, number.high, int(new.y.sum()),
        float(new.risk.sum()),
    )  # fmt: skip


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Returns how often the observed positives lie in the prediction interval."""
    promises = []
    for number, (setting, sizes) in enumerate(SETTINGS.items()):
        made = [one(*sizes, np.random.default_rng([seed, number, draw])) for draw in range(repetitions)]
        held = sum(of.low <= of.observed <= of.high for of in made)
        ratio, before = (
            float(np.exp(np.mean(np.log([getattr(of, name) / of.true for of in made]))))
            for name in ("expected", "of_single_nets_map")
        )
        promises.append(
            Promise(
                "the positives of new rows lie in the 95 % prediction interval of the sum of their calibrated risks",
                setting, 0.95, held, repetitions,
                note=f"expected / true {ratio:.3f} on average, {before:.3f} by the map of single nets",
            )
        )  # fmt: skip
    return promises

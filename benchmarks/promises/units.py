"""Promises of a blend of units (`predict_per`), whose pooling is chosen inside the nest: interval and review band."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from benchmarks.promises.promise import Promise
from stack.blend.calibration import calibrate_nested
from stack.blend.nested import NestedSettings
from stack.blend.pooling import blend_pooled, pool_all, pool_predictions, pooling_and_method
from stack.metrics.intervals import interval
from stack.metrics.risk_control import guaranteed_threshold
from stack.metrics.scores import auc
from stack.predictions.joined import Predictions
from stack.predictions.ranks import AVERAGED

FOLDS, GROUPS, FRESH = 4, 120, 3000  # patients with two units each, of one to four images
POOLINGS = ("mean", "maximum", "noisy_or")
SENSITIVITY, CONFIDENCE = 0.8, 0.9  # of the review band
NO_IMAGES = np.empty(0, np.intp)


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Counts in how many data sets each promise holds on fresh patients.

    The interval is to contain the mean AUC of the folds' blends; the submitted blend, with its calibration, is to reach
    the sensitivity of the review band.
    """
    made = []
    for shows in ("one", "all"):
        tried = [_tried(np.random.default_rng([seed, number, len(shows)]), shows) for number in range(repetitions)]
        which = "one image of a positive unit shows it" if shows == "one" else "all images of a positive unit show it"
        setting = f"{GROUPS} patients of two units of 1 to 4 images, two runs, {FOLDS} folds; {which}"
        made.append(
            Promise(
                "the 95 % interval of the nested AUC of units, pooling chosen inside, contains the AUC on fresh units",
                setting,
                nominal=0.95,
                held=sum(contains for contains, _ in tried),
                repetitions=repetitions,
            )
        )
        reached = [value for _, value in tried if value is not None]
        made.append(
            Promise(
                f"the sensitivity of the review band of units, chosen by patients, is at least {SENSITIVITY:.0%}",
                setting,
                nominal=CONFIDENCE,
                held=repetitions - sum(value < SENSITIVITY for value in reached),
                repetitions=repetitions,
                note=f"a threshold in {len(reached) / repetitions:.0%}",
            )
        )
    return made


def _tried(rng: np.random.Generator, shows: str) -> tuple[bool, float | None]:
    """Returns whether the interval holds, and the true sensitivity of the band; None where it decides nothing."""
    y, group, unit, oof = _units(rng, GROUPS, shows)
    fold = (group % FOLDS).astype(np.int8)
    pooled = pool_all(_predictions(oof, fold[unit], group[unit]), unit, NO_IMAGES, POOLINGS)
    names = group.astype(str).astype(object)
    settings = NestedSettings(("rank_mean",), preselect=False)
    found = blend_pooled(pooled, y, settings, fold=fold, split_group=names)
    value = interval("auc", y, found.score, names)
    new_y, new_group, new_unit, new_oof = _units(rng, FRESH, shows)
    new = _predictions(new_oof, np.zeros(len(new_unit), np.int8), new_group[new_unit])
    truth = {}
    for candidate in set(found.chosen_by_fold.values()):  # equal weights: the fold's blend is the pooling alone
        of_units = pool_predictions(new, new_unit, NO_IMAGES, pooling_and_method(candidate)[0])
        ranks = found.final.scaler_.ranks_.transform(
            expit(of_units.oof.astype(np.float64)), np.full(of_units.oof.shape, AVERAGED)
        )
        truth[candidate] = auc(new_y, ranks.mean(axis=1))
    expected = np.mean([truth[candidate] for candidate in found.chosen_by_fold.values()])
    calibration = calibrate_nested(found.by_method[found.chosen], y, fold, names)
    chosen = guaranteed_threshold(y, calibration.p, names, "sensitivity", SENSITIVITY, CONFIDENCE, exact=True)
    sensitivity = None
    if chosen.threshold is not None:
        of_units = pool_predictions(new, new_unit, NO_IMAGES, pooling_and_method(found.chosen)[0])
        score = found.final.predict_proba(
            expit(of_units.oof.astype(np.float64)), nets=np.full(of_units.oof.shape, AVERAGED)
        )[:, 1]
        sensitivity = float((calibration.final(score)[new_y == 1] >= chosen.threshold).mean())
    return bool(value.low <= expected <= value.high), sensitivity


def _units(
    rng: np.random.Generator, groups: int, shows: str
) -> tuple[NDArray[np.int8], NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Returns target and group of each unit, the unit of each image, and logits (images, runs)."""
    group = np.repeat(np.arange(groups), 2)
    risk = np.repeat(rng.normal(0, 1, groups), 2)  # units of a patient are alike
    y = (rng.random(2 * groups) < expit(risk - 1)).astype(np.int8)
    unit = np.repeat(np.arange(2 * groups), rng.integers(1, 5, 2 * groups))
    first = np.concatenate([[True], np.diff(unit) > 0])
    signal = y[unit] * (2.5 * first if shows == "one" else 1.0)
    return y, group, unit, signal[:, None] + 0.3 * risk[unit, None] + rng.normal(0, 1, (len(unit), 2))


def _predictions(oof: NDArray[np.float64], fold: NDArray[np.int8], group: NDArray[np.intp]) -> Predictions:
    runs = oof.shape[1]
    return Predictions(
        ("a", "b"), np.arange(len(oof)), oof.astype(np.float32), np.repeat(fold[:, None], runs, axis=1),
        np.empty((FOLDS, 0, runs), np.float32), np.zeros((FOLDS, runs), np.int8), group.astype(str).astype(object),
    )  # fmt: skip

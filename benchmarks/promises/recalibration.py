"""Simulates labels of another hospital, and what a closed test and an estimate of the prevalence make of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

from benchmarks.promises.promise import Promise
from stack.metrics.closed_test import LEVEL, NONE, ClosedTest, closed_test
from stack.metrics.labels_needed import flatter, labels_needed
from stack.metrics.prior_shift import estimate_prevalence

Floats = NDArray[np.float64]
PATIENTS, IMAGES = 120, 4  # patients, and their images on average
WITHIN = 0.3  # correlation of what makes two images of a patient positive, beside their risks
TRAINED_AT, SHIFTED_TO = 0.2, 0.05  # prevalence in training, and of the other hospital


def labels(
    rng: np.random.Generator, *, slope: float = 1.0, level: float = 0.0
) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Draws targets, risks and patients; the true log odds are slope · logit(risk) + level in every row."""
    patient = np.repeat(np.arange(PATIENTS), 1 + rng.poisson(IMAGES - 1, PATIENTS))
    x = rng.normal(-2.5, 1.5, len(patient)) + 0.5 * rng.normal(size=PATIENTS)[patient]
    cause = np.sqrt(WITHIN) * rng.normal(size=PATIENTS)[patient] + np.sqrt(1 - WITHIN) * rng.normal(size=len(x))
    return (ndtr(cause) < expit(slope * x + level)).astype(np.int64), expit(x), patient


def shifted(rng: np.random.Generator, images: int) -> Floats:
    """Draws risks, calibrated for `TRAINED_AT`, of images of a hospital with the prevalence `SHIFTED_TO`.

    Given the target, scores are normal with variance 1 and means 2 apart, here as there.
    """
    y = rng.random(images) < SHIFTED_TO
    score = rng.normal(size=images) + 2.0 * y
    risk: Floats = expit(2.0 * score - 2.0 + logit(TRAINED_AT))
    return risk


def labels_suffice(repetitions: int, seed: int) -> list[Promise]:
    """Returns how often as many labels as `labels_needed` says do what they are said to do."""
    x = np.random.default_rng([seed, 4]).normal(-2.5, 1.3, 20_000)
    wrong = {"twice": x - np.log(2), "1.5 times": x - np.log(1.5), "slope 0.7": logit(flatter(x, 0.7))}
    made = []
    for number, of in enumerate(labels_needed(expit(x))):
        truth = next((true for words, true in wrong.items() if words in of.purpose), x)
        reached = 0
        for draw in range(repetitions):
            rng = np.random.default_rng([seed, 5, number, draw])
            rows = rng.integers(0, len(x), of.images)
            y, p, alone = (
                (rng.random(of.images) < expit(truth[rows])).astype(np.int64),
                expit(x[rows]),
                np.arange(of.images),
            )
            if "the test finds" in of.purpose:
                reached += closed_test(y, p, alone).chosen != NONE
            elif "slope" in of.purpose:
                reached += abs(closed_test(y, p, alone).slope_found.value - 1) <= 0.2
            else:
                reached += abs(np.log(y.sum() / p.sum())) <= np.log(1.2)
        nominal = 0.80 if "80 % power" in of.purpose else 0.95
        setting = (
            f"{of.images:,} labelled images of as many patients, {of.positives} positive, as stated for these risks"
        )
        made.append(Promise(of.purpose, setting, nominal, int(reached), repetitions))
    return made


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Returns how often the closed test errs, intervals contain the truth, and stated numbers of labels suffice."""

    def tests(number: int, **truth: float) -> list[ClosedTest]:
        return [
            closed_test(*labels(np.random.default_rng([seed, number, draw]), **truth)) for draw in range(repetitions)
        ]

    right, moved, flat = tests(0), tests(1, level=-0.8), tests(2, slope=0.7, level=-0.3)
    chosen = [Counter(test.chosen for test in of) for of in (right, moved, flat)]
    setting = f"{PATIENTS} patients, {PATIENTS * IMAGES} images, correlation {WITHIN} within patients"
    slopes = [(test.slope_found, truth) for of, truth in ((right, 1.0), (flat, 0.7)) for test in of]
    level = [test.level_found for test in moved]
    prevalences = [
        estimate_prevalence(p, TRAINED_AT, np.arange(len(p))).interval
        for p in (shifted(np.random.default_rng([seed, 3, draw]), 800) for draw in range(repetitions))
    ]
    return [
        Promise("risks that are right are left as they are", setting, 0.95, chosen[0][NONE], repetitions),
        Promise(
            "where only the level is wrong, the slope is left as it is", f"{setting}; level -0.8", 0.95,
            chosen[1][NONE] + chosen[1][LEVEL], repetitions,
            note=f"a change was found in {1 - chosen[1][NONE] / repetitions:.2f}",
        ),
        Promise(
            "the 95 % interval of the slope contains it", f"{setting}; slopes 1 and 0.7", 0.95,
            sum(of.low <= truth <= of.high for of, truth in slopes), 2 * repetitions,
        ),
        Promise(
            "the 95 % interval of the level contains it", f"{setting}; level -0.8", 0.95,
            sum(of.low <= -0.8 <= of.high for of in level), repetitions,
        ),
        Promise(
            "the 95 % interval of the prevalence, without labels, contains it",
            f"800 images, prevalence {SHIFTED_TO} instead of {TRAINED_AT}, scores of each class as in training", 0.95,
            sum(of.low <= SHIFTED_TO <= of.high for of in prevalences), repetitions,
        ),
        *labels_suffice(repetitions, seed),
    ]  # fmt: skip

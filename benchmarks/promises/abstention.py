"""Promises of the review band: the true sensitivity or predictive value of the threshold is at least the level asked.

The truth is that of a large sample from the same population of patients. A band that decides nothing keeps its promise:
the note says how often there was one. "New images" are scored as by a bundle: by the mean of five nets instead of one,
and by the calibration of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from benchmarks.promises.promise import Promise
from stack.blend.calibration import Platt, fit_platt
from stack.metrics.risk_control import UPPER_AIMS, guaranteed_threshold

CONFIDENCE = 0.9
TRUTH_PATIENTS = 40_000
FOLDS = 5
FLOATS = NDArray[np.float64]


@dataclass(frozen=True)
class Population:
    """Patients with correlated images: how many images, how alike their targets and scores are."""

    name: str
    patients: int
    most_images: int = 1
    alike: float = 1.0  # standard deviation of the patients' log odds, and of their scores
    hard: float = 0.0  # how much lower the positives of patients with many images are scored
    prevalence: float = 0.2
    shift: float = 2.5  # of a positive's score
    net_noise: float = 0.7  # of a single net


@dataclass(frozen=True)
class Images:
    """Drawn images: target, patient, and the scores (logits) of one net and of the mean of five."""

    y: NDArray[np.bool_]
    patient: NDArray[np.intp]
    one: FLOATS
    mean: FLOATS


def draw(of: Population, patients: int, rng: np.random.Generator) -> Images:
    """Draws the images of this many patients."""
    sizes = np.minimum(rng.geometric(0.45, patients), of.most_images)
    patient = np.repeat(np.arange(patients), sizes)
    risk, look = of.alike * rng.standard_normal((2, patients))
    y = rng.random(len(patient)) < expit(np.log(of.prevalence / (1 - of.prevalence)) + risk[patient])
    signal = (of.shift - of.hard * (sizes[patient] - 1)) * y + 0.7 * look[patient] + rng.standard_normal(len(patient))
    noise = of.net_noise * rng.standard_normal((FOLDS, len(patient)))
    return Images(y, patient, signal + noise[0], signal + noise.mean(axis=0))


def calibrated(score: FLOATS, y: NDArray[np.bool_], patient: NDArray[np.intp]) -> tuple[FLOATS, Platt]:
    """Returns p of each image by a map that was fitted without its fold, and the map of all images."""
    raw, p = expit(score), np.empty(len(y))
    for fold in range(FOLDS):
        held = patient % FOLDS == fold
        p[held] = fit_platt(raw[~held], y[~held])(raw[held])
    return p, fit_platt(raw, y)


class Truth:
    """The value of an aim at any threshold, in a large sample of a population."""

    def __init__(self, y: NDArray[np.bool_], score: FLOATS) -> None:
        order = np.argsort(score)
        self.score = score[order]
        self.below = [np.append(0, np.cumsum(rows[order])) for rows in (y, ~y)]  # positives and negatives

    def __call__(self, platt: Platt, aim: str, threshold: float) -> tuple[float, float]:
        """Returns the aim (1 where nothing is decided), and the share of decided images."""
        assert platt.slope > 0
        cut = (float(logit(np.clip(threshold, 1e-12, 1 - 1e-12))) - platt.intercept) / platt.slope
        place = np.searchsorted(self.score, cut, "left")
        decided = [int(count[place]) for count in self.below]
        if aim in UPPER_AIMS:
            decided = [int(count[-1] - count[place]) for count in self.below][::-1]  # negatives are wrong
        wrong, all_decided = decided[0], sum(decided)
        of_class = int(self.below[aim in UPPER_AIMS][-1])
        counted = all_decided if aim in ("npv", "ppv") else of_class
        return 1 - wrong / max(counted, 1), all_decided / len(self.score)


SINGLE = Population("one image each", 400)
CLUSTERED = Population("up to 8 images, alike", 400, most_images=8)
HARD = Population("up to 8 images, the more the harder", 400, most_images=8, hard=0.4)
FEW = Population("up to 8 images, alike, few patients", 150, most_images=8, prevalence=0.3)
MANY = Population("up to 20 images, very alike", 2_000, most_images=20, alike=1.5, prevalence=0.1)

AIMS: list[tuple[Population, list[tuple[str, float]]]] = [
    (SINGLE, [("sensitivity", 0.95), ("npv", 0.96)]),
    (FEW, [("sensitivity", 0.9)]),
    (CLUSTERED, [("sensitivity", 0.9), ("npv", 0.95), ("specificity", 0.8), ("ppv", 0.6)]),
    (HARD, [("sensitivity", 0.9)]),
    (MANY, [("sensitivity", 0.95), ("npv", 0.98)]),
]


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Returns the promises for each population, aim and test, for images scored by one net and for new images."""
    return [promise for number in range(len(AIMS)) for promise in _of_population(number, repetitions, seed)]


def _of_population(number: int, repetitions: int, seed: int) -> list[Promise]:
    of, aims = AIMS[number]
    everyone = draw(of, TRUTH_PATIENTS, np.random.default_rng([seed, 0, number]))
    truths = [Truth(everyone.y, score) for score in (everyone.one, everyone.mean)]
    rng = np.random.default_rng([seed, 1, number])
    cases = [(*aim, exact) for aim, exact in product(aims, (True, False)) if exact or of.most_images > 1]
    found: dict[tuple[str, float, bool], list[tuple[float, float, float]]] = {case: [] for case in cases}
    for _ in range(repetitions):
        images = draw(of, of.patients, rng)
        p, platt = calibrated(images.one, images.y, images.patient)
        for aim, level, exact in cases:
            chosen = guaranteed_threshold(images.y, p, images.patient, aim, level, CONFIDENCE, exact=exact)
            if chosen.threshold is not None:
                (one, _), (mean, share) = (truth(platt, aim, chosen.threshold) for truth in truths)
                found[aim, level, exact].append((one, mean, share))
    made = []
    for (aim, level, exact), values in found.items():
        setting = f"{of.patients:,} patients, {of.name}, {of.prevalence:.0%} positive"
        setting += "" if exact else "; test: approximate"
        share = float(np.mean([share for *_, share in values])) if values else 0.0
        note = f"a threshold in {len(values) / repetitions:.0%}, which decides {share:.0%} of the images"
        for place, kind in enumerate(("", " of new images (mean of five nets)")):
            held = repetitions - sum(value[place] < level for value in values)
            statement = f"the threshold's {aim}{kind} is at least {level:.0%}"
            made.append(Promise(statement, setting, CONFIDENCE, held, repetitions, note=note))
    return made

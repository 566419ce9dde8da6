"""Simulates the interval over sources and the prediction interval for the next one, with known AUCs of the sources."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

from benchmarks.promises.promise import Promise
from stack.metrics.by_source import auc_over_sources

SOURCES = (3, 5, 8, 20)
SPREADS = (0.2, 0.5)  # standard deviation of logit(AUC) between sources; 0.5: 95 % of AUCs from 0.68 to 0.94
MEAN_AUC, PREVALENCE, PATIENTS = 0.85, 0.2, (60, 120, 240)


def simulate(repetitions: int, seed: int) -> list[Promise]:
    """Counts how often the mean AUC of all sources and the AUC of a further source are in their intervals."""
    promises = []
    for sources in SOURCES:
        for spread in SPREADS:
            rng = np.random.default_rng([seed, sources, int(10 * spread)])
            mean_in = next_in = 0
            for _ in range(repetitions):
                true = expit(logit(MEAN_AUC) + spread * rng.standard_normal(sources + 1))
                parts = [one_source(rng, value) for value in true[:-1]]
                y, s = (np.concatenate([part[field] for part in parts]) for field in (0, 1))
                source = np.repeat(np.arange(sources), [len(part[0]) for part in parts])
                group = np.concatenate([part[2] + 1000 * number for number, part in enumerate(parts)])
                found = auc_over_sources(y, s, group, source)
                mean_in += found.low <= MEAN_AUC <= found.high
                next_in += found.next_low <= true[-1] <= found.next_high
            setting = (
                f"{sources} sources of {PATIENTS[0]} to {PATIENTS[-1]} patients with 1 to 3 images, prevalence "
                f"{PREVALENCE}, AUC {MEAN_AUC} in a typical source, SD of its logit between sources {spread}"
            )
            for statement, held in (
                ("the 95 % interval over sources contains the AUC of a typical source", mean_in),
                ("the 95 % prediction interval contains the AUC of the next source", next_in),
            ):
                promises.append(Promise(statement, setting, 0.95, int(held), repetitions))
    return promises


def one_source(
    rng: np.random.Generator, auc: float
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.int64]]:
    """Draws targets, scores and patients of a source whose true AUC is ``auc``; a patient's scores share half of it."""
    patients = int(rng.choice(PATIENTS))
    group = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    y = rng.random(len(group)) < PREVALENCE
    shared = rng.standard_normal(patients)[group]
    noise = np.sqrt(0.5) * (shared + rng.standard_normal(len(group)))
    return y, noise + np.sqrt(2) * float(norm.ppf(auc)) * y, group

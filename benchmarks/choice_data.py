"""Simulates runs and rows for the benchmark of the nested choice of the blend's method."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from stack.metrics.scores import Floats

Ints = NDArray[np.int64]

FOLDS, NEW_ROWS, SEED = 5, 10_000, 4243
DESIGN_SIZES, DESIGN_SPREADS = {300: 150, 1000: 40}, (0.0, 0.15, 0.4)  # rows: half the repetitions
SIZES = {300: (30, 70), 3000: (150, 8), 30_000: (600, 2)}  # rows: positives, repetitions
KINDS = {
    "equal": lambda runs: np.full(runs, 1.2),
    "unequal": lambda runs: np.linspace(0.4, 1.6, runs),
    "a quarter carries nothing": lambda runs: np.where(np.arange(runs) < max(1, runs // 4), 0.0, 1.2),
}


@dataclass(frozen=True)
class Rows:
    P: Floats
    y: Ints
    fold: Ints
    group: Ints


def grouped_folds(y: Ints, group: Ints, folds: int, rng: np.random.Generator) -> Ints:
    has_positive = np.bincount(group, y) > 0
    order = rng.permutation(has_positive.size)
    order = order[np.argsort(~has_positive[order], kind="stable")]
    fold = np.empty(has_positive.size, int)
    fold[order] = np.arange(has_positive.size) % folds
    return fold[group]


def simulated_rows(
    rows: int, positives: int, strengths: Floats, scale: Floats, rng: np.random.Generator, own: float = 1.0
) -> Rows:
    """Simulates correlated runs on groups of three rows that share a part of their noise; every net has its scale."""
    y = rng.permutation(np.arange(rows) < positives).astype(int)
    group = np.arange(rows) // 3
    fold = grouped_folds(y, group, len(scale), rng)
    shared = 0.9 * rng.normal(size=(rows, 1)) + 0.4 * rng.normal(size=(group[-1] + 1, 1))[group]
    logits = np.outer(y, strengths) + np.sqrt(0.5) * (
        shared * (strengths > 0) + own * rng.normal(size=(rows, strengths.size))
    )
    return Rows(expit(logits * scale[fold] - 3), y, fold, group)


def benchmark_data(kind: str, runs: int, rows: int) -> Iterator[tuple[Rows, Rows]]:
    positives, repetitions = SIZES[rows]
    strengths = KINDS[kind](runs)
    for repetition in range(repetitions):
        rng = np.random.default_rng([SEED, repetition, runs, rows])
        scale = rng.uniform(0.9, 1.1, (FOLDS, runs))
        yield (
            simulated_rows(rows, positives, strengths, scale, rng),
            simulated_rows(NEW_ROWS, NEW_ROWS // 10, strengths, scale, rng),
        )


def design_data(spread: float, rows: int, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Simulates 2 to 12 runs on several common factors with heavy tails, in groups of random size that share a risk.

    Each run has its temperature, each net its scale and shift; prevalence is 7 to 35 %. Strengths vary by `spread`.
    """
    runs, prevalence, base = int(rng.integers(2, 13)), rng.choice([0.07, 0.1, 0.2, 0.35]), rng.uniform(0.8, 2.0)
    strengths, own = base * np.exp(spread * rng.normal(size=runs)), rng.uniform(0.6, 1.2)
    factors = int(rng.integers(1, 4))
    loadings = 0.5 * rng.normal(size=(factors, 1)) + 0.3 * rng.normal(size=(factors, runs)) * (spread > 0)
    temperature = np.exp(0.3 * rng.normal(size=runs))
    scale, shift = rng.uniform(0.85, 1.15, (FOLDS, runs)), 0.2 * rng.normal(size=(FOLDS, runs))
    group_size = rng.choice([1.0, 2.0, 4.0])

    def draw(n: int, prevalence: float) -> Rows:
        group = np.repeat(np.arange(n), rng.geometric(1 / group_size, size=n))[:n]
        risk = 0.7 * rng.normal(size=group[-1] + 1)[group] + rng.normal(size=n)
        y = np.zeros(n, int)
        y[np.argsort(-risk)[: max(20, round(prevalence * n))]] = 1
        fold = grouped_folds(y, group, FOLDS, rng)
        noise = rng.standard_t(5, size=(n, factors)) @ loadings + own * rng.standard_t(4, (n, runs)) / np.sqrt(2)
        logits = (np.outer(y, strengths) + noise) * temperature * scale[fold] + shift[fold] - 2.5
        return Rows(expit(logits), y, fold, group)

    return draw(rows, prevalence), draw(2 * NEW_ROWS, 0.3)

"""How often the audit calls an honest run one that learned the test rows from pseudo-labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.promises.promise import Promise
from dermstack.audit.second_round import NetScores, second_round

FOLDS, GROUPS, TEST_GROUPS, ROWS = 5, 400, 120, 3  # rows of a group


def simulate(repetitions: int, seed: int) -> list[Promise]:
    rng = np.random.default_rng(seed)
    quiet = 0
    for _ in range(repetitions):
        fold = np.repeat(rng.permutation(np.arange(GROUPS) % FOLDS), ROWS)
        groups = [np.repeat(np.arange(n), ROWS) for n in (GROUPS, TEST_GROUPS)]
        risks = [rng.normal(size=GROUPS * ROWS), 0.3 + 1.3 * rng.normal(size=TEST_GROUPS * ROWS)]
        runs = [_honest(risks, groups, fold, rng) for _ in range(3)]
        made = second_round(runs[0], runs[1:], fold, groups[0], groups[1], seed=int(rng.integers(2**31)))
        quiet += made is not None and made.labels == "none seen"
    setting = f"{GROUPS} groups of {ROWS} rows, {TEST_GROUPS} of test rows with other risks, 3 runs of {FOLDS} folds"
    return [Promise("an honest run raises no alarm about pseudo-labels", setting, 0.99, quiet, repetitions)]


def _honest(
    risks: list[NDArray[np.float64]], groups: list[NDArray[np.intp]], fold: NDArray[np.intp], rng: np.random.Generator
) -> NetScores:
    """A run that sees the risk with an error of its own, shared by its nets and in part by a group, and net noise."""
    noise = rng.uniform(0.2, 1.0)
    parts = []
    for risk, group in zip(risks, groups, strict=True):
        error = 0.5 * rng.normal(size=group.max() + 1)[group] + 0.5 * rng.normal(size=len(risk))
        parts.append(risk + error + noise * rng.normal(size=(FOLDS, len(risk))))
    return NetScores(parts[0][fold, np.arange(len(fold))], parts[1])

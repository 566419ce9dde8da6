"""Simulates runs that share noise, and writes them as the experiment of somebody who imports them all.

Real runs agree with one another far more than by their targets: they see the same images, and many are one recipe with
another seed. So each logit here is the target times the strength of its run, plus noise that all runs share, plus three
common factors that each run loads differently, plus noise of a family of four runs, plus noise of its own. Every fold
net has its own scale and shift. Rows come in groups of three, which share a part of their noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from scipy.special import expit

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

PREVALENCE, FACTORS, FAMILY, GROUP = 0.02, 3, 4, 3
COMMON, LOADING, FAMILY_NOISE, OWN = 0.6, 0.3, 0.6, 0.5  # standard deviations


@dataclass(frozen=True)
class Size:
    """Numbers of simulated runs, rows and folds."""

    runs: int
    rows: int
    folds: int

    def __str__(self) -> str:
        return f"{self.runs} runs × {self.rows:,} rows × {self.folds} folds"


@dataclass(frozen=True)
class Rows:
    """Simulated rows: predictions (n, runs) in [0, 1], targets, folds, groups and the best possible score (n,)."""

    P: Floats
    y: Ints
    fold: Ints
    group: Ints
    best: Floats


def simulate(size: Size, *, fresh: int = 50_000, seed: int = 0) -> tuple[Rows, Rows]:
    """Returns training rows and fresh rows of the same runs; the same arguments give the same rows.

    A fresh row is predicted by the net of one fold, as a training row is. The best score is Fisher's discriminant for
    the true strengths, covariance, scales and shifts: no blend can have a higher AUC but by chance.
    """
    runs, folds = size.runs, size.folds
    rng = np.random.default_rng([seed, runs, size.rows, folds])
    strengths = 1.2 * np.exp(0.15 * rng.normal(size=runs))
    loadings = LOADING * rng.normal(size=(FACTORS, runs))
    families = np.arange(runs) // FAMILY
    covariance = COMMON**2 + loadings.T @ loadings + FAMILY_NOISE**2 * (families[:, None] == families)
    best = np.linalg.solve(covariance + OWN**2 * np.eye(runs), strengths)
    scale, shift = rng.uniform(0.9, 1.1, (folds, runs)), 0.1 * rng.normal(size=(folds, runs))

    def draw(n: int) -> Rows:
        y = rng.permutation(np.arange(n) < max(2 * folds, round(PREVALENCE * n))).astype(np.int64)
        group = np.arange(n, dtype=np.int64) // GROUP
        fold = _grouped_folds(y, group, folds, rng)
        of_group, of_row = rng.normal(size=(2, n))
        common = COMMON * (np.sqrt(0.2) * of_group[group] + np.sqrt(0.8) * of_row)
        noise = common[:, None] + rng.normal(size=(n, FACTORS)) @ loadings
        noise += FAMILY_NOISE * rng.normal(size=(n, families[-1] + 1))[:, families] + OWN * rng.normal(size=(n, runs))
        logits = np.outer(y, strengths) + noise
        return Rows(expit(logits * scale[fold] + shift[fold] - 3), y, fold, group, logits @ best)

    return draw(size.rows), draw(fresh)


def _grouped_folds(y: Ints, group: Ints, folds: int, rng: np.random.Generator) -> Ints:
    """Deals whole groups to folds, those with a positive row first, so that every fold has as many."""
    has_positive = np.bincount(group, y) > 0
    order = rng.permutation(has_positive.size)
    order = order[np.argsort(~has_positive[order], kind="stable")]
    fold = np.empty(has_positive.size, np.int64)
    fold[order] = np.arange(has_positive.size) % folds
    return fold[group]


def write_experiment(folder: Path, size: Size, *, rounds: int = 300) -> Path:
    """Writes tables, the files of every run and daily.yaml, which it returns: two stackers, threads 1, n_jobs 2.

    `predictions/run<number>_oof.csv` has id, p and fold for each training row; `run<number>_test.csv` beside it has a
    row for each of a third as many test rows and each fold net. ``rounds`` is the limit of a GBDT's rounds.
    """
    folds, tests = size.folds, size.rows // GROUP
    train, fresh = simulate(size, fresh=tests * folds)
    predictions = folder / "predictions"
    predictions.mkdir(parents=True)
    rng = np.random.default_rng(1)
    tables = {"train": _table("a", train.group, rng), "test": _table("b", np.arange(tests) // GROUP, rng)}
    tables["train"] = tables["train"].assign(target=train.y, fold=train.fold)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    ids = np.repeat(tables["test"]["image_name"].to_numpy(), folds)
    for number in range(size.runs):
        oof = {"image_name": tables["train"]["image_name"], "p": train.P[:, number], "fold": train.fold}
        pd.DataFrame(oof).to_csv(predictions / f"run{number:03}_oof.csv", index=False)
        test = {"image_name": ids, "p": fresh.P[:, number], "fold": np.tile(np.arange(folds), tests)}
        pd.DataFrame(test).to_csv(predictions / f"run{number:03}_test.csv", index=False)
    columns = {
        "id": "image_name", "group": "patient_id", "target": "target", "fold": "fold", "age": "age_approx",
        "sex": "sex",
    }  # fmt: skip
    settings: dict[str, Any] = {
        "experiment": "daily", "runs": "runs", "threads": 1, "n_jobs": 2,
        "data": {"name": "daily", "train": "train.csv", "test": "test.csv", "columns": columns},
        "folds": {"k": folds},
        "stackers": [
            {"name": "lightgbm", "kind": "lightgbm", "params": {"rounds": rounds}},
            {"name": "logistic", "kind": "logistic"},
        ],
    }  # fmt: skip
    config = folder / "daily.yaml"
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return config


def _table(prefix: str, group: Ints, rng: np.random.Generator) -> pd.DataFrame:
    of_group = rng.integers(4, 17, group[-1] + 1) * 5, rng.choice(["female", "male"], group[-1] + 1)
    return pd.DataFrame({
        "image_name": [f"{prefix}{number:06}" for number in range(len(group))],
        "patient_id": [f"{prefix}p{number:05}" for number in group],
        "age_approx": of_group[0][group],
        "sex": of_group[1][group],
    })  # fmt: skip

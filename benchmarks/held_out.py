"""Checks the audit of held-out rows on simulated runs, whose true folds are known, and on real ones.

python benchmarks/held_out.py simulate [RUNS]
python benchmarks/held_out.py ../shared/data/siim2020/leaky/fold_model_predictions.parquet net1 net2 net3
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd

from dermstack.audit.folds import HeldOutVerdict, held_out_verdict

OVERFITS = (0.0, 0.1, 0.2, 0.4, 1.0)  # logits; they cause AUC gaps of about 0, 0.01, 0.02, 0.04 and 0.07
CLAIMS = ("true", "renumbered", "two swapped", "known elsewhere", "unknown")


@dataclass(frozen=True)
class SimulatedRun:
    """Scores (n, K) of fold models; targets, groups and true held-out folds (n,); claimed folds (n,) by name."""

    scores: np.ndarray
    y: np.ndarray
    group: np.ndarray
    true: np.ndarray
    claims: dict[str, np.ndarray]


def simulated(
    rng: np.random.Generator,
    *,
    memory: float,
    groups: int = 2000,
    rows: float = 16,
    k: int = 5,
    prevalence: float = 0.018,
    style: float = 0.3,
    ability: float = 0.1,
) -> SimulatedRun:
    """Simulates patients with about ``rows`` images each, and fold models that share most of their signal and errors.

    ``memory`` is how much higher, on average, a model scores a positive of its training rows; a negative is scored
    lower by 0.3 times that. ``style`` is the spread of a model's shift for all images of a patient, ``ability`` the
    spread of its slope there. Fold models differ in quality.
    """
    group = np.repeat(np.arange(groups), rng.geometric(1 / rows, groups))
    n = len(group)
    risk = rng.normal(0, 1.2, groups)[group] + rng.normal(0, 1, n) + rng.logistic(0, 1.5, n)
    y = (risk > np.quantile(risk, 1 - prevalence)).astype(int)
    assignments = [rng.permutation(groups) % k for _ in range(2)]
    true, other = (deal[group] for deal in assignments)
    seen_by_all = 0.8 * y + 0.2 * risk + rng.normal(0, 1, n)
    scores = np.empty((n, k))
    for model in range(k):
        slope = 1 + rng.normal(0, 0.03) + ability * rng.normal(0, 1, groups)[group]
        noise = rng.normal(0, 0.6 * np.exp(rng.normal(0, 0.1)), n) + style * rng.normal(0, 1, groups)[group]
        remembered = memory * np.abs(rng.normal(1, 0.7, n)) * np.where(y == 1, 1, -0.3)
        scores[:, model] = slope * seen_by_all + noise + np.where(true == model, 0, remembered)
    claims = {
        "true": true,
        "renumbered": (true + 1) % k,
        "two swapped": np.where(true < 2, 1 - true, true),
        "known elsewhere": other,
        "unknown": other,
    }
    return SimulatedRun(scores, y, group, true, claims)


def verdict(world: SimulatedRun, claim: str) -> HeldOutVerdict:
    """Returns the audit's verdict on a claim; for "known elsewhere", the audit also gets the true folds."""
    elsewhere = {"another run": world.true} if claim == "known elsewhere" else {}
    return held_out_verdict(world.scores, world.claims[claim], world.y, world.group, other_folds=elsewhere)


def simulate(runs: int) -> pd.DataFrame:
    """Counts the verdicts by memory and claim, with the mean AUC gap; a fifth of the runs also get wrong claims.

    ``unlike`` counts the runs in which the audit finds some model unlike the others.
    """
    records = []
    for memory in OVERFITS:
        for number in range(runs):
            world = simulated(np.random.default_rng((number, int(1000 * memory))), memory=memory)
            for claim in CLAIMS if number < runs // 5 else ("true",):
                found = verdict(world, claim)
                unlike = bool(found.by_fold["unlike"].any())
                records.append([memory, claim, found.gap.value, unlike, found.better_explanation or found.verdict])
    frame = pd.DataFrame(records, columns=["memory", "claim", "gap", "unlike", "verdict"])
    runs_by = frame.groupby(["memory", "claim"], sort=False)
    table = runs_by.agg(gap=("gap", "mean"), unlike=("unlike", "sum")).round(4)
    return table.join(runs_by["verdict"].value_counts().unstack(fill_value=0))


def judge_real_nets(path: str, nets: list[str]) -> None:
    """Prints the verdict on each net of a file with columns ``<net>_fold<k>``, patient_id, target and fold."""
    frame = pd.read_parquet(path)
    k = frame["fold"].nunique()
    for net in nets:
        started = time.perf_counter()
        scores = frame[[f"{net}_fold{number}" for number in range(k)]]
        found = held_out_verdict(scores, frame["fold"], frame["target"], frame["patient_id"])
        print(f"{net}: {found.verdict}; AUC gap {found.gap} (98 %), {time.perf_counter() - started:.1f} s")
        print(f"  p of other explanations {found.p_values}; the claimed folds fit models {found.best_numbering} best")
        print(found.by_fold.round(4).to_string(index=False))


def main() -> None:
    if sys.argv[1:2] == ["simulate"]:
        print(simulate(int(sys.argv[2]) if len(sys.argv) > 2 else 200).to_string())
    else:
        judge_real_nets(sys.argv[1], sys.argv[2:])


if __name__ == "__main__":
    main()

"""Simulates the leaderboard of `dermstack compare`: is the stated optimism of the best run right, do intervals cover?

python benchmarks/leaderboard.py [--repetitions 400] [--seed 7]

The runs have known AUCs and share a part of their noise; 400 patients have one to four rows each. "optimism" is the
mean of the best run's AUC minus its true AUC, "stated" what the leaderboard says it may be. A false "worse" is a table
in which a run that is at least as good as the one on top is called worse.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

from stack.leaderboard import WORSE, Entry, leaderboard
from stack.metrics.scores import Floats
from stack.store import Run

GROUPS, DRAWS, POSITIVE = 400, 500, 0.2
GOOD, OTHERS = 1.4, 1.0  # separation of the classes in standard deviations
GROUP_EFFECT = 0.3  # standard deviation that the rows of a group share; that of all noise is 1


@dataclass(frozen=True)
class World:
    """One kind of runs: their number, how many are good, the spread of these, and the share of common noise."""

    runs: int
    good: int
    spread: float
    common: float


WORLDS = (
    World(2, 2, 0, 0.8),
    World(10, 10, 0, 0.8),
    World(50, 50, 0, 0.8),
    World(50, 50, 0.05, 0.8),
    World(20, 5, 0, 0.8),
    World(20, 20, 0.1, 0),
    World(20, 20, 0, 0.95),
)


def draw(world: World, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats, Floats]:
    """Returns targets (n,), groups (n,), scores (n, runs) and the runs' true AUCs (runs,)."""
    separation = np.full(world.runs, OTHERS)
    separation[: world.good] = GOOD + rng.normal(0, world.spread, world.good)
    group = np.repeat(np.arange(GROUPS), rng.integers(1, 5, GROUPS))
    n = len(group)
    target = (rng.random(n) < POSITIVE).astype(np.intp)
    own = np.sqrt(1 - world.common**2 - GROUP_EFFECT**2)
    noise = world.common * rng.normal(size=(n, 1)) + GROUP_EFFECT * rng.normal(size=(GROUPS, 1))[group]
    score = noise + own * rng.normal(size=(n, world.runs)) + separation * target[:, None]
    return target, group, score, ndtr(separation / np.sqrt(2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="simulated data sets a line")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    print('| runs | of these good | spread | common | optimism | stated | cover: for all | alone | false "worse" |')
    print("|---|---|---|---|---|---|---|---|---|")
    for world in WORLDS:
        found = np.array([_one(world, rng) for _ in range(options.repetitions)])
        optimism, stated, for_all, alone, worse = found.mean(axis=0)
        error = found[:, 0].std() / np.sqrt(len(found))
        print(
            f"| {world.runs} | {world.good} | {world.spread} | {world.common} | {optimism:.4f} ± {error:.4f} | "
            f"{stated:.4f} | {for_all:.3f} | {alone:.3f} | {worse:.3f} |",
            flush=True,
        )


def _one(world: World, rng: np.random.Generator) -> tuple[float, float, bool, bool, bool]:
    """Returns the best run's optimism, what is stated, whether both intervals cover, and whether a "worse" is false."""
    target, group, score, truth = draw(world, rng)
    rows = pd.DataFrame({"id": np.arange(len(target)), "target": target, "split_group": group})
    of_run = {str(number): column for number, column in enumerate(score.T)}
    run = Run(Path("simulated"), {"kind": "image"})
    board = leaderboard([Entry(name, run, rows.assign(score=s), {}) for name, s in of_run.items()], draws=DRAWS)
    table = board.table
    true = truth[table["run"].astype(int)]
    best = table.iloc[0]
    return (
        float(best["auc"] - true[0]),
        board.optimism,
        bool(board.best.low <= true[0] <= board.best.high),
        bool(best["low"] <= true[0] <= best["high"]),
        bool(((table["verdict"] == WORSE).to_numpy() & (true >= true[0])).any()),
    )


if __name__ == "__main__":
    main()

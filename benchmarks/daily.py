"""Measures what a day of `dermstack stack` costs: commit b103a11, the present code and other tools in one run (Linux).

    python -m benchmarks.daily [PART …] [--quick] [--siim FOLDER] [--ham CONFIG] [--peers-python PYTHON]

Without PART it runs all of them. `PYTHONPATH=. python -m benchmarks.daily` measures the code of the current folder.

- `import`: 24 simulated runs, out-of-fold and test files, 10,000 rows, 10 folds
- `blend`: the nested blend of these runs, by the five methods of the old commit and by the default methods;
  `--runs 24 100 --rows 10000 33000 --folds 5 10` for a grid
- `score`: the default methods on ten data sets: paired nested AUC, and AUC of the final blend on 50,000 fresh rows
- `big`: the same two on 100 runs, 33,000 rows, 5 folds, present code only: seconds and memory
- `stack`: `dermstack stack` on the two real CNNs of SIIM-ISIC 2020 (`--siim`, where the folder is at hand), on the
  finished level-1 runs of another config (`--ham`; they are copied), else on the simulated runs
- `nothing`: `dermstack stack` again on the same, three times each in turn; the least of each
- `peers`: hillclimbers, AutoGluon's weighted ensemble and a plain Optuna study on 24 and 100 simulated runs, each also
  nested; benchmarks/daily_peers.py says what each does. They need a Python of their own: `python -m venv peers`,
  `peers/bin/pip install hillclimbers autogluon.tabular optuna`, then `--peers-python peers/bin/python`

Everything is simulated or copied into a temporary folder, which is removed, and so is the git worktree of the old
commit. Each measured command is a process of its own with one thread, and two tasks at once where it has `n_jobs`.
Ratios are old divided by present, of wall seconds and, since a machine may be busy, of processor seconds. `--limit`
ends what takes longer: its ratio is then a lower bound. `--quick` runs every part on tiny data in about two minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from benchmarks.daily_data import Rows, Size, simulate, write_experiment
from benchmarks.daily_experiments import Stack, finished_level_1, import_commands
from benchmarks.daily_measure import HERE, OLD_COMMIT, Cost, Tree, measure, two_trees

SIIM = HERE.parent / "shared" / "data" / "siim2020"
PEERS = ("hillclimbers", "autogluon", "optuna")
METHODS: dict[str, dict[str, Any]] = {
    "five as then": {"methods": ["rank_mean", "mean", "logistic", "hill_climb", "optuna"]},
    "default": {},
}
COSTS = f"{OLD_COMMIT}: seconds | processor | GB | now: seconds | processor | GB | ratio of seconds | of processor"


@dataclass
class Bench:
    """The two versions of the code, the options and a folder for everything that is made."""

    old: Tree
    now: Tree
    folder: Path
    options: argparse.Namespace
    stacks: dict[str, dict[str, Stack]] = field(default_factory=dict)  # by data set and version

    @property
    def trees(self) -> tuple[Tree, Tree]:
        """Returns the versions, the old one first."""
        return self.old, self.now

    def sizes(self, runs: list[int], rows: list[int], folds: list[int]) -> list[Size]:
        """Returns every combination of the sizes asked for, by default those given."""
        asked = self.options
        return [Size(*size) for size in product(asked.runs or runs, asked.rows or rows, asked.folds or folds)]

    def blend(
        self, tree: Tree, data: Path, *, limit: float | None = None, method: str = "", **settings: object
    ) -> tuple[Cost, dict[str, Any]]:
        """Measures the nested blend of one version; returns what it wrote too, nothing where it reached the limit."""
        out = self.folder / "blend.npz"
        out.unlink(missing_ok=True)
        command = [sys.executable, "-P", str(HERE / "benchmarks" / "daily_blend.py"), str(data), str(out)]
        settings = {"n_jobs": self.options.jobs, **settings}
        cost = tree.measure([*command, json.dumps(settings), *([method] if method else [])], limit=limit)
        return cost, dict(np.load(out)) if out.exists() else {}

    def simulated(self, size: Size, *, seed: int = 0, fresh: int = 50_000) -> tuple[Path, Rows, Rows]:
        """Writes simulated rows to a file; returns it, the training rows and the fresh ones."""
        train, new = simulate(size, seed=seed, fresh=fresh)
        path = self.folder / "rows.npz"
        np.savez(path, P=train.P, y=train.y, fold=train.fold, group=train.group, fresh_P=new.P, fresh_fold=new.fold)
        return path, train, new


def head(first: str, columns: str = COSTS) -> None:
    names = [first, *columns.split(" | ")]
    print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}", flush=True)


def row(*cells: object) -> None:
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def cost_cells(old: Cost | None, now: Cost) -> Iterable[str]:
    """Returns the cells of `COSTS`: both costs and the ratios, lower bounds where the old one reached its limit."""
    for cost in (old, now):
        more = "> " if cost and cost.ended else ""
        yield from (
            ("–",) * 3 if cost is None else (f"{more}{cost.wall:.1f}", f"{more}{cost.cpu:.1f}", f"{cost.peak:.2f}")
        )
    if old is None or now.ended:
        yield from ("–", "–")
    else:
        more = "> " if old.ended else ""
        yield from (f"{more}{old.wall / now.wall:.1f}", f"{more}{old.cpu / now.cpu:.1f}")


def run_import(bench: Bench) -> None:
    head("import of out-of-fold and test files (goal: ratio 20)")
    for size in bench.sizes([24], [10_000], [10]):
        costs = []
        for tree in bench.trees:
            config = write_experiment(bench.folder / f"import-{tree.name}", size)
            total = Cost(0, 0, 0)
            for command in import_commands(tree, config):
                total += tree.measure(command)
            costs.append(total)
            assert len(list((config.parent / "runs" / "daily" / "models").glob("*/run.json"))) == size.runs
            shutil.rmtree(config.parent)
        row(size, *cost_cells(*costs))


def run_blend(bench: Bench) -> None:
    head(
        "nested blend (goal: ratio 10)",
        f"methods now | {COSTS} | nested AUC: {OLD_COMMIT} | now | methods of the folds",
    )
    for size in bench.sizes([24], [10_000], [10]):
        data, train, _ = bench.simulated(size, fresh=1000)
        old, was = bench.blend(bench.old, data, limit=bench.options.limit)
        for methods, settings in METHODS.items():
            now, made = bench.blend(bench.now, data, **settings)
            values = [f"{roc_auc_score(train.y, r['score']):.5f}" if r else "–" for r in (was, made)]
            row(size, methods, *cost_cells(old, now), *values, counts(made["chosen_by_fold"]))


def counts(names: Iterable[str]) -> str:
    found, numbers = np.unique(list(names), return_counts=True)
    return ", ".join(f"{number} {name}" for name, number in zip(found, numbers, strict=True))


def run_score(bench: Bench) -> None:
    size = bench.sizes([24], [10_000], [10])[0]
    head(
        f"{size}, data set", f"nested AUC: {OLD_COMMIT} | now | difference | AUC on fresh rows: {OLD_COMMIT} | now | "
        f"difference | best possible | processor: {OLD_COMMIT} | now"
    )  # fmt: skip
    values = []
    for seed in range(1, bench.options.sets + 1):
        data, train, fresh = bench.simulated(size, seed=seed)
        (old, was), (now, made) = (bench.blend(tree, data) for tree in bench.trees)
        nested = [float(roc_auc_score(train.y, r["score"])) for r in (was, made)]
        new = [float(roc_auc_score(fresh.y, r["fresh"])) for r in (was, made)]
        values.append([nested[1] - nested[0], new[1] - new[0]])
        best = roc_auc_score(fresh.y, fresh.best)
        seconds = f"{old.cpu:.0f}", f"{now.cpu:.0f}"
        row(seed, *with_difference(nested), *with_difference(new), f"{best:.5f}", *seconds)
    means = [mean_interval([pair[which] for pair in values]) for which in (0, 1)]
    row("mean [95 %]", "", "", means[0], "", "", means[1], "", "", "")


def with_difference(values: list[float]) -> tuple[str, ...]:
    return f"{values[0]:.5f}", f"{values[1]:.5f}", f"{values[1] - values[0]:+.5f}"


def mean_interval(values: list[float]) -> str:
    """Returns the mean of differences of independent data sets and Student's 95 % interval."""
    n = len(values)
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return f"{np.mean(values):+.5f} [{np.mean(values) - half:+.5f}, {np.mean(values) + half:+.5f}]"


def run_big(bench: Bench) -> None:
    head("nested blend (goals: 300 s, 4 GB)", f"methods | {COSTS} | nested AUC | methods of the folds")
    for size in bench.sizes([100], [33_000], [5]):
        data, train, _ = bench.simulated(size, fresh=1000)
        for methods, settings in METHODS.items():
            cost, made = bench.blend(bench.now, data, limit=bench.options.limit, **settings)
            ends = (f"{roc_auc_score(train.y, made['score']):.5f}", counts(made["chosen_by_fold"])) if made else "––"
            row(size, methods, *cost_cells(None, cost), *ends)


def run_stack(bench: Bench) -> None:
    options, size = bench.options, bench.sizes([24], [10_000], [10])[0]
    siim = options.siim if options.siim.is_dir() and not options.quick else None
    rounds = 30 if options.quick else 300
    bench.stacks = finished_level_1(bench.trees, bench.folder, siim=siim, ham=options.ham, size=size, rounds=rounds)
    head("dermstack stack (goal: ratio 3)", f"{COSTS} | nested AUC: {OLD_COMMIT} | now")
    for name, stacks in bench.stacks.items():
        old, was = None, "–"
        try:
            old = bench.old.run(*stacks[OLD_COMMIT].command, limit=options.limit)
            was = was if old.ended else f"{stacks[OLD_COMMIT].headline:.5f}"
        except RuntimeError as error:
            print(f"{name}: {OLD_COMMIT} refuses these runs: {error}", file=sys.stderr)
        if old is None or old.ended:
            del stacks[OLD_COMMIT]  # there is no complete experiment for the part `nothing`
        now = bench.now.run(*stacks["now"].command)
        row(name, *cost_cells(old, now), was, f"{stacks['now'].headline:.5f}")


def run_nothing(bench: Bench) -> None:
    if not bench.stacks:
        run_stack(bench)
    repeats = 1 if bench.options.quick else 3
    head(f"dermstack stack, nothing to do, least of {repeats} (goals: ratio 10, 0.3 GB)")
    for name, stacks in bench.stacks.items():
        costs: dict[str, list[Cost]] = {tree: [] for tree in stacks}
        for _ in range(repeats):
            for tree in bench.trees:
                if tree.name in stacks:
                    costs[tree.name].append(tree.run(*stacks[tree.name].command))
        least = {tree: least_of(made) for tree, made in costs.items()}
        row(name, *cost_cells(least.get(OLD_COMMIT), least["now"]))


def least_of(costs: list[Cost]) -> Cost:
    return Cost(min(c.wall for c in costs), min(c.cpu for c in costs), min(c.peak for c in costs))


def run_peers(bench: Bench) -> None:
    for size in bench.sizes([24, 100], [10_000], [5]):
        data, train, fresh = bench.simulated(size)
        head(
            str(size), "one fit: seconds | AUC on its own rows | seconds until both have the lower of the two AUCs: "
            "it | hill_climb of dermstack | nested: seconds | AUC | AUC on fresh rows | GB"
        )  # fmt: skip
        mean = [rankdata(rows.P, axis=0).sum(axis=1) for rows in (train, fresh)]
        row(
            "rank mean",
            "–",
            *["–"] * 4,
            *(f"{roc_auc_score(r.y, s):.5f}" for r, s in zip((train, fresh), mean, strict=True)),
            "–",
        )
        ours, climbed = bench.blend(bench.now, data, method="hill_climb", methods=["hill_climb"], n_jobs=1)
        whole, blend = bench.blend(bench.now, data, n_jobs=1)
        climbed_auc, climbed_seconds = float(roc_auc_score(train.y, climbed["tuned"])), float(climbed["seconds"])
        for name, cost, made in (
            ("dermstack, hill_climb", ours, climbed),
            ("dermstack, default methods", whole, blend),
        ):
            one = f"{made['seconds']:.1f}" if made is climbed else "–"
            own = f"{roc_auc_score(train.y, made['tuned']):.5f}"
            row(
                name, one, own, "–", "–", f"{made['nested_seconds']:.1f}", *aucs(train, fresh, made), f"{cost.peak:.2f}"
            )
        for peer in PEERS:
            made, cost = run_peer(bench, peer, data)
            if not made:
                row(f"{peer}, more than {cost.wall:.0f} s" if cost else f"{peer}, not installed", *["–"] * 8)
                continue
            trace = made["trace"]
            equal = min(climbed_auc, trace[-1, 1])
            reached = f"{trace[np.argmax(trace[:, 1] >= equal), 0]:.2f}"
            ours_reached = f"≤ {climbed_seconds:.2f}"
            nested = f"{made['nested_seconds']:.1f}" if "score" in made else f"> {bench.options.limit:.0f}"
            row(
                peer, f"{made['seconds']:.1f}", f"{trace[-1, 1]:.5f}", reached, ours_reached, nested,
                *aucs(train, fresh, made), f"{cost.peak:.2f}",
            )  # fmt: skip
        row("best possible", *["–"] * 5, *(f"{roc_auc_score(r.y, r.best):.5f}" for r in (train, fresh)), "–")


def aucs(train: Rows, fresh: Rows, made: dict[str, Any]) -> tuple[str, str]:
    nested = f"{roc_auc_score(train.y, made['score']):.5f}" if "score" in made else "–"
    return nested, f"{roc_auc_score(fresh.y, made['fresh']):.5f}"


def run_peer(bench: Bench, peer: str, data: Path) -> tuple[dict[str, Any], Cost | None]:
    """Fits another tool, nested too; returns nothing where it is not installed, or not fitted once within the limit."""
    python, out = bench.options.peers_python, bench.folder / "peer.npz"
    out.unlink(missing_ok=True)
    command = [str(python), "-P", str(HERE / "benchmarks" / "daily_peers.py"), peer, str(data), str(out), "--nested"]
    try:
        cost = measure([*command, "--trials", str(bench.options.trials)], limit=bench.options.limit)
    except RuntimeError as error:
        if "ModuleNotFoundError" not in str(error):
            raise
        return {}, None
    return (dict(np.load(out)) if out.exists() else {}), cost


PARTS: dict[str, Callable[[Bench], None]] = {
    "import": run_import,
    "blend": run_blend,
    "score": run_score,
    "big": run_big,
    "stack": run_stack,
    "nothing": run_nothing,
    "peers": run_peers,
}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; `--quick` sets the sizes that were not named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART")  # []: none is named
    parser.add_argument("--quick", action="store_true")
    for name in ("runs", "rows", "folds"):
        parser.add_argument(f"--{name}", type=int, nargs="*")
    parser.add_argument("--sets", type=int, help="data sets of `score`; default 10")
    parser.add_argument("--jobs", type=int, help="processes of a blend; default 2")
    parser.add_argument("--trials", type=int, help="of the plain Optuna study; default 200")
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds after which a command is ended")
    parser.add_argument("--now", type=Path, default=HERE, help="folder of the present code; default: this one")
    parser.add_argument("--siim", type=Path, default=SIIM)
    parser.add_argument("--ham", type=Path, help="a config with finished level-1 runs")
    parser.add_argument("--peers-python", type=Path, default=Path(sys.executable))
    options = parser.parse_args(arguments)
    usual: dict[str, Any] = {"sets": 10, "trials": 200, "jobs": 2}
    if options.quick:
        usual = {"runs": [3], "rows": [600], "folds": [3], "sets": 2, "trials": 10, "jobs": 1}
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory(prefix="dermstack-daily-") as folder, two_trees(options.now) as (old, now):
        bench = Bench(old, now, Path(folder), options)
        print(f"load of the machine: {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
        for name, run in PARTS.items():
            if name in (options.parts or PARTS):
                run(bench)
        print(f"\nload of the machine: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

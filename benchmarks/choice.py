"""Measures what the nested choice of the blend's method costs against the best single method, before and after.

python benchmarks/choice.py                             # simulated; `300 equal` for one number of rows and kind of runs
python benchmarks/choice.py preselect                   # rank mean with and without the pre-selection of runs
python benchmarks/choice.py ../shared/data/siim2020     # two real CNNs, alone and with a run that carries nothing

"Before" is the one-standard-error rule: the simplest method within one standard error of the best, on pooled scores;
where folds chose different methods, each fold's scores were replaced by their ranks within the fold.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from stack.blend.blender import METHODS, Blender
from stack.blend.columns import NetScaler
from stack.blend.nested import blend_nested, left_out_sets
from stack.metrics.intervals import bootstrap_scores
from stack.metrics.scores import Floats, auc
from stack.ranks import Ecdf

FOLDS, NEW_ROWS = 5, 10_000
SIZES = {300: (30, 24), 3000: (150, 8), 30_000: (600, 3)}  # rows: positives, repetitions
KINDS = {
    "equal": lambda runs: np.full(runs, 1.2),
    "unequal": lambda runs: np.linspace(0.4, 1.6, runs),
    "a quarter carries nothing": lambda runs: np.where(np.arange(runs) < max(1, runs // 4), 0.0, 1.2),
}


@dataclass(frozen=True)
class Rows:
    P: Floats
    y: NDArray[np.int64]
    fold: NDArray[np.int64]
    group: NDArray[np.int64]


def simulated_rows(rows: int, positives: int, strengths: Floats, scale: Floats, rng: np.random.Generator) -> Rows:
    """Simulates correlated runs on groups of three rows that share a part of their noise; every net has its scale."""
    y = rng.permutation(np.arange(rows) < positives).astype(int)
    group = np.arange(rows) // 3
    has_positive = np.bincount(group, y) > 0
    order = rng.permutation(has_positive.size)
    order = order[np.argsort(~has_positive[order], kind="stable")]
    fold = np.empty(has_positive.size, int)
    fold[order] = np.arange(has_positive.size) % FOLDS
    fold = fold[group]
    shared = 0.9 * rng.normal(size=(rows, 1)) + 0.4 * rng.normal(size=(has_positive.size, 1))[group]
    logits = np.outer(y, strengths) + np.sqrt(0.5) * (
        shared * (strengths > 0) + rng.normal(size=(rows, strengths.size))
    )
    return Rows(expit(logits * scale[fold] - 3), y, fold, group)


def one_standard_error(y: ArrayLike, scores: Mapping[str, Floats], group: ArrayLike) -> str:
    """Returns the simplest method within one standard error of the best: the rule before."""
    values = np.array([auc(y, s) for s in scores.values()])
    drawn = bootstrap_scores("auc", y, np.column_stack(list(scores.values())), group)
    best = int(np.argmax(values))
    noise = np.nanstd(drawn[:, [best]] - drawn, axis=0)
    return list(scores)[int(np.argmax(values[best] - values <= noise))]


def before(
    rows: Rows, nets: NDArray[np.int64], methods: tuple[str, ...], **settings: int
) -> tuple[Floats, Blender, dict[str, float], int]:
    """Returns headline scores, final blend, each method's AUC on one scale and the number of methods folds chose."""
    columns, folds = NetScaler().fit(rows.P, nets), range(FOLDS)
    made: dict[tuple[frozenset[int], str], Floats] = {}
    for without in left_out_sets(folds, methods)[1:]:
        seen = ~np.isin(rows.fold, list(without))
        for method in methods:
            blender = Blender(method, **settings)
            blender.fit(rows.P[seen], rows.y[seen], nets=nets[seen], columns_from=columns)
            made[without, method] = blender.predict_proba(rows.P, nets=nets)[:, 1]

    def pooled(without: frozenset[int], method: str) -> Floats:
        return np.choose(rows.fold, [made[without | {k}, method] for k in folds])

    def choice(without: frozenset[int]) -> str:
        kept = ~np.isin(rows.fold, list(without))
        scores = {method: pooled(without, method)[kept] for method in methods}
        return one_standard_error(rows.y[kept], scores, rows.group[kept])

    none: frozenset[int] = frozenset()
    chosen = [choice(frozenset({k})) for k in folds]
    headline = np.choose(rows.fold, [made[frozenset({k}), chosen[k]] for k in folds])
    if len(set(chosen)) > 1:
        for k in folds:
            held = rows.fold == k
            headline[held] = Ecdf().fit(headline[held])(headline[held])
    final = Blender(choice(none), **settings).fit(rows.P, rows.y, nets=nets, columns_from=columns)
    single = {}
    for method in methods:
        ranks = [Ecdf().fit(made[frozenset({k}), method])(made[frozenset({k}), method]) for k in folds]
        single[method] = auc(rows.y, np.choose(rows.fold, ranks))
    return headline, final, single, len(set(chosen))


def simulate(kind: str, runs: int, rows: int) -> str:
    """Returns a line of the table."""
    positives, repetitions = SIZES[rows]
    methods = METHODS[:4] if runs <= 10 and runs * rows <= 100_000 else METHODS[:3]  # hill climbing takes minutes there
    settings = {"bags": 1}
    strengths, singles, measured = KINDS[kind](runs), [], []
    for repetition in range(repetitions):
        rng = np.random.default_rng([repetition, runs, rows])
        scale = rng.uniform(0.9, 1.1, (FOLDS, runs))
        made, new = (
            simulated_rows(n, p, strengths, scale, rng) for n, p in ((rows, positives), (NEW_ROWS, NEW_ROWS // 10))
        )
        headline, final, single, old = before(made, made.fold, methods, **settings)
        after = blend_nested(
            made.P, made.y, nets=made.fold, fold=made.fold, split_group=made.group, methods=methods, **settings
        )
        singles.append([single[method] for method in methods])
        on_new = [auc(new.y, blend.predict_proba(new.P, nets=new.fold)[:, 1]) for blend in (final, after.final)]
        chosen = len(set(after.chosen_by_fold.values()))
        measured.append([auc(made.y, headline), auc(made.y, after.score), *on_new, old, chosen])
    by_method, values = np.array(singles), np.array(measured)
    candidates = 2 if kind == "equal" else len(methods)  # equal runs: the better of the two means
    best = int(np.argmax(by_method[:, :candidates].mean(axis=0)))
    columns = np.column_stack([by_method[:, [best]] - values[:, :2], values[:, 3] - values[:, 2]])
    mean, noise = columns.mean(axis=0), columns.std(axis=0) / np.sqrt(repetitions)
    shown = " | ".join(f"{m:+.4f} ± {n:.4f}" for m, n in zip(mean, noise, strict=True))
    return (
        f"| {kind} | {runs} | {rows:,} | {repetitions} | {methods[best]} {by_method[:, best].mean():.4f} "
        f"| {shown} | {values[:, 4].mean():.1f} | {values[:, 5].mean():.1f} |"
    )


PRESELECTION = {
    "8 equal": np.full(8, 1.2),
    "8 unequal": np.linspace(0.2, 1.6, 8),
    "8 weak, AUC 0.64": np.full(8, 0.5),
    "30 weak, AUC 0.60": np.full(30, 0.35),
    "1 of 4 carries nothing": np.array([1.2, 1.2, 1.2, 0]),
    "1 of 24 carries nothing": np.append(np.full(23, 1.2), 0),
    "12 of 15 carry nothing": np.append(np.full(3, 1.2), np.zeros(12)),
    "1 of 4 is inverted": np.array([1.2, 1.2, 1.2, -1.2]),
}


def measure_preselection() -> None:
    """Prints the nested AUC of the rank mean of all runs, and how much the pre-selection adds."""
    print(f"| runs | {' | '.join(f'{rows:,} rows: all runs | pre-selected' for rows in SIZES)} |\n" + "|---" * 7 + "|")
    for name, strengths in PRESELECTION.items():
        cells = []
        for rows, (positives, repetitions) in SIZES.items():
            values = []
            for repetition in range(repetitions):
                rng = np.random.default_rng([repetition, strengths.size, rows])
                scale = rng.uniform(0.9, 1.1, (FOLDS, strengths.size))
                made = simulated_rows(rows, positives, strengths, scale, rng)
                given = {"nets": made.fold, "fold": made.fold, "split_group": made.group, "methods": ("rank_mean",)}
                found = [blend_nested(made.P, made.y, preselect=preselect, **given) for preselect in (False, True)]
                values.append([auc(made.y, blend.score) for blend in found])
            every, gain = np.array(values)[:, 0], np.diff(values, axis=1)
            cells.append(f"{every.mean():.4f} | {gain.mean():+.4f} ± {gain.std() / np.sqrt(repetitions):.4f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def measure_siim(folder: Path) -> None:
    """Prints the nested AUC of each method and of the choice, for two real CNNs."""
    text = {"dtype": {"image_name": str, "patient_id": str}}
    a, b = (pd.read_csv(folder / "oof" / f"net_{name}_oof.csv", **text).set_index("image_name") for name in "ab")
    table = pd.read_csv(folder / "train.csv", **text).set_index("image_name").loc[a.index]
    b = b.loc[a.index]
    group, y = pd.factorize(table["patient_id"])[0], table["target"].to_numpy()
    fold, P = a["fold"].to_numpy(), np.column_stack([a["p"], b["p"]])
    nets = np.column_stack([fold, b["fold"]])
    nothing = np.random.default_rng(0).random(len(y))
    print("| runs | best single method | before | after | methods of the folds, before | after |\n" + "|---" * 6 + "|")
    for name, extra in (
        ("two CNNs", None),
        ("and one that carries nothing", nothing),
        ("and an inverted one", 1 - P[:, 1]),
    ):
        p = P if extra is None else np.column_stack([P, extra])
        made_by = nets if extra is None else np.column_stack([nets, fold if extra is nothing else nets[:, 1]])
        headline, _, single, old = before(Rows(p, y, fold, group), made_by, METHODS)
        after = blend_nested(p, y, nets=made_by, fold=fold, split_group=group)
        best = max(single, key=lambda method: single[method])
        print(
            f"| {name} | {best} {single[best]:.4f} (rank_mean {single['rank_mean']:.4f}) | {auc(y, headline):.4f} | "
            f"{auc(y, after.score):.4f} | {old} | {', '.join(sorted(set(after.chosen_by_fold.values())))} |",
            flush=True,
        )


def main() -> None:
    if sys.argv[1:] == ["preselect"]:
        measure_preselection()
        return
    if len(sys.argv) > 1 and not sys.argv[1].isdigit():
        measure_siim(Path(sys.argv[1]))
        return
    sizes = [int(size) for size in sys.argv[1:2]] or list(SIZES)
    kinds = [kind for kind in KINDS if kind.startswith(tuple(sys.argv[2:3]) or "")]
    print(
        "| runs are | runs | rows | repetitions | best single method, nested AUC | headline's regret, before | after "
        "| on new rows, after minus before | methods of the folds, before | after |\n" + "|---" * 10 + "|"
    )
    for rows in sizes:
        for kind in kinds:
            for runs in (3, 10, 30):
                print(simulate(kind, runs, rows), flush=True)


if __name__ == "__main__":
    main()

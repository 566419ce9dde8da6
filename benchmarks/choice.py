"""Measures what the nested choice of the blend's method costs against the best single method.

python -m benchmarks.choice                             # simulated; `300 equal` for one number of rows and kind of runs
python -m benchmarks.choice design                      # cost of methods, rules and bounds, other generator and seeds
python -m benchmarks.choice expected                    # 300 rows, equal runs: regret without the noise of the rows
python -m benchmarks.choice nets                        # 24 equal nets, 10 folds, 10,000 rows
python -m benchmarks.choice null                        # headline of runs that carry nothing: 0.5 if it is unbiased
python -m benchmarks.choice preselect                   # rank mean with and without the pre-selection of runs
python -m benchmarks.choice ../shared/data/siim2020     # two real CNNs, alone and with a run that carries nothing

The rule of `stack/blend/choice.py` was fixed by `design`; the other commands, with other data and seeds, only measured
it. Regret is AUC of the best single method (the best on average, so that it is no chance of one data set) less that of
what was chosen: of the headline, on the simulated rows themselves, and of the final blend, on new rows.

The blends are those of `blend_nested`, fitted here without its checks and for several rules at once; the first data set
of each line is also given to `blend_nested`, which must choose and score the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.choice_data import (
    DESIGN_SIZES,
    DESIGN_SPREADS,
    FOLDS,
    KINDS,
    SEED,
    SIZES,
    Ints,
    Rows,
    benchmark_data,
    design_data,
    simulated_rows,
)
from stack.blend.choice import REAL_GAIN, REFERENCE, highest_bound, reference_of
from stack.blend.columns import NetScaler, Weighting
from stack.blend.nested import blend_nested
from stack.blend.preselection import informative_runs
from stack.blend.transformed import TransformedRuns
from stack.blend.weights import DEFAULT_METHODS, Settings, WeightFits, total_of
from stack.metrics.intervals import clustered_auc
from stack.metrics.scores import Floats, auc
from stack.predictions.ranks import Ecdf

SEARCHED = "hill_climb"  # beside the default methods, which search no weights
WITH_SEARCH = (*DEFAULT_METHODS, SEARCHED)
ON_ONE_SCALE = ("rank_logistic", "logistic")  # measured alone, as what the average of both could have
_REFERENCE = reference_of(DEFAULT_METHODS)

Rule = Callable[[Floats, Floats], int]  # of values and their covariance, to the index of the chosen method


@dataclass(frozen=True)
class Outcome:
    """What any rule decides by and earns on one simulated data set. The first decision is on all rows."""

    y: Ints
    fold: Ints
    comparable: Floats  # (n, methods)
    decisions: list[tuple[Floats, Floats]]  # values of the methods and their covariance
    on_new_rows: Floats  # (methods,) AUC of the final blends
    folds_on_new_rows: Floats  # (folds, methods) AUC of the blends of each fold, with ranks among the new rows

    def among(self, candidates: int) -> Outcome:
        """Returns the same for the first methods alone."""
        kept = slice(candidates)
        return replace(
            self, comparable=self.comparable[:, kept], on_new_rows=self.on_new_rows[kept],
            decisions=[(values[kept], covariance[kept, kept]) for values, covariance in self.decisions],
            folds_on_new_rows=self.folds_on_new_rows[:, kept],
        )  # fmt: skip

    def headline(self, chosen: list[int]) -> float:
        """Returns the AUC where each fold is scored by its method; `chosen` starts with that of all rows."""
        return auc(self.y, self.comparable[np.arange(len(self.y)), np.array(chosen[1:])[self.fold]])


def outcome(rows: Rows, new: Rows, methods: tuple[str, ...]) -> Outcome:
    """Fits all methods without each set of folds, as `blend_nested` does, and scores the final ones on new rows."""
    scaler, folds = NetScaler().fit(rows.P, rows.fold, rows.group), np.unique(rows.fold).tolist()
    columns = TransformedRuns(scaler, rows.P, rows.fold).prepared()
    scored = TransformedRuns(scaler, new.P, new.fold).prepared()
    of_new_nets = TransformedRuns(NetScaler().fit(new.P, new.fold, new.group), new.P, new.fold).prepared()
    ranks = columns.matrix(("rank",) * columns.runs, standard=False)
    comparable, final, of_folds = {}, np.empty(0), []
    for without in (frozenset(found) for size in (0, 1, 2) for found in combinations(folds, size)):
        seen = ~np.isin(rows.fold, list(without))
        used = informative_runs(ranks[seen], rows.y[seen], rows.group[seen])
        fits = WeightFits(columns.part(rows=seen, runs=used), rows.y[seen] == 1, Settings(bags=1))
        found = {method: fits.fit(method).spread_over(used).weighting for method in methods}

        def totals(columns: TransformedRuns, found: dict[str, Weighting] = found) -> list[Floats]:
            return [total_of(method, "auc", weighting, columns) for method, weighting in found.items()]

        if without:
            comparable[without] = np.column_stack([Ecdf().fit(total)(total) for total in totals(columns)])
            if len(without) == 1:
                of_folds.append([auc(new.y, total) for total in totals(of_new_nets)])
        else:
            final = np.array([auc(new.y, total) for total in totals(scored)])

    def assembled(without: frozenset[int]) -> Floats:
        scores = np.full((len(rows.y), len(methods)), np.nan)
        for k in set(folds) - without:
            scores[rows.fold == k] = comparable[without | {k}][rows.fold == k]
        return scores

    decisions = []
    for without in (frozenset[int](), *(frozenset({k}) for k in folds)):
        kept = ~np.isin(rows.fold, list(without))
        found = clustered_auc(rows.y[kept], assembled(without)[kept], rows.group[kept])
        decisions.append((found.auc, found.covariance))
    return Outcome(rows.y, rows.fold, assembled(frozenset()), decisions, final, np.array(of_folds))


def check(rows: Rows, found: Outcome) -> None:
    """Raises AssertionError unless `blend_nested` chooses and scores the same among the default methods."""
    found, methods = found.among(len(DEFAULT_METHODS)), DEFAULT_METHODS
    nested = blend_nested(
        rows.P, rows.y, nets=rows.fold, fold=rows.fold, split_group=rows.group, methods=methods, bags=1
    )
    chosen = [now(*decision) for decision in found.decisions]
    assert [methods[m] for m in chosen] == [nested.chosen, *nested.chosen_by_fold.values()]
    assert abs(auc(rows.y, nested.score) - found.headline(chosen)) < 1e-4  # sums rounded otherwise may tie or not


def now(values: Floats, covariance: Floats) -> int:
    """Returns what the product's rule chooses: `REFERENCE` unless another is better beyond noise."""
    return highest_bound(values, covariance, _REFERENCE)


def one_standard_error(values: Floats, covariance: Floats) -> int:
    """Returns the simplest method within one standard error of the best."""
    best = int(np.argmax(values))
    variance = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
    return int(np.argmax(values[best] - values <= np.sqrt(np.maximum(variance, 0.0))))


RULES: dict[str, Rule] = {
    "always the first": lambda values, covariance: 0,
    "one standard error": one_standard_error,
    "over the first, 1.28": highest_bound,
    "now": now,
}
ON_NEW_ROWS = ("always the first", "one standard error", "over the first, 1.28", "now")


def regrets(
    outcomes: list[Outcome], rules: Iterable[tuple[Rule, int]]
) -> tuple[int, list[tuple[Floats, Floats, float]]]:
    """Returns the best single method, and of each rule the regrets of headline and final blend, and methods in folds.

    Each regret is an array (repetitions,). A rule chooses among as many methods, the first, as are given with it; the
    best single method is the best of all.
    """
    single = np.array([[auc(one.y, column) for column in one.comparable.T] for one in outcomes])
    best = int(single.mean(axis=0).argmax())
    new = np.array([one.on_new_rows for one in outcomes])
    best_new = int(new.mean(axis=0).argmax())
    measured = []
    for rule, candidates in rules:
        chosen = [[rule(*decision) for decision in one.among(candidates).decisions] for one in outcomes]
        headlines = np.array([one.headline(methods) for one, methods in zip(outcomes, chosen, strict=True)])
        finals = new[np.arange(len(outcomes)), [methods[0] for methods in chosen]]
        differing = float(np.mean([len(set(methods[1:])) for methods in chosen]))
        measured.append((single[:, best] - headlines, new[:, best_new] - finals, differing))
    return best, measured


def _shown(values: Floats) -> str:
    return f"{values.mean():+.4f} ± {values.std() / np.sqrt(len(values)):.4f}"


def simulate(kind: str, runs: int, rows: int) -> str:
    """Returns a line of the table."""
    has_search = runs <= 10 and rows <= 300  # hill climbing takes minutes elsewhere
    methods = (*(WITH_SEARCH if has_search else DEFAULT_METHODS), *ON_ONE_SCALE)
    outcomes = []
    for made, new in benchmark_data(kind, runs, rows):
        outcomes.append(outcome(made, new, methods))
        if len(outcomes) == 1:
            check(made, outcomes[0])
    best, measured = regrets(outcomes, [(rule, len(DEFAULT_METHODS)) for rule in RULES.values()])
    _, [(with_search, _, _)] = regrets(outcomes, [(now, len(WITH_SEARCH) if has_search else len(DEFAULT_METHODS))])
    new = np.array([one.on_new_rows for one in outcomes])
    possible = new.max(axis=1) - new[:, int(new.mean(axis=0).argmax())]
    nested = np.mean([auc(one.y, one.comparable[:, best]) for one in outcomes])
    by_rule = dict(zip(RULES, measured, strict=True))
    shown = [of_headline for of_headline, _, _ in measured]
    headline = " | ".join([*map(_shown, shown), _shown(with_search) if has_search else "–"])
    final = " | ".join(_shown(by_rule[rule][1]) for rule in ON_NEW_ROWS)
    differing = " | ".join(f"{by_rule[rule][2]:.1f}" for rule in ON_NEW_ROWS[1:])
    return (
        f"| {kind} | {runs} | {rows:,} | {len(outcomes)} | {methods[best]} {nested:.4f} | {headline} | {final} "
        f"| {-possible.mean():+.4f} | {differing} |"
    )


def measure_design() -> None:
    """Prints the regret of each rule on the generator that the rule was chosen on, in ten-thousandths of AUC."""
    bounds, default = (0.0, 0.5, 1.0, 1.2816, 1.645, 2.0), len(DEFAULT_METHODS)
    rules = {f"over rank_mean, {errors}": (_bound(0, errors), default) for errors in bounds}
    rules |= {f"over {REFERENCE}, {errors}": (_bound(_REFERENCE, errors), default) for errors in bounds}
    with_search = f"over {REFERENCE}, {REAL_GAIN}, with {SEARCHED}"
    methods = (*WITH_SEARCH, *ON_ONE_SCALE)
    rules |= {with_search: (_bound(_REFERENCE, REAL_GAIN), len(WITH_SEARCH))}
    rules |= {"one standard error": (one_standard_error, default)}
    rules |= {f"always {method}": (_always(number), len(methods)) for number, method in enumerate(methods)}
    cells: dict[str, list[str]] = {name: [] for name in rules}
    for rows, half in DESIGN_SIZES.items():
        for spread in DESIGN_SPREADS:
            numbers = [first + number for first in (1000, 2000) for number in range(half)]
            rngs = (np.random.default_rng([number, rows, int(1000 * spread), 77]) for number in numbers)
            worlds = [design_data(spread, rows, rng) for rng in rngs]
            outcomes = [outcome(*world, methods) for world in worlds]
            check(worlds[0][0], outcomes[0])
            for name, (headline, final, _) in zip(rules, regrets(outcomes, rules.values())[1], strict=True):
                error = 1e4 / np.sqrt(2 * half)
                cells[name].append(
                    f"{1e4 * headline.mean():.1f} ± {error * headline.std():.1f} | "
                    f"{1e4 * final.mean():.1f} ± {error * final.std():.1f}"
                )
    heads = [
        f"{rows:,} rows, spread {spread}: {what}"
        for rows in DESIGN_SIZES
        for spread in DESIGN_SPREADS
        for what in ("headline", "new rows")
    ]
    print(f"| rule | {' | '.join(heads)} |\n" + "|---" * 13 + "|")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


def _bound(reference: int, errors: float) -> Rule:
    return lambda values, covariance: highest_bound(values, covariance, reference, errors)


def _always(number: int) -> Rule:
    return lambda values, covariance: number


def measure_expected() -> None:
    """Prints the headline's expected regret: what the folds' blends lose on new rows, which no choice has seen."""
    rows = 300
    print(f"| equal runs | best single method | {' | '.join(RULES)} |\n" + "|---" * (2 + len(RULES)) + "|")
    for runs in (3, 10, 30):
        outcomes = [outcome(made, new, DEFAULT_METHODS) for made, new in benchmark_data("equal", runs, rows)]
        by_fold = np.array([one.folds_on_new_rows for one in outcomes])
        best = int(by_fold.mean(axis=(0, 1)).argmax())
        regrets = []
        for rule in RULES.values():
            chosen = np.array([[rule(*decision) for decision in one.decisions[1:]] for one in outcomes])
            taken = np.take_along_axis(by_fold, chosen[:, :, None], axis=2)[:, :, 0]
            regrets.append(_shown((by_fold[:, :, best] - taken).mean(axis=1)))
        print(f"| {runs} | {DEFAULT_METHODS[best]} | {' | '.join(regrets)} |", flush=True)


def measure_nets() -> None:
    """Prints the nested AUC of each method and of the headline for 24 nets that are equally good."""
    methods = DEFAULT_METHODS
    print(f"| data set | {' | '.join(methods)} | headline | less the better mean | methods of the folds |")
    print("|---" * (4 + len(methods)) + "|")
    for repetition in range(3):
        rng = np.random.default_rng([SEED, repetition, 24])
        strengths, scale = np.full(24, 1.0), rng.uniform(0.9, 1.1, (10, 24))
        rows, new = (simulated_rows(n, n // 50, strengths, scale, rng, own=0.7) for n in (10_000, 3_000))
        found = outcome(rows, new, methods)
        chosen = [now(*decision) for decision in found.decisions]
        single = [auc(found.y, column) for column in found.comparable.T]
        headline = found.headline(chosen)
        print(
            f"| {repetition} | {' | '.join(f'{value:.4f}' for value in single)} | {headline:.4f} | "
            f"{headline - max(single[:2]):+.4f} | {', '.join(sorted({methods[m] for m in chosen[1:]}))} |",
            flush=True,
        )


def measure_null() -> None:
    """Prints the mean AUC, over 100 data sets, of methods and headlines where no run carries anything."""
    print(f"| rows | runs | {' | '.join(DEFAULT_METHODS)} | headline |\n" + "|---" * (3 + len(DEFAULT_METHODS)) + "|")
    for rows, runs in ((300, 3), (300, 10), (1000, 10)):
        values = []
        for repetition in range(100):
            rng = np.random.default_rng([SEED, repetition, runs, rows, 2])
            made, new = (simulated_rows(n, n // 10, np.zeros(runs), np.ones((5, runs)), rng) for n in (rows, 300))
            found = outcome(made, new, DEFAULT_METHODS)
            chosen = [now(*decision) for decision in found.decisions]
            values.append([*(auc(found.y, column) for column in found.comparable.T), found.headline(chosen)])
        print(f"| {rows:,} | {runs} | {' | '.join(_shown(column) for column in np.array(values).T)} |", flush=True)


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
PRESELECTION_REPETITIONS = {300: 40, 3000: 6, 30_000: 2}


def measure_preselection() -> None:
    """Prints the nested AUC of the rank mean of all runs, and how much the pre-selection adds."""
    print(f"| runs | {' | '.join(f'{rows:,} rows: all runs | pre-selected' for rows in SIZES)} |\n" + "|---" * 7 + "|")
    for name, strengths in PRESELECTION.items():
        cells = []
        for rows, repetitions in PRESELECTION_REPETITIONS.items():
            values = []
            for repetition in range(repetitions):
                rng = np.random.default_rng([SEED, repetition, strengths.size, rows, 1])
                scale = rng.uniform(0.9, 1.1, (FOLDS, strengths.size))
                made = simulated_rows(rows, SIZES[rows][0], strengths, scale, rng)
                given = {"nets": made.fold, "fold": made.fold, "split_group": made.group, "methods": ("rank_mean",)}
                found = [blend_nested(made.P, made.y, preselect=preselect, **given) for preselect in (False, True)]
                values.append([auc(made.y, blend.score) for blend in found])
            every, gain = np.array(values)[:, 0], np.diff(values, axis=1)
            cells.append(f"{every.mean():.4f} | {_shown(gain[:, 0])}")
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
    print(
        f"| runs | {' | '.join(DEFAULT_METHODS)} | headline | methods of the folds | chosen |\n"
        + "|---" * (4 + len(DEFAULT_METHODS))
        + "|"
    )
    for name, extra in (
        ("two CNNs", None),
        ("and one that carries nothing", nothing),
        ("and an inverted one", 1 - P[:, 1]),
    ):
        p = P if extra is None else np.column_stack([P, extra])
        made_by = nets if extra is None else np.column_stack([nets, fold if extra is nothing else nets[:, 1]])
        found = blend_nested(p, y, nets=made_by, fold=fold, split_group=group)
        single = " | ".join(f"{auc(y, found.comparable[method]):.4f}" for method in DEFAULT_METHODS)
        print(
            f"| {name} | {single} | {auc(y, found.score):.4f} | "
            f"{', '.join(sorted(set(found.chosen_by_fold.values())))} | {found.chosen} |",
            flush=True,
        )


COMMANDS = {
    "design": measure_design,
    "expected": measure_expected,
    "nets": measure_nets,
    "null": measure_null,
    "preselect": measure_preselection,
}


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]]()
        return
    if len(sys.argv) > 1 and not sys.argv[1].isdigit():
        measure_siim(Path(sys.argv[1]))
        return
    sizes = [int(size) for size in sys.argv[1:2]] or list(SIZES)
    kinds = [kind for kind in KINDS if kind.startswith(tuple(sys.argv[2:3]) or "")]
    print(
        "| runs are | runs | rows | repetitions | best single method, nested AUC "
        f"| headline's regret: {' | '.join(RULES)} | now, with {SEARCHED} "
        f"| regret on new rows: {' | '.join(ON_NEW_ROWS)} "
        f"| best of each data set | methods of the folds: {' | '.join(ON_NEW_ROWS[1:])} |\n" + "|---" * 18 + "|"
    )
    for rows in sizes:
        for kind in kinds:
            for runs in (3, 10, 30):
                print(simulate(kind, runs, rows), flush=True)


if __name__ == "__main__":
    main()

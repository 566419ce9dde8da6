"""Compares blending with plain code: one AUC, a study of weights, and hill climbing over 18 runs.

python benchmarks/blend.py            # `pip install hillclimbers` first, for the third table
"""

from __future__ import annotations

import contextlib
import io
import time
from functools import partial
from typing import Any

import numpy as np
import optuna
import pandas as pd
from metrics import best_of
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from stack.blend.blender import Blender
from stack.blend.columns import TRANSFORMS, NetScaler, weighted_sum
from stack.blend.search import quiet_optuna
from stack.blend.selection import hill_climb
from stack.blend.transformed import TransformedRuns
from stack.metrics.scores import Floats, auc, scorer

ROWS, POSITIVES, TRIALS = 33_126, 584, 500


def simulated_runs(
    runs: int, *, rows: int = ROWS, positives: int = POSITIVES, seed: int = 0
) -> tuple[Floats, NDArray[Any]]:
    """Simulates probabilities (rows, runs) of correlated runs, a third of them weak, and targets (rows,)."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(rows) < positives).astype(int)
    strength = np.where(np.arange(runs) % 3 == 2, 0.3, rng.uniform(1.6, 2.2, runs))
    shared = rng.normal(size=(rows, 1))
    logits = np.outer(y, strength) + 0.7 * shared + rng.normal(size=(rows, runs)) - 4
    return 1 / (1 + np.exp(-logits)), y


def bench_auc() -> None:
    """Times AUC by a function prepared once for the targets, as in a study, and by one that checks its input."""
    print("| AUC of | ours, targets prepared | ours, single call | scikit-learn | ratio |\n|---|---|---|---|---|")
    for rows, positives in ((ROWS, POSITIVES), (401_059, 393)):
        P, y = simulated_runs(1, rows=rows, positives=positives)
        s = P[:, 0]
        value_of = scorer("auc", y)
        assert abs(value_of(s) - roc_auc_score(y, s)) < 1e-12
        known, once, theirs = (
            best_of(9, work)
            for work in (lambda: value_of(s), lambda: auc(y, s), lambda: roc_auc_score(y, s))  # noqa: B023
        )
        print(
            f"| {rows:,} rows | {known * 1e3:.2f} ms | {once * 1e3:.2f} ms | {theirs * 1e3:.1f} ms | "
            f"{theirs / known:.0f} x, {theirs / once:.0f} x |"
        )


def plain_study(P: Floats, y: NDArray[Any]) -> tuple[float, float, float, float]:
    """Runs the study with plain Optuna: returns total seconds, seconds of objectives, the best AUC and its time."""
    nets = np.zeros(len(P), int)
    columns = TransformedRuns(NetScaler().fit(P, nets), P, nets)
    kinds = {kind: columns.matrix([kind] * P.shape[1], standard=True) for kind in TRANSFORMS}
    spent, best, best_at, started = 0.0, 0.0, 0.0, time.perf_counter()

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent, best, best_at
        runs = range(P.shape[1])
        weights = np.array([trial.suggest_float(f"weight_{run}", 0, 1) for run in runs])
        chosen = [trial.suggest_categorical(f"transform_{run}", TRANSFORMS) for run in runs]
        begun = time.perf_counter()
        V = np.column_stack([kinds[kind][:, run] for run, kind in enumerate(chosen)])
        value = float(roc_auc_score(y, V @ (weights / weights.sum())))
        spent += time.perf_counter() - begun
        if value > best:
            best, best_at = value, time.perf_counter() - started
        return value

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=TRIALS)
    return time.perf_counter() - started, spent, best, best_at


def bench_studies() -> None:
    """Times whole studies, their objectives, and how soon ours reaches the best of the plain study's 500 trials."""
    P, y = simulated_runs(12)
    plain_seconds, spent, best, best_at = plain_study(P, y)
    with quiet_optuna():
        study = optuna.create_study(direction="maximize")
    started = time.time()
    blender = Blender("optuna", trials=TRIALS).fit(P, y, study=study)
    ours = time.time() - started
    nets = np.zeros(len(P), int)
    V = TransformedRuns(NetScaler().fit(P, nets), P, nets).matrix(["rank"] * 12, standard=True)
    value_of, weights = scorer("auc", y), np.full(12, 1 / 12)
    objective_seconds = best_of(9, lambda: value_of(weighted_sum(np.stack(list(V.T)).T, weights))) * TRIALS
    values = blender.trial_values_
    reached = int(np.argmax(values >= best))
    until = study.trials[reached].datetime_complete
    assert values[reached] >= best, "our study never reached the plain study's best"
    assert until is not None
    seconds = until.timestamp() - started
    print("\n| 500 trials, 12 runs, 33,126 rows | ours | plain Optuna and scikit-learn | ratio |\n|---|---|---|---|")
    print(f"| whole | {ours:.1f} s | {plain_seconds:.1f} s | {plain_seconds / ours:.1f} x |")
    print(f"| without the sampler | {objective_seconds:.2f} s | {spent:.1f} s | {spent / objective_seconds:.1f} x |")
    print(
        f"| until AUC {best:.5f}, the plain study's best | {seconds:.2f} s (trial {reached + 1}) | {best_at:.1f} s | "
        f"{best_at / seconds:.1f} x |"
    )
    print(f"| best in-sample AUC | {values.max():.5f} | {best:.5f} | |")


def bench_hill_climb() -> None:
    """Times hill climbing over 18 runs' probabilities; hillclimbers takes a training frame with only the target."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from hillclimbers import climb_hill
    except ImportError:
        print("\nhillclimbers is not installed: run `pip install hillclimbers`, then this again")
        return
    P, y = simulated_runs(18, seed=1)
    frame = pd.DataFrame(P, columns=[f"run_{run}" for run in range(18)])
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        _, theirs = climb_hill(
            train=pd.DataFrame({"target": y}), oof_pred_df=frame, test_pred_df=frame.head(2), target="target",
            objective="maximize", eval_metric=partial(roc_auc_score), plot_hill=False, return_oof_preds=True,
        )  # fmt: skip
    their_seconds = time.perf_counter() - started
    print("\n| hill climbing, 18 runs, 33,126 rows | seconds | AUC in-sample | ratio |\n|---|---|---|---|")
    print(f"| hillclimbers | {their_seconds:.1f} | {auc(y, theirs):.6f} | |")
    for bags in (1, 5):
        started = time.perf_counter()
        weights = hill_climb(P, y, bags=bags)
        seconds = time.perf_counter() - started
        print(f"| ours, bags {bags} | {seconds:.2f} | {auc(y, P @ weights):.6f} | {their_seconds / seconds:.0f} x |")


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    bench_auc()
    bench_studies()
    bench_hill_climb()


if __name__ == "__main__":
    main()

"""Blends simulated rows as other tools do: one process that daily.py measures, in any Python that has the tool.

python -P benchmarks/daily_peers.py hillclimbers|autogluon|optuna DATA.npz OUT.npz [--nested] [--trials 200]

- `hillclimbers`: its `climb_hill` with the defaults (weights of 0.01 to 0.5, each run added once) on probabilities.
- `autogluon`: the weighted ensemble of AutoGluon-Tabular, `EnsembleSelection` with 100 steps, on probabilities.
- `optuna`: what public notebooks do: Optuna's TPE draws a weight in [0, 1] for each run, the objective is
  scikit-learn's AUC of the weighted mean of ranks over all out-of-fold rows, and its best value is what they report.

None of the three estimates its own gain without the rows that chose the weights. With ``--nested`` each is fitted once
more for each fold, on the other folds, as `blend_nested` does it: the score of a row is its rank among the scores that
the weights of the other folds give to all rows.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

Floats = NDArray[np.float64]
Trace = list[tuple[float, float]]  # seconds since the start, and the best AUC so far
Fit = Callable[[Floats, NDArray[Any], Floats, Trace], Floats]  # P, y, rows to predict → their scores


def climb(P: Floats, y: NDArray[Any], new: Floats, trace: Trace) -> Floats:
    import hillclimbers
    import pandas as pd

    started, best = time.perf_counter(), 0.0

    def noted_auc(targets: Any, scores: Any) -> float:
        nonlocal best
        value = float(roc_auc_score(targets, scores))
        if value > best:
            best = value
            trace.append((time.perf_counter() - started, value))
        return value

    names = [f"run_{number}" for number in range(P.shape[1])]
    with contextlib.redirect_stdout(io.StringIO()):
        made = hillclimbers.climb_hill(
            train=pd.DataFrame({"y": y}), oof_pred_df=pd.DataFrame(P, columns=names),
            test_pred_df=pd.DataFrame(new, columns=names), target="y", objective="maximize",
            eval_metric=hillclimbers.partial(noted_auc), plot_hill=False,
        )  # fmt: skip
    return np.asarray(made)


def select_ensemble(P: Floats, y: NDArray[Any], new: Floats, trace: Trace) -> Floats:
    from autogluon.core.metrics import roc_auc
    from autogluon.core.models.greedy_ensemble.ensemble_selection import EnsembleSelection

    started = time.perf_counter()
    chosen = EnsembleSelection(ensemble_size=100, problem_type="binary", metric=roc_auc)
    chosen.fit(list(P.T), y)
    trace.append((time.perf_counter() - started, float(roc_auc_score(y, chosen.predict_proba(list(P.T))))))
    return np.asarray(chosen.predict_proba(list(new.T)))


def search_weights(P: Floats, y: NDArray[Any], new: Floats, trace: Trace, *, trials: int) -> Floats:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ranks = rankdata(P, axis=0) / len(P)
    started = time.perf_counter()

    def objective(trial: optuna.Trial) -> float:
        weights = np.array([trial.suggest_float(f"w{number}", 0, 1) for number in range(P.shape[1])])
        return float(roc_auc_score(y, ranks @ weights))

    def note(study: optuna.Study, _trial: optuna.trial.FrozenTrial) -> None:
        if not trace or study.best_value > trace[-1][1]:
            trace.append((time.perf_counter() - started, study.best_value))

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials, callbacks=[note])
    best = np.array([study.best_params[f"w{number}"] for number in range(P.shape[1])])
    return np.asarray((rankdata(new, axis=0) / len(new)) @ best)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=("hillclimbers", "autogluon", "optuna"))
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--nested", action="store_true")
    parser.add_argument("--trials", type=int, default=200)
    options = parser.parse_args()
    fits: dict[str, Fit] = {
        "hillclimbers": climb,
        "autogluon": select_ensemble,
        "optuna": lambda *given: search_weights(*given, trials=options.trials),
    }
    fit, data, trace = fits[options.peer], np.load(options.data), Trace()
    P, y, fold = data["P"], data["y"], data["fold"]
    started = time.perf_counter()
    fresh = fit(P, y, data["fresh_P"], trace)
    made = {"fresh": fresh, "seconds": time.perf_counter() - started, "trace": np.array(trace)}
    np.savez(options.out, **made)  # kept where the nested fits reach the limit
    if options.nested:
        score = np.full(len(y), np.nan)
        started = time.perf_counter()
        for k in np.unique(fold):
            others = fold != k
            scores = fit(P[others], y[others], P, Trace())
            score[~others] = (rankdata(scores) / len(y))[~others]
        np.savez(options.out, **made, score=score, nested_seconds=time.perf_counter() - started)


if __name__ == "__main__":
    main()

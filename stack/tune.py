"""Studies that survive and continue: named Optuna studies in one journal file, each without some folds' rows.

A study that has not looked at fold k may choose what predicts fold k: so there is one for each outer fold (and for the
blend, whose method is chosen inside each outer fold too, one for each pair of folds and one on all rows).
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from scipy.special import expit

from stack.blend import Blender
from stack.config import Stacker
from stack.console import Out
from stack.embeddings import read_embeddings
from stack.errors import ConfigError
from stack.experiment import Experiment
from stack.fold_matrix import FoldMatrix, fold_matrix, inner_rows
from stack.matrix import predictions_of, standardised
from stack.metrics import score
from stack.nested import left_out
from stack.sources import level1_runs
from stack.store import Run, atomic
from stack.weighting import NetColumns
from tabular.gbdt import fit_gbdt, predict_logit
from tabular.gbdt_params import DEFAULTS

# low, high, logarithmic; around the defaults, which are each study's first trial
SPACES: dict[str, dict[str, tuple[float, float, bool]]] = {
    "lightgbm": {
        "num_leaves": (4, 48, True),
        "min_data_in_leaf": (10, 200, True),
        "lambda_l2": (0.1, 100.0, True),
        "bagging_fraction": (0.4, 1.0, False),
        "feature_fraction": (0.1, 1.0, False),
    },
    "xgboost": {
        "max_depth": (2, 7, False),
        "min_child_weight": (0.3, 30.0, True),
        "reg_lambda": (0.1, 100.0, True),
        "subsample": (0.4, 1.0, False),
        "colsample_bytree": (0.1, 1.0, False),
    },
    "catboost": {
        "depth": (2, 7, False),
        "l2_leaf_reg": (1.0, 100.0, True),
        "random_strength": (0.1, 10.0, True),
        "subsample": (0.4, 1.0, False),
        "rsm": (0.1, 1.0, False),
    },
}


def tune_gbdt(experiment: Experiment, stacker: Stacker, out: Out, *, trials: int, timeout: float | None) -> Path:
    """Choose a stacker's parameters once for each outer fold, by the mean objective over the other folds.

    Goes on until each study has ``trials`` ended trials (pruned ones count) or ``timeout`` seconds are over;
    interrupted, it continues with the same result. Returns the yaml that the config names under ``tuned.gbdt``.
    """
    if stacker.kind not in SPACES:
        raise ConfigError(f"{stacker.name} is a {stacker.kind} model: studies are for {', '.join(SPACES)}")
    k = experiment.folds.k
    deadline = None if timeout is None else time.monotonic() + timeout
    sources = level1_runs(experiment)
    predictions = standardised(predictions_of(experiment, sources))
    embeddings = read_embeddings(experiment, sources)
    chosen, inner_scores = {}, {}
    with out.bar(f"tune {stacker.name}", trials * k, "trials") as progress:
        for outer in range(k):
            inner = [fold for fold in range(k) if fold != outer]
            splits = [fold_matrix(experiment, embeddings, predictions, fold, without=outer) for fold in inner]
            study = _open_study(experiment, f"gbdt-{stacker.name}-without-{outer}")
            progress(min(_ended(study), trials))
            while _ended(study) < trials and (deadline is None or time.monotonic() < deadline):
                trial = _next_trial(study, stacker.kind, seed=experiment.config.seed)
                study.tell(trial, **_try(experiment, stacker, splits, trial))
                progress(1)
            if study.best_trials:
                chosen[outer], inner_scores[outer] = study.best_params, study.best_value
    if len(chosen) < k:
        out.warn(f"only {len(chosen)} of {k} studies have a finished trial: run the same command again, it continues")
    return _write(experiment, f"gbdt-{stacker.name}", {"folds": chosen, "inner_scores": inner_scores, "trials": trials})


def tune_blend(experiment: Experiment, runs: list[Run], out: Out, *, trials: int) -> Path:
    """Tune the blend's weights without each fold, without each pair of folds, and on all rows.

    Returns the yaml that the config names under ``tuned.blend``; interrupted, it continues with the same result.
    """
    config = experiment.config
    predictions = predictions_of(experiment, runs)
    p, y = expit(predictions.oof.astype(np.float64)), experiment.target[predictions.rows]
    fold = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    columns = NetColumns().fit(p, predictions.nets)
    weights = []
    withouts = left_out(range(experiment.folds.k))
    with out.bar("tune blend", len(withouts), "studies") as progress:
        for without in withouts:
            rows = ~np.isin(fold, list(without))
            study = _open_study(experiment, f"blend-without-{'-'.join(map(str, sorted(without))) or 'none'}")
            blender = Blender("optuna", objective=config.objective, trials=trials, seed=config.seed).fit(
                p[rows], y[rows], nets=predictions.nets[rows], columns_from=columns, study=study
            )
            weights.append({"without": sorted(without), **asdict(blender.weighting_)})
            progress(1)
    return _write(experiment, "blend", {"runs": list(predictions.names), "weights": weights, "trials": trials})


def _try(experiment: Experiment, stacker: Stacker, splits: list[FoldMatrix], trial: optuna.Trial) -> dict[str, Any]:
    """One trial's mean objective over the inner folds, or its pruning."""
    config, scores = experiment.config, []
    for step, split in enumerate(splits):
        stop, y = inner_rows(experiment, split.train_rows), experiment.target[split.train_rows]
        model = fit_gbdt(
            stacker.kind,
            split.train[~stop],
            y[~stop],
            stop=(split.train[stop], y[stop]),
            params={**stacker.params, **trial.params},
            seed=config.seed,
            threads=config.threads,
        )
        p = expit(predict_logit(model, split.held, threads=config.threads).astype(np.float64))
        scores.append(score(config.objective, experiment.target[split.held_rows], p))
        trial.report(float(np.mean(scores)), step)
        if trial.should_prune():
            return {"state": TrialState.PRUNED}
    return {"values": float(np.mean(scores))}


def _next_trial(study: optuna.Study, kind: str, *, seed: int) -> optuna.Trial:
    """Ask for one more; the sampler is seeded by what has ended, so an interruption leaves no trace (law 9)."""
    space = SPACES[kind]
    if not study.get_trials(deepcopy=False):
        study.enqueue_trial({name: DEFAULTS[kind][name] for name in space})
    study.sampler = optuna.samplers.TPESampler(seed=seed + _ended(study), constant_liar=False)
    trial = study.ask()
    for name, (low, high, log) in space.items():
        if isinstance(DEFAULTS[kind][name], int):
            trial.suggest_int(name, int(low), int(high), log=log)
        else:
            trial.suggest_float(name, low, high, log=log)
    return trial


def _open_study(experiment: Experiment, name: str) -> optuna.Study:
    """A study of these rows and this objective in the experiment's journal; one that exists is continued.

    What a trial was doing when its process was killed is forgotten: it is marked failed and counts for nothing.
    """
    path = experiment.folder / "studies" / "journal.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    _drop_torn_line(path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name=f"{name}-{experiment.config.objective}-{experiment.rows_fingerprint}",
        storage=JournalStorage(JournalFileBackend(str(path))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=8),
        load_if_exists=True,
    )
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _drop_torn_line(path: Path) -> None:
    """A crash can leave half a line at the end, which the next append would glue to its own and make unreadable."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        with atomic(path) as temporary:
            temporary.write_bytes(content[: content.rfind(b"\n") + 1])


def _ended(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def _write(experiment: Experiment, name: str, result: dict[str, Any]) -> Path:
    path = experiment.folder / "studies" / f"{name}.yaml"
    origin = {"objective": experiment.config.objective, "rows_or_folds": experiment.rows_fingerprint}
    with atomic(path) as temporary:
        temporary.write_text(yaml.safe_dump({**origin, **result}, sort_keys=False), encoding="utf-8")
    return path

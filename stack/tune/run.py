"""Tunes GBDT parameters, the blend's weights and image training settings by Optuna studies.

Only a study without fold k may choose the model that predicts fold k. So the GBDTs and the blend have one study for
each outer fold and one on all rows for the submission; the blend, whose method is also chosen inside each outer fold,
has one for each pair of folds too. An image study uses a single grouped split of all rows.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from dermstack.errors import ConfigError
from image_models.processes import crash_named, run_parallel
from image_models.settings import Callbacks, Compute
from stack.blend.blender import Blender
from stack.blend.columns import NetScaler, Weighting
from stack.blend.nested import left_out_sets
from stack.blend.preselection import informative_runs
from stack.blend.weights import method_settings
from stack.console import Out
from stack.experiment import Experiment
from stack.fold_needs import check_study_needs
from stack.folds import inner_split
from stack.images import require_acquisition
from stack.level1.folds import labels_of
from stack.level1.image_runs import images_checksum, level1_runs
from stack.level2.features import FoldMatrix, fold_matrix
from stack.level2.inputs import with_source_stackers
from stack.level2.stackers import fit_stacker
from stack.metrics.scores import Floats, score
from stack.net_metadata import column_dropout, metadata_encoder
from stack.parallel import run_with_threads
from stack.predictions.joined import Predictions, predictions_of, read_embeddings, standardised
from stack.settings.image_models import ImageModel
from stack.settings.level2 import Stacker, is_second_stage
from stack.store import Run
from stack.study_inputs import (
    Inputs,
    blend_study_inputs,
    gbdt_study_inputs,
    image_file_inputs,
    image_study_inputs,
)
from stack.tune.studies import (
    Objective,
    open_study,
    refuse_sqlite,
    run_study,
    storage_errors,
    tell_stale,
    write_study,
)
from stack.views import blended_runs, check_blended_runs, with_all_features
from tabular.gbdt_libraries import DEFAULTS

if TYPE_CHECKING:
    from image_models.cache import ImageCache


# low, high, logarithmic; around the defaults, which are the first trial of each study
GBDT_SPACES: dict[str, dict[str, tuple[float, float, bool]]] = {
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


def tune_gbdt(
    experiment: Experiment, stacker: Stacker, out: Out, *, trials: int, timeout: float | None, workers: int = 1
) -> Path:
    """Chooses a stacker's parameters for each outer fold, by the mean objective over the others, and for all folds.

    Each study runs until it has ``trials`` ended trials; the studies share ``timeout`` seconds, with equal parts of the
    remaining time (`run_study`). Returns the path of the yaml to name in the config under ``tuned.gbdt``.
    """
    if stacker.kind not in GBDT_SPACES:
        raise ConfigError(
            f"{stacker.name} is a {stacker.kind} model, which has no study: choose a stacker of kind "
            f"{', '.join(GBDT_SPACES)}"
        )
    check_study_needs(experiment, "gbdt")
    if experiment.config.all_features.shortcuts:
        experiment = require_acquisition(experiment)
    # Raises for unusable runs before a study is opened.
    inputs = gbdt_study_inputs(experiment, stacker, _sources(experiment, stacker))
    tell_stale(experiment, f"gbdt-{stacker.name}", inputs, out)
    k = experiment.folds.k
    started = time.monotonic()
    chosen: dict[int | None, dict[str, Any]] = {}
    inner_scores = {}
    outers = [*range(k), None]
    with out.bar(f"tune {stacker.name}", trials * len(outers), "trials") as progress:
        for number, outer in enumerate(outers):
            seconds_left = None if timeout is None else max(0.0, timeout - (time.monotonic() - started))
            study = run_study(
                experiment,
                f"gbdt-{stacker.name}-without-{'none' if outer is None else outer}",
                partial(_gbdt_objective, experiment, stacker, outer),
                out,
                inputs=inputs,
                first={name: DEFAULTS[stacker.kind][name] for name in GBDT_SPACES[stacker.kind]},
                trials=trials,
                timeout=None if seconds_left is None else seconds_left / (len(outers) - number),
                workers=workers,
                progress=progress,
            )
            if study.best_trials:
                chosen[outer], inner_scores[outer] = study.best_params, study.best_value
    if len(chosen) < len(outers):
        out.warn(
            f"only {len(chosen)} of {len(outers)} studies have a completed trial: run the same command to continue them"
        )
    return write_study(
        experiment,
        f"gbdt-{stacker.name}",
        inputs,
        {
            "folds": {fold: params for fold, params in chosen.items() if fold is not None},
            **({"all": chosen[None]} if None in chosen else {}),  # for the submission
            "inner_scores": {"all" if fold is None else fold: value for fold, value in inner_scores.items()},
            "trials": trials,
        },
    )


def tune_blend(
    experiment: Experiment, runs: list[Run], out: Out, *, trials: int, timeout: float | None = None, workers: int = 1
) -> Path:
    """Tunes the blend's weights without each fold, without each pair of folds, and on all rows.

    Each of ``workers`` processes runs one study at a time, and the studies share ``timeout`` seconds. An interrupted
    run continues with the same result, for any number of workers. Returns the path of the yaml to name in the config
    under ``tuned.blend``.
    """
    check_study_needs(experiment, "blend")
    refuse_sqlite(experiment, workers)
    check_blended_runs(experiment.config, [run.name for run in runs])
    runs = blended_runs(experiment.config, runs)
    inputs = blend_study_inputs(experiment, runs)
    tell_stale(experiment, "blend", inputs, out)
    predictions = predictions_of(experiment, runs)
    p = predictions.p
    fold = experiment.folds.frame["fold"].to_numpy()[predictions.rows]
    columns = NetScaler().fit(p, predictions.nets, predictions.groups)
    fold_sets = left_out_sets(range(experiment.folds.k))
    open_study(
        experiment, _blend_study_name(fold_sets[0]), inputs
    )  # checks and repairs the storage before workers open it
    share = None if timeout is None else timeout * workers / len(fold_sets)
    tasks = [
        partial(_weights_without, experiment, inputs, predictions, p, fold, columns, without, trials, share)
        for without in fold_sets
    ]
    weights = []
    with out.bar("tune blend", len(fold_sets), "studies") as progress:
        for without, (weighting, done) in zip(fold_sets, run_parallel(tasks, workers), strict=True):
            weights.append({"without": sorted(without), **asdict(weighting), "trials": done})
            progress(1)
    short = sum(entry["trials"] < trials for entry in weights)
    if short:
        out.warn(
            f"{short} of {len(weights)} studies have fewer than {trials} trials for lack of time: run the same command "
            "to continue them"
        )
    result = {"runs": list(predictions.names), "weights": weights, "trials": trials}
    return write_study(experiment, "blend", inputs, result)


def _weights_without(
    experiment: Experiment,
    inputs: Inputs,
    predictions: Predictions,
    p: Floats,
    fold: NDArray[np.int8],
    columns: NetScaler,
    without: frozenset[int],
    trials: int,
    timeout: float | None,
) -> tuple[Weighting, int]:
    """Returns the weighting that a study chose without the folds `without`, and the study's number of trials.

    With `blend.preselect` the study weights the runs that the nested blend pre-selects on the same rows, and the others
    get weight 0.
    """
    config, seen = experiment.config, ~np.isin(fold, list(without))
    rows, p, nets = predictions.rows[seen], p[seen], predictions.nets[seen]
    y, used = experiment.target[rows], None
    if config.blend.preselect:
        used = informative_runs(columns.ranks_.transform(p, nets), y, experiment.split_group[rows])
    study = open_study(experiment, _blend_study_name(without), inputs, shared=True)
    blender = Blender("optuna", **asdict(replace(method_settings(config), trials=trials, timeout=timeout)))
    with storage_errors(experiment):
        blender.fit(p, y, nets=nets, columns_from=columns, study=study, use_runs=used)
    return blender.weighting_, len(blender.trial_values_)


def _blend_study_name(without: frozenset[int]) -> str:
    return f"blend-weighting-without-{'-'.join(map(str, sorted(without))) or 'none'}"


def _gbdt_objective(experiment: Experiment, stacker: Stacker, outer: int | None) -> Objective:
    """Returns the objective of a GBDT study: the mean metric over the inner folds, which the pruner may end early."""
    config = experiment.config
    splits = run_with_threads(config.threads, _inner_splits, experiment, stacker, outer)

    def objective(trial: optuna.Trial) -> float:
        params, scores = _suggest_gbdt(trial, stacker.kind), []
        for step, split in enumerate(splits):
            # one model, with the stacker's own draws, weights and constraints
            model = fit_stacker(experiment, stacker, split, params=params, bags=1)
            p = expit(model.logit(split.held[list(model.columns)], threads=config.threads).astype(np.float64))
            scores.append(score(config.objective, experiment.target[split.held_rows], p))
            trial.report(float(np.mean(scores)), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(np.mean(scores))

    return objective


def _sources(experiment: Experiment, stacker: Stacker) -> list[Run]:
    """Returns the runs of the stacker's matrix: level-1 runs, and models of the table where it sees any."""
    runs = level1_runs(experiment)
    return with_source_stackers(experiment, runs) if is_second_stage(stacker, experiment.config.stackers) else runs


def _inner_splits(experiment: Experiment, stacker: Stacker, outer: int | None) -> list[FoldMatrix]:
    """Returns one matrix for each inner fold, without the rows of fold ``outer``."""
    sources = _sources(experiment, stacker)
    predictions = standardised(predictions_of(experiment, sources))
    embeddings = read_embeddings(experiment, sources)
    inner = [fold for fold in range(experiment.folds.k) if fold != outer]
    return [fold_matrix(with_all_features(experiment), embeddings, predictions, fold, without=outer) for fold in inner]


def _suggest_gbdt(trial: optuna.Trial, kind: str) -> dict[str, Any]:
    return {
        name: trial.suggest_int(name, int(low), int(high), log=log)
        if isinstance(DEFAULTS[kind][name], int)
        else trial.suggest_float(name, low, high, log=log)
        for name, (low, high, log) in GBDT_SPACES[kind].items()
    }


# low, high, logarithmic; widened to include the model's own settings, which are the first trial
IMAGE_RANGES = {
    "lr": (1e-4, 3e-3, True),
    "weight_decay": (1e-3, 0.1, True),
    "layer_decay": (0.7, 1.0, False),
    "label_smoothing": (0.0, 0.1, False),
}
IMAGE_CHOICES: dict[str, tuple[Any, ...]] = {
    "augment": ("light", "standard", "heavy"),
    "balance": ("none", "sqrt"),
    "ema": (0.0, 0.998),
}


def tune_images(
    experiment: Experiment, out: Out, *, trials: int, timeout: float | None, workers: int
) -> dict[str, Path]:
    """Runs a study for each enabled image model that is not frozen, one after the other, and returns their results."""
    from stack.images import with_images
    from stack.level1.image_runs import check_image_models

    models = [model for model in experiment.config.image_models if model.enabled and not model.frozen]
    if not models:
        raise ConfigError(
            f"{experiment.config_path} has no enabled image model that is trained: enable one that is not frozen"
        )
    untuned = experiment.config.tuned.model_copy(update={"image": {}})  # what the config names may be what is stale
    experiment = replace(experiment, config=experiment.config.model_copy(update={"tuned": untuned}))
    experiment, caches = with_images(experiment, check_image_models(experiment), out)
    return {
        model.name: tune_image(
            experiment, model, caches[model.size], out, trials=trials, timeout=timeout, workers=workers
        )
        for model in models
    }


def tune_image(
    experiment: Experiment,
    model: ImageModel,
    cache: ImageCache,
    out: Out,
    *,
    trials: int,
    timeout: float | None,
    workers: int = 1,
) -> Path:
    """Chooses training settings by the AUC after the last epoch on about a fifth of the rows, in whole groups.

    The net is trained on the other rows. After eight completed trials, a trial is pruned after an epoch at which its
    best AUC so far is below the median of the earlier trials. Returns the path of the yaml to name in the config under
    ``tuned.image``.
    """
    inputs = image_study_inputs(experiment, model) | image_file_inputs(model, images_checksum(experiment, cache))
    tell_stale(experiment, f"image-{model.name}", inputs, out)
    with out.bar(f"tune {model.name}", trials, "trials") as progress:
        study = run_study(
            experiment,
            f"image-{model.name}",
            partial(_image_objective, experiment, model, cache),
            out,
            inputs=inputs,
            first=_own_settings(model),
            trials=trials,
            timeout=timeout,
            workers=workers,
            progress=progress,
        )
    if not study.best_trials:
        errors = [trial.user_attrs["error"] for trial in study.trials if "error" in trial.user_attrs]
        why = (
            errors[-1] if errors else "no trial was completed in time: run the command again with a longer `--timeout`"
        )
        raise ConfigError(f"{model.name}: {why}")
    result = {"model": model.name, "settings": study.best_params, "trials": trials}
    result |= {"auc": study.best_value, "selected": "on these rows"}
    return write_study(experiment, f"image-{model.name}", inputs, result)


def _image_objective(experiment: Experiment, model: ImageModel, cache: ImageCache) -> Objective:
    from dermstack.errors import ImageError
    from image_models.fit import TrainingRows, train_fold_net

    config, table = experiment.config, experiment.table
    inner = inner_split(experiment.target, experiment.split_group, seed=config.seed)
    learned = pd.concat([table.train, experiment.external], ignore_index=True)
    inner_val = np.concatenate([inner, np.zeros(len(experiment.external), bool)])
    labels = labels_of(model, table.train, experiment.external)
    encoder = metadata_encoder(experiment, model).fit(learned[~inner_val]) if model.metadata else None
    data = TrainingRows(
        rows=cache.rows_for(learned["id"]),
        target=np.concatenate([labels.train, labels.external]),
        positive=labels.positive,
        metadata=None if encoder is None else encoder.transform(learned),
        column_dropout=column_dropout(model, encoder),
        inner_val=inner_val,
    )
    compute = Compute(config.device, config.threads, config.workers)
    crash = (
        f"a training of {model.name} ({model.backbone}) crashed in compiled code ({{crash}}), which is a library's "
        f"fault and no lack of memory: update torch and timm, or change the backbone {model.backbone}, its `size` or "
        "`device`"
    )

    def objective(trial: optuna.Trial) -> float:
        tried = model.model_copy(update=_settings(_suggest_training(trial, model)))
        last = 0.0

        def report(epoch: int, auc: float) -> None:
            nonlocal last
            last = auc
            trial.report(auc, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            with crash_named(crash), TemporaryDirectory(prefix="dermstack-tune-") as folder:
                train_fold_net(
                    cache, data, model.network, tried.training, seed=model.seeds[0] + config.seed, folder=Path(folder),
                    compute=compute, callbacks=Callbacks(report=report),
                )  # fmt: skip
        except ImageError as error:  # the training collapsed: poor settings, but the study goes on
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        return last

    return objective


def _own_settings(model: ImageModel) -> dict[str, Any]:
    return {
        **{name: getattr(model, name) for name in (*IMAGE_RANGES, *IMAGE_CHOICES)},
        "augment": "+".join(model.augment),
    }


def _suggest_training(trial: optuna.Trial, model: ImageModel) -> dict[str, Any]:
    own, params = _own_settings(model), {}
    for name, (low, high, log) in IMAGE_RANGES.items():
        params[name] = trial.suggest_float(name, min(low, own[name]) or low, max(high, own[name]), log=log)
    for name, choices in IMAGE_CHOICES.items():
        params[name] = trial.suggest_categorical(name, list(dict.fromkeys([*choices, own[name]])))
    return params


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "augment": tuple(params["augment"].split("+"))}

"""A study of an image model's training settings, on groups set aside from the training rows.

Every row takes part in the choice, so that the number of the run which it makes is "selected on these rows".
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd

from stack.console import Out
from stack.errors import ConfigError
from stack.experiment import Experiment
from stack.folds import inner_split
from stack.image_config import ImageModel
from stack.labels import labels_of
from stack.level1_folds import network_settings
from stack.tune.studies import Objective, run_study, write_study
from tabular.dense import DenseMetadata

if TYPE_CHECKING:
    from image_models.cache import ImageCache

# low, high, logarithmic; widened to hold the model's own settings, which are the first trial
RANGES = {
    "lr": (1e-4, 3e-3, True),
    "weight_decay": (1e-3, 0.1, True),
    "layer_decay": (0.7, 1.0, False),
    "label_smoothing": (0.0, 0.1, False),
}
CHOICES: dict[str, tuple[Any, ...]] = {
    "augment": ("light", "standard", "heavy"),
    "balance": ("none", "sqrt"),
    "ema": (0.0, 0.998),
}


def tune_images(experiment: Experiment, out: Out, *, trials: int, timeout: float | None, workers: int) -> None:
    """A study of each enabled image model that is trained, one after the other."""
    from stack.images import with_images
    from stack.level1 import check_image_models

    models = [model for model in experiment.config.image_models if model.enabled and not model.frozen]
    if not models:
        raise ConfigError(f"{experiment.config_path} has no enabled image model that is trained: nothing to tune")
    experiment, caches = with_images(experiment, check_image_models(experiment), out)
    for model in models:
        path = tune_image(experiment, model, caches[model.size], out, trials=trials, timeout=timeout, workers=workers)
        out.say(f"to use it: `tuned: {{image: {{{model.name}: {path}}}}}`; its number is selected on these rows")


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
    """Choose training settings by the AUC after the last epoch on a fifth of the groups, trained on the others.

    A trial is pruned after an epoch whose AUC is below the median of the earlier trials'. Returns the yaml
    that the config names under ``tuned.image``.
    """
    with out.bar(f"tune {model.name}", trials, "trials") as progress:
        study = run_study(
            experiment,
            f"image-{model.name}",
            partial(_objective, experiment, model, cache),
            out,
            first=_own(model),
            trials=trials,
            timeout=timeout,
            workers=workers,
            progress=progress,
        )
    if not study.best_trials:
        errors = [trial.user_attrs["error"] for trial in study.trials if "error" in trial.user_attrs]
        why = errors[-1] if errors else "no trial ended in time: give it more `--timeout`, it continues"
        raise ConfigError(f"{model.name}: {why}")
    result = {"model": model.name, "settings": study.best_params, "trials": trials}
    return write_study(
        experiment, f"image-{model.name}", {**result, "auc": study.best_value, "selected": "on these rows"}
    )


def _objective(experiment: Experiment, model: ImageModel, cache: ImageCache) -> Objective:
    from image_models.errors import ImageError
    from image_models.fit import fit_fold

    config, table = experiment.config, experiment.table
    inner = inner_split(experiment.target, experiment.split_group, seed=config.seed)
    learned = pd.concat([table.train, experiment.external], ignore_index=True)
    choose = np.concatenate([inner, np.zeros(len(experiment.external), bool)])
    labels = labels_of(model, table.train, experiment.external)
    metadata = None
    if model.metadata:
        metadata = {"train": DenseMetadata(model.metadata).fit(learned[~choose]).transform(learned)}
    rows, target = cache.rows_for(learned["id"]), np.concatenate([labels.train, labels.external])

    def objective(trial: optuna.Trial) -> float:
        tried = model.model_copy(update=_settings(_suggested(trial, model)))
        last = 0.0

        def report(epoch: int, auc: float) -> None:
            nonlocal last
            last = auc
            trial.report(auc, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned

        try:
            with TemporaryDirectory(prefix="dermstack-tune-") as folder:
                fit_fold(
                    cache, rows, target, {}, positive=labels.positive, metadata=metadata, choose=choose,
                    augment=tried.augment, training=tried.training, seeds=[model.seeds[0] + config.seed],
                    weights=Path(folder), device=config.device, report=report, **network_settings(experiment, tried),
                )  # fmt: skip
        except ImageError as error:  # collapsed: no better settings, and no reason to stop the study
            trial.set_user_attr("error", str(error))
            raise optuna.TrialPruned from error
        return last

    return objective


def _own(model: ImageModel) -> dict[str, Any]:
    return {**{name: getattr(model, name) for name in (*RANGES, *CHOICES)}, "augment": "+".join(model.augment)}


def _suggested(trial: optuna.Trial, model: ImageModel) -> dict[str, Any]:
    own, params = _own(model), {}
    for name, (low, high, log) in RANGES.items():
        params[name] = trial.suggest_float(name, min(low, own[name]) or low, max(high, own[name]), log=log)
    for name, choices in CHOICES.items():
        params[name] = trial.suggest_categorical(name, list(dict.fromkeys([*choices, own[name]])))
    return params


def _settings(params: dict[str, Any]) -> dict[str, Any]:
    return {**params, "augment": tuple(params["augment"].split("+"))}

"""Compares choices of an image model on HAM10000: prints the runs of benchmarks/ablation.yaml in one table.

dermstack oof --config benchmarks/ablation.yaml
python benchmarks/ablation.py --tta fine_tuned
python benchmarks/ablation.py --folds 0 1 --only recipe recipe_seed_1 --against recipe

The columns are out-of-fold AUC with its interval over split_groups, average precision, accuracy at 0.5, seconds of all
folds, and the paired difference of AUC to the run of `--against`. `--tta RUN` predicts that run's rows again from its
weights with each kind of test-time augmentation. `--folds` first trains what is missing of these folds, in this
process, and compares on their rows alone: `dermstack oof` would complete the other folds. Whatever is chosen by this
table was selected on these rows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from dermstack.errors import StoreError
from image_models.dataset import CachedImages
from image_models.net import build_net, read_weights
from image_models.net_files import net_files
from image_models.predict import VIEW_COUNTS, predict
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.images import with_images
from stack.level1.folds import TrainedFold, trained_tasks
from stack.level1.image_runs import all_level1_inputs, check_fresh
from stack.level1.jobs import is_complete, run_task
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import accuracy, average_precision
from stack.settings.config import read_config
from stack.settings.image_models import ImageModel
from stack.store import Run, read_run, read_verified_run

CONFIG = Path(__file__).with_name("ablation.yaml")


def logits_by_tta(experiment: Experiment, run: Run, out: Out) -> dict[str, tuple[np.ndarray, float]]:
    """Predicts the run's out-of-fold logits with each kind of test-time augmentation; returns them with the seconds."""
    model = next(model for model in experiment.config.image_models if model.name == run.name)
    _, caches = with_images(experiment, [model.size], out)
    cache, made = caches[model.size], {}
    rows = cache.rows_for(experiment.table.train["id"])
    for tta in VIEW_COUNTS:
        logit, started = np.empty(len(rows), np.float32), time.perf_counter()
        for fold, _, held in experiment.folds.pairs():
            net = build_net(
                model.backbone, pretrained=False, frozen=False, timm_args=model.timm_args, size=model.size,
                mean=model.normalise.mean if model.normalise else None,
                std=model.normalise.std if model.normalise else None,
                prior=[1.0] * len(run.meta["classes"]),  # overwritten by the weights
                positive=run.meta["positive"], seed=0,
            )  # fmt: skip
            read_weights(net, net_files(run.folder / f"fold_{fold}", model.seeds)[0])
            logit[held] = predict(
                net, CachedImages(cache, rows[held]), batch_size=64, device=torch.device("cpu"), tta=tta
            ).logit
        made[tta] = logit, time.perf_counter() - started
    return made


def train_folds(experiment: Experiment, models: Sequence[ImageModel], folds: Collection[int], out: Out) -> Experiment:
    """Trains the missing ones of ``folds`` of each model and predicts their held-out rows alone, one after the other.

    Folds that `dermstack oof` has made are taken as they are; new ones lie in a folder of their own. Returns the
    experiment whose folds these are: where `oof` never ran, near-duplicates were not known before. Raises StoreError
    for a run or fold that was made with other settings.
    """
    with_pictures, caches = with_images(experiment, [model.size for model in models], out)
    for model in models:
        inputs = all_level1_inputs(with_pictures, model, caches[model.size])
        for folder in (experiment.models / model.name, alone(experiment, model.name)):
            check_fresh(experiment, folder, inputs)
        if read_run(experiment.models / model.name) is not None:
            continue
        for task in trained_tasks(with_pictures, model, caches[model.size], inputs, out):
            assert isinstance(task.fit, TrainedFold)
            fit = replace(
                task.fit,
                sets={"oof": task.fit.sets["oof"]},
                metadata={name: encoded for name, encoded in task.fit.metadata.items() if name == "oof"},
            )
            not_predicted = sum(len(rows) for name, rows in task.fit.sets.items() if name != "oof")
            task = replace(
                task,
                folder=alone(experiment, model.name) / task.folder.name,
                ids={"oof": task.ids["oof"]},
                fit=fit,
                images=task.images - len(model.seeds) * VIEW_COUNTS[model.tta] * not_predicted,
                anchors_of_test=None,
            )
            if task.fold in folds and not is_complete(task):
                with out.bar(task.label, task.images) as progress:
                    run_task(task, experiment.config.device, progress, out.say)
    return with_pictures


def alone(experiment: Experiment, name: str) -> Path:
    """Returns the folder of single folds of a model, which are no run."""
    return experiment.folder / "single_folds" / name


def read_oof(experiment: Experiment, name: str, folds: Collection[int]) -> tuple[pd.Series, float] | None:
    """Returns out-of-fold logits by id on the rows of ``folds`` with the seconds of these; None if not complete."""
    whole = read_verified_run(experiment.models / name)
    folder = whole.folder if whole else alone(experiment, name)
    made = [read_run(folder / f"fold_{fold}") for fold in folds]
    parts = [whole] if whole else [read_run(folder / f"fold_{fold}" / "parts") for fold in folds]
    if None in (*made, *parts):
        return None
    oof = pd.concat([part.frame("oof") for part in parts if part])
    oof = oof[oof["fold"].isin(folds)]
    return oof.set_index("id")["logit"], sum(run.meta["seconds"] for run in made if run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--against", default="fine_tuned", help="the run that the others are compared with")
    parser.add_argument("--tta", metavar="RUN", help="a run to predict again with each kind of test-time augmentation")
    parser.add_argument("--folds", type=int, nargs="+", help="train these folds if needed and compare on their rows")
    parser.add_argument("--only", nargs="+", help="the runs to compare; default: all")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the config")
    options = parser.parse_args()
    out = Out()
    config = read_config(options.config, tuple(options.set))
    torch.set_num_threads(config.threads)
    experiment = open_experiment(config, options.config, out)
    known = {model.name: model for model in config.image_models}
    if unknown := {*(options.only or ()), options.against} - known.keys():
        raise SystemExit(f"no image model {', '.join(sorted(unknown))} in {options.config}: it has {', '.join(known)}")
    models = [
        model for name, model in known.items() if options.only is None or name in (*options.only, options.against)
    ]
    folds = options.folds or range(experiment.folds.k)
    if options.folds:
        experiment = train_folds(experiment, [model for model in models if not model.frozen], folds, out)
    rows = experiment.folds.frame["fold"].isin(folds).to_numpy()
    ids = experiment.table.train["id"][rows]
    logits: dict[str, tuple[np.ndarray, float]] = {}
    for model in models:
        if (made := read_oof(experiment, model.name, folds)) is None:
            out.warn(f"{model.name} is not complete and is left out: run `dermstack oof`")
            continue
        logits[model.name] = made[0].loc[ids].to_numpy(), made[1]
        if model.name == options.tta and (run := read_run(experiment.models / model.name)):
            for tta, (logit, seconds) in logits_by_tta(experiment, run, out).items():
                logits[f"{model.name}, tta {tta}"] = logit[rows], seconds
    y, groups = experiment.target[rows], experiment.split_group[rows]
    if options.against not in logits:
        raise StoreError(f"{options.against}, with which the others are compared, is not complete: run `dermstack oof`")
    base = logits[options.against][0]
    table = []
    for name, (logit, seconds) in logits.items():
        auc = interval("auc", y, logit, groups)
        difference = paired_difference("auc", y, logit, base, groups)
        p = 1 / (1 + np.exp(-logit.astype(np.float64)))
        table.append({
            "run": name,
            "AUC": f"{auc.value:.4f} [{auc.low:.4f}, {auc.high:.4f}]",
            "AP": f"{average_precision(y, p):.3f}",
            "accuracy": f"{accuracy(y, p):.4f}",
            "seconds": f"{seconds:.0f}",
            f"AUC - {options.against}": f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
        })  # fmt: skip
    print(pd.DataFrame(table).to_string(index=False))


if __name__ == "__main__":
    main()

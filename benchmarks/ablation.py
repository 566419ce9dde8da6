"""Compares choices of an image model on HAM10000: prints the runs of benchmarks/ablation.yaml in one table.

dermstack oof --config benchmarks/ablation.yaml
python benchmarks/ablation.py --tta fine_tuned

The columns are out-of-fold AUC with its interval over split_groups, average precision, accuracy at 0.5, seconds of all
folds, and the paired difference of AUC to `fine_tuned`. `--tta RUN` predicts that run's rows again from its weights
with each kind of test-time augmentation. Whatever is chosen by this table was selected on these rows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from image_models.dataset import CachedImages
from image_models.net import build_net, read_weights
from image_models.predict import VIEW_COUNTS, predict
from image_models.saved import net_files
from stack.config import read_config
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.images import with_images
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import accuracy, average_precision
from stack.store import Run, read_run

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--against", default="fine_tuned", help="the run that the others are compared with")
    parser.add_argument("--tta", metavar="RUN", help="a run to predict again with each kind of test-time augmentation")
    options = parser.parse_args()
    torch.set_num_threads(2)
    out = Out()
    experiment = open_experiment(read_config(options.config), options.config, out)
    logits: dict[str, tuple[np.ndarray, float]] = {}
    for model in experiment.config.image_models:
        run = read_run(experiment.models / model.name)
        if run is None:
            out.warn(f"{model.name} is not complete and is left out: run `dermstack oof`")
            continue
        oof = run.frame("oof").set_index("id").loc[experiment.table.train["id"]]
        logits[model.name] = oof["logit"].to_numpy(), run.meta["seconds"]
        if model.name == options.tta:
            for tta, made in logits_by_tta(experiment, run, out).items():
                logits[f"{model.name}, tta {tta}"] = made
    y, groups = experiment.target, experiment.split_group
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

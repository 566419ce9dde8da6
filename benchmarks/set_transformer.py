"""Compares the set transformer with stackers on the group's statistics: paired differences of AUC, and of the blend.

python benchmarks/siim_oof.py ../shared/data/siim2020 DIR; python benchmarks/set_transformer.py DIR/siim.yaml
python benchmarks/set_transformer.py configs/ham10000.yaml    (after `dermstack oof`; `--set KEY=VALUE` as elsewhere)

Fits the stackers of `KINDS` that are not fitted yet, in the experiment's own folder. Scores are out-of-fold, of
models that saw no row of the split group. "Shown alone": each image is predicted as if it were the only one of its
group. "Among groups of equal size": pairs of images of groups with as many images, so that the number of images, an
artefact, helps no model. The blends are nested, choice of method included. Intervals: bootstrap over split groups.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit

from stack.blend.nested import blend_nested
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.level1.image_runs import level1_runs
from stack.level2.features import fold_matrix
from stack.level2.group_models import read_group_net
from stack.level2.stackers import run_stackers
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.shuffle import auc_equal_size
from stack.predictions.joined import Predictions, predictions_of, read_embeddings, standardised, stored_scales
from stack.settings.config import read_config
from stack.store import Run, read_run
from stack.views import with_all_features
from tabular.models import read_bag

SETS = "set_transformer"
KINDS = ("lightgbm", "logistic", SETS)
Floats = NDArray[np.floating]


def shown_alone(experiment: Experiment, runs: list[Run], sources: list[Run], level1: Predictions) -> dict[str, Floats]:
    """Logits of every held-out row by the stored models, as if it were the only one of its group."""
    scaled, embeddings = standardised(level1, stored_scales(runs[0])), read_embeddings(experiment, sources)
    made = {run.name: np.empty(len(experiment.target), np.float32) for run in runs}
    for fold in range(experiment.folds.k):
        matrix = fold_matrix(with_all_features(experiment), embeddings, scaled, fold, ungrouped=True)
        assert matrix.held_ungrouped is not None
        for run in runs:
            kept = read_run(run.folder / f"fold_{fold}")
            assert kept is not None
            bag = read_bag(run.meta["kind"], kept.folder, shift=kept.meta["shift"], read_groups=read_group_net)
            made[run.name][matrix.held_rows] = bag.logit(matrix.held_ungrouped[list(bag.columns)])
    return {name: logit[level1.rows] for name, logit in made.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument(
        "--bags", type=int, default=3, help="networks of the set transformer, whose logits are averaged"
    )
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    named = [f"{{name: {kind}, kind: {kind}, bags: {options.bags if kind == SETS else 3}}}" for kind in KINDS]
    out, overrides = Out(), (f"stackers=[{', '.join(named)}]", *options.overrides)
    experiment = open_experiment(read_config(options.config, overrides), options.config, out)
    sources = level1_runs(experiment)
    runs = run_stackers(experiment, sources, out)
    level1, level2 = predictions_of(experiment, sources), predictions_of(experiment, [*sources, *runs])
    y, split = experiment.target[level2.rows], experiment.split_group[level2.rows]
    fold = experiment.folds.frame["fold"].to_numpy()[level2.rows]
    group = experiment.table.train["group"].iloc[level2.rows]
    several = (group.map(group.value_counts()) > 1).to_numpy()
    together = {run.name: level2.oof[:, level2.names.index(run.name)] for run in runs}
    alone = shown_alone(experiment, runs, sources, level1)
    every = np.ones(len(y), bool)
    table = []
    for what, rows, logits in (
        ("all images", every, together),
        ("images with company", several, together),
        ("images alone in their group", ~several, together),
        ("all images, each shown alone", every, alone),
    ):
        if len(np.unique(y[rows])) < 2:
            continue
        for name in KINDS:
            value = interval("auc", y[rows], logits[name][rows], split[rows])
            gain = paired_difference("auc", y[rows], logits[SETS][rows], logits[name][rows], split[rows])
            table.append(_row(what, rows, name, value, gain if name != SETS else None))
    for name in KINDS:
        table.append(_row("among groups of equal size", every, name, auc_equal_size(y, together[name], split), None))
    print(pd.DataFrame(table).to_string(index=False))
    fits = next(run for run in runs if run.name == SETS).meta
    print(f"\n{SETS}: epochs {fits['chosen']}, {fits['seconds']} s of fits\n", flush=True)
    table = []
    p = expit(level2.oof.astype(np.float64))
    blends = {}
    for what, names in (("blend without it", [*level1.names, *KINDS[:-1]]), ("blend with it", list(level2.names))):
        used = [level2.names.index(name) for name in names]
        made = blend_nested(
            p[:, used], y, nets=level2.nets[:, used], fold=fold, split_group=split,
            methods=experiment.config.blend.methods, trials=experiment.config.blend.trials,
        )  # fmt: skip
        blends[what] = made.score
        value = interval("auc", y, made.score, split)
        gain = paired_difference("auc", y, made.score, blends["blend without it"], split)
        table.append(_row(f"{what}, nested ({made.chosen})", every, "", value, gain if len(blends) > 1 else None))
    print(pd.DataFrame(table).to_string(index=False))


def _row(what: str, rows: NDArray[np.bool_], name: str, value: object, gain: object | None) -> dict[str, object]:
    shown = "" if gain is None else f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    return {
        "what": what, "images": int(rows.sum()), "model": name,
        "AUC": f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}]", "set transformer or blend minus it": shown,
    }  # fmt: skip


if __name__ == "__main__":
    main()

"""Ablation of level 2 on ISIC 2024: one line for each set of features and each kind of stacker, over the same folds.

dermstack import-oof cnn -c configs/isic2024.yaml --oof .../isic2024/cnn_oof.csv --test .../isic2024/cnn_test.csv \
    --id-column isic_id --test-averaged
python benchmarks/isic2024.py configs/isic2024.yaml [--only PATTERN] [--bags 3]

Every row is scored by a stacker that was fitted without its fold; nothing is written into the experiment. Columns: AUC
with its interval over patients, AUC within folds, partial AUC above 80 % sensitivity, and the paired differences to the
CNN. Whatever is chosen by this table was selected on these rows; only the blend's nested estimate is free of its own
choice of method and weights.
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from stack.console import Out
from stack.experiment import open_experiment
from stack.level2.features import early_stopping_rows, fold_matrix, view_columns
from stack.metrics.intervals import interval, paired_difference
from stack.metrics.scores import auc_by_fold
from stack.predictions.joined import predictions_of, standardised
from stack.settings.config import Stacker, read_config
from stack.store import read_run
from stack.views import seen_runs
from tabular.fit_bag import BagSettings, ColumnRoles, fit_bag
from tabular.relative import STATISTICS

# Columns that public notebooks of the competition derive, in the words of `features.derived`.
DERIVED = {
    "lesion_size_ratio": "tbp_lv_minorAxisMM / clin_size_long_diam_mm",
    "lesion_shape_index": "tbp_lv_areaMM2 / tbp_lv_perimeterMM ** 2",
    "hue_contrast": "abs(tbp_lv_H - tbp_lv_Hext)",
    "luminance_contrast": "abs(tbp_lv_L - tbp_lv_Lext)",
    "colour_difference": "sqrt(tbp_lv_deltaA ** 2 + tbp_lv_deltaB ** 2 + tbp_lv_deltaL ** 2)",
    "border_complexity": "tbp_lv_norm_border + tbp_lv_symm_2axis",
    "colour_uniformity": "tbp_lv_color_std_mean / (tbp_lv_radial_color_std_max + 0.001)",
    "perimeter_to_area": "tbp_lv_perimeterMM / tbp_lv_areaMM2",
    "visibility": "tbp_lv_deltaLBnorm + tbp_lv_norm_color",
    "symmetry_border": "tbp_lv_symm_2axis * tbp_lv_norm_border",
    "colour_consistency": "tbp_lv_stdL / tbp_lv_Lext",
    "size_age": "clin_size_long_diam_mm * age_approx",
    "severity": "(tbp_lv_norm_border + tbp_lv_norm_color + tbp_lv_eccentricity) / 3",
    "log_area": "log(tbp_lv_areaMM2)",
    "std_contrast": "tbp_lv_stdL - tbp_lv_stdLExt",
    "colour_variance_ratio": "tbp_lv_color_std_mean / tbp_lv_stdLExt",
    "border_colour": "tbp_lv_norm_border * tbp_lv_norm_color",
    "colour_asymmetry": "tbp_lv_radial_color_std_max * tbp_lv_symm_2axis",
    "border_length": "tbp_lv_perimeterMM / (2 * 3.14159 * sqrt(tbp_lv_areaMM2 / 3.14159))",
    "ratio_A": "tbp_lv_A / tbp_lv_Aext",
    "ratio_B": "tbp_lv_B / tbp_lv_Bext",
    "ratio_L": "tbp_lv_L / tbp_lv_Lext",
}
NOTHING = {
    "logits": False, "metadata": False, "aggregates": False, "columns": False, "relative": [], "relative_site": [],
    "outliers": False, "cohort": False, "cohort_columns": False, "probability_ratio": False, "context_counts": False,
}  # fmt: skip
CNN = {"logits": True}
CNN_META = {**CNN, "metadata": True}
CNN_GROUP = {**CNN_META, "aggregates": True}
TABLE = {"metadata": True, "columns": True}
BOTH = {**CNN_GROUP, "columns": True}
ALL = {**BOTH, "relative": ["mean_diff", "z", "rank"], "outliers": True, "probability_ratio": True}
SMALL = {"num_leaves": 7, "max_depth": 3, "min_data_in_leaf": 60, "lambda_l2": 20.0, "feature_fraction": 0.3}


def lines() -> dict[str, tuple[str, dict[str, Any], dict[str, Any]]]:
    """Returns the kind, the features and other settings of each line of the table; a derived column is opted in."""
    made: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    blocks: dict[str, dict[str, Any]] = {
        "cnn": CNN,
        "cnn, age sex site": CNN_META,
        "cnn, group": {**CNN, "aggregates": True},
        "cnn, age sex site, group": CNN_GROUP,
        "… + probability_ratio": {**CNN_GROUP, "probability_ratio": True},
        "… + cohort": {**CNN_GROUP, "cohort": True},
        "… + context_counts": {**CNN_GROUP, "context_counts": True},
        "… + outliers": {**CNN_GROUP, "outliers": True},
        "… + cohort_columns": {**CNN_GROUP, "cohort_columns": True},
        "… + columns": BOTH,
        "… + columns, derived": {**BOTH, "derived": True},
        **{f"… + relative {name}": {**CNN_GROUP, "relative": [name]} for name in STATISTICS},
        "… + relative_site z": {**CNN_GROUP, "relative_site": ["z"]},
        "… + columns, relative z": {**BOTH, "relative": ["z"]},
        "… + columns, relative, outliers, probability_ratio": ALL,
        "table": TABLE,
        "table, derived": {**TABLE, "derived": True},
        "table, relative z": {**TABLE, "relative": ["z"]},
        "table, relative": {**TABLE, "relative": ["mean_diff", "z", "rank"]},
        "table, outliers": {**TABLE, "outliers": True},
    }
    for name, features in blocks.items():
        made[f"logistic: {name}"] = ("logistic", features, {})
    few = ["cnn, age sex site, group", "… + columns", "… + columns, derived", "… + columns, relative z", "table"]
    few += ["… + columns, relative, outliers, probability_ratio", "table, derived", "table, relative z"]
    for kind in ("lightgbm", "xgboost", "catboost", "extra_trees"):
        for name in few:
            made[f"{kind}: {name}"] = (kind, blocks[name], {})
    for name in few[:4]:
        made[f"lightgbm, small trees, monotone: {name}"] = (
            "lightgbm", blocks[name], {"params": SMALL, "monotone": True},
        )  # fmt: skip
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--only", default="*", help="pattern of the lines to compute, such as 'catboost*'")
    parser.add_argument("--bags", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], help="a setting, such as runs=/tmp/runs")
    parser.add_argument("--save", type=Path, help="npz to write the out-of-fold logits into, by line")
    options = parser.parse_args()
    wide = {
        "relative": list(STATISTICS), "relative_site": ["z"], "outliers": True, "cohort": True, "cohort_columns": True,
        "probability_ratio": True, "context_counts": True, "derived": DERIVED,
    }  # fmt: skip
    overrides = [*options.set, *(f"features.{key}={json.dumps(value)}" for key, value in wide.items())]
    config, out = read_config(options.config, tuple(overrides)), Out()
    experiment = open_experiment(config, options.config, out)
    cnn = read_run(experiment.models / "cnn")
    if cnn is None:
        raise SystemExit("import the CNN first: see the first lines of this file")
    predictions = predictions_of(experiment, [cnn])
    scaled = standardised(predictions)
    matrices = [fold_matrix(experiment, {}, scaled, fold) for fold in range(experiment.folds.k)]
    inner = [early_stopping_rows(experiment, matrix.train_rows) for matrix in matrices]
    y, groups = experiment.target, experiment.split_group
    fold = experiment.folds.frame["fold"].to_numpy()
    base = predictions.oof[:, 0]
    logits = {"cnn": base}
    print(_line("CNN alone", y, base, base, groups, fold, 0.0), flush=True)
    for name, (kind, features, settings) in lines().items():
        if not fnmatchcase(name, options.only):
            continue
        started = time.perf_counter()
        own = {**NOTHING, **features}
        derived = bool(own.pop("derived", False))
        alone = not own["logits"]
        stacker = Stacker(
            name="line", kind="logistic" if kind == "extra_trees" else kind, features=own,
            runs=() if alone else None, **settings,
        )  # fmt: skip
        seen_runs(config, stacker, [cnn])
        made = np.empty(len(y), np.float64)
        for matrix, stop in zip(matrices, inner, strict=True):
            columns = [
                column
                for column in view_columns(config, stacker, matrix.features)
                if derived or not column.startswith(tuple(DERIVED))
            ]
            made[matrix.held_rows] = _held_logit(kind, stacker, matrix, columns, y, stop, options.bags, config.seed)
        logits[name] = made
        print(_line(name, y, made, base, groups, fold, time.perf_counter() - started), flush=True)
    if options.save:
        np.savez_compressed(options.save, **logits)


def _held_logit(
    kind: str, stacker: Stacker, matrix: Any, columns: list[str], y: Any, stop: Any, bags: int, seed: int
) -> Any:
    target = y[matrix.train_rows]
    if kind == "extra_trees":
        middle = matrix.train[columns].median()
        model = ExtraTreesClassifier(500, min_samples_leaf=5, max_features=0.3, random_state=seed)
        model.fit(matrix.train[columns].fillna(middle), target)
        p = model.predict_proba(matrix.held[columns].fillna(middle))[:, 1].clip(1e-4, 1 - 1e-4)
        return np.log(p / (1 - p))
    bag = fit_bag(
        BagSettings(
            kind,
            stacker.params,
            bags=bags,
            columns=ColumnRoles(increasing=matrix.features.names if stacker.monotone else ()),
        ),
        matrix.train[columns],
        target,
        stop,
        seed=seed,
        threads=1,
    )
    return bag.logit(matrix.held[columns])


def _line(name: str, y: Any, s: Any, base: Any, groups: Any, fold: Any, seconds: float) -> str:
    value = interval("auc", y, s, groups)
    partial = interval("pauc80", y, s, groups)
    by_auc, by_partial = (paired_difference(objective, y, s, base, groups) for objective in ("auc", "pauc80"))
    return (
        f"| {name} | {value.value:.4f} [{value.low:.4f}, {value.high:.4f}] | {auc_by_fold(y, s, fold).mean():.4f} "
        f"| {partial.value:.4f} | {by_auc.value:+.4f} [{by_auc.low:+.4f}, {by_auc.high:+.4f}] "
        f"| {by_partial.value:+.4f} [{by_partial.low:+.4f}, {by_partial.high:+.4f}] | {seconds:.0f} |"
    )


if __name__ == "__main__":
    main()

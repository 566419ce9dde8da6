"""What the report shows, gathered from the store."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from pages.report import Comparison, ReportData, report_html
from stack.errors import StoreError
from stack.experiment import Experiment
from stack.intervals import Interval, interval, paired_difference
from stack.store import Run, atomic, read_run, read_runs
from stack.summary import run_table

LIBRARIES = (
    "dermstack",
    "numpy",
    "pandas",
    "scikit-learn",
    "lightgbm",
    "xgboost",
    "optuna",
    "torch",
    "timm",
    "albumentations",
)


def write_report(experiment: Experiment) -> Path:
    """Write runs/<experiment>/report.html. Raises StoreError where `stack` has not been run."""
    blend = read_run(experiment.folder / "blend")
    if blend is None:
        raise StoreError(
            f"{experiment.folder} has no blend yet: run `dermstack stack --config {experiment.config_path}`"
        )
    path = experiment.folder / "report.html"
    with atomic(path) as temporary:
        temporary.write_text(report_html(report_data(experiment, blend)), encoding="utf-8")
    return path


def report_data(experiment: Experiment, blend: Run) -> ReportData:
    """Everything the page says of this blend and its runs, on the rows that it covers."""
    by_name = {run.name: run for run in read_runs(experiment.models)}
    runs = [by_name[name] for name in blend.meta["runs"]]
    oof = blend.frame("oof")
    rows = pd.Index(experiment.table.train["id"]).get_indexer(oof["id"])
    y, split_group = experiment.target[rows], experiment.split_group[rows]
    objective = experiment.config.objective
    table = run_table(experiment, runs)
    best = runs[int(table[objective].argmax())]
    score = oof["score"].to_numpy(np.float64)
    best_score = best.frame("oof").set_index("id")["p"].loc[oof["id"]].to_numpy(np.float64)
    curves = {"blend (nested)": score, f"best run, picked on these rows: {best.name}": best_score}
    if "rank_mean_nested" in oof:
        curves["rank average"] = oof["rank_mean_nested"].to_numpy(np.float64)
    comparisons = [
        Comparison(
            label,
            interval(objective, y, other, split_group),
            paired_difference(objective, y, score, other, split_group),
        )
        for label, other in list(curves.items())[1:]
    ]
    return ReportData(
        experiment=experiment.name,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        objective=objective,
        headline=Interval(**blend.meta["headline"]),
        headline_label="nested from level 2 up, given the level-1 out-of-fold predictions",
        chosen=blend.meta["chosen"],
        comparisons=comparisons,
        runs=table,
        methods=pd.DataFrame(blend.meta["methods"]),
        weights=pd.DataFrame({"run": list(blend.meta["weights"]), "weight": list(blend.meta["weights"].values())}),
        y=y,
        curves=curves,
        fold=oof["fold"].to_numpy(),
        folds=experiment.folds.summary(experiment.target),
        facts=_facts(experiment),
        notes=_notes(experiment, blend) + [note for run in runs for note in _level2_notes(run)],
        settings=yaml.safe_dump(
            experiment.config.model_dump(mode="json", exclude={"runs", "cache", "storage"}),
            sort_keys=False,
            allow_unicode=True,
        ),
        versions={"python": platform.python_version()} | _versions(),
    )


def _facts(experiment: Experiment) -> dict[str, int | float | str]:
    train, test = experiment.table.train, experiment.table.test
    return {
        "training rows": len(train),
        "positives": int(experiment.target.sum()),
        "groups": int(train["group"].nunique()),
        "split_groups": int(experiment.folds.frame["split_group"].nunique()),
        "test rows": len(test),
        **{f"{column} missing": int(train[column].isna().sum()) for column in ("age", "sex", "site")},
    }


def _notes(experiment: Experiment, blend: Run) -> list[str]:
    notes = [
        "Tuned in-sample is what the chosen method scores on the rows that its weights were fitted on: it flatters.",
        "Level-2 models are fitted on out-of-fold predictions of nets that saw the held-out fold's images in "
        "training; under shuffled targets this leaves a small excess over 0.5 (`--shuffle-target` measures it).",
    ]
    if blend.meta["left_out"]:
        notes.append(
            f"{blend.meta['left_out']} training rows are left out: an imported run declared that it lacks them."
        )
    if blend.meta["selected"]:
        notes.append(
            f"{', '.join(blend.meta['selected'])}: settings chosen by a study of these rows. Their numbers, and "
            "what level 2 and the blend make of them, are selected on these rows."
        )
    if experiment.shuffled:
        notes.append(
            "Targets are shuffled between groups of equal size: among groups of one size all should be chance."
        )
    return notes


def _level2_notes(run: Run) -> list[str]:
    """What a stacker must not live on, and how well the embeddings that it takes fit each other."""
    if not run.has("probes"):
        return []
    says = {
        "context_counts": "{run} would have AUC {auc:.4f} with the number of images of the group among its features: "
        "{apart}. An artefact of how images were collected; off unless `features.context_counts`.",
        "shortcuts": "{run} would have AUC {auc:.4f} with width, height and bytes of the pictures: {apart}. "
        "An artefact of how images were made; off unless `features.shortcuts`.",
        "alone": "{run} has AUC {auc:.4f} where every image is judged as if its group had no other: {apart}.",
        "groups of one": "Among groups of one {run} has AUC {auc:.4f}, less the mean of its runs' logits {apart}.",
    }
    notes = []
    for probe in run.frame("probes").to_dict("records"):
        if text := says.get(str(probe["what"])):
            low, high = probe["difference_low"], probe["difference_high"]
            apart = f"{probe['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            notes.append(text.format(run=run.name, auc=probe["auc"], apart=apart))
    return notes + list(run.meta.get("alignment", []))


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # the image half is an extra
    return found

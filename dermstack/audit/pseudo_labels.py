"""Checks the rows without a target and the runs that were trained on predictions for test rows (pseudo-labels)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.audit.finding import Finding
from dermstack.audit.second_round import NetScores, SecondRound, second_round
from stack.experiment import Experiment
from stack.level1.pseudo_labels import SAME_LOGIT
from stack.level1.unlabelled_labels import shown
from stack.predictions.plausibility import is_fresh
from stack.store import Run

_LEVEL = 0.01  # of a false alarm, over all imported runs


def unlabelled_findings(experiment: Experiment) -> list[Finding]:
    """Reports unlabelled rows that show a training row, or that this was not searched for."""
    n = len(experiment.unlabelled)
    if not n:
        return []
    found = []
    may_not = shown(experiment)
    count: NDArray[np.bool_] = np.asarray(may_not.any(axis=1))
    if count.any():
        by_fold = ", ".join(f"{rows:,} in fold {fold}" for fold, rows in enumerate(may_not.sum(axis=0)))
        ids = experiment.unlabelled["id"][count]
        found.append(
            Finding(
                "note",
                "rows without a target show the image or have the group of training rows",
                f"{int(count.sum()):,} of {n:,} rows; left out of the pseudo-labels: {by_fold}",
                "none: each trains only the folds that do not hold out the row that it shows",
                f"first {ids.iloc[0]}",
            )
        )
    if not experiment.config.data.find_duplicates:
        found.append(
            Finding(
                "warning",
                "rows without a target may show training rows",
                f"{n:,} rows, and images that look alike are not searched for (data.find_duplicates: false)",
                "set data.find_duplicates: true, or list the pairs in data.duplicates: scores of rows whose image was "
                "also trained on without its target are too good for new images",
            )
        )
    return found


def pseudo_label_findings(experiment: Experiment, runs: Sequence[Run]) -> list[Finding]:
    """Reports imported runs that have learned the test rows from labels that may know their held-out targets.

    They are compared with the other level-1 runs that predict test rows by fold, two of them at least. A run that was
    found is not compared with later ones. Image models of the experiment are not tested: the labels of their fold k
    come from nets of fold k.
    """
    by_fold = [run for run in runs if _has_fold_nets(experiment, run)]
    nets = {run.name: _net_scores(experiment, run) for run in by_fold}
    imported = [run.name for run in by_fold if run.meta["kind"] == "imported"]
    copied = [name for name in imported if _is_copied(nets[name])]
    found = [_copied(name) for name in copied]
    imported = [name for name in imported if name not in copied]
    honest = [run.name for run in by_fold if _learned_no_test_row(run)] + imported
    groups = [pd.factorize(part)[0] for part in (experiment.split_group, experiment.table.test["group"])]
    fold, level = experiment.folds.frame["fold"].to_numpy(), _LEVEL / max(1, len(imported))
    while len(honest) > 2:
        told: dict[str, SecondRound] = {}
        for name in imported:
            others = [nets[other] for other in honest if other != name]
            made = second_round(nets[name], others, fold, groups[0], groups[1], level=level)
            if made is not None and made.labels != "none seen":
                told[name] = made
        if not told:
            break
        # The run that stands out most goes first: beside it an honest one may look odd.
        worst = min(told, key=lambda name: told[name].disagreement.value)
        found.append(_finding(worst, told[worst], len(honest) - 1))
        imported.remove(worst)
        honest.remove(worst)
    return found


def _has_fold_nets(experiment: Experiment, run: Run) -> bool:
    of_nets = run.meta["level"] == 1 and not run.meta.get("foreign_folds") and not run.meta.get("test_averaged")
    if not of_nets or not run.has("test") or not is_fresh(experiment, run):
        return False
    return set(run.frame("test")["fold"]) == set(range(experiment.folds.k))


def _learned_no_test_row(run: Run) -> bool:
    return run.meta["kind"] != "imported" and not run.meta.get("settings", {}).get("pseudo_labels")


def _net_scores(experiment: Experiment, run: Run) -> NetScores:
    oof, test = run.frame("oof").set_index("id")["logit"], run.frame("test")
    nets = [
        test[test["fold"] == fold].set_index("id")["logit"].reindex(experiment.table.test["id"])
        for fold in range(experiment.folds.k)
    ]
    known = oof.reindex(experiment.table.train["id"]).to_numpy(np.float64)
    return NetScores(known, np.array(nets, np.float64))


def _is_copied(nets: NetScores) -> bool:
    return bool(np.median(np.ptp(nets.test, axis=0)) < SAME_LOGIT)


def _copied(name: str) -> Finding:
    return Finding(
        "warning",
        f"{name}: its fold models have one prediction of test rows",
        f"the logits of half of the test rows differ by less than {SAME_LOGIT:g} between fold models",
        "import the test predictions of each fold model; if they are an average or a blend of all folds, import them "
        "with --test-averaged",
    )


def _finding(name: str, made: SecondRound, others: int) -> Finding:
    evidence = (
        f"on test rows its fold models disagree with those of {others} other runs {made.disagreement} times as much as "
        f"on held-out rows (1: as much; 99 % bounds by group); the fold's own nets have {made.own_share} of the weight "
        "that it gives these runs there"
    )
    if made.labels == "of each fold":
        what = f"{name}: it was trained on predictions for test rows, which follow the other runs fold by fold"
        return Finding("note", what, evidence, "none: such pseudo-labels of fold k know no target of fold k")
    what = f"{name}: it was trained on predictions for test rows, which may know the targets that it is scored on"
    remedy = (
        "find out which models made these pseudo-labels: those of a blend or an average of all folds make its "
        "out-of-fold score too good, so leave it out of the stack. If models of fold k alone made the labels of fold "
        "k, import these too, and the audit says so; or train its pipeline on shuffled targets: the AUC must be 0.5"
    )
    return Finding("warning", what, evidence, remedy)

"""Checks the rows without a target and the runs that were trained on predictions for test rows (pseudo-labels)."""

from __future__ import annotations

from dermstack.audit.finding import Finding
from stack.experiment import Experiment
from stack.unlabelled_labels import shown


def unlabelled_findings(experiment: Experiment) -> list[Finding]:
    """Reports unlabelled rows that show a training row, or that this was not searched for."""
    n = len(experiment.unlabelled)
    if not n:
        return []
    found = []
    may_not = shown(experiment)
    count = may_not.any(axis=1)
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

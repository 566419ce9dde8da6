"""What the report says of the rows: counts, duplicates, what is missing and what the audit found."""

from __future__ import annotations

import pandas as pd

from dermstack.audit.pictures import KINDS, pair_kinds
from dermstack.audit.record import COLUMNS, looked_at, read_findings
from dermstack.audit.survey import missing_values
from dermstack.report.report import DataFacts
from stack.experiment import Experiment, published_duplicates


def table_facts(experiment: Experiment) -> dict[str, int | float | str]:
    """The size of the table."""
    train, test = experiment.table.train, experiment.table.test
    facts: dict[str, int | float | str] = {
        "training rows": len(train),
        "positives": int(experiment.target.sum()),
        "groups": int(train["group"].nunique()),
        "split_groups": int(experiment.folds.frame["split_group"].nunique()),
        "test rows": len(test),
    }
    if len(experiment.external_as_read):
        facts["external rows, which only train level 1"] = len(experiment.external_as_read)
    return facts


def data_facts(experiment: Experiment, *, show_ids: bool) -> DataFacts:
    """Duplicates, missing values and the audit's findings; without ``show_ids`` no id and no path is among them."""
    path = experiment.config_path
    shown = path.name if path.is_absolute() else path  # as typed, but nothing of this machine's folders
    is_left = experiment.config.data.images is not None and not looked_at(experiment, "pictures")
    return DataFacts(
        duplicates=_duplicates(experiment),
        missing=missing_values(experiment.table),
        findings=_findings(experiment, show_ids=show_ids),
        audit_command=f"dermstack audit --config {shown}" if is_left else "",
    )


def _duplicates(experiment: Experiment) -> dict[str, int | str]:
    train = experiment.table.train
    facts: dict[str, int | str] = {}
    published = published_duplicates(experiment.config.data.duplicates)
    if published is not None:
        facts["published pairs"] = len(published)
        facts["of these with an id outside the training rows"] = experiment.folds.unknown_pairs
    if experiment.decided.looked_at:
        kinds = pair_kinds(experiment.decided.pairs, experiment.table)["kind"].value_counts()
        facts |= {f"near-duplicates found, {kind}": int(kinds.get(kind, 0)) for kind in KINDS}
    else:
        facts["near-duplicates"] = "the pictures were not looked at"
    facts["groups that duplicates merged away"] = int(
        train["group"].nunique() - experiment.folds.frame["split_group"].nunique()
    )
    facts["groups with rows in train and in test"] = experiment.table.shared_groups
    facts["training rows dropped, pictures that can't be read"] = len(experiment.as_read.train) - len(train)
    return facts


def _findings(experiment: Experiment, *, show_ids: bool) -> pd.DataFrame | None:
    found = read_findings(experiment)
    if found is None:
        return None
    frame = pd.DataFrame(found, columns=list(COLUMNS))
    # Only examples name rows.
    return frame if show_ids else frame.drop(columns="example")

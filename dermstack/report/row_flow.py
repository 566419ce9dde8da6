"""Counts the rows of each table from the file to their use: how many were given, excluded and why, and used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stack.experiment import Experiment
from stack.level1.pseudo_labels import labels_unlabelled, unlabelled_in_use
from stack.level1.unlabelled_labels import shown
from stack.store import Run
from stack.tables.keys import contained
from stack.tuned import enabled_models

UNREADABLE = "image cannot be read"
SAME_IMAGE = "the same image is in train or test"
SAME_ID = "the same id is in train or test"
LISTED = "data.duplicates names it as an image of train or test"
SAME_ID_ANYWHERE = "the same id is in train, test or an external table"
IN_EVERY_FOLD = "shows the image or patient of a row that is scored, in every fold"
UNCERTAIN = "not certain enough in any fold that they may train (pseudo_labels.confidence)"
UNLABELLED_YET = "not labelled yet: `dermstack oof` labels them"
NO_MODEL = "no image model is set to train on them (pseudo_labels.rows)"


@dataclass(frozen=True)
class Step:
    """Rows at one place of the way, and those that go no further: their number by reason."""

    label: str
    rows: int
    excluded: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Flow:
    """The way of one table's rows; the rows of each step are those of the one before less those excluded there."""

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        for step, following in zip(self.steps, self.steps[1:], strict=False):
            left = step.rows - sum(step.excluded.values())
            assert left == following.rows, (
                f"{self.name}: {step.rows} rows less {step.excluded} are {left}, not the {following.rows} of "
                f"{following.label!r}"
            )

    @property
    def excluded(self) -> dict[str, int]:
        """Number of rows by reason, over all steps."""
        return {reason: count for step in self.steps for reason, count in step.excluded.items()}


def row_flows(
    experiment: Experiment, covered: NDArray[np.bool_], runs: Sequence[Run], *, units: int | None = None
) -> list[Flow]:
    """Returns the flow of the training rows, the test rows and each external and unlabelled table, where there are any.

    ``covered`` says of each training row (n,) whether the blend scores it, as an image or as a part of one of
    ``units``; ``runs`` are those of the blend. Rows without a target and doubled ids need no reason here: a table that
    has any is refused when it is read.
    """
    flows = [_training(experiment, covered, runs, units)]
    if len(experiment.as_read.test):
        flows.append(_test(experiment))
    flows += [_external(experiment, table.name) for table in experiment.config.data.external]
    return flows + [_unlabelled(experiment, table.name) for table in experiment.config.data.unlabelled]


def merged_groups(experiment: Experiment) -> int:
    """Counts the groups that were joined with others in their fold, because they share an image."""
    joined = experiment.folds.frame["split_group"].nunique()
    return int(experiment.table.train["group"].nunique() - joined)


def flow_table(flows: Sequence[Flow]) -> pd.DataFrame:
    """Returns flows as lines: table, step, rows, and excluded and reason for each reason of the step."""
    lines = []
    for flow in flows:
        for step in flow.steps:
            reasons = list(step.excluded.items()) or [("", 0)]
            lines += [[flow.name, step.label, step.rows, count, reason] for reason, count in reasons]
    return pd.DataFrame(lines, columns=["table", "step", "rows", "excluded", "reason"])


def _training(experiment: Experiment, covered: NDArray[np.bool_], runs: Sequence[Run], units: int | None) -> Flow:
    given = Step(
        "rows in the training table",
        len(experiment.as_read.train),
        _dropped(experiment, experiment.as_read.train["id"]),
    )
    lacking = int((~covered).sum())
    by = ", ".join(run.name for run in runs if run.meta.get("excluded"))
    reason = (
        f"not covered by the imported run {by} (as declared)" if by else "not covered by an imported run (as declared)"
    )
    if experiment.left_out is not None:
        reason = "left out of level 2 and of the blend"
    pooled = "" if units is None else f", pooled into {units:,} units"
    used = Step("scored: in the blend and in all results" + pooled, int(covered.sum()))
    if not lacking:
        return Flow("Training", (given, used))
    return Flow("Training", (given, Step("in the folds", len(experiment.table.train), {reason: lacking}), used))


def _test(experiment: Experiment) -> Flow:
    lost = len(experiment.unreadable_test)
    excluded = {f"{UNREADABLE}; predicted from the table alone": lost} if lost else {}
    given = Step("rows in the test table, all in the submission", len(experiment.as_read.test), excluded)
    return Flow("Test", (given, Step("predicted by the blend", len(experiment.table.test))))


def _external(experiment: Experiment, name: str) -> Flow:
    rows = experiment.external_as_read.query("source == @name")["id"]
    collided = experiment.collided.get(name, 0)
    copies, dropped = experiment.listed_copies, experiment.curation.dropped["id"]
    listed = int(((copies["source"] == name) & ~copies["id"].isin(dropped)).sum())
    excluded = {SAME_ID: collided, LISTED: listed}
    excluded = {why: count for why, count in excluded.items() if count} | _dropped(experiment, rows)
    used = int((experiment.external["source"] == name).sum())
    given = Step("rows in the external table", len(rows) + collided, excluded)
    return Flow(f"External: {name}", (given, Step("only train image models; never scored", used)))


def _unlabelled(experiment: Experiment, name: str) -> Flow:
    """Returns the way of rows without a target: which are labelled, and which train the nets of at least one fold."""
    read = experiment.unlabelled_as_read.query("source == @name")["id"]
    collided = experiment.collided.get(name, 0)
    excluded = ({SAME_ID_ANYWHERE: collided} if collided else {}) | _dropped(experiment, read)
    given = Step("rows without a target in the unlabelled table", len(read) + collided, excluded)
    mine = experiment.unlabelled["source"].eq(name).to_numpy(bool)
    models = [model for model in enabled_models(experiment) if labels_unlabelled(model)]
    never = shown(experiment).all(axis=1) & mine
    uses = [unlabelled_in_use(experiment, model) for model in models]
    known = [use for use in uses if use is not None]
    used = np.any([use.any(axis=1) for use in known], axis=0) & mine if known else np.zeros(len(mine), bool)
    rest = int((mine & ~never & ~used).sum())
    reason = NO_MODEL if not models else UNLABELLED_YET if len(known) < len(uses) else UNCERTAIN
    reasons = {IN_EVERY_FOLD: int(never.sum()) if models else 0, reason: rest if models else int(mine.sum())}
    steps = (
        given,
        Step("with a readable image", int(mine.sum()), {why: count for why, count in reasons.items() if count}),
        Step(_use_text([model.name for model in models]), int(used.sum())),
    )
    return Flow(f"Unlabelled: {name}", steps)


def _use_text(models: Sequence[str]) -> str:
    if not models:
        return "used by no model; never scored"
    return (
        f"only train {', '.join(models)}, in the folds whose rows they do not show, with labels of nets that have not "
        "seen the fold; never scored"
    )


def _dropped(experiment: Experiment, ids: pd.Series) -> dict[str, int]:
    """Counts the rows with these ids that were dropped when the images were checked (dropped.csv), by reason."""
    dropped = experiment.curation.dropped
    reasons = dropped.loc[contained(dropped["id"], ids), "reason"].astype("str")
    kinds = reasons.where(~reasons.str.startswith("the same image as"), SAME_IMAGE)
    return {
        str(kind): int(count) for kind, count in kinds.where(kinds == SAME_IMAGE, UNREADABLE).value_counts().items()
    }

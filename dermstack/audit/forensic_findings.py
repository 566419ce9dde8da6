"""Words for what is wrong with files of out-of-fold predictions: their rows, folds, scales, test rows and blend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import expit

from dermstack.audit.finding import Finding, Severity
from dermstack.errors import DataError
from dermstack.listing import counted
from stack.blend.copies import copies_text
from stack.forensics.claim import BlendClaim
from stack.forensics.files import ReadRun
from stack.forensics.folds import SIGNIFICANCE
from stack.forensics.label_rows import GROUP, TARGET, LabelRows
from stack.metrics.intervals import Interval, clustered_auc
from stack.predictions.plausibility import QUANTILES, quantile_text
from stack.tables.keys import contained

FEW_LACKING = 0.05  # share of rows without a prediction up to which this is a note
SCALES_DIFFER = SIGNIFICANCE  # p-value of a difference between the scales of fold nets that is reported
OWN_BLEND = 0.98  # share of a blend's ranks that the files explain, below which it is no blend of these files alone
UNRELATED_AUC = 0.5
MIN_OPTIMISM = 0.001  # AUC of a given blend above the nested one; equal weights that fit by chance reach less
_REMEDIES = {  # by the key that decides the question in a config
    TARGET: "if not, write 0 and 1 into the column, or name another one with --target",
    GROUP: "name the column with --group",
}


def label_findings(rows: LabelRows, reference: str, *, own: bool) -> list[Finding]:
    """Returns what is to be known of the labels before any file is judged."""
    found = [
        Finding("note", "labels: a column could not be decided", question, _REMEDIES.get(key, "none"))
        for key, question in rows.questions
    ]
    if not rows.has_groups:
        found.append(
            Finding(
                "warning",
                "labels: each row is a group of its own",
                "no column of patients or lesions was found",
                "name it with --group: without it, intervals are too narrow and patients in two folds are not seen",
            )
        )
    if not own:
        found.append(
            Finding(
                "note",
                "labels: the blend is estimated on grouped folds that were made here",
                f"no file shows folds that keep groups together, so {reference} are used ({rows.experiment.folds.k})",
                "give files with a fold column, or the folds as a column of the labels",
            )
        )
    return found


def row_findings_of_file(run: ReadRun, rows: LabelRows) -> list[Finding]:
    """Returns what is wrong with the ids and values of a run's files."""
    counts, found = run.counts, []

    def add(severity: Severity, count: str, what: str, evidence: str, remedy: str) -> None:
        if number := getattr(counts, count):
            text = f"{number:,} {what}" if number != 1 else f"1 {what}".replace("rows ", "row ", 1)
            example = f"first: {counts.examples[count]}"
            found.append(Finding(severity, f"{run.name}: {text}", evidence, remedy, example))

    labelled = len(rows.experiment.target)
    add(
        "error", "contradicting", "rows repeat an id with another prediction",
        f"{counts.rows:,} rows, {counts.used:,} different ids with a label; below, the first row of each id is used",
        "write one row for each id, by the net that has not seen it; a mean over nets includes some that have",
    )  # fmt: skip
    add(
        "note", "repeated", "rows repeat an id with the same prediction", f"{counts.rows:,} rows",
        "remove the repeated rows",
    )  # fmt: skip
    add(
        "error", "not_numbers", "rows have no number as prediction", "these rows are left out below",
        "predict these rows again; a missing prediction must not be filled in",
    )  # fmt: skip
    add(
        "error", "other_targets", "rows have another target than the labels have",
        "its own column of targets, joined by id", "check that each prediction stands beside its own id",
    )  # fmt: skip
    add(
        "warning", "unknown", "rows have an id without a label", f"of {counts.rows:,} rows; they are left out below",
        "remove rows that are not to be scored, such as external images, or correct the ids",
    )  # fmt: skip
    if counts.lacking:
        covered = contained(rows.experiment.table.train["id"], run.oof["id"])
        target = rows.experiment.target
        evidence = (
            f"of {labelled:,}; {target[~covered].mean():.1%} of them are positive, "
            f"of the others {target[covered].mean():.1%}"
        )
        remedy = "predict all rows, or compare only on rows that all files cover: the others may be easier"
        severity: Severity = "note" if counts.lacking <= FEW_LACKING * labelled else "warning"
        add(severity, "lacking", "labelled rows have no prediction", evidence, remedy)
    if run.scale != "probabilities":
        what = f"{run.name}: its predictions are {run.scale}, not probabilities"
        evidence = "they are outside of 0 to 1; below they are " + (
            "ranks between 0 and 1" if run.scale == "ranks" else "turned into probabilities"
        )
        remedy = "give probabilities: a mean of p with other runs is meaningless otherwise"
        found.append(Finding("warning", what, evidence, remedy))
    return [*found, *_unrelated(run, rows)]


def _unrelated(run: ReadRun, rows: LabelRows) -> list[Finding]:
    """Warns of predictions that say nothing about the target."""
    logit = run.oof["logit"].to_numpy(np.float64)
    if np.ptp(logit) == 0:
        return []
    place = rows.experiment.rows_of(run.oof["id"])
    try:
        found = clustered_auc(rows.experiment.target[place], logit, rows.experiment.split_group[place]).interval()
    except DataError:  # a class in one group only
        return []
    if not found.low < UNRELATED_AUC < found.high:
        return []
    evidence = f"AUC {found.value:.4f} [{found.low:.4f}, {found.high:.4f}] (95 % interval by group)"
    remedy = "check that each prediction stands beside its own id; otherwise leave the run out"
    return [Finding("warning", f"{run.name}: no relation to the target is shown", evidence, remedy)]


def fold_findings(run: ReadRun, origin: str, *, torn: int, other: str) -> list[Finding]:
    """Returns what is wrong with the folds of a run, or that they are not known; ``other`` are those of most files."""
    if torn:
        evidence = f"{counted(torn, 'groups', 'have')} rows in several of its {len(run.folds)} folds"
        remedy = (
            "make the predictions again with folds by group: these nets were trained on other rows of the groups that "
            "they predict"
        )
        return [Finding("error", f"{run.name}: its folds split groups", evidence, remedy)]
    if len(run.folds) < 2:
        what = f"{run.name}: its folds cannot be inferred"
        evidence = (
            "no fold column, no file a fold, no blocks in the order of its rows, and no scale that differs between "
            "known folds"
        )
        remedy = "add the fold of each row: without it, neither scales of nets nor split groups can be examined"
        return [Finding("note", what, evidence, remedy)]
    found = []
    if origin.startswith("inferred"):
        what = f"{run.name}: its {len(run.folds)} folds are {origin.partition(':')[0]}"
        evidence = origin.partition(": ")[2] or "its rows are blocks that each follow the order of the labels or ids"
        found.append(Finding("note", what, evidence, "confirm it with the author, and write the fold into the file"))
    if other:
        what = f"{run.name}: its folds are not {other}"
        evidence = "a model that learns from its predictions on other folds meets rows that its nets were trained on"
        remedy = "blend it, but do not stack on it; train it again on the common folds for that"
        found.append(Finding("note", what, evidence, remedy))
    return found


def scale_shift_finding(name: str, oof: pd.DataFrame, p: float) -> list[Finding]:
    """Notes nets that differ in scale by more than their rows, where the AUC does not show it."""
    if not p < SCALES_DIFFER:
        return []
    low, middle, high = (oof.groupby("fold")["logit"].quantile(share).to_numpy(np.float64) for share in QUANTILES)
    evidence = (
        f"median p of its nets {quantile_text(expit(np.sort(middle)))}, width of their logits (5 to 95 %) "
        f"{quantile_text(np.sort(high - low))}; p {p:.2g} if only their rows differed"
    )
    remedy = "blend ranks, or logits standardised by net, and give test predictions of every net"
    return [Finding("note", f"{name}: its fold nets differ in scale", evidence, remedy)]


def test_findings(run: ReadRun, rows: LabelRows) -> list[Finding]:
    """Returns what is wrong with the ids of a run's test file, and with the scale of its predictions."""
    if run.test_fault:
        remedy = "correct the file, or name its columns"
        return [Finding("warning", f"{run.name}: its test file is not examined", run.test_fault, remedy)]
    found = []
    if (labelled := contained(run.test["id"], rows.experiment.table.train["id"])).any():
        ids = run.test["id"][labelled].drop_duplicates()
        evidence, remedy = "the same ids stand in the labels", "remove them: a row is either in train or in test"
        what = f"{run.name}: {len(ids):,} of its test rows are labelled rows"
        found.append(Finding("error", what, evidence, remedy, f"first: {', '.join(ids.head(3))}"))
    if len(run.test) and run.test_scale not in (run.scale, "ranks"):  # ranks are told by their even spread
        what = f"{run.name}: its test predictions are {run.test_scale}, its out-of-fold predictions are {run.scale}"
        evidence, remedy = "below, both are probabilities", "give both on one scale: a blend takes them for the same"
        found.append(Finding("warning", what, evidence, remedy))
    known = rows.experiment.table.test["id"]
    if len(lacking := known[~contained(known, run.test["id"])]):
        what = f"{run.name}: {len(lacking):,} test rows have no prediction"
        evidence = f"of {len(known):,} ids in all test files together"
        remedy = "predict all test rows: a blend cannot be applied to the others"
        found.append(Finding("warning", what, evidence, remedy, f"first: {', '.join(lacking.head(3))}"))
    return found


def claim_findings(claim: BlendClaim, claimed: str | None, refuted: Sequence[str]) -> list[Finding]:
    """Returns what the nested estimate says of the blend that was given, and of what is claimed of it."""
    found = []
    nested = _shown(claim.nested)
    if refuted:
        evidence = f"an error was found in {', '.join(refuted)}; the nested estimate is of the other files"
        remedy = "correct the files, and run this again"
        found.append(Finding("note", "blend: files with errors are left out of the nested estimate", evidence, remedy))
    if claim.claimed is not None and claimed is not None and claim.given is not None:
        half_a_digit = 0.5 * 10.0 ** -len(claimed.partition(".")[2])
        if abs(claim.claimed - claim.given.value) > half_a_digit + 1e-9:
            evidence = f"claimed {claimed}, the blend that was given has {claim.given.value:.5f} on {claim.rows:,} rows"
            remedy = "ask on which rows, with which labels and weights the claim was computed"
            found.append(Finding("error", "blend: the claimed AUC is not that of the blend", evidence, remedy))
    if claim.given is not None and claim.optimism is not None and _is_optimistic(claim.optimism):
        evidence = (
            f"AUC {claim.given.value:.4f} with the weights as given, {nested} nested; difference "
            f"{_difference(claim.optimism)} on the same rows"
        )
        remedy = "report the nested AUC: its weights never saw the rows that they are scored on"
        found.append(Finding("warning", "blend: its AUC is higher than its files give, nested", evidence, remedy))
    if claim.claimed is not None and claim.claimed > claim.nested.high:
        evidence = f"claimed {claimed}, nested {nested}, the best file alone ({claim.best_file}) {_shown(claim.best)}"
        remedy = "do not expect the claim on new rows; expect the nested AUC"
        found.append(Finding("warning", "blend: the claim lies above the interval of the nested AUC", evidence, remedy))
    if claim.copies is not None:
        what = "blend: some files are near copies of others"
        remedy = "keep one of each: a mean counts the others again, and agreement among copies confirms nothing"
        found.append(Finding("note", what, copies_text(claim.copies, "auc"), remedy))
    if claim.explained is not None and claim.explained < OWN_BLEND:
        evidence = f"a sum of their p, logits and ranks explains {claim.explained:.1%} of its variance"
        remedy = "give all files that it was made of; compared with these alone, its gain is not that of weights"
        found.append(Finding("warning", "blend: it is no blend of these files alone", evidence, remedy))
    return found


def _is_optimistic(difference: Interval) -> bool:
    return difference.low > 0 and difference.value >= MIN_OPTIMISM


def _shown(found: Interval) -> str:
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def _difference(found: Interval) -> str:
    return f"{found.value:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"

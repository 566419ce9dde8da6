"""Examines files of out-of-fold predictions without a config: findings on ids, folds, values, test files and copies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from dermstack.audit.finding import SEVERITIES, Finding
from dermstack.audit.forensic_findings import (
    claim_findings,
    fold_findings,
    label_findings,
    row_findings_of_file,
    scale_shift_finding,
    test_findings,
)
from dermstack.audit.runs import excess_findings, held_out_findings, scale_findings, scale_shift
from dermstack.errors import DataError
from stack.console import Out
from stack.forensics.claim import (
    BlendClaim,
    as_probabilities,
    given_scores,
    measure_claim,
    number_of_claim_fits,
    parsed_weights,
    weighted_blend,
)
from stack.forensics.files import NamedColumns, ReadRun, read_run_files
from stack.forensics.folds import groups_torn, infer_folds, scale_differences_p
from stack.forensics.label_rows import LabelRows, open_labels
from stack.imported.prediction_files import Files
from stack.imported.run import Source
from stack.metrics.intervals import Interval
from stack.metrics.scores import Floats, auc_by_fold
from stack.predictions.doubts import doubts
from stack.predictions.net_scale import scale_differences
from stack.predictions.plausibility import RunFacts, run_facts
from stack.tables.keys import contained, positions_of

Ints = NDArray[np.intp]

GROUPED = "grouped folds that were made here"
SCALES_ARE_ALIKE = 0.01  # p-value of differences in scale above which they explain no difference of AUCs
_COVERED = 0.95  # share of a file's rows that known folds must cover to be compared with its scales
TOO_FEW_NETS = float("nan")


@dataclass(frozen=True)
class ClaimedBlend:
    """The blend that its author made: its file or weights, and the AUC that is stated, as written."""

    source: Source | None = None
    weights: str | None = None
    weights_of: str = "p"
    claimed: str | None = None


@dataclass(frozen=True)
class Examined:
    """What was found of one run: its files, its folds and how they are known, and its AUC."""

    run: ReadRun
    facts: RunFacts
    folds_from: str  # in words
    torn: int  # groups in several folds
    within: Interval | None  # AUC of ranks within nets
    difference: Interval | None  # the same less the pooled AUC
    by_fold: tuple[float, ...]
    shift: float  # differences in scale between nets, in units of what the rows explain; NaN for one net
    shift_p: float
    held_out: str


@dataclass(frozen=True)
class FileFinding:
    """A finding, and the runs that it is about; none where it is about the labels or the blend.

    A file may give a run any name, also `labels` or `blend`, so that the text of a finding does not say this.
    """

    finding: Finding
    runs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Forensics:
    """All that `run_forensics` found."""

    labels: Path
    columns: Mapping[str, str]
    rows: int
    positives: int
    groups: int
    has_groups: bool
    reference: str  # whose folds the nested estimate and the comparison of ranks use
    examined: tuple[Examined, ...]
    findings: tuple[FileFinding, ...]  # the worst first
    claim: BlendClaim | None
    left_out_of_blend: tuple[str, ...] = ()
    not_read: Mapping[str, str] = field(default_factory=dict)  # reason by run


def run_forensics(
    labels: Path,
    sources: Sequence[Source],
    out: Out,
    *,
    named: NamedColumns,
    target: str | None = None,
    group: str | None = None,
    blend: ClaimedBlend | None = None,
    seed: int = 0,
) -> Forensics:
    """Examines the files of ``sources`` beside the labels, and the blend of them; writes nothing.

    A file that cannot be read becomes a finding. Raises DataError where the labels or all files cannot be read, and
    ConfigError for weights that name no file.
    """
    blend = blend or ClaimedBlend()
    rows = open_labels(
        labels, id_column=named.id if _has_column(labels, named.id) else None, target=target, group=group
    )
    files, runs, not_read = Files(), [], {}
    with out.bar("read", len(sources), "runs") as progress:
        for source in sources:
            try:
                runs.append(_read(source, rows, named, files))
            except DataError as error:
                not_read[source.name] = str(error)
            progress(1)
    if not runs:
        raise DataError("none of the files can be examined:\n" + "\n".join(f"  {text}" for text in not_read.values()))
    weights = None if blend.weights is None else parsed_weights(blend.weights, [run.name for run in runs])
    correct = "correct the file or the options, and run this again"
    found = [
        FileFinding(Finding("error", f"{name}: not examined", reason, correct), (name,))
        for name, reason in not_read.items()
    ]
    test_ids = pd.unique(pd.concat([run.test["id"] for run in runs], ignore_index=True))
    rows = rows.with_test_ids(list(test_ids))
    runs, origins = _with_inferred_folds(runs, rows, seed=seed)
    rows, reference, own_reference = _with_reference_folds(rows, runs)
    found += map(FileFinding, label_findings(rows, reference, own=own_reference))
    facts = run_facts(rows.experiment, [run.scores for run in runs])
    examined = []
    with out.bar("examine", len(runs), "runs") as progress:
        for run, fact in zip(runs, facts, strict=True):
            made, of_run = _examined(run, fact, origins[run.name], rows, runs, reference)
            examined.append(made)
            found += [FileFinding(finding, (run.name,)) for finding in of_run]
            progress(1)
    for doubt in doubts(facts):
        finding = Finding(doubt.severity, doubt.title, doubt.evidence, doubt.remedy)
        found.append(FileFinding(finding, doubt.runs))
    with_errors = runs_with_errors(found)
    refuted = tuple(run.name for run in runs if run.name in with_errors)
    usable, claim = len(runs) - len(refuted), None
    asked = blend.source is not None or weights is not None or blend.claimed is not None
    if usable > 1 or (usable and asked):
        claim = _claim(rows, runs, refuted, blend, weights, named, files, out, seed=seed)
        found += map(FileFinding, claim_findings(claim, blend.claimed, refuted))
    return Forensics(
        labels=labels, columns=rows.columns, rows=len(rows.experiment.target),
        positives=int(rows.experiment.target.sum()), groups=len(np.unique(rows.experiment.split_group)),
        has_groups=rows.has_groups, reference=reference, examined=tuple(examined),
        findings=tuple(sorted(found, key=lambda one: SEVERITIES.index(one.finding.severity))), claim=claim,
        left_out_of_blend=refuted if claim else (), not_read=not_read,
    )  # fmt: skip


def runs_with_errors(findings: Iterable[FileFinding]) -> set[str]:
    """Returns the names of the runs about which an error was found."""
    return {name for one in findings if one.finding.severity == "error" for name in one.runs}


def _has_column(path: Path, name: str | None) -> bool:
    from stack.tables.cells import read_columns

    return name is not None and name in read_columns(path)


def _read(source: Source, rows: LabelRows, named: NamedColumns, files: Files) -> ReadRun:
    table = rows.experiment.table.train[["id", "target"]]
    return read_run_files(
        source, table, named, files, target_column=rows.columns["target"], id_column=rows.columns["id"]
    )


def _groups(rows: LabelRows) -> Ints:
    return np.asarray(pd.factorize(rows.experiment.split_group)[0], np.intp)


def _places(run: ReadRun, rows: LabelRows) -> Ints:
    return positions_of(run.oof["id"], rows.experiment.table.train["id"])


def _with_inferred_folds(runs: list[ReadRun], rows: LabelRows, *, seed: int) -> tuple[list[ReadRun], dict[str, str]]:
    """Infers the folds of files that do not say them; also returns how the folds of each run are known, in words."""
    group, n = _groups(rows), len(rows.experiment.target)
    known: dict[str, Ints] = {}  # each different partition of the labelled rows; -1 where its file has no row
    if rows.has_folds:
        known["the fold column of the labels"] = rows.experiment.folds.frame["fold"].to_numpy(np.intp)
    for run in runs:
        if run.folds and run.shown_by:
            partition = np.full(n, -1)
            partition[_places(run, rows)] = run.oof["fold"].to_numpy()
            if not any(_same(partition, other) for other in known.values()):
                known[f"the folds of {run.name}"] = partition
    made: list[ReadRun] = []
    origins: dict[str, str] = {}
    for run in runs:
        if run.shown_by:
            origins[run.name] = run.shown_by
            made.append(run)
            continue
        place = _places(run, rows)
        covering = {name: of[place] for name, of in known.items() if (of[place] >= 0).mean() >= _COVERED}
        inside = np.logical_and.reduce([of >= 0 for of in covering.values()]) if covering else np.ones(len(place), bool)
        target = rows.experiment.target[place]
        found = infer_folds(
            place[inside], run.oof["id"][inside], run.oof["logit"].to_numpy(np.float64)[inside], target[inside],
            group[place][inside], {name: of[inside] for name, of in covering.items()}, seed=seed,
        )  # fmt: skip
        if found.fold is None:
            origins[run.name] = ""
            made.append(run)
            continue
        fold = np.full(n, -1)
        fold[place[inside]] = found.fold
        every = extended_folds(fold, group)[place]
        made.append(run.with_folds(every, [str(number) for number in range(int(every.max()) + 1)]))
        origins[run.name] = (
            "inferred from the order of its rows"
            if found.origin == "row order"
            else f"inferred: its scale differs between {found.of} (p {found.p:.2g})"
        )
    return made, origins


def extended_folds(fold: Ints, group: Ints) -> Ints:
    """Returns the folds (n,) with one for each row that has none (-1): its group's, else that of the fewest rows."""
    made = fold.copy()
    of_group = dict(zip(group[fold >= 0].tolist(), fold[fold >= 0].tolist(), strict=True))
    sizes = np.bincount(fold[fold >= 0])
    for number in np.unique(group[fold < 0]).tolist():
        if number not in of_group:
            of_group[number] = int(np.argmin(sizes))
        rows = (group == number) & (fold < 0)
        made[rows] = of_group[number]
        sizes[of_group[number]] += int(rows.sum())
    return made


def _with_reference_folds(rows: LabelRows, runs: Sequence[ReadRun]) -> tuple[LabelRows, str, bool]:
    """Returns the rows with the folds of most files, their name, and whether they are files' or the labels' own."""
    if rows.has_folds:
        return rows, "the fold column of the labels", True
    group, y, n = _groups(rows), rows.experiment.target, len(rows.experiment.target)
    candidates: list[tuple[Ints, list[str], int]] = []
    for run in runs:
        if len(run.folds) < 2:
            continue
        fold = np.full(n, -1)
        fold[_places(run, rows)] = run.oof["fold"].to_numpy()
        there = fold >= 0
        both = [len(np.unique(y[fold == number])) for number in range(len(run.folds))]
        if groups_torn(fold[there], group[there]) or min(both) < 2:
            continue
        for number, (other, names, covered) in enumerate(candidates):
            if _same(fold, other):
                candidates[number] = (
                    fold if there.sum() > covered else other,
                    [*names, run.name],
                    max(covered, int(there.sum())),
                )
                break
        else:
            candidates.append((fold, [run.name], int(there.sum())))
    if not candidates:
        return rows, GROUPED, False
    fold, names, _ = max(candidates, key=lambda one: (len(one[1]), one[2]))
    return rows.with_folds(extended_folds(fold, group)), f"the folds of {', '.join(names)}", True


def _same(a: Ints, b: Ints) -> bool:
    """Whether two partitions (n,) agree on the rows that both cover (no -1), which are most of each."""
    both = (a >= 0) & (b >= 0)
    if both.sum() < _COVERED * max((a >= 0).sum(), (b >= 0).sum()):
        return False
    pairs = np.unique(np.column_stack([a[both], b[both]]), axis=0)
    return len(pairs) == len(np.unique(pairs[:, 0])) == len(np.unique(pairs[:, 1]))


def _examined(
    run: ReadRun, facts: RunFacts, origin: str, rows: LabelRows, runs: Sequence[ReadRun], theirs: str
) -> tuple[Examined, list[Finding]]:
    """Returns the numbers and the findings of one run, without those of `stack.predictions.doubts`."""
    experiment, place = rows.experiment, _places(run, rows)
    fold, group = run.oof["fold"].to_numpy(np.intp), _groups(rows)[place]
    known = run.folds if len(run.folds) > 1 else ()
    torn = groups_torn(fold, group) if known and rows.has_groups else 0
    shift, shift_p = TOO_FEW_NETS, TOO_FEW_NETS
    if known:
        statistic, freedom = scale_differences(run.oof["logit"], fold, group)
        if freedom:
            shift = statistic / freedom
            logit = run.oof["logit"].to_numpy(np.float64)
            shift_p = scale_differences_p(logit, experiment.target[place], group, fold)
    found = row_findings_of_file(run, rows)
    reference = experiment.folds.frame["fold"].to_numpy(np.intp)[place]
    found += fold_findings(run, origin, torn=torn, other="" if not known or _same(fold, reference) else theirs)
    if not contained(run.test["id"], experiment.table.test["id"]).all() or len(run.test) or run.test_fault:
        found += test_findings(run, rows)
    compared = scale_shift(experiment, run.oof) if known else None
    of_auc = scale_findings(experiment, run.name, run.oof) if known and shift_p < SCALES_ARE_ALIKE else []
    found += of_auc or scale_shift_finding(run.name, run.oof, shift_p)
    held_out = "not tested"
    if run.all_rows is not None:
        others = {
            f"the folds of {other.name}": other.oof.set_index("id")["fold"]
            for other in runs
            if other.name != run.name and len(other.folds) > 1
        }
        of_nets = held_out_findings(experiment, run.name, run.oof, run.all_rows, others)
        held_out = of_nets[0].what.partition(": ")[2]
        found += of_nets
    else:
        found += excess_findings(experiment, run.name, run.oof, {other.name: other.oof for other in runs})
    by_fold = auc_by_fold(experiment.target[place], run.oof["logit"].to_numpy(np.float64), fold) if known else None
    return Examined(
        run, facts, origin, torn, compared.within if compared else None, compared.difference if compared else None,
        () if by_fold is None else tuple(map(float, by_fold)), shift, shift_p, held_out,
    ), found  # fmt: skip


def _claim(
    rows: LabelRows,
    runs: Sequence[ReadRun],
    refuted: Sequence[str],
    blend: ClaimedBlend,
    weights: Mapping[str, float] | None,
    named: NamedColumns,
    files: Files,
    out: Out,
    *,
    seed: int,
) -> BlendClaim:
    """Measures the blend of the runs that are not ``refuted``, on the rows that all of them cover.

    The blend of the author's weights has all runs, as its author made it.
    """
    usable = [number for number, run in enumerate(runs) if run.name not in refuted]
    needed = range(len(runs)) if weights is not None else usable
    shared = np.logical_and.reduce([_covered(runs[number], rows) for number in needed])
    place, ids = np.flatnonzero(shared), rows.experiment.table.train["id"]
    if not len(place):
        raise DataError("no labelled row is covered by all files: examine files of the same rows together")
    P, nets = np.empty((len(place), len(runs))), np.empty((len(place), len(runs)), np.intp)
    for number in needed:
        run, where = runs[number], np.full(len(ids), -1)
        where[_places(run, rows)] = np.arange(len(run.oof))
        P[:, number] = as_probabilities(run.oof["logit"].to_numpy()[where[place]])
        nets[:, number] = run.oof["fold"].to_numpy()[where[place]]
    given: Floats | None = None
    if blend.source is not None:
        made = _read(replace(blend.source, test=()), rows, replace(named, p=None, nets=None), files)
        given = given_scores(made.oof, ids.iloc[place].reset_index(drop=True), made.paths[0])
    elif weights is not None:
        given = weighted_blend(P, [run.name for run in runs], weights, blend.weights_of)
    fold = rows.experiment.folds.frame["fold"].to_numpy(np.intp)[place]
    with out.bar("blend", number_of_claim_fits(fold), "fits") as progress:
        return measure_claim(
            P[:, usable], rows.experiment.target[place], [runs[number].name for number in usable],
            nets=nets[:, usable], fold=fold, group=_groups(rows)[place], given=given,
            claimed=None if blend.claimed is None else float(blend.claimed), seed=seed, progress=progress,
        )  # fmt: skip


def _covered(run: ReadRun, rows: LabelRows) -> NDArray[np.bool_]:
    covered = np.zeros(len(rows.experiment.target), bool)
    covered[_places(run, rows)] = True
    return covered

"""Runs `dermstack audit`: collects all findings in one list and writes them into the experiment's folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd

from dermstack.audit.acquisition import acquisition_findings
from dermstack.audit.drift import drift_findings
from dermstack.audit.finding import Finding, is_audited, read_findings, read_part_findings, write_part_findings
from dermstack.audit.labels import doubtful_labels_finding, kept_doubtful_labels
from dermstack.audit.pictures import chain_finding, pair_kinds, part_findings, picture_findings
from dermstack.audit.pseudo_labels import pseudo_label_findings, unlabelled_findings
from dermstack.audit.rows import proxy_findings, row_findings
from dermstack.audit.runs import run_findings
from dermstack.audit.sources import PART, inputs_of, source_findings
from dermstack.errors import ConfigError
from dermstack.listing import counted
from stack.console import Out
from stack.experiment import Experiment
from stack.images import ACQUISITION_FILE, file_suffixes, looks_of, smallest_cache_size, with_images
from stack.json_files import sha256_once
from stack.level1.unlabelled_labels import rows_input
from stack.level2.features import metadata_of_models
from stack.parallel import Pending, start_together
from stack.predictions.plausibility import is_fresh
from stack.sources.estimates import LeaveSourceOut
from stack.store import Run, atomic, fingerprint

ROWS, RUNS = "rows", "runs"  # parts of the audit; that of the rows stays as it is where only runs change
SECOND_LOOK = "second_look.csv"
_VERSION = 6  # part of the inputs' fingerprint: raise it so that stored findings are made again


@dataclass(frozen=True)
class AuditResult:
    """The experiment after its images were read, its pairs of near-duplicates by kind, and the findings."""

    experiment: Experiment
    pairs: pd.DataFrame
    findings: list[Finding]


def run_audit(experiment: Experiment, out: Out, *, pictures: bool = True, shuffles: int = 0) -> AuditResult:
    """Audits the rows, all images and the finished level-1 runs.

    With ``shuffles`` it also refits models on shuffled targets, that many times. Writes audit.json, audit.csv,
    audit_pairs.csv and second_look.csv into the experiment's folder, and nothing else. Raises ConfigError for
    ``shuffles`` without a frozen image model.
    """
    if shuffles and not _frozen(experiment.finished(level=1)):
        raise ConfigError(
            "--shuffles needs a finished run of a frozen image model, and the experiment has none: add a model with "
            "`frozen: true` to image_models and run `dermstack oof`, or use `--shuffle-target`"
        )
    parts: dict[str, tuple[str, list[Finding]]] = {}
    pairs, sizes = pair_kinds(experiment.curation.pairs, experiment.table), None
    if pictures and experiment.config.data.images is not None:
        experiment, pairs, sizes, found = _audit_pictures(experiment, out)
        parts["pictures"] = (_inputs_fingerprint(experiment), found)
        with atomic(experiment.folder / "audit_pairs.csv") as temporary:
            pairs.to_csv(temporary, index=False)
    runs = experiment.finished(level=1)
    out.say(f"audit: {len(experiment.table.train):,} rows, {counted(len(runs), 'level-1 runs')} …")
    inputs = _inputs_of_parts(experiment, runs)
    parts |= _start_parts(experiment, runs, inputs, sizes).shown("audit", out, unit="parts")
    if shuffles:
        parts["shuffles"] = (
            inputs[RUNS],
            _audit_shuffled_targets(experiment, runs, out, shuffles),
        )
    return AuditResult(experiment, pairs, write_part_findings(experiment, parts))


def audit_for_stack(
    experiment: Experiment, runs: Sequence[Run], out: Out, *, meanwhile: Callable[[], object] = lambda: None
) -> list[Finding]:
    """Audits the rows and ``runs`` before level 2 is built on them, without images and shuffles.

    Does nothing if its inputs have not changed since the last time, and audits only the runs if the rows have not.
    Stored findings on images and shuffles stay unchanged. Returns the findings of all parts. ``meanwhile`` is called
    while worker processes audit.
    """
    inputs = _inputs_of_parts(experiment, runs)
    stale = {part: of_part for part, of_part in inputs.items() if read_part_findings(experiment, part, of_part) is None}
    if not stale:
        return read_findings(experiment) or []
    rows = f"{len(experiment.table.train):,} rows" + ("" if ROWS in stale else " as before")
    out.say(f"audit: {rows}, {counted(len(runs), 'level-1 runs')} …")
    started = _start_parts(experiment, runs, stale)
    meanwhile()
    return write_part_findings(experiment, started.shown("audit", out, unit="parts"))


def audit_sources(experiment: Experiment, found: LeaveSourceOut | None, findings: list[Finding]) -> list[Finding]:
    """Stores the findings of the estimates with sources held out, a part of its own; returns the findings of all parts.

    ``findings`` are those of the other parts, returned where there is nothing of sources to store.
    """
    if found is None and not is_audited(experiment, PART):
        return findings
    return write_part_findings(experiment, {PART: (inputs_of(experiment, found), source_findings(found))})


def _start_parts(
    experiment: Experiment, runs: Sequence[Run], inputs: Mapping[str, str], sizes: pd.DataFrame | None = None
) -> Pending[dict[str, tuple[str, list[Finding]]]]:
    """Starts to look for the findings of those parts of the audit, rows and runs, of which ``inputs`` has the inputs.

    Returns each with them. The part of the runs writes second_look.csv. ``sizes`` of the image files are given if they
    were just read; else those of the csv or an earlier `oof` are used.
    """
    fresh = [run for run in runs if is_fresh(experiment, run)]
    level2 = [run for run in experiment.finished(level=2) if is_fresh(experiment, run)]
    tasks: list[tuple[str, partial[list[Finding]]]] = [
        (ROWS, partial(row_findings, experiment)),
        (ROWS, partial(proxy_findings, experiment)),
        (ROWS, partial(unlabelled_findings, experiment)),
        (ROWS, partial(drift_findings, experiment)),
        (RUNS, partial(acquisition_findings, experiment, sizes, level2 or fresh)),
        (RUNS, partial(run_findings, experiment, runs)),
        (RUNS, partial(pseudo_label_findings, experiment, runs)),
        (RUNS, partial(_audit_labels, experiment, fresh)),
    ]
    tasks = [(part, task) for part, task in tasks if part in inputs]
    longest = {drift_findings, _audit_labels}  # begin, so that no process waits for one that began last
    order = sorted(range(len(tasks)), key=lambda place: tasks[place][1].func not in longest)

    def in_order(made: list[list[Finding]]) -> dict[str, tuple[str, list[Finding]]]:
        found = dict(zip(order, made, strict=True))
        return {
            part: (of_part, [finding for place, (of, _) in enumerate(tasks) if of == part for finding in found[place]])
            for part, of_part in inputs.items()
        }

    return start_together([tasks[place][1] for place in order], experiment.config, in_order)


def _audit_labels(experiment: Experiment, fresh: list[Run]) -> list[Finding]:
    """Returns the finding on doubtful labels, and writes second_look.csv."""
    doubtful = kept_doubtful_labels(experiment, fresh)
    with atomic(experiment.folder / SECOND_LOOK) as temporary:
        doubtful.to_csv(temporary, index=False)
    doubt = doubtful_labels_finding(doubtful, len(experiment.target), fresh)
    return [doubt] if doubt else []


def _audit_pictures(experiment: Experiment, out: Out) -> tuple[Experiment, pd.DataFrame, pd.DataFrame, list[Finding]]:
    """Returns the experiment after its images were read, pairs by kind, sizes of the original images, findings."""
    from image_models.duplicates import image_faults

    size = smallest_cache_size(experiment)
    experiment, caches = with_images(experiment, [size], out, ask=False)
    cache, table = caches[size], experiment.table
    ids = [*table.train["id"], *table.test["id"]]
    hashed = looks_of(experiment, cache, ids, out)
    odd = image_faults(hashed)
    odd = pd.DataFrame({"id": [ids[position] for position in odd["position"]], "fault": odd["fault"]})
    curation = experiment.curation
    pairs = pair_kinds(pd.concat([curation.pairs, curation.unmerged], ignore_index=True), table)
    sizes = cache.index.iloc[cache.rows_for(ids)][["id", "source_height", "source_width", "source_bytes"]]
    sizes = sizes.assign(encoding=file_suffixes(experiment).loc[sizes["id"]].to_numpy())
    parts = pd.DataFrame({
        "encoding": sizes["encoding"].to_numpy(),
        "bits": cache.index["bits"].to_numpy()[cache.rows_for(ids)],
        "size": [f"{w} × {h}" for w, h in zip(sizes["source_width"], sizes["source_height"], strict=True)],
    })  # fmt: skip
    odd_parts = part_findings(hashed.thumbnails, parts)
    found = picture_findings(pairs, ids, odd, curation.dropped, experiment.listed_duplicates, odd_parts)
    if len(curation.unmerged) and experiment.config.data.on_chain == "refuse":
        found.insert(0, chain_finding(curation.unmerged, table))
    return experiment, pairs, sizes, found


def _audit_shuffled_targets(experiment: Experiment, runs: Sequence[Run], out: Out, shuffles: int) -> list[Finding]:
    from dermstack.audit.shuffled import (  # imported here: it needs the extra `[image]`
        shuffled_findings,
        shuffled_target_aucs,
    )

    return shuffled_findings(shuffled_target_aucs(experiment, _frozen(runs)[0], out, shuffles=shuffles))


def _frozen(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.meta["kind"] == "frozen"]


def _inputs_of_parts(experiment: Experiment, runs: Sequence[Run]) -> dict[str, str]:
    """Returns a fingerprint of everything that the findings of each part, rows and runs, depend on."""
    rows = _inputs_fingerprint(experiment)
    return {ROWS: rows, RUNS: fingerprint({"rows": rows, "runs": {run.name: run.meta["files"] for run in runs}})}


def _inputs_fingerprint(experiment: Experiment) -> str:
    """Returns a fingerprint of everything that the findings on rows depend on."""
    data = experiment.config.data
    files = {path.name: sha256_once(path) for path in (data.train, data.test, data.duplicates) if path is not None}
    return fingerprint({
        "version": _VERSION,
        "rows": [experiment.rows_fingerprint, experiment.metadata_fingerprint],
        **({"unlabelled": [rows_input(experiment, []), data.find_duplicates]} if len(experiment.unlabelled) else {}),
        "files": files,
        "features": experiment.config.all_features.inputs(),
        "columns of models": sorted(metadata_of_models(experiment.config, experiment.table.columns)),
        "acquisition": (experiment.folder / ACQUISITION_FILE).is_file(),
    })  # fmt: skip

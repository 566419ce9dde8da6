"""All that checklists and the methods text are answered from, gathered from an experiment and its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from dermstack.audit.pictures import count_kinds, pair_kinds
from dermstack.report.evidence import WrittenReport
from dermstack.report.report import page_sections
from dermstack.report.report_data import ReportData
from dermstack.report.row_flow import merged_groups
from stack.experiment import Experiment
from stack.settings.config import Config
from stack.sources.estimates import LeaveSourceOut, stored_leave_source_out


@dataclass(frozen=True)
class Model:
    """One run of the blend: its kind ("image", "frozen", "imported", or that of a stacker) and its run.json."""

    name: str
    kind: str
    level: int
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Counts:
    """Sizes of the tables, and what is known of images and groups that stand twice."""

    train: int  # images of the training table
    groups: int
    test: int
    merged_groups: int = 0  # joined with others in their fold, because they share a picture
    shared_groups: int = 0  # with rows in train and test
    look_alikes: Mapping[str, int] | None = None  # pairs of images that look alike, by kind; None: not looked for
    columns: Mapping[str, int] = field(default_factory=dict)  # columns of the table without a role, by kind


@dataclass(frozen=True)
class Evidence:
    """All that checklists and the methods text are answered from; what a run lacks is None or absent here."""

    data: ReportData
    config: Config
    blend: Mapping[str, Any]  # run.json of the blend
    runs: Sequence[Model]
    counts: Counts
    tables: Mapping[str, pd.DataFrame]  # the numbers of the page's tables, by their ids on the page
    sections: Mapping[str, str]  # titles of the page's sections by their ids
    groups_known: bool  # whether the table names a patient or a lesion
    sources: LeaveSourceOut | None  # estimates with sources held out
    shows_images: bool  # whether the page may show images


def evidence_of(report: WrittenReport) -> Evidence:
    """Gathers the evidence of the experiment whose report was written."""
    experiment, blend = report.experiment, report.blend
    frames = {name.replace("_", "-"): made.frame for name, made in report.parts.tables.items()}
    for section in report.sections.values():
        frames |= section.tables
    sources = stored_leave_source_out(experiment.folder, blend.meta["fingerprint"])
    return Evidence(
        data=report.data,
        config=experiment.config,
        blend=blend.meta,
        runs=[Model(run.name, run.meta["kind"], run.meta["level"], run.meta) for run in report.runs],
        counts=_counts(experiment),
        tables=frames,
        sections=page_sections(report.data, report.sections),
        groups_known=experiment.table.groups_known,
        sources=None if experiment.shuffled else sources,
        shows_images=report.images and experiment.config.data.images is not None,
    )


def _counts(experiment: Experiment) -> Counts:
    train, columns = experiment.table.train, experiment.table.columns
    look_alikes = None
    if experiment.curation.images_fingerprint:
        look_alikes = count_kinds(pair_kinds(experiment.curation.pairs, experiment.table))
    of_kind = {
        "columns of numbers": len(columns.numeric), "columns of words": len(columns.categorical),
        "derived columns": len(columns.derived),
    }  # fmt: skip
    return Counts(
        train=len(train),
        groups=int(train["group"].nunique()),
        test=len(experiment.table.test),
        merged_groups=merged_groups(experiment),
        shared_groups=int(experiment.table.shared_groups),
        look_alikes=look_alikes,
        columns={kind: number for kind, number in of_kind.items() if number},
    )

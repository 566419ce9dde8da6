"""The data that the report page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from stack.level1.training_curves import TrainingCurve
from stack.metrics.intervals import Interval
from stack.review import ReviewResult
from stack.tune.studies import StudyHistory


@dataclass(frozen=True)
class Comparison:
    """Another score on the same rows, and the paired difference between the blend and it."""

    label: str
    value: Interval
    difference: Interval  # headline minus this one, paired


@dataclass(frozen=True)
class Calibration:
    """Reliability before and after calibration; each row's probability was made without its fold."""

    method: str  # the blend method whose score was calibrated
    map: str  # the calibration map for the submission's p: platt, beta or isotonic
    before: pd.DataFrame  # columns of `stack.metrics.calibration.reliability`
    after: pd.DataFrame
    scores: pd.DataFrame  # probability (its label), then those of `stack.metrics.calibration.calibration_scores`


@dataclass(frozen=True)
class Decision:
    """Net benefit of acting on the calibrated p, on all or on none (`stack.metrics.decisions.decision_curve`)."""

    curve: pd.DataFrame  # at a fine grid of thresholds
    at_round_thresholds: pd.DataFrame  # at a few round thresholds
    numbers: pd.DataFrame | None = None  # `stack.metrics.decisions.decision_numbers`


@dataclass(frozen=True)
class DataFacts:
    """Facts about the rows; a frame is None if it was not computed."""

    duplicates: Mapping[str, int | str] = field(default_factory=dict)
    missing: pd.DataFrame | None = None  # `dermstack.audit.drift.missing_values`
    findings: pd.DataFrame | None = None  # of the audit: severity, what, evidence, remedy, and example if ids are shown
    numbers: pd.DataFrame | None = None  # `dermstack.audit.columns.number_columns`
    words: pd.DataFrame | None = None  # `dermstack.audit.columns.word_columns`
    column_notes: Sequence[str] = ()  # which columns were taken and which were left out, and why
    audit_command: str = ""  # the command that audits the images, if they were not audited


@dataclass(frozen=True)
class Training:
    """How the blend's models were fitted: curves of the networks, and what each stacker chose on its inner rows."""

    curves: Sequence[TrainingCurve] = ()
    without: Mapping[str, str] = field(default_factory=dict)  # run of level 1 without curves -> why it has none
    rounds: pd.DataFrame | None = None  # of GBDTs, a row for each model of a bag: stacker, fold, rounds, limit


@dataclass(frozen=True)
class ReportData:
    """Everything that the page shows; columns and facts beyond those named here are shown unchanged.

    Columns: `runs` run, kind, level, rows, <objective>, low, high, ap, within_folds, min_fold, max_fold, note;
    `methods` method, nested, low, high, tuned, gap, difference (nested minus that of the first method),
    difference_low, difference_high, chosen; `weights` run, weight, enters as; `folds` fold, rows, groups, positives,
    prevalence. NaN is shown as a dash. A section whose field keeps its default is left out.
    """

    experiment: str
    created: str
    objective: str
    headline: Interval
    headline_label: str  # how it was estimated: "nested from level 2 up, given the level-1 out-of-fold predictions"
    chosen: str  # the chosen blend method
    comparisons: Sequence[Comparison]
    runs: pd.DataFrame
    methods: pd.DataFrame
    weights: pd.DataFrame
    y: NDArray[Any]  # (n,) 0 or 1
    curves: Mapping[str, NDArray[Any]]  # label -> scores (n,), the headline's first
    fold: NDArray[Any]  # (n,)
    folds: pd.DataFrame
    facts: Mapping[str, int | float | str]
    notes: Sequence[str]
    settings: str  # YAML
    versions: Mapping[str, str]
    diagnostics: Sequence[str] = ()  # what was measured about level 2: shortcuts, groups, alignment of embeddings
    target: str = ""  # name of the csv column of targets
    positives: str = ""  # sentences that name the diagnoses of both classes
    group: str = ""  # name of the csv column of groups
    unit: str = "image"  # what is scored: "unit" where several images have one prediction
    calibration: Calibration | None = None
    decision: Decision | None = None
    review: ReviewResult | None = None  # the review band, where the config asks for one
    by_fold: pd.DataFrame | None = None  # `stack.history.fold_table`, the blend's line first
    agreement: pd.DataFrame | None = None  # `stack.history.rank_correlations`
    uncut: int = 0  # categorical columns without subgroups, because others come first
    subgroups: pd.DataFrame | None = None  # `stack.metrics.subgroups.subgroups`
    importance: pd.DataFrame | None = None  # `stack.level2.importance.importance`
    training: Training | None = None
    studies: Sequence[StudyHistory] = ()
    data: DataFacts = field(default_factory=DataFacts)
    seeds: Mapping[str, int | str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

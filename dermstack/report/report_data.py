"""All that the report shows, as plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from stack.metrics.intervals import Interval
from stack.tune.studies import StudyHistory


@dataclass(frozen=True)
class Comparison:
    """What the headline was measured against, on the same rows."""

    label: str
    value: Interval
    difference: Interval  # headline less this one, paired


@dataclass(frozen=True)
class Calibration:
    """Whether probabilities mean what they say, before calibration and after; both were made without their own row."""

    method: str  # whose score was calibrated
    map: str  # the map of the submission's p: platt, beta or isotonic
    before: pd.DataFrame  # `reliability.reliability`
    after: pd.DataFrame
    scores: pd.DataFrame  # probability (its label), then those of `reliability.calibration_scores`


@dataclass(frozen=True)
class Decision:
    """Whether to act on the calibrated p is better than to act on all or on nobody (`net_benefit.decision_curve`)."""

    curve: pd.DataFrame  # at thresholds close to each other
    at: pd.DataFrame  # at a few round ones


@dataclass(frozen=True)
class DataFacts:
    """What is known of the rows; a frame that is None was not looked at."""

    duplicates: Mapping[str, int | str] = field(default_factory=dict)
    missing: pd.DataFrame | None = None  # `survey.missing_values`
    findings: pd.DataFrame | None = None  # of the audit: severity, what, evidence, remedy, with ids also example
    audit_command: str = ""  # what looks at the pictures, where they were not


@dataclass(frozen=True)
class ReportData:
    """All that the page shows; columns and facts beyond those named are shown as they come.

    Columns: `runs` run, kind, level, rows, <objective>, low, high, ap, within_folds, min_fold, max_fold, note;
    `methods` method, nested, low, high, tuned, gap, difference (nested less that of the first method),
    difference_low, difference_high, chosen; `weights` run, weight, and how it enters; `folds` fold, rows, groups,
    positives, prevalence. A number that is NaN is shown as a dash. What has a default is left out where it is empty.
    """

    experiment: str
    created: str
    objective: str
    headline: Interval
    headline_label: str  # how it was estimated: "nested from level 2 up, given the level-1 out-of-fold predictions"
    chosen: str  # the method
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
    calibration: Calibration | None = None
    decision: Decision | None = None
    by_fold: pd.DataFrame | None = None  # `summary.fold_table`, the blend's line first
    agreement: pd.DataFrame | None = None  # `summary.agreement`
    subgroups: pd.DataFrame | None = None  # `subgroups.subgroups`
    importance: pd.DataFrame | None = None  # `importance.importance`
    studies: Sequence[StudyHistory] = ()
    data: DataFacts = field(default_factory=DataFacts)
    seeds: Mapping[str, int | str] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

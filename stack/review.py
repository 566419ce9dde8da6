"""The review band of an experiment: chosen on the blend's held-out calibrated p, kept in review.json.

Rows of the submission get the column `decision` in predictions.parquet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from stack.console import Out
from stack.experiment import Experiment
from stack.metrics.measures import jsonable
from stack.metrics.review_band import (
    Band,
    Decisions,
    SubgroupDecisions,
    choose_band,
    cross_fitted_decisions,
    decide,
    decisions_by_subgroup,
    guarantee_text,
    measure_decisions,
    percent_text,
)
from stack.metrics.subgroups import shown_subgroups
from stack.store import Run, read_json, write_json
from stack.unit_rows import scored_experiment

REVIEW_FILE = "review.json"


@dataclass(frozen=True)
class ReviewResult:
    """The band of all rows, and the decisions on training rows by bands that were chosen without each row's fold."""

    band: Band
    decisions: Decisions
    subgroups: tuple[SubgroupDecisions, ...]
    folds: int
    folds_without: int  # folds for which the others have too few patients for any decision


def review_of(experiment: Experiment, blend: Run) -> ReviewResult | None:
    """Chooses the band that the config asks for; None where it asks for none."""
    review = experiment.config.review
    if review is None:
        return None
    scored = scored_experiment(experiment)
    oof = blend.frame("oof")
    rows = scored.rows_of(oof["id"])
    y, group, p = scored.target[rows], scored.split_group[rows], oof["p_calibrated"].to_numpy(np.float64)
    asked: dict[str, Any] = {"confidence": review.confidence, "exact": review.test == "exact"}
    band = choose_band(y, p, group, review.low, review.high, **asked)
    fold = oof["fold"].to_numpy()
    decision, without = cross_fitted_decisions(y, p, group, fold, review.low, review.high, **asked)
    columns = experiment.table.columns
    parts, _ = shown_subgroups(scored.table.train.iloc[rows], columns.shown_categorical, columns.shown_numeric)
    return ReviewResult(
        band,
        measure_decisions(y, decision, group, band.guarantees),
        decisions_by_subgroup(y, decision, group, band.guarantees, parts),
        len(np.unique(fold)),
        without,
    )


def write_review(experiment: Experiment, blend: Run, out: Out) -> Band | None:
    """Writes review.json, or removes it where the config asks for no band; prints and returns the band."""
    path = experiment.folder / REVIEW_FILE
    found = review_of(experiment, blend)
    if found is None:
        path.unlink(missing_ok=True)
        return None
    write_json(path, jsonable(found))
    for line in review_lines(found, "image" if experiment.config.predict_per is None else "unit"):
        out.say(f"review: {line}")
    return found.band


def shown_review(experiment: Experiment, blend: Run, out: Out) -> ReviewResult | None:
    """Returns `review_of` for a page; warns where the decisions on disk are those of another band."""
    found, path = review_of(experiment, blend), experiment.folder / REVIEW_FILE
    try:
        written = read_json(path)["band"] if path.is_file() else None
    except (OSError, ValueError, KeyError):  # damaged: `stack` writes it again
        written = "unreadable"
    if written != (None if found is None else jsonable(found.band)):
        out.warn(
            f"{experiment.folder} has the decisions of another review band than the report shows: run "
            f"`{experiment.command('stack')}` to write them again"
        )
    return found


def with_decisions(test: pd.DataFrame, band: Band | None) -> pd.DataFrame:
    """Returns rows with p_calibrated and their column `decision`; unchanged without a band.

    Rows that are predicted without their image, and rows far from the training images, go to a person.
    """
    if band is None:
        return test
    certain = np.ones(len(test), bool)
    if "basis" in test:
        certain &= (test["basis"] == "images").to_numpy(bool)
    if "far" in test:
        certain &= ~test["far"].to_numpy(bool)
    return test.assign(decision=decide(test["p_calibrated"].to_numpy(np.float64), band, certain=certain))


def review_lines(found: ReviewResult, unit: str = "image") -> list[str]:
    """Returns the band, its guarantees and the share of rows, each a ``unit``, that go to a person, as sentences."""
    band, lines = found.band, []
    for of, cut in ((band.low, band.below), (band.high, band.above)):
        if of is None:
            continue
        rule = guarantee_text(of, cut, "rule", unit)
        lines.append(rule if of.threshold is None else f"{rule}; {guarantee_text(of, cut, 'promise', unit)}")
    share = found.decisions.review
    lines.append(
        f"{percent_text(round(share.value, 3))} of the training {unit}s go to a person [{100 * share.low:.1f}, "
        f"{100 * share.high:.1f}], by bands that were chosen without the fold of each {unit}"
    )
    return lines

"""Findings about sources (hospitals, cameras): what their folds hold out, and what is lost where a source is new."""

from __future__ import annotations

import math

from dermstack.audit.finding import Finding
from stack.experiment import Experiment
from stack.sources.estimates import (
    HELD_OUT,
    LEVEL_2_ONLY,
    LeaveSourceOut,
    bounds,
    headline_note,
    retraining_advice,
    source_sentences,
)
from stack.store import fingerprint

PART = "sources"  # of audit.json
_WIDE = 0.1  # AUC: a prediction interval that reaches this far below the typical source is told


def source_findings(found: LeaveSourceOut | None) -> list[Finding]:
    """Returns the findings of the estimates with sources held out; [] where there are none."""
    if found is None:
        return []
    best, made = found.strictest, list[Finding]()
    evidence = headline_note(found)
    if best.held_out == LEVEL_2_ONLY:
        what = f"the estimate for other sources is optimistic: {', '.join(best.seen_by)} had seen them"
        remedy = " ".join(retraining_advice(best))
        made.append(Finding("warning", what, evidence, remedy))
    if best.difference is not None and best.difference.high < 0:
        change = bounds(best.difference.value, best.difference.low, best.difference.high, sign="+")
        made.append(
            Finding(
                "warning",
                "the AUC is lower where the source was not in training",
                f"{change} within a typical source, on the same images; {evidence}",
                "expect the estimate with sources held out where a source is new, and measure there with `dermstack "
                "evaluate`",
            )
        )
    over = best.over
    if best.predicts_next and over.mean - over.next_low > _WIDE:
        what = f"the AUC in another source may be as low as {over.next_low:.2f}"
        made.append(Finding("note", what, evidence, "measure in each new source before the models are used there"))
    if not made:
        what = "sources were held out" if best.held_out == HELD_OUT else "no estimate holds sources out"
        remedy = "none" if math.isfinite(over.mean) else "name sources with more groups of both classes, or join some"
        made.append(Finding("note", what, " ".join([evidence, *source_sentences(found)]), remedy))
    return made


def inputs_of(experiment: Experiment, found: LeaveSourceOut | None) -> str:
    """Returns a fingerprint of what the findings depend on."""
    return fingerprint({"rows": experiment.rows_fingerprint, "blend": None if found is None else found.blend})

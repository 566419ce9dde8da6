"""The review band of a bundle: its manifest entry, and what `predict` and `evaluate` say about decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from numpy.typing import ArrayLike

from dermstack.serve.bundle import Bundle
from dermstack.serve.expectations import lacking_columns
from stack.console import Out
from stack.experiment import Experiment
from stack.metrics.measures import jsonable
from stack.metrics.review_band import (
    NEGATIVE,
    POSITIVE,
    REVIEW,
    ReviewCheck,
    decisions_by_subgroup,
    measure_decisions,
)
from stack.metrics.subgroups import find_subgroups
from stack.review import review_of, with_decisions
from stack.store import Run


def review_entry(experiment: Experiment, blend: Run) -> dict[str, Any]:
    """Returns the manifest's entry on the review band; {} where the config asks for none."""
    found = review_of(experiment, blend)
    if found is None:
        return {}
    shares = {name: getattr(found.decisions, name) for name in (NEGATIVE, REVIEW, POSITIVE)}
    shown = {name: {"value": of.value, "low": of.low, "high": of.high} for name, of in shares.items()}
    return {"review": {**jsonable(found.band), "shares": shown}}


def decided(bundle: Bundle, made: pd.DataFrame, frame: pd.DataFrame, missing: Sequence[str]) -> pd.DataFrame:
    """Returns predictions of the rows of ``frame`` with the column `decision`, if the bundle has a review band.

    All rows go to a person where a column that the models use is ``missing`` or has no value: the band was chosen on
    images with it.
    """
    made = with_decisions(made, bundle.review_band)
    if "decision" in made and lacking_columns(bundle, frame, missing)[0]:
        made["decision"] = REVIEW
    return made


def say_decisions(bundle: Bundle, made: pd.DataFrame, frame: pd.DataFrame, missing: Sequence[str], out: Out) -> None:
    """Prints how many rows were decided and how many go to a person; warns where columns are missing."""
    if bundle.review_band is None and bundle.manifest.get("review"):
        out.warn("no decisions: the review band of this bundle was chosen before it was recalibrated")
    if "decision" not in made or not len(made):
        return
    counts = made["decision"].value_counts()
    parts = ", ".join(f"{int(counts.get(name, 0)):,} {name}" for name in (NEGATIVE, REVIEW, POSITIVE))
    expected = bundle.manifest["review"]["shares"][REVIEW]["value"]
    out.say(
        f"decisions: {parts}; {counts.get(REVIEW, 0) / len(made):.1%} go to a person, "
        f"{expected:.1%} of the training {bundle.unit}s did"
    )
    for note in review_notes(bundle, lacking_columns(bundle, frame, missing)[0]):
        out.warn(note)


def review_notes(bundle: Bundle, lacking: Sequence[str]) -> list[str]:
    """Returns why no image is decided; [] where images can be."""
    if bundle.review_band is None or not lacking:
        return []
    return [
        f"no {bundle.unit} is decided, all go to a person: decisions are only guaranteed where {' and '.join(lacking)} "
        f"{'is' if len(lacking) == 1 else 'are'} known"
    ]


def check_review(
    bundle: Bundle,
    made: pd.DataFrame,
    y: ArrayLike,
    rows: pd.DataFrame,
    *,
    lacking: Sequence[str],
    further: Mapping[str, str] | None = None,
) -> ReviewCheck | None:
    """Compares the decisions on labelled rows with what the bundle's band promises; None for a bundle without one."""
    band = bundle.review_band
    if band is None:
        return None
    decision, group = made["decision"].to_numpy(object), rows["group"].to_numpy(object)
    return ReviewCheck(
        band,
        measure_decisions(y, decision, group, band.guarantees),
        decisions_by_subgroup(y, decision, group, band.guarantees, find_subgroups(rows, further)),
        expected_review=float(bundle.manifest["review"]["shares"][REVIEW]["value"]),
        lacking=tuple(lacking),
    )

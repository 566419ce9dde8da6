"""Sentences on estimates with sources held out: on which images, and what an interval that reaches chance means."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd

from stack.metrics.by_source import OverSources
from stack.metrics.intervals import Interval
from stack.sources.estimates import (
    HELD_OUT,
    OWN,
    REFITTED,
    SEEN,
    LeaveSourceOut,
    SourceEstimate,
    headline_note,
    source_sentences,
)


def estimates(next_low: float) -> LeaveSourceOut:
    sources = pd.DataFrame({"source": ["a", "b", "c"], "auc": [0.9, 0.8, 0.7], "note": ["", "", ""]})
    over = OverSources(sources, 0.8, 0.7, 0.9, next_low, 0.95, 0.1, 0.5)
    own = SourceEstimate(OWN, SEEN, (), 5, 8022, Interval(0.914, 0.902, 0.925, 0.006), over)
    change = Interval(-0.018, -0.023, -0.013, math.nan)
    held_out = replace(own, origin=REFITTED, held_out=HELD_OUT, rows=7010, pooled_difference=change, difference=change)
    return LeaveSourceOut("auc", "0" * 12, (own, held_out), pd.DataFrame())


def test_a_difference_names_the_images_that_both_estimates_score() -> None:
    said = " ".join(source_sentences(estimates(0.6)))
    assert "AUC changes by -0.018 [-0.023, -0.013] on the 7,010 images that both estimates score" in said


def test_where_sources_are_too_few_the_metric_of_the_user_has_its_name() -> None:
    found = replace(estimates(0.6), objective="own:f2#cfce123c04f9")
    few = replace(found.strictest, over=replace(found.strictest.over, mean=math.nan))
    assert "With sources held out, own:f2 is " in headline_note(replace(found, estimates=(found.own, few)))


def test_an_interval_for_the_next_source_that_reaches_chance_shows_nothing() -> None:
    for next_low, includes in ((0.17, True), (0.6, False)):
        found = estimates(next_low)
        assert any("It includes 0.5, which is chance" in said for said in source_sentences(found)) == includes
        assert ("which includes 0.5, chance" in headline_note(found)) == includes

"""Ticks of the figures: round, all different, and written without rounding them away."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from dermstack.report.figures import Estimate, decision_figure, interval_figure, page_style, reliability_figure
from dermstack.report.ticks import TickFormatter, decimals_of, round_ticks
from stack.metrics.calibration import reliability
from stack.metrics.decisions import decision_curve


def ticks_of(low: float, high: float, **options: object) -> tuple[list[float], list[str]]:
    """The ticks that lie within an axis from ``low`` to ``high``, and their texts."""
    figure = Figure()
    axes = figure.subplots()
    axes.set_xlim(low, high)
    round_ticks(axes.xaxis, **options)  # type: ignore[arg-type]
    figure.canvas.draw()
    shown = [
        (at, text.get_text())
        for at, text in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if low <= at <= high
    ]
    return [at for at, _ in shown], [text for _, text in shown]


def value_of(text: str) -> float:
    number = float(text.replace("−", "-").replace(",", "").removesuffix("\N{NO-BREAK SPACE}%"))
    return number / 100 if text.endswith("%") else number


@settings(max_examples=60)
@given(st.floats(-2, 2), st.floats(1e-4, 2), st.booleans())
def test_ticks_are_round_and_their_texts_are_exact(low: float, width: float, percent: bool) -> None:
    at, texts = ticks_of(low, low + width, percent=percent)
    assert len(at) >= 2
    steps = np.diff(at)
    assert steps == pytest.approx([steps[0]] * len(steps))
    mantissa = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert round(mantissa, 6) in {1, 2, 5, 10}
    assert [value_of(text) for text in texts] == pytest.approx(at, abs=1e-9)
    assert len(set(texts)) == len(texts)
    assert len({len(text.rstrip("\N{NO-BREAK SPACE}%").partition(".")[2]) for text in texts}) == 1


def test_shares_that_need_a_decimal_have_one() -> None:
    """With whole percents, steps of 2.5 % were shown as 2 %, 5 %, 8 %, and those below 1 % as equal numbers."""
    assert ticks_of(0, 0.011, percent=True)[1] == [
        f"{value}\N{NO-BREAK SPACE}%" for value in ("0.0", "0.2", "0.4", "0.6", "0.8", "1.0")
    ]
    assert ticks_of(0, 0.4, percent=True)[1][:2] == ["0\N{NO-BREAK SPACE}%", "10\N{NO-BREAK SPACE}%"]


def test_scores_that_differ_little_have_no_offset() -> None:
    at, texts = ticks_of(0.92501, 0.92506)
    assert texts == [f"{value:.5f}" for value in at]


def test_counts_have_whole_ticks() -> None:
    assert ticks_of(0, 3, integer=True)[1] == ["0", "1", "2", "3"]
    assert ticks_of(0, 1400, integer=True)[1][-1] == "1,000"


@pytest.mark.parametrize(
    ("values", "decimals"),
    [([1, 2, 5], 0), ([0.5, 1], 1), ([0.1 + 0.2], 1), ([0.02, 1], 2), ([], 0), ([math.nan, 0.25], 2), ([0, 0], 0)],
)
def test_as_many_decimals_as_the_values_need(values: list[float], decimals: int) -> None:
    assert decimals_of(values) == decimals


def test_a_tick_at_zero_has_no_sign() -> None:
    assert TickFormatter().format_ticks([-0.1, -1e-17, 0.1]) == ["−0.1", "0.0", "0.1"]


def test_the_figures_of_the_report_use_them() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.random(400) < 0.05, rng.random(400) * 0.09
    with page_style():
        drawn = [
            reliability_figure("r", reliability(y, p, np.arange(400)), axis="p"),
            decision_figure("d", decision_curve(y, p, np.arange(400), draws=5)),
            interval_figure("i", [Estimate("a", 0.85, 0.79, 0.91)], axis="AUC"),
        ]
    for drawing in drawn:
        texts = re.findall(r"<text[^>]*>([−\d.,]+(?:\N{NO-BREAK SPACE}%)?)</text>", drawing.svg)
        assert len(texts) >= 3
    assert re.findall(r"<text[^>]*>(0\.\d+)</text>", drawn[2].svg)[:3] == ["0.80", "0.85", "0.90"]

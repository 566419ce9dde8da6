"""The page of external validation in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page
from test_validation import drawn, judged, promised

from dermstack.report.evaluation import evaluation_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of rows with another prevalence, so that verdicts of every kind stand on it, and a site with a long name."""
    rng = np.random.default_rng(0)
    y, p, frame = drawn(rng, prevalence=0.4)
    frame["site"] = np.where(frame["site"] == "torso", "torso_" * 12, frame["site"])
    found = judged(promised(rng), y, np.where(rng.random(len(y)) < 0.3, rng.permutation(p), p), frame, far=p > 0.9)
    path = tmp_path_factory.mktemp("page") / "evaluation.html"
    path.write_text(evaluation_html(found, y, p, created="2026-01-01"), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_window_and_complains_of_nothing(
    page: Path, browser: Browser, scheme: Literal["light", "dark"], width: int
) -> None:
    with opened_page(browser, page, scheme=scheme, width=width) as seen:
        seen.page.locator("summary").click()
        assert seen.page.get_by_text("reached at best").is_visible()
        assert seen.overflow_px == 0
        assert seen.console_errors == []
        assert len(seen.requests) == 1  # the page itself


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_barrier(page: Path, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    with opened_page(browser, page, scheme=scheme, bypass_csp=True) as seen:
        seen.page.locator("summary").click()
        assert accessibility_violations(seen.page) == []

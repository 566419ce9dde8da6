"""The page of external validation in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, wide_tables
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
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert seen.page.get_by_text("reached at best").is_visible()
        assert seen.overflow_px == 0
        assert seen.console_errors == []
        assert len(seen.requests) == 1  # the page itself


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_barrier(page: Path, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    with opened_page(browser, page, scheme=scheme, bypass_csp=True) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert accessibility_violations(seen.page) == []


def test_on_a_phone_every_table_is_wider_than_the_window_and_says_so(page: Path, browser: Browser) -> None:
    with opened_page(browser, page, width=360) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        assert set(wide_tables(seen.page)) == {(True, True)}
    with opened_page(browser, page, width=1400) as seen:
        assert not any(hinted for _, hinted in wide_tables(seen.page))


def test_the_note_has_a_title_and_the_positive_class_is_named(page: Path, browser: Browser) -> None:
    with opened_page(browser, page) as seen:
        assert seen.page.get_by_role("note", name="Limits of this result").get_by_role("heading").count() == 1
        assert "(target 1, the class that the score looks for;" in seen.page.locator("#result").inner_text()


def test_thresholds_have_equally_many_decimals_and_none_is_shown_as_zero(page: Path, browser: Browser) -> None:
    with opened_page(browser, page) as seen:
        cells = seen.page.locator("#thresholds .tight tbody tr td:nth-child(2)").all_inner_texts()
    numbers = [cell.replace("\N{NO-BREAK SPACE}", " ").removesuffix(" %") for cell in cells]
    assert len({len(number.partition(".")[2]) for number in numbers}) == 1
    assert all(float(number) > 0 for number in numbers)

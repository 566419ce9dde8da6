"""The sections on rows and gaps in a browser: they fit the window, complain of nothing and have no barriers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, page_of_sections
from imported_experiment import opened_experiment, write_experiment
from test_fairness import made_blend

from dermstack.report.fairness import fairness_sections
from dermstack.report.units import Scored

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OPEN_ALL = "document.querySelectorAll('details').forEach(part => part.open = true)"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fairness")
    experiment = opened_experiment(write_experiment(folder))
    made = fairness_sections(experiment, made_blend(experiment, without=3), [], Scored(experiment, []))  # type: ignore[arg-type]
    (folder / "page.html").write_text(page_of_sections(*filter(None, made.values())), encoding="utf-8")
    return folder / "page.html"


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_the_window_and_complains_of_nothing(path: Path, browser: Browser, width: int) -> None:
    with opened_page(browser, path, width=width) as seen:
        seen.page.evaluate(OPEN_ALL)
        assert seen.overflow_px == 0
        assert seen.console_errors == []
        assert len(seen.requests) == 1  # the page itself
        assert seen.page.locator(".flow .out").first.is_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_barrier(path: Path, browser: Browser, scheme: Literal["light", "dark"]) -> None:
    with opened_page(browser, path, scheme=scheme, bypass_csp=True) as seen:
        seen.page.evaluate(OPEN_ALL)
        assert accessibility_violations(seen.page) == []

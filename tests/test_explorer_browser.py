"""The threshold explorer in a browser: what it shows is what Python computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, page_of_sections
from test_explorer import simulated_rows

from dermstack.report.explorer import OperatingPoint, Thresholds, count_at_thresholds, explorer, operating_point
from dermstack.report.report import percent

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@pytest.fixture(scope="module")
def points() -> Thresholds:
    y, p, _ = simulated_rows(6_000)
    return count_at_thresholds(y, p)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    path.write_text(page_of_sections(explorer(*simulated_rows(6_000))), encoding="utf-8")
    return path


def assert_shows(page: Page, points: Thresholds, place: int, prevalence: float | None = None) -> None:
    """Every number on the page is Python's, exactly, and so is how it is written."""
    found, alarms = int(points.true_positives[place]), int(points.false_positives[place])
    made = operating_point(found, alarms, points.positives, points.negatives, prevalence=prevalence)
    counts = {"tp": found, "fn": points.positives - found, "fp": alarms, "tn": points.negatives - alarms}
    value = {
        element.get_attribute("id").removeprefix("explorer-"): (element.get_attribute("value"), element.inner_text())
        for element in page.locator("#explorer data").all()
    }
    assert float(value["at"][0]) == points.threshold[place]
    for name, number in counts.items():
        assert value[name] == (str(number), f"{number:,}")
    for name in OperatingPoint._fields:
        number = getattr(made, name)
        if number is None:
            assert value[name] == ("", "–")
            continue
        assert float(value[name][0]) == pytest.approx(number, rel=1e-12)
        assert value[name][1] == (f"{number:.1f}" if name == "biopsies" else percent(number))


def test_the_keyboard_moves_the_numbers_to_those_of_python(path: Path, points: Thresholds, browser: Browser) -> None:
    with opened_page(browser, path) as seen:
        page, last = seen.page, len(points.threshold) - 1
        slider = page.get_by_role("slider", name="Threshold of p_calibrated")
        place = points.index_reaching(sensitivity=0.9)
        assert_shows(page, points, place)
        slider.focus()
        for key, step in (("ArrowRight", 1), ("ArrowRight", 1), ("ArrowLeft", -1), ("ArrowUp", 1)):
            slider.press(key)
            place += step
            assert_shows(page, points, place)
        slider.press("PageDown")
        jumped = int(slider.input_value())
        assert jumped < place
        assert_shows(page, points, jumped)
        slider.press("End")
        assert_shows(page, points, last)
        slider.press("Home")
        assert_shows(page, points, 0)
        assert slider.get_attribute("aria-valuetext") == "p_calibrated 0.000 or more" or points.threshold[0] > 0
        assert page.locator("#explorer-npv").inner_text() == "–"  # nobody is called negative
        assert seen.console_errors == []


@pytest.mark.parametrize("prevalence", ["0.5", "2", "50"])
def test_the_prevalence_moves_the_numbers_to_those_of_python(
    prevalence: str, path: Path, points: Thresholds, browser: Browser
) -> None:
    with opened_page(browser, path) as seen:
        page = seen.page
        entry = page.get_by_role("spinbutton", name="Prevalence")
        entry.fill(prevalence)
        place = points.index_reaching(sensitivity=0.9)
        assert_shows(page, points, place, float(prevalence) / 100)
        sick = round(10 * float(prevalence))
        assert page.get_by_role("status").inner_text().startswith(f"Of 1,000 such images, {sick} are positive")
        entry.fill("0")
        assert entry.get_attribute("aria-invalid") == "true"
        assert "from 0.01 to 99.99" in page.get_by_role("alert").inner_text()
        assert_shows(page, points, place, float(prevalence) / 100)  # the last that could be used
        page.get_by_role("button", name="reset to this data").press("Enter")
        assert page.get_by_role("alert").inner_text() == ""
        assert_shows(page, points, place)
        assert seen.console_errors == []


def test_the_words_are_counts_that_add_up(path: Path, points: Thresholds, browser: Browser) -> None:
    with opened_page(browser, path) as seen:
        said = seen.page.get_by_role("status").inner_text()
        seen.page.get_by_role("spinbutton").fill("20")
        place = points.index_reaching(sensitivity=0.9)
        found = round(200 * points.true_positives[place] / points.positives)
        alarms = round(800 * points.false_positives[place] / points.negatives)
        assert seen.page.get_by_role("status").inner_text() == (
            f"Of 1,000 such images, 200 are positive: {found} found, {200 - found} missed. "
            f"Of the other 800 images, {alarms} are false alarms."
        )
        assert said != seen.page.get_by_role("status").inner_text()


def test_without_javascript_the_table_is_there_and_the_controls_are_not(path: Path, browser: Browser) -> None:
    with opened_page(browser, path, scripts=False) as seen:
        assert seen.page.get_by_role("slider").count() == 0
        assert seen.page.get_by_text("needs JavaScript").is_visible()
        assert seen.page.locator(".aims tr").count() == 1 + 7
        assert seen.overflow_px == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_and_axe_finds_no_serious_barrier(scheme: str, width: int, path: Path, browser: Browser) -> None:
    with opened_page(browser, path, scheme=scheme, width=width, bypass_csp=True) as seen:
        assert seen.overflow_px == 0
        assert accessibility_violations(seen.page) == []
        assert seen.console_errors == []


def test_one_threshold_is_no_reason_to_fail(tmp_path: Path, browser: Browser) -> None:
    path = tmp_path / "page.html"
    y = np.array([0, 1, 0, 1])
    path.write_text(page_of_sections(explorer(y, np.full(4, 0.5), np.arange(4))), encoding="utf-8")
    with opened_page(browser, path) as seen:
        assert_shows(seen.page, count_at_thresholds(y, np.full(4, 0.5)), 0)
        assert seen.console_errors == []


def test_a_script_that_was_changed_does_not_run(path: Path, tmp_path: Path, browser: Browser) -> None:
    changed = tmp_path / "page.html"
    changed.write_text(path.read_text(encoding="utf-8").replace('"use strict";', '"use strict"; '), encoding="utf-8")
    with opened_page(browser, changed) as seen:
        assert any("Content Security Policy" in complaint for complaint in seen.console_errors)
        assert seen.page.get_by_text("needs JavaScript").is_visible()
        assert not seen.page.get_by_role("slider").is_visible()

"""The report as a browser shows it, under its own Content-Security-Policy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, wide_tables
from PIL import Image
from test_explorer_browser import assert_shows
from test_report import make_data
from test_report_sections import make_full_data

from dermstack.report.explorer import count_at_thresholds
from dermstack.report.report import report_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module", params=["made by hand", "of an experiment"])
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "of an experiment":  # with the explorer and the hard cases
        finished: Path = request.getfixturevalue("bundled_experiment") / "runs/small/report.html"
        return finished
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(report_html(make_data()), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_opens_without_a_complaint_and_without_scrolling_sideways(
    scheme: str, width: int, report: Path, browser: Browser
) -> None:
    with opened_page(browser, report, scheme=scheme, width=width) as seen:
        assert seen.console_errors == []
        assert seen.requests == [report.as_uri()]
        assert seen.overflow_px == 0
        ground = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(247, 248, 248)", "dark": "rgb(18, 23, 26)"}[scheme]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_barrier_in_the_report(scheme: str, width: int, report: Path, browser: Browser) -> None:
    with opened_page(browser, report, scheme=scheme, width=width, bypass_csp=True) as seen:
        assert accessibility_violations(seen.page) == []


def test_the_explorer_of_the_report_moves_to_the_numbers_of_python(bundled_experiment: Path, browser: Browser) -> None:
    """In the page itself, under its own policy, on the experiment's rows."""
    oof = pd.read_parquet(bundled_experiment / "runs/small/blend/oof.parquet")
    targets = pd.read_parquet(bundled_experiment / "runs/small/table.parquet").set_index("id")["target"]
    points = count_at_thresholds(targets.loc[oof["id"]].to_numpy(int), oof["p_calibrated"])
    with opened_page(browser, bundled_experiment / "runs/small/report.html") as seen:
        slider = seen.page.get_by_role("slider", name="Threshold of p_calibrated")
        place = points.index_reaching(sensitivity=0.9)
        assert_shows(seen.page, points, place)
        slider.focus()
        slider.press("ArrowRight")
        assert_shows(seen.page, points, place + 1)
        assert seen.console_errors == []


def test_the_harness_sees_what_is_wrong_with_a_page(tmp_path: Path, browser: Browser) -> None:
    """What the tests above rely on."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<!doctype html><title>bad</title><p style='width: 500px; color: #ccc'>pale</p><img src='data:,x'>"
        "<script>console.error('one'); throw new Error('two')</script>",
        encoding="utf-8",
    )
    with opened_page(browser, path, width=360) as seen:
        assert seen.console_errors == ["one", "two"]
        assert seen.overflow_px > 100
        found = [barrier.split(":")[0] for barrier in accessibility_violations(seen.page)]
        assert set(found) == {"color-contrast", "html-has-lang", "image-alt"}
    strict = "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'\">"
    path.write_text(path.read_text(encoding="utf-8").replace("<title>", strict + "<title>"), encoding="utf-8")
    with opened_page(browser, path) as seen:
        assert any("Content Security Policy" in complaint for complaint in seen.console_errors)


@pytest.mark.parametrize("width", [320, 360, 480, 576])
def test_on_a_phone_every_table_is_wider_than_the_window_and_says_so(
    width: int, report: Path, browser: Browser
) -> None:
    with opened_page(browser, report, width=width) as seen:
        seen.page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
        found = wide_tables(seen.page)
        assert len(found) >= 4
        assert set(found) == {(True, True)}


@pytest.mark.parametrize("width", [577, 700, 1400])
def test_on_a_wider_window_a_shadow_shows_where_a_table_goes_on(width: int, report: Path, browser: Browser) -> None:
    with opened_page(browser, report, width=width) as seen:
        assert not any(hinted for _, hinted in wide_tables(seen.page))
        grounds = seen.page.evaluate(
            "[...document.querySelectorAll('.scroll')].map(frame => getComputedStyle(frame).backgroundAttachment)"
        )
        assert set(grounds) == {"local, local, scroll, scroll, scroll"}  # covers that move, shadows that stay


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_shadow_is_seen_on_the_card_in_light_and_in_dark(scheme: str, report: Path, browser: Browser) -> None:
    with opened_page(browser, report, scheme=scheme, bypass_csp=True) as seen:
        colours = seen.page.evaluate(
            """['var(--card)', 'linear-gradient(var(--shadow), var(--shadow)), var(--card)'].map((ground, place) => {
                const patch = document.body.appendChild(document.createElement('p'));
                patch.id = `patch-${place}`;
                patch.style = `position: fixed; top: 0; left: ${20 * place}px; padding: 5px; background: ${ground}`;
                return patch.id;
            })"""
        )
        shades = [Image.open(io.BytesIO(seen.page.locator(f"#{name}").screenshot())) for name in colours]
        card, shadow = (luminance(shade.convert("RGB").getpixel((4, 4))) for shade in shades)
        assert (max(card, shadow) + 0.05) / (min(card, shadow) + 0.05) > 1.8, "the contrast of WCAG"


def luminance(colour: tuple[int, int, int]) -> float:
    """The relative luminance of WCAG 2."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_name_of_a_row_stays_in_view_while_its_table_is_swiped(report: Path, browser: Browser) -> None:
    with opened_page(browser, report, width=360) as seen:
        moved = seen.page.evaluate(
            """[...document.querySelectorAll('.scroll')].filter(frame => frame.checkVisibility()).map(frame => {
                frame.scrollLeft = 150;
                const head = frame.querySelector('tbody th').getBoundingClientRect();
                return [frame.scrollLeft, Math.round(head.left - frame.getBoundingClientRect().left)];
            })"""
        )
        assert all(scrolled > 0 and offset in (0, 1) for scrolled, offset in moved), moved


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_stronger_shade_is_further_from_the_card_in_light_and_in_dark(
    scheme: str, browser: Browser, tmp_path: Path
) -> None:
    """As the caption says; "darker" would be wrong in dark mode."""
    path = tmp_path / "report.html"
    path.write_text(report_html(make_full_data()), encoding="utf-8")
    with opened_page(browser, path, scheme=scheme) as seen:
        colours = seen.page.evaluate(
            """(() => {
                const canvas = document.createElement('canvas').getContext('2d');
                const rgb = colour => {
                    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
                };
                const card = getComputedStyle(document.querySelector('.card')).backgroundColor;
                const cells = document.querySelectorAll('td.shade');
                return [rgb(card), ...[...cells].map(cell => rgb(getComputedStyle(cell).backgroundColor))];
            })()"""
        )
        card, *cells = np.array(colours, float)
        assert len(cells) == 2
        assert all(np.abs(cell - card).sum() > 60 for cell in cells)

"""The local page as a person meets it: pictures dropped, an answer shown."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page
from test_app import started

from dermstack.serve.bundle import read_bundle
from dermstack.serve.patient import Ensemble, Photo, read_patient
from dermstack.serve.standings import percent

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

_DROP = """files => {
  const dropped = new DataTransfer();
  for (const [name, content] of files)
    dropped.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name));
  const event = new DragEvent("drop", { bubbles: true, cancelable: true, dataTransfer: dropped });
  if (document.getElementById("drop").dispatchEvent(event)) throw new Error("the browser would leave the page");
}"""


@pytest.fixture(scope="module")
def address(bundled_experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with started(bundled_experiment / "bundle.zip", tmp_path_factory.mktemp("temporary")) as (port, _):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def pictures(small_data: Path) -> list[Path]:
    return sorted((small_data / "images").glob("*.png"))[:3]


def drop(page: Page, *files: Path) -> None:
    page.evaluate(_DROP, [[file.name, base64.b64encode(file.read_bytes()).decode()] for file in files])


def read(page: Page, heading: str) -> None:
    page.click("#read")
    page.get_by_role("heading", name=heading).wait_for(timeout=60_000)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_dropped_are_answered_and_a_text_file_is_refused(
    scheme: str, width: int, address: str, pictures: list[Path], tmp_path: Path, browser: Browser
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("no picture", encoding="utf-8")
    with opened_page(browser, address, scheme=scheme, width=width, bypass_csp=True) as seen:
        page = seen.page
        assert seen.overflow_px == 0
        assert accessibility_violations(page) == []
        drop(page, pictures[0], notes)
        read(page, "Not scored")
        assert "notes.txt: not an image that can be read" in page.get_by_role("alert").inner_text()
        assert seen.overflow_px == 0
        assert accessibility_violations(page) == []
        page.get_by_role("button", name="Remove notes.txt").click()
        read(page, "1 image scored")
        assert "no others of this patient" in page.locator(".lesion").inner_text()
        drop(page, *pictures[1:])
        read(page, "3 images scored")
        assert page.locator(".lesion").count() == 3
        assert page.locator(".lesion img").evaluate_all("all => all.every((one) => one.naturalWidth > 0)")
        assert seen.overflow_px == 0
        assert accessibility_violations(page) == []
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert ground == {"light": "rgb(247, 248, 248)", "dark": "rgb(18, 23, 26)"}[scheme]
        assert seen.console_errors == []
        own = (address, "data:", f"blob:{address}")
        assert [url for url in seen.requests if not url.startswith(own)] == []


def test_the_page_works_under_its_own_policy_and_shows_the_ensembles_numbers(
    address: str, pictures: list[Path], bundled_experiment: Path, browser: Browser
) -> None:
    sites = ["torso", "head/neck", "torso"]
    ensemble = Ensemble(read_bundle(bundled_experiment / "bundle.zip"), device="cpu")
    photos = [Photo(file.name, file.read_bytes(), site) for file, site in zip(pictures, sites, strict=True)]
    expected = read_patient(ensemble, photos, age=61, sex="female").lesions
    expected.sort(key=lambda lesion: lesion.p_calibrated, reverse=True)
    with opened_page(browser, address) as seen:
        page = seen.page
        drop(page, *pictures[:2])
        page.fill("#age", "61")
        page.select_option("#sex", "female")
        page.select_option("#site", "torso")
        page.get_by_label(f"Site of {pictures[1].name}").select_option("head/neck")
        drop(page, pictures[2])  # what was said of the others stays
        read(page, "3 images scored")
        assert seen.console_errors == []
        assert page.evaluate("document.activeElement.id") == "answer"
        for card, lesion in zip(page.locator(".lesion").all(), expected, strict=True):
            text = card.inner_text()
            assert lesion.name in text
            assert str(lesion.site) in text
            assert f"{lesion.score:.4f}" in text
            assert percent(lesion.p_calibrated) in text
            assert lesion.standing.sentence in text


def test_cards_and_table_are_in_one_order_highest_risk_first(
    address: str, small_data: Path, bundled_experiment: Path, browser: Browser
) -> None:
    pictures = sorted((small_data / "images").glob("*.png"))[:12]
    photos = [Photo(file.name, file.read_bytes()) for file in pictures]
    read_there = read_patient(Ensemble(read_bundle(bundled_experiment / "bundle.zip"), device="cpu"), photos).lesions
    risks = {lesion.name: lesion.p_calibrated for lesion in read_there}
    ascending = sorted(pictures, key=lambda file: risks[file.name])
    assert len(set(risks.values())) > 1, "several images may share a risk, but not all"
    with opened_page(browser, address) as seen:
        drop(seen.page, *ascending)  # the order of upload is the opposite
        seen.page.check("input[name=together][value=yes]")
        read(seen.page, "12 images scored")
        links = seen.page.locator("tbody a").all()
        cards = seen.page.locator(".lesion h3").all_inner_texts()
        assert [link.inner_text() for link in links] == cards
        assert cards == sorted(cards, key=lambda name: risks[name], reverse=True) != [file.name for file in ascending]
        for link in links:  # a row of the table leads to its own card
            card = seen.page.locator(str(link.get_attribute("href"))).locator("h3")
            assert card.inner_text() == link.inner_text()


def test_the_page_works_without_a_script(address: str, pictures: list[Path], browser: Browser) -> None:
    with opened_page(browser, address, scripts=False) as seen:
        seen.page.set_input_files("#pictures", pictures[:2])
        seen.page.select_option("#site", "torso")
        read(seen.page, "2 images scored")
        names = seen.page.locator(".lesion h3").all_inner_texts()
        assert sorted(names) == [f"{file.name} · torso" for file in pictures[:2]]
        assert seen.console_errors == []

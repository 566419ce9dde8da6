"""The section of labels worth a second look: pictures side by side, names alone, or a table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page, page_of_sections
from conftest import run_cli, small_config
from html_page import Page
from PIL import Image
from test_cases_hard import EVIL, MODELS, named, pixels

import dermstack.report.cases as page_module
from dermstack.report.cases import doubtful_labels_section
from stack.console import Out
from stack.experiment import Experiment, open_experiment
from stack.settings.config import read_config
from stack.store import Run

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Experiment, list[Run]]:
    folder = tmp_path_factory.mktemp("look")
    path = small_config(small_data, folder, image_models=MODELS[:1])
    assert run_cli("oof", "--config", str(path), "--quiet") == 0
    experiment = open_experiment(read_config(path), path, Out(quiet=True))
    return experiment, experiment.finished(level=1)


@pytest.fixture
def listed(finished: tuple[Experiment, list[Run]], monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """Three doubtful rows, two of them of one group, the last without a likeness."""
    train = finished[0].table.train
    positive, negative = train[train["target"] == 1], train[train["target"] == 0]
    pair = negative[negative["group"].duplicated(keep=False)].sort_values("group").iloc[:2]
    look = pd.DataFrame({
        "id": [positive["id"].iloc[0], *pair["id"]], "target": [1, 0, 0], "doubt": [0.9, 0.8, 0.7],
        "p": [0.0123, 0.8, 0.7], "neighbours": [0.05, np.nan, 0.5],
        "like": [negative["id"].iloc[-1], None, positive["id"].iloc[1]],
    })  # fmt: skip
    monkeypatch.setattr(page_module, "kept_doubtful_labels", lambda experiment, runs: look)
    return look


def test_each_case_shows_its_picture_beside_the_most_alike_of_the_other_target(
    finished: tuple[Experiment, list[Run]], listed: pd.DataFrame, small_data: Path
) -> None:
    section = doubtful_labels_section(*finished, display_name=lambda row_id: row_id)
    assert section is not None
    page = Page(section.markup)
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    assert [image["alt"] for image in images] == [listed["id"][0], listed["like"][0], listed["id"][1]], "one of a group"
    for image in images:
        original = Image.open(small_data / "images" / f"{image['alt']}.png").convert("RGB")
        large = np.asarray(original.resize((160, 160), Image.Resampling.LANCZOS)).astype(float)
        assert np.abs(pixels(image["src"]) - large).mean() < 5
    assert "The label of 3 of 240 images" in page.text
    assert "1.2 %" in page.text
    assert "5.0 % of the similar images are positive" in page.text
    assert "nan" not in page.text


def test_names_are_pseudonyms_and_never_markup(finished: tuple[Experiment, list[Run]], listed: pd.DataFrame) -> None:
    for no_images in (False, True):
        section = doubtful_labels_section(*finished, display_name=named, no_images=no_images)
        assert section is not None
        assert EVIL not in section.markup
        assert not any(row_id in section.markup for row_id in finished[0].table.train["id"])


def test_without_pictures_the_cases_are_a_table(
    finished: tuple[Experiment, list[Run]], listed: pd.DataFrame, tmp_path: Path
) -> None:
    experiment, runs = finished
    section = doubtful_labels_section(experiment, runs, display_name=str, no_images=True)
    assert section is not None
    page = Page(section.markup)
    assert "img" not in {tag for tag, _ in page.tags}
    assert "This report was made without images." in page.text
    rows = [row for row in page.rows if row[0] in set(listed["id"])]
    assert [row[:3] for row in rows] == [[listed["id"][0], "1.2 %", "5.0 %"], [listed["id"][1], "80.0 %", "–"]]
    assert rows[0][-1] == listed["like"][0]
    elsewhere = replace(experiment, config=experiment.config.model_copy(update={"cache": tmp_path}))
    section = doubtful_labels_section(elsewhere, runs, display_name=str)
    assert section is not None
    assert "The image cache lacks these images" in section.markup


def test_without_runs_there_is_no_section_and_without_doubt_it_says_none(
    finished: tuple[Experiment, list[Run]], monkeypatch: pytest.MonkeyPatch, listed: pd.DataFrame
) -> None:
    experiment, runs = finished
    assert doubtful_labels_section(experiment, [], display_name=str) is None
    monkeypatch.setattr(page_module, "kept_doubtful_labels", lambda experiment, runs: listed.iloc[:0])
    section = doubtful_labels_section(experiment, runs, display_name=str)
    assert section is not None
    assert Page(section.markup).text.count("No label of the") == 1


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("no_images", [False, True])
def test_the_section_fits_a_telephone_and_axe_finds_no_serious_barrier(
    no_images: bool,
    scheme: str,
    finished: tuple[Experiment, list[Run]],
    listed: pd.DataFrame,
    tmp_path: Path,
    browser: Browser,
) -> None:
    section = doubtful_labels_section(*finished, display_name=named, no_images=no_images)
    assert section is not None
    path = tmp_path / "page.html"
    path.write_text(page_of_sections(section), encoding="utf-8")
    for width in WIDTHS:
        with opened_page(browser, path, scheme=scheme, width=width, bypass_csp=True) as seen:
            assert seen.overflow_px == 0
            assert accessibility_violations(seen.page) == []
            assert seen.console_errors == []

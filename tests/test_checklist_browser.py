"""The page of a checklist as a browser shows it, on a telephone and on a desk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser import SCHEMES, WIDTHS, accessibility_violations, opened_page
from test_checklist import made_evidence

from dermstack.report.pack.checklist import CHECKLISTS, answered
from dermstack.report.pack.checklist_page import checklist_html

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.mark.slow
def test_a_checklist_fits_the_window_and_has_no_barrier(tmp_path: Path, browser: Browser) -> None:
    evidence = made_evidence()
    for checklist in CHECKLISTS.values():
        path = tmp_path / f"{checklist.name}.html"
        html = checklist_html(checklist, answered(checklist, evidence), evidence, anchors={"result", "runs", "data"})
        path.write_text(html, encoding="utf-8")
        for width in WIDTHS:
            for scheme in SCHEMES:
                with opened_page(browser, path, scheme=scheme, width=width, bypass_csp=True) as seen:
                    assert seen.console_errors == []
                    assert seen.requests == [path.as_uri()]
                    assert seen.overflow_px == 0
                    assert accessibility_violations(seen.page) == []

"""Pages as people meet them: Debian's chromium, headless, driven by Playwright; axe-core looks for barriers.

axe-core (MPL-2.0) comes inside the pip package axe-playwright-python (MIT) and is used by the tests alone.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # of the extra [dev]
    from playwright.sync_api import Browser, Page

    from dermstack.report.report import Section

SCHEMES = ("light", "dark")
WIDTHS = (360, 1400)  # a telephone, a desk


def why_no_browser() -> str | None:
    """What is missing, as a reason to skip; None where nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "no Playwright: it is in the extra [dev]"
    if shutil.which("chromium") is None:
        return "no chromium: `source .ci/chromium` installs Debian's"
    return None


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser that is gone at the end; never one that Playwright downloads."""
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield browser
        browser.close()


@dataclass
class LoadedPage:
    """A page, what it complained of (console errors and warnings, uncaught exceptions), and what it asked for."""

    page: Page
    console_errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def overflow_px(self) -> int:
        """Pixels by which the page is wider than the window."""
        too_wide: int = self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        return max(too_wide, 0)


@contextmanager
def opened_page(
    browser: Browser,
    target: Path | str,
    *,
    scheme: Literal["light", "dark"] = "light",
    width: int = 1400,
    scripts: bool = True,
    bypass_csp: bool = False,
) -> Iterator[LoadedPage]:
    """A file or a URL in a window of its own, loaded. Only `barriers` needs ``bypass_csp``."""
    context = browser.new_context(
        color_scheme=scheme,
        viewport={"width": width, "height": 900},
        java_script_enabled=scripts,
        bypass_csp=bypass_csp,
        reduced_motion="reduce",
    )
    page = context.new_page()
    seen = LoadedPage(page)
    page.on("console", lambda m: seen.console_errors.append(m.text) if m.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: seen.console_errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(target.resolve().as_uri() if isinstance(target, Path) else target, wait_until="load")
    try:
        yield seen
    finally:
        context.close()


def accessibility_violations(page: Page) -> list[str]:
    """The serious and critical violations that axe-core finds: rule, what it asks for, the first elements."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{violation['id']}: {violation['help']}: {[node['html'] for node in violation['nodes'][:3]]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


def page_of_sections(*sections: Section) -> str:
    """A page of these sections alone, with the report's look and a policy that lets their scripts run and no other."""
    from test_report import make_data

    from dermstack.report.report import report_html, script_policy

    style = re.search(r"<style>(.*?)</style>", report_html(make_data()), re.DOTALL)
    assert style is not None
    scripts = script_policy(*(section.script for section in sections))
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src {scripts}"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>parts of a page</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<style>{style[1]}{''.join(s.style for s in sections)}</style></head>"
        f"<body><main><h1>Parts of a page</h1>{''.join(s.markup for s in sections)}</main></body></html>"
    )


def wide_tables(page: Page) -> list[tuple[bool, bool]]:
    """Of each table in a frame that scrolls: whether it is wider than the frame, and whether its caption says so."""
    found: list[tuple[bool, bool]] = page.evaluate(
        """[...document.querySelectorAll('.scroll')].filter(frame => frame.checkVisibility()).map(frame => [
            frame.scrollWidth > frame.clientWidth,
            getComputedStyle(frame.querySelector('caption span'), '::after').content.includes('swipe sideways'),
        ])"""
    )
    return [(bool(wide), bool(hinted)) for wide, hinted in found]

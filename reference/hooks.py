"""Hooks that MkDocs calls during a build: they replace markers on a page by text generated from the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference.command_line import commands_page
from reference.config_keys import config_page

PAGE_MARKERS: dict[str, Callable[[], str]] = {"<!-- commands -->": commands_page, "<!-- config keys -->": config_page}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Returns the page's text with each marker replaced."""
    for marker, make_page in PAGE_MARKERS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make_page())
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """Names the theme's search dialog, which has no name for screen readers."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)

"""What MkDocs calls while it builds: a marker on a page gives way to what the code says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reference.command_line import commands_page
from reference.config_keys import config_page

PAGE_MARKERS: dict[str, Callable[[], str]] = {"<!-- commands -->": commands_page, "<!-- config keys -->": config_page}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text with each marker replaced."""
    for marker, make_page in PAGE_MARKERS.items():
        if marker in markdown:
            markdown = markdown.replace(marker, make_page())
    return markdown


def on_post_page(output: str, **_: Any) -> str:
    """The theme's search is a dialog without a name, which a screen reader asks for."""
    return output.replace('role="dialog"', 'role="dialog" aria-label="Search"', 1)
